"""Runs as the page's script reads them: a plain record of each, of what its files hold."""

import os
import shlex
from dataclasses import asdict, dataclass
from typing import Any

from vae_exp.comparing import comparable
from vae_exp.comparing.names import short_names
from vae_exp.comparing.report.history import Curve, History, history
from vae_exp.comparing.report.pictures import Shown, gather
from vae_exp.comparing.report.sections import Section, sections
from vae_exp.comparing.report.verdict import label
from vae_exp.comparing.runs import RESULTS, Run, differing, is_finite
from vae_exp.comparing.terminal import cell, setting
from vae_exp.run.folder import BEST, IMAGES, LAST

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
    images: str
    commands: dict[str, str]


def records(rows: list[Run], columns: list[str], are_chosen: bool) -> dict[str, Any]:
    """What the page holds: sections, runs and pictures. The rows may be folded over seeds."""
    found = sections(rows, columns, are_chosen)
    runs = [run for _, group in found for run in group]
    shown = [comparable.best(run.members, comparable.metric_of(run.members)) or run for run in runs]
    past = [history(run, of) for run, of in zip(runs, shown, strict=True)]
    ranked = [number for section, _ in found for number in section.ranked]
    held, drawn = gather([shown[i].folder for i in ranked], [past[i].epoch_of for i in ranked])
    drawn_of = dict(zip(ranked, drawn, strict=True))
    keys = [*differing(rows), *RESULTS]
    made = []
    for section, group in found:
        best = comparable.best(group, section.metric) if len(group) > 1 else None
        names = short_names([_name(run) for run in group], LONGEST_NAME)
        for i, run, short in zip(section.runs, group, names, strict=True):
            made.append(_record(run, shown[i], section, past[i], drawn_of[i]))
            made[-1].short, made[-1].is_best = short, run is best
            made[-1].known = {key: _plain(run.value(key)) for key in keys if run.value(key) is not None}
    return {
        "sections": [asdict(section) for section, _ in found],
        "runs": [asdict(record) for record in made],
        "pictures": held,
    }


def _record(run: Run, shown: Run, section: Section, past: History, drawn: Shown) -> Record:
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
        pictures=drawn.by_name,
        left_out=drawn.left_out,
        images=str(shown.folder / IMAGES),
        commands=_commands(shown),
    )


def _name(run: Run) -> str:
    return f"{run.name} ({run.seeds} seeds)" if run.seeds > 1 else run.name


def _plain(value: Any) -> Any:
    """As JSON has it: a number, a text or null."""
    return value if value is None or is_finite(value) else " ".join(str(value).split())


def _commands(run: Run) -> dict[str, str]:
    """What to type next, of what the run's folder has a checkpoint for."""
    said = {}
    if (run.folder / LAST).is_file():
        resume = ["vae-train", f"resume={run.folder}"]
        epochs = run.config.get("epochs")
        if run.finished and isinstance(epochs, int):  # it is over: it goes on only with more of them
            resume.append(f"epochs={2 * epochs}")
        said["resume"] = shlex.join(resume)
    if (run.folder / BEST).is_file():
        said["evaluate"] = shlex.join(["vae-evaluate", f"checkpoint={run.folder}"])
        said["generate"] = shlex.join(["vae-generate", f"checkpoint={run.folder}"])
    said["folder"] = os.fspath(run.folder)
    return said
