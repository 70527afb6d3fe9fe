"""Distances between the features of real and of fake images: Fréchet and kernel."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vae_exp.errors import UserError
from vae_exp.scores.common import feature_pair


@dataclass
class Moments:
    """Count of features, their mean [D] and their sum of centred products [D, D], in float64."""

    n: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def of(cls, features: Tensor) -> "Moments":
        features = features.cpu().double()  # Apple's GPUs have no float64
        centred = features - features.mean(0)
        return cls(len(features), features.mean(0), centred.T @ centred)

    def joined(self, other: "Moments") -> "Moments":
        """Join batches by the formula of Chan et al. (1979), in which no large terms cancel."""
        n = self.n + other.n
        apart = other.mean - self.mean
        scatter = self.scatter + other.scatter + torch.outer(apart, apart) * (self.n * other.n / n)
        return Moments(n, self.mean + apart * (other.n / n), scatter)

    @property
    def covariance(self) -> Tensor:
        """Return the unbiased covariance [D, D]. Raises UserError for a single image, which has none."""
        if self.n < 2:
            raise UserError("frechet: needs two images or more on either side; one has no covariance.")
        return self.scatter / (self.n - 1)


def frechet(real: Any, fake: Any) -> float:
    """Return |mu_r - mu_f|^2 + tr(S_r + S_f - 2 (S_r S_f)^(1/2)) of features [N, D] and [M, D]; 0 is best.

    With Inception's features this is the FID of Heusel et al. (2017), https://arxiv.org/abs/1706.08500. It is biased
    upwards, the more the fewer images there are: only equal numbers compare.
    """
    real, fake = feature_pair(real, fake)
    return frechet_of(Moments.of(real), Moments.of(fake))


def frechet_of(real: Moments, fake: Moments) -> float:
    """Return the Fréchet distance of two Gaussians with these moments."""
    first, second = real.covariance, fake.covariance
    # The trace of (S_r S_f)^(1/2) is that of (A S_f A)^(1/2) with A = S_r^(1/2): symmetric, so a singular covariance,
    # as of fewer images than features, does no harm.
    values, vectors = torch.linalg.eigh(first)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ second @ root).clamp(min=0).sqrt().sum()
    distance = (real.mean - fake.mean).square().sum() + first.trace() + second.trace() - 2 * cross
    return max(0.0, distance.item())  # rounding may leave a little less than nothing


def kid(real: Any, fake: Any, subsets: int = 100, subset_size: int = 1000, seed: int = 0) -> float:
    """Return the squared maximum mean discrepancy of features [N, D] and [M, D]; 0 is best.

    The kernel is (x.y / D + 1)^3; the score is the mean of unbiased estimates over random subsets, as in
    https://arxiv.org/abs/1801.01401, as large as the smaller side allows. So it compares between different numbers of
    images, and may come out a little below 0.
    """
    real, fake = feature_pair(real, fake)
    size = min(subset_size, len(real), len(fake))
    if size < 2:
        raise UserError("kid: needs two images or more on either side.")
    noise = torch.Generator().manual_seed(seed)

    def subset(features: Tensor) -> Tensor:
        return features[torch.randperm(len(features), generator=noise)[:size].to(features.device)]

    return torch.stack([_unbiased(subset(real), subset(fake)) for _ in range(subsets)]).mean().item()


def _unbiased(x: Tensor, y: Tensor) -> Tensor:
    """Return one estimate, from as many rows of either side: an image is not compared with itself."""
    n = len(x)

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T).div_(a.shape[1]).add_(1).pow_(3)  # in place: new memory takes longer than the arithmetic

    def off_diagonal_sum(k: Tensor) -> Tensor:
        return (k.sum() - k.diagonal().sum()).cpu()

    inside = off_diagonal_sum(kernel(x, x)) + off_diagonal_sum(kernel(y, y))
    return inside / (n * (n - 1)) - 2 * kernel(x, y).sum().cpu() / n**2
