"""Scores from nearest neighbours, by Euclidean distances: precision and recall, density and coverage."""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from vae_exp.errors import UserError
from vae_exp.scores.common import feature_pair, float64

K_MANIFOLD = 3  # of precision and recall, as in Kynkäänniemi et al. (2019)
K_DENSITY = 5  # of density and coverage, as in Naeem et al. (2020)
BLOCK = 1000  # rows compared at a time: memory grows with N + M, not with their product


def precision(real: Any, fake: Any, k: int = K_MANIFOLD) -> float:
    """Return the part of fake [M, D] that lies in the ball of some row of real [N, D], which its k-th neighbour bounds.

    Improved precision (Kynkäänniemi et al. 2019), https://arxiv.org/abs/1904.06991: 1 is best, and says that samples
    look real. Raises UserError for k rows or fewer.
    """
    return neighbour_scores(real, fake, ["precision"], k)["precision"]


def recall(real: Any, fake: Any, k: int = K_MANIFOLD) -> float:
    """Return the part of real [N, D] in the ball of some row of fake [M, D]: 1 is best, as varied as the data."""
    return neighbour_scores(real, fake, ["recall"], k)["recall"]


def density(real: Any, fake: Any, k: int = K_DENSITY) -> float:
    """Return in how many balls of real rows a fake row lies, over k: 1 is expected of samples like the data.

    Naeem et al. (2020), https://arxiv.org/abs/2002.09797. It exceeds 1 where samples crowd where the data are dense.
    """
    return neighbour_scores(real, fake, ["density"], k)["density"]


def coverage(real: Any, fake: Any, k: int = K_DENSITY) -> float:
    """Return the part of real [N, D] whose ball contains some row of fake [M, D]: 1 is best (Naeem et al. 2020)."""
    return neighbour_scores(real, fake, ["coverage"], k)["coverage"]


def neighbour_scores(real: Any, fake: Any, names: Collection[str], k: int | None = None) -> dict[str, float]:
    """Return the named ones of precision, recall, density and coverage, from one pass over all pairs of rows."""
    real, fake = _centred(real, fake)
    k_manifold, k_density = (K_MANIFOLD, K_DENSITY) if k is None else (k, k)
    k_max = max(k_density if name in ("density", "coverage") else k_manifold for name in names)
    for side, features in (("real", real), ("fake", fake)):
        if len(features) <= k_max:
            raise UserError(f"{side}: {len(features)} rows; {k_max + 1} or more are needed for {k_max} neighbours.")
    radii = _squared_radii(real, k_max)
    ball, density_ball = radii[:, k_manifold - 1], radii[:, min(k_density, k_max) - 1]
    fake_ball = _squared_radii(fake, k_manifold)[:, -1] if "recall" in names else None
    precise, dense, covered, recalled = 0, 0, torch.zeros_like(ball, dtype=torch.bool), torch.zeros_like(ball).bool()
    for rows in torch.arange(len(fake), device=fake.device).split(BLOCK):
        distance = squared_distances(fake[rows], real)
        precise += int((distance <= ball).any(1).sum())
        inside = distance <= density_ball
        dense += int(inside.sum())
        covered |= inside.any(0)
        if fake_ball is not None:
            recalled |= (distance <= fake_ball[rows, None]).any(0)
    scores = {
        "precision": precise / len(fake),
        "recall": recalled.double().mean().item(),
        "density": dense / (k_density * len(fake)),
        "coverage": covered.double().mean().item(),
    }
    return {name: scores[name] for name in names}


def nearest(fake: Any, real: Any, k: int = 1) -> tuple[Tensor, Tensor]:
    """Return the k nearest rows of real [N, D] to each of fake [M, D]: distances [M, k], nearest first, and rows."""
    real, fake = _centred(real, fake)
    if len(real) < k:
        raise UserError(f"real: {len(real)} rows have no {k} nearest.")
    parts = [squared_distances(part, real).topk(k, dim=1, largest=False) for part in fake.split(BLOCK)]
    return torch.cat([part.values for part in parts]).sqrt(), torch.cat([part.indices for part in parts])


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """Return squared distances [N, M] of rows [N, D] and [M, D], best centred, float64; 0 where rounding is all."""
    x, y = float64(x), float64(y)
    lengths = torch.linalg.vector_norm(x, dim=1).square()[:, None] + torch.linalg.vector_norm(y, dim=1).square()
    distance = torch.addmm(lengths, x, y.T, alpha=-2)
    # Four times the most that was seen between equal rows of 8 to 200,000 features.
    rounding = lengths.mul_((8 + x.shape[1] / 8) * torch.finfo(torch.float64).eps)
    return distance.masked_fill_(distance <= rounding, 0)


def _centred(real: Any, fake: Any) -> tuple[Tensor, Tensor]:
    """Subtract the mean of real from both: shorter rows lose less to rounding. Raises UserError as feature_pair."""
    real, fake = feature_pair(real, fake)
    centre = real.mean(0)
    return real - centre, fake - centre


def _squared_radii(x: Tensor, k: int) -> Tensor:
    """Return squared distances of each row to its 1st to k-th neighbour among the others, [N, k]."""
    radii = []
    for rows in torch.arange(len(x), device=x.device).split(BLOCK):
        distance = squared_distances(x[rows], x)
        distance[torch.arange(len(rows), device=x.device), rows] = torch.inf
        radii.append(distance.topk(k, dim=1, largest=False).values)
    return torch.cat(radii)
