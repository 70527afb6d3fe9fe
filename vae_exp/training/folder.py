"""The content of a run's folder, and who may write there. Everything here answers without importing torch."""

import contextlib
import os
import shlex
import sys
from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TextIO

from vae_exp.config.check import CALLS, as_argument, shortened
from vae_exp.config.foreign import own_words, trusting
from vae_exp.config.moved import renamed
from vae_exp.errors import UserError, printable
from vae_exp.files import no_links, partial_of, read_json, read_yaml, require_no_links, write_json, writing

OUTPUTS = Path("outputs")
BEST, LAST, PREVIOUS = "best.pt", "last.pt", "last.previous.pt"
SUMMARY, CONFIG, METRICS, IMAGES, LOCK = "summary.json", "config.yaml", "metrics.jsonl", "images", "lock"
LOG = "train.log"
MODEL = ("network", "likelihood", "dataset")  # the groups that are built to use a trained model
EARLIER, GENERATED = "earlier", "generated"
RESULT = "reproduced.json"  # of vae-reproduce: what is claimed of this run, and what was found
FIRST_FILES_BYTES = 2**14  # of .hydra/, config.yaml and summary.json together
OVERRIDES, OF_HYDRA = Path(".hydra", "overrides.yaml"), Path(".hydra", "hydra.yaml")
# What a run writes, moves or takes away, and what its evaluations and pictures are.
OF_A_RUN = (
    *(BEST, LAST, PREVIOUS, SUMMARY, CONFIG, METRICS, LOG, LOCK, RESULT),
    *(".hydra", IMAGES, EARLIER, GENERATED),
)
MULTIRUN = "multirun.yaml"  # in a sweep's folder: what was typed for all of its jobs
UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError)  # a file of ours, or what it holds


@dataclass(frozen=True)
class WandbRun:
    """The W&B run that a run was logged to, and its place there; no id if W&B was disabled."""

    mode: str = "disabled"
    id: str | None = None
    dir: str | None = None
    url: str | None = None
    project: str | None = None
    entity: str | None = None
    group: str | None = None
    tags: list[str] | None = None


@dataclass
class Summary:
    """The content of summary.json: the state of a run or how it ended, and its results."""

    state: str  # running, finished, pruned, interrupted or failed
    reason: str | None = None
    name: str | None = None  # the run's name in W&B
    wandb: WandbRun = field(default_factory=WandbRun)
    seconds: float = 0.0  # over all parts of the run
    results: dict[str, Any] = field(default_factory=dict)  # best/val_neg_elbo, test/kl, parameters, ...

    @property
    def finished(self) -> bool:
        return self.state == "finished"

    @property
    def is_done(self) -> bool:
        """Return whether its sweep has nothing more to do for it."""
        return self.state in ("finished", "pruned")

    @property
    def score(self) -> float | None:
        """Return the number that a sweep compares: the best validation neg_elbo.

        Without validation images it is the test's.
        """
        return self.results.get("best/val_neg_elbo", self.results.get("test/neg_elbo"))

    def as_dict(self) -> dict[str, Any]:
        """Return the summary as it is written: the results beside the rest."""
        fields = asdict(self)
        return fields | fields.pop("results")

    def write(self, folder: Path) -> None:
        """Write summary.json. Raises Unwritable if the system refuses."""
        write_json(folder / SUMMARY, self.as_dict())


def read_summary(folder: Path) -> Summary | None:
    """Read the summary of the run in a folder; None if there is none, or none that can be read."""
    try:
        content = read_json(folder / SUMMARY)
        known = {name: content.pop(name) for name in ("state", "reason", "name", "seconds") if name in content}
        if not all(isinstance(known.get(name), str | None) for name in ("reason", "name")):
            raise TypeError("its reason and its name are texts")
        return Summary(**known, wandb=_wandb_run(content.pop("wandb", None)), results=content)
    except UNREADABLE:
        return None


def _wandb_run(stored: Any) -> WandbRun:
    """Return what is known of a W&B run; another version may have written more of it, or less."""
    known = stored if isinstance(stored, dict) else {}
    sound: dict[str, Any] = {name: value for name, value in known.items() if name != "tags" and isinstance(value, str)}
    if isinstance(tags := known.get("tags"), list) and all(isinstance(tag, str) for tag in tags):
        sound["tags"] = tags
    return WandbRun(**{each.name: sound[each.name] for each in fields(WandbRun) if each.name in sound})


def read_config(folder: Path) -> dict[str, Any] | None:
    """Read the configuration of the run in a folder, by today's names; None if none can be read."""
    try:
        return renamed(read_yaml(folder / CONFIG))
    except UNREADABLE:
        return None


def read_hydra(folder: Path) -> dict[str, Any]:
    """Return Hydra's own part of the configuration of the run in a folder, or of its sweep, as it lies there."""
    for path in (folder / OF_HYDRA, folder / MULTIRUN):
        with contextlib.suppress(*UNREADABLE):
            return dict(read_yaml(path)["hydra"])
    return {}


def read_choices(folder: Path) -> dict[str, str]:
    """Return the options of groups that the run in a folder has, by group."""
    runtime = read_hydra(folder).get("runtime")
    choices = runtime.get("choices") if isinstance(runtime, dict) else None
    return {str(group): str(option) for group, option in choices.items()} if isinstance(choices, dict) else {}


