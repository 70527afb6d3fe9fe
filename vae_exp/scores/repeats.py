"""The disentanglement scores by name, and each with its spread: measured several times, on random parts of the rows."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from vae_exp.config.schema import Count, Seed, checked
from vae_exp.errors import UserError
from vae_exp.scores.common import LabelledCodes, UnsuitableFactors
from vae_exp.scores.dci import dci
from vae_exp.scores.factor_vae import beta_vae, factor_vae
from vae_exp.scores.infomec import infomec
from vae_exp.scores.mig import mig, modularity
from vae_exp.scores.sap import explicitness, sap

SIZE, REPEATS = 10_000, 5
SEEDS = 2**32  # that scikit-learn takes


@dataclass(frozen=True)
class Spread:
    mean: float
    std: float  # over the repeats, with n - 1; NaN for a single one
    values: list[float]


@dataclass(frozen=True)
class Score:
    cautions: dict[str, str]  # what a reader should know of each of its numbers, by name
    measure: Callable[[np.ndarray, np.ndarray, int], tuple[float, ...]]  # of codes, factors and a seed
    min_factors: int = 1
    check: Callable[[LabelledCodes, int], object] = lambda data, seed: None  # raises UnsuitableFactors

    def caution_of(self, key: str) -> str:
        return self.cautions[key]


def _dci(codes: np.ndarray, factors: np.ndarray, seed: int) -> tuple[float, ...]:
    score = dci(codes, factors, seed=seed)
    return score.disentanglement, score.completeness, score.informativeness


def _infomec(codes: np.ndarray, factors: np.ndarray, seed: int) -> tuple[float, ...]:
    score = infomec(codes, factors, seed=seed)
    published = score.modularity_published, score.compactness_published
    return score.modularity, published[0], score.compactness, published[1], score.explicitness


# Ranges are those over 24 draws by tests/cautions.py, which says of what codes.
SCORES = {
    "mig": Score({"mig": "a factor of more than 20 values cannot reach 1"}, lambda z, v, seed: (mig(z, v),)),
    "dci": Score(
        {"dci_disentanglement": "", "dci_completeness": "", "dci_informativeness": ""}, _dci, 2, LabelledCodes.split
    ),
    "infomec": Score(
        {
            "infom": "rotated factors have 0.33 to 0.67 (mean 0.49); latents of noise count as 0",
            "infom_published": "the authors' formula, as in papers; noise has 0.42 to 0.86 (mean 0.61)",
            "infoc": "rotated factors have 0.26 to 0.71 (mean 0.50)",
            "infoc_published": "the authors' formula, as in papers; noise has 0.36 to 0.78 (mean 0.57)",
            "infoe": "",
        },
        _infomec,
        2,
    ),
    "factor_vae": Score(
        {
            "factor_vae": "rotated factors have 0.62 to 1.00 (mean 0.86); latents with a standard deviation under 0.05 "
            "are left out"
        },
        lambda z, v, seed: (factor_vae(z, v, seed=seed),),
    ),
    "beta_vae": Score(
        {
            "beta_vae": "rotated factors have 0.79 to 1.00 (mean 0.93), and a code without one of five factors 1; "
            "depends on scale"
        },
        lambda z, v, seed: (beta_vae(z, v, seed=seed),),
    ),
    "sap": Score(
        {"sap": "a perfect code of dSprites' factors has 0.17 to 0.22 (mean 0.19); depends on scale and offset"},
        lambda z, v, seed: (sap(z, v, seed=seed),),
        check=LabelledCodes.split,
    ),
    "modularity": Score(
        {"modularity": "noise has 0.64 to 0.70 (mean 0.67), rotated factors 0.74 to 0.97 (mean 0.85)"},
        lambda z, v, seed: (modularity(z, v),),
        2,
    ),
    "explicitness": Score(
        {"explicitness": "chance is 0.5; rotated factors have as much as a perfect code"},
        lambda z, v, seed: (explicitness(z, v, seed=seed),),
        check=partial(LabelledCodes.split, in_both=True),
    ),
}
DEFAULT = ("mig", "dci", "infomec")


def usual_size(n: int, repeats: int) -> int:
    """Return how many of n rows each repeat takes by default: with all of them, repeats would not differ."""
    return min(SIZE, n if repeats == 1 else n // 2)


def spread(
    codes: Any,
    factors: Any,
    names: Collection[str] = DEFAULT,
    size: int | None = None,
    repeats: int = REPEATS,
    seed: int = 0,
) -> dict[str, Spread]:
    """Return the named scores of codes [N, Z] and factors [N, F]: mean, standard deviation and all values.

    Each repeat takes `size` other rows at random, by default 10,000 or half of them, and a seed of its own: seed,
    seed + 1, ... A number that a score lacks in some repeat, such as InfoC of one active latent, is NaN.
    """
    if isinstance(names, str):
        raise UserError(f"names={names}: it takes a list of names, such as [{names!r}].")
    if unknown := [name for name in names if name not in SCORES]:
        raise UserError(f"scores: there is no {', '.join(map(str, unknown))}. There are {', '.join(SCORES)}.")
    data = LabelledCodes.of(codes, factors)
    n = len(data.codes)
    size = min(SIZE, n // 2) if size is None else checked("size", size, Count)
    if size > n:
        raise UserError(f"size={size}: there are {n:,} rows to take from.")
    repeats, seed = checked("repeats", repeats, Count), checked("seed", seed, Seed)
    for error in unsuitable(data.factors, names, size, repeats, seed).values():
        raise error
    values: dict[str, list[float]] = {}
    for repeat_seed, rows in _random_parts(n, size, repeats, seed):
        for score in (SCORES[name] for name in names):
            numbers = score.measure(data.codes[rows], data.factors[rows], repeat_seed)
            for key, value in zip(score.cautions, numbers, strict=True):
                values.setdefault(key, []).append(value)
    return {
        key: Spread(float(np.mean(v)), float(np.std(v, ddof=1)) if repeats > 1 else float("nan"), v)
        for key, v in values.items()
    }


def unsuitable(
    factors: Any, names: Collection[str], size: int, repeats: int, seed: int, factor_names: Sequence[str] = ()
) -> dict[str, UnsuitableFactors]:
    """Return the scores that cannot be measured on the parts of these rows that `spread` would draw, with the error."""
    try:
        data = LabelledCodes.of(np.zeros((len(factors), 1)), factors, names=factor_names)
    except UnsuitableFactors as error:
        return dict.fromkeys(names, error)
    errors: dict[str, UnsuitableFactors] = {}
    codes = np.zeros((size, 1))
    for repeat_seed, rows in _random_parts(len(data.codes), size, repeats, seed):
        for name in [name for name in names if name not in errors]:
            score = SCORES[name]
            try:
                score.check(LabelledCodes.of(codes, data.factors[rows], score.min_factors, data.names), repeat_seed)
            except UnsuitableFactors as error:
                errors[name] = error
    return errors


def _random_parts(n: int, size: int, repeats: int, seed: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the seed of each repeat and the rows that it takes."""
    for repeat_seed in (repeat % SEEDS for repeat in range(seed, seed + repeats)):
        yield repeat_seed, np.random.default_rng(repeat_seed).permutation(n)[:size]
