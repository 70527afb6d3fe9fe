"""Hold a run together while it trains: its state, and the tools that log, save, draw and stop."""

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from vae_exp import distributed
from vae_exp.config import build
from vae_exp.config.schema import Config, images_per_step, is_number, is_on_path
from vae_exp.datasets import Split, batches
from vae_exp.distributed import rank0_only
from vae_exp.errors import UserError
from vae_exp.figures.training import TrainingFigures
from vae_exp.terms import Logged, Progress
from vae_exp.tracking.tracker import Tracker
from vae_exp.tracking.wandb_run import choose_mode
from vae_exp.training import console, precision, threads
from vae_exp.training.checkpointer import Checkpointer
from vae_exp.training.checkpoints import Checkpoint
from vae_exp.training.run_dir import lock_folder, log_bytes, require_unused, require_writable
from vae_exp.training.state import Best, TrainingRun
from vae_exp.training.stopper import Stopper, require_finite

log = logging.getLogger(__name__)
Prune = Callable[[int, dict[str, float]], str | None]  # after an epoch, with its numbers: the reason to end


@dataclass
class Run(TrainingRun):
    """A run with all that it takes to train it. What only rank 0 has does nothing on the others."""

    resumed: Checkpoint | None = None  # where it goes on from
    train_split: Split = field(init=False)
    held_out: Split = field(init=False)  # the validation split; without one the test split, as in the tutorial
    held_out_name: str = field(init=False)
    eval_noise: Tensor = field(init=False)  # the same after every epoch
    loss_fn: Callable[[Progress, Tensor, Tensor, Tensor], tuple[Tensor, Logged]] = field(init=False)
    autocast: contextlib.AbstractContextManager[Any] = field(init=False)
    weights: list[nn.Parameter] = field(init=False)  # a list made once: walking over the modules takes a step's time
    optimizer_step: Callable[[], object] = field(init=False)
    schedule: Callable[[float, int], float] = field(init=False)
    stop: Stopper = field(init=False)
    figures: TrainingFigures = field(init=False)
    health: console.Health = field(init=False)
    tracker: Tracker = field(init=False)
    checkpoints: Checkpointer = field(init=False)
    bar: Any = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.old_log_bytes = log_bytes(self.run_dir)  # of a run whose place this one takes
        self.wandb_mode = rank0_only(choose_mode, self.config["wandb"]["mode"])

    @contextlib.contextmanager
    def open(self, quiet: bool) -> Iterator[None]:
        """Lock the folder, take over signals, open what is written to; close it whatever happens."""
        last_step = min(self.config["epochs"] * self.steps_per_epoch, self.config["max_steps"] or 2**31)
        logged = self.config, self.run_dir, self.wandb_mode, self.info, self.resumed, self.old_log_bytes
        with (
            rank0_only(lock_folder, self.run_dir),
            self.stop,
            rank0_only(Tracker, *logged) as self.tracker,
            rank0_only(Checkpointer, self, self.stop, self.tracker, self.resumed) as self.checkpoints,
            rank0_only(console.progress_bar, last_step, self.state.step, quiet) as self.bar,
        ):
            yield

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Return what is left of an epoch, x [B, C, H, W] and y [B]; with epochs=0 nothing is trained."""
        if self.config["epochs"] == 0:
            return iter(())
        steps_done = self.state.step - self.state.epoch * self.steps_per_epoch  # before it was interrupted in the epoch
        return batches(self.train_split, images_per_step(self.config), self.rng.order, self.rng.draws, steps_done)

    def parts(self, *rows: Tensor) -> Iterable[tuple[Tensor, ...]]:
        """Return the rows of a step in parts of batch_size, whose gradients add up with accumulate_steps."""
        size = self.config["batch_size"]
        return zip(*(of.split(size) for of in rows), strict=True) if len(rows[0]) > size else (rows,)

    def log_step(self, grad_norm: Tensor) -> None:
        """Log the means over the steps since the last such row, and this step's gradient norm. Raises Diverged."""
        state = self.state
        row = self.meters.read("train", grad_norm=grad_norm, **self.model.scale())
        require_finite(row, self.meters.span, self.run_dir)
        self.bar.set_postfix_str(f"neg_elbo {row['train/neg_elbo']:.2f}", refresh=False)
        row |= {"epoch": state.step / self.steps_per_epoch, "images_seen": self.meters.images_seen}
        self.tracker.log(row, state.step)

    @property
    def monitor(self) -> str | None:
        """Return the number that chooses the best epoch; None if it is the last: without validation, or on a path.

        On a path to beta 5 the lowest neg_elbo comes too early.
        """
        return self.config["monitor"] if self.held_out_name == "val" and not is_on_path(self.config["sweep"]) else None

    def end_epoch(
        self, epoch: int, kl_per_dim: list[float], scores: dict[str, float], row: dict[str, Any]
    ) -> Best | None:
        """Record that an epoch is over, and return it if it is the best so far, as each is if none is chosen.

        Raises UserError if `monitor` or sweep.metric is no number in the epoch's row.
        """
        state, monitor, config = self.state, self.monitor, self.config
        state.epoch, state.kl_per_dim, state.order = epoch, kl_per_dim, self.rng.order.get_state()
        judges = {"monitor": config["monitor"] if self.held_out_name == "val" else None}
        judges |= {"sweep.metric": config["sweep"]["metric"]}
        scores = scores | distributed.broadcast(lambda: monitored(judges, row))
        scores = {name.replace("/", "_"): score for name, score in scores.items()}
        if monitor is not None and state.best is not None:
            key, sign = monitor.replace("/", "_"), -1 if config["monitor_mode"] == "max" else 1
            if sign * scores[key] >= sign * state.best.scores[key]:
                return None
        state.best = Best(epoch, state.step, scores)
        return state.best

    def path_epochs(self) -> dict[str, int]:
        """Return what summary.json has of the epochs that led to a run's weights, if it is one of several on a path."""
        start = self.info.start
        has_path = start is not None or is_on_path(self.config["sweep"])
        return {"path_epochs": (start.epochs if start else 0) + self.state.epoch} if has_path else {}

    def save_what_is_left(self) -> None:
        """Write what no checkpoint holds yet; the weights as they are if no epoch was completed."""
        if self.stop.reason:
            log.info(f"ends early: {self.stop.reason}")
            self.checkpoints.write()
        if not self.state.best:
            self.state.best = Best(0, self.state.step)
            self.checkpoints.keep_best()
        self.checkpoints.write_best()
        self.stop.finish()


