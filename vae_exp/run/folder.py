"""What is in a run's folder, and who may write there. Everything here answers without importing torch."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

import yaml

from vae_exp.config.moved import renamed
from vae_exp.errors import UserError
from vae_exp.run.writing import write, write_json, writing

OUTPUTS = Path("outputs")
BEST, LAST, PREVIOUS = "best.pt", "last.pt", "last.previous.pt"
SUMMARY, CONFIG, METRICS, IMAGES, LOCK = "summary.json", "config.yaml", "metrics.jsonl", "images", "lock"
OVERRIDES = Path(".hydra", "overrides.yaml")
UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError)


@dataclass(frozen=True)
class WandbRun:
    """The W&B run that a run was logged to; no id where W&B was disabled."""

    mode: str = "disabled"
    id: str | None = None
    dir: str | None = None
    url: str | None = None


@dataclass
class Summary:
    """What summary.json holds: how a run stands or ended, and its results."""

    state: str  # running, finished, interrupted or failed
    reason: str | None = None
    name: str | None = None  # the run's name in W&B
    wandb: WandbRun = field(default_factory=WandbRun)
    seconds: float = 0.0  # over all parts of the run
    results: dict[str, Any] = field(default_factory=dict)  # best/val_neg_elbo, test/kl, parameters, ...

    @property
    def finished(self) -> bool:
        return self.state == "finished"

    @property
    def score(self) -> float | None:
        """The number that a sweep compares: the best validation neg_elbo, or the test's without validation images."""
        return self.results.get("best/val_neg_elbo", self.results.get("test/neg_elbo"))

    def as_dict(self) -> dict[str, Any]:
        """As it is written: the results beside the rest."""
        fields = asdict(self)
        return fields | fields.pop("results")

    def write(self, folder: Path) -> None:
        """Raises Unwritable where the system refuses."""
        write_json(folder / SUMMARY, self.as_dict())


def read_summary(folder: Path) -> Summary | None:
    """The summary of the run in a folder; None where there is none, or none that can be read."""
    try:
        content = json.loads((folder / SUMMARY).read_text())
        known = {name: content.pop(name) for name in ("state", "reason", "name", "seconds") if name in content}
        return Summary(**known, wandb=WandbRun(**content.pop("wandb", {})), results=content)
    except UNREADABLE:
        return None


def read_config(folder: Path) -> dict[str, Any] | None:
    """The configuration of the run in a folder, by today's names; None where there is none that can be read."""
    try:
        return renamed(yaml.safe_load((folder / CONFIG).read_text()))
    except UNREADABLE:
        return None


def read_overrides(folder: Path) -> list[str]:
    """What was typed for the run in a folder, as Hydra kept it; nothing where that cannot be read."""
    try:
        return [str(word) for word in yaml.safe_load((folder / OVERRIDES).read_text())]
    except UNREADABLE:
        return []


def runs_below(folder: Path, having: str = SUMMARY) -> list[Path]:
    """The folders at or below a folder that have a file of this name, the newest file first."""
    files = sorted(folder.rglob(having), key=lambda file: file.stat().st_mtime, reverse=True)
    return [file.parent for file in files]


def cut_back(folder: Path, step: int, metrics_bytes: int) -> None:
    """Take away what a run wrote down after its checkpoint; it will be written again, the same."""
    metrics = folder / METRICS
    with writing(metrics):
        whole = metrics.read_bytes()[:metrics_bytes] if metrics.exists() else b""
        write(metrics, whole[: whole.rfind(b"\n") + 1])
        for picture in (folder / IMAGES).glob("*_*.png"):
            drawn = picture.stem.rpartition("_")[2]
            if drawn.isdigit() and (int(drawn) > step or picture.name.startswith("test_")):
                picture.unlink()


def clear(folder: Path) -> None:
    """Take away what an earlier run left in the folder of a new one."""
    for stale in (IMAGES, METRICS, LAST, PREVIOUS, BEST, SUMMARY):
        path = folder / stale
        with writing(path):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


@contextlib.contextmanager
def only_process(folder: Path) -> Iterator[None]:
    """Hold the folder for this process; the system lets go of it when the process ends, however it ends.

    Raises UserError naming the process that holds it already.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("a+")
    with lock:
        if not _locked(lock):
            raise _taken(folder, lock)
        with contextlib.suppress(OSError):  # the number is for people; a full disk may refuse it
            lock.truncate(0)
            lock.write(f"{os.getpid()}\n")
            lock.flush()
        yield


def require_no_owner(folder: Path) -> None:
    """Raises UserError where another process holds the folder; it holds nothing itself."""
    with contextlib.suppress(OSError), (folder / LOCK).open("r+") as lock:
        if not _locked(lock):
            raise _taken(folder, lock)


def _taken(folder: Path, lock: TextIO) -> UserError:
    lock.seek(0)
    return UserError(f"{folder}: process {lock.read().strip() or '?'} is training in this folder just now.")


def _locked(lock: TextIO) -> bool:
    """Whether this process now holds the lock. Where there are no locks nothing can be told, so it does."""
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True
