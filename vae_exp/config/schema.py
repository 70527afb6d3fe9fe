"""Declare the keys of the configuration: their types, ranges and meanings."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypedDict

Group = dict[str, Any]  # a _target_ and its settings, which only the function it names knows


class ModelKeys(TypedDict):
    name: str
    z_dim: int
    beta: float
    conditional: bool
    stochastic: bool


class EarlyStoppingKeys(TypedDict):
    patience: int | None


class WandbKeys(TypedDict):
    mode: str
    project: str | None
    entity: str | None
    name: str | None
    group: str | None
    tags: list[str] | None
    notes: str | None
    log_checkpoints: bool
    dir: str | None


class SweepKeys(TypedDict):
    name: str | None
    resume: str | None
    zip: list[str]
    prune: str | None
    prune_after: int
    prune_factor: int
    metric: str
    over: list[str]
    jobs: int | None


class Config(TypedDict):
    """The settings of vae-train: conf/config.yaml with a choice of each group."""

    model: ModelKeys
    network: Group
    likelihood: Group
    objective: Group
    dataset: Group
    optimizer: Group
    scheduler: Group
    epochs: int
    batch_size: int
    accumulate_steps: int
    gradient_clip_norm: float | None
    ema: float | None
    seed: int
    device: str
    devices: int
    threads: int | str
    precision: str
    compile: bool | str
    resume: str | None
    trust: bool
    replace: bool
    checkpoint_every_epochs: int | str | None
    checkpoint_every_steps: int | None
    checkpoint_every_minutes: float | None
    max_steps: int | None
    max_minutes: float | None
    early_stopping: EarlyStoppingKeys
    log_every_steps: int
    figures: list[str] | None
    figure_every_epochs: int | str
    scores: list[str]
    scores_every_epochs: int | None
    wandb: WandbKeys
    sweep: SweepKeys


def images_per_step(config: Config) -> int:
    """Return the number of images in one optimizer step: batch_size at once, accumulate_steps times."""
    return config["batch_size"] * config["accumulate_steps"]


class DataPlace(TypedDict):
    root: str | None


class WandbMode(TypedDict):
    mode: str


class EvaluateOptions(TypedDict):
    """The settings of vae-evaluate: conf/evaluate.yaml."""

    checkpoint: str
    split: str
    repeats: int
    importance_samples: int
    label_accuracy: bool
    scores: list[str] | None
    score_rows: int | None
    score_repeats: int
    samples: list[str]
    n_samples: int
    sampler: str
    features: str
    batch_size: int
    seed: int
    device: str
    trust: bool
    dataset: DataPlace
    wandb: WandbMode


class GenerateOptions(TypedDict):
    """The settings of vae-generate: conf/generate.yaml."""

    checkpoint: str
    what: str
    n: int | None
    label: int | str | None
    temperature: float
    sampler: str
    inputs: str | None
    steps: int
    path: str
    around: str
    range: float
    dims: list[int] | None
    animate: bool
    format: str
    output: str | None
    split: str
    seed: int
    device: str
    trust: bool
    dataset: DataPlace


@dataclass
class Rule:
    allows: Callable[[Any], bool]
    words: str


LARGEST = 1e38  # about as much as a 32-bit float holds


def is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond every float
        return False


def whole(low: int, high: int = 2**31 - 1) -> Rule:
    words = f"a whole number, {low:,} or more" if high == 2**31 - 1 else f"a whole number from {low:,} to {high:,}"
    return Rule(lambda v: is_number(v) and isinstance(v, int) and low <= v <= high, words)


def number(low: float, high: float = LARGEST, *, above: bool = False) -> Rule:
    words = f"a number above {low:g}" if above else f"a number, {low:g} or more"
    words += f" and at most {high:g}"
    return Rule(lambda v: is_number(v) and (v > low if above else v >= low) and v <= high, words)


def one_of(*options: str) -> Rule:
    return Rule(lambda v: v in options, "one of " + ", ".join(options))


def different(*options: str) -> Rule:
    """Return the rule of a list of these options, each at most once."""
    return Rule(
        lambda v: isinstance(v, list) and all(word in options for word in v) and len(set(v)) == len(v),
        f"a list of {', '.join(options)}, each once at most",
    )


def list_of(rule: Rule, words: str, at_least: int = 0) -> Rule:
    return Rule(lambda v: isinstance(v, list) and len(v) >= at_least and all(map(rule.allows, v)), words)


def either(rule: Rule, other: Rule) -> Rule:
    return Rule(lambda v: rule.allows(v) or other.allows(v), f"{rule.words}, or {other.words}")


def or_null(rule: Rule) -> Rule:
    return Rule(lambda v: v is None or rule.allows(v), f"{rule.words}, or null")


def or_word(rule: Rule, *words: str) -> Rule:
    return Rule(lambda v: v in words or rule.allows(v), f"{rule.words}, or {' or '.join(words)}")


def is_text(value: Any) -> bool:
    return isinstance(value, str) and value.strip() != "" and value.isprintable()


def is_size(value: Any) -> bool:
    is_text = isinstance(value, int | float | str) and not isinstance(value, bool)
    return is_text and re.fullmatch(r"\d+(\.\d+)?\s*([KMGT]?B)?", str(value).strip(), re.IGNORECASE) is not None


NAME_BYTES, PATH_BYTES = 255, 3900  # systems allow 255 and 4096; a run's own files lie below
AS_LONG = f"(names up to {NAME_BYTES} bytes, {PATH_BYTES:,} in all)"


def is_path(value: Any) -> bool:
    if not isinstance(value, str) or value.strip(" ") == "" or "\0" in value:
        return False
    path = value.encode(errors="replace")
    return len(path) <= PATH_BYTES and all(len(name) <= NAME_BYTES for name in path.split(b"/"))


# What becomes part of a folder's name must not be able to lead out of it.
NAME = Rule(
    lambda v: is_text(v) and v.replace("_", "").replace("-", "").isalnum() and len(v) <= 200,
    "letters, digits, - and _, up to 200 of them",
)
TEXT = Rule(lambda v: is_text(v) or is_number(v), "text on one line")
PROJECT = Rule(
    lambda v: TEXT.allows(v) and len(str(v)) <= 128 and not set(str(v)) & set("/\\#?%:"),
    "up to 128 characters without / \\ # ? % :",
)
PATH = Rule(is_path, f"the path of a folder {AS_LONG}")
ANY_PATH = Rule(PATH.allows, f"the path of a file or a folder {AS_LONG}")
# A folder may be named by a number.
RUN_PATH = Rule(lambda v: PATH.allows(v) or is_number(v), PATH.words)
LABEL = Rule(RUN_PATH.allows, "the name or the number of a class")  # a folder's name
FLAG = Rule(lambda v: isinstance(v, bool), "true or false")
SIDES = Rule(
    lambda v: isinstance(v, list) and len(v) == 2 and all(whole(1, 4096).allows(side) for side in v),
    "a height and a width such as [48,64]",
)
FRACTION = Rule(lambda v: isinstance(v, float) and 0 < v < 1, "a fraction such as 0.1")


SAMPLER = one_of("prior", "gmm", "aggregate")
SAMPLE_SCORES = ("frechet", "kid", "precision", "recall", "density", "coverage", "nearest")
FACTOR_SCORES = ("mig", "dci", "infomec", "factor_vae", "beta_vae", "sap", "modularity", "explicitness")
COUNT = whole(1)
SCORES = different(*FACTOR_SCORES)
DEVICE = Rule(
    lambda v: isinstance(v, str) and re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?|mps", v) is not None,
    "auto, cpu, cuda, cuda:N or mps",
)
FARTHEST = 1000  # standard deviations of the prior: beyond a few tens of them no decoder has learned anything
FIGURES = ("interpolations", "traversals", "manifold", "latents")
JUDGED_BY = {part: [f"{part}/{name}" for name in ("neg_elbo", "reconstruction", "kl")] for part in ("val", "test")}

RULES = {
    "epochs": whole(0),
    "batch_size": whole(1),
    "accumulate_steps": whole(1),
    "gradient_clip_norm": or_null(number(0, above=True)),
    "ema": or_null(Rule(lambda v: is_number(v) and 0 < v < 1, "a decay above 0 and below 1, such as 0.999")),
    "seed": whole(0, 2**32 - 1),
    "device": DEVICE,
    "devices": whole(1, 1024),
    "threads": or_word(whole(1, 1024), "auto"),
    "precision": one_of("fp32", "tf32", "bf16"),
    "compile": Rule(lambda v: v == "auto" or isinstance(v, bool), "auto, true or false"),
    "resume": or_null(RUN_PATH),
    "trust": FLAG,
    "replace": FLAG,
    "checkpoint_every_epochs": or_null(or_word(whole(1), "auto")),
    "checkpoint_every_steps": or_null(whole(1)),
    "checkpoint_every_minutes": or_null(number(0, above=True)),
    "max_steps": or_null(whole(1)),
    "max_minutes": or_null(number(0, above=True)),
    "early_stopping.patience": or_null(whole(1)),
    "log_every_steps": whole(1),
    "figures": or_null(list_of(one_of(*FIGURES), f"a list of {', '.join(FIGURES)}")),
    "figure_every_epochs": or_word(whole(1), "auto"),
    "scores": SCORES,
    "scores_every_epochs": or_null(whole(1)),
    "model.name": NAME,
    "model.z_dim": whole(1),
    "model.beta": number(0),
    "model.conditional": FLAG,
    "model.stochastic": FLAG,
    "wandb.mode": one_of("auto", "online", "offline", "disabled"),
    "wandb.project": or_null(PROJECT),
    "wandb.entity": or_null(PROJECT),
    "wandb.name": or_null(TEXT),
    "wandb.group": or_null(TEXT),
    "wandb.tags": or_null(list_of(TEXT, "a list such as [a,b]")),
    "wandb.notes": or_null(Rule(lambda v: isinstance(v, str), "text")),
    "wandb.dir": or_null(Rule(lambda v: TEXT.allows(v) and RUN_PATH.allows(v), f"{TEXT.words}, a path {AS_LONG}")),
    "wandb.log_checkpoints": FLAG,
    "sweep.name": or_null(TEXT),
    "sweep.resume": or_null(RUN_PATH),
    "sweep.zip": list_of(TEXT, "a list of swept keys, such as [model.z_dim,network.hidden_dims]"),
    "sweep.prune": or_null(one_of("asha", "hyperband", "median")),
    "sweep.prune_after": whole(1),
    "sweep.prune_factor": whole(2),
    "sweep.metric": one_of(*JUDGED_BY["val"], *JUDGED_BY["test"]),
    "sweep.over": list_of(TEXT, "a list of keys, filled in by vae-train -m"),
    "sweep.jobs": or_null(whole(1)),
    "optimizer.lr": number(0, above=True),
    "dataset.name": NAME,
    "dataset.n_classes": or_null(whole(0)),
}
# What every dataset can be asked for, a user's own too: `prepare` takes it.
DATASET_RULES = {
    "dataset.val_size": either(whole(0), FRACTION),
    "dataset.train_size": or_null(either(whole(1), FRACTION)),
    "dataset.labels": or_null(
        list_of(TEXT, "a list of class numbers or names, such as [3,7] or [cat,dog]", at_least=1)
    ),
    "dataset.flip": FLAG,
    "dataset.device_memory": Rule(is_size, "a size such as 500MB or 2GB; 0 streams everything"),
    "dataset.seed": whole(0, 2**32 - 1),
    "dataset.binarize": one_of("none", "threshold", "static", "dynamic", "larochelle"),
}
FACTORS = (
    *("shape", "scale", "orientation", "x", "y"),  # of sprites and dSprites
    *("floor_hue", "wall_hue", "object_hue"),  # with shape, scale and orientation of Shapes3D
    *("object_color", "object_shape", "object_size", "camera_height", "background_color"),  # of MPI3D
    *("horizontal_axis", "vertical_axis"),
)
VALUES = either(whole(1), list_of(whole(0), "a list of values by their numbers, such as [0,2]", at_least=1))
ROOT = Rule(PATH.allows, f"the path of a folder, or with dataset=arrays of a file {AS_LONG}")
TABLE = Rule(  # of sprites and published data it has keys of its own; where it has none, that is the whole grid
    lambda v: v is None or v == {} or PATH.allows(v),
    "values by factor names, such as {shape:[0],x:8}, or with dataset=image_folder a CSV file, or null",
)
_SPREAD = number(1e-18, 1e18)  # its square is a 32-bit float too
# Keys that only some options have. They bind the options of vae_exp and of torch; those of a user's own may differ.
OPTION_RULES = {
    "network.hidden_dims": list_of(whole(1), "a list of whole numbers, 1 or more, such as [400] or [512,256]"),
    "network.activation": one_of("relu", "leaky_relu", "elu", "gelu", "silu", "tanh"),
    "network.channels": whole(1),
    "network.init": one_of("pytorch", "glorot"),
    "network.blocks": whole(1, 1000),
    "likelihood.sigma": or_word(_SPREAD, "learned", "optimal"),
    "likelihood.scale": or_word(_SPREAD, "learned"),
    "objective.beta": number(0),
    "objective.warmup": one_of("linear", "cosine", "cyclical"),
    "objective.warmup_epochs": number(0),
    "objective.warmup_steps": whole(0),
    "objective.warmup_fraction": number(0, 1),
    "objective.cycles": whole(1),
    "objective.free_nats": number(0),
    "objective.capacity_nats": number(0),
    "objective.alpha": number(0),
    "objective.gamma": number(0),
    "objective.variant": one_of("I", "II"),
    "objective.off_diagonal": number(0),
    "objective.diagonal": number(0),
    "objective.samples": whole(1),
    "objective.samples_at_once": whole(1),
    "objective.sampling": one_of("stratified", "weighted"),
    "dataset.root": ROOT,
    "dataset.source": one_of("mnist", "fashion_mnist", "kmnist", "emnist", "qmnist", "cifar10", "svhn"),
    "dataset.test_size": either(whole(1), FRACTION),
    "dataset.split": one_of("balanced", "byclass", "bymerge", "digits", "letters", "mnist"),
    "dataset.image_size": either(whole(1, 4096), SIDES),
    "dataset.channels": Rule(lambda v: v in (1, 3) and is_number(v), "1 (grey) or 3 (colour)"),
    "dataset.crop": or_null(whole(1)),
    "dataset.on_error": one_of("skip", "fail"),
    "dataset.cache": or_null(PATH),
    "dataset.white": or_null(number(0, above=True)),
    "dataset.attribute": or_null(TEXT),
    "dataset.label": or_null(TEXT),
    "dataset.version": one_of("toy", "realistic", "real"),
    "dataset.factors": TABLE,
    **{f"dataset.factors.{name}": VALUES for name in FACTORS},
    "optimizer.weight_decay": number(0),
    "optimizer.fused": FLAG,
    "optimizer.momentum": number(0, 1),
    "optimizer.alpha": number(0, 1),
    "optimizer.rho": number(0, 1),
    "optimizer.betas": Rule(
        lambda v: isinstance(v, list) and len(v) == 2 and all(number(0, 1).allows(beta) and beta < 1 for beta in v),
        "two numbers from 0 to below 1, such as [0.9,0.999]",
    ),
    "scheduler.warmup_epochs": number(0),
    "scheduler.final_factor": number(0, 1),
    "scheduler.every_epochs": number(1e-6),
    "scheduler.gamma": number(0, above=True),
    "scheduler.at_epochs": list_of(number(0), "a list of numbers, 0 or more, such as [8,12]"),
}
EVALUATE_RULES = {
    "checkpoint": ANY_PATH,
    "split": one_of("test", "val", "train"),
    "repeats": COUNT,
    "importance_samples": whole(0),
    "label_accuracy": FLAG,
    "samples": different(*SAMPLE_SCORES),
    "scores": or_null(SCORES),
    "score_rows": or_null(whole(2)),
    "score_repeats": COUNT,
    "n_samples": whole(10),
    "sampler": SAMPLER,
    "features": one_of("classifier", "inception", "pixels"),
    "batch_size": whole(1),
    "seed": whole(0, 2**32 - 1),
    "device": DEVICE,
    "trust": FLAG,
    "dataset.root": or_null(ROOT),
    "wandb.mode": RULES["wandb.mode"],
}
GENERATE_RULES = {
    "checkpoint": ANY_PATH,
    "what": one_of(
        "samples", "classes", "reconstructions", "interpolations", "traversals", "manifold", "latents", "weights"
    ),
    "n": or_null(COUNT),
    "label": or_null(LABEL),
    "temperature": number(0, FARTHEST),
    "sampler": SAMPLER,
    "inputs": or_null(ANY_PATH),
    "steps": whole(2, 1000),
    "path": one_of("spherical", "linear"),
    "around": one_of("prior", "image"),
    "range": number(0, FARTHEST, above=True),
    "dims": or_null(list_of(whole(0), "a list of latent dimensions, counted from 0, such as [3,7]")),
    "animate": FLAG,
    "format": one_of("grid", "files", "npz"),
    "output": or_null(PATH),
    "split": one_of("test", "val", "train"),
    "seed": whole(0, 2**32 - 1),
    "device": DEVICE,
    "trust": FLAG,
    "dataset.root": or_null(ROOT),
}
