"""Walk through the latent space, and along factors."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vae_exp.figures import grids
from vae_exp.vae import VAE

BATCH_SIZE = 1000
MAX_LATENTS = 40  # rows of the matrix that can be read
MIN_RANGE = 0.1  # nats of its colours: where no latent tells anything, all are dark


def interpolation(model: VAE, start: Tensor, end: Tensor, y: Tensor, steps: int, path: str) -> Tensor:
    """Walk from codes start [R, Z] to end [R, Z] with labels y [R], straight or along a sphere (White 2016)."""
    t = torch.linspace(0, 1, steps, device=start.device)[None, :, None]
    a, b = start[:, None], end[:, None]
    if path == "linear":
        z = (1 - t) * a + t * b
    else:  # the length of z stays between those of its ends, where a prior of many dimensions has its mass
        cosine = torch.nn.functional.cosine_similarity(a, b, dim=-1).clamp(-1, 1)[..., None]
        angle = torch.acos(cosine).clamp(1e-4, math.pi - 1e-4)  # parallel ends: nearly the straight line
        lengths = (1 - t) * a.norm(dim=-1, keepdim=True) + t * b.norm(dim=-1, keepdim=True)
        unit_a, unit_b = torch.nn.functional.normalize(a, dim=-1), torch.nn.functional.normalize(b, dim=-1)
        z = lengths * (torch.sin((1 - t) * angle) * unit_a + torch.sin(t * angle) * unit_b) / torch.sin(angle)
    return decode(model, z, y)


def traversal(model: VAE, centre: Tensor, y: Tensor, dims: list[int], values: Tensor) -> Tensor:
    """Set one latent at a time to each of the values [S], with the others at centre [Z], under each label of y [L]."""
    z = centre.repeat(len(dims), len(values), 1)
    for row, dim in enumerate(dims):
        z[row, :, dim] = values.to(z)
    return decode(model, z.repeat(len(y), 1, 1), y.repeat_interleave(len(dims)))


def manifold(model: VAE, dims: list[int], y: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Decode the plane of two latents at quantiles of N(0, 1), returned too (Kingma & Welling 2014)."""
    values = torch.special.ndtri((torch.arange(side) + 0.5) / side)
    z = torch.zeros(side if len(dims) > 1 else 1, side, model.z_dim, device=y.device)
    z[:, :, dims[0]] = values.to(z)
    if len(dims) > 1:
        z[:, :, dims[1]] = values.flip(0).to(z)[:, None]
    return decode(model, z, y.expand(len(z))), values


def classes(model: VAE, z: Tensor, n_classes: int) -> Tensor:
    """Decode codes z [S, Z] under each of the first labels, a row per class; an unconditional model has one row."""
    labels = torch.arange(max(1, n_classes), device=z.device)
    return decode(model, z.expand(len(labels), -1, -1), labels)


def pairs(y: Tensor, n: int, same_label: bool) -> tuple[list[int], list[int]]:
    """Return n pairs of different images to walk between, as two lists of rows; same_label pairs share a label."""
    groups = [y == label for label in y.unique()] if same_label else [torch.ones_like(y, dtype=torch.bool)]
    by_label = [group.nonzero().flatten().tolist() for group in groups]
    pairs = [(rows[i], rows[i + 1]) for i in range(0, 2 * n, 2) for rows in by_label if i + 1 < len(rows)][:n]
    return [a for a, _ in pairs], [b for _, b in pairs]


def most_kl(kl_per_dim: list[float]) -> list[int]:
    """Return the latent dimensions in order of their KL, largest first."""
    return sorted(range(len(kl_per_dim)), key=lambda dim: -kl_per_dim[dim])


@torch.no_grad()
def decode(model: VAE, z: Tensor, y: Tensor) -> Tensor:
    """Return the mean of p(x|z, y) for codes z [R, S, Z] with labels y [R]."""
    labels = y.repeat_interleave(z.shape[1]).split(BATCH_SIZE)
    with model.evaluating():
        images = [model.decode(*part).mean for part in zip(z.flatten(0, 1).split(BATCH_SIZE), labels, strict=True)]
    return torch.cat(images).unflatten(0, z.shape[:2])


def matrix(information: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Draw I(z_i; v_j) [Z, F], in nats, bounded as above: a row per latent, a column per factor; array [H, W, 3]."""
    # In the model's own order, without those that tell least.
    latents = np.sort(np.argsort(-information.max(1), kind="stable")[:MAX_LATENTS])
    values, names = information[latents], grids.drawable(list(names))
    largest = max(values.max(), MIN_RANGE)
    with grids.new_axes((1.6 + 0.9 * len(names), 1.4 + 0.34 * len(latents)), names) as axes:
        heat_map = axes.imshow(values, cmap="viridis", vmin=0, vmax=largest, aspect="auto")
        axes.set_xticks(range(len(names)), names, rotation=30, ha="right", parse_math=False)
        axes.set_yticks(range(len(latents)), [f"z{latent}" for latent in latents])
        for (i, j), value in np.ndenumerate(values):
            color = "white" if value < largest / 2 else "black"
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", color=color)
        axes.set_title("I(z; factor) above that of\nshuffled factors, nats;\nat most the KL of the latent", fontsize=10)
        axes.figure.colorbar(heat_map)
        return grids.pixels(axes.figure)


@torch.no_grad()
def traversals(model: VAE, information: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Draw a row per factor: the latent most informative about it moves from the prior's mean; the others stay."""
    device = next(model.parameters()).device
    dims = information.argmax(0).tolist()
    values = torch.linspace(-grids.RANGE, grids.RANGE, grids.STEPS)
    label = torch.zeros(1, dtype=torch.long, device=device)
    images = traversal(model, torch.zeros(model.z_dim, device=device), label, dims, values)
    rows = [f"{name}: z{dim}  {information[dim, j]:.2f}" for j, (name, dim) in enumerate(zip(names, dims, strict=True))]
    title = "the latent that tells most about each factor (nats above chance, at most its KL), around the prior's mean"
    return grids.traversal_sheet(images, title, grids.drawable(rows), values).pixels()
