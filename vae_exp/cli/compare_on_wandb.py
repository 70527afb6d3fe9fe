"""`vae-compare --wandb`: a saved view of the runs' W&B project, and a report of one sweep."""

import argparse
import json
import shlex
import sys
from typing import Any

from vae_exp.compare.runs import Run
from vae_exp.errors import UserError, printable
from vae_exp.tracking import wandb_logged
from vae_exp.training.folder import read_summary

THEIRS = ""  # --wandb alone: the project that the runs were logged to
MOST_FOLDERS = 3  # that a message names


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of vae-compare that are about W&B."""
    parser.add_argument(
        "--wandb",
        nargs="?",
        const=THEIRS,
        metavar="ENTITY/PROJECT",
        help="make or update a saved view of this project in W&B; of the runs' own project where none is named",
    )
    parser.add_argument("--wandb-report", action="store_true", help="with --wandb: a W&B report of one sweep too")
    parser.add_argument("--dry-run", action="store_true", help="with --wandb: print what would be sent, send nothing")


def check(options: argparse.Namespace) -> None:
    """Raise UserError, before any run is read, if something that --wandb needs is missing."""
    if options.wandb is None:
        for name in ("wandb_report", "dry_run"):
            if getattr(options, name):
                raise UserError(f"--{name.replace('_', '-')}: goes with --wandb ENTITY/PROJECT.")
        return
    if options.wandb != THEIRS:
        _parts(options.wandb)
    from vae_exp.tracking import wandb_saving

    wandb_saving.require_library()
    if not options.dry_run:
        wandb_saving.require_account()


def send(options: argparse.Namespace, runs: list[Run]) -> list[str]:
    """Save the view, and the report if it is asked for; a dry run prints them as JSON. Return the lines to print.

    Raises UserError if the project is unknown or has none of the runs, or if W&B refuses.
    """
    from vae_exp.tracking import wandb_saving, wandb_view

    entity, project = _parts(_place(options.wandb, runs))
    logged = wandb_logged.read(runs)
    sweep = _sweep(logged) if options.wandb_report else None
    view = wandb_view.view(entity, project, logged)
    if options.dry_run:
        sent = {"view": view._to_model()}
        if sweep is not None:
            sent["report"] = _report(entity, project, sweep, logged, runs, ask_server=False)._to_model()
        print(json.dumps({name: _as_json(model) for name, model in sent.items()}, indent=2))
        return []
    if missing := wandb_saving.missing_runs(entity, project, logged):
        _complain(f"{entity}/{project}", missing, runs, all_of_them=missing == len(set(logged.ids)))
    url, before = wandb_saving.save_view(view)
    lines = [f"{'updated' if before else 'made'} the view {printable(url)}"]
    if sweep is not None:
        try:
            made = _report(entity, project, sweep, logged, runs, ask_server=True)
        except ValueError as error:
            raise UserError(f"--wandb-report: {error}") from error
        url, before = wandb_saving.save_report(made)
        lines.append(f"{'updated' if before else 'made'} the report {printable(url)}")
    return lines


def _place(asked: str, runs: list[Run]) -> str:
    place = asked or wandb_logged.place(run.folder for run in runs)
    if not place:
        raise UserError(
            "--wandb: the runs do not name one project that they were logged to. Say --wandb ENTITY/PROJECT."
        )
    return place


def _parts(place: str) -> tuple[str, str]:
    words = place.split("/")
    if len(words) != 2 or not all(word.strip() for word in words):
        raise UserError(f"--wandb {place}: it takes ENTITY/PROJECT, such as me/vae_exp.")
    return words[0], words[1]


def _sweep(logged: wandb_logged.Logged) -> str:
    if len(logged.groups) != 1:
        told = f"these are of {len(logged.groups)}: {', '.join(logged.groups)}" if logged.groups else "these have none"
        raise UserError(f"--wandb-report: it takes the runs of one sweep (or W&B group), and {told}.")
    return logged.groups[0]


def _report(
    entity: str, project: str, sweep: str, logged: wandb_logged.Logged, runs: list[Run], ask_server: bool
) -> Any:
    from vae_exp.sweeps import rerun
    from vae_exp.tracking import wandb_report

    command = rerun.rerun_command(runs[0].folder.parent)
    return wandb_report.report(entity, project, sweep, logged, runs, command, ask_server)


def _as_json(model: Any) -> Any:
    """Return what is sent of a view or a report as JSON; its spec, which is sent as text, is shown decoded."""
    return json.loads(model.model_dump_json(by_alias=True, exclude_none=True))


def _complain(place: str, missing: int, runs: list[Run], all_of_them: bool) -> None:
    """Raise UserError if the project has none of the runs, as the view would be empty; print a note for some."""
    offline = [summary.wandb.dir for run in runs if (summary := read_summary(run.folder)) and summary.wandb.dir]
    if len(offline) > MOST_FOLDERS:
        folders = sorted({f"{shlex.quote(folder.rpartition('/')[0])}/*run-*" for folder in offline})
    else:
        folders = [shlex.quote(folder) for folder in offline]
    sync = f"wandb sync {' '.join(folders)}" if offline else "wandb sync"
    if all_of_them:
        raise UserError(f"{place} has none of these {missing} runs, so its view would be empty. First: {sync}")
    print(f"{place} does not have {missing} of these runs yet: {sync}", file=sys.stderr)
