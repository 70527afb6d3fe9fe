"""Group comparable runs and print them as a table."""

import contextlib
import itertools
import json
import math
import os
import re
import shutil
import statistics
import textwrap
from collections import Counter
from collections.abc import Callable, Collection
from typing import Any

from vae_exp.compare.runs import (
    BOOKKEEPING,
    FOLDER,
    NAME,
    PATH_EPOCHS,
    REASON,
    SEEDS,
    STATE,
    Run,
    differing,
    rank,
    result_columns,
    sign,
    sort_runs,
    swept_keys,
)
from vae_exp.config.checks import as_typed
from vae_exp.config.schema import is_number
from vae_exp.errors import UserError, printable
from vae_exp.files import expand

# Keys of a dataset that change nothing about the images that are measured, but where dataset.labels chooses images
# those of their labels.
LABELLED_BY = {"dataset.attribute", "dataset.label", "dataset.condition"}
OTHER_THAN_IMAGES = LABELLED_BY | {
    f"dataset.{key}" for key in ("name", "cache", "device_memory", "seed", "flip", "n_classes", "on_error")
}
LIKELIHOOD, STOCHASTIC = "likelihood", "model.stochastic"
ROOT, DATA = "dataset.root", "data"  # and a digest of what lay there, which no key of a configuration is


def _protocol(run: Run) -> dict[str, Any]:
    """Return what the numbers of a run are of: the images, their splits, the likelihood, and whether there is a KL."""
    result: dict[str, Any] = {} if run.data is None else {DATA: run.data}
    ignored = OTHER_THAN_IMAGES - (LABELLED_BY if run.config.get("dataset.labels") is not None else set())
    for key, value in run.config.items():
        group = key.split(".")[0]
        if key == ROOT:  # the same data in another place, but for one's own images
            is_own = run.config.get("dataset") in ("image_folder", "arrays")
            with contextlib.suppress(UserError, OSError, ValueError):  # of a stranger's run it may be any text
                value = str(expand(value).resolve())
            value = value if is_own else None
        elif group == "likelihood" and value in ("learned", "optimal", "by_pixel"):  # no setting: those runs compare
            value = "fitted"
        matters = key == STOCHASTIC or (group in ("dataset", "likelihood") and key not in ignored)
        if matters and value is not None:
            result[key] = value
    return result


def groups(runs: list[Run]) -> list[list[Run]]:
    """Return the runs in groups, the largest first, each of runs that compare with each other."""
    result: dict[str, list[Run]] = {}
    protocols = [_protocol(run) for run in runs]
    for run, protocol in zip(runs, protocols, strict=True):
        if DATA not in protocol:  # of an older version: its data are taken to be those of the other runs from there
            digests = {other[DATA] for other in protocols if DATA in other and other == protocol | {DATA: other[DATA]}}
            protocol = protocol | ({DATA: digests.pop()} if len(digests) == 1 else {})
        if DATA in protocol:  # the same data may lie elsewhere
            protocol = {key: value for key, value in protocol.items() if key != ROOT}
        result.setdefault(json.dumps(protocol, sort_keys=True, default=str), []).append(run)
    # First in a group is a run whose data are known: it tells groups apart.
    largest_first = sorted(result.values(), key=lambda group: -sum(run.seeds for run in group))
    return [sorted(group, key=lambda run: run.data is None) for group in largest_first]


def titles(comparable: list[list[Run]]) -> list[str]:
    """Return a heading for each of several groups: its data, its likelihood, and what tells it from others of these."""
    protocols = [_protocol(group[0]) for group in comparable]
    names = [
        tuple(str(group[0].config.get(key, "-")) for key in ("dataset.name", "likelihood")) for group in comparable
    ]
    result = []
    for protocol, name in zip(protocols, names, strict=True):
        words = list(name)
        for key in sorted(_differing(protocols), key=lambda key: not key.startswith(LIKELIHOOD)):
            of = {"dataset": 0, "data": 0, "likelihood": 1}.get(key.split(".")[0])  # names that imply the key's value
            same = [other for other, its in zip(protocols, names, strict=True) if of is None or its[of] == name[of]]
            is_usual = key == LIKELIHOOD or protocol.get(key, "none") == "none" or protocol[key] is True
            if not is_usual and any(other.get(key) != protocol[key] for other in same):
                word = f"{key.rsplit('.', 1)[-1]}={setting(protocol[key])}"
                words.append("no KL" if key == STOCHASTIC else word)
        result.append(_listed(words))
    return result


