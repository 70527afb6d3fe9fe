"""Check and prepare what scores take: features [N, D], codes [N, Z] and the factors [N, F] behind them."""

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vae_exp.config.schema import Seed, checked
from vae_exp.errors import UserError

TEST_FRACTION = 1 / 3  # of the rows: 10,000 to fit and 5,000 to test in Locatello et al. (2019)
MAX_VALUE = 1e150  # sums of the squares of larger numbers are beyond every float


class UnsuitableFactors(UserError):
    """Factors whose values a score cannot use in these rows; `reason` is that alone, without advice."""

    def __init__(self, reason: str, advice: str = "") -> None:
        super().__init__(f"factors: {reason}{advice}.")
        self.reason = reason


class TooFewFactors(UnsuitableFactors):
    """Fewer factors than a score needs."""


@dataclass(frozen=True)
class LabelledCodes:
    """Codes [N, Z], float64, and the factors [N, F] behind them, each numbered 0, 1, ... in the order of its values."""

    codes: np.ndarray
    factors: np.ndarray
    n_values: np.ndarray  # [F]
    names: Sequence[str] = ()  # of the factors, for messages; without them these have the columns

    @classmethod
    def of(cls, codes: Any, factors: Any, min_factors: int = 1, names: Sequence[str] = ()) -> "LabelledCodes":
        """Check two arrays or tensors and join them. Raises UserError, or UnsuitableFactors for these factors."""
        z, values = table("codes", codes), table("factors", factors)
        if len(z) != len(values):
            raise UserError(f"codes has {len(z):,} rows and factors {len(values):,}; both need a row per image.")
        if values.shape[1] < min_factors:
            available = ", ".join([str(values.shape[1]), *names])
            raise TooFewFactors(f"this score needs {min_factors} factors or more, and there is {available}")
        columns = [np.unique(column, return_inverse=True) for column in values.T]
        n_values = np.array([len(unique) for unique, _ in columns])
        data = cls(z, np.stack([numbered for _, numbered in columns], axis=1), n_values, names)
        for factor, n in enumerate(n_values):
            if n == 1:
                raise UnsuitableFactors(f"{data.name(factor)} has one value only in {len(z):,} rows", "; leave it out")
            if 2 * n > len(z):
                rare = f"{n:,} values in {len(z):,} rows, and these scores need values that are met often"
                raise UnsuitableFactors(f"{data.name(factor)} has {rare}", ". Sort a continuous factor into bins first")
        return data

    def name(self, factor: int) -> str:
        return self.names[factor] if self.names else f"column {factor}"

    def __getitem__(self, rows: np.ndarray) -> "LabelledCodes":
        return LabelledCodes(self.codes[rows], self.factors[rows], self.n_values, self.names)

    def split(self, seed: int, in_both: bool = False) -> tuple["LabelledCodes", "LabelledCodes"]:
        """Return two thirds of the rows to fit on and the rest to test on, shuffled: rows may have a grid's order.

        Raises UnsuitableFactors if a factor has one value only in the first part, and with in_both also if the second
        part has no value that can be told from others.
        """
        rows = generator(seed).permutation(len(self.codes))
        n_test = round(TEST_FRACTION * len(rows))
        fit, test = self[rows[n_test:]], self[rows[:n_test]]
        for factor, (labels, held_out) in enumerate(zip(fit.factors.T, test.factors.T, strict=True)):
            if (labels == labels[0]).all():
                problem = f"one value only in the {len(labels):,} of {len(rows):,} rows to fit on"
            elif in_both and (not np.isin(held_out, labels).any() or (held_out == held_out[0]).all()):
                problem = f"no value to tell from others in the {n_test:,} rows to test on"
            else:
                continue
            raise UnsuitableFactors(f"{self.name(factor)} has {problem}", "; a value must be met several times")
        return fit, test


def standardise(codes: np.ndarray) -> np.ndarray:
    """Return codes [N, Z] with mean 0 and standard deviation 1; a latent that never changes is 0."""
    centred = codes - codes.mean(0)
    std = centred.std(0)
    # What is left of a constant by rounding is no spread.
    return np.divide(centred, std, out=np.zeros_like(centred), where=std > 1e-12 * abs(codes).max(0))


def table(name: str, values: Any) -> np.ndarray:
    """Return an array or a tensor [N, D] as float64. Raises UserError for another shape or no finite real numbers."""
    if isinstance(values, Tensor):  # NumPy has no bfloat16
        values = values.detach().cpu().to(torch.promote_types(values.dtype, torch.float64)).numpy()
    if np.ma.is_masked(values):
        raise UserError(f"{name}: some of the numbers are masked. Leave those rows out, or fill them.")
    try:
        numbers = np.asarray(values)
        if np.iscomplexobj(numbers):
            raise TypeError("they are complex")
        numbers = numbers.astype(np.float64, copy=False)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name}: these are not real numbers ({error}).") from error
    _require_rows(name, numbers)
    return numbers


def feature_pair(real: Any, fake: Any) -> tuple[Tensor, Tensor]:
    """Return features [N, D] and [M, D] as float64 on one device. Raises UserError if they are no such pair."""
    x, y = (float64(torch.as_tensor(values)) for values in (real, fake))
    _require_rows("real", x)
    _require_rows("fake", y)
    if x.shape[1] != y.shape[1]:
        raise UserError(f"real has {x.shape[1]:,} features and fake {y.shape[1]:,}; both need the same.")
    return x, y.to(x.device)


def float64(features: Tensor) -> Tensor:
    """Return features as float64, as terms nearly cancel; on the CPU if their device has none."""
    return (features.cpu() if features.device.type == "mps" else features).double()


def _require_rows(name: str, values: Any) -> None:
    if values.ndim != 2 or 0 in values.shape:
        raise UserError(f"{name}: an array [N, D] is needed, a row per image; this is {list(values.shape)}.")
    if not (abs(values) <= MAX_VALUE).all():
        raise UserError(f"{name}: some of the numbers are not finite, or too large, beyond {MAX_VALUE:g}.")


def generator(seed: int) -> np.random.Generator:
    return np.random.default_rng(checked("seed", seed, Seed))


@contextlib.contextmanager
def quiet_fit() -> Iterator[None]:
    """Run the block with one BLAS thread, as matrices are small, and without scikit-learn's usual warnings."""
    from sklearn.exceptions import ConvergenceWarning  # here, because importing scikit-learn takes a second
    from threadpoolctl import threadpool_limits  # comes with scikit-learn

    with warnings.catch_warnings(), threadpool_limits(1, "blas"):
        # A score is defined by the steps that its authors took, converged or not.
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.filterwarnings("ignore", "The number of unique classes is greater than 50%")
        yield
