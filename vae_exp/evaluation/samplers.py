"""Samplers fitted to the codes of the training data."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vae_exp.config import build
from vae_exp.datasets import Split
from vae_exp.distributions import DiagonalGaussian, Point
from vae_exp.errors import UserError
from vae_exp.evaluation import metrics
from vae_exp.training import arrays
from vae_exp.vae import VAE

COMPONENTS = 10  # of a fitted mixture, for each class of a conditional model
IMAGES_EACH = 100  # a component needs so many images: a class of few has fewer components
DRAWS = 200  # codes that a mixture is fitted on at least: of a class of few images several draws each


@dataclass
class Mixture:
    """Gaussians over codes, float32 on the CPU: those of a group, which is a class, have weights that sum to 1."""

    group: Tensor  # int64 [M]: 0 for all where the model is not conditional
    weight: Tensor  # [M]
    mean: Tensor  # [M, Z]
    root: Tensor  # [M, Z], standard deviations, or [M, Z, Z], lower triangular: of each covariance

    def draw(self, y: Tensor, noise: torch.Generator, temperature: float = 1.0) -> Tensor:
        """Draw a code for each label y [N], [N, Z]; a temperature below 1 draws nearer to the Gaussians' means.

        Raises UserError for a label that no training image had.
        """
        y, n = y.cpu(), len(y)
        uniform, eps = torch.rand(n, 1, generator=noise), torch.randn(n, self.mean.shape[1], generator=noise)
        chosen = torch.empty(n, dtype=torch.long)
        for label in y.unique().tolist():
            of_label, rows = (self.group == label).nonzero()[:, 0], y == label
            if not len(of_label):
                raise UserError(
                    f"sampler: no training image has label {label}, so no codes of it are known; they are of "
                    f"{', '.join(map(str, self.group.unique().tolist()))}. Use sampler=prior, or label= one of these."
                )
            below = self.weight[of_label].double().cumsum(0)
            place = torch.searchsorted(below, uniform[rows, 0].double() * below[-1], right=True)
            chosen[rows] = of_label[place.clamp(max=len(of_label) - 1)]
        if self.root.ndim == 2:
            return self.mean[chosen] + temperature * self.root[chosen] * eps
        for component in chosen.unique().tolist():  # a matrix for each code would take N times its memory
            rows = chosen == component
            eps[rows] = eps[rows] @ self.root[component].T
        return self.mean[chosen] + temperature * eps


def aggregate(q: DiagonalGaussian | Point, group: Tensor) -> Mixture:
    """Return the aggregate posterior: q(z|x) of an image that is chosen evenly among those of the label.

    An autoencoder's codes have no spread of their own: they get that of a kernel density, by Scott's rule.
    """
    mean, group = q.mean.cpu().float(), group.cpu()
    if isinstance(q, DiagonalGaussian):
        root = torch.exp(0.5 * q.log_var.cpu().float())
    else:
        root = torch.empty_like(mean)
        for rows in _groups(group):
            n, z_dim = mean[rows].shape
            root[rows] = mean[rows].std(0, correction=0) * n ** (-1 / (z_dim + 4))
    return Mixture(group, 1 / group.bincount()[group].float(), mean, root)


def fitted(q: DiagonalGaussian | Point, group: Tensor, seed: int = 0) -> Mixture:
    """Fit COMPONENTS Gaussians to each group by maximum likelihood, on draws of z ~ q(z|x), [N, Z]."""
    from sklearn.mixture import GaussianMixture  # here: it takes a second to import

    noise, group = torch.Generator().manual_seed(seed), group.cpu()
    q = type(q)(**{name: values.cpu() for name, values in vars(q).items()})
    parts = []
    for rows in _groups(group):
        n = len(rows)
        of_group = type(q)(**{name: values[rows.repeat(-(-DRAWS // n))] for name, values in vars(q).items()})
        z = of_group.rsample(noise).double().numpy()
        components = min(COMPONENTS, max(1, n // IMAGES_EACH))
        found = GaussianMixture(components, random_state=seed).fit(z)
        label = group[rows[0]].expand(components)
        root = torch.linalg.cholesky(torch.from_numpy(found.covariances_))
        parts.append([label, *(torch.as_tensor(v).float() for v in (found.weights_, found.means_, root))])
    return Mixture(*(torch.cat(arrays) for arrays in zip(*parts, strict=True)))


FITTED = {"gmm": fitted, "aggregate": aggregate}


def _groups(group: Tensor) -> list[Tensor]:
    """Return the rows of each group that occurs."""
    return [(group == label).nonzero()[:, 0] for label in group.unique().tolist()]


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
