"""The state of a run: what changes while it trains, and what must not."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from vae_exp.config import build
from vae_exp.config.keys import Config
from vae_exp.datasets import Data
from vae_exp.training.meters import Meters
from vae_exp.vae import VAE


@dataclass(frozen=True)
class RunInfo:
    """The data and the model of a run in figures, and the device it is trained on.

    A resumed run must find the data and the model unchanged.
    """

    parameters: int
    train_size: int
    val_size: int
    x_shape: list[int]
    trained_on: str
    threads: int | None = None  # of PyTorch on the CPU; None, here and below: of a version that did not write it
    compiled: bool | None = None
    data_digest: str | None = None  # of the images, whatever their labels are

    @classmethod
    def of(cls, model: VAE, data: Data, device: torch.device, compiled: bool = False) -> "RunInfo":
        parameters = sum(weights.numel() for weights in model.parameters())
        sizes = len(data.train), len(data.val), list(data.x_shape)
        digest = data.fingerprint.digest() if data.fingerprint else None
        return cls(parameters, *sizes, str(device), torch.get_num_threads(), compiled, digest)


@dataclass(frozen=True)
class Best:
    """The epoch whose weights are kept: that with the lowest val/neg_elbo, or the last one without validation."""

    epoch: int
    step: int
    scores: dict[str, float] = field(default_factory=dict)  # val_neg_elbo, val_kl, ...

    def summary(self) -> dict[str, float]:
        """Return it as summary.json, W&B and checkpoints hold it: best/epoch, best/step, best/val_neg_elbo, ..."""
        return {"best/epoch": self.epoch, "best/step": self.step} | {
            f"best/{name}": score for name, score in self.scores.items()
        }

    @classmethod
    def from_summary(cls, summary: dict[str, Any]) -> "Best | None":
        """Make it from a summary; None if that is empty, as no epoch has been completed."""
        scores = {name.removeprefix("best/"): value for name, value in summary.items()}
        return cls(scores.pop("epoch"), scores.pop("step"), scores) if scores else None


@dataclass
class TrainState:
    """The progress of a run."""

    kl_per_dim: list[float]  # [Z], nats: of the held-out images, after the last epoch
    order: Tensor  # the state of the order of images, as the epoch that is not over began
    step: int = 0  # optimizer steps since the start
    epoch: int = 0  # epochs that are over
    best: Best | None = None

    def end_epoch(
        self,
        epoch: int,
        kl_per_dim: list[float],
        order: Tensor,
        val: dict[str, float] | None,
        scale: dict[str, float],
    ) -> Best | None:
        """Record that an epoch is over, and return it if it is the best so far.

        Without validation scores every epoch is. A scale that the likelihood has learned is stored beside the scores.
        """
        self.epoch, self.kl_per_dim, self.order = epoch, kl_per_dim, order
        scores = {name.replace("/", "_"): score for name, score in (val or {}).items()}
        if val and self.best is not None and scores["val_neg_elbo"] >= self.best.scores["val_neg_elbo"]:
            return None
        self.best = Best(epoch, self.step, scores | scale)
        return self.best


@dataclass(frozen=True)
class RngStreams:
    """The random numbers of training, a stream for each use."""

    order: torch.Generator  # of the images, on the CPU: every device sees the same one
    noise: torch.Generator  # of z
    draws: torch.Generator  # of flips, and of pixels that are binarised anew

    @classmethod
    def of(cls, seed: int, device: torch.device) -> "RngStreams":
        noise, draws = build.generator(seed, "noise", device), build.generator(seed, "images", device)
        return cls(build.generator(seed, "order"), noise, draws)

    def state(self) -> dict[str, Tensor]:
        """Return the states of the generators, and of torch's own, which layers such as dropout draw from."""
        state = {name: stream.get_state() for name, stream in vars(self).items()}
        state["torch"] = torch.get_rng_state()
        device = self.noise.device  # asked of no other: that would start a GPU for a run on the CPU
        if device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(device)
        elif device.type == "mps":
            state["mps"] = torch.mps.get_rng_state()
        return state


@dataclass(frozen=True)
class TrainingRun:
    """The parts of a run; a checkpoint is its state."""

    config: Config
    data: Data
    info: RunInfo
    model: VAE
    eval_model: VAE  # what is saved: the model itself where ema is null
    optimizer: Optimizer
    rng: RngStreams
    meters: Meters
    state: TrainState
