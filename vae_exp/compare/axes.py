"""The axes of swept values: their scale, their order, and which keys deserve one."""

import itertools
import math
import statistics
from typing import Any

from vae_exp.compare.runs import BOOKKEEPING, SEEDS, Run, differing, order


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
