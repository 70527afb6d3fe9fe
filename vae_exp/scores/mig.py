"""Mutual information of codes in bins and factors, and what is made of it: MIG and modularity."""

from dataclasses import replace
from typing import Any

import numpy as np

from vae_exp.config.schema import checked, integer
from vae_exp.scores.common import LabelledCodes, generator

BINS = 20  # of equal width, as in Locatello et al. (2019)
SHUFFLES = 10  # of the factors: their mean is what the estimate finds in noise, of few rows and many values much


def mutual_information(codes: Any, factors: Any, bins: int = BINS) -> np.ndarray:
    """Return I(z_i; v_j) of codes [N, Z] in bins of equal width and factors [N, F]: [Z, F], nats."""
    return _binned_information(LabelledCodes.of(codes, factors), bins)


def above_chance(codes: Any, factors: Any, seed: int = 0) -> np.ndarray:
    """Return the excess of mutual_information over its mean for ten shuffles of the factors: [Z, F], nats, from 0."""
    data, rng = LabelledCodes.of(codes, factors), generator(seed)
    shuffles = (replace(data, factors=rng.permutation(data.factors)) for _ in range(SHUFFLES))
    chance = np.mean([_binned_information(shuffled, BINS) for shuffled in shuffles], axis=0)
    return np.maximum(_binned_information(data, BINS) - chance, 0)


def mig(codes: Any, factors: Any, bins: int = BINS) -> float:
    """Return MIG, the mean over factors of (I of the best latent - I of the second) / H(factor).

    Mutual information gap of codes [N, Z] and factors [N, F]; 1 is best. Chen et al. (2018),
    https://arxiv.org/abs/1802.04942, with the estimate of Locatello et al. (2019), https://arxiv.org/abs/1811.12359:
    the mean of q in bins of equal width. A factor of more values than bins cannot reach 1: a perfect code of dSprites'
    3, 6, 40, 32 and 32 values has 0.9024 in 20 bins.
    """
    data = LabelledCodes.of(codes, factors)
    ranked = np.sort(_binned_information(data, bins), axis=0)[::-1]
    second = ranked[1] if len(ranked) > 1 else 0.0
    return float(((ranked[0] - second) / factor_entropies(data.factors)).mean())


def modularity(codes: Any, factors: Any, bins: int = BINS) -> float:
    """Return modularity, the mean over latents of 1 - sum of the other I^2 / (largest I^2 (F - 1)).

    How nearly each latent tells of one factor only, from codes [N, Z] and two factors [N, F] or more; 1 is best, and a
    latent that tells nothing counts as 0. Ridgeway & Mozer (2018), https://arxiv.org/abs/1802.05312. It is high for
    rotated factors and for noise too.
    """
    squared = np.square(_binned_information(LabelledCodes.of(codes, factors, min_factors=2), bins))
    largest = squared.max(1)
    others = squared.sum(1) - largest
    apart = np.divide(others, largest * (squared.shape[1] - 1), out=np.ones_like(largest), where=largest > 0)
    return float((1 - apart).mean())


def factor_entropies(factors: np.ndarray) -> np.ndarray:
    """Return H(v_j) of factors [N, F] that are numbered from 0: [F], nats."""
    return np.array([-_p_log_p(np.bincount(column) / len(column)).sum() for column in factors.T])


def _binned_information(data: LabelledCodes, bins: int) -> np.ndarray:
    bins = checked("bins", bins, integer(2))
    low = data.codes.min(0)
    width = data.codes.max(0) - low
    position = np.divide(data.codes - low, width, out=np.zeros_like(data.codes), where=width > 0)
    binned = np.minimum((position * bins).astype(np.int64), bins - 1)
    n, z_dim = binned.shape
    information = np.empty((z_dim, len(data.n_values)))
    for factor, n_values in enumerate(data.n_values):  # all latents at once: a table [Z, bins, values]
        cell = (np.arange(z_dim) * bins + binned) * n_values + data.factors[:, factor, None]
        joint = np.bincount(cell.ravel(), minlength=z_dim * bins * n_values).reshape(z_dim, bins, n_values) / n
        p_bin, p_value = joint.sum(2), joint[0].sum(0)
        information[:, factor] = _p_log_p(joint).sum((1, 2)) - _p_log_p(p_bin).sum(1) - _p_log_p(p_value).sum()
    # Rounding may leave a little more or less than nothing where there is one bin, or as many as there are values.
    return np.where(information > 1e-12, information, 0)


def _p_log_p(p: np.ndarray) -> np.ndarray:
    return p * np.log(p, out=np.zeros_like(p), where=p > 0)
