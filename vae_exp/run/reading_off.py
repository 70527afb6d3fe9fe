"""Whether the ordinary models that will be read off a run for many settings are its network at these settings.

A network of the user's own may have a layer that answers otherwise than its weights say. Told before the run is opened.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from vae_exp import amortized
from vae_exp.errors import UserError
from vae_exp.networks.modulated import Modulated
from vae_exp.vae import VAE

SHAKEN = 0.1  # standard deviation of what the scales and shifts, 0 at first, are made from while this is tried
TOLERANCE = 1e-3  # of the largest output: rounding leaves 1e-5


@torch.no_grad()
def check(config: Mapping[str, Any], model: VAE, x: Tensor, y: Tensor) -> None:
    """Raises UserError where a model that is read off makes other codes of images x [B, C, H, W], or other images."""
    if not amortized.is_amortized(config):
        return
    noise = torch.Generator().manual_seed(0)
    betas = config["amortize"]["beta"] or [config["model"]["beta"]]
    smallest = min(config["amortize"]["z_dim"] or [config["model"]["z_dim"]])
    with _shaken(model, noise):
        for beta, z_dim in ((betas[0], smallest), (betas[-1], config["model"]["z_dim"])):
            z = torch.randn(len(x), z_dim, generator=noise).to(x.device)
            if _differs(config, model, x, y, z, beta):
                target = config["network"]["_target_"]
                raise UserError(
                    f"amortize: network._target_={target} cannot be trained for many settings: what is read off for "
                    f"beta={beta:g} and z_dim={z_dim} is not what it is there. The weights of a layer must be used by "
                    f"that layer alone. {amortized.NARROWS}"
                )


def _differs(config: Mapping[str, Any], model: VAE, x: Tensor, y: Tensor, z: Tensor, beta: float) -> bool:
    z_dim, context = z.shape[1], model.context(y)
    alone = amortized.settled(model, config, cast("tuple[int, int, int]", tuple(x.shape[1:])), beta, z_dim)
    setting = amortized.of(beta, z_dim, len(x), x.device)
    codes = torch.cat([part[:, :z_dim] for part in model.encoder(x, context, setting).chunk(2, dim=1)], dim=1)
    padded = nn.functional.pad(z, (0, model.z_dim - z_dim))
    images = model.decoder(padded, context, setting)
    pairs = ((codes, alone.encoder(x, context)), (images, alone.decoder(z, context)))
    return any(not (own - read).abs().max() <= TOLERANCE * own.abs().max() for own, read in pairs)


@contextlib.contextmanager
def _shaken(model: VAE, noise: torch.Generator) -> Iterator[None]:
    """Inside, the scales and shifts are not 0, as after some training; afterwards they are as they were."""
    parts = [part for part in (model.encoder, model.decoder) if isinstance(part, Modulated)]
    functions = [f for part in parts for f in (*part.functions, part.of_latents) if f is not None]
    weights = [cast("Tensor", cast("nn.Sequential", function)[-1].weight) for function in functions]
    before = [weight.clone() for weight in weights]
    try:
        for weight in weights:
            weight += SHAKEN * torch.randn(weight.shape, generator=noise).to(weight.device)
        yield
    finally:
        for weight, kept in zip(weights, before, strict=True):
            weight.copy_(kept)
