"""Mutual information between codes and factors, and the InfoMEC scores."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vae_exp.scores.codes import LARGEST_SEED, Known, fitting, whole

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


K_NEIGHBOURS = 10  # as in Hsu et al. (2023)
JITTER = 1e-10  # of a latent's standard deviation: it takes equal codes apart, or there are no neighbours to measure
ROUNDING = 8 * np.finfo(float).eps


def nearest_information(known: Known, seed: int, k: int = K_NEIGHBOURS) -> np.ndarray:
    """Return I(z_i; v_j) [Z, F], nats: the estimate of Ross (2014), the one of Kraskov et al. for a discrete side.

    https://doi.org/10.1371/journal.pone.0087357. It has little bias, so that without information it may come out
    below 0. A value that only one row has is left out.
    """
    from scipy.special import digamma  # here, because importing SciPy takes a while

    z = known.standardised()
    # The same for every latent, turned as the latent is: no order and no sign of latents changes the estimate.
    turned = np.where(np.take_along_axis(z, (z != 0).argmax(0)[None], axis=0) < 0, -1, 1)
    z = z + JITTER * np.random.default_rng(seed).standard_normal((len(z), 1)) * turned
    found = np.empty((z.shape[1], known.factors.shape[1]))
    for factor, labels in enumerate(known.factors.T):
        counts = np.bincount(labels)
        kept = z[counts[labels] > 1]
        labels = labels[counts[labels] > 1]
        if not len(labels):
            found[:, factor] = 0
            continue
        members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
        radius = np.empty_like(kept)
        for rows in members:
            radius[rows] = _distances_to_kth(kept[rows], min(k, len(rows) - 1))
        # The neighbour itself lies outside, and must not come in by the rounding of a sum.
        radius = np.maximum(radius - ROUNDING * (np.abs(kept) + radius), 0)
        within = np.empty_like(kept)  # of all classes, the row itself included
        for latent, column in enumerate(kept.T):
            ordered, reach = np.sort(column), radius[:, latent]
            upper = np.searchsorted(ordered, column + reach, "right")
            within[:, latent] = upper - np.searchsorted(ordered, column - reach, "left")
        sizes = np.array([len(rows) for rows in members])
        of_classes = sizes * (digamma(np.minimum(k, sizes - 1)) - digamma(sizes))
        found[:, factor] = digamma(len(kept)) + of_classes.sum() / len(kept) - digamma(within).mean(0)
    return found


def _distances_to_kth(x: np.ndarray, k: int) -> np.ndarray:
    """Return the distance of each number of x [n, Z] to its k-th nearest in its column, itself left out.

    Sorted, the k nearest of a number are k of the windows that hold it: the best window is the one that reaches least.
    """
    order = np.argsort(x, axis=0)
    ordered = np.take_along_axis(x, order, axis=0)
    padded = np.pad(ordered, ((k, k), (0, 0)), constant_values=np.nan)
    n = len(x)
    nearest = np.full_like(ordered, np.inf)
    for below in range(k + 1):
        left = ordered - padded[k - below : k - below + n]
        right = padded[2 * k - below : 2 * k - below + n] - ordered
        nearest = np.fmin(nearest, np.maximum(left, right))  # NaN, beyond an end, is never the least
    found = np.empty_like(x)
    np.put_along_axis(found, order, nearest, axis=0)
    return found


LEAST_RANGE = 1 / 20  # of the largest range of a latent: one that moves less is not active
NULL_DRAWS = 20  # estimates with shuffled factors, at least, for each of them
STEPS = 100  # of the logistic regression, as in the authors' code
FAR = 4  # standard deviations of these estimates: beyond is information


@dataclass(frozen=True)
class InfoMEC:
    modularity: float  # InfoM
    compactness: float  # InfoC; NaN with one active latent, of which it says nothing
    explicitness: float  # InfoE
    nmi: np.ndarray  # [Z, F]: I(z_i; v_j) / H(v_j)
    active: np.ndarray  # [Z], true or false

    @property
    def modularity_published(self) -> float:
        """Return InfoM as the authors compute it: what the estimate finds in noise is shared at random, and counts.

        A latent in which it finds nothing at all is left out; one of the two versions of their code gives NaN then.
        """
        return _above_chance(self.nmi[self.active])

    @property
    def compactness_published(self) -> float:
        """Return InfoC as the authors compute it; NaN with one active latent."""
        return _above_chance(self.nmi[self.active].T)


def infomec(codes: Any, factors: Any, seed: int = 0) -> InfoMEC:
    """Return InfoM, InfoC and InfoE of codes [N, Z] and two factors [N, F] or more; 1 is best, and chance is 0.

    Hsu et al. (2023), https://arxiv.org/abs/2305.18378. InfoM is the mean over active latents of the largest share of
    the normalised mutual information that goes to one factor, (share - 1/F) / (1 - 1/F); InfoC the same with factors
    and latents exchanged. InfoE is 1 - CE / CE_null of a logistic regression without a penalty, on the same rows. A
    latent is active that moves more than a twentieth of the one that moves most, so their scales matter.

    Two things differ from the authors' code, https://github.com/kylehkhsu/latent_quantization. Where nothing of a
    latent or of a factor stands out from shuffled factors, its share is the even one here: there, the noise of the
    estimates is shared at random, and pure noise has an InfoM of 0.42 to 0.86 (mean 0.61; over 24
    draws, by tests/cautions.py). To compare with published figures take
    `modularity_published` and `compactness_published`, which have that. And for InfoE every row counts the same here,
    there every value of a factor: that is the same if all values occur equally often. seed is that of the shuffles.
    InfoC is NaN with one active latent: one latent is neither compact nor not.

    Raises UserError for arrays that do not go together, and for a factor that never changes.
    """
    known, seed = Known.of(codes, factors, fewest=2), whole("seed", seed, 0, LARGEST_SEED)
    h = entropies(known.factors)
    nmi = np.maximum(nearest_information(known, seed), 0) / h
    informative = nmi > FAR * _null_deviation(known, seed) / h
    reach = np.ptp(known.codes, axis=0)
    active = reach > LEAST_RANGE * reach.max()
    kept, told = nmi[active], informative[active]
    infom, infoc = _above_chance(_evened(kept, told)), _above_chance(_evened(kept.T, told.T))
    return InfoMEC(infom, infoc, _info_e(known, h), nmi, active)


def _null_deviation(known: Known, seed: int) -> np.ndarray:
    """Return the standard deviation [F], nats, of the estimate without information: with the factors shuffled."""
    rng = np.random.default_rng(seed)
    draws = [
        nearest_information(Known(known.codes, rng.permutation(known.factors), known.n_values), seed)
        for _ in range(max(3, -(-NULL_DRAWS // known.codes.shape[1])))
    ]
    return np.sqrt(np.square(np.concatenate(draws)).mean(0))


def _evened(nmi: np.ndarray, informative: np.ndarray) -> np.ndarray:
    """Replace rows without any information by even ones: what noise leaves there is no share."""
    return np.where(informative.any(1, keepdims=True), nmi, 1)


def _above_chance(nmi: np.ndarray) -> float:
    """Return the mean over nonempty rows of the largest share of one column, scaled from 0 (even shares) to 1."""
    if not nmi.any():
        return 0.0
    n = nmi.shape[1]
    if n == 1:
        return float("nan")
    nmi = nmi[nmi.any(1)]
    share = (nmi.max(1) / nmi.sum(1)).mean()
    return max(0.0, float((share - 1 / n) / (1 - 1 / n)))  # rounding may leave a little less than nothing


def _info_e(known: Known, h: np.ndarray) -> float:
    """Return the part of a factor's entropy that logistic regression of all latents explains, mean over factors."""
    z = known.standardised()
    with fitting():
        left = [_cross_entropy(z, labels, n) for labels, n in zip(known.factors.T, known.n_values, strict=True)]
    return float(np.mean(1 - np.array(left) / h))


