"""The samplers of a model that are fitted to training codes, kept beside its checkpoint as NAME.SAMPLER.npz."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from vae_exp import metrics
from vae_exp.config import build
from vae_exp.datasets import Split
from vae_exp.run import arrays
from vae_exp.samplers import FITTED, Mixture
from vae_exp.vae import VAE

CODES = 10_000  # training images, chosen by chance, whose codes a sampler is fitted to


def mixture(name: str, model: VAE, weights: str, read_train: Callable[[], Split], checkpoint: Path | None) -> Mixture:
    """What was kept beside the checkpoint for these weights; else it is fitted, for which the training data are read.

    Raises UserError where they cannot be read.
    """
    path = checkpoint and checkpoint.with_name(f"{checkpoint.stem}.{name}.npz")
    if path and (kept := _read(path, weights, model.z_dim)):
        return kept
    train = read_train()
    chosen = torch.randperm(len(train), generator=build.generator(0, "codes"))[:CODES].sort().values
    train = train[chosen].to(next(model.parameters()).device)
    with torch.no_grad():
        q = metrics.posterior(model, train)
    found = FITTED[name](q, train.y if model.n_classes else torch.zeros_like(train.y))
    if path:
        content = {name: values.numpy() for name, values in vars(found).items()}
        arrays.write(path, content | {"weights": np.array(weights)})
    return found


def _read(path: Path, weights: str, z_dim: int) -> Mixture | None:
    """None where there is none, or one of other weights."""
    kept = arrays.read(path)
    if kept is None or str(kept.pop("weights", "")) != weights or kept.keys() != Mixture.__annotations__.keys():
        return None
    n = len(kept["group"])
    is_sound = n > 0 and kept["group"].dtype == np.int64 and kept["mean"].shape == (n, z_dim)
    is_sound = is_sound and kept["weight"].shape == (n,) and kept["root"].shape in ((n, z_dim), (n, z_dim, z_dim))
    is_sound = is_sound and all(np.isfinite(values).all() for values in kept.values())
    return Mixture(**{name: torch.from_numpy(values) for name, values in kept.items()}) if is_sound else None
