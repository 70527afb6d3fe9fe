"""What each key of a configuration may be: tables, and the words in which a wrong value is refused."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass
class Rule:
    allows: Callable[[Any], bool]
    words: str


LARGEST = 1e38  # about as much as a 32-bit float holds


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond every float
        return False


def _whole(low: int, high: int = 2**31 - 1) -> Rule:
    words = f"a whole number, {low:,} or more" if high == 2**31 - 1 else f"a whole number from {low:,} to {high:,}"
    return Rule(lambda v: _is_number(v) and isinstance(v, int) and low <= v <= high, words)


def _number(low: float, high: float = LARGEST, *, above: bool = False) -> Rule:
    words = f"a number above {low:g}" if above else f"a number, {low:g} or more"
    words += f" and at most {high:g}"
    return Rule(lambda v: _is_number(v) and (v > low if above else v >= low) and v <= high, words)


def _one_of(*options: str) -> Rule:
    return Rule(lambda v: v in options, "one of " + ", ".join(options))


def _different(*options: str) -> Rule:
    """Each of them once at most."""
    return Rule(
        lambda v: isinstance(v, list) and all(word in options for word in v) and len(set(v)) == len(v),
        f"a list of {', '.join(options)}, each once at most",
    )


def _list_of(rule: Rule, words: str, at_least: int = 0) -> Rule:
    return Rule(lambda v: isinstance(v, list) and len(v) >= at_least and all(map(rule.allows, v)), words)


def _either(rule: Rule, other: Rule) -> Rule:
    return Rule(lambda v: rule.allows(v) or other.allows(v), f"{rule.words}, or {other.words}")


def _or_null(rule: Rule) -> Rule:
    return Rule(lambda v: v is None or rule.allows(v), f"{rule.words}, or null")


def _or_word(rule: Rule, *words: str) -> Rule:
    return Rule(lambda v: v in words or rule.allows(v), f"{rule.words}, or {' or '.join(words)}")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value.strip() != "" and value.isprintable()


def _is_size(value: Any) -> bool:
    is_text = isinstance(value, int | float | str) and not isinstance(value, bool)
    return is_text and re.fullmatch(r"\d+(\.\d+)?\s*([KMGT]?B)?", str(value).strip(), re.IGNORECASE) is not None


NAME_BYTES, PATH_BYTES = 255, 3900  # systems allow 255 and 4096; a run's own files lie below
_AS_LONG = f"(names up to {NAME_BYTES} bytes, {PATH_BYTES:,} in all)"


def _is_path(value: Any) -> bool:
    if not isinstance(value, str) or value.strip(" ") == "" or "\0" in value:
        return False
    path = value.encode(errors="replace")
    return len(path) <= PATH_BYTES and all(len(name) <= NAME_BYTES for name in path.split(b"/"))


# What becomes part of a folder's name must not be able to lead out of it.
NAME = Rule(
    lambda v: _is_text(v) and v.replace("_", "").replace("-", "").isalnum() and len(v) <= 200,
    "letters, digits, - and _, up to 200 of them",
)
TEXT = Rule(lambda v: _is_text(v) or _is_number(v), "text on one line")
PROJECT = Rule(
    lambda v: TEXT.allows(v) and len(str(v)) <= 128 and not set(str(v)) & set("/\\#?%:"),
    "up to 128 characters without / \\ # ? % :",
)
PATH = Rule(_is_path, f"the path of a folder {_AS_LONG}")
ANY_PATH = Rule(PATH.allows, f"the path of a file or a folder {_AS_LONG}")
# A folder may be named by a number.
RUN_PATH = Rule(lambda v: PATH.allows(v) or _is_number(v), PATH.words)
LABEL = Rule(RUN_PATH.allows, "the name or the number of a class")  # a folder's name
FLAG = Rule(lambda v: isinstance(v, bool), "true or false")
SIDES = Rule(
    lambda v: isinstance(v, list) and len(v) == 2 and all(_whole(1, 4096).allows(side) for side in v),
    "a height and a width such as [48,64]",
)
FRACTION = Rule(lambda v: isinstance(v, float) and 0 < v < 1, "a fraction such as 0.1")

SAMPLER = _one_of("prior", "gmm", "aggregate")
SAMPLE_SCORES = ("frechet", "kid", "precision", "recall", "density", "coverage", "nearest")
FACTOR_SCORES = ("mig", "dci", "infomec", "factor_vae", "beta_vae", "sap", "modularity", "explicitness")
COUNT = _whole(1)
SCORES = _different(*FACTOR_SCORES)
FARTHEST = 1000  # standard deviations of the prior: beyond a few tens of them no decoder has learned anything
FIGURES = ("interpolations", "traversals", "manifold", "latents")

RULES = {
    "epochs": _whole(0),
    "batch_size": _whole(1),
    "accumulate_steps": _whole(1),
    "gradient_clip_norm": _or_null(_number(0, above=True)),
    "ema": _or_null(Rule(lambda v: _is_number(v) and 0 < v < 1, "a decay above 0 and below 1, such as 0.999")),
    "seed": _whole(0, 2**32 - 1),
    "device": _one_of("auto", "cpu", "cuda", "mps"),
    "threads": _or_word(_whole(1, 1024), "auto"),
    "precision": _one_of("fp32", "tf32", "bf16"),
    "compile": Rule(lambda v: v == "auto" or isinstance(v, bool), "auto, true or false"),
    "resume": _or_null(RUN_PATH),
    "replace": FLAG,
    "checkpoint_every_epochs": _or_null(_or_word(_whole(1), "auto")),
    "checkpoint_every_steps": _or_null(_whole(1)),
    "checkpoint_every_minutes": _or_null(_number(0, above=True)),
    "max_steps": _or_null(_whole(1)),
    "max_minutes": _or_null(_number(0, above=True)),
    "early_stopping.patience": _or_null(_whole(1)),
    "log_every_steps": _whole(1),
    "figures": _or_null(_list_of(_one_of(*FIGURES), f"a list of {', '.join(FIGURES)}")),
    "figure_every_epochs": _or_word(_whole(1), "auto"),
    "scores": SCORES,
    "scores_every_epochs": _or_null(_whole(1)),
    "model.name": NAME,
    "model.z_dim": _whole(1),
    "model.beta": _number(0),
    "model.conditional": FLAG,
    "model.stochastic": FLAG,
    "wandb.mode": _one_of("auto", "online", "offline", "disabled"),
    "wandb.project": _or_null(PROJECT),
    "wandb.entity": _or_null(PROJECT),
    "wandb.name": _or_null(TEXT),
    "wandb.group": _or_null(TEXT),
    "wandb.tags": _or_null(_list_of(TEXT, "a list such as [a,b]")),
    "wandb.notes": _or_null(Rule(lambda v: isinstance(v, str), "text")),
    "wandb.dir": _or_null(Rule(lambda v: TEXT.allows(v) and RUN_PATH.allows(v), f"{TEXT.words}, a path {_AS_LONG}")),
    "wandb.log_checkpoints": FLAG,
    "sweep.name": _or_null(TEXT),
    "sweep.resume": _or_null(RUN_PATH),
    "sweep.zip": _list_of(TEXT, "a list of swept keys, such as [model.z_dim,network.hidden_dims]"),
    "sweep.prune": _or_null(_one_of("asha", "hyperband", "median")),
    "sweep.prune_after": _whole(1),
    "sweep.prune_factor": _whole(2),
    "sweep.metric": _one_of("val/neg_elbo", "val/reconstruction", "val/kl"),
    "sweep.over": _list_of(TEXT, "a list of keys, filled in by vae-train -m"),
    "sweep.jobs": _or_null(_whole(1)),
    "optimizer.lr": _number(0, above=True),
    "dataset.name": NAME,
    "dataset.n_classes": _or_null(_whole(0)),
}
# What every dataset can be asked for, a user's own too: `prepare` takes it.
DATASET_RULES = {
    "dataset.val_size": _either(_whole(0), FRACTION),
    "dataset.train_size": _or_null(_either(_whole(1), FRACTION)),
    "dataset.labels": _or_null(
        _list_of(TEXT, "a list of class numbers or names, such as [3,7] or [cat,dog]", at_least=1)
    ),
    "dataset.flip": FLAG,
    "dataset.device_memory": Rule(_is_size, "a size such as 500MB or 2GB; 0 streams everything"),
    "dataset.seed": _whole(0, 2**32 - 1),
    "dataset.binarize": _one_of("none", "threshold", "static", "dynamic", "larochelle"),
}
FACTORS = (
    *("shape", "scale", "orientation", "x", "y"),  # of sprites and dSprites
    *("floor_hue", "wall_hue", "object_hue"),  # with shape, scale and orientation of Shapes3D
    *("object_color", "object_shape", "object_size", "camera_height", "background_color"),  # of MPI3D
    *("horizontal_axis", "vertical_axis"),
)
VALUES = _either(_whole(1), _list_of(_whole(0), "a list of values by their numbers, such as [0,2]", at_least=1))
_SPREAD = _number(1e-18, 1e18)  # its square is a 32-bit float too
# Keys that only some options have. They bind the options of vae_exp and of torch; those of a user's own may differ.
OPTION_RULES = {
    "network.hidden_dims": _list_of(_whole(1), "a list of whole numbers, 1 or more, such as [400] or [512,256]"),
    "network.activation": _one_of("relu", "leaky_relu", "elu", "gelu", "silu", "tanh"),
    "network.channels": _whole(1),
    "network.blocks": _whole(1, 1000),
    "likelihood.sigma": _or_word(_SPREAD, "learned", "optimal"),
    "likelihood.scale": _or_word(_SPREAD, "learned"),
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
    "objective.variant": _one_of("I", "II"),
    "objective.off_diagonal": _number(0),
    "objective.diagonal": _number(0),
    "objective.samples": _whole(1),
    "objective.samples_at_once": _whole(1),
    "objective.sampling": _one_of("stratified", "weighted"),
    "dataset.root": PATH,
    "dataset.source": _one_of("mnist", "fashion_mnist", "kmnist", "emnist", "qmnist", "cifar10", "svhn"),
    "dataset.test_size": _either(_whole(1), FRACTION),
    "dataset.split": _one_of("balanced", "byclass", "bymerge", "digits", "letters", "mnist"),
    "dataset.image_size": _either(_whole(1, 4096), SIDES),
    "dataset.channels": Rule(lambda v: v in (1, 3) and _is_number(v), "1 (grey) or 3 (colour)"),
    "dataset.crop": _or_null(_whole(1)),
    "dataset.on_error": _one_of("skip", "fail"),
    "dataset.cache": PATH,
    "dataset.attribute": _or_null(TEXT),
    "dataset.label": _or_null(TEXT),
    "dataset.version": _one_of("toy", "realistic", "real"),
    **{f"dataset.factors.{name}": VALUES for name in FACTORS},
    "optimizer.weight_decay": _number(0),
    "optimizer.fused": FLAG,
    "optimizer.momentum": _number(0, 1),
    "optimizer.alpha": _number(0, 1),
    "optimizer.rho": _number(0, 1),
    "optimizer.betas": Rule(
        lambda v: isinstance(v, list) and len(v) == 2 and all(_number(0, 1).allows(beta) and beta < 1 for beta in v),
        "two numbers from 0 to below 1, such as [0.9,0.999]",
    ),
    "scheduler.warmup_epochs": _number(0),
    "scheduler.final_factor": _number(0, 1),
    "scheduler.every_epochs": _number(1e-6),
    "scheduler.gamma": _number(0, above=True),
    "scheduler.at_epochs": _list_of(_number(0), "a list of numbers, 0 or more, such as [8,12]"),
}
EVALUATE_RULES = {
    "checkpoint": ANY_PATH,
    "split": _one_of("test", "val", "train"),
    "repeats": COUNT,
    "importance_samples": _whole(0),
    "label_accuracy": FLAG,
    "samples": _different(*SAMPLE_SCORES),
    "scores": _or_null(SCORES),
    "score_rows": _or_null(_whole(2)),
    "score_repeats": COUNT,
    "n_samples": _whole(10),
    "sampler": SAMPLER,
    "features": _one_of("classifier", "inception", "pixels"),
    "batch_size": _whole(1),
    "seed": _whole(0, 2**32 - 1),
    "device": RULES["device"],
    "trust": FLAG,
    "dataset.root": _or_null(PATH),
    "wandb.mode": RULES["wandb.mode"],
}
GENERATE_RULES = {
    "checkpoint": ANY_PATH,
    "what": _one_of(
        "samples", "classes", "reconstructions", "interpolations", "traversals", "manifold", "latents", "weights"
    ),
    "n": _or_null(COUNT),
    "label": _or_null(LABEL),
    "temperature": _number(0, FARTHEST),
    "sampler": SAMPLER,
    "inputs": _or_null(ANY_PATH),
    "steps": _whole(2, 1000),
    "path": _one_of("spherical", "linear"),
    "around": _one_of("prior", "image"),
    "range": _number(0, FARTHEST, above=True),
    "dims": _or_null(_list_of(_whole(0), "a list of latent dimensions, counted from 0, such as [3,7]")),
    "animate": FLAG,
    "format": _one_of("grid", "files", "npz"),
    "output": _or_null(PATH),
    "split": _one_of("test", "val", "train"),
    "seed": _whole(0, 2**32 - 1),
    "device": RULES["device"],
    "trust": FLAG,
    "dataset.root": _or_null(PATH),
}
