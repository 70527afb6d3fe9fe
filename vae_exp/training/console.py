"""Print what a run says: introduction, progress, a line an epoch, warnings."""

import contextlib
import io
import logging
import math
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vae_exp.config.checks import data_name
from vae_exp.config.schema import Config
from vae_exp.errors import UserError, printable, printable_lines

if TYPE_CHECKING:  # the command line names ConsoleHandler before torch is imported
    from vae_exp.datasets.splits import Split
    from vae_exp.training.state import RunInfo

log = logging.getLogger(__name__)
GREY = "grey pixels: neg_elbo is not a log-likelihood; for published numbers use dataset.binarize=static or dynamic"
SATURATED = (
    "more than a tenth of the pixels are pure black or white. With likelihood.mean=sigmoid, which keeps the "
    "means between them, such images often fit better."
)
NOTES = (GREY, SATURATED)
noted: set[str] = set()  # what a sweep has said already: its jobs need not repeat it


def open_streams() -> None:
    """Make printing to standard output and error safe if they are closed or can encode few characters, such as no ±."""
    for number in range(3):  # of one that is closed (`2>&-`) the next file would get the number, and what is printed
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it takes the lowest number that is free
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115
        elif isinstance(stream := getattr(sys, name), io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


class Formatter(logging.Formatter):
    """Format log records safe to print, in train.log too, and warnings as short as any message.

    conf/config.yaml names it, and the next class.
    """

    def format(self, record: logging.LogRecord) -> str:
        text = printable_lines(super().format(record))
        return text if record.levelno < logging.WARNING or record.exc_info else str(UserError(text))


class ConsoleHandler(logging.StreamHandler):
    """Write log records above a progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        say(self.format(record), sys.stdout)


def say(text: str, file: Any = None) -> None:
    """Print above the progress bar, whatever the level of the log; nobody may be listening any more."""
    from tqdm import tqdm

    with contextlib.suppress(OSError):  # `vae-train | head` goes on quietly when head has gone
        tqdm.write(printable_lines(text), file=file)


def echo(text: str) -> None:
    """Print what a command is for, whoever wrote what is in it. Raises OSError if nobody can read it."""
    print(printable_lines(text))


class _Prints(ConsoleHandler):
    """Print what the root logger, as somebody has set it up, does not take."""

    def emit(self, record: logging.LogRecord) -> None:
        root = logging.getLogger()
        root.handle(record) if root.handlers and record.levelno >= root.level else super().emit(record)


@contextlib.contextmanager
def printing(run_dir: str | Path | None, quiet: bool) -> Iterator[None]:
    """Print what is logged in the block, unless it should be quiet or Hydra has set logging up, as for the commands."""
    from hydra.core.hydra_config import HydraConfig  # here: vae-compare does without Hydra

    package = logging.getLogger("vae_exp")
    if quiet or HydraConfig.initialized() or package.handlers:
        yield
        return
    handler, level = _Prints(), package.level
    package.addHandler(handler)
    package.propagate = False
    package.setLevel(level or min(logging.INFO, package.getEffectiveLevel()))
    try:
        yield
        log.info(f"numbers, pictures and weights are in {printable(run_dir)}")
    finally:
        package.removeHandler(handler)
        package.propagate = True
        package.setLevel(level)


def progress_bar(total: int, done: int = 0, quiet: bool = False, **settings: Any) -> Any:
    """Return a progress bar for a terminal or a notebook; elsewhere, and if quiet, it does nothing."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    in_notebook = "IPKernelApp" in getattr(shell, "config", {})
    if in_notebook:
        from tqdm.auto import tqdm
    else:
        from tqdm import tqdm
    off = True if quiet else False if in_notebook else None  # None: unless it is a terminal
    return tqdm(total=total, initial=done, unit="step", disable=off, leave=False, dynamic_ncols=True, **settings)


def introduce(config: Config, info: "RunInfo", run_dir: Path, support: str, train: "Split") -> None:
    """Log what is trained on what, where its files will be, the unit of its numbers (nats per image), and notes."""
    shape = "x".join(map(str, info.x_shape))
    without = "no validation split: the test split is evaluated after each epoch"
    held_out = f"{info.val_size:,} for validation" if info.val_size else without
    stochastic, n = config["model"]["stochastic"], config["devices"]
    in_processes = f", in {n} processes" if n > 1 else ""
    log.info(
        f"{config['model']['name']}{' VAE' if stochastic else ''} on {printable(data_name(config['dataset']))}: "
        f"{info.parameters:,} parameters, {info.train_size:,} images of {shape}, {held_out}; "
        f"on {info.trained_on}{in_processes}"
    )
    log.info(f"run folder {printable(run_dir)}\nneg_elbo = reconstruction + KL, in nats per image")
    if not stochastic:
        log.info("deterministic: the KL counts as 0, so neg_elbo is no bound, and there is no prior to sample from")
    is_linear = support == "real" and config["likelihood"].get("mean") == "linear"
    notes = [GREY] * (support == "binary" and train.is_grey())
    notes += [SATURATED] * (is_linear and train.saturated_share() > 0.1)
    for note in notes:
        # Of a job the console shows warnings only.
        log.log(logging.WARNING if config["sweep"]["jobs"] and note not in noted else logging.INFO, note)
        noted.add(note)


def epoch_line(epoch: int, epochs: int, held_out: str, row: dict[str, Any], scale: dict[str, float], best: bool) -> str:
    line = f"epoch {epoch:>{len(str(epochs))}}/{epochs}"
    if epoch:
        line += f"  train {row['train_epoch/neg_elbo']:8.3f}"
    rec, kl = row[f"{held_out}/reconstruction"], row[f"{held_out}/kl"]
    line += f"  {held_out} {row[f'{held_out}/neg_elbo']:8.3f} = {rec:.3f} + {kl:.3f}"
    line += "".join(f"  {name} {value:.4f}" for name, value in scale.items())
    if epoch:
        line += f"  {row['time/epoch_seconds']:5.1f} s  {row['time/images_per_second']:9,.0f} images/s"
    return line + ("  best" if best else "")


# A posterior that finds its use late has been seen with 0.03 nats for ten epochs; one that has collapsed falls below.
COLLAPSED_NATS, COLLAPSED_EPOCHS = 0.02, 5  # in a row
# Telling an image from N others takes log N nats, and a latent that holds 4 nats more is placed to one part in fifty.
# Healthy models have been seen with half of both together.
LARGE_NATS_PER_LATENT = 4
RISING_EPOCHS, RISING_FACTOR = 3, 1.02  # in a row, and by so much over all of them
SCHEDULED = ("train_epoch/kl_weight", "train_epoch/capacity")


class Health:
    """Check each epoch as it ends, and warn of a collapsed posterior and of a KL without bound, once each."""

    def __init__(self, config: Config, train_size: int) -> None:
        self.config = config
        self.large_nats = math.log(train_size) + LARGE_NATS_PER_LATENT * config["model"]["z_dim"]
        self._warned: set[str] = set()
        self._scheduled: list[float | None] = []
        self._collapsed_epochs = 0
        self._kls: list[float] = []

    def warnings(self, epoch: int, row: Mapping[str, Any], held_out: str) -> list[str]:
        kl, active = row[f"{held_out}/kl"], row[f"{held_out}/active_units"]
        before, self._scheduled = self._scheduled, [row.get(name) for name in SCHEDULED]
        if self._scheduled != before or not self.config["model"]["stochastic"]:  # the KL follows a schedule
            self._collapsed_epochs, self._kls = 0, [kl]
            return []
        self._collapsed_epochs = self._collapsed_epochs + 1 if active == 0 and kl < COLLAPSED_NATS else 0
        self._kls = [*self._kls, kl][-RISING_EPOCHS - 1 :]
        rises = len(self._kls) > RISING_EPOCHS and self._kls == sorted(self._kls) and kl > RISING_FACTOR * self._kls[0]
        warnings = {}
        if self._collapsed_epochs >= COLLAPSED_EPOCHS:
            warnings["collapse"] = (
                f"the posterior has collapsed: no latent unit is active after epoch {epoch} (KL {kl:.3f} nats), and z "
                f"says nothing of an image. {self._advice(weaker=True)}"
            )
        if rises and kl > self.large_nats:
            warnings["growth"] = (
                f"the KL grows without bound: {kl:.1f} nats after epoch {epoch}, and higher after each of the last "
                f"{RISING_EPOCHS} epochs. {self._advice(weaker=False)}"
            )
        new = [warning for kind, warning in warnings.items() if kind not in self._warned]
        self._warned |= warnings.keys()
        return new

    def _advice(self, weaker: bool) -> str:
        """Return which keys of this configuration to turn, and which way, for a weaker or a stronger KL."""
        beta, likelihood = self.config["model"]["beta"], self.config["likelihood"]
        size = "smaller" if weaker else "larger"
        scales = [key for key in ("sigma", "scale") if key in likelihood]
        tries = [
            f"a {'fixed' if isinstance(likelihood[key], str) else size} likelihood.{key} (it is {likelihood[key]})"
            for key in scales
        ]
        if weaker:
            warmup = ["objective.warmup_epochs=5"] if "warmup_epochs" in self.config["objective"] else []
            tries = [*warmup, "objective=free_bits", f"a model.beta below {beta:g}", *tries]
        else:
            lr = self.config["optimizer"]["lr"]
            tries = [f"a model.beta above {beta:g}", *tries, f"an optimizer.lr below {lr:g}"]
        return f"Try {', '.join(tries[:-1])} or {tries[-1]}."
