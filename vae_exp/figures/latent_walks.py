"""Walk through the latent space, and along factors."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vae_exp.distributions import total
from vae_exp.figures import grids
from vae_exp.priors import ByLabel, Flow, Mixture, Standard, VampPrior
from vae_exp.vae import MOMENTS, VAE

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


def traversal(model: VAE, y: Tensor, dims: list[int], values: Tensor, centre: Tensor | None = None) -> Tensor:
    """Set one latent at a time to each of the values [S], under each label of y [L].

    A value counts standard deviations of the prior from its mean, where the others stay, unless at a centre [Z].
    """
    codes = []
    for mean, std in map(model.prior_moments, y):
        z = (mean if centre is None else centre).repeat(len(dims), len(values), 1)
        for row, dim in enumerate(dims):
            z[row, :, dim] = mean[dim] + std[dim] * values.to(z)
        codes.append(z)
    return decode(model, torch.cat(codes), y.repeat_interleave(len(dims)))


@torch.no_grad()
def manifold(model: VAE, dims: list[int], y: Tensor, side: int) -> tuple[Tensor, Tensor, str]:
    """Decode the plane of two latents at quantiles of the prior, the others at its mean (Kingma & Welling 2014).

    Return the quantiles of each too, [2, S], and a title. Without a closed form they are of draws, always the same.
    """
    (mean, std), shares = model.prior_moments(y), (torch.arange(side) + 0.5) / side
    if isinstance(model.prior, Standard | ByLabel):
        values = mean[dims, None] + std[dims, None] * torch.special.ndtri(shares).to(mean)
        title = "p(x|z) at equally likely z"
    else:
        draws = model.prior_sample(MOMENTS, torch.Generator().manual_seed(0), y.expand(MOMENTS))
        values = draws[:, dims].quantile(shares.to(draws), dim=0).T
        title = "p(x|z) at each latent's quantiles in the prior" + ", the others at its mean" * (len(mean) > len(dims))
    z = mean.repeat(side if len(dims) > 1 else 1, side, 1)
    z[:, :, dims[0]] = values[0]
    if len(dims) > 1:
        z[:, :, dims[1]] = values[1].flip(0)[:, None]
    return decode(model, z, y.expand(len(z))), values, title


def classes(model: VAE, n: int, rows: list[int], noise: torch.Generator, temperature: float = 1.0) -> Tensor:
    """Decode n draws from the prior under each of some labels, a row per class, from the same noise in each.

    An unconditional model has one row.
    """
    labels, state, codes = torch.tensor(rows or [0], device=model.device), noise.get_state(), []
    for label in labels:
        noise.set_state(state)
        codes.append(model.prior_sample(n, noise, label.expand(n), temperature))
    return decode(model, torch.stack(codes), labels)


def shared(model: VAE) -> str:
    """Return what samples from the same noise have in common whatever their label and epoch."""
    return "the same z" if isinstance(model.prior, Standard) else "the same noise"


@torch.no_grad()
def density(model: VAE, rows: list[int]) -> grids.Density | None:
    """Return log p(z) of codes [N, 2], the mean over some labels, and its values around grids.SHARES of draws.

    None where there is none to see: of N(0, I), or of more latents than two.
    """
    if model.z_dim != 2 or not model.stochastic or isinstance(model.prior, Standard):
        return None
    is_one = isinstance(model.prior, Mixture | VampPrior | Flow)  # for all labels
    labels = torch.tensor([0] if is_one else rows or [0], device=model.device)

    @torch.no_grad()
    def log_p(z: Tensor) -> Tensor:
        z = z.to(labels.device, torch.float32)
        with model.evaluating():
            log_p = [total(model.prior.log_prob(z, y.expand(len(z))), z) for y in labels]
        return torch.stack(log_p).logsumexp(0).cpu() - math.log(len(labels))

    y = labels[torch.arange(MOMENTS) % len(labels)]
    draws = model.prior_sample(MOMENTS, torch.Generator().manual_seed(0), y)
    return log_p, log_p(draws).quantile(1 - torch.tensor(grids.SHARES))


def pairs(y: Tensor, n: int, same_label: bool) -> tuple[list[int], list[int]]:
    """Return n pairs of different images to walk between, as two lists of rows.

    same_label pairs share a label, if any images do.
    """
    groups = [y == label for label in y.unique()] if same_label else [torch.ones_like(y, dtype=torch.bool)]
    by_label = [group.nonzero().flatten().tolist() for group in groups]
    if all(len(rows) < 2 for rows in by_label):  # each combination of conditions may have one image
        by_label = [list(range(len(y)))]
    pairs = [(rows[i], rows[i + 1]) for i in range(0, 2 * n, 2) for rows in by_label if i + 1 < len(rows)][:n]
    return [a for a, _ in pairs], [b for _, b in pairs]


def most_kl(kl_per_dim: list[float]) -> list[int]:
    """Return the latent dimensions in order of their KL, largest first."""
    return sorted(range(len(kl_per_dim)), key=lambda dim: -kl_per_dim[dim])


def most_change(model: VAE, y: Tensor) -> list[int]:
    """Return the latents in order of how much they change images, largest first: for models without a KL of each.

    An image, of a label of y [L], changes from -1 to 1 standard deviation of the prior around its mean.
    """
    change, ends = torch.zeros(model.z_dim), torch.tensor([-1.0, 1.0])
    for label in y.unbind():
        images = traversal(model, label[None], list(range(model.z_dim)), ends)
        change += (images[:, 1] - images[:, 0]).square().flatten(1).sum(1).cpu()
    return change.argsort(descending=True, stable=True).tolist()


@torch.no_grad()
def decode(model: VAE, z: Tensor, y: Tensor) -> Tensor:
    """Return the mean of p(x|z, y) for codes z [R, S, Z] with labels y [R]."""
    labels = y.repeat_interleave(z.shape[1]).split(BATCH_SIZE)
    with model.evaluating():
        images = [model.decode(*part).mean for part in zip(z.flatten(0, 1).split(BATCH_SIZE), labels, strict=True)]
    return torch.cat(images).unflatten(0, z.shape[:2])


def matrix(information: np.ndarray, names: Sequence[str], is_bounded: bool = True) -> np.ndarray:
    """Draw I(z_i; v_j) [Z, F], in nats, bounded by the KL or not: a row per latent, a column per factor; [H, W, 3]."""
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
        bound = ";\nat most the KL of the latent" * is_bounded
        axes.set_title(f"I(z; factor) above that of\nshuffled factors, nats{bound}", fontsize=10)
        axes.figure.colorbar(heat_map)
        return grids.pixels(axes.figure)


@torch.no_grad()
def traversals(model: VAE, information: np.ndarray, names: Sequence[str], is_bounded: bool = True) -> np.ndarray:
    """Draw a row per factor: the latent most informative about it moves from the prior's mean; the others stay."""
    dims = information.argmax(0).tolist()
    values = torch.linspace(-grids.RANGE, grids.RANGE, grids.STEPS)
    images = traversal(model, torch.zeros(1, dtype=torch.long, device=model.device), dims, values)
    rows = [f"{name}: z{dim}  {information[dim, j]:.2f}" for j, (name, dim) in enumerate(zip(names, dims, strict=True))]
    bound = ", at most its KL" * is_bounded
    title = f"the latent that tells most about each factor (nats above chance{bound}), around the prior's mean"
    return grids.traversal_sheet(images, title, grids.drawable(rows), values).pixels()
