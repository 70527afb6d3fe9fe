"""The distributions of a code: q(z|x), and the single point that a deterministic autoencoder has for it.

They are this small because torch.distributions checks its arguments on every call, which costs several
times the arithmetic. The tests hold them against torch.distributions.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor

LOG_2PI = math.log(2 * math.pi)
Noise = torch.Generator | Tensor | None  # a generator on the CPU gives every device the same noise


class Posterior(Protocol):
    """q(z|x) of some images: a dataclass whose tensors are [B, ...].

    log_prob(z) is of each latent, [..., B, Z], where q factorises, else of the code, [..., B]. Where q only knows
    the density of its own draws there is none, but draw(noise), which returns z and log q(z|x).
    """

    @property
    def mean(self) -> Tensor: ...
    def rsample(self, noise: Noise = None) -> Tensor: ...


def log_prior(z: Tensor) -> Tensor:
    """Return log p(z) of N(0, I), of each latent dimension of z [..., Z], in nats."""
    return -0.5 * (z.square() + LOG_2PI)


def noise_like(mean: Tensor, noise: Noise) -> Tensor:
    """Return the noise on the device of the mean: as given, [..., B, Z], or drawn in its shape."""
    if not isinstance(noise, Tensor):
        device = mean.device if noise is None else noise.device
        noise = torch.randn(mean.shape, generator=noise, device=device, dtype=mean.dtype)
    return noise.to(mean.device)


@dataclass
class DiagonalGaussian:
    """N(mean, diag(exp(log_var))) over the latent z, one for each image: mean and log_var are [B, Z]."""

    mean: Tensor
    log_var: Tensor

    def rsample(self, noise: Noise = None) -> Tensor:
        """Draw z = mean + sigma * noise, [B, Z]: the reparameterisation trick of Kingma & Welling (2014).

        The noise may be given, [B, Z] or several draws [K, B, Z].
        """
        noise = noise_like(self.mean, noise)
        log_var = self.log_var if noise.ndim == self.log_var.ndim else self.log_var.expand_as(noise)
        return self.mean + torch.exp(0.5 * log_var) * noise

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log q(z|x) of codes [B, Z], of each latent dimension, [B, Z] nats."""
        return -0.5 * ((z - self.mean).square() * torch.exp(-self.log_var) + self.log_var + LOG_2PI)

    def log_prob_pairs(self, z: Tensor) -> Tensor:
        """Return log q(z_i|x_j) of codes [..., Z] under each of the B Gaussians, [..., B] nats."""
        (precision, weighted, constant), z = self._quadratic, _as_double(z)
        pairs = -0.5 * (z.square() @ precision.T - 2 * z @ weighted.T + constant)
        return pairs.to(self.mean.dtype)

    @cached_property
    def _quadratic(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the precisions P, P mean and what is constant in -2 log q, in float64: the large terms cancel."""
        mean, log_var = _as_double(self.mean), _as_double(self.log_var)
        precision = torch.exp(-log_var)
        weighted = mean * precision
        return precision, weighted, (mean * weighted + log_var).sum(1) + mean.shape[1] * LOG_2PI

    def kl_to_prior(self) -> Tensor:
        """Return KL(q(z|x) || N(0, I)) of each latent dimension, [B, Z] nats (Kingma & Welling 2014, appendix B)."""
        return 0.5 * (self.mean.square() + self.log_var.exp() - 1.0 - self.log_var)

    @property
    def marginals(self) -> "DiagonalGaussian":
        return self

    def mean_covariance(self) -> Tensor:
        """Return the mean over images of the covariance of q(z|x), [Z, Z]."""
        return self.log_var.exp().mean(0).diag()


@dataclass
class FullGaussian:
    """N(mean, L L^T) with a lower triangular L for each image: diag(L) = exp(log_var / 2), and `lower` is below it.

    mean and log_var are [B, Z], lower is [B, Z (Z - 1) / 2], row by row.
    """

    mean: Tensor
    log_var: Tensor
    lower: Tensor

    @cached_property
    def scale_tril(self) -> Tensor:
        """Return L, [B, Z, Z]."""
        z_dim, device = self.mean.shape[-1], self.mean.device
        row, column = torch.tril_indices(z_dim, z_dim, -1, device=device)
        images = torch.arange(len(self.mean), device=device)[:, None]
        return torch.diag_embed(torch.exp(0.5 * self.log_var)).index_put((images, row, column), self.lower)

    def draw(self, noise: Noise = None) -> tuple[Tensor, Tensor]:
        """Draw z = mean + L noise, [B, Z] or several draws [K, B, Z]; return it with log q(z|x), [B] or [K, B]."""
        noise = noise_like(self.mean, noise)
        z = self.mean + (self.scale_tril * noise[..., None, :]).sum(-1)  # autocast would round a matrix product
        return z, (log_prior(noise) - 0.5 * self.log_var).sum(-1)

    def rsample(self, noise: Noise = None) -> Tensor:
        return self.draw(noise)[0]

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log q(z|x) of codes [..., B, Z], [..., B] nats."""
        away = torch.linalg.solve_triangular(self.scale_tril, (z - self.mean)[..., None], upper=False)[..., 0]
        return (log_prior(away) - 0.5 * self.log_var).sum(-1)

    def log_prob_pairs(self, z: Tensor) -> Tensor:
        """Return log q(z_i|x_j) of codes [..., Z] under each of the B Gaussians, [..., B] nats."""
        (precision, weighted, constant), z = self._quadratic, _as_double(z)
        products = (z[..., None] * z[..., None, :]).flatten(-2)  # [..., Z Z]: no code meets each matrix by itself
        pairs = -0.5 * (products @ precision.flatten(1).T - 2 * z @ weighted.T + constant)
        return pairs.to(self.mean.dtype)

    @cached_property
    def _quadratic(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the precision matrix P, P mean and what is constant in -2 log q, in float64."""
        root, mean, log_var = map(_as_double, (self.scale_tril, self.mean, self.log_var))
        identity = torch.eye(root.shape[-1], dtype=root.dtype, device=root.device)
        inverse = torch.linalg.solve_triangular(root, identity.expand_as(root), upper=False)
        precision = inverse.mT @ inverse
        weighted = (precision * mean[:, None]).sum(-1)
        return precision, weighted, (mean * weighted + log_var).sum(1) + mean.shape[1] * LOG_2PI

    def kl_to_prior(self) -> Tensor:
        """Return KL(q(z|x) || N(0, I)), [B] nats: it does not divide into latents."""
        trace = self.scale_tril.square().sum((-2, -1))
        return 0.5 * (self.mean.square() - 1.0 - self.log_var).sum(-1) + 0.5 * trace

    @property
    def marginals(self) -> DiagonalGaussian:
        """Return q(z_i|x) of each latent alone."""
        return DiagonalGaussian(self.mean, self.scale_tril.square().sum(-1).log())

    def mean_covariance(self) -> Tensor:
        """Return the mean over images of the covariance of q(z|x), [Z, Z]."""
        roots = _as_double(self.scale_tril).transpose(0, 1).flatten(1)
        return (roots @ roots.T / len(self.mean)).to(self.mean.dtype)


@dataclass
class Point:
    """A code with no spread, [B, Z]: a deterministic autoencoder's, for which there is no prior and no bound."""

    mean: Tensor

    def rsample(self, noise: Noise = None) -> Tensor:
        """Return the code itself, [B, Z]; no noise is drawn."""
        return self.mean

    def kl_to_prior(self) -> Tensor:
        """Return 0, [B, Z]: the objective has no KL. (That of a point to N(0, I) would be infinite.)"""
        return torch.zeros_like(self.mean)


Q = TypeVar("Q", bound=Posterior)


def draw(q: Posterior, noise: Noise = None) -> tuple[Tensor, Tensor | None]:
    """Draw codes, [B, Z] or [K, B, Z] as the noise; return them with log q(z|x) where q knows it without z."""
    return q.draw(noise) if hasattr(q, "draw") else (q.rsample(noise), None)


def total(log_prob: Tensor, z: Tensor) -> Tensor:
    """Return the log density of codes z [..., Z], [...], from that of each latent or of the code."""
    return log_prob.sum(-1) if log_prob.ndim == z.ndim else log_prob


def parameters(q: Posterior) -> dict[str, Any]:
    """Return the fields of q by name: tensors [B, ...], and what is the same for all images."""
    return {field.name: getattr(q, field.name) for field in fields(cast("Any", q))}


def map_parameters(function: Callable[[Tensor], Tensor], q: Q) -> Q:
    """Return q with the function applied to each of its tensors."""
    mapped = {name: function(value) if isinstance(value, Tensor) else value for name, value in parameters(q).items()}
    return type(q)(**mapped)


def concatenate(parts: Sequence[Q]) -> Q:
    """Return one posterior over all the images of the parts, of one class."""
    columns = {name: [parameters(q)[name] for q in parts] for name in parameters(parts[0])}
    return type(parts[0])(**{n: torch.cat(c) if isinstance(c[0], Tensor) else c[0] for n, c in columns.items()})


def as_float32(outputs: Tensor) -> Tensor:
    """Return outputs of 16 bits as float32: their digits, or their range, are too few for a density's sums."""
    return outputs.float() if outputs.dtype in (torch.bfloat16, torch.float16) else outputs


def _as_double(values: Tensor) -> Tensor:
    return values if values.device.type == "mps" else values.double()  # Apple's has no float64
