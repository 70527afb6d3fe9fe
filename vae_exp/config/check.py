"""Whether a configuration makes sense, told before anything is started. Nothing here imports torch."""

import contextlib
import difflib
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vae_exp.config.keys import Config
from vae_exp.config.kinds import RUN_PATH, Rule
from vae_exp.config.moved import renamed
from vae_exp.config.rules import DATASET_RULES, OPTION_RULES, RULES
from vae_exp.errors import UserError

_PACKAGE = Path(__file__).parents[1]
# An installed package carries its own copy of conf/; a checkout has it at the top level.
CONF_DIR = next(path for path in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if path.is_dir())

LONGEST_SHOWN = 500  # characters of a value in a message
EVERY_RULE = RULES | OPTION_RULES | DATASET_RULES
# A dictionary given for these is refused whole; what has keys of its own is not one of them.
LEAVES = {key for key in EVERY_RULE if not any(other.startswith(f"{key}.") for other in EVERY_RULE)}
CALLS = ("network", "likelihood", "objective", "dataset", "optimizer", "scheduler")  # groups with a _target_
# Why these objectives are not for a deterministic autoencoder.
NEED_SPREAD = {
    "vae_exp.objectives.capacity": "holds the KL at a value, and an autoencoder has none",
    "vae_exp.objectives.iwae": "weighs several draws of z, and an autoencoder's code is always the same",
    "vae_exp.objectives.beta_tc": "takes the KL apart, and an autoencoder has none",
    "vae_exp.objectives.dip_vae": "takes the covariance of q(z), and an autoencoder's codes have no density",
}


def resolve(cfg: DictConfig) -> dict[str, Any]:
    """The configuration as plain values. Raises UserError for an interpolation that leads nowhere."""
    try:
        return cast("dict[str, Any]", OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True))
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key}: {str(error).splitlines()[0]}") from error


def check(cfg: DictConfig, combinations: bool = True) -> Config:
    """Check every value against its rule, and their combinations, and return the resolved configuration.

    A sweep checks the values of its first job alone: other jobs may combine them better.
    Raises UserError naming each wrong key, its value and what is allowed.
    """
    config = renamed(resolve(cfg))
    config.pop("published", None)  # what a preset claims is no setting: vae-reproduce reads it
    problems: list[str] = []
    for group in CALLS:
        if not isinstance(config.get(group), dict) or not isinstance(config[group].get("_target_"), str):
            problems.append(f"{group}: choose one of {', '.join(options(group))}")
    flat = flatten(config, LEAVES)
    rules = rules_for(flat)
    ruled = {key: value for key, value in flat.items() if key in rules or key.split(".")[0] not in CALLS}
    problems += check_values(ruled, rules, _copies_of_wrong_ones(cfg, ruled, rules))
    if combinations:
        problems += _check_combinations(flat)
    if flat.get("dataset.binarize") == "larochelle" and flat.get("dataset.source") != "mnist":
        problems.append("dataset.binarize=larochelle: these files are MNIST's; use it with dataset=mnist.")
    problems += source_problems(flat)
    if flat.get("sweep.prune") and flat.get("dataset.val_size") == 0:
        problems.append(
            f"sweep.prune={flat['sweep.prune']}: there are no validation images to judge by (dataset.val_size=0). "
            "Use sweep.prune=null, or keep some."
        )
    if problems:
        raise UserError("\n".join(problems))
    return cast("Config", config)


def source_problems(flat: Mapping[str, Any]) -> list[str]:
    """What is wrong where dataset.source is not of the chosen dataset, as EMNIST alone has parts to choose from, and
    where dataset.factors is a file and the dataset has factors of its own.
    """
    table, target = flat.get("dataset.factors"), flat.get("dataset._target_")
    if _is_ours(flat, "dataset") and isinstance(table, str) and table and target != "vae_exp.datasets.image_folder":
        return [f"dataset.factors={table}: it takes values by factor names, such as {{shape:[0],x:8}}."]
    source, split = flat.get("dataset.source"), flat.get("dataset.split")
    if flat.get("dataset._target_") != "vae_exp.datasets.torchvision_images" or (source == "emnist") == bool(split):
        return []
    if source == "emnist":
        return ["dataset.source=emnist: it needs dataset.split, which dataset=emnist has. Use dataset=emnist."]
    return [f"dataset.source={source}: dataset.split={split} is of emnist alone. Use dataset={source}."]


def path_of(key: str, value: Any) -> Path:
    """The path that a key gives, for keys that no table of rules has. Raises UserError for what is none."""
    if problems := check_values({key: value}, {key: RUN_PATH}):
        raise UserError(problems[0])
    return Path(str(value)).expanduser()


