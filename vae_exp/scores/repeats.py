"""A score with its spread: measured several times, on random parts of the rows."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vae_exp.errors import UserError
from vae_exp.scores.codes import LARGEST_SEED, Known, Unsuited, whole
from vae_exp.scores.importance import dci
from vae_exp.scores.interventions import beta_vae, factor_vae
from vae_exp.scores.linear import explicitness, fit_and_test_each_value, sap
from vae_exp.scores.mutual_information import infomec, mig, modularity

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
    caution: str = ""  # what a reader of its numbers should know
    fewest: int = 1  # factors that it needs
    check: Callable[[Known, int], object] = lambda known, seed: None  # of its own; raises Unsuited
    cautions: Mapping[str, str] = field(default_factory=dict)  # of a single number, where they differ

    def caution_of(self, key: str) -> str:
        return self.cautions.get(key, self.caution)


def _of_dci(codes: np.ndarray, factors: np.ndarray, seed: int) -> tuple[float, ...]:
    found = dci(codes, factors, seed=seed)
    return found.disentanglement, found.completeness, found.informativeness


def _of_infomec(codes: np.ndarray, factors: np.ndarray, seed: int) -> tuple[float, ...]:
    found = infomec(codes, factors, seed=seed)
    of_authors = found.modularity_published, found.compactness_published
    return found.modularity, of_authors[0], found.compactness, of_authors[1], found.explicitness


# Ranges are those over 24 draws by tests/cautions.py, which says of what codes.
SCORES = {
    "mig": Score(("mig",), lambda z, v, _: (mig(z, v),), "a factor of more than 20 values cannot reach 1"),
    "dci": Score(
        ("dci_disentanglement", "dci_completeness", "dci_informativeness"), _of_dci, "", 2, Known.fit_and_test
    ),
    "infomec": Score(
        ("infom", "infom_published", "infoc", "infoc_published", "infoe"),
        _of_infomec,
        fewest=2,
        cautions={
            "infom": "rotated factors have 0.33 to 0.67 (mean 0.49); latents of noise count as 0",
            "infom_published": "the authors' formula, as in papers; noise has 0.42 to 0.86 (mean 0.61)",
            "infoc": "rotated factors have 0.26 to 0.71 (mean 0.50)",
            "infoc_published": "the authors' formula, as in papers; noise has 0.36 to 0.78 (mean 0.57)",
        },
    ),
    "factor_vae": Score(
        ("factor_vae",),
        lambda z, v, seed: (factor_vae(z, v, seed=seed),),
        "rotated factors have 0.62 to 1.00 (mean 0.86); latents with a standard deviation under 0.05 are left out",
    ),
    "beta_vae": Score(
        ("beta_vae",),
        lambda z, v, seed: (beta_vae(z, v, seed=seed),),
        "rotated factors have 0.79 to 1.00 (mean 0.93), and a code without one of five factors 1; depends on scale",
    ),
    "sap": Score(
        ("sap",),
        lambda z, v, seed: (sap(z, v, seed=seed),),
        "a perfect code of dSprites' factors has 0.17 to 0.22 (mean 0.19); depends on scale and offset",
        check=Known.fit_and_test,
    ),
    "modularity": Score(
        ("modularity",),
        lambda z, v, _: (modularity(z, v),),
        "noise has 0.64 to 0.70 (mean 0.67), rotated factors 0.74 to 0.97 (mean 0.85)",
        2,
    ),
    "explicitness": Score(
        ("explicitness",),
        lambda z, v, seed: (explicitness(z, v, seed=seed),),
        "chance is 0.5; rotated factors have as much as a perfect code",
        check=fit_and_test_each_value,
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

    Each repeat takes `size` other rows at random, and a seed of its own: seed, seed + 1, ... Without a size it is
    10,000, or half of the rows where these are fewer than twice that: of all the rows, repeats would not differ. A
    number that a score lacks in some repeat, such as InfoC of one active latent, is NaN.

    Raises UserError for a score without that name, more rows than there are, no repeats, and as the scores do, before
    any of them is measured.
    """
    if isinstance(names, str):
        raise UserError(f"names={names}: it takes a list of names, such as [{names!r}].")
    if unknown := [name for name in names if name not in SCORES]:
        raise UserError(f"scores: there is no {', '.join(map(str, unknown))}. There are {', '.join(SCORES)}.")
    known = Known.of(codes, factors)
    n = len(known.codes)
    size = min(SIZE, n // 2) if size is None else whole("size", size, 1)
    if size > n:
        raise UserError(f"size={size}: there are {n:,} rows to take from.")
    repeats, seed = whole("repeats", repeats, 1), whole("seed", seed, 0, LARGEST_SEED)
    if unsuited := next(iter(_unsuited(known, names, size, repeats, seed).values()), None):
        raise unsuited
    found: dict[str, list[float]] = {}
    for repeat, rows in _parts(n, size, repeats, seed):
        for name in names:
            score = SCORES[name]
            measured = score.measure(known.codes[rows], known.factors[rows], repeat)
            for key, value in zip(score.keys, measured, strict=True):
                found.setdefault(key, []).append(value)
    return {
        key: Spread(float(np.mean(values)), float(np.std(values, ddof=1)) if repeats > 1 else float("nan"), values)
        for key, values in found.items()
    }


def unsuited(
    factors: Any, names: Collection[str], size: int, repeats: int, seed: int, called: Sequence[str] = ()
) -> dict[str, Unsuited]:
    """Return the scores that cannot be measured on `size` rows of these factors at a time, each with its error.

    It draws the parts of the rows that `spread` would draw, and measures nothing.
    """
    try:
        known = Known.of(np.zeros((len(factors), 1)), factors, called=called)
    except Unsuited as error:
        return dict.fromkeys(names, error)
    return _unsuited(known, names, size, repeats, seed)


def _unsuited(known: Known, names: Collection[str], size: int, repeats: int, seed: int) -> dict[str, Unsuited]:
    found: dict[str, Unsuited] = {}
    codes = np.zeros((size, 1))
    for repeat, rows in _parts(len(known.codes), size, repeats, seed):
        for name in [name for name in names if name not in found]:
            score = SCORES[name]
            try:
                score.check(Known.of(codes, known.factors[rows], score.fewest, known.called), repeat)
            except Unsuited as error:
                found[name] = error
    return found


def _parts(n: int, size: int, repeats: int, seed: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the seed of each repeat and the rows that it takes."""
    for repeat in range(seed, seed + repeats):
        of_it = repeat % (LARGEST_SEED + 1)
        yield of_it, np.random.default_rng(of_it).permutation(n)[:size]
