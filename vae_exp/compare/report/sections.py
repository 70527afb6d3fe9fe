"""A section of the page for each group of runs that compare: its columns, its axes and its best, in words."""

from dataclasses import dataclass

from vae_exp.compare import comparable
from vae_exp.compare.axes import in_order, is_logarithmic, swept
from vae_exp.compare.report.verdict import verdict
from vae_exp.compare.runs import (
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
    swept_keys,
    usual_columns,
)
from vae_exp.compare.terminal import setting


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
    alike = comparable.groups(rows)
    titles: list[str | None] = [*comparable.titles(alike)] if len(alike) > 1 else [None]
    found, before = [], 0
    for title, group in zip(titles, alike, strict=True):
        found.append((_section(title, group, columns, before), group))
        before += len(group)
    return found


def _section(title: str | None, group: list[Run], columns: list[str] | None, before: int) -> Section:
    metric = comparable.metric_of(group)
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
