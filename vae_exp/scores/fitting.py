"""The fitting of the small models inside scores."""

import contextlib
import warnings
from collections.abc import Iterator


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
