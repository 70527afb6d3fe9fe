"""InfoMEC: modularity, compactness and explicitness by information (Hsu et al. 2023)."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vae_exp.config.schema import Seed, checked
from vae_exp.scores.common import LabelledCodes, quiet_fit, standardise
from vae_exp.scores.mig import factor_entropies

K_NEIGHBOURS = 10  # as in Hsu et al. (2023)
JITTER = 1e-10  # of a latent's standard deviation: it takes equal codes apart, or there are no neighbours to measure
ROUNDING = 8 * np.finfo(float).eps
MIN_RANGE = 1 / 20  # of the largest range of a latent: one that moves less is not active
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
        """Return InfoM as the authors compute it: what the estimate finds in noise is shared at random, and counts."""
        return _largest_share(self.nmi[self.active])

    @property
    def compactness_published(self) -> float:
        """Return InfoC as the authors compute it; NaN with one active latent."""
        return _largest_share(self.nmi[self.active].T)


def infomec(codes: Any, factors: Any, seed: int = 0) -> InfoMEC:
    """Return InfoM, InfoC and InfoE of codes [N, Z] and two factors [N, F] or more; 1 is best, and chance is 0.

    Hsu et al. (2023), https://arxiv.org/abs/2305.18378. InfoM is the mean over active latents of the largest share of
    the normalised mutual information that goes to one factor, (share - 1/F) / (1 - 1/F); InfoC the same with factors
    and latents exchanged. InfoE is 1 - CE / CE_null of a logistic regression without a penalty, on the same rows. A
    latent is active that moves more than a twentieth of the one that moves most, so their scales matter.

    Two things differ from the authors' code, https://github.com/kylehkhsu/latent_quantization. Where nothing of a
    latent or of a factor stands out from shuffled factors (seed is that of the shuffles), its share is the even one
    here: there the noise of the estimates is shared at random, and pure noise may have an InfoM of 0.8. To compare with
    published figures take `modularity_published` and `compactness_published`, which have that. And for InfoE every row
    counts the same here, there every value of a factor.
    """
    data, seed = LabelledCodes.of(codes, factors, min_factors=2), checked("seed", seed, Seed)
    entropy = factor_entropies(data.factors)
    nmi = np.maximum(nearest_information(data, seed), 0) / entropy
    informative = nmi > FAR * _null_deviation(data, seed) / entropy
    span = np.ptp(data.codes, axis=0)
    active = span > MIN_RANGE * span.max()
    # Rows without any information become even ones: what noise leaves there is no share.
    active_nmi, known = nmi[active], informative[active]
    infom = _largest_share(np.where(known.any(1, keepdims=True), active_nmi, 1))
    infoc = _largest_share(np.where(known.any(0)[:, None], active_nmi.T, 1))
    return InfoMEC(infom, infoc, _explained(data, entropy), nmi, active)


def nearest_information(data: LabelledCodes, seed: int, k: int = K_NEIGHBOURS) -> np.ndarray:
    """Return I(z_i; v_j) [Z, F], nats: the estimate of Ross (2014), the one of Kraskov et al. for a discrete side.

    https://doi.org/10.1371/journal.pone.0087357. It has little bias, so that it may come out below 0. A value that only
    one row has is left out.
    """
    from scipy.special import digamma  # here, because importing SciPy takes a while

    z = standardise(data.codes)
    # The same for every latent, turned as the latent is: no order and no sign of latents changes the estimate.
    sign = np.where(np.take_along_axis(z, (z != 0).argmax(0)[None], axis=0) < 0, -1, 1)
    z = z + JITTER * np.random.default_rng(seed).standard_normal((len(z), 1)) * sign
    information = np.zeros((z.shape[1], data.factors.shape[1]))
    for factor, labels in enumerate(data.factors.T):
        repeated = np.bincount(labels)[labels] > 1
        if not repeated.any():
            continue
        x, labels = z[repeated], labels[repeated]
        classes = [np.flatnonzero(labels == label) for label in np.unique(labels)]
        radius = np.empty_like(x)
        for rows in classes:
            radius[rows] = _distances_to_kth(x[rows], min(k, len(rows) - 1))
        # The neighbour itself lies outside, and must not come in by the rounding of a sum.
        radius = np.maximum(radius - ROUNDING * (np.abs(x) + radius), 0)
        within = np.empty_like(x)  # of all classes, the row itself included
        for latent, column in enumerate(x.T):
            ordered, reach = np.sort(column), radius[:, latent]
            upper = np.searchsorted(ordered, column + reach, "right")
            within[:, latent] = upper - np.searchsorted(ordered, column - reach, "left")
        sizes = np.array([len(rows) for rows in classes])
        per_class = sizes * (digamma(np.minimum(k, sizes - 1)) - digamma(sizes))
        information[:, factor] = digamma(len(x)) + per_class.sum() / len(x) - digamma(within).mean(0)
    return information


def _distances_to_kth(x: np.ndarray, k: int) -> np.ndarray:
    """Return the distance of each number of x [n, Z] to its k-th nearest in its column, itself left out.

    Sorted, the k nearest of a number are k of the windows that hold it: the best window is the one that reaches least.
    """
    order, n = np.argsort(x, axis=0), len(x)
    ordered = np.take_along_axis(x, order, axis=0)
    padded = np.pad(ordered, ((k, k), (0, 0)), constant_values=np.nan)
    nearest = np.full_like(ordered, np.inf)
    for below in range(k + 1):
        left = ordered - padded[k - below : k - below + n]
        right = padded[2 * k - below : 2 * k - below + n] - ordered
        nearest = np.fmin(nearest, np.maximum(left, right))  # NaN, beyond an end, is never the least
    distances = np.empty_like(x)
    np.put_along_axis(distances, order, nearest, axis=0)
    return distances


def _null_deviation(data: LabelledCodes, seed: int) -> np.ndarray:
    """Return the standard deviation [F], nats, of the estimate without information: with the factors shuffled."""
    rng = np.random.default_rng(seed)
    n_draws = max(3, -(-NULL_DRAWS // data.codes.shape[1]))
    shuffles = [replace(data, factors=rng.permutation(data.factors)) for _ in range(n_draws)]
    draws = [nearest_information(shuffled, seed) for shuffled in shuffles]
    return np.sqrt(np.square(np.concatenate(draws)).mean(0))


def _largest_share(nmi: np.ndarray) -> float:
    """Return the mean over nonempty rows of the largest share of one column, scaled from 0 (even shares) to 1."""
    if not nmi.any():
        return 0.0
    n = nmi.shape[1]
    if n == 1:
        return float("nan")
    nmi = nmi[nmi.any(1)]
    largest = (nmi.max(1) / nmi.sum(1)).mean()
    return max(0.0, float((largest - 1 / n) / (1 - 1 / n)))  # rounding may leave a little less than nothing


def _explained(data: LabelledCodes, entropy: np.ndarray) -> float:
    """Return the part of a factor's entropy that logistic regression of all latents explains, mean over factors."""
    z = standardise(data.codes)
    with quiet_fit():
        left = [_cross_entropy(z, labels, n) for labels, n in zip(data.factors.T, data.n_values, strict=True)]
    return float(np.mean(1 - np.array(left) / entropy))


def _cross_entropy(z: np.ndarray, labels: np.ndarray, n_values: int) -> float:
    """Return the cross entropy, nats, of labels [N] under a logistic regression of z [N, Z].

    It has no penalty and is fitted in 100 steps, in single precision several times faster than by scikit-learn.
    Classes that can be separated have no best weights, and the cross entropy is near 0 long before.
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

    options = {"maxiter": STEPS, "gtol": 1e-4, "ftol": 1e-9}
    return float(minimize(value_and_gradient, start.ravel(), jac=True, method="L-BFGS-B", options=options).fun)
