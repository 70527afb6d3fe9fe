"""One run for many settings: each image is trained at a beta and a z_dim of its own, and any of them is read off later.

A setting is [B, 2], a beta and a z_dim for each image. A run without amortize=... has none, and costs nothing for it.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vae_exp.config import build
from vae_exp.errors import UserError
from vae_exp.networks.modulated import Modulated
from vae_exp.vae import VAE

NARROWS = (
    "A smaller z_dim is read off where the encoder's last layer gives means and log-variances, the decoder's first "
    "layer takes z before the label, and no other layer's width follows from z_dim."
)
OFF = {"beta": None, "z_dim": None, "confirm": 0}  # of a run for one setting


def draw(config: Mapping[str, Any], n: int, noise: torch.Generator) -> tuple[Tensor, ...]:
    """The settings of n images, [n, 2], or () of a run that has but one.

    beta is log-uniform over its range and z_dim one of its values, each as even over the images as can be: a value
    from each n-th of the range, in a random order.
    """
    if not is_amortized(config):
        return ()
    betas, z_dims = config["amortize"]["beta"], config["amortize"]["z_dim"]
    setting = of(config["model"]["beta"], config["model"]["z_dim"], n, noise.device)
    if betas is not None:
        low, high = map(math.log, betas)
        setting[:, 0] = torch.exp(low + (high - low) * _even(n, noise))
    if z_dims is not None:
        chosen = (_even(n, noise) * len(z_dims)).long().clamp(max=len(z_dims) - 1)
        setting[:, 1] = _table(tuple(z_dims), noise.device)[chosen]
    return (setting,)


@functools.cache
def _table(values: tuple[int, ...], device: torch.device) -> Tensor:
    """On the device once: a copy in each step would wait for it."""
    return torch.tensor(values, dtype=torch.float32, device=device)


def _even(n: int, noise: torch.Generator) -> Tensor:
    """n numbers from 0 to 1, one of each n-th, in a random order, [n]."""
    shares = torch.randperm(n, generator=noise, device=noise.device)
    return (shares + torch.rand(n, generator=noise, device=noise.device)) / n


def of(beta: float, z_dim: int, n: int, device: torch.device | str = "cpu") -> Tensor:
    """The same setting for n images, [n, 2]."""
    return torch.stack([torch.full((n,), float(value), device=device) for value in (beta, z_dim)], 1)


def own(config: Mapping[str, Any], n: int, device: torch.device | str) -> tuple[Tensor, ...]:
    """The setting that the run itself is measured at, model.beta and model.z_dim, for n images; () as draw."""
    return (of(config["model"]["beta"], config["model"]["z_dim"], n, device),) if is_amortized(config) else ()


def is_amortized(config: Mapping[str, Any]) -> bool:
    """Whether a run is one for many settings."""
    return any(config["amortize"][name] is not None for name in ("beta", "z_dim"))


def chosen(config: Mapping[str, Any], beta: float | None, z_dim: int | None) -> dict[str, Any]:
    """The beta and the z_dim that are asked for; None is the run's own.

    Raises UserError for a setting that the run was not trained for.
    """
    asked = {"beta": config["model"]["beta"] if beta is None else beta}
    asked["z_dim"] = config["model"]["z_dim"] if z_dim is None else z_dim
    betas, z_dims = config["amortize"]["beta"], config["amortize"]["z_dim"]
    low, high = betas or [config["model"]["beta"]] * 2
    if not low <= asked["beta"] <= high:
        there = f"{low:g} to {high:g} (amortize.beta)" if betas else f"{low:g} alone"
        raise UserError(f"beta={asked['beta']:g}: the model was trained for {there}.")
    if asked["z_dim"] not in (z_dims or [config["model"]["z_dim"]]):
        there = f"{', '.join(map(str, z_dims))} (amortize.z_dim)" if z_dims else f"{config['model']['z_dim']} alone"
        raise UserError(f"z_dim={asked['z_dim']}: the model was trained for {there}.")
    return asked


def at(config: Mapping[str, Any], beta: float | None = None, z_dim: int | None = None) -> dict[str, Any]:
    """The configuration of the ordinary model at one setting, as `chosen`."""
    model = config["model"] | chosen(config, beta, z_dim)
    objective = config["objective"]
    objective = objective | ({"beta": model["beta"]} if "beta" in objective else {})
    return {**config, "model": model, "objective": objective, "amortize": OFF}


def settled(
    model: VAE,
    config: Mapping[str, Any],
    x_shape: tuple[int, int, int],
    beta: float | None = None,
    z_dim: int | None = None,
) -> VAE:
    """The ordinary model at one setting, as if it had been trained for it alone; a plain model is its own.

    The setting's scales and shifts are part of its weights, and latents beyond z_dim are not there. Raises UserError
    for a setting that the run was not trained for.
    """
    if not isinstance(model.encoder, Modulated) or not isinstance(model.decoder, Modulated):
        return model
    alone = at(config, beta, z_dim)
    device = next(model.parameters()).device
    setting = of(alone["model"]["beta"], alone["model"]["z_dim"], 1, device)
    with torch.random.fork_rng([]):  # its first weights are replaced
        plain = build.model(alone, x_shape, model.n_classes)
    for narrow, whole in ((plain.encoder, model.encoder), (plain.decoder, model.decoder)):
        weights = whole.weights_at(setting)
        narrow.load_state_dict(_narrowed(weights, narrow.state_dict(), model.z_dim, plain.z_dim))
    plain.likelihood = model.likelihood
    return plain.to(device).train(model.training).requires_grad_(False)


def _narrowed(whole: Mapping[str, Tensor], narrow: Mapping[str, Tensor], widest: int, z_dim: int) -> dict[str, Tensor]:
    """Weights without the latents beyond z_dim: rows of the encoder's last layer, or of one each for means and for
    log-variances, and columns of the decoder's first. Whether that was right is tried before a run begins.

    Raises UserError for networks that have other widths for another z_dim.
    """
    kept = torch.arange(z_dim)
    found = {}
    for name, of_narrow in narrow.items():
        tensor = whole[name]
        wide, slim = tensor.shape, of_narrow.shape
        if wide != slim and wide[0] == 2 * widest and slim[0] == 2 * z_dim:
            tensor = tensor[torch.cat([kept, widest + kept]).to(tensor.device)]
        elif wide != slim and wide[0] == widest and slim[0] == z_dim:
            tensor = tensor[kept.to(tensor.device)]
        elif wide != slim and len(wide) > 1 and wide[1] - slim[1] == widest - z_dim:
            others = torch.arange(widest, wide[1])
            tensor = tensor[:, torch.cat([kept, others]).to(tensor.device)]
        if tensor.shape != slim:
            raise UserError(
                f"amortize.z_dim: the weights {name} have {list(wide)} numbers with {widest} latents and {list(slim)} "
                f"with {z_dim}. {NARROWS}"
            )
        found[name] = tensor
    return found
