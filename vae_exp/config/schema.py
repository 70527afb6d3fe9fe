"""Declare every key of the configuration: its type is its rule, `Annotated` with a Rule where a type says too little.

Values are strict: true is not 1, and "3" is not 3. conf/*.yaml say what each key is for.
"""

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypedDict, Union, cast, get_args, get_origin, get_type_hints, is_typeddict

from vae_exp.errors import UserError


@dataclass(frozen=True)
class Rule:
    """Decide which values a key takes, and say so in a message: `KEY=VALUE: it takes WORDS.`"""

    allows: Callable[[Any], bool]
    words: str


MAX_FLOAT = 1e38  # about as much as a 32-bit float holds
MAX_INT = 2**31 - 1


def is_number(value: Any) -> bool:
    is_numeric = isinstance(value, int | float) and not isinstance(value, bool)
    return is_numeric and abs(value) <= sys.float_info.max  # neither infinite, nor no number, nor beyond every float


def integer(low: int, high: int = MAX_INT) -> Rule:
    words = f"a whole number, {low:,} or more" if high == MAX_INT else f"a whole number from {low:,} to {high:,}"
    return Rule(lambda v: is_number(v) and isinstance(v, int) and low <= v <= high, words)


def number(low: float, high: float = MAX_FLOAT) -> Rule:
    return Rule(lambda v: is_number(v) and low <= v <= high, f"a number, {low:g} or more and at most {high:g}")


def above(low: float, high: float = MAX_FLOAT) -> Rule:
    return Rule(lambda v: is_number(v) and low < v <= high, f"a number above {low:g} and at most {high:g}")


def some_of(*options: str) -> Rule:
    words = f"a list of {', '.join(options)}, each once at most"
    return Rule(lambda v: isinstance(v, list) and all(word in options for word in v) and len(set(v)) == len(v), words)


def list_of(item: Any, words: str, low: int = 0, high: int = MAX_INT) -> Rule:
    rule = cast("Rule", rule_of(item))
    return Rule(lambda v: isinstance(v, list) and low <= len(v) <= high and all(map(rule.allows, v)), words)


BASIC = {
    NoneType: Rule(lambda v: v is None, "null"),
    bool: Rule(lambda v: isinstance(v, bool), "true or false"),
    int: Rule(lambda v: isinstance(v, int) and not isinstance(v, bool), "a whole number"),
    float: Rule(lambda v: isinstance(v, int | float) and not isinstance(v, bool), "a number"),
    str: Rule(lambda v: isinstance(v, str), "text"),
    list: Rule(lambda v: isinstance(v, list), "a list"),
    dict: Rule(lambda v: isinstance(v, dict), "values by their names"),
}


def rule_of(hint: Any) -> Rule | None:
    """Return the rule that a type hint states, or None for one that cannot be checked, such as a class."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return next((part for part in parts if isinstance(part, Rule)), None) or rule_of(parts[0])
    if origin is Literal:
        words = [str(option).lower() if isinstance(option, bool) else str(option) for option in parts]
        text = f"one of {', '.join(words)}" if len(words) > 2 else " or ".join(words)
        return Rule(lambda v: any(v == option and type(v) is type(option) for option in parts), text)
    if origin in (Union, UnionType):
        rules = [rule for rule in map(rule_of, parts) if rule is not None]
        text = ", or ".join(rule.words for rule in rules)
        return Rule(lambda v: any(rule.allows(v) for rule in rules), text) if len(rules) == len(parts) else None
    if origin is list and parts:
        rule = rule_of(parts[0])
        return rule and list_of(parts[0], f"a list, each {rule.words}")
    return BASIC.get(origin or hint)


def checked(name: str, value: Any, kind: Any) -> Any:
    """Return an argument as a plain number or text. Raises UserError if this hint, or Rule, allows no such value."""
    if getattr(value, "ndim", None) == 0:  # NumPy's and PyTorch's numbers
        value = value.item()
    rule = kind if isinstance(kind, Rule) else rule_of(kind)
    if rule and not rule.allows(value):
        raise UserError(f"{name}={value}: it takes {rule.words}.")
    return value


def rules_of(keys: Any, prefix: str = "") -> dict[str, Rule]:
    """Return the rules of a TypedDict's keys, and of those inside them: {"model.z_dim": ...}."""
    rules: dict[str, Rule] = {}
    for key, hint in get_type_hints(keys, include_extras=True).items():
        if is_typeddict(hint):
            rules |= rules_of(hint, f"{prefix}{key}.")
        elif hint != Group and (rule := rule_of(hint)):
            rules[f"{prefix}{key}"] = rule
    return rules


