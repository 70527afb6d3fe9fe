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


def two_heads(x_shape, z_dim, context_dim):
    pixels = math.prod(x_shape)
    return TwoHeads(pixels + context_dim, z_dim), Net(z_dim + context_dim, x_shape)


class TwoHeads(nn.Module):
    """An encoder with a layer of its own for the means and one for the log-variances."""

    def __init__(self, n_in, z_dim, width=16):
        super().__init__()
        self.hidden, self.mean, self.log_var = nn.Linear(n_in, width), nn.Linear(width, z_dim), nn.Linear(width, z_dim)

    def forward(self, x, context):
        h = torch.relu(self.hidden(torch.cat([x.flatten(1), context], 1)))
        return torch.cat([self.mean(h), self.log_var(h)], 1)
