"""Samplers fitted to the codes of the training data."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vae_exp.config import build
from vae_exp.datasets import Data
from vae_exp.distributions import DiagonalGaussian, FullGaussian, Point, Posterior, map_parameters
from vae_exp.errors import UserError
from vae_exp.evaluation import metrics
from vae_exp.files import read_arrays, write_arrays
from vae_exp.vae import VAE

COMPONENTS = 10  # of a fitted mixture, for each class of a conditional model
MIN_IMAGES = 100  # that a component needs: a class of few has fewer components
MIN_DRAWS = 200  # codes that a mixture is fitted on: of a class of few images several draws each
CODES = 10_000  # random training images whose codes a sampler is fitted to
TYPES = {"group": np.int64, "weight": np.float32, "mean": np.float32, "root": np.float32, "weights": np.str_}


@dataclass
class Mixture:
    """Gaussians over codes, float32 on the CPU: those of a group, which is a class, have weights that sum to 1."""

    group: Tensor  # int64 [M]: 0 for all where codes are not drawn by their label
    weight: Tensor  # [M]
    mean: Tensor  # [M, Z]
    root: Tensor  # [M, Z], standard deviations, or [M, Z, Z], lower triangular: of each covariance

    def draw(self, y: Tensor, noise: torch.Generator, temperature: float = 1.0) -> Tensor:
        """Draw a code for each label y [N], [N, Z]; a temperature below 1 draws nearer to the Gaussians' means."""
        y, n = y.cpu() if self.group.any() else torch.zeros(len(y), dtype=torch.long), len(y)
        uniform, eps = torch.rand(n, 1, generator=noise), torch.randn(n, self.mean.shape[1], generator=noise)
        component = torch.empty(n, dtype=torch.long)
        for label in y.unique().tolist():
            members, rows = (self.group == label).nonzero()[:, 0], y == label
            if not len(members):
                raise UserError(
                    f"sampler: no training image has label {label}, so no codes of it are known; they are of "
                    f"{', '.join(map(str, self.group.unique().tolist()))}. Use sampler=prior, or label= one of these."
                )
            cumulative = self.weight[members].double().cumsum(0)
            index = torch.searchsorted(cumulative, uniform[rows, 0].double() * cumulative[-1], right=True)
            component[rows] = members[index.clamp(max=len(members) - 1)]
        if self.root.ndim == 2:
            return self.mean[component] + temperature * self.root[component] * eps
        for number in component.unique().tolist():  # a matrix for each code would take N times its memory
            rows = component == number
            eps[rows] = eps[rows] @ self.root[number].T
        return self.mean[component] + temperature * eps


def aggregate(q: Posterior, group: Tensor) -> Mixture:
    """Return the aggregate posterior: q(z|x) of an image that is chosen evenly among those of the label."""
    mean, group = q.mean.cpu().float(), group.cpu()
    if isinstance(q, DiagonalGaussian):
        root = torch.exp(0.5 * q.log_var.cpu().float())
    elif isinstance(q, FullGaussian):
        root = q.scale_tril.cpu().float()
    elif not isinstance(q, Point):
        raise UserError(f"sampler=aggregate: it needs a Gaussian q(z|x), not {type(q).__name__}. Use sampler=gmm.")
    else:  # no spread of their own: they get that of a kernel density, by Scott's rule
        root = torch.empty_like(mean)
        for rows in _groups(group):
            n, z_dim = mean[rows].shape
            root[rows] = mean[rows].std(0, correction=0) * n ** (-1 / (z_dim + 4))
    return Mixture(group, 1 / group.bincount()[group].float(), mean, root)


def gmm(q: Posterior, group: Tensor, seed: int = 0) -> Mixture:
    """Fit COMPONENTS Gaussians to each group by maximum likelihood, on draws of z ~ q(z|x), [N, Z]."""
    from sklearn.mixture import GaussianMixture  # here: it takes a second to import

    noise, group = torch.Generator().manual_seed(seed), group.cpu()
    parts = []
    for rows in _groups(group):
        repeated = rows.repeat(math.ceil(MIN_DRAWS / len(rows)))
        z = map_parameters(itemgetter(repeated), q).rsample(noise).cpu()
        components = min(COMPONENTS, max(1, len(rows) // MIN_IMAGES))
        fit = GaussianMixture(components, random_state=seed).fit(z.double().numpy())
        root = torch.linalg.cholesky(torch.from_numpy(fit.covariances_))
        label = group[rows[0]].expand(components)
        parts.append([label, *(torch.as_tensor(v).float() for v in (fit.weights_, fit.means_, root))])
    return Mixture(*(torch.cat(arrays) for arrays in zip(*parts, strict=True)))


FITTED = {"gmm": gmm, "aggregate": aggregate}


def _groups(group: Tensor) -> list[Tensor]:
    return [(group == label).nonzero()[:, 0] for label in group.unique().tolist()]


def load_or_fit(name: str, model: VAE, weights: str, read_data: Callable[[], Data], checkpoint: Path | None) -> Mixture:
    """Return the sampler stored beside the checkpoint for these weights, or else fit it to the training data."""
    path = checkpoint and checkpoint.with_name(f"{checkpoint.stem}.{name}.npz")
    stored = read_arrays(path, TYPES) if path else None
    if stored and str(stored.pop("weights")) == weights:
        return Mixture(**{name: torch.from_numpy(values) for name, values in stored.items()})
    train = read_data().train
    rows = torch.randperm(len(train), generator=build.generator(0, "codes"))[:CODES].sort().values
    train = train[rows].to(next(model.parameters()).device)
    q = metrics.posterior(model, train)
    by_class = model.n_classes and model.contexts is None  # combinations of conditions may have few images each
    mixture = FITTED[name](q, train.y if by_class else torch.zeros_like(train.y))
    if path:
        content = {name: values.numpy() for name, values in vars(mixture).items()}
        write_arrays(path, content | {"weights": np.array(weights)})
    return mixture
