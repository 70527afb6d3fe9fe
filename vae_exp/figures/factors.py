"""Figures of latents and known factors: the matrix of mutual information, and traversals in its order.

The numbers are the excess over shuffled factors, since the estimate finds information in noise too, and at most the KL
of the latent, since z with its noise tells no more than that.
"""

from collections.abc import Sequence

import numpy as np
import torch

from vae_exp.figures import fonts, grids, latent_walks
from vae_exp.vae import VAE

MOST_LATENTS = 40  # rows that can be read
LEAST_RANGE = 0.1  # nats of the colours: where no latent tells anything, all are dark


def matrix(information: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Draw I(z_i; v_j) [Z, F], in nats, bounded as above: a row per latent, a column per factor; array [H, W, 3]."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = np.argsort(-information.max(1), kind="stable")[:MOST_LATENTS]
    shown = np.sort(shown)  # in the model's own order, without those that tell least
    values, names = information[shown], fonts.drawable(list(names))
    size = (1.6 + 0.9 * len(names), 1.4 + 0.34 * len(shown))
    with plt.rc_context({"font.family": fonts.families(names)}):
        figure, axes = plt.subplots(figsize=size, dpi=100, layout="constrained")
        largest = max(values.max(), LEAST_RANGE)
        drawn = axes.imshow(values, cmap="viridis", vmin=0, vmax=largest, aspect="auto")
        axes.set_xticks(range(len(names)), names, rotation=30, ha="right", parse_math=False)
        axes.set_yticks(range(len(shown)), [f"z{latent}" for latent in shown])
        for i, row in enumerate(values):
            for j, value in enumerate(row):
                axes.text(
                    j, i, f"{value:.2f}", ha="center", va="center", color="white" if value < largest / 2 else "black"
                )
        axes.set_title("I(z; factor) above that of\nshuffled factors, nats;\nat most the KL of the latent", fontsize=10)
        figure.colorbar(drawn)
        return grids.pixels(figure)


@torch.no_grad()
def traversals(model: VAE, information: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Draw a row per factor: the latent most informative about it moves from the prior's mean; the others stay."""
    device = next(model.parameters()).device
    dims = information.argmax(0).tolist()
    values = torch.linspace(-grids.RANGE, grids.RANGE, grids.STEPS)
    label = torch.zeros((), dtype=torch.long, device=device)
    with model.evaluating():
        images = latent_walks.traversal(model, torch.zeros(model.z_dim, device=device), label, dims, values)
    rows = [f"{name}: z{dim}  {information[dim, j]:.2f}" for j, (name, dim) in enumerate(zip(names, dims, strict=True))]
    columns = [grids.signed(value) for value in values.tolist()]
    title = "the latent that tells most about each factor (nats above chance, at most its KL), around the prior's mean"
    grid = grids.grid(images.flatten(0, 1), images.shape[1])
    return grids.label_sheet(grid, title, fonts.drawable(rows), columns, "standard deviations of the prior")
