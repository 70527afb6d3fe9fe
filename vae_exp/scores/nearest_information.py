"""Mutual information of a number and a class by nearest neighbours, for all latents and factors at once."""

import numpy as np

from vae_exp.scores.codes import Known

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
