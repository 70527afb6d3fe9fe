"""A score with its spread: measured several times, on random parts of the rows."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import numpy as np

from vae_exp.errors import UserError
from vae_exp.scores.codes import Known
from vae_exp.scores.importance import dci
from vae_exp.scores.infomec import infomec
from vae_exp.scores.interventions import beta_vae, factor_vae
from vae_exp.scores.linear import explicitness, sap
from vae_exp.scores.mutual_information import mig, modularity

SIZE, REPEATS = 10_000, 5


@dataclass(frozen=True)
class Spread:
    mean: float
    std: float  # over the repeats, with n - 1; NaN for a single one
    values: list[float]


@dataclass(frozen=True)
class Score:
    keys: tuple[str, ...]  # the numbers that it has
    measure: Callable[[np.ndarray, np.ndarray, int], tuple[float, ...]]  # of codes, factors and a seed
    caution: str = ""  # what a reader of the number should know


def _of_dci(codes: np.ndarray, factors: np.ndarray, seed: int) -> tuple[float, ...]:
    found = dci(codes, factors, seed=seed)
    return found.disentanglement, found.completeness, found.informativeness


def _of_infomec(codes: np.ndarray, factors: np.ndarray, seed: int) -> tuple[float, ...]:
    found = infomec(codes, factors, seed=seed)
    return found.modularity, found.compactness, found.explicitness


SCORES = {
    "mig": Score(("mig",), lambda z, v, _: (mig(z, v),), "a factor of more than 20 values cannot reach 1"),
    "dci": Score(("dci_disentanglement", "dci_completeness", "dci_informativeness"), _of_dci),
    "infomec": Score(("infom", "infoc", "infoe"), _of_infomec),
    "factor_vae": Score(
        ("factor_vae",),
        lambda z, v, seed: (factor_vae(z, v, seed=seed),),
        "a random rotation of the factors has 0.94; latents with a standard deviation under 0.05 are left out",
    ),
    "beta_vae": Score(
        ("beta_vae",),
        lambda z, v, seed: (beta_vae(z, v, seed=seed),),
        "a random rotation has 0.99, and a code without one of five factors 1",
    ),
    "sap": Score(
        ("sap",),
        lambda z, v, seed: (sap(z, v, seed=seed),),
        "a perfect code has 0.25 where factors have as many values as those of dSprites",
    ),
    "modularity": Score(("modularity",), lambda z, v, _: (modularity(z, v),), "pure noise has 0.66"),
    "explicitness": Score(("explicitness",), lambda z, v, seed: (explicitness(z, v, seed=seed),), "chance is 0.5"),
}
DEFAULT = ("mig", "dci", "infomec")


def spread(
    codes: Any,
    factors: Any,
    names: Collection[str] = DEFAULT,
    size: int | None = None,
    repeats: int = REPEATS,
    seed: int = 0,
) -> dict[str, Spread]:
    """The scores that are named, of codes [N, Z] and factors [N, F]: mean, standard deviation and value by value.

    Each repeat takes `size` other rows at random, and a seed of its own: seed, seed + 1, ... Without a size it is
    10,000, or half of the rows where these are fewer than twice that: of all the rows, repeats would not differ.

    Raises UserError for a score without that name, more rows than there are, no repeats, and as the scores do.
    """
    if unknown := [name for name in names if name not in SCORES]:
        raise UserError(f"scores: there is no {', '.join(map(str, unknown))}. There are {', '.join(SCORES)}.")
    known = Known.of(codes, factors)
    n = len(known.codes)
    size = min(SIZE, n // 2) if size is None else size
    if not 0 < size <= n:
        raise UserError(f"size={size}: there are {n:,} rows to take from.")
    if repeats < 1:
        raise UserError(f"repeats={repeats}: it takes one or more.")
    found: dict[str, list[float]] = {}
    for repeat in range(seed, seed + repeats):
        rows = np.random.default_rng(repeat).permutation(n)[:size]
        for name in names:
            score = SCORES[name]
            measured = score.measure(known.codes[rows], known.factors[rows], repeat)
            for key, value in zip(score.keys, measured, strict=True):
                found.setdefault(key, []).append(value)
    return {
        key: Spread(float(np.mean(values)), float(np.std(values, ddof=1)) if repeats > 1 else float("nan"), values)
        for key, values in found.items()
    }
