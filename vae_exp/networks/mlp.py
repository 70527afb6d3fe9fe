"""Fully connected encoder and decoder, and how a decoder is initialised."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from vae_exp.errors import UserError

IMAGES = 10_000  # whose mean the output's bias begins at
LAYERS = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)
MIN_MEAN = 0.001  # a mean pixel of 0 or 1 would be an infinite logit
MAX_OUTPUT, HALVINGS = 1024.0, 40  # of the bisection: logits lie far inside
GATED = "gated"  # in place of an activation
ACTIVATIONS = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}


def mean_image(images: Tensor) -> Tensor:
    """Return the mean of images uint8 [N, C, H, W], as [C, H, W] in [0, 1]."""
    return images.sum(0, dtype=torch.int64).float() / (255 * max(1, len(images)))


@torch.no_grad()
def glorot_init(
    encoder: nn.Module, decoder: nn.Module, likelihood: Callable[[Tensor], Any], mean: Tensor | None
) -> None:
    """Draw weights from U(-a, a) with a^2 = 6 / (inputs + outputs) (Glorot & Bengio 2010), and set the biases.

    Biases are 0, but that of the decoder's last layer gives any mean image [C, H, W] at first (Burda et al. 2016).
    """
    layers = _layers(encoder, decoder)
    for layer in layers:
        nn.init.xavier_uniform_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    bias = layers[-1].bias if layers else None
    if mean is None or bias is None:
        return
    per_pixel = getattr(likelihood, "outputs_per_pixel", 1)
    pixels = mean if len(bias) == per_pixel * mean.numel() else mean.mean((1, 2), keepdim=True)
    if len(bias) == per_pixel * pixels.numel():
        first = _outputs_for(pixels.clamp(MIN_MEAN, 1 - MIN_MEAN), likelihood, per_pixel).flatten()
        bias[: len(first)].copy_(first)


def he_init(encoder: nn.Module, decoder: nn.Module) -> None:
    """Draw weights from N(0, 2 / inputs) (He et al. 2015); biases stay as PyTorch draws them."""
    for layer in _layers(encoder, decoder):
        is_transposed = isinstance(layer, nn.ConvTranspose2d)  # its stride leaves outputs to fewer inputs
        inputs = layer.weight[:, 0].numel() / math.prod(layer.stride) if is_transposed else layer.weight[0].numel()
        nn.init.normal_(layer.weight, std=math.sqrt(2) / math.sqrt(inputs))


def _layers(*networks: nn.Module) -> list[Any]:
    return [part for network in networks for part in network.modules() if isinstance(part, LAYERS)]


def _outputs_for(mean: Tensor, likelihood: Callable[[Tensor], Any], per_pixel: int) -> Tensor:
    """Return the outputs [C, H, W] that give p(x|z) this mean, by bisection: the mean rises with them.

    Of several outputs per pixel the first does so, and the others are 0. Raises UserError where it does not.
    """
    low, high = torch.full_like(mean, -MAX_OUTPUT), torch.full_like(mean, MAX_OUTPUT)

    def mean_at(first: Tensor) -> Tensor:
        outputs = torch.cat([first, *[torch.zeros_like(first)] * (per_pixel - 1)])
        return likelihood(outputs[None]).mean[0]

    for _ in range(HALVINGS):
        middle = (low + high) / 2
        is_below = mean_at(middle) < mean
        low, high = torch.where(is_below, middle, low), torch.where(is_below, high, middle)
    if per_pixel > 1 and not torch.allclose(mean_at(middle), mean, atol=0.01):
        why = f"of the {per_pixel} outputs per pixel of this likelihood the first does not set the mean"
        raise UserError(f"network.init=glorot: {why}, so they cannot begin at the mean image. Use pytorch or he.")
    return middle


def mlp(
    x_shape: tuple[int, int, int],
    z_dim: int,
    context_dim: int,
    hidden_dims: list[int],
    activation: str,
    n_outputs: int = 0,
    outputs_per_pixel: int = 1,
) -> tuple[nn.Module, nn.Module]:
    """Make a multilayer perceptron and its mirror image: the tutorial's 784-400-20 for hidden_dims [400].

    The encoder gives n_outputs numbers of an image, by default 2 z_dim: means and log-variances. The decoder gives
    outputs_per_pixel as so many times the channels.
    """
    pixels, n_outputs, out_shape = (
        math.prod(x_shape),
        n_outputs or 2 * z_dim,
        (outputs_per_pixel * x_shape[0], *x_shape[1:]),
    )
    encoder = MLP([pixels + context_dim, *hidden_dims, n_outputs], activation, (n_outputs,))
    decoder = MLP([z_dim + context_dim, *reversed(hidden_dims), math.prod(out_shape)], activation, out_shape)
    return encoder, decoder


def gated_mlp(
    x_shape: tuple[int, int, int],
    z_dim: int,
    context_dim: int,
    hidden_dims: list[int],
    n_outputs: int = 0,
    outputs_per_pixel: int = 1,
) -> tuple[nn.Module, nn.Module]:
    """Make `mlp` with gated hidden layers, a * sigmoid(b) for linear a and b (Dauphin et al. 2017)."""
    return mlp(x_shape, z_dim, context_dim, hidden_dims, GATED, n_outputs, outputs_per_pixel)


class MLP(nn.Module):
    """Linear layers with an activation between them, on the flattened input joined with the context."""

    def __init__(self, widths: list[int], activation: str, out_shape: tuple[int, ...]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for n_in, n_out in pairwise(widths[:-1]):
            if activation == GATED:
                layers += [nn.Linear(n_in, 2 * n_out), nn.GLU()]
            else:
                layers += [nn.Linear(n_in, n_out), ACTIVATIONS[activation]()]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1]))
        self.out_shape = tuple(out_shape)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        return self.layers(with_context(x.flatten(1), context)).view(x.shape[0], *self.out_shape)


def with_context(x: Tensor, context: Tensor) -> Tensor:
    """Join x [B, D, ...] with the context [B, K, ...]; joining nothing would still copy the batch."""
    return torch.cat([x, context], dim=1) if context.shape[1] else x
