"""Pictures of a model. Each function returns an array [H, W] or [H, W, 3] of uint8."""

import numpy as np
import torch
from torch import Tensor

from vae_exp.datasets import Split
from vae_exp.vae import VAE

COLUMNS = 8
READABLE = 28  # pixels; smaller images are enlarged to about this, for people to see


def grid(images: Tensor, columns: int) -> np.ndarray:
    """Images [N, C, H, W] in [0, 1], row by row, with a line of two pixels around each."""
    images = images.detach().clamp(0, 1).cpu()
    scale = max(1, READABLE // images.shape[-1])
    images = images.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    images = torch.nn.functional.pad(images, (2, 2, 2, 2), value=0.5)
    n, c, h, w = images.shape
    rows = -(-n // columns)
    images = torch.cat([images, images.new_full((rows * columns - n, c, h, w), 0.5)])
    sheet = images.view(rows, columns, c, h, w).permute(0, 3, 1, 4, 2).reshape(rows * h, columns * w, c)
    return sheet.mul(255).round().to(torch.uint8).squeeze(2).numpy()


@torch.no_grad()
def reconstructions(model: VAE, held_out: Split, noise: torch.Generator) -> np.ndarray:
    """Rows of images, each above the row of their reconstructions: the mean of p(x|z) at one z ~ q(z|x)."""
    columns = min(COLUMNS, len(held_out))
    whole_rows = held_out[: len(held_out) // columns * columns]
    x, y = whole_rows.x.float() / 255, whole_rows.y
    model.eval()
    again = model.decode(model.encode(x, y).rsample(noise), y).mean
    model.train()
    pairs = zip(x.split(columns), again.split(columns), strict=True)
    return grid(torch.cat([row for pair in pairs for row in pair]), columns)


@torch.no_grad()
def samples(model: VAE, noise: torch.Generator) -> np.ndarray:
    """The mean of p(x|z) at draws z ~ p(z). A conditional model gets a row per class, the same z in each column."""
    device = noise.device
    if model.n_classes:
        z = model.prior_sample(COLUMNS, noise).repeat(model.n_classes, 1)
        y = torch.arange(model.n_classes, device=device).repeat_interleave(COLUMNS)
    else:
        z = model.prior_sample(COLUMNS * COLUMNS, noise)
        y = torch.zeros(len(z), dtype=torch.long, device=device)
    model.eval()
    images = model.decode(z, y).mean
    model.train()
    return grid(images, columns=COLUMNS)
