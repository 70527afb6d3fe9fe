"""When what is not training is due after an epoch: after so many epochs, or by a share of the time."""

import contextlib
import time
from collections.abc import Iterator


class Cadence:
    """A rule for when work is due: each `every` epochs; never if None; with auto, for at most this share of the time.

    By a share, work that took c seconds the last time is due when c / share seconds have passed since. Before the first
    time it is taken to cost `price` seconds: work that costs nothing is due after the first epoch.
    """

    def __init__(self, every: int | str | None, share: float, price: float = 0.0) -> None:
        self.every, self.share = every, share
        self._due_at = time.monotonic() + price / share

    def is_due(self, epoch: int) -> bool:
        """Return whether the work is due now, at the end of this epoch."""
        if isinstance(self.every, int):
            return epoch % self.every == 0
        return self.every is not None and time.monotonic() >= self._due_at

    @contextlib.contextmanager
    def measure(self) -> Iterator[None]:
        """Measure how long the block takes, which holds the work itself, to learn what it costs."""
        began = time.monotonic()
        yield
        ended = time.monotonic()
        self._due_at = ended + (ended - began) / self.share
