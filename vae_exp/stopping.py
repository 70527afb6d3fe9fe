"""When a run ends before its last epoch, and when it saves: signals, the clock, patience."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

ECHO_SECONDS = 2.0  # `timeout`, make and others pass on a signal that the whole group has had already


class Signals:
    """SIGTERM and SIGINT (Ctrl-C): the first is noted, for training to end at a good place; the second ends at once."""

    def __init__(self) -> None:
        self.caught: int | None = None
        self.caught_at = 0.0
        self.all_is_saved = False  # then there is nothing to wait for

    def __call__(self, number: int, _: FrameType | None) -> None:
        if self.caught is not None:
            if time.monotonic() - self.caught_at > ECHO_SECONDS:
                os._exit(128 + number)
            return
        self.caught, self.caught_at = number, time.monotonic()
        if self.all_is_saved:
            self.raise_if_caught()

    def raise_if_caught(self) -> None:
        """Raises KeyboardInterrupt for Ctrl-C, SystemExit(143) for SIGTERM, once all is saved."""
        if self.caught == signal.SIGINT:
            raise KeyboardInterrupt
        if self.caught is not None:
            raise SystemExit(128 + self.caught)


@contextlib.contextmanager
def signals() -> Iterator[Signals]:
    """Take the signals over, and give them back to whoever had them."""
    noted = Signals()
    if threading.current_thread() is not threading.main_thread():  # some launchers' workers; Python allows no handler
        yield noted
        return
    before = {number: signal.signal(number, noted) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Clock:
    """The seconds a run has taken in all its parts, and what is due by them, by steps and by epochs."""

    def __init__(self, config: dict[str, Any], before: dict[str, Any]) -> None:
        self.every_steps: int | None = config["checkpoint_every_steps"]
        self.every_epochs: int | None = config["checkpoint_every_epochs"]
        self.every_minutes: float | None = config["checkpoint_every_minutes"]
        self.max_minutes: float | None = config["max_minutes"]
        now = self._saved = time.monotonic()
        self._started = now - before.get("seconds", 0.0)
        self._epoch_began, self._epoch_before = now, before.get("epoch_seconds", 0.0)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    @property
    def epoch_seconds(self) -> float:
        return time.monotonic() - self._epoch_began

    def epoch_begins(self) -> None:
        """The first one of a resumed run may have begun before it was interrupted."""
        self._epoch_began, self._epoch_before = time.monotonic() - self._epoch_before, 0.0

    def state(self) -> dict[str, float]:
        return {"seconds": self.seconds, "epoch_seconds": self.epoch_seconds}

    def saved(self) -> None:
        self._saved = time.monotonic()

    def save_is_due(self, step: int) -> bool:
        """Inside an epoch, after a step."""
        by_steps = self.every_steps is not None and step % self.every_steps == 0
        by_time = self.every_minutes is not None and time.monotonic() - self._saved >= 60 * self.every_minutes
        return by_steps or by_time

    def save_is_due_after(self, epoch: int, step: int) -> bool:
        """At the end of an epoch."""
        by_epochs = self.every_epochs is not None and epoch % self.every_epochs == 0
        return by_epochs or self.save_is_due(step)

    def is_over(self) -> str | None:
        """The reason to end now, in words, or None."""
        over = self.max_minutes is not None and self.seconds >= 60 * self.max_minutes
        return f"max_minutes={self.max_minutes:g} are over" if over else None


def is_patience_over(patience: int | None, epoch: int, best: dict[str, Any]) -> str | None:
    """The reason to stop early after `epoch` epochs, in words, or None (Prechelt 1998, with a fixed patience).

    It follows from the best epoch alone, so a resumed run stops where the same run without a break does.
    """
    if patience is None or not best or epoch - best["best/epoch"] < patience:
        return None
    return f"early_stopping.patience={patience}: no better val/neg_elbo since epoch {best['best/epoch']}"
