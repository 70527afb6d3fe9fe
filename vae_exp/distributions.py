"""The distributions of a VAE: q(z|x) and the likelihoods p(x|z). Everything is per image and in nats.

They are this small because torch.distributions checks its arguments on every call, which costs several
times the arithmetic, and refuses grey pixels in a Bernoulli. The tests hold them against torch.distributions.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class DiagonalGaussian:
    """N(mean, diag(exp(log_var))) over the latent z, one for each image: mean and log_var are [B, Z]."""

    mean: Tensor
    log_var: Tensor

    def rsample(self, generator: torch.Generator | None = None) -> Tensor:
        """z = mean + sigma * noise, [B, Z]: the reparameterisation trick of Kingma & Welling (2014).

        The noise is drawn where the generator lives: one on the CPU gives every device the same.
        """
        device = self.mean.device if generator is None else generator.device
        noise = torch.randn(self.mean.shape, generator=generator, device=device, dtype=self.mean.dtype)
        return self.mean + torch.exp(0.5 * self.log_var) * noise.to(self.mean.device)

    def log_prob(self, z: Tensor) -> Tensor:
        """log q(z|x) of codes [B, Z], of each latent dimension, [B, Z] nats."""
        return -0.5 * ((z - self.mean).square() * torch.exp(-self.log_var) + self.log_var + math.log(2 * math.pi))

    def kl_to_prior(self) -> Tensor:
        """KL(q(z|x) || N(0, I)) of each latent dimension, [B, Z] nats (Kingma & Welling 2014, appendix B)."""
        return 0.5 * (self.mean.square() + self.log_var.exp() - 1.0 - self.log_var)


@dataclass
class Bernoulli:
    """p(x|z) with a probability per pixel, given by its logits [B, C, H, W]."""

    logits: Tensor

    @property
    def mean(self) -> Tensor:
        """[B, C, H, W] in (0, 1)."""
        return torch.sigmoid(self.logits)

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x|z) summed over pixels, [B] nats. On grey pixels: minus the binary cross-entropy."""
        return -F.binary_cross_entropy_with_logits(self.logits, x, reduction="none").flatten(1).sum(1)


@dataclass
class Gaussian:
    """p(x|z) = N(mean, sigma^2) per pixel with one fixed sigma; mean is [B, C, H, W]."""

    mean: Tensor
    sigma: float

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x|z) summed over pixels, normalising constant included, [B] nats."""
        log_z = math.log(self.sigma) + 0.5 * math.log(2 * math.pi)
        squared = ((x - self.mean) / self.sigma).square().flatten(1)
        return -0.5 * squared.sum(1) - log_z * squared.shape[1]
