"""The samplers of a model that are fitted to training codes, and stored beside its checkpoint as NAME.SAMPLER.npz."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from vae_exp import metrics
from vae_exp.config import build
from vae_exp.datasets import Split
from vae_exp.samplers import FITTED, Mixture
from vae_exp.training import arrays
from vae_exp.vae import VAE

TYPES = {"group": np.int64, "weight": np.float32, "mean": np.float32, "root": np.float32}
CODES = 10_000  # training images, chosen by chance, whose codes a sampler is fitted to


def load_or_fit(
    name: str, model: VAE, weights: str, read_train: Callable[[], Split], checkpoint: Path | None
) -> Mixture:
    """Return the sampler stored beside the checkpoint for these weights, or else fit it to the training data.

    Raises UserError if the training data, read only for a fit, cannot be read.
    """
    path = checkpoint and checkpoint.with_name(f"{checkpoint.stem}.{name}.npz")
    if path and (kept := _read(path, weights, model)):
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


def _read(path: Path, weights: str, model: VAE) -> Mixture | None:
    """Read a stored sampler; return None if there is none, it is of other weights, or it cannot be what was written."""
    kept = arrays.read(path)
    if kept is None or str(kept.pop("weights", "")) != weights or not arrays.are_numbers(kept, TYPES):
        return None
    found = Mixture(**{name: torch.from_numpy(values) for name, values in kept.items()})
    n, z_dim = found.group.numel(), model.z_dim
    shapes = found.group.shape == found.weight.shape == (n,) and found.mean.shape == (n, z_dim)
    if not n or not shapes or found.root.shape not in ((n, z_dim), (n, z_dim, z_dim)):
        return None
    if found.group.min() < 0 or found.group.max() >= max(model.n_classes, 1) or found.weight.min() < 0:
        return None
    sums = torch.zeros(int(found.group.max()) + 1).index_add(0, found.group, found.weight)
    return found if ((sums[found.group] - 1).abs() < 1e-3).all() else None
