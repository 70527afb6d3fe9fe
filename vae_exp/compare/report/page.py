"""Write the report page: its records, history, sections and verdict."""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from vae_exp.compare import table
from vae_exp.compare.report.pictures import Picture, gather
from vae_exp.compare.runs import (
    BOOKKEEPING,
    NAME,
    REASON,
    RESULTS,
    SCORES,
    SEEDS,
    STATE,
    Run,
    differing,
    fold_seeds,
    is_finite,
    is_number,
    short,
    short_names,
    sort_runs,
    swept_keys,
    usual_columns,
)
from vae_exp.compare.table import cell, in_order, is_logarithmic, setting, swept
from vae_exp.training.run_dir import BEST, LAST, on_checkpoint, on_resume

TERMS = ("neg_elbo", "reconstruction", "kl", "active_units")
PARTS = ("val", "test", "train_epoch")  # test is logged over epochs where nothing is held out for validation
CURVES = tuple(f"{part}/{term}" for part in PARTS for term in TERMS)
MOST_POINTS = 150  # of a curve: a page has fewer pixels for more, and 200 runs of 1000 epochs would be 10 MB
MOST_LATENTS = 1000  # numbers of a run: of wide codes there are fewer epochs

T = TypeVar("T")


@dataclass
class Curve:
    """A number over epochs; for folded runs its mean and its standard deviation over seeds."""

    epochs: list[float]
    values: list[float]
    spread: list[float] = field(default_factory=list)  # nothing where there is one run


@dataclass
class History:
    """A run, or several folded ones, over epochs; the latents and the steps are those of the run that is shown."""

    curves: dict[str, Curve]
    latents: list[tuple[float, list[float]]]  # epoch, KL of each latent
    epoch_of: dict[int, float]  # by step, as the names of pictures have it


def history(run: Run, shown: Run) -> History:
    """Read a history from the files of a run, or of its members; `shown` is the member whose pictures the page has."""
    logged = {id(member): list(member.logged()) for member in [*run.members, shown]}
    rows = logged[id(shown)]
    latents = [
        (row["epoch"], [rounded(kl, digits=4) for kl in row[key]])
        for row in rows
        for key in ("val/kl_per_dim", "test/kl_per_dim")
        if isinstance(row.get(key), list) and row[key] and all(is_finite(kl) for kl in row[key])
    ]
    most = max(1, MOST_LATENTS // max((len(kl) for _, kl in latents), default=1))
    steps = {row["step"]: row["epoch"] for row in rows if is_number(row.get("step"))}
    curves = {name: _curve([logged[id(member)] for member in run.members or [shown]], name) for name in CURVES}
    return History({name: curve for name, curve in curves.items() if curve}, thinned(latents, most), steps)


def _curve(logged: list[list[dict[str, Any]]], name: str) -> Curve | None:
    """Return the means over the epochs that all runs which logged this number share, or None if there are none."""
    values = [{row["epoch"]: row[name] for row in rows if is_finite(row.get(name))} for rows in logged]
    values = [each for each in values if each]
    if not values:
        return None
    epochs = thinned([epoch for epoch in values[0] if all(epoch in each for each in values)], MOST_POINTS)
    at = [[each[epoch] for each in values] for epoch in epochs]
    try:
        spread = [rounded(statistics.stdev(each)) for each in at] if len(values) > 1 else []
        return Curve(epochs, [rounded(statistics.fmean(each)) for each in at], spread) if epochs else None
    except OverflowError:  # runs that diverged: there is nothing to draw
        return None


def thinned(items: Sequence[T], most: int) -> list[T]:
    """Return at most `most` of the items, evenly spaced, with the last and the first."""
    if len(items) <= most:
        return list(items)
    if most == 1:
        return [items[-1]]
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def rounded(number: float, digits: int = 6) -> float:
    """Round to the precision that a drawing needs: the page holds thousands of numbers."""
    return float(f"{number:.{digits}g}")


LONGEST_LABEL = 60
# Student's t at 97.5 %, by degrees of freedom from 1; of more than 10 the last one, which is a little strict.
T_975 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23)


