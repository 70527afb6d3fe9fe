"""Going on with a run: which one, whether the configuration agrees, and its state put back to the bit."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vae_exp.config.check import flatten
from vae_exp.config.keys import Config
from vae_exp.errors import UserError
from vae_exp.run.folder import (
    LAST,
    OUTPUTS,
    PREVIOUS,
    SUMMARY,
    read_config,
    read_summary,
    runs_below,
)

if TYPE_CHECKING:  # the command line asks before torch is imported
    from vae_exp.run.checkpoint import Checkpoint
    from vae_exp.run.standing import Training

log = logging.getLogger(__name__)
# What a run may change on its way; a key that ends in a dot stands for its whole group.
MAY_CHANGE = (
    "epochs", "max_minutes", "early_stopping.", "resume", "device", "precision", "compile", "wandb.", "sweep.",
    "log_every_steps", "figures", "figure_every_epochs",
    "checkpoint_every_epochs", "checkpoint_every_steps", "checkpoint_every_minutes",
    "dataset.root", "dataset.cache", "dataset.device_memory",
)  # fmt: skip
LENGTH = ("epochs", "max_minutes", "early_stopping.patience")  # what gives a finished run more to do
SAME_FACTS = ("train_size", "val_size", "x_shape", "parameters")


def contradictions(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The keys whose values differ and may not, with both values."""
    before, now = flatten(before), flatten(now)
    missing = "not there"
    return [
        f"{key}={now.get(key, missing)}: the run has {key}={before.get(key, missing)}"
        for key in dict.fromkeys([*before, *now])
        if before.get(key, missing) != now.get(key, missing) and not _may_change(key)
    ]


def _may_change(key: str) -> bool:
    return any(key == name or (name.endswith(".") and key.startswith(name)) for name in MAY_CHANGE)


def find(path_or_latest: str) -> Path:
    """The run folder that resume=PATH or resume=latest means. Raises UserError where there is none to go on with."""
    if path_or_latest == "latest":
        runs = runs_below(OUTPUTS)
        if not runs:
            raise UserError(f"resume=latest: there is no run in {OUTPUTS}.")
        return runs[0]
    path = Path(path_or_latest).expanduser()
    folder = path.parent if path.is_file() else path
    if not any((folder / name).is_file() for name in (LAST, PREVIOUS)):
        raise UserError(f"resume={path_or_latest}: no {LAST} there. Give a run's folder, its {LAST}, latest or auto.")
    return folder


def find_unfinished(config: Config, run_dir: Path) -> Path | None:
    """resume=auto: run_dir where it holds a run, else the newest unfinished run of this configuration, or None.

    Raises UserError where run_dir holds a run of another configuration, or a finished one.
    """
    if (run_dir / SUMMARY).is_file() or (run_dir / LAST).is_file():
        before, summary = read_config(run_dir), read_summary(run_dir)
        if before is not None and (wrong := contradictions(before, config)):
            raise UserError(_refusal(run_dir, wrong))
        if summary is not None and summary.finished:
            raise UserError(f"resume=auto: the run in {run_dir} is finished. resume={run_dir} epochs=... trains on.")
        return run_dir if newest_checkpoint(run_dir) else None
    for folder in runs_below(OUTPUTS):
        before, summary = read_config(folder), read_summary(folder)
        is_finished = summary is not None and summary.finished
        if before is None or is_finished or before.get("sweep", {}).get("jobs"):
            continue
        if not contradictions(before, config) and newest_checkpoint(folder):
            return folder
    return None


def require_unfinished(folder: Path, config: Config) -> None:
    """Raises UserError where a run is finished and nothing in config gives it more to do, or contradicts it."""
    before, summary = read_config(folder), read_summary(folder)
    if before is not None and (wrong := contradictions(before, config)):
        raise UserError(_refusal(folder, wrong))
    if before is None or summary is None or not summary.finished:
        return
    if all(flatten(before).get(key) == flatten(config).get(key) for key in LENGTH):
        done = f"({summary.reason})" if summary.reason else f"after epoch {before.get('epochs')}"
        raise UserError(f"resume={folder}: the run is finished {done}. epochs=... with a larger number trains on.")


def newest_checkpoint(folder: Path) -> Path | None:
    """last.pt, or the one before where that is damaged, which is then said; None where neither can be read."""
    from vae_exp.run import checkpoint

    for path in (folder / LAST, folder / PREVIOUS):
        if not path.is_file():
            continue
        try:
            if checkpoint.load(path).goes_on is None:
                raise UserError(f"checkpoint={path}: holds a model, and not the state of a run.")
            return path
        except UserError as error:
            log.warning(f"{error} It cannot be resumed from.")
    return None


def load(folder: Path, config: Config) -> "Checkpoint":
    """The checkpoint to go on from.

    Raises UserError where there is none, where the configuration contradicts it, or where the best epoch is lost: at
    the end of the run it would be too late.
    """
    from vae_exp.run import checkpoint, saving

    path = newest_checkpoint(folder)
    if path is None:
        raise UserError(
            f"resume={folder}: no {LAST} that can be read is there, nor {PREVIOUS}. resume=null starts anew."
        )
    before = checkpoint.load(path)
    if wrong := contradictions(before.config, config):
        raise UserError(_refusal(folder, wrong))
    if before.best is not None:
        saving.best_of(folder, before)
    log.info(f"goes on from {path}: step {before.step:,}, {before.epoch} epochs done")
    return before


def restore(before: "Checkpoint", training: "Training") -> None:
    """Set weights, optimizer, random numbers, means and standing as they were. Raises UserError for other data.

    On another kind of device than before, its random numbers are a new stream.
    """
    import torch

    assert before.goes_on is not None and before.optimizer is not None, "resume.load takes no other"
    facts, then = training.facts, before.goes_on.facts
    if wrong := [name for name in SAME_FACTS if getattr(facts, name) != getattr(then, name)]:
        changes = "; ".join(f"{name} is {getattr(facts, name)}, and was {getattr(then, name)}" for name in wrong)
        raise UserError(f"resume: the data or the model have changed since the run began: {changes}.")
    training.model.load_state_dict(before.model)
    training.optimizer.load_state_dict(before.optimizer)
    training.means.restore(before.goes_on.means)
    states = before.goes_on.streams
    for name, stream in vars(training.streams).items():
        if states[name].shape == stream.get_state().shape:
            stream.set_state(states[name])
        else:
            stream.manual_seed(stream.initial_seed() + before.step)
            log.warning(f"resumed on another kind of device: the random numbers for {name} are a new stream")
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
    stands = training.stands
    stands.step, stands.epoch, stands.best = before.step, before.epoch, before.best
    stands.kl_per_dim, stands.order = before.kl_per_dim, training.streams.order.get_state()


def _refusal(folder: Path, wrong: list[str]) -> str:
    return f"resume={folder}: the configuration contradicts the run.\n" + "\n".join(wrong)
