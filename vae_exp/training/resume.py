"""Find the run to resume."""

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

from vae_exp.config import targets
from vae_exp.config.checks import CALLS, OWN_IMAGES, as_typed, flatten, groups, literal, path_of, resolve
from vae_exp.config.compose import compose, parse, without_hydra
from vae_exp.config.migrations import renamed
from vae_exp.config.schema import Config, is_path
from vae_exp.errors import UserError, printable
from vae_exp.files import expand
from vae_exp.training.console import say
from vae_exp.training.run_dir import (
    CONFIG,
    LAST,
    LATEST,
    LENGTH,
    OUTPUTS,
    PREVIOUS,
    SUMMARY,
    UNREADABLE,
    accept,
    available_roots,
    contradictions,
    newest,
    read_config,
    read_overrides,
    read_summary,
    require_no_owner,
    runs_below,
)

if TYPE_CHECKING:  # the command line asks before torch is imported
    from vae_exp.training.checkpoints import Checkpoint

log = logging.getLogger(__name__)


def find(path_or_latest: str) -> Path:
    """Return the run folder that resume=PATH or resume=latest means. Raises UserError if there is none to resume."""
    if path_or_latest == LATEST:
        run = newest(LAST, PREVIOUS)
        if run is None:
            raise UserError(f"resume=latest: there is no run in {OUTPUTS} with a {LAST}.")
        return run
    path = path_of("resume", path_or_latest)
    folder = path.parent if path.is_file() else path
    if not _has_checkpoint(folder):
        raise UserError(f"resume={path_or_latest}: no {LAST} there. Give a run's folder, its {LAST}, latest or auto.")
    return folder


def find_unfinished(config: Config, run_dir: Path) -> Path | None:
    """Return the run folder that resume=auto means: run_dir if it holds a run, else the newest unfinished run, or None.

    Raises UserError if run_dir belongs to another process, or to a run that is finished, damaged or configured else.
    """
    if any((run_dir / name).is_file() for name in (SUMMARY, LAST, PREVIOUS)):
        require_no_owner(run_dir)
        before = read_config(run_dir)
        _require_same(run_dir, _differences(before, config) if before else [])
        if _is_finished(run_dir):
            raise UserError(f"resume=auto: the run in {run_dir} is finished. resume={run_dir} epochs=... trains on.")
        path, _, reasons = _newest(run_dir)
        if reasons and path is None:
            raise _unreadable(run_dir, reasons)
        return run_dir if path else None
    for folder in _unfinished(config):
        path, _, reasons = _newest(folder)
        if path:
            return folder
        for reason in reasons:
            log.warning(reason)
    return None


def find_abandoned(config: Config) -> Path | None:
    """Return the newest run of this configuration that was killed before its first checkpoint, or None."""
    for folder in _unfinished(config):
        summary = read_summary(folder)
        if summary is not None and summary.state == "running" and not _has_checkpoint(folder):
            with contextlib.suppress(UserError):
                require_no_owner(folder)
                return folder
    return None


def _unfinished(config: Config) -> Iterator[Path]:
    """Yield the runs of this configuration that are not finished and no jobs of a sweep, the newest first."""
    for folder in runs_below(OUTPUTS):
        before = read_config(folder)
        is_one = before is not None and not flatten(before).get("sweep.jobs")
        if is_one and not _is_finished(folder) and not _differences(before or {}, config):
            yield folder


def _has_checkpoint(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (LAST, PREVIOUS))


def _is_finished(folder: Path) -> bool:
    summary = read_summary(folder)
    return summary is not None and summary.finished


