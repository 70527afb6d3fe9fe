"""Convolutional encoders and decoders: our own, and those of published papers."""

import math
from itertools import pairwise

from torch import Tensor, nn

from vae_exp.errors import UserError
from vae_exp.networks.mlp import ACTIVATIONS, with_context

MIN_SIDE = 3  # pixels: images are halved while their shorter side keeps this many
MAX_WIDTH = 8  # times the first layer's channels: they double with each halving, up to this
Networks = tuple[nn.Module, nn.Module]


class WithContext(nn.Module):
    """Layers on codes [B, Z], or on images [B, C, H, W], joined with the context [B, K], a constant plane a number."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        while context.ndim < x.ndim:
            context = context[..., None]
        return self.layers(with_context(x, context.expand(-1, -1, *x.shape[2:])))


class Residual(nn.Module):
    """x + f(x) with two convolutions, the normalisation before each (He et al. 2016, arXiv:1603.05027)."""

    def __init__(self, width: int, activation: str) -> None:
        super().__init__()
        halves = [[*_normed(width, activation), nn.Conv2d(width, width, 3, padding=1)] for _ in range(2)]
        self.layers = nn.Sequential(*halves[0], *halves[1])

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def conv(
    x_shape: tuple[int, int, int],
    z_dim: int,
    context_dim: int,
    channels: int,
    activation: str,
    n_outputs: int = 0,
    outputs_per_pixel: int = 1,
) -> Networks:
    """Make strided convolutions that halve the image until its shorter side is 3 to 5 pixels, and their mirror."""
    sizes, widths = _levels(x_shape, channels, "conv")
    down, up = [], []
    for n_in, n_out in pairwise([x_shape[0] + context_dim, *widths]):
        down += [_halve(n_in, n_out), ACTIVATIONS[activation]()]
    for (n_in, n_out), size in zip(
        pairwise([*widths[::-1], outputs_per_pixel * x_shape[0]]), sizes[-2::-1], strict=True
    ):
        up += [ACTIVATIONS[activation](), _double(n_in, n_out, size)]
    flat = (widths[-1], *sizes[-1])
    encoder = WithContext(*down, nn.Flatten(), nn.Linear(math.prod(flat), n_outputs or 2 * z_dim))
    return encoder, WithContext(nn.Linear(z_dim + context_dim, math.prod(flat)), nn.Unflatten(1, flat), *up)


def resnet(
    x_shape: tuple[int, int, int],
    z_dim: int,
    context_dim: int,
    channels: int,
    blocks: int,
    activation: str,
    n_outputs: int = 0,
    outputs_per_pixel: int = 1,
) -> Networks:
    """Make `conv` with residual blocks after each halving and before each doubling, for images of 32 to 256 pixels."""
    sizes, widths = _levels(x_shape, channels, "resnet")
    down: list[nn.Module] = []
    up: list[nn.Module] = []
    for n_in, n_out in pairwise([x_shape[0] + context_dim, *widths]):
        down += [_halve(n_in, n_out), *(Residual(n_out, activation) for _ in range(blocks))]
    for (n_in, n_out), size in zip(
        pairwise([*widths[::-1], outputs_per_pixel * x_shape[0]]), sizes[-2::-1], strict=True
    ):
        up += [Residual(n_in, activation) for _ in range(blocks)]
        up += [*_normed(n_in, activation), _double(n_in, n_out, size)]
    flat = (widths[-1], *sizes[-1])
    last = nn.Linear(math.prod(flat), n_outputs or 2 * z_dim)
    encoder = WithContext(*down, *_normed(widths[-1], activation), nn.Flatten(), last)
    return encoder, WithContext(nn.Linear(z_dim + context_dim, math.prod(flat)), nn.Unflatten(1, flat), *up)


def _levels(x_shape: tuple[int, int, int], channels: int, network: str) -> tuple[list[tuple[int, int]], list[int]]:
    """Return the sizes (H, W) of an image as it is halved, itself first, and the channels after each halving.

    (1, 28, 28) with 32 channels: [(28, 28), (14, 14), (7, 7), (3, 3)] and [32, 64, 128].
    """
    _, h, w = x_shape
    smallest = 2 * MIN_SIDE
    if min(h, w) < smallest:
        takes = f"images of {h}x{w} are too small to be halved; it takes {smallest}x{smallest} and larger"
        raise UserError(f"network={network}: {takes}. Use network=mlp.")
    sizes = [(h, w)]
    while min(h, w) >= smallest:
        h, w = h // 2, w // 2
        sizes.append((h, w))
    return sizes, [channels * min(2**level, MAX_WIDTH) for level in range(len(sizes) - 1)]


def _halve(n_in: int, n_out: int) -> nn.Module:
    """Make a layer to [B, n_out, H // 2, W // 2] that uses every pixel, in odd sizes too."""
    return nn.Conv2d(n_in, n_out, 4, stride=2, padding=1)


def _double(n_in: int, n_out: int, size: tuple[int, int]) -> nn.Module:
    """Make the mirror of a halving from this size: a kernel of 4 overlaps evenly at stride 2 (Odena et al. 2016)."""
    return nn.ConvTranspose2d(n_in, n_out, 4, stride=2, padding=1, output_padding=(size[0] % 2, size[1] % 2))


def _normed(width: int, activation: str) -> list[nn.Module]:
    """Make a GroupNorm (Wu & He 2018): a batch of one and evaluation are nothing special to it."""
    # Up to 8 groups of at least 4 channels: a group of one would cancel the bias of the convolution before it.
    groups = math.gcd(width, max(1, width // 4), 8)
    return [nn.GroupNorm(groups, width), ACTIVATIONS[activation]()]


def burgess(
    x_shape: tuple[int, int, int], z_dim: int, context_dim: int, n_outputs: int = 0, outputs_per_pixel: int = 1
) -> Networks:
    """Make the network of Burgess et al. 2018, arXiv:1804.03599: four convolutions of 32 channels, two layers of 256.

    Images of 32x32 get three convolutions, as in other implementations. Raises UserError for other sizes.
    """
    _require_size(x_shape, (64, 32), "burgess", "Burgess et al. 2018")
    widths = [32] * (4 if x_shape[1] == 64 else 3)
    kernels, n_outputs = [4] * len(widths), n_outputs or 2 * z_dim
    return _published(x_shape[0], z_dim, context_dim, n_outputs, outputs_per_pixel, widths, kernels, [256, 256])


def locatello(
    x_shape: tuple[int, int, int], z_dim: int, context_dim: int, n_outputs: int = 0, outputs_per_pixel: int = 1
) -> Networks:
    """Make the network of Locatello et al. 2019, arXiv:1811.12359, table 1. Raises UserError but for 64x64 pixels."""
    _require_size(x_shape, (64,), "locatello", "Locatello et al. 2019")
    widths, kernels, n_outputs = [32, 32, 64, 64], [4, 4, 2, 2], n_outputs or 2 * z_dim
    return _published(x_shape[0], z_dim, context_dim, n_outputs, outputs_per_pixel, widths, kernels, [256])


def _published(
    image_channels: int,
    z_dim: int,
    context_dim: int,
    n_outputs: int,
    outputs_per_pixel: int,
    widths: list[int],
    kernels: list[int],
    hidden_dims: list[int],
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
    for n_in, n_out in pairwise([*reversed(widths), outputs_per_pixel * image_channels]):
        up += [nn.ConvTranspose2d(n_in, n_out, 4, stride=2, padding=1), nn.ReLU()]
    encoder = WithContext(*down, nn.Flatten(), *head, nn.Linear(hidden_dims[-1], n_outputs))
    return encoder, WithContext(*first, nn.Unflatten(1, flat), *up[:-1])


def _require_size(x_shape: tuple[int, int, int], sizes: tuple[int, ...], network: str, paper: str) -> None:
    _, h, w = x_shape
    if h != w or h not in sizes:
        allowed = " or ".join(f"{size}x{size}" for size in sizes)
        takes = f"the network of {paper} takes images of {allowed}, not {h}x{w}"
        raise UserError(f"network={network}: {takes}. Use network=conv, which takes any size.")
