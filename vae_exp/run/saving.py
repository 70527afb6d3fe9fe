"""The two checkpoints of a run: last.pt as it stands, and best.pt, which waits in memory until last.pt is written."""

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from vae_exp.errors import UserError
from vae_exp.run import checkpoint
from vae_exp.run.checkpoint import Checkpoint, Continuation, Written
from vae_exp.run.divergence import require_finite, require_finite_weights
from vae_exp.run.folder import BEST, LAST
from vae_exp.run.standing import Best, Training
from vae_exp.run.stopping import Watch


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
        self._held_at: int | None = None  # the step of a best epoch that this process has seen
        self._best_is_written = False
        if before is not None and before.best is not None:
            self._best, self._best_is_written = best_of(run_dir, before)

    def hold_best(self) -> None:
        """The epoch that has just ended is the best: keep its checkpoint until the next write."""
        self._best, self._held_at, self._best_is_written = self._content(), self.training.stands.step, False

    def write(self) -> None:
        """Write what is new. Raises UserError where the system refuses, Diverged rather than save what is no number."""
        is_best = self._held_at == self.training.stands.step and self._best is not None
        content = self._best if is_best and self._best is not None else self._content()
        self.write_best()  # before last.pt, which says that it is there
        checkpoint.save(self.run_dir / LAST, content)
        self.watch.saved()

    def write_best(self) -> None:
        """Write best.pt alone, unless it is there."""
        if self._best is not None and not self._best_is_written:
            checkpoint.save(self.run_dir / BEST, self._best)
            self._best_is_written = True

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


def best_of(folder: Path, before: Checkpoint) -> tuple[memoryview, bool]:
    """The best epoch's checkpoint of a run that goes on, and whether it is on the disk.

    A best.pt that is ahead of the checkpoint is taken too: the run will come to that epoch again. Raises UserError
    where best.pt is missing, damaged or of another epoch, and the checkpoint is not of the best epoch itself.
    """
    assert before.best is not None, "asked for where an epoch was completed"
    path = folder / BEST
    try:
        kept = checkpoint.load(path)
        if kept.step != before.best.step and kept.step <= before.step:
            raise UserError(f"checkpoint={path}: of epoch {kept.epoch}, and the best one is {before.best.epoch}.")
        return memoryview(path.read_bytes()), True
    except UserError as error:
        if before.best.step == before.step:
            return checkpoint.content(before), False
        raise UserError(f"resume={folder}: its best epoch is lost. {error} resume=null starts anew.") from error
