"""The keys of a checked configuration and their types; conf/*.yaml says what they mean."""

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
