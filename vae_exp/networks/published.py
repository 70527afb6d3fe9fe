"""The networks of two papers on disentanglement, exactly as published; their images are 64x64, or 32x32."""

import math
from itertools import pairwise

from torch import nn

from vae_exp.errors import UserError
from vae_exp.networks.convolutional import Decoder, Encoder, Networks


def burgess(x_shape: tuple[int, int, int], z_dim: int, context_dim: int) -> Networks:
    """Make the network of Burgess et al. 2018, arXiv:1804.03599: four convolutions of 32 channels, two layers of 256.

    Images of 32x32 get three convolutions, as in the implementations that others compare with. Raises UserError for
    other sizes.
    """
    _only(x_shape, (64, 32), "burgess", "Burgess et al. 2018")
    widths = [32] * (4 if x_shape[1] == 64 else 3)
    return _published(x_shape[0], z_dim, context_dim, widths, [4] * len(widths), [256, 256])


def locatello(x_shape: tuple[int, int, int], z_dim: int, context_dim: int) -> Networks:
    """Make the network of Locatello et al. 2019, arXiv:1811.12359, table 1.

    Raises UserError if images are not 64x64.
    """
    _only(x_shape, (64,), "locatello", "Locatello et al. 2019")
    return _published(x_shape[0], z_dim, context_dim, [32, 32, 64, 64], [4, 4, 2, 2], [256])


def _published(
    image_channels: int, z_dim: int, context_dim: int, widths: list[int], kernels: list[int], hidden_dims: list[int]
) -> Networks:
    """Make ReLU networks that end at 4x4 pixels; the decoders of both papers have kernels of 4 throughout."""
    flat = (widths[-1], 4, 4)
    down, head, first, up = [], [], [], []
    for n_in, n_out, kernel in zip([image_channels + context_dim, *widths], widths, kernels, strict=False):
        down += [nn.Conv2d(n_in, n_out, kernel, stride=2, padding=kernel // 2 - 1), nn.ReLU()]
    for n_in, n_out in pairwise([math.prod(flat), *hidden_dims]):
        head += [nn.Linear(n_in, n_out), nn.ReLU()]
    for n_in, n_out in pairwise([z_dim + context_dim, *reversed(hidden_dims), math.prod(flat)]):
        first += [nn.Linear(n_in, n_out), nn.ReLU()]
    for n_in, n_out in pairwise([*reversed(widths), image_channels]):
        up += [nn.ConvTranspose2d(n_in, n_out, 4, stride=2, padding=1), nn.ReLU()]
    encoder = Encoder(*down, nn.Flatten(), *head, nn.Linear(hidden_dims[-1], 2 * z_dim))
    return encoder, Decoder(*first, nn.Unflatten(1, flat), *up[:-1])


def _only(x_shape: tuple[int, int, int], sizes: tuple[int, ...], network: str, paper: str) -> None:
    _, h, w = x_shape
    if h != w or h not in sizes:
        allowed = " or ".join(f"{size}x{size}" for size in sizes)
        raise UserError(
            f"network={network}: the network of {paper} takes images of {allowed}, not {h}x{w}. "
            "Use network=conv, which takes any size."
        )
