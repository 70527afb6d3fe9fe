"""vae_exp: train, sweep and compare variational autoencoders."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vae_exp.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from omegaconf import DictConfig

    from vae_exp.inference import TrainedVAE

__version__ = "0.2.0"
__all__ = ["UserError", "__version__", "compose", "load"]


def compose(*overrides: str) -> DictConfig:
    """Return the configuration that vae-train would train with these overrides, for vae_exp.train.train.

    With resume=PATH it is that of the run in this folder, with the other overrides. Raises vae_exp.UserError for a key,
    a group or an option that does not exist.
    """
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from vae_exp.config import compose
    from vae_exp.training import resume

    try:
        words, _ = resume.with_stored_overrides(compose.readable(list(overrides)))
        return compose.without_hydra(compose.compose("config", words))
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(compose.explain(error, "vae-train", "config")) from error


def load(checkpoint: str | Path, device: str = "auto", trust: bool = False) -> TrainedVAE:
    """Return a trained model, ready to sample, encode and reconstruct; the training data is not needed.

    checkpoint is a .pt or .safetensors file, or a run folder (its best.pt); device is auto, cpu, cuda or mps,
    whatever the model was trained on. Nothing inside the file is run. With trust the network, likelihood and dataset
    that it names may be code that is not vae_exp's, and that code is run, from where it lay at training. Raises
    vae_exp.UserError if there is no such checkpoint, or not one of ours.
    """
    from vae_exp import inference  # here, so that the command line answers without importing torch

    return inference.load(checkpoint, device, trust)
