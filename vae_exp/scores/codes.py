"""Check and prepare codes and factors."""

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from vae_exp.errors import UserError


@contextlib.contextmanager
def fitting() -> Iterator[None]:
    """Run the block with one BLAS thread and without scikit-learn's warnings of convergence or many classes.

    The matrices are small: threads gain nothing, and wait for each other for most of the time where cores are busy.
    A score is defined by the steps that its authors took, converged or not. A factor whose values occur too rarely
    is rejected before it comes here.
    """
    from sklearn.exceptions import ConvergenceWarning  # here, because importing scikit-learn takes a second
    from threadpoolctl import threadpool_limits  # comes with scikit-learn

    with warnings.catch_warnings(), threadpool_limits(1, "blas"):
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.filterwarnings("ignore", "The number of unique classes is greater than 50%")
        yield


TEST_PART = 1 / 3  # of the rows: 10,000 to fit and 5,000 to test in Locatello et al. (2019)
LARGEST = 1e150  # of a number: sums of the squares of larger ones are beyond every float
LARGEST_SEED = 2**32 - 1  # that scikit-learn takes


class Unsuited(UserError):
    """Factors whose values a score cannot use in these rows; `reason` is that alone, without advice."""

    def __init__(self, reason: str, advice: str = "") -> None:
        super().__init__(f"factors: {reason}{advice}.")
        self.reason = reason


class TooFewFactors(Unsuited):
    """Fewer factors than a score needs."""


@dataclass(frozen=True)
class Known:
    """Codes [N, Z], float64, and the factors [N, F] behind them, each numbered 0, 1, ... in the order of its values."""

    codes: np.ndarray
    factors: np.ndarray
    n_values: np.ndarray  # [F]
    called: Sequence[str] = ()  # the factors' names, for messages; their columns where there are none

    @classmethod
    def of(cls, codes: Any, factors: Any, fewest: int = 1, called: Sequence[str] = ()) -> "Known":
        """Make it from two arrays or tensors. `fewest` is how many factors a score needs.

        Raises UserError for other shapes, numbers that are not finite, a factor that never changes, and one whose
        values hardly occur twice; the last two are Unsuited.
        """
        z, values = table("codes", codes), table("factors", factors)
        if len(z) != len(values):
            raise UserError(f"codes has {len(z):,} rows and factors {len(values):,}; both need a row per image.")
        if values.shape[1] < fewest:
            there = f"{values.shape[1]}" + (f", {', '.join(called)}" if called else "")
            raise TooFewFactors(f"this score needs {fewest} factors or more, and there is {there}")
        numbered = np.empty(values.shape, np.int64)
        n_values = np.empty(values.shape[1], np.int64)
        for factor, column in enumerate(values.T):
            known, numbered[:, factor] = np.unique(column, return_inverse=True)
            n_values[factor] = len(known)
        found = cls(z, numbered, n_values, called)
        for factor, n in enumerate(n_values):
            if n == 1:
                raise Unsuited(f"{found.name(factor)} has one value only in {len(z):,} rows", "; leave it out")
            if 2 * n > len(z):
                raise Unsuited(
                    f"{found.name(factor)} has {n:,} values in {len(z):,} rows, and these scores need values that are "
                    "met often",
                    ". Sort a continuous factor into bins first",
                )
        return found

    def name(self, factor: int) -> str:
        return self.called[factor] if self.called else f"column {factor}"

    def fit_and_test(self, seed: int) -> tuple["Known", "Known"]:
        """Return two thirds of the rows and the rest, shuffled by seed: rows may come in the order of a grid.

        Raises Unsuited if a factor has only one value in the first part: nothing can be fitted to it.
        """
        rows = np.random.default_rng(whole("seed", seed, 0, LARGEST_SEED)).permutation(len(self.codes))
        n_test = round(TEST_PART * len(rows))
        fit, test = self[rows[n_test:]], self[rows[:n_test]]
        for factor, labels in enumerate(fit.factors.T):
            if (labels == labels[0]).all():
                raise Unsuited(
                    f"{self.name(factor)} has one value only in the {len(labels):,} of {len(rows):,} rows to fit on",
                    "; a value must be met several times",
                )
        return fit, test

    def __getitem__(self, rows: np.ndarray) -> "Known":
        return Known(self.codes[rows], self.factors[rows], self.n_values, self.called)

    def standardised(self) -> np.ndarray:
        """Return the codes with mean 0 and standard deviation 1; a latent that never changes is 0."""
        centred = self.codes - self.codes.mean(0)
        spread = centred.std(0)
        # What is left of a constant by rounding is no spread.
        return np.divide(centred, spread, out=np.zeros_like(centred), where=spread > 1e-12 * abs(self.codes).max(0))


def table(name: str, values: Any) -> np.ndarray:
    """Return an array or a tensor [N, D] as float64.

    Raises UserError for another shape, and for values that are masked, complex, not finite or beyond 1e150.
    """
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = (values if values.is_complex() else values.double()).numpy()  # NumPy has no bfloat16
    if np.ma.is_masked(values):
        raise UserError(f"{name}: some of the numbers are masked. Leave those rows out, or fill them.")
    try:
        is_complex = np.iscomplexobj(np.asarray(values))
        found = np.empty((0, 0)) if is_complex else np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name}: these are not numbers ({error}).") from error
    if is_complex:
        raise UserError(f"{name}: these are complex numbers, and real ones are needed.")
    if found.ndim != 2 or 0 in found.shape:
        raise UserError(f"{name}: an array [N, D] is needed, a row per image; this is {list(found.shape)}.")
    if not np.isfinite(found).all():
        raise UserError(f"{name}: some of the numbers are not finite.")
    if np.abs(found).max() > LARGEST:
        raise UserError(f"{name}: some of the numbers are too large, beyond {LARGEST:g}.")
    return found


def whole(name: str, value: Any, low: int, high: int | None = None) -> int:
    """Return the value as an int. Raises UserError if it is no whole number from low to high."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < low or (high and value > high):
        words = f"a whole number, {low} or more" if high is None else f"a whole number from {low} to {high:,}"
        raise UserError(f"{name}={value}: it takes {words}.")
    return int(value)
