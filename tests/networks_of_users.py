"""Networks as users write them: some that cannot be read off a run for many settings, and some that take care."""

import math

import torch
from torch import nn
from torch.nn import functional as F


class Net(nn.Module):
    """A hidden layer, something in the middle that differs, and a last layer."""

    def __init__(self, n_in, out, kind, width=16):
        super().__init__()
        self.kind, self.out = kind, out
        self.first, self.last = nn.Linear(n_in, width), nn.Linear(width, math.prod(out))
        self.middle = {
            "shared": lambda: nn.Linear(width, width),
            "sequence": lambda: nn.Linear(8, 8),
            "transformer": lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True),
            "weight_norm": lambda: nn.utils.weight_norm(nn.Linear(width, width)),
            "no bias": lambda: nn.Linear(width, width, bias=False),
            "batch norm": lambda: nn.BatchNorm1d(width),
            "functional": lambda: nn.Linear(width, width),
            "flattened": lambda: nn.Linear(8, 8),
        }[kind]()

    def forward(self, x, context):
        h = self.first(torch.cat([x.flatten(1), context], 1)).relu()
        if self.kind == "functional":
            h = F.linear(h, self.middle.weight, self.middle.bias)
        elif self.kind == "flattened":
            h = self.middle(h.view(-1, 8)).view(len(x), -1)
        elif self.kind in ("sequence", "transformer"):
            h = self.middle(h.view(-1, 2, 8)).flatten(1)
        else:
            h = self.middle(h)
        if self.kind == "shared":
            h = self.middle(h.relu())
        return self.last(h).view(-1, *self.out)


def net(x_shape, z_dim, context_dim, kind):
    pixels = math.prod(x_shape)
    return Net(pixels + context_dim, (2 * z_dim,), kind), Net(z_dim + context_dim, x_shape, kind)


class Heads(nn.Module):
    """Means and log-variances from a layer each."""

    def __init__(self, n_in, z_dim):
        super().__init__()
        self.first, self.mean, self.log_var = nn.Linear(n_in, 16), nn.Linear(16, z_dim), nn.Linear(16, z_dim)

    def forward(self, x, context):
        h = self.first(torch.cat([x.flatten(1), context], 1)).relu()
        return torch.cat([self.mean(h), self.log_var(h)], 1)


def heads(x_shape, z_dim, context_dim):
    return Heads(math.prod(x_shape) + context_dim, z_dim), Net(z_dim + context_dim, x_shape, "no bias")


class Again(nn.Module):
    """A decoder that sees z in its second layer too, behind other inputs, or first the label."""

    def __init__(self, z_dim, context_dim, out, label_first):
        super().__init__()
        self.label_first, self.out = label_first, out
        again = 0 if label_first else z_dim
        self.first, self.last = nn.Linear(z_dim + context_dim, 16), nn.Linear(16 + again, math.prod(out))

    def forward(self, z, context):
        h = self.first(torch.cat([context, z] if self.label_first else [z, context], 1)).relu()
        return self.last(h if self.label_first else torch.cat([h, z], 1)).view(-1, *self.out)


def again(x_shape, z_dim, context_dim, label_first):
    return Heads(math.prod(x_shape) + context_dim, z_dim), Again(z_dim, context_dim, x_shape, label_first)


def wide(x_shape, z_dim, context_dim):
    """Hidden layers as wide as z_dim asks for."""
    pixels = math.prod(x_shape)
    encoder = Net(pixels + context_dim, (2 * z_dim,), "no bias", width=4 * z_dim)
    return encoder, Net(z_dim + context_dim, x_shape, "no bias", width=4 * z_dim)


def without_beta(terms, now):
    return terms.neg_elbo.mean(), {}
