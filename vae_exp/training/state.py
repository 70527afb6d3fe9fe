"""Hold what a run changes while it trains: state, random streams, meters, averaged weights."""

import copy
import functools
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.swa_utils import get_ema_multi_avg_fn

from vae_exp.config import build
from vae_exp.config.schema import Config, images_per_step
from vae_exp.datasets import Data
from vae_exp.vae import VAE

log = logging.getLogger(__name__)
Means = dict[str, float | Tensor]


class Meters:
    """Means of the training terms over images. Each step's are left on the device: only reading them waits for it."""

    STATE = ("images_seen", "steps", "first_step", "sums", "epoch_sums")

    def __init__(self) -> None:
        self.images_seen = self.steps = 0  # since the start
        self.first_step = 0  # of those that the sums hold
        self.sums: dict[str, float] = {}  # since the last read, but for those that are unread
        self.epoch_sums: dict[str, float] = {}  # of what was read since the last read_epoch
        self._unread: list[tuple[int, Means]] = []

    def add(self, batches: list[tuple[int, Means]], **per_step: float | Tensor) -> None:
        """Add one step on batches of so many images: the means over each, and values of the step, on any device."""
        if not self._unread and not self.sums:
            self.first_step = self.steps + 1
        self._unread += [(images, per_step | means) for images, means in batches]
        self.steps += 1
        self.images_seen += sum(images for images, _ in batches)

    @property
    def span(self) -> str:
        return f"between steps {self.first_step} and {self.steps}"

    def peek(self, prefix: str) -> dict[str, float]:
        """Return what `read` would, removing nothing; empty if no image has been added since the last read."""
        self._sum_up()
        return _means(self.sums, prefix) if self.sums else {}

    def read(self, prefix: str, **scalars: Tensor) -> dict[str, float]:
        """Return the means since the last read, over the steps of `span`, and further scalars, all in one look."""
        values = self._sum_up(*scalars.values())
        sums, self.sums = self.sums, {}
        self.epoch_sums = {name: self.epoch_sums.get(name, 0.0) + value for name, value in sums.items()}
        further = {f"{prefix}/{name}": value for name, value in zip(scalars, values, strict=True)}
        return _means(sums, prefix) | further

    def read_epoch(self, prefix: str) -> dict[str, float]:
        sums, self.epoch_sums = self.epoch_sums, {}
        return _means(sums, prefix)

    def _sum_up(self, *scalars: Tensor) -> list[float]:
        """Add the unread steps up one by one, so that a reading in between changes no digit; return the scalars."""
        unread = [mean for _, means in self._unread for mean in means.values() if isinstance(mean, Tensor)]
        tensors = [*unread, *scalars]
        values = torch.stack([value.to(tensors[0]) for value in tensors]).tolist() if tensors else []
        numbers = iter(values)
        for images, means in self._unread:
            for name, mean in {"images": 1, **means}.items():
                number = next(numbers) if isinstance(mean, Tensor) else mean
                self.sums[name] = self.sums.get(name, 0.0) + images * number
        self._unread = []
        return values[len(unread) :]

    def state_dict(self) -> dict[str, Any]:
        self._sum_up()
        return {name: getattr(self, name) for name in self.STATE}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update({name: state[name] for name in self.STATE})


def _means(sums: dict[str, float], prefix: str) -> dict[str, float]:
    means = {f"{prefix}/{name}": value / sums["images"] for name, value in sums.items() if name != "images"}
    return means | {f"{prefix}/neg_elbo": means[f"{prefix}/reconstruction"] + means[f"{prefix}/kl"]}


class EMA:
    """An exponential moving average of weights in `model`, a copy (Polyak & Juditsky 1992); none with decay None."""

    def __init__(self, trained: VAE, decay: float | None) -> None:
        self.decay = decay
        self.model = trained if decay is None else copy.deepcopy(trained).requires_grad_(False)
        self._weights = list(self.model.parameters()), list(trained.parameters())
        self._buffers = list(zip(self.model.buffers(), trained.buffers(), strict=True))

    def update(self, step: int) -> None:
        """Update the average after a step; early ones count for more than 1 - decay, to forget the random weights."""
        if self.decay is None:
            return
        get_ema_multi_avg_fn(min(self.decay, (1 + step) / (10 + step)))(*self._weights, step)
        for average, buffer in self._buffers:  # such as a batch norm's means, which are averages themselves
            average.copy_(buffer)


@dataclass(frozen=True)
class Start:
    """The trained weights that a run began with, and the epochs of all runs before it that led to them."""

    path: str
    epoch: int
    step: int
    epochs: int
    latents: list[int] | None = None  # those that were kept, where there were more


