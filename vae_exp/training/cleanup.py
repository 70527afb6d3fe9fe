"""Leftovers in a folder of an earlier run, or of earlier weights of the same run: kept apart, cut back or removed."""

import contextlib
import logging
import os
import shutil
from pathlib import Path

from vae_exp.errors import UserError
from vae_exp.files import Unreadable, parse_json, write, writing
from vae_exp.training.folder import (
    BEST,
    CONFIG,
    EARLIER,
    GENERATED,
    IMAGES,
    LAST,
    LOG,
    METRICS,
    PREVIOUS,
    RESULT,
    SUMMARY,
    read_summary,
)

log = logging.getLogger(__name__)
CHECKPOINTS = (LAST, PREVIOUS, BEST)


def holds_run(folder: Path) -> bool:
    """Return whether the folder has anything of a run to lose.

    A run that failed before it began has left only its reason.
    """
    if any((folder / name).is_file() for name in CHECKPOINTS):
        return True
    metrics, summary = folder / METRICS, read_summary(folder)
    return (metrics.is_file() and metrics.stat().st_size > 0) or (summary is not None and summary.finished)


def require_unused(folder: Path, replace: bool) -> None:
    """Raise UserError if a new run would take the place of another and replace=true was not given."""
    if not replace and holds_run(folder):
        raise UserError(
            f"hydra.run.dir={folder}: there is a run in this folder. resume={folder} goes on with it, another "
            "hydra.run.dir keeps both, replace=true takes it away."
        )


def log_bytes(folder: Path) -> int:
    """Return the size of train.log before a run has logged anything: clear removes the bytes up to there."""
    log = folder / LOG
    return log.stat().st_size if log.is_file() else 0


def clear(folder: Path, old_log_bytes: int) -> None:
    """Remove all that an earlier run left in the folder of a new one, and the first `old_log_bytes` of train.log."""
    measured = [file for name in CHECKPOINTS for file in _measured(folder, name)]
    old = [folder / name for name in (IMAGES, GENERATED, EARLIER, RESULT, METRICS, *CHECKPOINTS)]
    old.append(folder / SUMMARY)  # last: what is there until then is a run
    for path in [*old, *measured, *_partials(folder)]:
        with writing(path):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    log = folder / LOG
    if old_log_bytes:
        with writing(log):
            said = log.read_bytes()[old_log_bytes:]
            os.truncate(log, 0)  # the same file: Hydra holds it open and appends
            with log.open("ab") as file:
                file.write(said)


def truncate_metrics(folder: Path, step: int, metrics_bytes: int) -> None:
    """Remove what a run wrote after its checkpoint; it will be written again, the same."""
    metrics = folder / METRICS
    with writing(metrics):
        for partial in _partials(folder):
            partial.unlink()
        whole = metrics.read_bytes()[:metrics_bytes] if metrics.is_file() else b""
        if len(whole) < metrics_bytes or not _is_of_rows(whole):
            log.warning(f"{metrics}: rows from before step {step:,} are lost or damaged; the weights are not.")
        write(metrics, whole[: whole.rfind(b"\n") + 1])
        for picture in (folder / IMAGES).glob("*_*.png"):
            drawn = picture.stem.rpartition("_")[2]
            if drawn.isdigit() and (int(drawn) > step or picture.name.startswith("test_")):
                picture.unlink()


def _partials(folder: Path) -> list[Path]:
    """Return what killed processes left of the files that only the folder's one process writes."""
    return [path for name in (*CHECKPOINTS, SUMMARY, CONFIG, METRICS) for path in folder.glob(f"{name}*.partial")]


def _is_of_rows(content: bytes) -> bool:
    try:
        return all(isinstance(parse_json(row.decode()), dict) for row in content.splitlines())
    except (Unreadable, UnicodeDecodeError):
        return False


def archive_evaluations(folder: Path, checkpoint: str, epoch: int) -> None:
    """Move what was measured of a checkpoint of `epoch` to earlier/epoch-N, before it gets other weights.

    generated/ goes with best.pt, from which pictures are drawn unless another checkpoint is named.
    """
    kept = folder / EARLIER / f"epoch-{epoch}"
    drawn = (folder / GENERATED).rglob("*") if checkpoint == BEST else ()
    for file in [*_measured(folder, checkpoint), *drawn]:
        if not file.is_dir():
            there = kept / file.relative_to(folder)
            with writing(there):
                there.parent.mkdir(parents=True, exist_ok=True)
                file.replace(there)
    if checkpoint == BEST:
        with contextlib.suppress(OSError):  # another process draws just now
            for emptied in sorted([folder / GENERATED, *(folder / GENERATED).rglob("*")], reverse=True):
                emptied.rmdir()


def _measured(folder: Path, checkpoint: str) -> list[Path]:
    """Return the files measured of a checkpoint or fitted to it, such as best.test.json and best.gmm.npz beside it."""
    return [file for kind in ("json", "npz") for file in folder.glob(f"{Path(checkpoint).stem}.*.{kind}")]