def is_text(value: Any) -> bool:
    return isinstance(value, str) and value.strip() != "" and value.isprintable()


def is_path(value: Any) -> bool:
    if not isinstance(value, str) or value.strip(" ") == "" or "\0" in value:
        return False
    path = value.encode(errors="replace")
    return len(path) <= 3900 and all(len(name) <= 255 for name in path.split(b"/"))


PATH_LENGTH = "(names up to 255 bytes, 3,900 in all)"  # systems allow 255 and 4096; a run's own files lie below
TEXT = Rule(lambda v: is_text(v) or is_number(v), "text on one line")
NAME = Rule(  # it becomes part of a folder's name, and must not be able to lead out of it
    lambda v: is_text(v) and re.sub("[_-]", "", v).isalnum() and len(v) <= 200,
    "letters, digits, - and _, up to 200 of them",
)
WANDB_NAME = Rule(
    lambda v: TEXT.allows(v) and len(str(v)) <= 128 and not set(str(v)) & set("/\\#?%:"),
    "up to 128 characters without / \\ # ? % :",
)
RUN_PATH = Rule(lambda v: is_path(v) or is_number(v), f"the path of a folder {PATH_LENGTH}")  # 7 may name a folder
WANDB_PATH = Rule(lambda v: TEXT.allows(v) and RUN_PATH.allows(v), f"{TEXT.words}, a path {PATH_LENGTH}")
DEVICE = Rule(
    lambda v: isinstance(v, str) and re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?|mps", v) is not None,
    "auto, cpu, cuda, cuda:N or mps",
)
SIZE = Rule(
    lambda v: not isinstance(v, bool) and re.fullmatch(r"\d+(\.\d+)?\s*([KMGT]?B)?", str(v).strip(), re.I) is not None,
    "a size such as 500MB or 2GB; 0 streams everything",
)
FACTORS_OR_TABLE = Rule(  # of sprites and published data it has keys of its own; where it has none: the whole grid
    lambda v: v is None or v == {} or is_path(v),
    "values by factor names, such as {shape:[0],x:8}, or with dataset=image_folder a CSV file, or null",
)

Group = dict[str, Any]  # a _target_ and its settings, which only the function it names knows
Natural = Annotated[int, integer(0)]
Count = Annotated[int, integer(1)]
Seed = Annotated[int, integer(0, 2**32 - 1)]
Side = Annotated[int, integer(1, 4096)]
NonNegative = Annotated[float, number(0)]
Positive = Annotated[float, above(0)]
UpToOne = Annotated[float, number(0, 1)]
BelowOne = Annotated[float, Rule(lambda v: is_number(v) and 0 <= v < 1, "a number from 0 to below 1")]
Decay = Annotated[float, Rule(lambda v: is_number(v) and 0 < v < 1, "a decay above 0 and below 1, such as 0.999")]
Fraction = Annotated[float, Rule(lambda v: isinstance(v, float) and 0 < v < 1, "a fraction such as 0.1")]
Spread = Annotated[float, number(1e-18, 1e18)]  # its square is a 32-bit float too
Text = Annotated[str, TEXT]
Widths = Annotated[list[int], list_of(Count, "a list of whole numbers, 1 or more, such as [400] or [512,256]")]
Betas = Annotated[list[float], list_of(BelowOne, "two numbers from 0 to below 1, such as [0.9,0.999]", 2, 2)]
LogRange = Annotated[  # exp(80) and its inverse are 32-bit floats
    list[float],
    Rule(
        lambda v: isinstance(v, list) and len(v) == 2 and all(map(is_number, v)) and -80 <= v[0] < v[1] <= 80,
        "two rising numbers from -80 to 80, such as [-6,2]",
    ),
]
Epochs = Annotated[list[float], list_of(NonNegative, "a list of numbers, 0 or more, such as [8,12]")]
FactorValues = Annotated[list[int], list_of(Natural, "a list of values by their numbers, such as [0,2]", 1)]
Labels = Annotated[list[str], list_of(Text, "a list of class numbers or names, such as [3,7] or [cat,dog]", 1)]
WandbName = Annotated[str, WANDB_NAME]
Folder = Annotated[str, Rule(is_path, RUN_PATH.words)]
DataRoot = Annotated[str, Rule(is_path, f"the path of a folder, or with dataset=arrays of a file {PATH_LENGTH}")]
RunFolder = Annotated[str, RUN_PATH]
AnyPath = Annotated[str, Rule(is_path, f"the path of a file or a folder {PATH_LENGTH}")]
Device = Annotated[str, DEVICE]
Sampler = Literal["prior", "gmm", "aggregate"]
DataSplit = Literal["test", "val", "train"]
CodedSplit = Literal["test", "val", "train", "all"]
Figure = Literal["interpolations", "traversals", "manifold", "latents"]
FIGURES = get_args(Figure)
TERMS = ("neg_elbo", "reconstruction", "kl")  # of val/, test/ and train_epoch/
MEASURED = (*TERMS, "active_units")  # of val/ and test/; all else there are scores of disentanglement
SAMPLE_SCORES = ("frechet", "kid", "precision", "recall", "density", "coverage", "nearest")
FACTOR_SCORES = ("mig", "dci", "infomec", "factor_vae", "beta_vae", "sap", "modularity", "explicitness")
Scores = Annotated[list[str], some_of(*FACTOR_SCORES)]
WandbMode = Literal["auto", "online", "offline", "disabled"]


