"""Decide when a run stops, saves or has diverged."""

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, cast

from torch import Tensor, nn

from vae_exp import distributed
from vae_exp.config.schema import Config
from vae_exp.errors import Diverged, PeerLost, stop_signals
from vae_exp.training.checkpoints import Checkpoint
from vae_exp.training.run_dir import LAST
from vae_exp.training.state import TrainState


class Cadence:
    """A rule for when work is due: each `every` epochs; never if None; with auto, for at most this share of the time.

    By a share, work that took c seconds the last time, or `price` before the first, is due c / share seconds later.
    """

    def __init__(self, every: int | str | None, share: float, price: float = 0.0) -> None:
        self.every, self.share = every, share
        self._due_at = time.monotonic() + price / share

    def is_due(self, epoch: int) -> bool:
        if isinstance(self.every, int):
            return epoch % self.every == 0
        return self.every is not None and time.monotonic() >= self._due_at

    @contextlib.contextmanager
    def measure(self) -> Iterator[None]:
        """Measure how long the block takes, which holds the work itself, to learn what it costs."""
        start = time.monotonic()
        yield
        end = time.monotonic()
        self._due_at = end + (end - start) / self.share


def require_finite(values: dict[str, float], when: str, run_dir: Path) -> None:
    """Raise Diverged if one of the values is not a finite number."""
    if wrong := [name for name, value in values.items() if not math.isfinite(value)]:
        last = run_dir / LAST
        saved = f"The last good checkpoint is {last}." if last.exists() else "No last.pt had been written."
        what = f"{', '.join(wrong)} not finite"
        raise Diverged(f"the training diverged {when}: {what}. {saved} A lower optimizer.lr is the first thing to try.")


def gradient_norm(weights: Iterable[Tensor]) -> Tensor:
    return nn.utils.get_total_norm([each.grad for each in weights if each.grad is not None])


def require_finite_weights(state: Mapping[str, Tensor], names: Iterable[str], step: int, run_dir: Path) -> None:
    """Raise Diverged if weights of these names are not finite, rather than let such a checkpoint replace a good one."""
    if nn.utils.get_total_norm(state[name] for name in names).isfinite():  # one look at all, an eighth of the time
        return
    wrong = [name for name in names if not state[name].isfinite().all()]
    require_finite({f"the weights {name}": math.nan for name in wrong}, f"by step {step}", run_dir)


CHECKPOINTS_SHARE = 0.01  # of the time, with checkpoint_every_epochs=auto
ECHO_SECONDS = 2.0  # `timeout`, make and others pass on a signal that the whole group has had already
# Processes agree by a message, so not after each step, but soon: torchrun kills 30 s after its signal.
AGREE_SECONDS, AGREE_STEPS = 2.0, 50  # whichever is less


class Status(NamedTuple):
    signal: int | None
    seconds: float  # of all parts of the run
    since_saved: float  # seconds


