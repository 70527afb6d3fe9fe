"""Scores that hold one factor still and look which latents move: those of the beta-VAE and of the FactorVAE.

Batches with one value of a factor are drawn from the rows at hand, with replacement. So a table of codes is enough: no
model encodes a million images anew, and the data need be no full grid of factors.
"""

from typing import Any

import numpy as np

from vae_exp.scores.codes import LARGEST_SEED, Known, fitting, whole

BATCH_SIZE, FIT, TEST = 64, 10_000, 5_000  # as in Locatello et al. (2019)
LEAST_DEVIATION = 0.05
AT_ONCE = 1000  # batches in memory


def factor_vae(
    codes: Any,
    factors: Any,
    batch_size: int = BATCH_SIZE,
    least_deviation: float = LEAST_DEVIATION,
    seed: int = 0,
) -> float:
    """Return how often the latent that varies least in a batch identifies the batch's fixed factor; 1 is best.

    From codes [N, Z] and factors [N, F], in batches with one value of a factor; variances are relative to those of all
    codes, and a majority vote of 10,000 batches names the factor of each latent, tried on 5,000. Kim & Mnih (2018),
    https://arxiv.org/abs/1802.05983. Latents with a standard deviation below least_deviation are left out, as in
    Locatello et al. (2019): that is an absolute number, so codes on a small scale lose them all, and have 0. Randomly
    rotated factors have 0.62 to 1.00 (mean 0.86; over 24 rotations, by tests/cautions.py), noise 1/F.

    Raises UserError for arrays that do not go together, a factor that never changes, and batches of one, in which
    nothing varies.
    """
    known = Known.of(codes, factors)
    batch_size, seed = whole("batch_size", batch_size, 2), whole("seed", seed, 0, LARGEST_SEED)
    z = known.codes[:, (known.codes.std(0) >= least_deviation) & known.standardised().any(0)]
    if not z.shape[1]:
        return 0.0
    rng = np.random.default_rng(seed)
    by_value = _ByValue(known)
    counts = []
    for n in (FIT, TEST):
        votes = np.zeros((z.shape[1], known.factors.shape[1]))
        for at in range(0, n, AT_ONCE):
            fixed = rng.integers(votes.shape[1], size=min(AT_ONCE, n - at))
            value_of = rng.integers(len(z), size=(len(fixed), 1)).repeat(batch_size, axis=1)
            batch = z[by_value.drawn(fixed, value_of, rng)]
            np.add.at(votes, ((batch.var(1) / z.var(0)).argmin(1), fixed), 1)
        counts.append(votes)
    named = counts[0].argmax(1)
    return float(counts[1][np.arange(len(named)), named].sum() / TEST)


def beta_vae(codes: Any, factors: Any, batch_size: int = BATCH_SIZE, seed: int = 0) -> float:
    """Return how often a linear classifier names the factor that pairs share, from mean |z - z'| over 64 pairs.

    From codes [N, Z] and factors [N, F]; 10,000 batches fit it and 5,000 test it; 1 is best and chance is 1/F. Higgins
    et al. (2017), https://openreview.net/forum?id=Sy2fzU9gl. It reaches 1 for a code with four of five factors and
    noise, and 0.79 to 1.00 (mean 0.93; over 24 rotations, by tests/cautions.py) for randomly rotated factors. The
    classifier has a penalty, theirs too, so that codes on a small scale may have less. Raises UserError as factor_vae.
    """
    from sklearn.linear_model import LogisticRegression

    known = Known.of(codes, factors)
    batch_size = whole("batch_size", batch_size, 1)
    rng = np.random.default_rng(whole("seed", seed, 0, LARGEST_SEED))
    by_value = _ByValue(known)
    z, n = known.codes, FIT + TEST
    fixed = rng.integers(known.factors.shape[1], size=n)
    differences = []
    for at in range(0, n, AT_ONCE):
        first = rng.integers(len(z), size=(len(fixed[at : at + AT_ONCE]), batch_size))
        second = by_value.drawn(fixed[at : at + AT_ONCE], first, rng)
        differences.append(np.abs(z[first] - z[second]).mean(1))
    x = np.concatenate(differences)
    if known.factors.shape[1] == 1:
        return 1.0
    with fitting():
        model = LogisticRegression(max_iter=1000).fit(x[:FIT], fixed[:FIT])
    return float(model.score(x[FIT:], fixed[FIT:]))


class _ByValue:
    """The rows of each value of each factor, one after the other, so that one of them is drawn without a search."""

    def __init__(self, known: Known) -> None:
        self.factors = known.factors
        self.rows = np.argsort(known.factors, axis=0, kind="stable").T  # [F, N]
        self.first = np.zeros((len(known.n_values), known.n_values.max()), np.int64)  # [F, values]
        self.count = np.zeros_like(self.first)
        for factor, labels in enumerate(known.factors.T):
            count = np.bincount(labels)
            self.count[factor, : len(count)] = count
            self.first[factor, : len(count)] = count.cumsum() - count

    def drawn(self, fixed: np.ndarray, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Draw, for rows [B, n], other rows [B, n] that have the same value of factor fixed [B]."""
        factor = fixed[:, None]
        value = self.factors[rows, factor]
        within = (rng.random(rows.shape) * self.count[factor, value]).astype(np.int64)
        return self.rows[factor, self.first[factor, value] + within]
