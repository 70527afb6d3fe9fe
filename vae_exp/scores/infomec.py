"""InfoMEC: modularity, compactness and explicitness of codes, all from information (Hsu et al. 2023)."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from vae_exp.scores.codes import LARGEST_SEED, Known, whole
from vae_exp.scores.fitting import fitting
from vae_exp.scores.mutual_information import entropies
from vae_exp.scores.nearest_information import nearest_information

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
