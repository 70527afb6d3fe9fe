"""What a configuration may say. Everything here answers without importing torch, before anything is started."""

import difflib
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

_PACKAGE = Path(__file__).parent
# An installed package carries its own copy of conf/; a checkout has it at the top level.
CONF_DIR = next(path for path in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if path.is_dir())


class UserError(Exception):
    """Something the user can mend, said in one message: printed without a traceback, exit code 1."""


@dataclass
class Rule:
    allows: Callable[[Any], bool]
    words: str


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _whole(low: int, high: int = 2**31 - 1) -> Rule:
    words = f"a whole number, {low:,} or more" if high == 2**31 - 1 else f"a whole number from {low:,} to {high:,}"
    return Rule(lambda v: _is_number(v) and isinstance(v, int) and low <= v <= high, words)


def _number(low: float, high: float = math.inf, *, above: bool = False) -> Rule:
    words = f"a number above {low:g}" if above else f"a number, {low:g} or more"
    if high < math.inf:
        words += f" and at most {high:g}"
    return Rule(lambda v: _is_number(v) and (v > low if above else v >= low) and v <= high, words)


def _one_of(*options: str) -> Rule:
    return Rule(lambda v: v in options, "one of " + ", ".join(options))


def _list_of(rule: Rule, words: str) -> Rule:
    return Rule(lambda v: isinstance(v, list) and all(rule.allows(item) for item in v), words)


def _either(rule: Rule, other: Rule) -> Rule:
    return Rule(lambda v: rule.allows(v) or other.allows(v), f"{rule.words}, or {other.words}")


def _or_null(rule: Rule) -> Rule:
    return Rule(lambda v: v is None or rule.allows(v), f"{rule.words}, or null")


def _or_word(rule: Rule, *words: str) -> Rule:
    return Rule(lambda v: v in words or rule.allows(v), f"{rule.words}, or {' or '.join(words)}")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value.strip() != "" and value.isprintable()


