"""The lines that a run prints: its first ones, one for each epoch, and its last ones; all above the progress bar."""

import contextlib
import io
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vae_exp.config.keys import Config
from vae_exp.errors import printable

if TYPE_CHECKING:  # the command line names ConsoleHandler before torch is imported
    from vae_exp.training.state import RunInfo

log = logging.getLogger(__name__)
BETWEEN = (
    "note: pixels between black and white under a Bernoulli likelihood. It is no density over them, so neg_elbo "
    "compares only with other runs on the same pixels, never with published nats: those are of "
    "dataset.binarize=static or dynamic."
)
_told: set[str] = set()  # notes that this process has given: the jobs of a sweep need not repeat them


def open_streams() -> None:
    """Make printing to standard output and error safe if they are closed or can encode few characters.

    A character that a stream cannot encode, such as ± in ASCII, is escaped. If one was closed (`2>&-`), a file opened
    later would get its number, and be written to by whatever prints there.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it takes the lowest number that is free
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115
        elif isinstance(stream := getattr(sys, name), io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


class ConsoleHandler(logging.StreamHandler):
    """A log handler that writes above a progress bar instead of through it; named in conf/config.yaml."""

    def emit(self, record: logging.LogRecord) -> None:
        say(self.format(record), sys.stdout)


def say(text: str, file: Any = None) -> None:
    """Print above the progress bar, whatever the level of the log; nobody may be listening any more."""
    from tqdm import tqdm

    with contextlib.suppress(OSError):  # `vae-train | head` goes on quietly when head has gone
        tqdm.write(text, file=file)


def progress_bar(total: int, done: int) -> Any:
    """Return a progress bar over the steps of a run, shown only in a terminal."""
    from tqdm import tqdm

    return tqdm(total=total, initial=done, unit="step", disable=None, leave=False, dynamic_ncols=True)


def introduce(config: Config, info: "RunInfo", run_dir: Path, grey: bool) -> None:
    """Log what is trained on what, where its files will be, and the unit of its numbers (nats per image)."""
    shape = "x".join(map(str, info.x_shape))
    held_out = f"{info.val_size:,} for validation" if info.val_size else "the test split is watched"
    stochastic, n = config["model"]["stochastic"], config["devices"]
    in_processes = f", in {n} processes" if n > 1 else ""
    log.info(
        f"{config['model']['name']}{' VAE' if stochastic else ''} on {printable(config['dataset']['name'])}: "
        f"{info.parameters:,} parameters, {info.train_size:,} images of {shape}, {held_out}; "
        f"on {info.trained_on}{in_processes}"
    )
    log.info(f"run folder {printable(run_dir)}\nneg_elbo = reconstruction + KL, in nats per image")
    if not stochastic:
        log.info("deterministic: the KL counts as 0, so neg_elbo is no bound, and there is no prior to sample from")
    if grey:
        log.log(logging.INFO if BETWEEN in _told else logging.WARNING, BETWEEN)
        _told.add(BETWEEN)


def epoch_line(epoch: int, epochs: int, held_out: str, row: dict[str, Any], scale: dict[str, float], best: bool) -> str:
    """Return an epoch's numbers on one line."""
    line = f"epoch {epoch:>{len(str(epochs))}}/{epochs}"
    if epoch:
        line += f"  train {row['train_epoch/neg_elbo']:8.3f}"
    rec, kl = row[f"{held_out}/reconstruction"], row[f"{held_out}/kl"]
    line += f"  {held_out} {row[f'{held_out}/neg_elbo']:8.3f} = {rec:.3f} + {kl:.3f}"
    line += "".join(f"  {name} {value:.4f}" for name, value in scale.items())
    if epoch:
        line += f"  {row['time/epoch_seconds']:5.1f} s  {row['time/images_per_second']:9,.0f} images/s"
    return line + ("  best" if best else "")