def best_per_group(runs: list[Run]) -> list[Run]:
    """Return the best run of each group of runs that compare."""
    return [run for group in groups(runs) if (run := best(group, metric_of(group)))]


def largest(runs: list[Run], column: str) -> tuple[list[Run], str | None]:
    """Return the largest group of runs that compare and have the column, and how many runs are left out and why."""
    with_value = [run for run in runs if run.value(column) is not None] or runs
    comparable = groups(with_value)
    largest, protocols = comparable[0], [_protocol(group[0]) for group in comparable]
    reasons = []
    if others := len(with_value) - len(largest):
        settings = _listed([f"{key}={protocols[0].get(key)}" for key in _differing(protocols)])
        reasons.append(f"{others} do not compare with the {len(largest)} that have {settings}")
    if without := len(runs) - len(with_value):
        reasons.append(f"{without} have no {column}")
    return largest, f"left out: {'; '.join(reasons)}." if reasons else None


def describe_groups(runs: list[Run]) -> str | None:
    """Return a sentence, with the keys, on why there are several tables, or None if all runs compare."""
    keys = distinguishing_keys(runs)
    return f"runs of different data or likelihood do not compare: a best of each ({keys})" if keys else None


def distinguishing_keys(runs: list[Run]) -> str:
    """Return the keys in which runs that do not compare differ, or an empty text if all compare."""
    return _listed(_differing([_protocol(group[0]) for group in groups(runs)]))


def _differing(protocols: list[dict[str, Any]]) -> list[str]:
    known = dict.fromkeys(key for protocol in protocols for key in protocol)
    keys = [key for key in known if any(protocol.get(key) != protocols[0].get(key) for protocol in protocols)]
    # A digest tells people less than a key that says why the data are others.
    return [key for key in keys if key != DATA or not any(key.startswith("dataset") for key in keys)]


def _listed(words: list[str]) -> str:
    return ", ".join(words[:4]) + (", ..." if len(words) > 4 else "")


def best(runs: list[Run], column: str = "val/neg_elbo") -> Run | None:
    """Return the finished run with the best number; of folded runs those whose seeds all finished come first."""
    candidates = [run for run in runs if run.metrics.get(column) is not None and (run.finished or run.members)]
    candidates = [run for run in candidates if run.finished] or candidates
    direction = sign(runs, column)
    return min(candidates, key=lambda run: direction * run.metrics[column], default=None)


def metric_of(runs: list[Run]) -> str:
    """Return the metric to compare runs by: what all of them were judged by, or val/neg_elbo, or test/neg_elbo."""
    judges = {run.judged_by for run in runs}
    names = [*(name for name, _ in judges if len(judges) == 1), "val/neg_elbo"]
    return next((name for name in names if any(name in run.metrics for run in runs)), "test/neg_elbo")


def swept(runs: list[Run]) -> list[str]:
    """Return the keys that say which setting a run is, no seeds or bookkeeping; of those that differ alike one."""
    result: dict[tuple[int, ...], str] = {}
    for key in differing(runs):
        if key not in SEEDS and key not in BOOKKEEPING:
            values = [run.config.get(key) for run in runs]
            result.setdefault(tuple(values.index(value) for value in values), key)
    return sorted(result.values(), key=rank)


def is_logarithmic(values: Collection[Any]) -> bool:
    """Return whether values look chosen on a logarithmic scale: their ratios are more alike than their differences."""
    if not all(map(is_number, values)):
        return False
    values = sorted(set(values))
    if len(values) < 2 or values[0] <= 0:
        return False
    if len(values) == 2:
        return values[1] / values[0] >= 3
    steps, ratios = ([b - a for a, b in itertools.pairwise(scale)] for scale in (values, [*map(math.log, values)]))
    return statistics.pstdev(ratios) / statistics.fmean(ratios) < statistics.pstdev(steps) / statistics.fmean(steps)


GAP = "  "
MAX_CELL, MAX_REASON = 28, 70
MAX_STACKED = 12  # rows of a table that may stand in two blocks; what does not fit is named
ALONE = "runs that compare with no other here"