_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def size_in_bytes(size: int | str) -> int:
    """2GB is 2,000,000,000 and a plain number is bytes. Raises ValueError for what is no size."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?B)?", str(size).strip(), re.IGNORECASE)
    if isinstance(size, bool) or not found:
        raise ValueError(f"{size} is no size")
    return int(float(found[1]) * _UNITS[(found[2] or "B").upper()])


def _is_size(value: Any) -> bool:
    try:
        return size_in_bytes(value) >= 0
    except ValueError:
        return False


# What becomes part of a folder's name must not be able to lead out of it.
NAME = Rule(lambda v: _is_text(v) and v.replace("_", "").replace("-", "").isalnum(), "letters, digits, - and _")
TEXT = Rule(lambda v: _is_text(v) or _is_number(v), "text on one line")
PATH = Rule(_is_text, "the path of a folder")
FLAG = Rule(lambda v: isinstance(v, bool), "true or false")
SIDES = Rule(
    lambda v: isinstance(v, list) and len(v) == 2 and all(_whole(1, 4096).allows(side) for side in v),
    "a height and a width such as [48,64]",
)
FRACTION = Rule(lambda v: isinstance(v, float) and 0 < v < 1, "a fraction such as 0.1")

FIGURES = ("interpolations", "traversals", "manifold", "latents")

RULES = {
    "epochs": _whole(0),
    "batch_size": _whole(1),
    "seed": _whole(0, 2**32 - 1),
    "device": _one_of("auto", "cpu", "cuda", "mps"),
    "resume": _or_null(TEXT),
    "checkpoint_every_epochs": _or_null(_whole(1)),
    "checkpoint_every_steps": _or_null(_whole(1)),
    "checkpoint_every_minutes": _or_null(_number(0, above=True)),
    "max_minutes": _or_null(_number(0, above=True)),
    "early_stopping.patience": _or_null(_whole(1)),
    "log_every_steps": _whole(1),
    "figures": _or_null(_list_of(_one_of(*FIGURES), f"a list of {', '.join(FIGURES)}")),
    "figure_every_epochs": _whole(1),
    "model.name": NAME,
    "model.z_dim": _whole(1),
    "model.beta": _number(0),
    "model.conditional": FLAG,
    "model.stochastic": FLAG,
    "wandb.mode": _one_of("auto", "online", "offline", "disabled"),
    "wandb.project": _or_null(TEXT),
    "wandb.entity": _or_null(TEXT),
    "wandb.name": _or_null(TEXT),
    "wandb.group": _or_null(TEXT),
    "wandb.tags": _or_null(_list_of(TEXT, "a list such as [a,b]")),
    "wandb.notes": _or_null(Rule(lambda v: isinstance(v, str), "text")),
    "wandb.dir": _or_null(TEXT),
    "wandb.log_checkpoints": FLAG,
    "sweep.name": _or_null(TEXT),
    "sweep.resume": _or_null(TEXT),
    "sweep.over": _list_of(TEXT, "a list of keys, filled in by vae-train -m"),
    "sweep.jobs": _or_null(_whole(1)),
    "optimizer.lr": _number(0, above=True),
    "dataset.name": NAME,
    "dataset.n_classes": _or_null(_whole(0)),
}
# Keys that only some options have. An option of a user's own may have others, with no rule.
OPTION_RULES = {
    "network.hidden_dims": _list_of(_whole(1), "a list of whole numbers, 1 or more, such as [400] or [512,256]"),
    "network.activation": _one_of("relu", "leaky_relu", "elu", "gelu", "silu", "tanh"),
    "network.channels": _whole(1),
    "network.blocks": _whole(1, 1000),
    "likelihood.sigma": _or_word(_number(0, above=True), "learned", "optimal"),
    "likelihood.scale": _or_word(_number(0, above=True), "learned"),
    "objective.beta": _number(0),
    "objective.warmup": _one_of("linear", "cosine", "cyclical"),
    "objective.warmup_epochs": _number(0),
    "objective.warmup_steps": _whole(0),
    "objective.warmup_fraction": _number(0, 1),
    "objective.cycles": _whole(1),
    "objective.free_nats": _number(0),
    "objective.capacity_nats": _number(0),
    "objective.alpha": _number(0),
    "objective.gamma": _number(0),
    "objective.samples": _whole(1),
    "objective.samples_at_once": _whole(1),
    "objective.sampling": _one_of("stratified", "weighted"),
    "dataset.root": PATH,
    "dataset.binarize": _one_of("none", "threshold", "static", "dynamic", "larochelle"),
    "dataset.val_size": _either(_whole(0), FRACTION),
    "dataset.train_size": _or_null(_either(_whole(1), FRACTION)),
    "dataset.test_size": _either(_whole(1), FRACTION),
    "dataset.labels": _or_null(_list_of(TEXT, "a list of class numbers or names, such as [3,7] or [cat,dog]")),
    "dataset.flip": FLAG,
    "dataset.device_memory": Rule(_is_size, "a size such as 500MB or 2GB; 0 streams everything"),
    "dataset.seed": _whole(0, 2**32 - 1),
    "dataset.split": _one_of("balanced", "byclass", "bymerge", "digits", "letters", "mnist"),
    "dataset.image_size": _either(_whole(1, 4096), SIDES),
    "dataset.channels": Rule(lambda v: v in (1, 3) and _is_number(v), "1 (grey) or 3 (colour)"),
    "dataset.crop": _or_null(_whole(1)),
    "dataset.on_error": _one_of("skip", "fail"),
    "dataset.cache": PATH,
    "dataset.attribute": _or_null(TEXT),
    "optimizer.weight_decay": _number(0),
    "optimizer.fused": FLAG,
    "optimizer.momentum": _number(0, 1),
    "optimizer.alpha": _number(0, 1),
    "optimizer.betas": _list_of(_number(0, 1), "a list of numbers from 0 to 1, such as [0.9,0.999]"),
    "scheduler.warmup_epochs": _number(0),
    "scheduler.final_factor": _number(0, 1),
    "scheduler.every_epochs": _number(0, above=True),
    "scheduler.gamma": _number(0, above=True),
    "scheduler.at_epochs": _list_of(_number(0), "a list of numbers, 0 or more, such as [8,12]"),
}
EVALUATE_RULES = {
    "checkpoint": TEXT,
    "split": _one_of("test", "val", "train"),
    "repeats": _whole(1),
    "importance_samples": _whole(0),
    "label_accuracy": FLAG,
    "batch_size": _whole(1),
    "seed": _whole(0, 2**32 - 1),
    "device": RULES["device"],
    "trust": FLAG,
    "dataset.root": _or_null(TEXT),
    "wandb.mode": RULES["wandb.mode"],
}
GENERATE_RULES = {
    "checkpoint": TEXT,
    "what": _one_of(
        "samples", "classes", "reconstructions", "interpolations", "traversals", "manifold", "latents", "weights"
    ),
    "n": _or_null(_whole(1)),
    "label": _or_null(TEXT),
    "temperature": _number(0),
    "inputs": _or_null(TEXT),
    "steps": _whole(2, 1000),
    "path": _one_of("spherical", "linear"),
    "around": _one_of("prior", "image"),
    "range": _number(0, above=True),
    "dims": _or_null(_list_of(_whole(0), "a list of latent dimensions, counted from 0, such as [3,7]")),
    "animate": FLAG,
    "format": _one_of("grid", "files", "npz"),
    "output": _or_null(TEXT),
    "split": _one_of("test", "val", "train"),
    "seed": _whole(0, 2**32 - 1),
    "device": RULES["device"],
    "trust": FLAG,
    "dataset.root": _or_null(TEXT),
}
# Why these objectives are not for a deterministic autoencoder.
NEED_SPREAD = {
    "vae_exp.objectives.capacity": "holds the KL at a value, and an autoencoder has none",
    "vae_exp.objectives.iwae": "weighs several draws of z, and an autoencoder's code is always the same",
    "vae_exp.objectives.beta_tc": "takes the KL apart, and an autoencoder has none",
}
CALLS = ("network", "likelihood", "objective", "dataset", "optimizer", "scheduler")


def resolve(cfg: DictConfig) -> dict:
    """The configuration as plain values. Raises UserError for an interpolation that leads nowhere."""
    try:
        return OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key}: {str(error).splitlines()[0]}") from error


def check(cfg: DictConfig, combinations: bool = True) -> dict:
    """Check every value against its rule, and their combinations, and return the resolved configuration.

    A sweep checks the values of its first job alone: other jobs may combine them better.
    Raises UserError naming each wrong key, its value and what is allowed.
    """
    values = resolve(cfg)
    problems = []
    for group in CALLS:
        if not isinstance(values.get(group), dict) or not isinstance(values[group].get("_target_"), str):
            problems.append(f"{group}: choose one of {', '.join(options(group))}")
    flat = flatten(values)
    written = flatten(OmegaConf.to_container(cfg))
    copies = [key for key in flat if re.fullmatch(r"\$\{[\w.]+\}", str(written.get(key)))]  # such as ${seed}: said once
    rules = RULES | {key: rule for key, rule in OPTION_RULES.items() if key in flat}
    ruled = {key: value for key, value in flat.items() if key in rules or key.split(".")[0] not in CALLS}
    problems += check_values(ruled, rules, copies)
    if combinations and flat.get("model.conditional") is True and flat.get("dataset.n_classes") == 0:
        problems.append(
            f"model.conditional=true: dataset={flat.get('dataset.name')} has no labels (dataset.n_classes=0). "
            "Use model=vanilla or model=beta, or data with labels."
        )
    if combinations:
        problems += _check_objective(flat)
    if combinations and flat.get("early_stopping.patience") and flat.get("dataset.val_size") == 0:
        problems.append(
            f"early_stopping.patience={flat['early_stopping.patience']}: there are no validation images to watch "
            "(dataset.val_size=0). Use early_stopping.patience=null, or keep some."
        )
    if flat.get("dataset.binarize") == "larochelle" and flat.get("dataset.name") != "mnist":
        problems.append("dataset.binarize=larochelle: these files are MNIST's; use it with dataset=mnist.")
    if problems:
        raise UserError("\n".join(problems))
    return values


def _check_objective(flat: dict[str, Any]) -> list[str]:
    """What an objective cannot do with the model or the likelihood, and warm-ups of two lengths or of none."""
    problems = []
    target = str(flat.get("objective._target_"))
    name = target.rsplit(".", 1)[-1]
    if target in NEED_SPREAD and flat.get("model.stochastic") is False:
        problems.append(f"objective={name}: it {NEED_SPREAD[target]}. Use objective=elbo.")
    if target == "vae_exp.objectives.iwae" and flat.get("likelihood.sigma") == "optimal":
        problems.append(
            "objective=iwae: the draws of z must be weighed under one sigma, and likelihood.sigma=optimal fits one to "
            "each. Use likelihood.sigma=learned."
        )
    lengths = [f"objective.warmup_{unit}" for unit in ("epochs", "steps", "fraction")]
    given = [f"{key}={flat[key]}" for key in lengths if flat.get(key)]
    if len(given) > 1:
        problems.append(f"{' and '.join(given)}: a warm-up has one length; set the other to 0.")
    shape = flat.get("objective.warmup")
    if shape in ("cosine", "cyclical") and not given:
        length = "objective.warmup_epochs=5" if shape == "cosine" else "objective.warmup_fraction=1"
        problems.append(f"objective.warmup={shape}: say how long it lasts, such as {length}.")
    return problems


def check_values(flat: dict[str, Any], rules: dict[str, Rule], copies: Iterable[str] = ()) -> list[str]:
    """What is wrong with each key: missing, unknown, or a value that its rule does not allow."""
    problems = [f"{key}: is missing. It takes {rule.words}." for key, rule in rules.items() if key not in flat]
    for key, value in flat.items():
        rule = rules.get(key)
        if rule is None:
            problems.append(f"{key}: no such key.{closest(key, rules)}")
        elif key not in copies and not rule.allows(value):
            shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else value
            problems.append(f"{key}={shown}: it takes {rule.words}.")
    return problems


def flatten(values: dict, prefix: str = "") -> dict[str, Any]:
    """{"model": {"z_dim": 20}} becomes {"model.z_dim": 20}."""
    flat = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def options(group: str) -> list[str]:
    """The options of a config group, by their files."""
    return sorted(path.stem for path in (CONF_DIR / group).glob("*.yaml"))


def options_with(key: str) -> list[str]:
    """The options of a group that have the key, such as sgd and rmsprop for optimizer.momentum."""
    group, _, name = key.partition(".")
    return [option for option in options(group) if name in OmegaConf.load(CONF_DIR / group / f"{option}.yaml")]


def closest(word: str, known: Any) -> str:
    """A sentence with the known names nearest to a misspelt one, or nothing where none is near.

    Keys are compared whole and by their last part, since people write z_dim=10 for model.z_dim=10.
    """
    last = word.rsplit(".", 1)[-1]
    near = difflib.get_close_matches(word, known, n=3, cutoff=0.7)
    near += [key for key in known if key.rsplit(".", 1)[-1] == last]
    near += [k for k in known if difflib.get_close_matches(last, [k.rsplit(".", 1)[-1]], cutoff=0.75)]
    return f" Did you mean {' or '.join(list(dict.fromkeys(near))[:3])}?" if near else ""
