"""Group comparable runs and print them as a table."""

import itertools
import json
import math
import shutil
import statistics
import textwrap
from collections.abc import Collection
from pathlib import Path
from typing import Any

from vae_exp.compare.runs import (
    BOOKKEEPING,
    NAME,
    REASON,
    RESULTS,
    SEEDS,
    STATE,
    Run,
    differing,
    is_number,
    order,
    short,
    short_names,
    swept_keys,
)
from vae_exp.errors import printable

# Keys of a dataset that change nothing about the images that are measured.
OTHER_THAN_IMAGES = {
    f"dataset.{key}"
    for key in ("name", "cache", "device_memory", "seed", "flip", "n_classes", "attribute", "label", "on_error")
}
LABELLED_BY = ("dataset.attribute", "dataset.label")  # but where dataset.labels chooses images by their labels
FITTED = ("learned", "optimal")  # a sigma or scale that is no setting: those runs compare

OWN_IMAGES = ("image_folder", "arrays")  # datasets that are whatever lies at dataset.root
ROOT, DATA = "dataset.root", "data"  # and a digest of what lay there, which no key of a configuration is


def _measured(run: Run) -> dict[str, Any]:
    """Return what the numbers of a run are of: the images, their splits, the likelihood, and whether there is a KL."""
    kept: dict[str, Any] = {} if run.data is None else {DATA: run.data}
    by_label = LABELLED_BY if run.config.get("dataset.labels") is not None else ()
    for key, value in run.config.items():
        group = key.split(".")[0]
        if key == ROOT:  # the same data in another place, but for one's own images
            is_own = run.config.get("dataset") in OWN_IMAGES
            value = str(Path(str(value)).expanduser().resolve()) if is_own else None
        if group == "likelihood" and value in FITTED:
            value = "fitted"
        is_setting = group in ("dataset", "likelihood") and (key not in OTHER_THAN_IMAGES or key in by_label)
        is_of_it = is_setting or key == "model.stochastic"
        if is_of_it and value is not None:
            kept[key] = value
    return kept


def groups(runs: list[Run]) -> list[list[Run]]:
    """Return the runs in groups, each of runs that compare with each other."""
    alike: dict[str, list[Run]] = {}
    measured = [_measured(run) for run in runs]
    for run, of_run in zip(runs, measured, strict=True):
        if DATA not in of_run:  # of an older version: its data are taken to be those of the other runs from there
            known = {other[DATA] for other in measured if other == of_run | {DATA: other.get(DATA)}} - {None}
            of_run = of_run | ({DATA: known.pop()} if len(known) == 1 else {})
        if DATA in of_run:  # the same data may lie elsewhere
            of_run = {key: value for key, value in of_run.items() if key != ROOT}
        alike.setdefault(json.dumps(of_run, sort_keys=True, default=str), []).append(run)
    # First in a group is a run whose data are known: it tells groups apart.
    return [sorted(group, key=lambda run: run.data is None) for group in alike.values()]


def titles(alike: list[list[Run]]) -> list[str]:
    """Return a title for each of several groups: the settings in which they differ."""
    settings = [_measured(group[0]) for group in alike]
    keys = sorted(_differing(settings), key=len)  # dataset before dataset.val_size
    return [_listed([f"{key}={each[key]}" for key in keys if key in each]) or "the other runs" for each in settings]


def best_per_group(runs: list[Run]) -> list[Run]:
    """Return the best run of each group of runs that compare."""
    found = [best(group, metric_of(group)) for group in groups(runs)]
    return [run for run in found if run is not None]


def largest(runs: list[Run], column: str) -> tuple[list[Run], str | None]:
    """Return the largest group of runs that compare and have the column, and how many runs are left out and why.

    The numbers of other data or another likelihood are no better or worse: they measure something else.
    """
    having = [run for run in runs if run.value(column) is not None] or runs
    alike = sorted(groups(having), key=len, reverse=True)
    kept, settings = alike[0], [_measured(group[0]) for group in alike]
    told = []
    if others := len(having) - len(kept):
        named = _listed([f"{key}={settings[0].get(key)}" for key in _differing(settings)])
        told.append(f"{others} do not compare with the {len(kept)} that have {named}")
    if lacking := len(runs) - len(having):
        told.append(f"{lacking} have no {column}")
    return kept, f"left out: {'; '.join(told)}." if told else None


