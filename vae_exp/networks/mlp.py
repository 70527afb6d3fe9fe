"""The multilayer perceptron of the tutorial: linear layers on the flattened image."""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

ACTIVATIONS = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}


def mlp(
    x_shape: tuple[int, int, int], z_dim: int, context_dim: int, hidden_dims: list[int], activation: str
) -> tuple[nn.Module, nn.Module]:
    """Make a multilayer perceptron and its mirror image: the tutorial's 784-400-20 for hidden_dims [400]."""
    pixels = math.prod(x_shape)
    encoder = MLP([pixels + context_dim, *hidden_dims, 2 * z_dim], activation, (2 * z_dim,))
    decoder = MLP([z_dim + context_dim, *reversed(hidden_dims), pixels], activation, x_shape)
    return encoder, decoder


class MLP(nn.Module):
    """Linear layers with an activation between them, on the flattened input joined with the context."""

    def __init__(self, widths: list[int], activation: str, out_shape: tuple[int, ...]) -> None:
        super().__init__()
        layers = []
        for n_in, n_out in pairwise(widths):
            layers += [nn.Linear(n_in, n_out), ACTIVATIONS[activation]()]
        self.layers = nn.Sequential(*layers[:-1])
        self.out_shape = tuple(out_shape)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x = x.flatten(1)
        if context.shape[1]:  # joining nothing would still copy the batch
            x = torch.cat([x, context], dim=1)
        return self.layers(x).unflatten(1, self.out_shape)