def _cross_entropy(z: np.ndarray, labels: np.ndarray, n_values: int) -> float:
    """Return the cross entropy, nats, of labels [N] under a logistic regression of z [N, Z].

    It has no penalty and is fitted in 100 steps. Classes that can be separated have no best weights, and the cross
    entropy is near 0 long before. Single precision is several times faster than scikit-learn here, and 40 classes would
    take it most of ten seconds.
    """
    from scipy.optimize import minimize  # here, because importing SciPy takes a while

    n, rows = len(z), np.arange(len(z))
    x = np.concatenate([z, np.ones((n, 1))], axis=1).astype(np.float32)
    start = np.zeros((x.shape[1], n_values))
    start[-1] = np.log(np.maximum(np.bincount(labels, minlength=n_values) / n, 1 / n))  # as good as without any latent

    def value_and_gradient(weights: np.ndarray) -> tuple[float, np.ndarray]:
        logits = x @ weights.reshape(start.shape).astype(np.float32)
        logits -= logits.max(1, keepdims=True)
        chosen = logits[rows, labels]
        p = np.exp(logits, out=logits)
        total = p.sum(1)
        value = (np.log(total) - chosen).mean(dtype=np.float64)
        p /= total[:, None]
        p[rows, labels] -= 1
        return float(value), (x.T @ p / n).astype(np.float64).ravel()

    steps = {"maxiter": STEPS, "gtol": 1e-4, "ftol": 1e-9}
    return float(minimize(value_and_gradient, start.ravel(), jac=True, method="L-BFGS-B", options=steps).fun)
