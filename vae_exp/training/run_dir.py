"""A run's folder: names of its files, lock, clean-up, and where it was started."""

import contextlib
import logging
import os
import shlex
import shutil
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TextIO

from vae_exp.config.checks import CALLS, OWN_IMAGES, as_argument, flatten
from vae_exp.config.migrations import renamed
from vae_exp.config.targets import own_words, trusting
from vae_exp.errors import UserError, printable, shortened
from vae_exp.files import (
    cache_folder,
    no_links,
    partial_of,
    read_json,
    read_json_lines,
    read_yaml,
    require_no_links,
    write,
    write_json,
    writing,
)
from vae_exp.training.console import say

log = logging.getLogger(__name__)
OUTPUTS, LATEST = Path("outputs"), "latest"  # where runs are, and what means the newest of them
LAST, PREVIOUS, BEST = CHECKPOINTS = "last.pt", "last.previous.pt", "best.pt"
SUMMARY, CONFIG, METRICS, IMAGES, LOCK = "summary.json", "config.yaml", "metrics.jsonl", "images", "lock"
LOG = "train.log"
EARLIER, GENERATED = "earlier", "generated"
RESULT = "reproduced.json"  # of vae-reproduce: what is claimed of this run, and what was found
PRUNED = "pruned"  # the state of a run that its sweep ended early: its numbers are of fewer epochs
OVERRIDES, HYDRA = Path(".hydra", "overrides.yaml"), Path(".hydra", "hydra.yaml")
MULTIRUN = "multirun.yaml"  # in a sweep's folder: what was typed for all of its jobs
FILES = (*CHECKPOINTS, SUMMARY, CONFIG, METRICS, LOG)
# What a run writes, moves or takes away, and what its evaluations and pictures are.
ENTRIES = (*FILES, LOCK, RESULT, ".hydra", IMAGES, EARLIER, GENERATED)
FIRST_FILES_BYTES = 2**14  # of .hydra/, config.yaml and summary.json together
UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError)  # a file of ours, or what it holds

# The keys and groups that a run may change on its way.
MAY_CHANGE = (
    "epochs", "max_steps", "max_minutes", "early_stopping", "resume", "rerun", "trust", "replace",
    "init_from", "init_from_partial", "device", "devices", "threads", "precision", "compile", "wandb", "sweep",
    "log_every_steps", "figures", "figure_every_epochs", "scores", "scores_every_epochs",
    "checkpoint_every_epochs", "checkpoint_every_steps", "checkpoint_every_minutes",
    "dataset.root", "dataset.cache", "dataset.device_memory",
)  # fmt: skip
LENGTH = ("epochs", "max_steps", "max_minutes", "early_stopping.patience")  # what gives a finished run more to do
MODEL = ("network", "posterior", "prior", "likelihood", "dataset")  # the groups that are built to use a trained model


