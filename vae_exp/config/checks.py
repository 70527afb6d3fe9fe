"""Check a configuration, key by key and between keys; and the words, paths and options that its messages name."""

import contextlib
import difflib
import os
import re
import shlex
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vae_exp.config.migrations import renamed
from vae_exp.config.schema import (
    DATASET_RULES,
    MEASURED,
    OPTION_RULES,
    RULES,
    RUN_PATH,
    TERMS,
    Config,
    Rule,
    is_path,
    is_score,
)
from vae_exp.errors import UserError, first_line, printable, shortened
from vae_exp.files import expand

_PACKAGE = Path(__file__).parents[1]
# An installed package carries its own copy of conf/; a checkout has it at the top level.
CONF_DIR = next(path for path in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if path.is_dir())
CALLS = (
    "network",
    "posterior",
    "prior",
    "likelihood",
    "objective",
    "dataset",
    "optimizer",
    "scheduler",
)  # groups with a _target_
OWN_IMAGES = ("vae_exp.datasets.image_folder", "vae_exp.datasets.arrays")  # whatever lies at dataset.root
DATA_PATHS = ("root", "cache")  # of a dataset
INHERITED = {"model": "vanilla", "dataset": "{options@_here_: common}"}  # by options of these groups
# A dictionary given for these is refused whole; factors have keys of their own.
LEAVES = (RULES | OPTION_RULES | DATASET_RULES).keys() - {"dataset.factors"}
RUN_DIR = "hydra.run.dir"
OTHER_NAMES = {  # of keys, in other programs
    **dict.fromkeys(("learning_rate", "step_size"), ("optimizer.lr",)),
    **dict.fromkeys(("latent_dim", "latent_dims", "latent_size", "latents"), ("model.z_dim",)),
    **dict.fromkeys(("data", "data_dir", "data_path", "data_root"), ("dataset.root",)),
    **dict.fromkeys(("out", "output", "output_dir", "out_dir", "save_dir", "log_dir", "run_dir"), (RUN_DIR, "output")),
}


def resolve(cfg: DictConfig) -> dict[str, Any]:
    """Return the configuration as plain values. Raises UserError for an interpolation that leads nowhere."""
    try:
        return cast("dict[str, Any]", OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True))
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key}: {first_line(error)}") from error


def check(cfg: DictConfig, combinations: bool = True) -> Config:
    """Check every value, and combinations unless other jobs may combine them better; return the resolved configuration.

    Its paths mean the same from any folder. Raises UserError naming each wrong key, its value and what is allowed.
    """
    for group, line in INHERITED.items():
        names = [key.partition(".")[2] for key in RULES if key.startswith(f"{group}.")]
        if isinstance(cfg.get(group), DictConfig) and (missing := [name for name in names if name not in cfg[group]]):
            how = f"A yaml of your own gets what it leaves out by `defaults: [{line}, _self_]`"
            raise UserError(f"{group}.{missing[0]}: is missing. {how}.")
    config = renamed(resolve(cfg))
    config.pop("published", None)  # what a preset claims is no setting: vae-reproduce reads it
    problems = [
        f"{group}: choose one of {', '.join(options(group))}"
        for group in CALLS
        if not isinstance(config.get(group), dict) or not isinstance(config[group].get("_target_"), str)
    ]
    flat = flatten(config, LEAVES)
    rules = rules_for(flat)
    ruled = {key: value for key, value in flat.items() if key in rules or key.split(".")[0] not in CALLS}
    problems += check_values(ruled, rules, _copies_of_wrong_values(cfg, ruled, rules))
    problems += [*(combination_problems(flat) if combinations else ()), *dataset_problems(flat)]
    for key in ("monitor", "sweep.metric") if flat.get("sweep.metric") else ("monitor",):  # the last one judges jobs
        judges = flat.get("sweep.prune") and (key == "sweep.metric" or not flat.get("sweep.metric"))
        by = f"sweep.prune={flat['sweep.prune']}" if judges else key
        if by != "monitor" or flat.get("dataset.val_size") != 0:  # else the best epoch is the last one
            problems += check_metric(key, flat, by)
    if problems:
        raise UserError("\n".join(problems))
    return cast("Config", from_anywhere(config))


def rules_for(flat: Mapping[str, Any]) -> dict[str, Rule]:
    """Return the rules of every configuration, and of the options that are present, but for a user's own _target_."""
    ours = {group for group in CALLS if is_ours(flat.get(f"{group}._target_"))}
    chosen = {key: rule for key, rule in OPTION_RULES.items() if key in flat and key.split(".")[0] in ours}
    return RULES | chosen | {key: rule for key, rule in DATASET_RULES.items() if key in flat}


