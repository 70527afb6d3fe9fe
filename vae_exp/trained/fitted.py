"""The samplers of a model that are fitted to training codes, kept beside its checkpoint as NAME.SAMPLER.npz."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from vae_exp import metrics
from vae_exp.config import build
from vae_exp.run import arrays
from vae_exp.samplers import FITTED, Mixture

if TYPE_CHECKING:
    from vae_exp.trained.model import TrainedVAE

CODES = 10_000  # training images, chosen by chance, whose codes a sampler is fitted to


def mixture(model: TrainedVAE, name: str, root: str | None = None) -> Mixture:
    """What was kept for the weights of this model; else it is fitted, for which the training data are read.

    Raises UserError where they cannot be read.
    """
    path = model.path and model.path.with_name(f"{model.path.stem}.{name}.npz")
    if path and (kept := _read(path, model.weights, model.model.z_dim)):
        return kept
    train = model.read_data(root).train
    chosen = torch.randperm(len(train), generator=build.generator(0, "codes"))[:CODES].sort().values
    train = train[chosen].to(model.device)
    with torch.no_grad():
        q = metrics.posterior(model.model, train)
    found = FITTED[name](q, train.y if model.model.n_classes else torch.zeros_like(train.y))
    if path:
        content = {name: values.numpy() for name, values in vars(found).items()}
        arrays.write(path, content | {"weights": np.array(model.weights)})
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
