"""The kernel distance of two sets of features (Binkowski et al. 2018)."""

from typing import Any

import torch
from torch import Tensor

from vae_exp.errors import UserError
from vae_exp.scores.arrays import pair

SUBSETS, SUBSET_SIZE = 100, 1000


def kid(real: Any, fake: Any, subsets: int = SUBSETS, subset_size: int = SUBSET_SIZE, seed: int = 0) -> float:
    """Return the squared maximum mean discrepancy of features [N, D] and [M, D]; 0 is best.

    The kernel is (x.y / D + 1)^3. The score is the mean of its unbiased estimates over random subsets, as in
    https://arxiv.org/abs/1801.01401. Without a bias it compares between different numbers of images, and may come out a
    little below 0. Raises UserError for arrays of other shapes, with numbers that are not finite, or of one row.
    """
    return kid_of_subsets(real, fake, subsets, subset_size, seed).mean().item()


def kid_of_subsets(
    real: Any, fake: Any, subsets: int = SUBSETS, subset_size: int = SUBSET_SIZE, seed: int = 0
) -> Tensor:
    """Return the estimate from each subset, [subsets] float64; subsets are as large as the smaller side allows."""
    real, fake = pair(real, fake)
    size = min(subset_size, len(real), len(fake))
    if size < 2:
        raise UserError("kid: needs two images or more on either side.")
    noise = torch.Generator().manual_seed(seed)

    def drawn(features: Tensor) -> Tensor:
        return features[torch.randperm(len(features), generator=noise)[:size].to(features.device)]

    return torch.stack([_unbiased(drawn(real), drawn(fake)) for _ in range(subsets)])


def _unbiased(x: Tensor, y: Tensor) -> Tensor:
    """Return one estimate, from as many rows of either side: an image is not compared with itself."""
    n = len(x)

    def total(a: Tensor, b: Tensor, but_itself: bool) -> Tensor:
        """Return the sum of the kernels of all pairs: the three sums nearly cancel."""
        kernel = (a @ b.T).div_(a.shape[1]).add_(1).pow_(3)  # in place: new memory takes longer than the arithmetic
        return (kernel.sum() - (kernel.diagonal().sum() if but_itself else 0)).cpu()

    inside = total(x, x, True) + total(y, y, True)
    return inside / (n * (n - 1)) - 2 * total(x, y, False) / n**2
