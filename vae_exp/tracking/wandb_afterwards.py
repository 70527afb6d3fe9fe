"""What is logged to W&B after a run: its evaluation, and the table and figures of a sweep."""

import logging
import os
from pathlib import Path
from typing import Any

from vae_exp.config.keys import Config, WandbKeys
from vae_exp.run.folder import read_summary
from vae_exp.tracking.wandb_options import common, first_line, new_id, text
from vae_exp.tracking.wandb_server import choose_mode

log = logging.getLogger(__name__)


def record_evaluation(wandb_mode: str, run_dir: Path, config: Config, values: dict[str, Any]) -> str | None:
    """Add numbers to the summary of a run's W&B run, or, where that cannot be reopened, to a run in its group.

    wandb_mode is wandb.mode; auto means as the run itself was logged. Returns what was done, in words.
    """
    summary = read_summary(run_dir)
    if summary is None or summary.name is None:  # a checkpoint that was taken out of its run's folder
        return None
    mode = choose_mode(summary.wandb.mode if wandb_mode == "auto" else wandb_mode)
    if mode == "disabled":
        return None
    import wandb

    reopened: dict[str, Any] = {"id": summary.wandb.id, "resume": "must"}
    beside: dict[str, Any] = {
        "id": new_id(f"evaluate-{summary.name}"),
        "name": f"evaluate {summary.name}",
        "group": text(config["wandb"]["group"] or config["sweep"]["name"]) or summary.name,
        "job_type": "evaluate",
        "config": config,
    }
    can_reopen = mode == "online" and summary.wandb.id and summary.wandb.url
    for options in [reopened, beside] if can_reopen else [beside]:
        try:
            with wandb.init(mode=mode, **common(config["wandb"]), **options) as run:
                run.summary.update(values)
                where = os.path.relpath(Path(run.dir).parent) if run.offline else run.url
                return (
                    f"run {run.id}, {where}" if options is reopened else f"{run.name!r} in group {run.group}, {where}"
                )
        except Exception as error:  # see Tracker._open_wandb
            log.warning("W&B: the evaluation could not be logged (%s).", first_line(error))
    return None


def publish_sweep(
    name: str, keys: WandbKeys, columns: list[str], rows: list[list[Any]], figures: list[Path], results: dict[str, Any]
) -> None:
    """The table and the figures of a sweep as one W&B run, sweep-summary, in the sweep's group."""
    mode = choose_mode(keys["mode"])
    if mode == "disabled":
        return
    import wandb

    options: dict[str, Any] = {
        "id": new_id(f"sweep-summary-{name}"),
        "name": f"sweep-summary {name}",
        "group": keys["group"] or name,
        "job_type": "sweep-summary",
    }
    try:
        with wandb.init(mode=mode, **common(keys), **options) as run:
            run.log({"sweep/table": wandb.Table(columns=[*columns], data=rows)})
            run.log({f"sweep/{figure.stem}": wandb.Image(str(figure)) for figure in figures})
            run.summary.update(results)
    except Exception as error:  # see Tracker._open_wandb
        log.warning("W&B: the sweep's summary could not be logged (%s).", first_line(error))
