"""Scores that hold one factor still and look which latents move: those of the FactorVAE and of the beta-VAE."""

from typing import Any

import numpy as np

from vae_exp.config.schema import Count, checked, integer
from vae_exp.scores.common import LabelledCodes, generator, quiet_fit, standardise

BATCH_SIZE, N_FIT, N_TEST = 64, 10_000, 5_000  # as in Locatello et al. (2019)
MIN_STD = 0.05
CHUNK = 1000  # batches in memory


def factor_vae(
    codes: Any, factors: Any, batch_size: int = BATCH_SIZE, least_deviation: float = MIN_STD, seed: int = 0
) -> float:
    """Return how often the latent that varies least in a batch identifies the batch's fixed factor; 1 is best.

    From codes [N, Z] and factors [N, F]; variances are relative to those of all codes, and a majority vote of 10,000
    batches names the factor of each latent, tried on 5,000. Kim & Mnih (2018), https://arxiv.org/abs/1802.05983.
    Latents with a standard deviation below least_deviation are left out, as in Locatello et al. (2019): that is an
    absolute number, so codes on a small scale lose them all, and have 0. Rotated factors may have 1 too; noise has 1/F.
    """
    data = LabelledCodes.of(codes, factors)
    batch_size, rng = checked("batch_size", batch_size, integer(2)), generator(seed)
    z = data.codes[:, (data.codes.std(0) >= least_deviation) & standardise(data.codes).any(0)]
    if not z.shape[1]:
        return 0.0
    sampler = _SameValue(data)
    counts = []
    for n in (N_FIT, N_TEST):
        votes = np.zeros((z.shape[1], data.factors.shape[1]))
        for start in range(0, n, CHUNK):
            fixed = rng.integers(votes.shape[1], size=min(CHUNK, n - start))
            first = rng.integers(len(z), size=(len(fixed), 1)).repeat(batch_size, axis=1)
            batch = z[sampler.draw(fixed, first, rng)]
            np.add.at(votes, ((batch.var(1) / z.var(0)).argmin(1), fixed), 1)
        counts.append(votes)
    factor = counts[0].argmax(1)
    return float(counts[1][np.arange(len(factor)), factor].sum() / N_TEST)


def beta_vae(codes: Any, factors: Any, batch_size: int = BATCH_SIZE, seed: int = 0) -> float:
    """Return how often a linear classifier names the factor that pairs share, from mean |z - z'| over 64 pairs.

    From codes [N, Z] and factors [N, F]; 10,000 batches fit it and 5,000 test it; 1 is best and chance is 1/F. Higgins
    et al. (2017), https://openreview.net/forum?id=Sy2fzU9gl. A code with four of five factors and noise may have 1, and
    so may rotated factors; codes on a small scale may have less, by its penalty.
    """
    from sklearn.linear_model import LogisticRegression

    data = LabelledCodes.of(codes, factors)
    batch_size, rng = checked("batch_size", batch_size, Count), generator(seed)
    sampler = _SameValue(data)
    z = data.codes
    fixed = rng.integers(data.factors.shape[1], size=N_FIT + N_TEST)
    differences = []
    for chunk in np.split(fixed, range(CHUNK, len(fixed), CHUNK)):
        first = rng.integers(len(z), size=(len(chunk), batch_size))
        differences.append(np.abs(z[first] - z[sampler.draw(chunk, first, rng)]).mean(1))
    if data.factors.shape[1] == 1:
        return 1.0
    x = np.concatenate(differences)
    with quiet_fit():
        model = LogisticRegression(max_iter=1000).fit(x[:N_FIT], fixed[:N_FIT])
    return float(model.score(x[N_FIT:], fixed[N_FIT:]))


class _SameValue:
    """Draw rows with a given value of a factor, with replacement: the data need be no full grid."""

    def __init__(self, data: LabelledCodes) -> None:
        self.factors = data.factors
        self.rows = np.argsort(data.factors, axis=0, kind="stable").T  # [F, N]
        self.count = np.stack([np.bincount(labels, minlength=data.n_values.max()) for labels in data.factors.T])
        self.first = self.count.cumsum(1) - self.count  # [F, values], as the count

    def draw(self, fixed: np.ndarray, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Draw, for rows [B, n], other rows [B, n] that have the same value of factor fixed [B]."""
        factor = fixed[:, None]
        value = self.factors[rows, factor]
        within = (rng.random(rows.shape) * self.count[factor, value]).astype(np.int64)
        return self.rows[factor, self.first[factor, value] + within]