def format_groups(
    runs: list[Run],
    columns: Callable[[list[Run]], list[str]] | list[str],
    rest: str = "--csv FILE",
    requested: Collection[str] = (),
    locate: bool = False,
    column: str | None = None,
    descending: bool = False,
) -> str:
    """Return a table for each group of runs that compare, the largest first, and one of those that are alone.

    Each is in the order of the column, by default of what its runs are judged by.

    Each has a heading where there are several, the columns of its runs, or those given, and its best marked, with its
    folder below to `locate` it where the name does not say it.
    """
    comparable = groups(runs)
    names = dict(zip(map(id, runs), short_names([run.name for run in runs], _room_for_names()), strict=True))
    tables = [pair for pair in zip(titles(comparable), comparable, strict=True) if len(pair[1]) > 1]
    if alone := [group[0] for group in comparable if len(group) == 1]:
        tables.append((ALONE if len(alone) > 1 or tables else "", alone))
    bests = [best(group, metric_of(group)) if title != ALONE and len(group) > 1 else None for title, group in tables]
    texts = []
    for (title, group), marked in zip(tables, bests, strict=True):
        group = sort_runs(group, column or metric_of(group), descending)
        metric = metric_of(group) if callable(columns) else None
        chosen = columns(group) if callable(columns) else columns
        mark = [marked] if marked else [] if any(bests) else None
        heading = [f"{title} ({len(group)} run{'s' * (len(group) > 1)})"] if len(tables) > 1 else []
        text = format_table(group, chosen, mark, metric, rest, requested, [names[id(run)] for run in group])
        where = []
        if locate and marked and (marked.given or names[id(marked)] != marked.name):  # of several seeds the best
            where = [f"the best is in {printable((best(marked.members, metric_of(group)) or marked).folder)}"]
        texts.append("\n".join([*wrapped(heading), text, *where]))
    return "\n\n".join(texts)


def format_table(
    runs: list[Run],
    columns: list[str],
    marked: Collection[Run] | None = None,
    metric: str | None = None,
    rest: str = "--csv FILE",
    requested: Collection[str] = (),
    names: list[str] | None = None,
) -> str:
    """Return a table of runs by name, "best" before the marked ones, its columns in blocks as wide as the terminal.

    If metric is given, columns with one value for all runs go to a line above; if not all fit, keys have short names
    and the metric comes first, with the `requested` columns beside it, and a line names what does not fit: `rest` says
    where that is. Without marked there is no room for marks.
    """
    columns = [column for column in columns if column != NAME]
    left_out = [key for key in swept_keys(runs) if key not in columns]
    below = [f"not shown: {', '.join(left_out)} (swept, and not among --columns)"] if left_out else []
    cells = {column: [printable(column), *(cell(run, column) for run in runs)] for column in columns}
    above: list[str] = []
    if metric and len(runs) > 1:
        same = [column for column in columns if column != metric and len(set(cells[column][1:])) == 1]
        columns = [column for column in columns if column not in same]
        above = [f"all: {', '.join(f'{column} {cells[column][1]}' for column in same)}"] if same else []

    names = names or short_names([run.name for run in runs], _room_for_names())
    first = [_padded([NAME, *map(printable, names)], right=False)]
    if marked is not None:
        marks = ["best" if any(run is best for best in marked) else " " * 4 for run in runs]
        first.insert(0, _padded(["", *marks], right=False))
    room = _width() - sum(len(column[0] + GAP) for column in first)
    padded = {column: _column(runs, column, cells[column], room) for column in columns}
    if metric and len(_blocks(columns, padded, room)) > 1:
        last = {column: column.removesuffix(".name").rpartition(".")[2] for column in columns}
        for column in [column for column in columns if [*last.values()].count(last[column]) == 1]:
            padded[column] = _column(runs, column, [last[column], *cells[column][1:]], room)
        columns = _ordered(runs, padded, [metric, *requested], room)
    blocks = _blocks(columns, padded, room)
    most = 1 if len(runs) > MAX_STACKED or blocks[1:] == [["seconds"]] else 2
    if metric and len(blocks) > most:
        left_out = [column for block in blocks[most:] for column in block]
        below.insert(0, f"not shown: {', '.join(left_out)} ({rest} has all)")
        blocks = blocks[:most]
    tables = [zip(*first, *(padded[column] for column in block), strict=True) for block in blocks]
    texts = ["\n".join(GAP.join(row).rstrip() for row in rows) for rows in tables]
    return "\n".join([*wrapped(above), "\n\n".join(texts), *wrapped(below)])


def _width() -> int:
    return max(40, shutil.get_terminal_size((120, 24)).columns)


