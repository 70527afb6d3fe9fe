"""A trained model as its users want it: found, rebuilt, and drawn from."""

from pathlib import Path

from vae_exp.config import devices
from vae_exp.config.foreign import Trust
from vae_exp.inference.model import TrainedVAE
from vae_exp.inference.rebuild import rebuild
from vae_exp.inference.resolve import find
from vae_exp.training import checkpoint

__all__ = ["TrainedVAE", "find", "load", "rebuild"]


def load(path: str | Path, device: str = "auto", trust: Trust = False) -> TrainedVAE:
    """Load the model of a checkpoint file or of a run folder; see vae_exp.load."""
    (path,) = find(str(path), only_one=True)
    return TrainedVAE(checkpoint.load(path), devices.device(device), trust, path)