def label(run: Run, keys: list[str]) -> str:
    """Return the label of a run in a figure: its values of the keys that differ, or its name."""
    settings = [f"{key.rsplit('.', 1)[-1]}={cell(run, key)}" for key in keys if run.value(key) is not None]
    return short(" ".join(settings), LONGEST_LABEL) or run.name


def verdict(runs: list[Run], metric: str) -> str:
    """Say which setting is best, by how much, and what the seeds say about it. The runs compare, and may be folded."""
    settings = runs if any(run.members for run in runs) else fold_seeds(runs)
    keys = swept(settings)
    best = table.best(settings, metric)
    if best is None:
        return f"No run that finished has a {metric}."
    has_seeds = any(run.seeds > 1 for run in settings)
    what = f"{label(best, keys)}: {metric} {cell(best, metric)}"
    if best.seeds > 1:
        what += f" over {best.seeds} seeds"
    second = table.best([run for run in settings if run is not best], metric)
    if second is None:
        alone = "the only run" if len(runs) == 1 else "the only setting that finished"
        return f"{what}, {alone}."
    what = f"Best setting {what}" if has_seeds else f"Best {what}"
    lead = second.metrics[metric] - best.metrics[metric]
    if lead < 0:  # only a setting of which some seeds failed can be lower than the best
        return f"{what}. {label(second, keys)} is lower by {_nats(-lead)}, but {second.state}."
    ahead = (
        f"ahead of the next ({label(second, keys)}) by {_nats(lead)}" if lead else f"level with {label(second, keys)}"
    )
    single = table.best(runs, metric)
    elsewhere = single is not None and single is not best and all(single is not member for member in best.members)
    of_one = f" The best single run, {single.name}, has another setting." if single and elsewhere else ""
    return f"{what}, {ahead}. {_chance(best, second, metric, lead)}{of_one}"


def _chance(best: Run, second: Run, metric: str, lead: float) -> str:
    """Say whether the lead is more than seeds differ by: a t-test of the two settings, with their pooled deviation."""
    if metric not in best.spread or metric not in second.spread:
        few = "One seed each" if best.seeds == second.seeds else "One of the two has a single seed"
        return f"{few}: how much of this is chance is not known."
    freedom = best.seeds + second.seeds - 2
    pooled = math.sqrt(sum((run.seeds - 1) * run.spread[metric] ** 2 for run in (best, second)) / freedom)
    needed = T_975[min(freedom, len(T_975)) - 1] * pooled * math.sqrt(1 / best.seeds + 1 / second.seeds)
    seeds = f"{best.seeds} seeds each" if best.seeds == second.seeds else f"{best.seeds} and {second.seeds} seeds"
    noise = f"The seeds' standard deviation is {_nats(pooled)} ({seeds})"
    if lead > needed:
        return f"{noise}: the lead is more than chance among these seeds."
    return f"{noise}: not settled, which would take a lead of {_nats(needed)} or more seeds."


def _nats(number: float) -> str:
    return f"{number:.2f}" if number >= 0.1 else f"{number:.2g}"


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
class Section:
    """Runs that compare, by their numbers."""

    title: str | None  # none where there is one section
    metric: str
    verdict: str
    columns: list[Column]
    not_shown: list[str]  # keys that were swept and are no column
    axes: list[Axis]
    label_keys: list[str]  # a run is named by its values of these
    differing: list[str]
    runs: list[int]  # in the order of the table
    ranked: list[int]  # the best first


def sections(rows: list[Run], columns: list[str] | None) -> list[tuple[Section, list[Run]]]:
    """Return each section with its runs, numbered across sections, with these columns; None means the usual ones."""
    alike = table.groups(rows)
    titles: list[str | None] = [*table.titles(alike)] if len(alike) > 1 else [None]
    found, before = [], 0
    for title, group in zip(titles, alike, strict=True):
        found.append((_section(title, group, columns, before), group))
        before += len(group)
    return found


