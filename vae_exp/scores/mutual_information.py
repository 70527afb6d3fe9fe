"""How much each latent tells about each factor, in bins, and the scores that read that matrix: MIG and modularity."""

from dataclasses import replace
from typing import Any

import numpy as np

from vae_exp.scores.codes import Known, whole

BINS = 20  # of equal width, as in Locatello et al. (2019)
SHUFFLES = 10  # of the factors: their mean is what the estimate finds where there is nothing


def mutual_information(codes: Any, factors: Any, bins: int = BINS) -> np.ndarray:
    """Return I(z_i; v_j) of codes [N, Z] in bins of equal width and factors [N, F]: [Z, F], nats.

    Raises UserError for arrays that do not go together, a factor that never changes, and fewer than two bins.
    """
    return _informations(Known.of(codes, factors), bins)


def above_chance(codes: Any, factors: Any, bins: int = BINS, seed: int = 0) -> np.ndarray:
    """Return the excess of mutual_information over its mean for ten shuffles of the factors: [Z, F], nats, from 0.

    For a look at what each latent tells: with few rows and many values, the estimate finds information in pure noise.
    Raises UserError as mutual_information.
    """
    known, rng = Known.of(codes, factors), np.random.default_rng(seed)
    by_chance = [_informations(replace(known, factors=rng.permutation(known.factors)), bins) for _ in range(SHUFFLES)]
    return np.maximum(_informations(known, bins) - np.mean(by_chance, axis=0), 0)


def entropies(factors: np.ndarray) -> np.ndarray:
    """Return H(v_j) of factors [N, F] that are numbered from 0: [F], nats."""
    shares = [np.bincount(column) / len(column) for column in factors.T]
    return np.array([-_plogp(share).sum() for share in shares])


def mig(codes: Any, factors: Any, bins: int = BINS) -> float:
    """Return MIG, the mean over factors of (I of the best latent - I of the second) / H(factor).

    Mutual information gap of codes [N, Z] and factors [N, F]; 1 is best. Chen et al. (2018),
    https://arxiv.org/abs/1802.04942, with the estimate of Locatello et al. (2019), https://arxiv.org/abs/1811.12359:
    the mean of q in bins of equal width. A factor of more values than bins cannot reach 1: a perfect code of dSprites'
    3, 6, 40, 32 and 32 values has 0.9024 in 20 bins. Raises UserError as mutual_information.
    """
    known = Known.of(codes, factors)
    ranked = np.sort(_informations(known, bins), axis=0)[::-1]
    second = ranked[1] if len(ranked) > 1 else 0.0
    return float(((ranked[0] - second) / entropies(known.factors)).mean())


def modularity(codes: Any, factors: Any, bins: int = BINS) -> float:
    """Return modularity, the mean over latents of 1 - sum of the other I^2 / (largest I^2 (F - 1)).

    How nearly each latent tells of one factor only, from codes [N, Z] and two factors [N, F] or more; 1 is best, and a
    latent that tells nothing counts as 0. Ridgeway & Mozer (2018), https://arxiv.org/abs/1802.05312. It is high for
    codes that are not modular: 0.64 to 0.70 (mean 0.67) for noise, because what the estimate leaves of nothing is no
    even share, and 0.74 to 0.97 (mean 0.85) for randomly rotated factors (over 24 draws, by tests/cautions.py). Raises
    UserError as mutual_information.
    """
    squared = np.square(_informations(Known.of(codes, factors, fewest=2), bins))
    largest = squared.max(1)
    others = squared.sum(1) - largest
    apart = np.divide(others, largest * (squared.shape[1] - 1), out=np.ones_like(largest), where=largest > 0)
    return float((1 - apart).mean())


def _informations(known: Known, bins: int) -> np.ndarray:
    bins = whole("bins", bins, 2)
    low = known.codes.min(0)
    width = known.codes.max(0) - low
    share = np.divide(known.codes - low, width, out=np.zeros_like(known.codes), where=width > 0)
    binned = np.minimum((share * bins).astype(np.int64), bins - 1)
    n, z_dim = binned.shape
    found = np.empty((z_dim, len(known.n_values)))
    for factor, n_values in enumerate(known.n_values):  # all latents at once: a table [Z, bins, values]
        cell = (np.arange(z_dim) * bins + binned) * n_values + known.factors[:, factor, None]
        joint = np.bincount(cell.ravel(), minlength=z_dim * bins * n_values).reshape(z_dim, bins, n_values) / n
        of_bins, of_values = joint.sum(2), joint[0].sum(0)
        found[:, factor] = _plogp(joint).sum((1, 2)) - _plogp(of_bins).sum(1) - _plogp(of_values).sum()
    # Rounding may leave a little more or less than nothing where there is one bin, or as many as there are values.
    return np.where(found > 1e-12, found, 0)


def _plogp(p: np.ndarray) -> np.ndarray:
    return p * np.log(p, out=np.zeros_like(p), where=p > 0)
