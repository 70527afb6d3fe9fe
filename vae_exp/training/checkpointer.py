"""Write the checkpoints of a run: last.pt, its state, and best.pt, which waits in memory until last.pt is written."""

import contextlib
import functools
import os
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from vae_exp.config import targets
from vae_exp.errors import UserError
from vae_exp.files import write
from vae_exp.tracking.tracker import Tracker
from vae_exp.training import checkpoints
from vae_exp.training.checkpoints import Checkpoint, Continuation
from vae_exp.training.run_dir import BEST, LAST, PREVIOUS, Origin, archive_evaluations, contradictions
from vae_exp.training.state import Best, TrainingRun
from vae_exp.training.stopper import Stopper, require_finite, require_finite_weights

Position = tuple[int, int]  # a step, and the epochs that were over by then


class Checkpointer(contextlib.AbstractContextManager["Checkpointer"]):
    """The writer of last.pt, and of best.pt before it. If both are of the same step they are one file of two names."""

    def __init__(self, run: TrainingRun, stop: Stopper, tracker: Tracker, resumed: Checkpoint | None) -> None:
        self.run, self.run_dir, self.stop, self.tracker = run, run.run_dir, stop, tracker
        self._best: Checkpoint | None = None
        self._best_is_written = False
        self._on_disk: dict[str, Position] = {}  # of which step and epoch the weights in each file are
        self._written: Position | None = None  # last.pt's, if this process wrote it
        self._weights = [name for name, _ in run.model.named_parameters()]  # a buffer, such as a mask, may be infinite
        if resumed is not None:
            self._on_disk[LAST] = _position(resumed)
            if resumed.best is not None:
                self._best, self._best_is_written = best_of(run.run_dir, resumed)
                self._on_disk[BEST] = _position(self._best)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, Exception):
            with contextlib.suppress(UserError):  # the first error is the one to report
                self.write_best()

    def keep_best(self) -> None:
        """Keep the state of the epoch that has just ended, which is the best, until the next write."""
        now = self._state_dict()
        assert now.resume is not None
        # What training changes in place; the rest is made anew where it changes.
        model, optimizer, means, weights = map(
            checkpoints.copied, (now.model, now.optimizer, now.resume.means, now.resume.weights)
        )
        resume = replace(now.resume, means=means, weights=weights)
        self._best, self._best_is_written = replace(now, model=model, optimizer=optimizer, resume=resume), False

    def write(self) -> None:
        """Write what is new. Raises Diverged rather than save values that are not finite."""
        position = self.run.state.step, self.run.state.epoch
        if self._written == position:  # again, it would take the place of last.previous.pt
            return
        require_finite(self.run.meters.peek("train"), self.run.meters.span, self.run_dir)
        for model in {self.run.model, self.run.eval_model}:
            require_finite_weights(model.state_dict(), self._weights, position[0], self.run_dir)
        with self.stop.saving():
            best = self.write_best()  # before last.pt, which says that it is there
            self.tracker.to_disk()
            if best is not None and self._on_disk[BEST] == position:
                self._put(LAST, best, position, same=self.run_dir / BEST)
            else:
                self._put(LAST, checkpoints.content(self._state_dict()), position)
            self._written = position

    def write_best(self) -> memoryview | None:
        """Write best.pt, unless it is on the disk already; return what it holds."""
        if self._best is None or self._best_is_written:
            return None
        require_finite_weights(self._best.model, self._weights, self._best.step, self.run_dir)
        self.tracker.to_disk()
        content = checkpoints.content(self._best)
        self._put(BEST, content, _position(self._best))
        self._best_is_written = True
        return content

    def _put(self, name: str, content: memoryview, position: Position, same: Path | None = None) -> None:
        """Write a checkpoint; what was measured of other weights under its name is set aside."""
        before = self._on_disk.get(name, position)
        if before != position:
            archive_evaluations(self.run_dir, name, epoch=before[1])
        write(self.run_dir / name, content, self.run_dir / PREVIOUS if name == LAST else None, same)
        self._on_disk[name] = position

    def best(self) -> tuple[dict[str, Tensor], Best]:
        """Return the weights of the best epoch, on the CPU, and which epoch that is."""
        assert self._best is not None and self._best.best is not None, "every run holds one before it ends"
        return self._best.model, self._best.best

    def _state_dict(self) -> Checkpoint:
        """Return all that the run is at this moment, with the order of its images as the epoch began."""
        run, state = self.run, self.run.state
        streams = run.rng.state_dict() | {"order": state.order}
        weights = None if run.eval_model is run.model else run.model.state_dict()
        metrics_bytes, wandb_id = self.tracker.position()
        clock = self.stop.seconds, self.stop.epoch_seconds
        return Checkpoint(
            run.config,
            run.data.x_shape,
            run.data.n_classes,
            run.data.class_names,
            state.step,
            state.epoch,
            state.best,
            state.kl_per_dim,
            run.eval_model.state_dict(),
            run.optimizer.state_dict(),
            Continuation(run.info, streams, run.meters.state_dict(), metrics_bytes, *clock, wandb_id, weights),
            self._origin,
            run.data.conditions,
            targets.files_of(run.config),
        )

    @functools.cached_property
    def _origin(self) -> Origin | None:
        data = self.run.data.fingerprint
        root = os.path.expanduser(str(self.run.config["dataset"].get("root")))  # noqa: PTH111  (it never raises)
        if data is None:
            return None
        if not Path(root).is_absolute():  # there is none, or what a dataset of a user's own calls so is no path
            return Origin(None, None, data.record())
        return Origin(root, os.path.relpath(root, self.run_dir), data.record())


def _position(checkpoint: Checkpoint) -> Position:
    return checkpoint.step, checkpoint.epoch


def best_of(run_dir: Path, resumed: Checkpoint) -> tuple[Checkpoint, bool]:
    """Return the best epoch's checkpoint of a run that goes on, and whether it is on the disk.

    A best.pt that is ahead of the checkpoint is accepted too: the run had come to that epoch. Raises UserError if it is
    missing, damaged or another, and the checkpoint is not of the best epoch itself.
    """
    assert resumed.best is not None, "asked for where an epoch was completed"
    path = run_dir / BEST
    try:
        best = checkpoints.load(path)
        is_same = best.step == resumed.best.step and best.best == resumed.best
        is_ahead = best.step > resumed.step and best.best is not None
        if not (is_same or is_ahead) or contradictions(best.config, resumed.config):
            raise UserError(
                f"checkpoint={path}: of epoch {best.epoch} or another run, not of epoch {resumed.best.epoch}."
            )
        return best, True
    except UserError as error:
        if resumed.best.step == resumed.step:
            return resumed, False
        raise UserError(f"resume={run_dir}: its best epoch is lost. {error} resume=null starts anew.") from error