def _section(title: str | None, group: list[Run], columns: list[str] | None, before: int) -> Section:
    metric = table.metric_of(group)
    told = _columns(group, metric) if columns is None else [column for column in columns if column != NAME]
    # A run that failed would make an axis of what it alone has.
    measured = [run for run in group if metric in run.metrics]
    keys, differ = swept(measured), differing(group)
    number = {id(run): before + i for i, run in enumerate(group)}
    return Section(
        title=title,
        metric=metric,
        verdict=verdict(group, metric),
        columns=[Column(name, _is_numeric(group, name), name in BOOKKEEPING and columns is None) for name in told],
        not_shown=[key for key in swept_keys(group) if key not in told],
        axes=[_axis(key, measured) for key in keys],
        label_keys=[*(keys if len(measured) > 1 else swept(group)), *(key for key in differ if key in SEEDS)],
        differing=differ,
        runs=[number[id(run)] for run in group],
        ranked=[number[id(run)] for run in sort_runs(group, metric)],
    )


def _columns(group: list[Run], metric: str) -> list[str]:
    """Return the usual columns of these runs, in the order in which people look for them.

    The metric that runs are compared by comes before settings, so that a narrow window shows it; bookkeeping is last.
    """

    def place(column: str) -> int:
        kinds = [[metric], [], SEEDS, [*RESULTS, STATE, REASON], BOOKKEEPING]
        return next((place for place, kind in enumerate(kinds) if column in kind), 1)  # 1 is a setting's

    return sorted(usual_columns(group), key=place)


def _is_numeric(group: list[Run], column: str) -> bool:
    return all(is_number(run.value(column)) or run.value(column) is None for run in group)


def _axis(key: str, group: list[Run]) -> Axis:
    values = in_order([run.config.get(key) for run in group])
    texts = list(dict.fromkeys(setting(value) for value in values))
    are_numbers = all(is_finite(value) for value in values) and len(texts) == len(
        values
    )  # none is written like another
    numbers = [float(value) for value in values] if are_numbers else None
    return Axis(key, texts, numbers, numbers is not None and is_logarithmic(numbers))


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
    best = table.best(group, section.metric) if len(group) > 1 else None
    made = []
    for run, name in zip(group, short_names([_name(run) for run in group], LONGEST_NAME), strict=True):
        record = _record(run, shown[id(run)], section, past[id(run)])
        record.short, record.is_best = name, run is best
        record.known = {key: _plain(run.value(key)) for key in keys if run.value(key) is not None}
        made.append(record)
    return made


def _shown(run: Run) -> Run:
    """Return the run whose pictures represent this one: of several seeds the best."""
    return table.best(run.members, table.metric_of(run.members)) or run


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


HERE = Path(__file__).parent
# In the order in which they are read: each stands on those before it.
SCRIPTS = (
    "elements",
    "scales",
    "marking",
    "filter",
    "table",
    "curves",
    "parallel",
    "heat_map",
    "over_key",
    "trade_off",
    "pictures",
    "run_page",
    "page",
)
# Whatever a name or a configuration says, the browser fetches nothing and sends nothing.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'"


def page(views: list[list[Run]], count: int, columns: list[str] | None = None) -> str:
    """Return the page of `count` runs. Views are the same runs one by one and folded over seeds: the first is shown.

    Runs that do not compare, of other data or under another likelihood, are in sections of their own. Columns that
    the user did not choose are those that say something about a section, in the order in which people look for them.
    """
    drawn, pictures = records(views, columns)
    held = {
        "count": count,
        "whySeveral": table.describe_groups(views[0]),
        "views": drawn,
        "scores": SCORES,
        "sizes": [(picture.width, picture.height) for picture in pictures],
    }
    script = "\n".join((HERE / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{count} VAE run{'s' if count != 1 else ''}</title>\n"
        f"<style>\n{(HERE / 'page.css').read_text(encoding='utf-8')}</style>\n</head>\n<body>\n"
        "<noscript>This page draws itself with JavaScript, which is switched off here.</noscript>\n"
        f'<script type="application/json" id="runs">{_json(held)}</script>\n'
        f'<script>\n"use strict";\n(() => {{\n{script}}})();\n</script>\n'
        # Last, because they are nearly all of the file: tables and curves are there before they are read.
        f'<script type="application/json" id="pictures">{_json([picture.data for picture in pictures])}</script>\n'
        "</body>\n</html>\n"
    )


def _json(value: Any) -> str:
    """Return JSON to put inside a page: without < nothing in it can end the element, and ASCII can write any name."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