def is_ours(target: Any) -> bool:
    """Return whether a _target_ is vae_exp's or torch's, so that its settings mean what vae_exp says."""
    return str(target).startswith(("vae_exp.", "torch."))


def _copies_of_wrong_values(cfg: DictConfig, flat: Mapping[str, Any], rules: Mapping[str, Rule]) -> set[str]:
    """Return the keys that are interpolations, such as ${seed}, of a wrong key: the error is reported only once."""
    written = flatten(cast("dict[str, Any]", OmegaConf.to_container(cfg)), LEAVES)
    wrong = {f"${{{key}}}" for key, rule in rules.items() if key in flat and not rule.allows(flat[key])}
    return {key for key, value in written.items() if isinstance(value, str) and value in wrong}


def check_values(flat: Mapping[str, Any], rules: Mapping[str, Rule], copies: Collection[str] = ()) -> list[str]:
    """Return what is wrong with each key: missing, unknown, or a value that its rule does not allow."""
    problems = [f"{key}: is missing. It takes {rule.words}." for key, rule in rules.items() if key not in flat]
    for key, value in flat.items():
        rule = rules.get(key)
        if rule is None:
            problems.append(f"{key}: no such key.{closest(key, rules)}")
        elif key not in copies and not rule.allows(value):
            hint = _sweep_hint(key, value, rule) or _text_hint(value, rule)
            problems.append(f"{key}={shortened(printable(as_typed(value)))}: it takes {rule.words}.{hint}")
    return problems


def _sweep_hint(key: str, value: Any, rule: Rule) -> str:
    if not isinstance(value, list) or not value or not all(map(rule.allows, value)):
        return ""
    return f" A run for each value is vae-train -m {key}={','.join(map(as_typed, value))}"


def _text_hint(value: Any, rule: Rule) -> str:
    """Return a hint on why a number is text: it is in quotes, or comes from the environment."""
    for read in (int, float, {"true": True, "false": False}.__getitem__):
        with contextlib.suppress(ValueError, KeyError):
            if isinstance(value, str) and rule.allows(read(value)):
                return f" This {value} is text: leave its quotes out, or decode it: ${{oc.decode:${{oc.env:NAME}}}}"
    return ""


