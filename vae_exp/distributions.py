"""The distributions of a code: q(z|x), and the single point that a deterministic autoencoder has for it.

They are this small because torch.distributions checks its arguments on every call, which costs several
times the arithmetic. The tests hold them against torch.distributions.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

LOG_2PI = math.log(2 * math.pi)


def log_prior(z: Tensor) -> Tensor:
    """Return log p(z) of the prior N(0, I), of each latent dimension of z [..., Z], in nats."""
    return -0.5 * (z.square() + LOG_2PI)


@dataclass
class DiagonalGaussian:
    """N(mean, diag(exp(log_var))) over the latent z, one for each image: mean and log_var are [B, Z]."""

    mean: Tensor
    log_var: Tensor

    def rsample(self, noise: torch.Generator | Tensor | None = None) -> Tensor:
        """Draw z = mean + sigma * noise, [B, Z]: the reparameterisation trick of Kingma & Welling (2014).

        The noise is given, or drawn on the generator's device: a generator on the CPU gives every device the same
        noise.
        """
        if not isinstance(noise, Tensor):
            device = self.mean.device if noise is None else noise.device
            noise = torch.randn(self.mean.shape, generator=noise, device=device, dtype=self.mean.dtype)
        return self.mean + torch.exp(0.5 * self.log_var) * noise.to(self.mean.device)

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log q(z|x) of codes [B, Z], of each latent dimension, [B, Z] nats."""
        return -0.5 * ((z - self.mean).square() * torch.exp(-self.log_var) + self.log_var + LOG_2PI)

    def kl_to_prior(self) -> Tensor:
        """Return KL(q(z|x) || N(0, I)) of each latent dimension, [B, Z] nats (Kingma & Welling 2014, appendix B)."""
        return 0.5 * (self.mean.square() + self.log_var.exp() - 1.0 - self.log_var)


@dataclass
class Point:
    """A code with no spread, [B, Z]: a deterministic autoencoder's, for which there is no prior and no bound."""

    mean: Tensor

    def rsample(self, noise: torch.Generator | Tensor | None = None) -> Tensor:
        """Return the code itself, [B, Z]; no noise is drawn."""
        return self.mean

    def kl_to_prior(self) -> Tensor:
        """Return 0, [B, Z]: the objective has no KL. (That of a point to N(0, I) would be infinite.)"""
        return torch.zeros_like(self.mean)


Posterior = DiagonalGaussian | Point
Q = TypeVar("Q", DiagonalGaussian, Point, Posterior)


def map_parameters(function: Callable[[Tensor], Tensor], q: Q) -> Q:
    """Return q with the function applied to each of its parameters."""
    return type(q)(**{name: function(values) for name, values in vars(q).items()})


def concatenate(parts: Sequence[Posterior]) -> Posterior:
    """Return one posterior over all the images of the parts, of one class."""
    return type(parts[0])(**{name: torch.cat([getattr(q, name) for q in parts]) for name in vars(parts[0])})