def describe_groups(runs: list[Run]) -> str | None:
    """Return a sentence, with the keys, on why more than one run is the best, or None if all compare."""
    keys = distinguishing_keys(runs)
    return f"runs of different data or likelihood do not compare: a best of each ({keys})" if keys else None


def distinguishing_keys(runs: list[Run]) -> str:
    """Return the keys in which runs that do not compare differ, or an empty text if all compare."""
    return _listed(_differing([_measured(group[0]) for group in groups(runs)]))


def _differing(settings: list[dict[str, Any]]) -> list[str]:
    """Return the keys whose values are not the same in all settings."""
    keys = dict.fromkeys(key for each in settings for key in each)
    found = [key for key in keys if any(each.get(key) != settings[0].get(key) for each in settings)]
    # A digest tells people less than a key that says why the data are others.
    return [key for key in found if key != DATA or not any(key.startswith("dataset") for key in found)]


def _listed(words: list[str]) -> str:
    return ", ".join(words[:4]) + (", ..." if len(words) > 4 else "")


def best(runs: list[Run], column: str = "val/neg_elbo") -> Run | None:
    """Return the finished run with the lowest number; of folded runs those whose seeds all finished come first."""
    having = [run for run in runs if run.metrics.get(column) is not None and (run.finished or run.members)]
    having = [run for run in having if run.finished] or having
    return min(having, key=lambda run: run.metrics[column], default=None)


def metric_of(runs: list[Run]) -> str:
    """Return the metric to compare runs by: the validation neg_elbo, or the test's if no images were held out."""
    return "val/neg_elbo" if any("val/neg_elbo" in run.metrics for run in runs) else "test/neg_elbo"


def is_logarithmic(values: list[float]) -> bool:
    """Return whether values look chosen on a logarithmic scale: their ratios are more alike than their differences."""
    values = sorted(set(values))
    if len(values) < 2 or values[0] <= 0:
        return False
    if len(values) == 2:
        return values[1] / values[0] >= 3
    logs = [math.log(value) for value in values]
    steps, ratios = ([b - a for a, b in itertools.pairwise(each)] for each in (values, logs))
    return _unevenness(ratios) < _unevenness(steps)


def _unevenness(steps: list[float]) -> float:
    return statistics.pstdev(steps) / statistics.fmean(steps)


def swept(runs: list[Run]) -> list[str]:
    """Return the keys that say which setting a run is: those that differ, without seeds and bookkeeping.

    network=mlp,conv changes many keys at once; of keys that tell the same runs apart only the first one counts.
    """
    found: dict[tuple[int, ...], str] = {}
    for key in differing(runs):
        if key not in SEEDS and key not in BOOKKEEPING:
            values = [run.config.get(key) for run in runs]
            found.setdefault(tuple(values.index(value) for value in values), key)
    return list(found.values())


def in_order(values: list[Any]) -> list[Any]:
    """Return the distinct values in the order of an axis: None (runs that lack one), then numbers, then names."""
    different: list[Any] = []
    for value in values:
        if value not in different:
            different.append(value)
    return sorted(different, key=lambda value: (value is not None, order(value)))


GAP = "  "
NARROWEST, WHEN_UNKNOWN = 40, 120  # characters
LONGEST_CELL, LONGEST_REASON = 28, 70
BLOCKS = 2  # one below the other; what does not fit into them is named


