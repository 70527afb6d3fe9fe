"""The two checkpoints of a run: last.pt as it stands, and best.pt, which waits in memory until last.pt is written."""

import contextlib
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from vae_exp.errors import UserError
from vae_exp.run import checkpoint
from vae_exp.run.checkpoint import Checkpoint, Continuation, Written
from vae_exp.run.divergence import require_finite, require_finite_weights
from vae_exp.run.earlier import set_aside
from vae_exp.run.folder import BEST, LAST
from vae_exp.run.standing import Best, Training
from vae_exp.run.stopping import Watch

Position = tuple[int, int]  # a step, and the epochs that were over by then


class Saves:
    """Writes last.pt, and best.pt before it. Where both are of the same step the weights are copied once.

    `position` tells how many bytes of metrics.jsonl are on the disk, and the id of the W&B run. `before` is the
    checkpoint that the run goes on from: then the best epoch so far is that of best.pt.
    """

    def __init__(
        self,
        run_dir: Path,
        training: Training,
        watch: Watch,
        position: Callable[[], tuple[int, str | None]],
        before: Checkpoint | None,
    ) -> None:
        self.run_dir, self.training, self.watch, self.position = run_dir, training, watch, position
        self._best: memoryview | None = None
        self._held_at: Position | None = None  # of a best epoch that this process has seen
        self._best_is_written = False
        self._on_disk: dict[str, Position] = {}  # of which step and epoch the weights in each file are
        if before is not None:
            self._on_disk[LAST] = (before.step, before.epoch)
        if before is not None and before.best is not None:
            self._best, self._on_disk[BEST], self._best_is_written = best_of(run_dir, before)
            training.stands.best = checkpoint.from_content(self._best).best  # best.pt may be ahead of last.pt

    def __enter__(self) -> "Saves":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        """A run that fails keeps its best epoch."""
        if isinstance(error, Exception):
            with contextlib.suppress(UserError):  # what went wrong first is what is told
                self.write_best()

    def hold_best(self) -> None:
        """The epoch that has just ended is the best: keep its checkpoint until the next write."""
        self._best, self._held_at, self._best_is_written = self._content(), self._position, False

    def write(self) -> None:
        """Write what is new. Raises UserError where the system refuses, Diverged rather than save what is no number."""
        self.write_best()  # before last.pt, which says that it is there
        best = self._best if self._held_at == self._position else None
        self._put(LAST, self._content() if best is None else best, self._position)
        self.watch.saved()

    def write_best(self) -> None:
        """Write best.pt alone, unless it is there."""
        if self._best is not None and not self._best_is_written:
            self._put(BEST, self._best, self._held_at or self._on_disk[BEST])
            self._best_is_written = True

    def _put(self, name: str, content: memoryview, position: Position) -> None:
        """Write a checkpoint; what was measured of other weights under its name is set aside."""
        before = self._on_disk.get(name, position)
        if before != position:
            set_aside(self.run_dir, name, epoch=before[1])
        checkpoint.save(self.run_dir / name, content)
        self._on_disk[name] = position

    @property
    def _position(self) -> Position:
        return self.training.stands.step, self.training.stands.epoch

    def best(self) -> tuple[dict[str, Tensor], Best]:
        """The weights of the best epoch, on the CPU, and which epoch that is."""
        assert self._best is not None, "every run holds one before it ends"
        kept = checkpoint.from_content(self._best)
        assert kept.best is not None, "set before it was held"
        return kept.model, kept.best

    def _content(self) -> memoryview:
        """All that the run is at this moment, the order of its images as at the beginning of the epoch."""
        run, stands = self.training, self.training.stands
        require_finite(run.means.peek("train"), run.means.span, self.run_dir)
        require_finite_weights(run.model, stands.step, self.run_dir)
        streams = run.streams.state() | {"order": stands.order}
        written = Written(self.watch.seconds, self.watch.epoch_seconds, *self.position())
        made = Checkpoint(
            run.config,
            run.data.x_shape,
            run.data.n_classes,
            run.data.class_names,
            stands.step,
            stands.epoch,
            stands.best,
            stands.kl_per_dim,
            run.model.state_dict(),
            run.optimizer.state_dict(),
            Continuation(run.facts, streams, run.means.state(), written),
        )
        return checkpoint.content(made)


def best_of(folder: Path, before: Checkpoint) -> tuple[memoryview, Position, bool]:
    """The best epoch's checkpoint of a run that goes on, where it stands, and whether it is on the disk.

    A best.pt that is ahead of the checkpoint is taken too: the run had come to that epoch. Raises UserError
    where best.pt is missing, damaged or of another epoch, and the checkpoint is not of the best epoch itself.
    """
    assert before.best is not None, "asked for where an epoch was completed"
    path = folder / BEST
    try:
        kept = checkpoint.load(path)
        if kept.best is None:
            raise UserError(f"checkpoint={path}: of a run before its first epoch, and the best is {before.best.epoch}.")
        if kept.step != before.best.step and kept.step <= before.step:
            raise UserError(f"checkpoint={path}: of epoch {kept.epoch}, and the best one is {before.best.epoch}.")
        return memoryview(path.read_bytes()), (kept.step, kept.epoch), True
    except UserError as error:
        if before.best.step == before.step:
            return checkpoint.content(before), (before.step, before.epoch), False
        raise UserError(f"resume={folder}: its best epoch is lost. {error} resume=null starts anew.") from error