class ModelKeys(TypedDict):
    name: Annotated[str, NAME]
    z_dim: Count
    beta: NonNegative
    conditional: bool
    stochastic: bool


class EarlyStoppingKeys(TypedDict):
    patience: Count | None


class WandbKeys(TypedDict):
    mode: WandbMode
    project: WandbName | None
    entity: WandbName | None
    name: Text | None
    group: Text | None
    tags: Annotated[list[str], list_of(Text, "a list such as [a,b]")] | None
    notes: str | None
    log_checkpoints: bool
    alert: bool
    dir: Annotated[str, WANDB_PATH] | None


class SweepKeys(TypedDict):
    name: Text | None
    resume: RunFolder | None
    zip: Annotated[list[str], list_of(Text, "a list of swept keys, such as [model.z_dim,network.hidden_dims]")]
    prune: Literal["asha", "hyperband", "median", "trend"] | None
    prune_after: Count
    prune_factor: Annotated[int, integer(2)]
    metric: Text | None
    warm_start: bool
    warm_epochs: Count | None
    confirm: Natural
    over: Annotated[list[str], list_of(Text, "a list of keys, filled in by vae-train -m")]
    jobs: Count | None


class Config(TypedDict):
    """Settings of vae-train: conf/config.yaml with a choice of each group."""

    model: ModelKeys
    network: Group
    posterior: Group
    prior: Group
    likelihood: Group
    objective: Group
    dataset: Group
    optimizer: Group
    scheduler: Group
    epochs: Natural
    batch_size: Count
    accumulate_steps: Count
    gradient_clip_norm: Positive | None
    ema: Decay | None
    seed: Seed
    device: Device
    devices: Annotated[int, integer(1, 1024)]
    threads: Annotated[int, integer(1, 1024)] | Literal["auto"]
    precision: Literal["fp32", "tf32", "bf16"]
    compile: Literal["auto", True, False]
    resume: RunFolder | None
    rerun: RunFolder | None
    trust: bool
    replace: bool
    init_from: AnyPath | None
    init_from_partial: bool
    freeze: Annotated[list[str], list_of(Text, "a list of parts of the model, such as [encoder]")]
    checkpoint_every_epochs: Count | Literal["auto"] | None
    checkpoint_every_steps: Count | None
    checkpoint_every_minutes: Positive | None
    max_steps: Count | None
    max_minutes: Positive | None
    monitor: Text
    monitor_mode: Literal["min", "max"]
    early_stopping: EarlyStoppingKeys
    log_every_steps: Count
    figures: list[Figure] | None
    figure_every_epochs: Count | Literal["auto"]
    scores: Scores
    scores_every_epochs: Count | None
    wandb: WandbKeys
    sweep: SweepKeys


def images_per_step(config: Config) -> int:
    """Return the number of images in one optimizer step: batch_size at once, accumulate_steps times."""
    return config["batch_size"] * config["accumulate_steps"]


def is_on_path(sweep: Any) -> bool:
    """Return whether a run with these sweep.* is a job of a sweep that starts warm, or confirms one."""
    return isinstance(sweep, dict) and sweep.get("warm_start") is True and bool(sweep.get("jobs"))


def judged_by(config: Mapping[str, Any]) -> tuple[str, int]:
    """Return what the jobs of a sweep are compared by, and 1 if the lowest is the best or -1 if the highest is.

    It is sweep.metric, or else `monitor`. Of another number than `monitor` only of scores more is better.
    """
    monitor, sweep = str(config.get("monitor", "val/neg_elbo")), config.get("sweep")
    chosen = sweep.get("metric") if isinstance(sweep, Mapping) else None  # of a stranger's run it may be anything
    metric = str(chosen or monitor)
    is_max = config.get("monitor_mode") == "max" if metric == monitor else is_score(metric)
    return metric, -1 if is_max else 1