def with_stored_overrides(overrides: list[str]) -> tuple[list[str], Path | None]:
    """Return the overrides with those of the run that resume=PATH names, and its folder, or them and None.

    Raises UserError if there is no such run, or if it names code that is neither typed nor trusted.
    """
    words = parse(overrides)
    named = [word for word in words if word.key_or_group == "resume" and word.value() not in (None, "auto")]
    if not named or named[-1].is_sweep_override():
        return overrides, None
    path = str(named[-1].value())
    folder = find(str(compose("config", overrides).resume) if "${" in path else path)
    before = stored_overrides(folder, overrides)
    if before is None:
        say(f"resume={printable(folder)}: {CONFIG} cannot be read there: type all that it was started with again.")
    keys = {word.key_or_group for word in words}
    stored = without(before or [], {"resume", "replace", "init_from", *keys})
    overrides = without(overrides, {"resume", "hydra.run.dir"})
    require_known(folder, stored, overrides, trusts(words))
    overrides = without(with_its_data(folder, [*stored, *overrides], keys), {"hydra.run.dir"})
    return [*overrides, f"resume={literal(folder)}"], folder


def stored_overrides(folder: Path, typed: list[str]) -> list[str] | None:
    """Return the overrides that a run was started with, of one from Python what its configuration comes to; or None."""
    before = read_overrides(folder, typed=typed)
    if before is None and (config := read_config(folder)):
        with contextlib.suppress(*UNREADABLE):
            before = accept(folder / CONFIG, _overrides_of(config), typed)
    return before


def trusts(words: Sequence[Override]) -> bool:
    return any(word.key_or_group == "trust" and word.value() is True for word in words)


def without(overrides: list[str], keys: set[str]) -> list[str]:
    """Return the overrides of all but these keys."""
    return [str(word.input_line) for word in parse(overrides) if word.key_or_group not in keys]


def _overrides_of(config: Mapping[str, Any]) -> list[str]:
    """Return overrides that compose a configuration; a group with other keys than its default's is set as a whole."""
    default = resolve(without_hydra(compose("config", [])))
    known = {group: default[group] for group in groups() if group in default}
    others = [group for group, settings in known.items() if flatten(settings).keys() != flatten(config[group]).keys()]
    old = flatten({key: value for key, value in default.items() if key not in others})
    changed = {key: value for key, value in flatten(config).items() if key not in old or old[key] != value}
    return [*(f"~{group}" for group in others), *(f"++{key}={_written(value)}" for key, value in changed.items())]


def _written(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(_written, value))}]"
    return literal(value) if isinstance(value, str) else as_typed(value)


def require_known(folder: Path, stored: list[str], overrides: list[str], trust: bool) -> None:
    """Raise UserError if a run's folder names code that is neither typed nor trusted; import what is trusted."""
    config = renamed(resolve(without_hydra(compose("config", [*stored, *overrides]))))
    known: targets.Trust = trust
    if not trust and targets.trusting(config):  # an option's file is vae_exp's, or in the --config-dir that was typed
        options = [word for word in stored if targets.is_group(parse([word])[0].key_or_group)]
        named = OmegaConf.to_container(without_hydra(compose("config", [*options, *overrides])), resolve=False)
        known = renamed(cast("dict[str, Any]", named))
    targets.check_foreign(config, *CALLS, trust=known, where=f"the run in {folder}")
    if trust:
        _, checkpoint, _ = _newest(folder)
        targets.find(config, CALLS, checkpoint.code if checkpoint else {})


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the contradictions for resume=auto, where another length, or own images elsewhere, is another run too."""
    wrong = contradictions(before, now)
    if before.get("epochs") != now["epochs"]:
        wrong.append(f"epochs={now['epochs']}: the run has epochs={before.get('epochs')}")
    start, file = now["init_from"], str(before.get("init_from"))
    if start != LATEST and str(start) not in (file, str(Path(file).parent)):
        wrong.append(f"init_from={start}: the run has init_from={file}")
    if now["dataset"]["_target_"] in OWN_IMAGES and not wrong:
        was, root = (expand(config["dataset"]["root"]) for config in (before, now))
        if was.exists() and was.resolve() != root.resolve():
            wrong.append(f"dataset.root={root}: the run has dataset.root={was}")
    return wrong


def require_unfinished(folder: Path, config: Config) -> None:
    """Raise UserError if a run is finished and config gives it no more to do, or if config contradicts it."""
    before, summary = read_config(folder), read_summary(folder)
    if before is None:
        return
    _require_same(folder, contradictions(before, config))
    same_length = all(flatten(before).get(key) == flatten(config).get(key) for key in LENGTH)
    is_shorter = config["epochs"] < before.get("epochs", 0) and not (summary and summary.reason)
    if summary is not None and summary.finished and (same_length or is_shorter):
        done = f"({summary.reason})" if summary.reason else f"after epoch {before.get('epochs')}"
        raise UserError(f"resume={folder}: the run is finished {done}. epochs=... with a larger number trains on.")


def with_its_data(folder: Path, overrides: list[str], typed_now: set[str]) -> list[str]:
    """Return the overrides of the run in a folder, with its data's present paths, except those typed now."""
    dataset = (read_config(folder) or {}).get("dataset")
    if not isinstance(dataset, dict) or {"dataset", "experiment"} & typed_now:
        return overrides
    paths: dict[str, str | None] = {}
    if "dataset.root" not in typed_now and (roots := _available_roots(dataset, folder)):
        paths["dataset.root"] = roots[0]
    if "dataset.cache" not in typed_now and is_path(cache := dataset.get("cache")):
        paths["dataset.cache"] = cache if expand(str(cache)).is_dir() else None  # as usual where it is gone
    others = [str(word.input_line) for word in parse(overrides) if word.key_or_group not in paths]
    return others + [f"++{key}={literal(path)}" for key, path in paths.items() if path is not None]