def contradictions(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the keys whose values differ and may not, with both values."""
    before, now = flatten(before), flatten(now)
    may_change = tuple(f"{key}." for key in MAY_CHANGE)
    values = [(key, now.get(key, "not there"), before.get(key, "not there")) for key in {**before, **now}]
    fixed = [(key, new, old) for key, new, old in values if not f"{key}.".startswith(may_change)]
    return [f"{key}={new}: the run has {key}={old}" for key, new, old in fixed if new != old]


@dataclass(frozen=True)
class WandbRun:
    """Name the W&B run that a run was logged to, and its place there; no id if W&B was disabled."""

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
    """Hold the content of summary.json: the state of a run or how it ended, and its results."""

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
        return self.state in ("finished", PRUNED)

    @property
    def score(self) -> float | None:
        """Return the neg_elbo of the validation images at the best epoch, or of the test images without validation."""
        return self.results.get("best/val_neg_elbo", self.results.get("test/neg_elbo"))

    def as_dict(self) -> dict[str, Any]:
        values = asdict(self)
        return values | values.pop("results")

    def write(self, folder: Path) -> None:
        write_json(folder / SUMMARY, self.as_dict())


def read_summary(folder: Path) -> Summary | None:
    """Read the summary of the run in a folder; None if there is none, or none that can be read."""
    try:
        content = read_json(folder / SUMMARY)
        known = {name: content.pop(name) for name in ("state", "reason", "name", "seconds") if name in content}
        texts = all(isinstance(known.get(name), str | None) for name in ("reason", "name"))
        if not texts or not isinstance(content.get("environment"), dict | None):
            return None
        return Summary(**known, wandb=_wandb_run(content.pop("wandb", None) or {}), results=content)
    except UNREADABLE:
        return None


def _wandb_run(stored: dict[str, Any]) -> WandbRun:
    """Return what is known of a W&B run; another version may have written more of it, or less."""
    texts = {key.name: stored[key.name] for key in fields(WandbRun) if isinstance(stored.get(key.name), str)}
    tags = stored.get("tags")
    is_list = isinstance(tags, list) and all(isinstance(tag, str) for tag in tags)
    return WandbRun(**texts | {"tags": tags if is_list else None})


def read_config(folder: Path) -> dict[str, Any] | None:
    """Read the configuration of the run in a folder, by today's names; None if none can be read."""
    try:
        return renamed(read_yaml(folder / CONFIG))
    except UNREADABLE:
        return None


def read_hydra(folder: Path) -> dict[str, Any]:
    """Return Hydra's own part of the configuration of the run in a folder, or of its sweep, as it lies there."""
    for path in (folder / HYDRA, folder / MULTIRUN):
        with contextlib.suppress(*UNREADABLE):
            return dict(read_yaml(path)["hydra"])
    return {}


def read_choices(folder: Path) -> dict[str, str]:
    try:
        return {str(group): str(option) for group, option in read_hydra(folder)["runtime"]["choices"].items()}
    except UNREADABLE:
        return {}


def config_dir(folder: Path) -> list[str]:
    """Return --config-dir with its folder, as it was typed for the run or the sweep in a folder, or nothing."""
    match read_hydra(folder).get("searchpath"):
        case [str(path)] if path.startswith("file://"):
            return ["--config-dir", path.removeprefix("file://")]
    return []


def on_resume(folder: Path, *more: str) -> str:
    """Return the command that goes on with the run in a folder, as a shell takes it."""
    words = [*map(shlex.quote, config_dir(folder)), as_argument("resume", folder)]
    return " ".join(["vae-train", *words, *trusting(read_config(folder) or {}, CALLS), *more])


def on_checkpoint(program: str, folder: Path, name: str | None = None) -> str:
    """Return the command of a program that takes the run's best.pt, by a `name` such as latest, as a shell takes it."""
    return " ".join([program, as_argument("checkpoint", name or folder), *trusting(read_config(folder) or {}, MODEL)])


def read_overrides(folder: Path, of_sweep: bool = False, typed: Collection[str] = ()) -> list[str] | None:
    """Return the overrides of a run or a sweep, without a stranger's that are not `typed` now; None if unreadable."""
    path = folder / (MULTIRUN if of_sweep else OVERRIDES)
    try:
        stored = read_yaml(path)
        lists = [stored["hydra"]["overrides"][kind] for kind in ("hydra", "task")] if of_sweep else [stored]
        words = [str(word) for words in lists for word in words]
    except UNREADABLE:
        return None
    if of_sweep and config_dir(folder):  # which commands have in its place
        words = [word for word in words if word in typed or not word.startswith("hydra.searchpath=")]
    return accept(path, words, typed)


def accept(path: Path, stored: list[str], typed: Collection[str]) -> list[str]:
    """Return the overrides from a file without a stranger's that are not `typed` now, and print which those are."""
    overrides, dropped = own_words(stored, typed)
    if dropped:
        words = shortened(" ".join(map(printable, dropped)))
        say(f"not taken from {printable(path)}: {words}. Type it again where you want it.", sys.stderr)
    return overrides


def runs_below(folder: Path, *names: str) -> list[Path]:
    """Return the folders at or below a folder that have a file of these names (summary.json), newest file first."""
    times: dict[Path, int] = {}
    for name in names or (SUMMARY,):
        for file in folder.rglob(name):
            with contextlib.suppress(OSError):  # another process has taken it away meanwhile
                times[file.parent] = max(times.get(file.parent, 0), file.stat().st_mtime_ns)
    return sorted(times, key=lambda run: (times[run], str(run)), reverse=True)


def newest(*names: str) -> Path | None:
    """Return the run in outputs whose file of these names is the newest, which `latest` means, or None."""
    # Copies of W&B's artifacts lie there too and are no runs: they have no summary.
    return next((run for run in runs_below(OUTPUTS, *names) if (run / SUMMARY).is_file()), None)


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Hold the folder for this process inside the block. Raises UserError naming the process that holds it already."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / LOCK, "a+", opener=no_links)  # noqa: SIM115
    with lock:
        _lock(lock, folder)
        with contextlib.suppress(OSError):  # the number is for people; a full disk may refuse it
            lock.truncate(0)
            lock.write(f"{os.getpid()}\n")
            lock.flush()
        yield


def require_no_owner(folder: Path) -> None:
    """Raise UserError if another process holds the folder; the folder is not held afterwards."""
    with contextlib.suppress(OSError), open(folder / LOCK, "r+", opener=no_links) as lock:
        _lock(lock, folder)


def _lock(file: TextIO, folder: Path) -> None:
    """Lock a folder's file until it is closed. Raises UserError naming the process that has locked it already."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        pid = file.read().strip() or "?"
        raise UserError(f"{folder}: process {pid} is training in this folder just now.") from None
    except (ImportError, OSError):  # Windows, or a file system without locks
        pass


def require_writable(folder: Path) -> None:
    """Raise Unwritable if a run could not write its first files in a folder, and UserError if it has links."""
    if "${" in str(folder):  # Hydra would look for what it refers to
        raise UserError(f"{folder}: a run's folder may have no ${{ in its name.")
    require_no_links(folder, ENTRIES)
    for name in FILES:
        if (folder / name).exists() and not (folder / name).is_file():
            raise UserError(f"{folder / name}: not a file, and a run writes one of this name. Take it away first.")
    with writing(folder / LOG):
        parent = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        trial = partial_of(parent / LOG)
        try:
            trial.write_bytes(bytes(FIRST_FILES_BYTES))
        finally:
            trial.unlink(missing_ok=True)
    if (folder / LOG).exists():
        with writing(folder / LOG):
            (folder / LOG).open("ab").close()


def holds_run(folder: Path) -> bool:
    """Return whether the folder has anything of a run to lose; one that failed at once has left only its reason."""
    if any((folder / name).is_file() for name in CHECKPOINTS):
        return True
    metrics, summary = folder / METRICS, read_summary(folder)
    return (metrics.is_file() and metrics.stat().st_size > 0) or (summary is not None and summary.finished)


def remove_unopened(folder: Path, old_log_bytes: int) -> bool:
    """Remove the folder of a run that ended before it was opened, if Hydra alone wrote to it; return whether it did."""
    with contextlib.suppress(OSError):  # there is something else in a folder above
        has_more = any(path.name not in (".hydra", LOG) for path in folder.iterdir())
        if old_log_bytes or has_more or Path.cwd().is_relative_to(folder.absolute()):
            return False
        shutil.rmtree(folder / ".hydra", ignore_errors=True)
        (folder / LOG).unlink(missing_ok=True)
        for path in (folder, *(path for path in folder.parents if OUTPUTS in path.parents)):
            path.rmdir()
    return not folder.exists()


def require_unused(folder: Path, replace: bool) -> None:
    """Raise UserError if a new run would take the place of another and replace=true was not given."""
    if not replace and holds_run(folder):
        raise UserError(
            f"hydra.run.dir={folder}: there is a run in this folder. resume={folder} resumes it, another "
            "hydra.run.dir keeps both, replace=true deletes it."
        )


def log_bytes(folder: Path) -> int:
    """Return the size of train.log before a run has logged anything: clear removes the bytes up to there."""
    path = folder / LOG
    return path.stat().st_size if path.is_file() else 0


def clear(folder: Path, old_log_bytes: int) -> None:
    """Remove all that an earlier run left in the folder of a new one, and the first `old_log_bytes` of train.log."""
    results = [path for name in CHECKPOINTS for path in _results(folder, name)]
    old = [folder / name for name in (IMAGES, GENERATED, EARLIER, RESULT, METRICS, *CHECKPOINTS)]
    for path in [*results, *_partials(folder), *old, folder / SUMMARY]:  # until the summary is gone it is a run
        with writing(path):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    if old_log_bytes:
        with writing(folder / LOG), (folder / LOG).open("r+b") as file:  # the same file: Hydra holds it open
            new = file.read()[old_log_bytes:]
            file.seek(0)
            file.write(new)
            file.truncate()


def truncate_metrics(folder: Path, step: int, metrics_bytes: int) -> None:
    """Remove what a run wrote after its checkpoint; it will be written again, the same."""
    metrics = folder / METRICS
    with writing(metrics):
        for partial in _partials(folder):
            partial.unlink()
        rows = metrics.read_bytes()[:metrics_bytes] if metrics.is_file() else b""
        write(metrics, rows[: rows.rfind(b"\n") + 1])
        if len(rows) < metrics_bytes or len([*read_json_lines(metrics)]) < len(rows.splitlines()):
            log.warning(f"{metrics}: rows from before step {step:,} are lost or damaged; the weights are not.")
        for figure in (folder / IMAGES).glob("*_*.png"):
            at_step = figure.stem.rpartition("_")[2]
            if at_step.isdigit() and (int(at_step) > step or figure.name.startswith("test_")):
                figure.unlink()


def _partials(folder: Path) -> list[Path]:
    """Return what killed processes left of the files that only the folder's one process writes."""
    return [*(path for name in FILES for path in folder.glob(f"{name}*.partial")), *(folder / IMAGES).glob("*.partial")]


def archive_evaluations(folder: Path, checkpoint: str, epoch: int) -> None:
    """Move evaluations of a checkpoint, and pictures of best.pt, to earlier/epoch-N before it gets other weights."""
    generated = [folder / GENERATED, *(folder / GENERATED).rglob("*")] if checkpoint == BEST else []
    for path in [*_results(folder, checkpoint), *generated]:
        if path.is_file():
            target = folder / EARLIER / f"epoch-{epoch}" / path.relative_to(folder)
            with writing(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                path.replace(target)
    with contextlib.suppress(OSError):  # another process draws just now
        for path in sorted(generated, reverse=True):
            if path.is_dir():
                path.rmdir()


def _results(folder: Path, checkpoint: str) -> list[Path]:
    """Return the files measured of a checkpoint or fitted to it, such as best.test.json and best.gmm.npz beside it."""
    return [file for kind in ("json", "npz") for file in folder.glob(f"{Path(checkpoint).stem}.*.{kind}")]


@dataclass(frozen=True)
class Origin:
    """Hold the place of dataset.root, absolute and from the run's folder, and the record of the data's fingerprint."""

    root: str | None  # None here and below of data that lie nowhere
    from_run: str | None
    data: dict[str, Any]


def available_roots(dataset: Mapping[str, Any], origin: Origin | None, run_dir: Path | None) -> list[str]:
    """Return the roots at which something lies, the likeliest first. Raises UserError if own images lie at none."""
    paths, target = data_roots(dataset, origin, run_dir), str(dataset.get("_target_"))
    available = [path for path in paths if os.path.exists(os.path.expanduser(path))]  # noqa: PTH110, PTH111  (never raise)
    if available or not paths:
        return available
    if target in OWN_IMAGES:
        raise UserError(
            f"dataset.root={paths[0]}: the data of the run are not there"
            f"{''.join(f', nor at {path}' for path in paths[1:])}. Say where they lie now: dataset.root=PATH."
        )
    return paths[-1:] if target.startswith("vae_exp.") else paths[:1]


def data_roots(dataset: Mapping[str, Any], origin: Origin | None, run_dir: Path | None) -> list[str]:
    """Return where the data of a run may lie, the likeliest first: where they lay, or as far from where the run is now.

    A relative root is of an older version, without an origin; Hydra's own record says where it was typed.
    """
    root, target = dataset.get("root"), str(dataset.get("_target_"))
    if not isinstance(root, str):
        return []
    if origin is not None:
        paths, from_run = [root, *([origin.root] if origin.root else [])], origin.from_run
    else:
        cwd, old_run_dir = _hydra_folders(run_dir)
        now = (read_config(run_dir) or {}).get("dataset") if run_dir else None  # best.pt may be older than config.yaml
        root = now["root"] if isinstance(now, dict) and isinstance(now.get("root"), str) else root
        paths = [str(cwd / os.path.expanduser(root))]  # noqa: PTH111
        from_run = os.path.relpath(paths[0], old_run_dir) if old_run_dir else None
    if run_dir is not None and from_run is not None:
        paths.append(os.path.normpath(run_dir.absolute() / from_run))
    if target.startswith("vae_exp.") and target not in OWN_IMAGES:  # to download: where conf/dataset/*.yaml say
        paths.append(os.environ.get("VAE_EXP_DATA") or str(cache_folder("").parent))
    return list(dict.fromkeys(paths))


def _hydra_folders(run_dir: Path | None) -> tuple[Path, Path | None]:
    """Return the folder in which a run was started and its own at that time, as far as Hydra's record says."""
    try:
        runtime = read_hydra(run_dir or Path())["runtime"]
        cwd, output_dir = Path(runtime["cwd"]), Path(runtime["output_dir"])
    except UNREADABLE:
        return Path(), None
    return (cwd, output_dir) if cwd.is_absolute() and output_dir.is_absolute() else (Path(), None)
