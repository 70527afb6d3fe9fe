"""What is logged to W&B after a run: its evaluation, and the table and figures of a sweep."""

import json
import logging
import os
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from vae_exp.online import choose_mode
from vae_exp.wandb_options import common, first_line, new_id, text

log = logging.getLogger(__name__)


def record_evaluation(asked: str, run_dir: Path, config: dict, values: dict[str, Any]) -> str | None:
    """Add numbers to the summary of a run's W&B run, or, where that cannot be reopened, to a run in its group.

    asked is wandb.mode; auto means as the run itself was logged. Returns what was done, in words.
    """
    try:
        logged = json.loads((run_dir / "summary.json").read_text())
        mode, name = logged["wandb"]["mode"] if asked == "auto" else asked, logged["name"]
    except (OSError, ValueError, KeyError, TypeError):  # a checkpoint that was taken out of its run's folder
        return None
    mode = choose_mode(mode)
    if mode == "disabled":
        return None
    import wandb

    again = {"id": logged["wandb"]["id"], "resume": "must"}
    group = text(config["wandb"]["group"] or config["sweep"]["name"]) or name
    apart = {
        "id": new_id(f"evaluate-{name}"),
        "name": f"evaluate {name}",
        "group": group,
        "job_type": "evaluate",
        "config": config,
    }
    for options in [again, apart] if mode == "online" and again["id"] and logged["wandb"]["url"] else [apart]:
        try:
            with wandb.init(mode=mode, **common(config["wandb"]), **options) as run:
                run.summary.update(values)
                found = os.path.relpath(Path(run.dir).parent) if run.offline else run.url
                return f"run {run.id}, {found}" if options is again else f"{run.name!r} in group {run.group}, {found}"
        except Exception as error:  # see Tracker._open_wandb
            log.warning("W&B: the evaluation could not be logged (%s).", first_line(error))
    return None


def publish_sweep(
    name: str, asked: DictConfig, columns: list[str], rows: list[list], figures: list[Path], results: dict
) -> None:
    """The table and the figures of a sweep as one W&B run, sweep-summary, in the sweep's group."""
    mode = choose_mode(asked.mode)
    if mode == "disabled":
        return
    import wandb

    options = {
        "id": new_id(f"sweep-summary-{name}"),
        "name": f"sweep-summary {name}",
        "group": asked.group or name,
        "job_type": "sweep-summary",
    }
    try:
        with wandb.init(mode=mode, **common(asked), **options) as run:
            run.log({"sweep/table": wandb.Table(columns=columns, data=rows)})
            run.log({f"sweep/{figure.stem}": wandb.Image(str(figure)) for figure in figures})
            run.summary.update(results)
    except Exception as error:  # see Tracker._open_wandb
        log.warning("W&B: the sweep's summary could not be logged (%s).", first_line(error))
