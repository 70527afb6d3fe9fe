"""Numbers that are no longer finite: found before they are written down, and reported with what can be done."""

import math
from pathlib import Path

from torch import Tensor, nn

from vae_exp.errors import Diverged
from vae_exp.training.folder import LAST
from vae_exp.vae import VAE


def require_finite(values: dict[str, float], when: str, run_dir: Path) -> None:
    """Raise Diverged if one of the values is not a finite number."""
    wrong = [name for name, value in values.items() if not math.isfinite(value)]
    if wrong:
        kept = run_dir / LAST
        raise Diverged(
            f"the training diverged {when}: {', '.join(wrong)} not finite. "
            + (f"The last good checkpoint is {kept}. " if kept.exists() else "No last.pt had been written. ")
            + "A lower optimizer.lr is the first thing to try."
        )


def gradient_norm(model: VAE) -> Tensor:
    """Return the length of the gradient of all weights, a scalar on the device."""
    return nn.utils.get_total_norm([weights.grad for weights in model.parameters() if weights.grad is not None])


def clip_gradient(model: VAE, norm: Tensor, clip_norm: float) -> None:
    """Scale the gradient of all weights, of length `norm`, to `clip_norm` if it is longer (Pascanu et al. 2013).

    The norm is not read, because that would wait for the device.
    """
    nn.utils.clip_grads_with_norm_(model.parameters(), clip_norm, norm)


def require_finite_weights(model: VAE, step: int, run_dir: Path) -> None:
    """Raise Diverged if weights are not finite, rather than let such a checkpoint replace a good one."""
    if nn.utils.get_total_norm(model.parameters()).isfinite():  # one look at all, an eighth of the time
        return
    wrong = [name for name, weights in model.named_parameters() if not weights.isfinite().all()]
    require_finite({f"the weights {name}": math.nan for name in wrong}, f"by step {step}", run_dir)