def _copies_of_wrong_ones(cfg: DictConfig, flat: Mapping[str, Any], rules: Mapping[str, Rule]) -> set[str]:
    """The keys whose value is an interpolation such as ${seed} of a key that is wrong itself: it is said once."""
    written = flatten(cast("dict[str, Any]", OmegaConf.to_container(cfg)), LEAVES)
    wrong = {key for key, value in flat.items() if key in rules and not rules[key].allows(value)}
    sources = {key: re.fullmatch(r"\$\{([\w.]+)\}", str(written.get(key))) for key in wrong}
    return {key for key, source in sources.items() if source is not None and source[1] in wrong}


def rules_for(flat: Mapping[str, Any]) -> dict[str, Rule]:
    """The rules of every configuration, and those of the options that are there.

    Options of a user's own _target_ mean what the user says: rules bind only vae_exp's and torch's. What all datasets
    share goes to `prepare`, whoever made the dataset.
    """
    options_there = {
        key: rule for key, rule in OPTION_RULES.items() if key in flat and _is_ours(flat, key.split(".")[0])
    }
    return RULES | options_there | {key: rule for key, rule in DATASET_RULES.items() if key in flat}


def _is_ours(flat: Mapping[str, Any], group: str) -> bool:
    """Whether the group's function is vae_exp's or torch's, so that its keys mean what vae_exp says."""
    return str(flat.get(f"{group}._target_")).startswith(("vae_exp.", "torch."))


def _check_combinations(flat: Mapping[str, Any]) -> list[str]:
    """What is wrong between keys of different groups."""
    problems = []
    if flat.get("model.conditional") is True and flat.get("dataset.n_classes") == 0:
        problems.append(
            f"model.conditional=true: dataset={flat.get('dataset.name')} has no labels (dataset.n_classes=0). "
            "Use model=vanilla or model=beta, or data with labels."
        )
    if flat.get("resume") is not None and flat.get("replace") is True:
        problems.append(f"resume={flat['resume']} and replace=true: one goes on with a run, the other takes it away.")
    if flat.get("scores_every_epochs") and flat.get("scores") == []:
        problems.append(
            f"scores_every_epochs={flat['scores_every_epochs']} and scores=[]: there is nothing to measure. Name "
            "scores, such as scores=[mig], or use scores_every_epochs=null."
        )
    problems += _check_objective(flat)
    problems += _check_amortized(flat)
    if flat.get("early_stopping.patience") and flat.get("dataset.val_size") == 0:
        problems.append(
            f"early_stopping.patience={flat['early_stopping.patience']}: there are no validation images to watch "
            "(dataset.val_size=0). Use early_stopping.patience=null, or keep some."
        )
    return problems


def _check_objective(flat: Mapping[str, Any]) -> list[str]:
    """What an objective cannot do with the model or the likelihood, and warm-ups of two lengths or of none."""
    problems = []
    target = str(flat.get("objective._target_"))
    name = target.rsplit(".", 1)[-1]
    if target in NEED_SPREAD and flat.get("model.stochastic") is False:
        problems.append(f"objective={name}: it {NEED_SPREAD[target]}. Use objective=elbo.")
    sigma = flat.get("likelihood.sigma") if _is_ours(flat, "likelihood") else None
    if target == "vae_exp.objectives.iwae" and sigma == "optimal":
        problems.append(
            "objective=iwae: the draws of z must be weighed under one sigma, and likelihood.sigma=optimal fits one to "
            "each. Use likelihood.sigma=learned."
        )
    if target == "vae_exp.objectives.dip_vae" and flat.get("batch_size") == 1:
        problems.append(
            "objective=dip_vae and batch_size=1: it takes the covariance of the codes of a batch, and one image has "
            "none. Use batch_size=2 or more."
        )
    if not _is_ours(flat, "objective"):
        return problems
    lengths = [f"objective.warmup_{unit}" for unit in ("epochs", "steps", "fraction")]
    given = [f"{key}={flat[key]}" for key in lengths if flat.get(key)]
    if len(given) > 1:
        problems.append(f"{' and '.join(given)}: a warm-up has one length; set the other to 0.")
    shape = flat.get("objective.warmup")
    if shape in ("cosine", "cyclical") and not given:
        length = "objective.warmup_epochs=5" if shape == "cosine" else "objective.warmup_fraction=1"
        problems.append(f"objective.warmup={shape}: say how long it lasts, such as {length}.")
    return problems


