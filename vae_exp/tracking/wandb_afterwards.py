"""Logging to W&B after a run: its evaluation, and the table and figures of a sweep."""

import hashlib
import logging
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from vae_exp.compare.runs import is_number
from vae_exp.config.check import as_typed
from vae_exp.config.keys import Config, WandbKeys
from vae_exp.tracking.wandb_options import as_id, common, first_line, group, new_id, tags, tags_of_sweep
from vae_exp.tracking.wandb_server import choose_mode, from_environment
from vae_exp.training.folder import Summary, read_summary

log = logging.getLogger(__name__)
SWEEP_SUMMARY = "sweep-summary"  # the job type of the run that has a sweep's table and figures


def record_evaluation(
    wandb_mode: str, run_dir: Path, config: Config, values: dict[str, Any], pictures: dict[str, Path]
) -> str | None:
    """Add numbers and pictures to a run's W&B run, or, if that cannot be reopened, to a run in its group.

    wandb_mode is wandb.mode; auto means the mode in which the run itself was logged. Return what was done, in words, or
    None if nothing was logged.
    """
    summary = read_summary(run_dir)
    if summary is None or summary.name is None:  # a checkpoint that was taken out of its run's folder
        return None
    is_disabled = wandb_mode == "auto" and from_environment() == "disabled"
    mode = "disabled" if is_disabled else choose_mode(summary.wandb.mode if wandb_mode == "auto" else wandb_mode)
    if mode == "disabled":
        return None
    import wandb

    keys = cast("WandbKeys", dict.fromkeys(WandbKeys.__annotations__) | config.get("wandb", {}))
    reopened: dict[str, Any] = {"id": summary.wandb.id, "resume": "must"}
    beside: dict[str, Any] = {
        "id": _id_beside(summary, run_dir),
        "resume": "allow",
        "name": f"evaluate {summary.name}",
        "group": group(config, summary.name, summary.wandb),
        "tags": tags(config, summary.wandb),
        "job_type": "evaluate",
        "config": config,
    }
    can_reopen = mode == "online" and summary.wandb.id and summary.wandb.url
    for options in [reopened, beside] if can_reopen else [beside]:
        try:
            with wandb.init(mode=mode, **common(keys, summary.wandb), **options) as run:
                run.summary.update(values)
                if pictures:
                    run.log({name: wandb.Image(str(path)) for name, path in pictures.items()})
            where = os.path.relpath(Path(run.dir).parent) if run.offline else run.url
            if options is reopened:
                return f"run {run.id}, {where}"
            if run.offline:
                _remove_earlier(Path(run.dir).parent, beside["id"])
            return f"{run.name!r} in group {run.group}, {where}"
        except Exception as error:  # see Tracker._open_wandb
            log.warning("W&B: the evaluation could not be logged (%s).", first_line(error))
    return None


def _id_beside(summary: Summary, run_dir: Path) -> str:
    """Return an id that is the same for every evaluation of a run, so that W&B joins them."""
    run = summary.wandb.id or run_dir.resolve()
    return f"{as_id(f'evaluate-{summary.name}')}-{hashlib.sha256(os.fsencode(run)).hexdigest()[:6]}"


def _remove_earlier(folder: Path, run_id: str) -> None:
    """Remove the folders of earlier evaluations of the same run, whose numbers the new one has too."""
    of_this_run = re.compile(rf"offline-run-\d+_\d+-{re.escape(run_id)}(-\d+)?")  # the last for two of one second
    for earlier in folder.parent.iterdir():
        if of_this_run.fullmatch(earlier.name) and earlier.name != folder.name:
            shutil.rmtree(earlier, ignore_errors=True)


def publish_sweep(
    name: str,
    keys: WandbKeys,
    folders: list[Path],
    columns: list[str],
    rows: list[list[Any]],
    figures: list[Path],
    results: dict[str, Any],
) -> None:
    """Log the table and figures of a sweep as one W&B run, sweep-summary, in the sweep's group, with its runs' tags."""
    mode = choose_mode(keys["mode"])
    if mode == "disabled":
        return
    import wandb

    known = [summary.wandb for folder in folders if (summary := read_summary(folder)) is not None]
    options: dict[str, Any] = {
        "id": new_id(f"{SWEEP_SUMMARY}-{name}"),
        "name": f"{SWEEP_SUMMARY} {name}",
        "group": keys["group"] or name,
        "tags": tags_of_sweep(keys, known),
        "job_type": SWEEP_SUMMARY,
    }
    table = wandb.Table(columns=[*columns], data=[*zip(*map(_of_one_type, zip(*rows, strict=True)), strict=True)])
    try:
        with wandb.init(mode=mode, **common(keys), **options) as run:
            run.log({"sweep/table": table})
            run.log({f"sweep/{figure.stem}": wandb.Image(str(figure)) for figure in figures})
            run.summary.update(results)
    except Exception as error:  # see Tracker._open_wandb
        log.warning("W&B: the sweep's summary could not be logged (%s).", first_line(error))


def _of_one_type(column: Sequence[Any]) -> list[Any]:
    """Return a column as W&B's tables take it: numbers, texts or booleans, else all of it as it would be typed."""
    for kind in (bool, str):
        if all(value is None or isinstance(value, kind) for value in column):
            return [*column]
    if all(value is None or is_number(value) for value in column):
        return [*column]
    return [None if value is None else as_typed(value) for value in column]
