"""The ranges that the cautions of vae_exp.scores name: each score of codes whose worth is known, over 24 draws.

python -m tests.cautions                   all scores, five minutes of one core
python -m tests.cautions factor_vae sap    these alone

The factors have as many values as those of dSprites (3, 6, 40, 32, 32), in 5,000 rows drawn at random; a perfect code
is these factors with mean 0 and standard deviation 1. Each draw has other rows, another rotation and other noise.
"""

import sys

import numpy as np

from vae_exp import scores

DRAWS, ROWS = 24, 5000
N_VALUES = (3, 6, 40, 32, 32)
CASES = ("perfect", "rotated", "without a factor", "noise", "noise beside", "times 0.01", "plus 10")


def drawn(case: str, draw: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes [N, Z] and factors [N, 5] of one draw.

    rotated: by a random orthogonal matrix. without a factor: noise is in its latent. noise: five latents of it, which
    "noise beside" has beside a perfect code.
    """
    rng = np.random.default_rng(draw)
    factors = rng.integers(0, N_VALUES, (ROWS, len(N_VALUES)))
    perfect, noise = (factors - factors.mean(0)) / factors.std(0), rng.standard_normal(factors.shape)
    if case == "rotated":
        return perfect @ np.linalg.qr(rng.standard_normal((len(N_VALUES),) * 2))[0], factors
    if case == "without a factor":
        return np.where(np.arange(len(N_VALUES)) == draw % len(N_VALUES), noise, perfect), factors
    others = {"perfect": perfect, "noise": noise, "noise beside": np.concatenate([perfect, noise], axis=1)}
    return (others | {"times 0.01": 0.01 * perfect, "plus 10": perfect + 10})[case], factors


def measured(name: str, case: str) -> dict[str, tuple[float, float, float]]:
    """Least, largest and mean over the draws of each number of a score."""
    score = scores.SCORES[name]
    values = np.array([score.measure(*drawn(case, draw), draw) for draw in range(DRAWS)])
    return dict(zip(score.cautions, zip(values.min(0), values.max(0), values.mean(0), strict=True), strict=True))


def words(low: float, high: float, mean: float) -> str:
    """As the cautions say it, to two decimals."""
    return f"{low:.2f}" if f"{low:.2f}" == f"{high:.2f}" else f"{low:.2f} to {high:.2f} (mean {mean:.2f})"


def main(names: list[str]) -> None:
    for name in names or scores.SCORES:
        for case in CASES:
            for key, spread in measured(name, case).items():
                print(f"{key:26}{case:18}{words(*spread)}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