def is_score(metric: str) -> bool:
    """Return whether a number of a run, such as val/mig, is a score of disentanglement: more is better."""
    part, _, name = metric.partition("/")
    return part in ("val", "test") and name not in MEASURED


def result_of(metric: str) -> str:
    """Return the name in summary.json of a number of epochs, at the best of them, of the test split, or of all."""
    is_of_epochs = "/" in metric and not metric.startswith("test/")
    return f"best/{metric.replace('/', '_')}" if is_of_epochs else metric


# Of every optimizer and every dataset, whatever its _target_.
SharedKeys = TypedDict(
    "SharedKeys",
    {
        "optimizer.lr": Positive,
        "dataset.name": Annotated[str, NAME],
        "dataset.n_classes": Natural | None,
        "dataset.val_size": Natural | Fraction,
        "dataset.seed": Seed,
    },
)
# Of every dataset, a user's own too: `datasets.prepare` takes them.
PrepareKeys = TypedDict(
    "PrepareKeys",
    {
        "dataset.train_size": Count | Fraction | None,
        "dataset.labels": Labels | None,
        "dataset.flip": bool,
        "dataset.device_memory": Annotated[int | float | str, SIZE],
        "dataset.binarize": Literal["none", "threshold", "static", "dynamic", "larochelle"],
    },
)
FactorNames = Annotated[list[str], list_of(Text, "a list of factors, such as [shape,size]", 1)]
# Settings that only some options have. They bind the functions of vae_exp and of torch; a user's own may differ.
Options = TypedDict(
    "Options",
    {
        "network.hidden_dims": Widths,
        "network.activation": Literal["relu", "leaky_relu", "elu", "gelu", "silu", "tanh"],
        "network.channels": Count,
        "network.init": Literal["pytorch", "he", "glorot"],
        "network.blocks": Annotated[int, integer(1, 1000)],
        "posterior.scale": Literal["exp", "softplus"],
        "posterior.log_var_range": LogRange | None,
        "posterior.layers": Annotated[int, integer(1, 1000)],
        "posterior.hidden_dims": Annotated[
            list[int], list_of(Count, "a list of 1 to 10 whole numbers, such as [256]", 1, 10)
        ],
        "posterior.context_dim": Count,
        "posterior.gate": bool,
        "prior.components": Annotated[int, integer(1, 100_000)],
        "prior.init": Literal["noise", "data"],
        "prior.init_mean": Annotated[float, number(-1, 1)],
        "prior.init_std": Spread,
        "prior.layers": Annotated[int, integer(1, 1000)],
        "prior.hidden_dim": Count,
        "likelihood.sigma": Spread | Literal["learned", "optimal", "by_pixel"],
        "likelihood.scale": Spread | Literal["learned", "by_pixel"],
        "likelihood.mean": Literal["linear", "sigmoid"],
        "objective.beta": NonNegative,
        "objective.warmup": Literal["linear", "cosine", "cyclical"],
        "objective.warmup_epochs": NonNegative,
        "objective.warmup_steps": Natural,
        "objective.warmup_fraction": UpToOne,
        "objective.cycles": Count,
        "objective.free_nats": NonNegative,
        "objective.capacity_nats": NonNegative,
        "objective.alpha": NonNegative,
        "objective.gamma": NonNegative,
        "objective.variant": Literal["I", "II"],
        "objective.off_diagonal": NonNegative,
        "objective.diagonal": NonNegative,
        "objective.samples": Count,
        "objective.samples_at_once": Count,
        "objective.sampling": Literal["stratified", "weighted"],
        "dataset.root": DataRoot | None,  # null: still to be given
        "dataset.source": Literal["mnist", "fashion_mnist", "kmnist", "emnist", "qmnist", "cifar10", "svhn"],
        "dataset.test_size": Count | Fraction,
        "dataset.split": Literal["balanced", "byclass", "bymerge", "digits", "letters", "mnist"],
        "dataset.image_size": Side | Annotated[list[int], list_of(Side, "a height and a width such as [48,64]", 2, 2)],
        "dataset.channels": Annotated[int, Rule(lambda v: is_number(v) and v in (1, 3), "1 (grey) or 3 (colour)")],
        "dataset.crop": Count | None,
        "dataset.on_error": Literal["skip", "fail"],
        "dataset.cache": Folder | None,
        "dataset.white": Positive | None,
        "dataset.attribute": Text | None,
        "dataset.label": Text | FactorNames | None,
        "dataset.condition": FactorNames | None,
        "dataset.version": Literal["toy", "realistic", "real"],
        "dataset.factors": Annotated[dict[str, Any] | str | None, FACTORS_OR_TABLE],
        "dataset.factor_columns": FactorNames | None,
        "optimizer.weight_decay": NonNegative,
        "optimizer.fused": bool,
        "optimizer.momentum": UpToOne,
        "optimizer.alpha": UpToOne,
        "optimizer.rho": UpToOne,
        "optimizer.betas": Betas,
        "scheduler.warmup_epochs": NonNegative,
        "scheduler.final_factor": UpToOne,
        "scheduler.every_epochs": Annotated[float, number(1e-6)],
        "scheduler.gamma": Positive,
        "scheduler.at_epochs": Epochs,
    },
)
FACTORS = (  # of sprites and dSprites, Shapes3D, MPI3D
    *("shape", "scale", "orientation", "x", "y", "floor_hue", "wall_hue", "object_hue", "object_color", "object_shape"),
    *("object_size", "camera_height", "background_color", "horizontal_axis", "vertical_axis"),
)