def combination_problems(flat: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong between keys of different groups."""
    if flat.get("model.conditional") is True and flat.get("dataset.n_classes") == 0:
        name = flat.get("dataset.name")
        yield f"model.conditional=true: dataset={name} has no labels. Use model=vanilla, model=beta, or other data."
    if (condition := flat.get("dataset.condition")) and is_ours(flat.get("dataset._target_")):
        typed = f"dataset.condition={as_typed(condition)}"
        if flat.get("model.conditional") is False:
            yield f"{typed} and model.conditional=false: only a conditional model is given it. Use model=conditional."
        if chosen(flat, "prior") == "by_label":
            yield f"{typed} and prior=by_label: it has a Gaussian for each label alone. Use prior=standard."
    if flat.get("resume") is not None and flat.get("replace") is True:
        yield f"resume={flat['resume']} and replace=true: one resumes a run, the other deletes it."
    if flat.get("resume") not in (None, "auto") and flat.get("init_from") is not None:
        yield f"resume={flat['resume']} and init_from={flat['init_from']}: a resumed run has its own weights."
    if flat.get("scores_every_epochs") and flat.get("scores") == []:
        every = f"scores_every_epochs={flat['scores_every_epochs']}"
        yield f"{every} and scores=[]: there is nothing to measure. Name some, or use scores_every_epochs=null."
    if flat.get("early_stopping.patience") and flat.get("dataset.val_size") == 0:
        patience = f"early_stopping.patience={flat['early_stopping.patience']}"
        yield f"{patience}: there are no validation images to watch (dataset.val_size=0). Use null, or keep some."
    yield from check_devices(flat)
    yield from _family_problems(flat)
    yield from _objective_problems(flat)


def check_devices(flat: Mapping[str, Any]) -> list[str]:
    """Return what is wrong if there are more processes than images in a batch."""
    devices, batch_size = flat.get("devices"), flat.get("batch_size")
    if isinstance(devices, int) and isinstance(batch_size, int) and devices > batch_size > 0:
        return [f"devices={devices} and batch_size={batch_size}: each process needs an image of a batch."]
    return []


# What these objectives do with q(z|x) and p(z), and the posteriors and priors of ours that let them. A user's own
# are seen when they are tried, but for another prior than the one that beta_tc takes for granted.
NEED_FAMILY = {
    "free_bits": ("counts the KL of each latent", ("diagonal",), ("standard", "by_label")),
    "beta_tc": ("takes the KL to N(0, I) apart", ("diagonal", "full"), ("standard",)),
    "dip_vae": ("takes the covariance of q(z)", ("diagonal", "full"), None),
}
# Why these objectives are not for a deterministic autoencoder.
NEED_SPREAD = {
    "vae_exp.objectives.capacity": "holds the KL at a value, and an autoencoder has none",
    "vae_exp.objectives.iwae": "weighs several draws of z, and an autoencoder's code is always the same",
    "vae_exp.objectives.beta_tc": "takes the KL apart, and an autoencoder has none",
    "vae_exp.objectives.dip_vae": "takes the covariance of q(z), and an autoencoder's codes have no density",
}


def chosen(flat: Mapping[str, Any], group: str) -> str | None:
    """Return the option of a group by the name of its function, or None of a user's own."""
    target = flat.get(f"{group}._target_")
    return str(target).rpartition(".")[2] if is_ours(target) else None


def families(config: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Return the posterior and the prior of a configuration by their names, each None if it is a user's own."""
    flat = {f"{group}._target_": config[group]["_target_"] for group in ("posterior", "prior")}
    return chosen(flat, "posterior"), chosen(flat, "prior")


def _family_problems(flat: Mapping[str, Any]) -> Iterator[str]:
    posterior, prior, objective = (chosen(flat, group) for group in ("posterior", "prior", "objective"))
    names_of = {"posterior": (posterior, "diagonal"), "prior": (prior, "standard")}
    if flat.get("model.stochastic") is False:
        for group, (name, usual) in names_of.items():
            if name != usual:
                typed = f"model.stochastic=false and {group}={name or 'your own'}"
                yield f"{typed}: an autoencoder's code is a point. Use {group}={usual}."
    if prior == "by_label" and flat.get("model.conditional") is False:
        yield "prior=by_label and model.conditional=false: it is p(z | label). Use model=conditional, or another prior."
    if prior == "flow" and flat.get("model.z_dim") == 1:
        yield "prior=flow and model.z_dim=1: its layers move some latents by others. Use prior=mixture, or two latents."
    what, *suited = NEED_FAMILY.get(objective or "", ("", None, None))
    for (group, (name, _)), names in zip(names_of.items(), suited, strict=True):
        is_tried = name is None and not (group == "prior" and objective == "beta_tc")
        if names and name not in names and not is_tried:
            use = " or ".join(f"{group}={name}" for name in names)
            yield f"objective={objective} and {group}={name or 'your own'}: it {what}. Use {use}, or objective=elbo."


def _objective_problems(flat: Mapping[str, Any]) -> Iterator[str]:
    target = str(flat.get("objective._target_"))
    if target in NEED_SPREAD and flat.get("model.stochastic") is False:
        yield f"objective={target.rpartition('.')[2]}: it {NEED_SPREAD[target]}. Use objective=elbo."
    is_optimal = flat.get("likelihood.sigma") == "optimal" and is_ours(flat.get("likelihood._target_"))
    if target == "vae_exp.objectives.iwae" and is_optimal:
        yield "objective=iwae: the draws of z must be weighed under one sigma. Use likelihood.sigma=learned."
    if target == "vae_exp.objectives.dip_vae" and flat.get("batch_size") == 1:
        yield "objective=dip_vae and batch_size=1: it takes the covariance of the codes of a batch. Use 2 or more."
    lengths = [f"objective.warmup_{unit}" for unit in ("epochs", "steps", "fraction")]
    given = [f"{key}={flat[key]}" for key in lengths if flat.get(key)]
    if len(given) > 1 and is_ours(target):
        yield f"{' and '.join(given)}: a warm-up has one length; set the other to 0."
    shape = flat.get("objective.warmup")
    if shape in ("cosine", "cyclical") and not given and is_ours(target):
        length = "objective.warmup_epochs=5" if shape == "cosine" else "objective.warmup_fraction=1"
        yield f"objective.warmup={shape}: say how long it lasts, such as {length}."


def dataset_problems(flat: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong between the keys of a dataset, such as a source that is another dataset's."""
    target, source, split, table = (flat.get(f"dataset.{key}") for key in ("_target_", "source", "split", "factors"))
    if is_ours(target) and flat.get("dataset.root", "") is None:
        where = (
            "FILE.npz, which holds your images" if target == "vae_exp.datasets.arrays" else "FOLDER, with the images"
        )
        yield f"dataset={flat.get('dataset.name')}: it needs dataset.root={where}."
    if flat.get("dataset.binarize") == "larochelle" and source != "mnist":
        yield "dataset.binarize=larochelle: these files are MNIST's; use it with dataset=mnist."
    if is_ours(target) and isinstance(table, str) and table and target != "vae_exp.datasets.image_folder":
        yield f"dataset.factors={table}: it takes values by factor names, such as {{shape:[0],x:8}}."
    if target == "vae_exp.datasets.torchvision_images" and (source == "emnist") != bool(split):
        why = (
            "it needs dataset.split, which dataset=emnist has"
            if source == "emnist"
            else f"dataset.split={split} is of emnist alone"
        )
        yield f"dataset.source={source}: {why}. Use dataset={source}."


def check_metric(key: str, flat: Mapping[str, Any], by: str, why: str = "") -> list[str]:
    """Return what is wrong with sweep.metric or monitor, by which `by` judges; `why` says where val_size is from."""
    metric, size = str(flat.get(key)), flat.get("dataset.val_size")
    why = why or f"dataset.val_size={size}"
    (part, _, name), held_out = metric.partition("/"), "test" if size == 0 else "val"
    known, setting = ", ".join(f"{held_out}/{term}" for term in TERMS), f"sweep.metric={metric}"
    if part == "test" != held_out and by != "monitor":
        how = "the test images are read only at the end"
        return [f"{setting}: with validation images ({why}) {how}, and {by} takes one of {known}."]
    if part == "val" != held_out:
        lack = f"there are no validation images to judge by ({why})"
        return [f"{setting}: {lack}, and {by} needs them, or judges with one of {known}."]
    is_scored = flat.get("scores_every_epochs") == 1 and flat.get("scores")
    if part in (held_out, "train_epoch", "time") and (part != held_out or name in MEASURED or is_scored):
        is_wrong = key == "monitor" and is_score(metric) and flat.get("monitor_mode") == "min"
        return [f"monitor={metric}: of a score more is better. Add monitor_mode=max."] if is_wrong else []
    scores = f"with scores=[mig] scores_every_epochs=1 {held_out}/mig and its like"
    return [f"{key}={metric}: no such number is logged each epoch. There are {known}, and {scores}."]


def from_anywhere(config: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration with absolute paths to its data and its start, in a user's own dataset if they exist."""
    dataset, start = config.get("dataset"), config.get("init_from")
    if isinstance(start, str) and is_path(start) and os.path.exists(os.path.expanduser(start)):  # noqa: PTH110, PTH111  (they never raise)
        config = config | {"init_from": absolute(start)}
    if not isinstance(dataset, dict):
        return config
    paths = {key: dataset[key] for key in DATA_PATHS if is_path(dataset.get(key))}
    if not is_ours(dataset.get("_target_")):
        paths = {key: path for key, path in paths.items() if Path(path).exists()}
    return config | {"dataset": dataset | {key: absolute(path) for key, path in paths.items()}}


def absolute(path: str, folder: Path | None = None) -> str:
    """Return the path as one that means the same from any folder; relative ones start at `folder`, or the current."""
    if path.startswith("~"):
        return path
    joined = str((folder or Path.cwd()) / path)
    plain = os.path.normpath(joined)
    return plain if os.path.realpath(plain) == os.path.realpath(joined) else joined  # a link makes a/../b another place


def path_of(key: str, value: Any) -> Path:
    """Return the path that a key gives, for keys without a rule. Raises UserError if the value is not a path."""
    if problems := check_values({key: value}, {key: RUN_PATH}):
        raise UserError(problems[0])
    return expand(str(value))


def as_typed(value: Any) -> str:
    """Return a value as it is written on a command line."""
    if isinstance(value, list):
        return f"[{','.join(map(as_typed, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{as_typed(item)}" for key, item in value.items()) + "}"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def names_in(value: Any) -> list[str]:
    """Return the names that a key such as dataset.label has: none, one or a list."""
    return [] if value is None else list(map(str, value if isinstance(value, list | tuple) else [value]))


def quoted(text: object, mark: str = "'") -> str:
    """Return text quoted for Hydra's command line, whatever is in it."""
    return mark + str(text).replace("\\", "\\\\").replace(mark, f"\\{mark}") + mark


def literal(path: object, mark: str = "'") -> str:
    """Return a path quoted for Hydra's command line: a folder called ${oc.env:HOME} is not an interpolation."""
    return quoted(path, mark).replace("${", "\\${")


def as_argument(key: str, path: object) -> str:
    """Return KEY=PATH as typed in a shell, with the quotes that the shell and Hydra need; shlex reads it back."""
    text, is_number = str(path), False
    with contextlib.suppress(ValueError):
        is_number = isinstance(float(text), float)
    if is_number or text.lower() in ("null", "true", "false") or not re.fullmatch(r"[\w./+-]+( [\w./+-]+)*", text):
        text = literal(text, '"')
    return shlex.quote(f"{key}={text}")


def data_name(dataset: Mapping[str, Any]) -> str:
    """Return what a dataset is called in names and tables: of one's own images their folder, or the .npz file."""
    name, root = str(dataset.get("name")), dataset.get("root")
    if f"vae_exp.datasets.{name}" not in OWN_IMAGES or root is None:  # it has a name of its own, or only one place
        return name
    path = Path(os.path.abspath(os.path.expanduser(str(root))))  # noqa: PTH100, PTH111  (these never raise)
    return path.name.removesuffix(".npz") or name


def given_name(config: Mapping[str, Any] | None) -> str | None:
    """Return the name that a user gave a run with wandb.name; None without one. Of a stranger's run it may be any."""
    wandb = (config or {}).get("wandb")
    return wandb.get("name") if isinstance(wandb, Mapping) else None


def made_name(config: Mapping[str, Any]) -> str:
    """Return a name such as beta-digits-conv-z20-beta16: the model, the data, and the parts that are not the usual."""
    model, dataset = config["model"], config["dataset"]
    usual = {"network": "mlp", "posterior": "diagonal", "prior": "standard"}
    usual |= {"likelihood": "bernoulli", "objective": "elbo"}
    parts = [str(config[group].get("_target_")).rpartition(".")[2] for group in usual]
    given = names_in(dataset.get("label") or dataset.get("attribute")) + names_in(dataset.get("condition"))
    words = [model["name"], data_name(dataset)[:40], *(given if model["conditional"] else [])]
    words += [dataset["binarize"]] if dataset.get("binarize", "none") != "none" else []
    words += [part for part, common in zip(parts, usual.values(), strict=True) if part != common]
    words += [f"z{model['z_dim']}", *([f"beta{model['beta']:g}"] if model["beta"] not in (0, 1) else [])]
    return re.sub(r"[^\w.+-]+", "-", "-".join(map(str, words)))


def flatten(values: Mapping[str, Any], leaves: Collection[str] = (), prefix: str = "") -> dict[str, Any]:
    """Return {"model.z_dim": 20} for {"model": {"z_dim": 20}}; the values of the keys in `leaves` stay nested."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict) and value and path not in leaves:
            flat |= flatten(value, leaves, f"{path}.")
        else:
            flat[path] = value
    return flat


def options(group: str, folder: Path = CONF_DIR) -> list[str]:
    """Return the options of a config group, from the names of their files."""
    return sorted(path.stem for path in (folder / group).glob("*.yaml"))


def groups(folder: Path = CONF_DIR) -> list[str]:
    """Return the config groups, from the names of their folders."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name != "hydra")


def options_with(key: str) -> list[str]:
    """Return the options of a group that have the key, such as sgd and rmsprop for optimizer.momentum."""
    group, _, name = key.partition(".")
    return [option for option in options(group) if name in OmegaConf.load(CONF_DIR / group / f"{option}.yaml")]


def closest(word: str, known: Collection[str]) -> str:
    """Return a sentence with the known names nearest to a misspelt one, or nothing if none is near."""
    last = word.rsplit(".", 1)[-1]  # people write z_dim=10 for model.z_dim=10
    near = [key for key in OTHER_NAMES.get(last, ()) if key in known]
    near += difflib.get_close_matches(word, known, n=3, cutoff=0.7)
    near += [key for key in known if key.rsplit(".", 1)[-1] == last]
    near += [key for key in known if difflib.get_close_matches(last, [key.rsplit(".", 1)[-1]], cutoff=0.75)]
    return f" Did you mean {' or '.join(list(dict.fromkeys(near))[:3])}?" if near else ""