def _check_amortized(flat: Mapping[str, Any]) -> list[str]:
    """What stands in the way of one run for many settings: each must be an ordinary model's, and the run's own one."""
    names = ("amortize.beta", "amortize.z_dim", "model.beta", "model.z_dim")
    if not all(name in flat and RULES[name].allows(flat[name]) for name in names):  # which is told already
        return []
    betas, z_dims, beta, z_dim = (flat[name] for name in names)
    given = " and ".join(name for name in names[:2] if flat[name] is not None)
    if not given:
        alone = (
            f"amortize.confirm={flat['amortize.confirm']}: there is no map to confirm without amortize.beta or z_dim."
        )
        return [alone] if flat.get("amortize.confirm") else []
    problems = []
    if betas and not betas[0] <= beta <= betas[1]:
        problems.append(f"model.beta={beta:g}: the run is measured at it, and it is not in amortize.beta={betas}.")
    if z_dims and z_dim not in z_dims:
        problems.append(f"model.z_dim={z_dim}: the run is measured at it, and it is not in amortize.z_dim={z_dims}.")
    if _is_ours(flat, "objective") and flat.get("objective._target_") != "vae_exp.objectives.elbo":
        problems.append(f"{given}: of objective=elbo alone, whose loss is a mean over images, each at its own setting.")
    for key in ("likelihood.sigma", "likelihood.scale"):
        if isinstance(fitted := flat.get(key), str) and _is_ours(flat, "likelihood"):
            problems.append(
                f"{key}={fitted}: would be one for all settings of {given}. Use a number, such as {key}=0.1."
            )
    if betas and flat.get("model.stochastic") is False:
        problems.append(f"amortize.beta={betas}: an autoencoder has no KL to weigh.")
    return problems


def check_values(flat: Mapping[str, Any], rules: Mapping[str, Rule], copies: Iterable[str] = ()) -> list[str]:
    """What is wrong with each key: missing, unknown, or a value that its rule does not allow."""
    problems = [f"{key}: is missing. It takes {rule.words}." for key, rule in rules.items() if key not in flat]
    for key, value in flat.items():
        rule = rules.get(key)
        if rule is None:
            problems.append(f"{key}: no such key.{closest(key, rules)}")
        elif key not in copies and not rule.allows(value):
            hint = _sweep_hint(key, value, rule) or _text_hint(value, rule)
            problems.append(f"{key}={shortened(as_typed(value))}: it takes {rule.words}.{hint}")
    return problems


def as_typed(value: Any) -> str:
    """A value as it is written on a command line."""
    if isinstance(value, list):
        return f"[{','.join(map(as_typed, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{as_typed(item)}" for key, item in value.items()) + "}"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _sweep_hint(key: str, value: Any, rule: Rule) -> str:
    """What to type for one run with each of several values."""
    if not isinstance(value, list) or not value or not all(map(rule.allows, value)):
        return ""
    return f" A run for each value is vae-train -m {key}={','.join(map(as_typed, value))}"


def _text_hint(value: Any, rule: Rule) -> str:
    """What makes a number of text that looks like one: a value in quotes, or from the environment."""
    for read in (int, float, {"true": True, "false": False}.__getitem__):
        with contextlib.suppress(ValueError, KeyError):
            if isinstance(value, str) and rule.allows(read(value)):
                return f" This {value} is text: leave its quotes out, or decode it: ${{oc.decode:${{oc.env:NAME}}}}"
    return ""


def shortened(text: str) -> str:
    """Text for a message, which shows only the beginning of a very long one."""
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}... ({len(text):,} characters)"


def flatten(values: Mapping[str, Any], leaves: Collection[str] = (), prefix: str = "") -> dict[str, Any]:
    """{"model": {"z_dim": 20}} becomes {"model.z_dim": 20}; `leaves` are keys whose value stays whole."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict) and value and path not in leaves:
            flat |= flatten(value, leaves, f"{path}.")
        else:
            flat[path] = value
    return flat


def options(group: str, folder: Path = CONF_DIR) -> list[str]:
    """The options of a config group, by their files."""
    return sorted(path.stem for path in (folder / group).glob("*.yaml"))


def groups(folder: Path = CONF_DIR) -> list[str]:
    """The config groups, by their folders."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name != "hydra")


def options_with(key: str) -> list[str]:
    """The options of a group that have the key, such as sgd and rmsprop for optimizer.momentum."""
    group, _, name = key.partition(".")
    return [option for option in options(group) if name in OmegaConf.load(CONF_DIR / group / f"{option}.yaml")]


def closest(word: str, known: Collection[str]) -> str:
    """A sentence with the known names nearest to a misspelt one, or nothing where none is near.

    Keys are compared whole and by their last part, since people write z_dim=10 for model.z_dim=10.
    """
    last = word.rsplit(".", 1)[-1]
    if "." not in word:  # z_dim alone is the model's, not amortize.z_dim
        known = [key for key in known if key != f"amortize.{word}"]
    near = difflib.get_close_matches(word, known, n=3, cutoff=0.7)
    near += [key for key in known if key.rsplit(".", 1)[-1] == last]
    near += [key for key in known if difflib.get_close_matches(last, [key.rsplit(".", 1)[-1]], cutoff=0.75)]
    return f" Did you mean {' or '.join(list(dict.fromkeys(near))[:3])}?" if near else ""