def _available_roots(dataset: Mapping[str, Any], folder: Path) -> list[str]:
    """Return where the data of a run lie, by Hydra's record, or else by its checkpoint: ~ may be another folder now."""
    try:
        return available_roots(dataset, None, folder)
    except UserError:
        _, checkpoint, _ = _newest(folder)
        if checkpoint is None or checkpoint.origin is None:
            raise
        return available_roots(dataset, checkpoint.origin, folder)


def is_resumable(folder: Path) -> bool:
    """Return whether the run in a folder has a readable checkpoint, and its best epoch."""
    from vae_exp.training.checkpointer import best_of

    _, checkpoint, _ = _newest(folder)
    with contextlib.suppress(UserError):
        return checkpoint is not None and (checkpoint.best is None or bool(best_of(folder, checkpoint)))
    return False


def _newest(folder: Path) -> "tuple[Path | None, Checkpoint | None, list[str]]":
    """Return the newest checkpoint that a run can go on from, with its path, and why newer ones cannot be used."""
    from vae_exp.training import checkpoints

    reasons: list[str] = []
    for path in (folder / LAST, folder / PREVIOUS):
        if not path.is_file():
            continue
        try:
            checkpoint = checkpoints.load(path)
            if checkpoint.resume is None:
                raise UserError(f"checkpoint={path}: holds a model, and not the state of a run.")
            return path, checkpoint, reasons
        except UserError as error:
            reasons.append(f"{error} It cannot be resumed from.")
    return None, None, reasons


def load(folder: Path, config: Config, quiet: bool = False) -> "Checkpoint":
    """Return the checkpoint to go on from; log what is damaged beside it, unless `quiet`. Raises UserError."""
    from vae_exp.training.checkpointer import best_of

    path, checkpoint, reasons = _newest(folder)
    if checkpoint is None:
        raise _unreadable(folder, reasons)
    _require_same(folder, contradictions(checkpoint.config, config))
    if checkpoint.best is not None:  # best.pt may be ahead of last.pt
        checkpoint = replace(checkpoint, best=best_of(folder, checkpoint)[0].best)
    if not quiet:
        for reason in reasons:
            log.warning(reason)
        log.info(f"resumes from {path}: step {checkpoint.step:,}, {checkpoint.epoch} epochs done")
    return checkpoint


def _unreadable(folder: Path, reasons: list[str]) -> UserError:
    return UserError(
        f"resume={folder}: no {LAST} that can be read is there, nor {PREVIOUS}. resume=null starts anew, in this "
        f"folder with replace=true.{''.join(f' {reason}' for reason in reasons)}"
    )


def _require_same(folder: Path, wrong: list[str]) -> None:
    if wrong:
        raise UserError("\n".join([f"resume={folder}: the configuration contradicts the run.", *wrong]))
