"""Which pictures a run logs, each as its name, its pixels and its caption."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from vae_exp import build, figures, walks
from vae_exp.metrics import Evaluation
from vae_exp.splits import Split
from vae_exp.vae import VAE

Picture = tuple[str, np.ndarray, str]
PICTURED = 32  # held-out images, always the same, shown above their reconstructions
ROWS, STEPS, TRAVERSED, MANIFOLD_SIDE = 8, 11, 20, 20  # the sizes of walks


def after_epoch(
    config: dict[str, Any],
    model: VAE,
    split: Split,
    held_out: str,
    measured: Evaluation,
    class_names: Sequence[str],
    epoch: int,
) -> Iterator[Picture]:
    """Reconstructions of the held-out split and samples, from the same noise every epoch; figures=[...] where due."""
    noise = build.generator(config["seed"], "pictures")
    pixels = figures.reconstructions(model, split[:PICTURED], noise)
    yield "reconstructions", pixels, f"epoch {epoch}: {held_out} images, reconstructions below"
    if model.stochastic:  # else there is no prior to draw samples from
        rows = "a row per class, the same z in each column" if model.n_classes else "the same z every epoch"
        yield "samples", figures.samples(model, noise), f"epoch {epoch}: samples from the prior, {rows}"
    if epoch % config["figure_every_epochs"] == 0 or epoch == config["epochs"]:
        names = config["figures"]
        if names is None:
            names = ["manifold", "latents"] if model.z_dim == 2 and model.stochastic else []
        for name in names:
            pixels = _further(name, model, split, measured, class_names)
            yield name, pixels, f"epoch {epoch}: {name}, {held_out} images"


def of_test(model: VAE, split: Split, seed: int, epoch: int) -> Picture:
    """Reconstructions of the test split, at the end, with the weights of the best epoch."""
    pixels = figures.reconstructions(model, split[:PICTURED], build.generator(seed, "pictures"))
    return "test_reconstructions", pixels, f"epoch {epoch}: test images, reconstructions below"


def _further(name: str, model: VAE, held_out: Split, measured: Evaluation, class_names: Sequence[str]) -> np.ndarray:
    """One of the further figures, by its name in figures=[...]; a conditional model's show its first class."""
    y, dims = torch.zeros((), dtype=torch.long, device=held_out.y.device), walks.most_kl(measured.kl_per_dim)
    note = f", label {class_names[0]}" if model.n_classes else ""
    if name == "latents":
        return figures.latents(measured.q.mean, held_out.y, class_names, None)
    if name == "manifold":
        return figures.manifold(*walks.manifold(model, dims[:2], y, MANIFOLD_SIDE), dims[:2], note)
    if name == "traversals":
        values = torch.linspace(-3, 3, STEPS)
        images = walks.traversal(model, torch.zeros_like(measured.q.mean[0]), y, dims[:TRAVERSED], values)
        return figures.traversals(images, dims[:TRAVERSED], values, measured.kl_per_dim, f"the prior's mean{note}")
    rows = walks.pairs(held_out.y, ROWS, same_label=model.n_classes > 0)
    start, end = measured.q.mean[rows[0]], measured.q.mean[rows[1]]
    return figures.interpolations(
        walks.interpolation(model, start, end, held_out.y[rows[0]], STEPS, "spherical"), "spherical"
    )
