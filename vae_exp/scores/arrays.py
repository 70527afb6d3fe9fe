"""What all scores are given: two arrays of features, checked once."""

from typing import Any

import torch
from torch import Tensor

from vae_exp.errors import UserError


def rows(name: str, features: Any) -> Tensor:
    """Features [N, D] as float64. Raises UserError for another shape, no rows, or numbers that are not finite."""
    found = float64(torch.as_tensor(features))
    if found.ndim != 2 or not len(found):
        raise UserError(f"{name}: features are [N, D], a row per image; these are {list(found.shape)}.")
    if not found.isfinite().all():
        raise UserError(f"{name}: some of the features are not finite numbers.")
    return found


def pair(real: Any, fake: Any) -> tuple[Tensor, Tensor]:
    """Both arrays on one device. Raises UserError where they have different numbers of features."""
    real, fake = rows("real", real), rows("fake", fake)
    if real.shape[1] != fake.shape[1]:
        raise UserError(f"real has {real.shape[1]:,} features and fake {fake.shape[1]:,}; both need the same.")
    return real, fake.to(real.device)


def float64(features: Tensor) -> Tensor:
    """As float64, on the CPU where their device has none.

    What the scores sum nearly cancels: float32 takes distances below a thousandth of the rows' lengths for rounding.
    """
    return (features.cpu() if features.device.type == "mps" else features).double()