def format_table(
    runs: list[Run],
    columns: list[str],
    marked: Collection[Run] = (),
    metric: str | None = None,
    rest: str = "--csv FILE",
    asked: Collection[str] = (),
) -> str:
    """Return a table of runs by name, "best" before the marked ones, its columns in blocks as wide as the terminal.

    If metric is given, the columns are a choice that may change: those with one value for all runs go to a line above,
    the metric comes first if not all fit, with the columns in `asked` beside it, and a line names what does not fit
    into two blocks; `rest` says where to find it. A swept key is never left out without being named.
    """
    width = max(NARROWEST, shutil.get_terminal_size((WHEN_UNKNOWN, 24)).columns)
    columns = [column for column in columns if column != NAME]
    unasked = [key for key in swept_keys(runs) if key not in columns]
    cells = {column: [column, *(cell(run, column) for run in runs)] for column in columns}
    above: list[str] = []
    if metric and len(runs) > 1:
        same = [column for column in columns if column != metric and len(set(cells[column][1:])) == 1]
        columns = [column for column in columns if column not in same]
        above = [f"all: {', '.join(f'{column} {cells[column][1]}' for column in same)}"] if same else []

    first = [_padded([NAME, *map(printable, short_names([run.name for run in runs], width // 2))], right=False)]
    if any(run is best for run in runs for best in marked):
        marks = ["best" if any(run is best for best in marked) else "" for run in runs]
        first.insert(0, _padded(["", *marks], right=False))
    room = width - sum(len(column[0] + GAP) for column in first)
    shown = {column: _column(runs, column, cells[column], room) for column in columns}
    if metric:
        columns = _ordered(columns, shown, [metric, *asked], room)
    blocks = _blocks(columns, shown, room)
    left_out = [column for block in blocks[BLOCKS:] for column in block] if metric else []
    below = [f"not shown: {', '.join(left_out)} ({rest} has all)"] if left_out else []
    below += [f"not shown: {', '.join(unasked)} (swept, and not among --columns)"] if unasked else []
    drawn = [
        "\n".join(GAP.join(line).rstrip() for line in zip(*first, *(shown[column] for column in block), strict=True))
        for block in (blocks[:BLOCKS] if metric else blocks)
    ]
    return "\n".join([*(textwrap.fill(line, width) for line in above), "\n\n".join(drawn), *wrapped(below)])


def wrapped(lines: list[str]) -> list[str]:
    """Wrap sentences to lines of the terminal's width."""
    width = max(NARROWEST, shutil.get_terminal_size((WHEN_UNKNOWN, 24)).columns)
    return [textwrap.fill(line, width) for line in lines]


def _ordered(columns: list[str], shown: dict[str, list[str]], first: list[str], room: int) -> list[str]:
    """Return columns as they are if all fit in one block; else first, the keys that fit beside, results, other keys.

    How a run ended comes before its other results: the numbers of one that was pruned are of fewer epochs.
    """
    first = [column for column in first if column in columns]
    if len(_blocks(columns, shown, room)) < 2 or not first:
        return columns
    results = [column for column in columns if column in (*RESULTS, STATE, REASON) and column not in first]
    results.sort(key=lambda column: column != STATE)
    keys = [column for column in columns if column not in (*results, *first)]
    beside = _blocks([*first, *keys], shown, room)[0]
    beside = [*beside, *(column for column in first if column not in beside)]
    return [*beside, *results, *(key for key in keys if key not in beside)]


def _blocks(columns: list[str], shown: dict[str, list[str]], room: int) -> list[list[str]]:
    """Return the columns in order, in blocks that each fit into the room."""
    blocks: list[list[str]] = [[]]
    left = room
    for column in columns:
        needs = len(shown[column][0]) + len(GAP)
        if needs > left + len(GAP) and blocks[-1]:
            blocks.append([])
            left = room
        blocks[-1].append(column)
        left -= needs
    return blocks


def _column(runs: list[Run], column: str, cells: list[str], room: int) -> list[str]:
    longest = LONGEST_REASON if column == REASON else max(LONGEST_CELL, len(column))
    numbers = all(is_number(run.value(column)) or run.value(column) is None for run in runs)
    longest = min(longest, room)
    if column == REASON:  # a sentence is read from its beginning
        return _padded([each if len(each) <= longest else f"{each[: longest - 2]} …" for each in cells], right=False)
    return _padded([short(each, longest) for each in cells], right=numbers)


def _padded(cells: list[str], right: bool) -> list[str]:
    width = max(map(len, cells))
    return [cell.rjust(width) if right else cell.ljust(width) for cell in cells]


def cell(run: Run, column: str) -> str:
    """Return the text that a table shows for a run in a column."""
    value = run.value(column)
    if column not in RESULTS or not isinstance(value, float):
        return setting(value)
    digits = 1 if column in ("seconds", "test/active_units") else 3
    spread = f" ± {run.spread[column]:.{digits}f}" if column in run.spread and digits == 3 else ""
    return f"{value:.{digits}f}{spread}"


def setting(value: Any) -> str:
    """Return a value of the configuration as a table shows it, on one line."""
    if value is None:
        return "-"
    return f"{value:g}" if isinstance(value, float) else printable(" ".join(str(value).split()))
