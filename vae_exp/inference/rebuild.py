"""Rebuild a model from a checkpoint's names and numbers, without running anything of a stranger's."""

import torch

from vae_exp.config import build, own_code
from vae_exp.config.foreign import Trust, check_foreign
from vae_exp.errors import UserError
from vae_exp.training import validate
from vae_exp.training.checkpoint import Checkpoint
from vae_exp.vae import VAE


def rebuild(kept: Checkpoint, trust: Trust = False) -> VAE:
    """Return a checkpoint's model with its weights, after comparing its sizes with theirs, which costs nothing.

    Raises UserError for a _target_ that is not vae_exp's own, unless the file and what it names are trusted, and if
    the weights are not those of the config.
    """
    if "amortize" in kept.config:
        raise UserError("checkpoint: of a network for many settings (amortize=...), which this version does not read.")
    require_known(kept, "network", "likelihood", trust=trust)
    build.check_known_values(kept.config)
    try:
        with torch.device("meta"):  # shapes without numbers: a small file may ask for a huge model
            empty = build.model(kept.config, kept.x_shape, kept.n_classes)
    except (TypeError, ValueError, KeyError, RuntimeError, ArithmeticError) as error:
        raise UserError(f"checkpoint: its config gives no model ({str(error).splitlines()[0]}).") from error
    try:
        validate.require_weights(kept.model, empty.state_dict())
        validate.require_latents(kept.kl_per_dim, kept.config["model"]["z_dim"])
    except validate.InvalidCheckpoint as error:
        raise UserError(f"checkpoint: {error}.") from error
    model = build.model(kept.config, kept.x_shape, kept.n_classes)
    model.load_state_dict(kept.model)
    return model


def require_known(kept: Checkpoint, *groups: str, trust: Trust) -> None:
    """Let a checkpoint name code that is not vae_exp's only if it is trusted, and find that code where it lay.

    Raises UserError for a _target_ that is not trusted, before anything of it is imported, and for one that is gone.
    """
    check_foreign(kept.config, *groups, trust=trust)
    if trust is True:
        own_code.find(kept.config, groups, kept.code)
