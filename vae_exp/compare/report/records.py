"""Runs as the page's script reads them: a plain record of each, of what its files hold."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from vae_exp.compare import comparable
from vae_exp.compare.names import short_names
from vae_exp.compare.report.history import Curve, History, history
from vae_exp.compare.report.pictures import Picture, gather
from vae_exp.compare.report.sections import Section, sections
from vae_exp.compare.report.verdict import label
from vae_exp.compare.runs import RESULTS, STATE, Run, is_finite
from vae_exp.compare.terminal import cell, setting
from vae_exp.training.folder import BEST, LAST, on_checkpoint, on_resume

MOST_BYTES = 19_000_000  # of a page, which is to stay below 20 MB
MOST_PICTURES = 14_000_000
LONGEST_NAME = 34  # characters; the whole name is shown where the mouse points


@dataclass
class Record:
    """A run, or several folded ones; cells, values and places are in the order of its section's columns and axes."""

    name: str
    short: str
    label: str
    state: str
    reason: str | None
    seeds: int
    is_best: bool
    score: float | None
    spread: float | None
    cells: list[str]
    values: list[Any]  # to sort by: numbers, texts or null
    places: list[str]  # on the axes, by their texts
    known: dict[str, Any]  # what the filter finds it by
    results: dict[str, str]
    config: dict[str, str]
    members: list[dict[str, str]]
    shown: str  # the name of the run that pictures, latents and commands are of
    curves: dict[str, Curve]
    latents: list[tuple[float, list[float]]]
    pictures: dict[str, list[tuple[float, int]]]
    left_out: int
    folder: str  # of the run that is shown
    commands: dict[str, str]


@dataclass
class View:
    """All runs, each by itself or folded over seeds."""

    is_folded: bool
    sections: list[Section]
    runs: list[Record]


def records(views: list[list[Run]], columns: list[str] | None) -> tuple[list[dict[str, Any]], list[Picture]]:
    """Return the content of the page for each view, ready for JSON, and the pictures of all views."""
    shown = {id(run): _shown(run) for rows in views for run in rows}
    past = {id(run): history(run, shown[id(run)]) for rows in views for run in rows}
    made, ranked = [], []
    for rows in views:
        view, runs = View(any(run.seeds > 1 for run in rows), [], []), []
        keys = [*dict.fromkeys(key for run in rows for key in run.config), *RESULTS, STATE]
        for section, group in sections(rows, columns):
            view.sections.append(section)
            view.runs += _records(section, group, keys, shown, past)
            runs += group
        made.append(view)
        ranked += [runs[number] for section in view.sections for number in section.ranked]
    room = min(MOST_PICTURES, MOST_BYTES - sum(len(json.dumps(asdict(view))) for view in made))
    folders = {shown[id(run)].folder: past[id(run)].epoch_of for run in ranked}
    held, drawn = gather(list(folders), list(folders.values()), room)
    drawn_of = {str(folder): of for folder, of in zip(folders, drawn, strict=True)}
    for record in (record for view in made for record in view.runs):
        record.pictures, record.left_out = drawn_of[record.folder].by_name, drawn_of[record.folder].left_out
    return [asdict(view) for view in made], held


def _records(
    section: Section, group: list[Run], keys: list[str], shown: dict[int, Run], past: dict[int, History]
) -> list[Record]:
    """Return a record of each run of a section; keys are those that the filter knows, on all of the page."""
    best = comparable.best(group, section.metric) if len(group) > 1 else None
    made = []
    for run, short in zip(group, short_names([_name(run) for run in group], LONGEST_NAME), strict=True):
        record = _record(run, shown[id(run)], section, past[id(run)])
        record.short, record.is_best = short, run is best
        record.known = {key: _plain(run.value(key)) for key in keys if run.value(key) is not None}
        made.append(record)
    return made


def _shown(run: Run) -> Run:
    """Return the run whose pictures represent this one: of several seeds the best."""
    return comparable.best(run.members, comparable.metric_of(run.members)) or run


def _record(run: Run, shown: Run, section: Section, past: History) -> Record:
    return Record(
        name=_name(run),
        short=run.name,
        label=label(run, section.label_keys),
        state=run.state,
        reason=run.reason,
        seeds=run.seeds,
        is_best=False,
        score=run.metrics.get(section.metric),
        spread=run.spread.get(section.metric),
        cells=[cell(run, column.name) for column in section.columns],
        values=[_plain(run.value(column.name)) for column in section.columns],
        places=[setting(run.config.get(axis.key)) for axis in section.axes],
        known={},
        results={column: cell(run, column) for column in RESULTS if column in run.metrics},
        config={key: setting(value) for key, value in run.config.items()},
        members=[{"name": each.name, "score": cell(each, section.metric)} for each in run.members if run.seeds > 1],
        shown=shown.name,
        curves=past.curves,
        latents=past.latents,
        pictures={},
        left_out=0,
        folder=str(shown.folder),
        commands=_commands(shown),
    )


def _name(run: Run) -> str:
    return f"{run.name} ({run.seeds} seeds)" if run.seeds > 1 else run.name


def _plain(value: Any) -> Any:
    """Return a value as JSON has it: a number, a text or null."""
    return value if value is None or is_finite(value) else " ".join(str(value).split())


def _commands(run: Run) -> dict[str, str]:
    """Return the commands to type next, by name: those for which the run's folder has a checkpoint."""
    said = {}
    if (run.folder / LAST).is_file():
        epochs = run.config.get("epochs")
        more = [f"epochs={2 * epochs}"] if run.finished and isinstance(epochs, int) else []  # it is over without more
        said["resume"] = on_resume(run.folder, *more)
    if (run.folder / BEST).is_file():
        said["evaluate"] = on_checkpoint("vae-evaluate", run.folder)
        said["generate"] = on_checkpoint("vae-generate", run.folder)
    return said
