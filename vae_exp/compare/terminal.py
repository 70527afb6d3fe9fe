"""The table of runs for a terminal, with no line longer than the terminal is wide."""

import shutil
import textwrap
from collections.abc import Collection
from typing import Any

from vae_exp.compare.names import short, short_names
from vae_exp.compare.runs import NAME, REASON, RESULTS, STATE, Run, is_number, swept_keys
from vae_exp.errors import printable

GAP = "  "
NARROWEST, WHEN_UNKNOWN = 40, 120  # characters
LONGEST_CELL, LONGEST_REASON = 28, 70
BLOCKS = 2  # one below the other; what does not fit into them is named


def table(
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
