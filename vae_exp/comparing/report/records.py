"""Runs as the page's script reads them: plain records, a section for each group of runs that compare."""

import os
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vae_exp.comparing import comparable
from vae_exp.comparing.axes import in_order, is_logarithmic, swept
from vae_exp.comparing.names import short_names
from vae_exp.comparing.report.history import Curve, history
from vae_exp.comparing.report.pictures import Shown, gather
from vae_exp.comparing.report.verdict import label, verdict
from vae_exp.comparing.runs import (
    BOOKKEEPING,
    NAME,
    REASON,
    RESULTS,
    SEEDS,
    STATE,
    Run,
    differing,
    is_finite,
    is_number,
    sort_runs,
)
from vae_exp.comparing.terminal import cell
from vae_exp.run.folder import BEST, IMAGES, LAST

LONGEST_NAME = 34  # characters; the whole name is shown where the mouse points


@dataclass
class Column:
    """A column of a section's table."""

    name: str
    is_number: bool
    is_folded: bool  # shown on request: nobody looks for it


@dataclass
class Axis:
    """A swept key: its values as cells, in order, and where they lie if all are numbers."""

    key: str
    texts: list[str]
    numbers: list[float] | None
    is_logarithmic: bool


@dataclass
class Record:
    """A run, or several that were folded. The index of its section's columns is that of its cells and values."""

    name: str
    short: str
    label: str
    state: str
    reason: str | None
    seeds: int
    is_best: bool
    score: float | None
    cells: list[str]
    values: list[Any]  # to sort by: numbers, texts or null
    places: list[str]  # on the section's axes, by the texts of these
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


@dataclass
class Section:
    """Runs that compare."""

    title: str | None
    metric: str
    verdict: str
    columns: list[Column]
    axes: list[Axis]
    differing: list[str]
    runs: list[int]  # in the order of the table
    ranked: list[int]  # the best first


def records(rows: list[Run], columns: list[str]) -> dict[str, Any]:
    """What the page holds as JSON: sections, runs and pictures. The rows may be folded over seeds."""
    alike = comparable.groups(rows)
    titles = comparable.titles(alike) if len(alike) > 1 else [None]
    metrics = [comparable.metric_of(group) for group in alike]
    order = [run for group, metric in zip(alike, metrics, strict=True) for run in group]
    ranked = [run for group, metric in zip(alike, metrics, strict=True) for run in sort_runs(group, metric)]
    shown = [comparable.best(run.members, comparable.metric_of(run.members)) or run for run in ranked]
    histories = {id(run): history(run, of) for run, of in zip(ranked, shown, strict=True)}
    held, pictures = gather([of.folder for of in shown], [histories[id(run)].epoch_of for run in ranked])
    of_run = {id(run): (of, drawn) for run, of, drawn in zip(ranked, shown, pictures, strict=True)}
    number = {id(run): i for i, run in enumerate(order)}
    keys = differing(rows)
    sections, runs = [], []
    for title, group, metric in zip(titles, alike, metrics, strict=True):
        told = _columns(group, columns, metric)
        # A run that failed would make an axis of what it alone has.
        measured = [run for run in group if metric in run.metrics]
        axes = [_axis(key, measured) for key in swept(measured)]
        best = comparable.best(group, metric) if len(group) > 1 else None
        labels = [
            *(swept(group) if len(measured) < 2 else swept(measured)),
            *(key for key in differing(group) if key in SEEDS),
        ]
        names = short_names([_name(run) for run in group], LONGEST_NAME)
        for run, short in zip(group, names, strict=True):
            past = histories[id(run)]
            of, drawn = of_run[id(run)]
            runs.append(_record(run, of, drawn, short, told, axes, keys, labels, metric, run is best))
            runs[-1].curves, runs[-1].latents = past.curves, past.latents
        sections.append(
            Section(
                title,
                metric,
                verdict(group, metric),
                [Column(name, _is_numeric(group, name), name in BOOKKEEPING and name in keys) for name in told],
                axes,
                differing(group),
                [number[id(run)] for run in group],
                [number[id(run)] for run in sort_runs(group, metric)],
            )
        )
    return {
        "sections": [asdict(section) for section in sections],
        "runs": [asdict(run) for run in runs],
        "pictures": held,
    }


def _columns(group: list[Run], columns: list[str], metric: str) -> list[str]:
    """Of the columns of all runs those that tell something of these: results, and what differs among them.

    What runs are compared by stands before settings, so that a narrow window shows it; bookkeeping comes last.
    """

    def tells(column: str) -> bool:
        values = [run.value(column) for run in group]
        if column in (STATE, REASON) and len(columns) > 1:
            return any(not run.finished for run in group)
        return any(value is not None for value in values) and (
            column in RESULTS or len(group) == 1 or any(value != values[0] for value in values)
        )

    def place(column: str) -> int:
        is_result = column in RESULTS or column in (STATE, REASON)
        if column == metric or is_result or column in BOOKKEEPING:
            return 0 if column == metric else 3 if is_result else 4
        return 2 if column in SEEDS else 1

    return sorted((column for column in columns if column != NAME and tells(column)), key=place)


def _is_numeric(group: list[Run], column: str) -> bool:
    return all(is_number(run.value(column)) or run.value(column) is None for run in group)


def _axis(key: str, group: list[Run]) -> Axis:
    values = in_order([run.config.get(key) for run in group])
    texts = list(dict.fromkeys(_text(value) for value in values))
    numbers = [float(value) for value in values] if all(is_finite(value) for value in values) else None
    if numbers is not None and len(numbers) != len(texts):  # two that are written alike
        numbers = None
    return Axis(key, texts, numbers, bool(numbers) and is_logarithmic(numbers or []))


def _text(value: Any) -> str:
    """A value of a setting, as the table's cell has it."""
    return cell(Run(Path(), {"value": value}, "", None, {}), "value")


def _name(run: Run) -> str:
    return f"{run.name} ({run.seeds} seeds)" if run.seeds > 1 else run.name


def _record(
    run: Run,
    shown: Run,
    drawn: Shown,
    short: str,
    columns: list[str],
    axes: list[Axis],
    keys: list[str],
    labels: list[str],
    metric: str,
    is_best: bool,
) -> Record:
    return Record(
        name=_name(run),
        short=short,
        label=label(run, labels),
        state=run.state,
        reason=run.reason,
        seeds=run.seeds,
        is_best=is_best,
        score=run.metrics.get(metric),
        cells=[cell(run, column) for column in columns],
        values=[_plain(run.value(column)) for column in columns],
        places=[_text(run.config.get(axis.key)) for axis in axes],
        known={key: _plain(run.value(key)) for key in [*keys, *RESULTS] if run.value(key) is not None},
        results={column: cell(run, column) for column in RESULTS if column in run.metrics},
        config={key: _text(value) for key, value in run.config.items()},
        members=[{"name": each.name, "score": cell(each, metric)} for each in run.members if run.seeds > 1],
        shown=shown.name,
        curves={},
        latents=[],
        pictures=drawn.by_name,
        left_out=drawn.left_out,
        images=str(shown.folder / IMAGES),
        commands=_commands(shown),
    )


def _plain(value: Any) -> Any:
    """As JSON has it: a number, a text or null."""
    return (
        value if value is None or (is_finite(value) and not isinstance(value, bool)) else " ".join(str(value).split())
    )


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