@dataclass(frozen=True)
class RunInfo:
    """The data and the model of a run in numbers, which a resumed run must find unchanged, and its device."""

    parameters: int
    train_size: int
    val_size: int
    x_shape: list[int]
    trained_on: str
    threads: int | None = None  # of PyTorch on the CPU; None, here and below: of a version that did not write it
    compiled: bool | None = None
    data_digest: str | None = None  # of the images, whatever their labels are
    start: Start | None = None  # None: it began with weights that the seed made

    @classmethod
    def of(
        cls, model: VAE, data: Data, device: torch.device, compiled: bool = False, start: Start | None = None
    ) -> "RunInfo":
        sizes = sum(weights.numel() for weights in model.parameters()), len(data.train), len(data.val)
        digest = data.fingerprint.digest() if data.fingerprint else None
        return cls(*sizes, list(data.x_shape), str(device), torch.get_num_threads(), compiled, digest, start)

    def as_dict(self) -> dict[str, Any]:
        """Return it as summary.json and W&B hold it."""
        return {name: value for name, value in asdict(self).items() if name != "start" or value}


@dataclass(frozen=True)
class Best:
    """The epoch whose weights are saved: the best by `monitor`, or the last one without validation."""

    epoch: int
    step: int
    scores: dict[str, float] = field(default_factory=dict)  # val_neg_elbo, val_kl, ...

    def summary(self) -> dict[str, float]:
        """Return it as summary.json, W&B and checkpoints hold it: best/epoch, best/step, best/val_neg_elbo, ..."""
        values = {"epoch": self.epoch, "step": self.step} | self.scores
        return {f"best/{name}": value for name, value in values.items()}

    @classmethod
    def from_summary(cls, summary: dict[str, Any]) -> "Best | None":
        """Make it from a summary; None if that is empty, as no epoch has been completed."""
        scores = {name.removeprefix("best/"): value for name, value in summary.items()}
        return cls(scores.pop("epoch"), scores.pop("step"), scores) if scores else None


@dataclass
class TrainState:
    kl_per_dim: list[float]  # [Z], nats: of the held-out images, after the last epoch
    order: Tensor  # the state of the order of images, as the epoch that is not over began
    step: int = 0  # optimizer steps since the start
    epoch: int = 0  # epochs that are over
    best: Best | None = None


@dataclass(frozen=True)
class RngStreams:
    """The random numbers of training, a stream for each use."""

    order: torch.Generator  # of the images, on the CPU: every device sees the same one
    noise: torch.Generator  # of z
    draws: torch.Generator  # of flips, and of pixels that are binarised anew

    @classmethod
    def from_seed(cls, seed: int, device: torch.device) -> "RngStreams":
        noise, draws = build.generator(seed, "noise", device), build.generator(seed, "images", device)
        return cls(build.generator(seed, "order"), noise, draws)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the states of the generators, and of torch's own, which layers such as dropout draw from."""
        state = {name: stream.get_state() for name, stream in vars(self).items()}
        state["torch"] = torch.get_rng_state()
        kind = self.noise.device.type  # asked of no other: that would start a GPU for a run on the CPU
        return state if kind == "cpu" else state | {kind: torch.get_device_module(kind).get_rng_state()}

    def load_state_dict(self, states: Mapping[str, Tensor], step: int, same_device: bool) -> None:
        """Set the states; on another kind of device they are a new stream. Raises RuntimeError or TypeError."""
        for name, stream in vars(self).items():
            if name == "order" or same_device or states[name].shape == stream.get_state().shape:
                stream.set_state(states[name])
            else:
                stream.manual_seed(stream.initial_seed() + step)
                log.warning(f"resumed on another kind of device: the random numbers for {name} are a new stream")
        torch.set_rng_state(states["torch"])
        kind = self.noise.device.type
        if kind != "cpu" and kind in states:
            torch.get_device_module(kind).set_rng_state(states[kind])


@dataclass
class TrainingRun:
    """What a checkpoint holds of a run, and what it is made from; train.setup fills it in."""

    config: Config
    run_dir: Path
    device: torch.device
    data: Data = field(init=False)
    info: RunInfo = field(init=False)
    model: VAE = field(init=False)
    ema: EMA = field(init=False)
    optimizer: Optimizer = field(init=False)
    meters: Meters = field(default_factory=Meters)

    def __post_init__(self) -> None:
        self.rng = RngStreams.from_seed(self.config["seed"], self.device)
        self.state = TrainState([0.0] * self.config["model"]["z_dim"], self.rng.order.get_state())

    @property
    def eval_model(self) -> VAE:
        """Return the model that is measured, drawn and saved: the averaged one, or the model itself without ema."""
        return self.ema.model

    @functools.cached_property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.data.train) / images_per_step(self.config))