def _room_for_names() -> int:
    return max(28, _width() // 4)


def wrapped(lines: list[str]) -> list[str]:
    """Wrap sentences to lines of the terminal's width."""
    return [textwrap.fill(line, _width()) for line in lines]


def _ordered(runs: list[Run], padded: dict[str, list[str]], first: list[str], room: int) -> list[str]:
    """Return columns, which do not fit in one block, as first, the keys that fit beside, results, other keys.

    Of the results the state has its place beside the keys, if there is room for three of them.
    """
    columns = [*padded]
    first = [column for column in first if column in columns]
    kinds = (*result_columns(runs), STATE, REASON)
    results = [column for column in columns if column in kinds and column not in first]
    results.sort(key=lambda column: column != STATE)  # the numbers of a run that was pruned are of fewer epochs
    keys = [column for column in columns if column not in (*results, *first)]
    beside = _blocks([*first, *keys], padded, room)[0]
    with_state = _blocks([*first, *results[: STATE in results], *keys], padded, room)[0]
    beside = with_state if len(with_state) > min(len(keys), 3) + len(first) else beside
    return list(dict.fromkeys([*beside, *first, *results, *keys]))


def _blocks(columns: list[str], padded: dict[str, list[str]], room: int) -> list[list[str]]:
    blocks: list[list[str]] = [[]]
    for column in columns:
        if len(GAP.join(padded[name][0] for name in [*blocks[-1], column])) > room and blocks[-1]:
            blocks.append([])
        blocks[-1].append(column)
    return blocks


def _column(runs: list[Run], column: str, cells: list[str], room: int) -> list[str]:
    most = {REASON: MAX_REASON, FOLDER: 500}.get(column, MAX_CELL)
    longest = min(max(most, len(column)), room)
    return _padded([short(text, longest) for text in cells], right=is_numeric(runs, column))


def is_numeric(runs: list[Run], column: str) -> bool:
    return all(is_number(run.value(column)) or run.value(column) is None for run in runs)


def _padded(cells: list[str], right: bool) -> list[str]:
    width = max(map(len, cells))
    return [cell.rjust(width) if right else cell.ljust(width) for cell in cells]


def cell(run: Run, column: str) -> str:
    """Return the text that a table shows for a run in a column."""
    value = run.value(column)
    if column not in run.metrics or not isinstance(value, float):
        return setting(value)
    digits = 0 if column == PATH_EPOCHS else 1 if column in ("seconds", "test/active_units") else 3
    spread = f" ± {run.spread[column]:.{digits}f}" if column in run.spread and digits == 3 else ""
    return f"{value:.{digits}f}{spread}"


def setting(value: Any) -> str:
    """Return a value of the configuration as a table shows it, on one line."""
    if value is None:
        return "-"
    text = f"{value:g}" if isinstance(value, float) else as_typed(value) if isinstance(value, list) else str(value)
    return printable(" ".join(text.split()))


def short(text: str, longest: int) -> str:
    """Return the text, or its beginning and its end if it is longer than `longest` characters."""
    if len(text) <= longest:
        return text
    head = (longest - 1) // 2
    return f"{text[:head]}…{text[len(text) - (longest - 1 - head) :]}"


STAMPS = (  # what can go of 2026-11-30/10-38-46-658821_NAME and sweeps/2026-11-30_10-40-40-119552_NAME
    (r"(sweeps/)?(\d{4}-\d\d-\d\d[/_])(\d\d-\d\d-\d\d)-\d{6}_", r"\2\3_"),
    (r"\d{4}-\d\d-\d\d[/_](\d\d-\d\d-\d\d_)", r"\1"),
    (r"^\d\d-\d\d-\d\d_", ""),
    (r"^[^/]+/", ""),  # the sweep's
)


def short_names(names: list[str], longest: int) -> list[str]:
    """Shorten names such as SWEEP/JOB to at most `longest` characters; those that become the same are numbered: …~2.

    First to go are the times in names of folders, but where only they tell two runs apart.
    """
    if max(map(len, names), default=0) <= longest:
        return names
    for stamp, instead in STAMPS:
        shorter = [re.sub(stamp, instead, name) for name in names]
        total = Counter(shorter)
        names = [new if total[new] == 1 else name for new, name in zip(shorter, names, strict=True)]
        if max(map(len, names)) <= longest:
            return names
    prefix = os.path.commonprefix(names)  # noqa: RUF071 - of any texts
    if all("/" in name for name in names) and len(prefix) > 3:  # of several sweeps the day
        names = [f"…{name[len(prefix) :]}" for name in names]
    shortened = [short(name, longest) for name in names]
    total, number = Counter(shortened), Counter[str]()
    for i, name in enumerate(shortened):
        number[name] += 1
        if total[name] > 1:
            suffix = f"~{number[name]}"
            shortened[i] = short(name, longest - len(suffix)) + suffix
    return shortened
