"""The history of a run as the page shows it, over epochs: the terms of the ELBO and the KL of each latent."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from vae_exp.compare.runs import Run, is_finite, is_number

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
