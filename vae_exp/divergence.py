"""Numbers that are no longer finite: found before they are written down, and told with what can be done."""

import math
from pathlib import Path

from vae_exp.config import UserError
from vae_exp.vae import VAE


class Diverged(UserError):
    """A term, a loss or a gradient that is no longer a finite number."""


def finite(values: dict[str, float], when: str, run_dir: Path) -> dict[str, float]:
    """The same values; raises Diverged where one of them is not a finite number."""
    wrong = [name for name, value in values.items() if not math.isfinite(value)]
    if wrong:
        kept = run_dir / "last.pt"
        raise Diverged(
            f"the training diverged {when}: {', '.join(wrong)} not finite. "
            + (f"The last good checkpoint is {kept}. " if kept.exists() else "No epoch had been completed. ")
            + "A lower optimizer.lr is the first thing to try."
        )
    return values


def check_weights(model: VAE, step: int, run_dir: Path) -> None:
    """Raises Diverged rather than let a checkpoint with weights that are no numbers replace a good one."""
    wrong = [name for name, weights in model.named_parameters() if not weights.isfinite().all()]
    finite({f"the weights {name}": math.nan for name in wrong}, f"by step {step}", run_dir)
