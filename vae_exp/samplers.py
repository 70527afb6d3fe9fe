"""Sources of new codes besides the prior: mixtures of Gaussians over the codes of the training images.

The prior is rarely where the codes are: what q(z|x) gives over all images, the aggregate posterior, has holes where the
prior has none (Rosca et al. 2018, https://arxiv.org/abs/1802.06847). Both samplers here follow the codes: `fitted` is a
few Gaussians with full covariances (Ghosh et al. 2020, https://arxiv.org/abs/1903.12436), `aggregate` the posteriors
themselves.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vae_exp.distributions import DiagonalGaussian, Point
from vae_exp.errors import UserError

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