class Stopper:
    """Why a run ends, and when it saves, by the clock of all its parts. Its `with` block takes over the stop signals.

    The first signal is noted, for training to end at a good place; a second one, later, ends the process at once. The
    handler that was there before is called when all is saved and closed: submitit, for one, asks for the job again.
    """

    def __init__(self, config: Config, resumed: Checkpoint | None = None) -> None:
        self.config, self.reason = config, cast("str | None", None)  # to end before the last epoch
        self.checkpoints = Cadence(config["checkpoint_every_epochs"], CHECKPOINTS_SHARE)
        now = self._saved_at = time.monotonic()
        before = resumed.resume if resumed else None
        self._started = now - (before.seconds if before else 0.0)
        self._epoch_began, self._epoch_before = now, before.epoch_seconds if before else 0.0
        self._signal: int | None = None
        self._signal_at = 0.0
        self._all_is_saved = False
        self._agreed: Status | None = None  # of several processes, at the last good place
        self._agreed_at = self._agree_at = 0  # steps
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> "Stopper":
        if threading.current_thread() is threading.main_thread():  # Python allows no handler elsewhere
            self._handlers = {number: signal.signal(number, self._on_signal) for number in stop_signals()}
        self._agree()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        for number, handler in self._handlers.items():
            # Whoever started the processes ends the others when one is gone; first it is told what happened.
            signal.signal(number, signal.SIG_IGN if isinstance(error, PeerLost) else handler)
        before = self._handlers.get(self._status.signal or 0)
        is_stopped = isinstance(error, KeyboardInterrupt | SystemExit)
        if is_stopped and callable(before) and before is not signal.default_int_handler:
            before(self._status.signal, None)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if self._signal is not None:
            if time.monotonic() - self._signal_at > ECHO_SECONDS:
                os._exit(128 + number)
            return
        self._signal, self._signal_at = number, time.monotonic()
        if self._all_is_saved:
            self.raise_if_signalled()

    def _agree(self, step: int | None = None) -> None:
        """Agree with the other processes, which call this too: any's signal counts for all, and the first's clock."""
        if distributed.world_size() == 1:
            return
        before, self._agreed = self._agreed, None
        statuses = distributed.all_gather(self._status)
        caught = next((status.signal for status in statuses if status.signal is not None), None)
        self._agreed = statuses[0]._replace(signal=caught)
        if step is not None and before is not None:
            a_step = (self._agreed.seconds - before.seconds) / max(1, step - self._agreed_at)  # the same in all of them
            self._agreed_at, self._agree_at = step, step + min(AGREE_STEPS, 1 + int(AGREE_SECONDS / max(a_step, 1e-6)))

    @property
    def _status(self) -> Status:
        return self._agreed or Status(self._signal, self.seconds, time.monotonic() - self._saved_at)

    def raise_if_signalled(self) -> None:
        """Raise KeyboardInterrupt if Ctrl-C was caught, SystemExit(128 + number) for another signal."""
        _raise_for(self._status.signal)

    def raise_if_interrupted(self) -> None:
        """Raise the same for a signal to this process alone, where it cannot go on."""
        _raise_for(self._signal)

    def finish(self) -> None:
        """Let a signal end the run at once from here on; of several processes the first, which the others miss."""
        self._agreed = None
        self._all_is_saved = distributed.is_rank0()
        if self._all_is_saved:
            self.raise_if_signalled()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    @property
    def epoch_seconds(self) -> float:
        return time.monotonic() - self._epoch_began

    def start_epoch(self) -> None:
        """Start the clock of an epoch; the first of a resumed run may have begun before it was interrupted."""
        self._epoch_began, self._epoch_before = time.monotonic() - self._epoch_before, 0.0

    def times(self, images: int) -> dict[str, float]:
        seconds = self.epoch_seconds
        return {"time/epoch_seconds": seconds, "time/images_per_second": images / seconds}

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Run the block that writes a checkpoint. checkpoint_every_minutes counts from its end."""
        with self.checkpoints.measure():
            yield
        self._saved_at = time.monotonic()
        self._agreed = self._agreed and self._agreed._replace(since_saved=0.0)

    def due_after_step(self, step: int, last_of_epoch: bool) -> bool:
        """Return whether to save after a step, or to end; after the last step of an epoch, its end does both."""
        if last_of_epoch or step >= self._agree_at:
            self._agree(step)
        if (self._agreed.signal if self._agreed else self._signal) is not None:
            return True
        return not last_of_epoch and (self._is_due(step) or self._limit_reached(step) is not None)

    def due_after_epoch(self, state: TrainState) -> bool:
        self._agree()
        ends = self.ends_with(state) or self._status.signal is not None
        return ends or self.checkpoints.is_due(state.epoch) or self._is_due(state.step)

    def _is_due(self, step: int) -> bool:
        steps, minutes = self.config["checkpoint_every_steps"], self.config["checkpoint_every_minutes"]
        by_steps = steps is not None and step % steps == 0
        return by_steps or (minutes is not None and self._status.since_saved >= 60 * minutes)

    def _limit_reached(self, step: int) -> str | None:
        """Return the limit that ends the run after a step, wherever in an epoch it is, or None."""
        max_steps, max_minutes = self.config["max_steps"], self.config["max_minutes"]
        if max_steps is not None and step >= max_steps:
            return f"max_steps={max_steps} are taken"
        if max_minutes is not None and self._status.seconds >= 60 * max_minutes:
            return f"max_minutes={max_minutes:g} are over"
        return None

    def stop_reason(self, state: TrainState) -> str | None:
        """Return the reason to end before the last epoch, in words, or None; once there is one, it stays."""
        patience = self.config["early_stopping"]["patience"]
        limit = self._limit_reached(state.step)
        self.reason = self.reason or limit or patience_reason(patience, state, self.config["monitor"])
        return self.reason

    def ends_with(self, state: TrainState) -> bool:
        """Return whether no epoch follows; one does where nothing was measured yet, the model as it is built."""
        return self.stop_reason(state) is not None or (state.epoch >= self.config["epochs"] and state.best is not None)


def _raise_for(number: int | None) -> None:
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    if number is not None:
        raise SystemExit(128 + number)


def patience_reason(patience: int | None, state: TrainState, monitor: str) -> str | None:
    """Return the reason to stop early, from the best epoch alone, or None (Prechelt 1998, with a fixed patience)."""
    if patience is None or state.best is None or state.epoch - state.best.epoch < patience:
        return None
    return f"early_stopping.patience={patience}: no better {monitor} since epoch {state.best.epoch}"