class DataRootKeys(TypedDict):
    root: DataRoot | None


class WandbModeKeys(TypedDict):
    mode: WandbMode


class EvaluateOptions(TypedDict):
    """Settings of vae-evaluate: conf/evaluate.yaml."""

    checkpoint: AnyPath
    split: DataSplit
    repeats: Count
    importance_samples: Natural
    label_accuracy: bool
    scores: Scores | None
    score_rows: Annotated[int, integer(2)] | None
    score_repeats: Count
    samples: Annotated[list[str], some_of(*SAMPLE_SCORES)]
    n_samples: Annotated[int, integer(10)]
    sampler: Sampler
    features: Literal["classifier", "inception", "pixels"]
    batch_size: Count
    seed: Seed
    device: Device
    trust: bool
    dataset: DataRootKeys
    wandb: WandbModeKeys


MAX_DISTANCE = 1000  # standard deviations of the prior: beyond a few tens of them no decoder has learned anything
LABEL = Rule(  # the name of a folder, or what several conditions are
    lambda v: all(map(RUN_PATH.allows, [*v.values()] if isinstance(v, dict) else v if isinstance(v, list) else [v])),
    "the name or the number of a class, or values of conditions such as {shape:circle,angle:0.3} or [circle,0.3]",
)
Temperature = Annotated[float, number(0, MAX_DISTANCE)]


PICTURES = ("png", "pdf", "svg")


class GenerateOptions(TypedDict):
    """Settings of vae-generate: conf/generate.yaml."""

    checkpoint: AnyPath
    what: Literal[
        "samples",
        "classes",
        "components",
        "reconstructions",
        "interpolations",
        "traversals",
        "manifold",
        "latents",
        "codes",
        "anomalies",
        "explorer",
        "weights",
        "onnx",
        "pt2",
    ]
    n: Count | None
    label: Annotated[int | str | list[Any] | dict[str, Any], LABEL] | None
    temperature: Temperature
    sampler: Sampler
    inputs: AnyPath | None
    steps: Annotated[int, integer(2, 1000)]
    path: Literal["spherical", "linear"]
    around: Literal["prior", "image"]
    range: Annotated[float, above(0, MAX_DISTANCE)]
    dims: Annotated[list[int], list_of(Natural, "a list of latent dimensions, counted from 0, such as [3,7]")] | None
    animate: bool
    format: Literal["png", "pdf", "svg", "grid", "files", "npz", "csv", "parquet"]
    log: bool
    scale: Annotated[int, integer(1, 100)] | None
    title: Annotated[str | int | float, TEXT] | None
    dpi: Annotated[int, integer(20, 2400)]
    output: Folder | None
    split: CodedSplit
    seed: Seed
    device: Device
    trust: bool
    dataset: DataRootKeys


RULES = rules_of(Config) | rules_of(SharedKeys)
DATASET_RULES = rules_of(PrepareKeys)
FACTOR_RULE = cast("Rule", rule_of(Count | FactorValues))
OPTION_RULES = rules_of(Options) | {f"dataset.factors.{name}": FACTOR_RULE for name in FACTORS}
EVALUATE_RULES = rules_of(EvaluateOptions)
GENERATE_RULES = rules_of(GenerateOptions)