def config_dir(folder: Path) -> list[str]:
    """Return --config-dir with its folder, as it was typed for the run or the sweep in a folder, or nothing."""
    path = read_hydra(folder).get("searchpath")
    only = str(path[0]) if isinstance(path, list) and len(path) == 1 else ""
    return ["--config-dir", only.removeprefix("file://")] if only.startswith("file://") else []


def on_resume(folder: Path, *more: str) -> str:
    """Return the command that goes on with the run in a folder, as a shell takes it."""
    words = [*map(shlex.quote, config_dir(folder)), as_argument("resume", folder), *_trust(folder, CALLS), *more]
    return " ".join(["vae-train", *words])


def on_checkpoint(program: str, folder: Path) -> str:
    """Return the command of a program that takes the run's best.pt, as a shell takes it."""
    return " ".join([program, as_argument("checkpoint", folder), *_trust(folder, MODEL)])


def _trust(folder: Path, groups: Iterable[str]) -> list[str]:
    return trusting(read_config(folder) or {}, groups)


def read_overrides(folder: Path, of_sweep: bool = False, typed: Collection[str] = ()) -> list[str] | None:
    """Return what was typed for the run, or for the sweep, in a folder, as Hydra kept it; None where it is unreadable.

    The folder may be a stranger's: what a stranger may not say is left out, with a line that says so, unless it is
    also `typed` now.
    """
    from vae_exp.training.console import say

    path = folder / (MULTIRUN if of_sweep else OVERRIDES)
    try:
        stored = read_yaml(path)
        lists = [stored["hydra"]["overrides"][kind] for kind in ("hydra", "task")] if of_sweep else [stored]
        kept, dropped = own_words([str(word) for words in lists for word in words], typed)
    except UNREADABLE:
        return None
    if of_sweep and config_dir(folder):  # which commands have in its place
        dropped = [word for word in dropped if not word.startswith("hydra.searchpath=")]
    if dropped:
        left_out = " ".join(map(printable, dropped))
        say(f"not taken from {printable(path)}: {shortened(left_out)}. Type it again where you want it.", sys.stderr)
    return kept


def runs_below(folder: Path, *having: str) -> list[Path]:
    """Return the folders at or below a folder that have a file of these names (summary.json), newest file first."""
    times: dict[Path, int] = {}
    for name in having or (SUMMARY,):
        for file in folder.rglob(name):
            with contextlib.suppress(OSError):  # another process has taken it away meanwhile
                times[file.parent] = max(times.get(file.parent, 0), file.stat().st_mtime_ns)
    return sorted(times, key=lambda run: (times[run], str(run)), reverse=True)


def newest(*having: str) -> Path | None:
    """Return the run in outputs whose file of these names is the newest, which `latest` means, or None.

    Copies of W&B's artifacts lie in outputs too and are no runs: they have no summary.
    """
    runs = (run for run in runs_below(OUTPUTS, *having) if (run / SUMMARY).is_file())
    return next(runs, None)


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Hold the folder for this process inside the block; the system releases it however the process ends.

    Raises UserError naming the process that holds it already.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / LOCK, "a+", opener=no_links)  # noqa: SIM115
    with lock:
        if not _locked(lock):
            raise _taken(folder, lock)
        with contextlib.suppress(OSError):  # the number is for people; a full disk may refuse it
            lock.truncate(0)
            lock.write(f"{os.getpid()}\n")
            lock.flush()
        yield


def require_writable(folder: Path) -> None:
    """Raise Unwritable if a run could not write its first files in a folder; leave nothing there itself.

    It is called before Hydra writes there, whose own complaint would be a traceback, and which follows links. Raises
    UserError if one of the run's files or folders is a link.
    """
    if "${" in str(folder):  # Hydra would look for what it refers to
        raise UserError(f"{folder}: a run's folder may have no ${{ in its name.")
    require_no_links(folder, OF_A_RUN)
    for name in (BEST, LAST, PREVIOUS, SUMMARY, CONFIG, METRICS, LOG):
        if (folder / name).exists() and not (folder / name).is_file():
            raise UserError(f"{folder / name}: not a file, and a run writes one of this name. Take it away first.")
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    trial = partial_of(folder / LOG)
    try:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        with writing(folder / LOG):
            trial.write_bytes(bytes(FIRST_FILES_BYTES))
            if (folder / LOG).exists():
                (folder / LOG).open("ab").close()
    finally:
        with contextlib.suppress(OSError):
            trial.unlink(missing_ok=True)
        for made in missing:
            with contextlib.suppress(OSError):  # it was never made, or another job of a sweep has its folder there
                made.rmdir()


def require_no_owner(folder: Path) -> None:
    """Raise UserError if another process holds the folder; the folder is not held afterwards."""
    with contextlib.suppress(OSError), open(folder / LOCK, "r+", opener=no_links) as lock:
        if not _locked(lock):
            raise _taken(folder, lock)


def _taken(folder: Path, lock: TextIO) -> UserError:
    lock.seek(0)
    return UserError(f"{folder}: process {lock.read().strip() or '?'} is training in this folder just now.")


def _locked(lock: TextIO) -> bool:
    """Return whether this process now holds the lock.

    Without locks in the system nothing can be known, so the answer is yes.
    """
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
