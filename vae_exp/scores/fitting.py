"""How the small models inside scores are fitted."""

import contextlib
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def fitting() -> Iterator[None]:
    """One thread for BLAS, and no warning of scikit-learn where a model has not converged or has many classes.

    The matrices are small: threads gain nothing, and wait for each other for most of the time where cores are busy.
    A score is defined by the steps that its authors took, converged or not. A factor whose values are met too seldom
    is refused before it comes here.
    """
    from sklearn.exceptions import ConvergenceWarning  # here, because importing scikit-learn takes a second
    from threadpoolctl import threadpool_limits  # comes with scikit-learn

    with warnings.catch_warnings(), threadpool_limits(1, "blas"):
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.filterwarnings("ignore", "The number of unique classes is greater than 50%")
        yield
