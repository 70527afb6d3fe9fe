"""The input of all scores of samples: two arrays of features, checked once."""

from typing import Any

import torch
from torch import Tensor

from vae_exp.errors import UserError


def rows(name: str, features: Any) -> Tensor:
    """Return features [N, D] as float64.

    Raises UserError for another shape, no rows, or numbers that are not finite.
    """
    found = float64(torch.as_tensor(features))
    if found.ndim != 2 or not len(found):
        raise UserError(f"{name}: features are [N, D], a row per image; these are {list(found.shape)}.")
    if not found.isfinite().all():
        raise UserError(f"{name}: some of the features are not finite numbers.")
    return found


def pair(real: Any, fake: Any) -> tuple[Tensor, Tensor]:
    """Return both arrays on one device. Raises UserError if they have different numbers of features."""
    real, fake = rows("real", real), rows("fake", fake)
    if real.shape[1] != fake.shape[1]:
        raise UserError(f"real has {real.shape[1]:,} features and fake {fake.shape[1]:,}; both need the same.")
    return real, fake.to(real.device)


def float64(features: Tensor) -> Tensor:
    """Return features as float64, on the CPU if their device has no float64.

    The terms that the scores sum nearly cancel: in float32, distances below a thousandth of the rows' lengths would be
    lost to rounding.
    """
    return (features.cpu() if features.device.type == "mps" else features).double()
