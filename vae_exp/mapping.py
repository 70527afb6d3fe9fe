"""The map of a run for many settings: the neg_elbo and its terms at each beta and z_dim, read off the one network."""

import math
from collections.abc import Mapping
from typing import Any

import torch

from vae_exp import amortized
from vae_exp.config import build
from vae_exp.datasets.splits import Split
from vae_exp.metrics import evaluate
from vae_exp.run.places import Place
from vae_exp.run.standing import Training
from vae_exp.vae import VAE

IMAGES = 2000  # of a split, chosen by chance: the map of a run takes seconds, and vae-evaluate measures all images
MOST_BETAS = 12


def measure(model: VAE, config: Mapping[str, Any], split: Split) -> list[Place]:
    """Every setting of `settings` on the same images with the same noise."""
    c, h, w = split.x.shape[1:]
    return [
        measure_one(amortized.settled(model, config, (c, h, w), beta, z_dim), split, beta, z_dim)
        for beta, z_dim in settings(config)
    ]


def measure_one(alone: VAE, split: Split, beta: float, z_dim: int) -> Place:
    """The ordinary model of one setting, on the images of the map with its noise."""
    chosen = torch.randperm(len(split), generator=build.generator(0, "map"))[:IMAGES].sort().values
    measured = evaluate(alone, split[chosen.to(split.y.device)], build.generator(0, "map"))
    return Place(
        beta=beta,
        z_dim=z_dim,
        neg_elbo=measured.neg_elbo,
        reconstruction=measured.per_image["reconstruction"].mean().item(),
        kl=measured.per_image["kl"].mean().item(),
        active_units=measured.active_units,
    )


def maps(training: Training, splits: Mapping[str, Split]) -> dict[str, list[Place]]:
    """The map of each split by its name, with the weights that the run keeps; nothing of a run for one setting."""
    if not amortized.is_amortized(training.config):
        return {}
    return {name: measure(training.averaged, training.config, split) for name, split in splits.items()}


def settings(config: Mapping[str, Any]) -> list[tuple[float, int]]:
    """The settings of a run's map: every z_dim with the run's own beta, and its doubles and halves within the range.

    Of a very wide range it is fewer: its multiples by 4, or by 8, ...
    """
    own, z_dim = config["model"]["beta"], config["model"]["z_dim"]
    return [(beta, z) for z in config["amortize"]["z_dim"] or [z_dim] for beta in _betas(own, config)]


def _betas(own: float, config: Mapping[str, Any]) -> list[float]:
    if config["amortize"]["beta"] is None:
        return [own]
    low, high = config["amortize"]["beta"]
    factor = 2 ** max(1, math.ceil(math.log2(high / low) / (MOST_BETAS - 1)))
    below, above = math.floor(math.log(own / low, factor)), math.floor(math.log(high / own, factor))
    inside = [own * factor**power for power in range(-below, above + 1)]
    return inside if len(inside) > 2 else sorted({low, own, high})
