"""What the scores of disentanglement are given: codes and the factors behind them, checked once."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from vae_exp.errors import UserError

TEST_PART = 1 / 3  # of the rows: 10,000 to fit and 5,000 to test in Locatello et al. (2019)


@dataclass(frozen=True)
class Known:
    """Codes [N, Z], float64, and the factors [N, F] behind them, each numbered 0, 1, ... in the order of its values."""

    codes: np.ndarray
    factors: np.ndarray
    n_values: np.ndarray  # [F]

    @classmethod
    def of(cls, codes: Any, factors: Any, fewest: int = 1) -> "Known":
        """Those of two arrays or tensors. `fewest` is how many factors a score needs.

        Raises UserError for other shapes, numbers that are not finite, a factor that never changes, and one whose
        values are hardly met twice.
        """
        z, values = table("codes", codes), table("factors", factors)
        if len(z) != len(values):
            raise UserError(f"codes has {len(z):,} rows and factors {len(values):,}; both need a row per image.")
        if values.shape[1] < fewest:
            raise UserError(f"factors: this score needs {fewest} factors or more, and there is {values.shape[1]}.")
        numbered = np.empty(values.shape, np.int64)
        n_values = np.empty(values.shape[1], np.int64)
        for factor, column in enumerate(values.T):
            known, numbered[:, factor] = np.unique(column, return_inverse=True)
            n_values[factor] = len(known)
            if len(known) == 1:
                raise UserError(f"factors: column {factor} has one value only; leave it out.")
            if 2 * len(known) > len(column):
                raise UserError(
                    f"factors: column {factor} has {len(known):,} values in {len(column):,} rows, and these scores "
                    "need values that are met often. Sort a continuous factor into bins first."
                )
        return cls(z, numbered, n_values)

    def fit_and_test(self, seed: int) -> tuple["Known", "Known"]:
        """Two thirds of the rows and the rest, by seed: rows may come in the order of a grid."""
        rows = np.random.default_rng(seed).permutation(len(self.codes))
        n_test = round(TEST_PART * len(rows))
        return self[rows[n_test:]], self[rows[:n_test]]

    def __getitem__(self, rows: np.ndarray) -> "Known":
        return Known(self.codes[rows], self.factors[rows], self.n_values)

    def standardised(self) -> np.ndarray:
        """Codes with mean 0 and standard deviation 1; a latent that never changes is 0."""
        centred = self.codes - self.codes.mean(0)
        spread = centred.std(0)
        # What is left of a constant by rounding is no spread.
        return np.divide(centred, spread, out=np.zeros_like(centred), where=spread > 1e-12 * abs(self.codes).max(0))


def table(name: str, values: Any) -> np.ndarray:
    """An array or a tensor [N, D] as float64. Raises UserError for another shape and for what is not finite."""
    values = values.detach().cpu().numpy() if isinstance(values, Tensor) else values
    try:
        found = np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name}: these are not numbers ({error}).") from error
    if found.ndim != 2 or 0 in found.shape:
        raise UserError(f"{name}: an array [N, D] is needed, a row per image; this is {list(found.shape)}.")
    if not np.isfinite(found).all():
        raise UserError(f"{name}: some of the numbers are not finite.")
    return found
