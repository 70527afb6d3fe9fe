"""A network as users write it, with a layer that processes cannot share."""

import math

import torch
from torch import nn


def net(x_shape, z_dim, context_dim):
    pixels = math.prod(x_shape)
    return Net(pixels + context_dim, (2 * z_dim,)), Net(z_dim + context_dim, x_shape)


class Net(nn.Module):
    """A hidden layer, a batch norm, and a last layer."""

    def __init__(self, n_in, out, width=16):
        super().__init__()
        self.out = out
        self.layers = nn.Sequential(
            nn.Linear(n_in, width), nn.ReLU(), nn.BatchNorm1d(width), nn.Linear(width, math.prod(out))
        )

    def forward(self, x, context):
        return self.layers(torch.cat([x.flatten(1), context], 1)).view(-1, *self.out)
