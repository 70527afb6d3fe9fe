"""vae_exp: train, sweep and compare variational autoencoders."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vae_exp.errors import UserError
from vae_exp.version import __version__

if TYPE_CHECKING:
    from pathlib import Path

    from vae_exp.trained import TrainedVAE

__all__ = ["UserError", "__version__", "load"]


def load(checkpoint: str | Path, device: str = "auto", trust: bool = False) -> TrainedVAE:
    """A trained model, ready to sample, encode and reconstruct; the training data is not needed.

    checkpoint is a .pt or .safetensors file, or a run folder (its best.pt); device is auto, cpu, cuda or mps,
    whatever the model was trained on. Nothing inside the file is run. With trust the network, likelihood and dataset
    that it names may be code that is not vae_exp's, and that code is run. Raises vae_exp.UserError where there is
    no such checkpoint, or not one of ours.
    """
    from vae_exp import trained  # here, so that the command line answers without importing torch

    return trained.load(checkpoint, device, trust)