def monitored(names: Mapping[str, str | None], row: dict[str, Any]) -> dict[str, float]:
    """Return what chooses the best epoch and the best job, by its name; names are by their keys.

    Raises UserError if an epoch's row has no such number.
    """
    for key, name in names.items():
        if name is not None and not is_number(row.get(name)):
            known = ", ".join(sorted(key for key, value in row.items() if is_number(value) and key != "epoch"))
            raise UserError(f"{key}={name}: no such number is logged each epoch. There are {known}.")
    return {name: row[name] for name in names.values() if name is not None and not name.startswith("test/")}


def new_run(cfg: DictConfig, run_dir: str | Path | None) -> Run:
    """Return the run that cfg describes, the same in every process; nothing of it is read or written yet.

    Raises UserError if the configuration or the device cannot do what is asked, or the folder cannot be used.
    """

    def check() -> tuple[Config, Path]:
        config = build.check(cfg)
        if run_dir in (None, "auto"):
            raise UserError("run_dir: say in which folder to train, such as train(cfg, 'outputs/mine').")
        return config, Path(run_dir)

    config, folder = distributed.broadcast(check)
    config["devices"], device = build.agreed(config), build.device(config["device"])
    if device.index is not None:  # one GPU of several: what is not told where to be is there too
        torch.cuda.set_device(device)
    precision.check(config["precision"], config["compile"], device)
    if distributed.is_rank0():
        if not config["resume"]:
            require_unused(folder, config["replace"])
        require_writable(folder)
    if distributed.world_size() > 1:
        threads.share(distributed.processes_here(), "processes")
    return Run(config, folder, device)
