"""Families of q(z|x): each function returns what makes the posterior of the encoder's outputs, [B, n_outputs]."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vae_exp.distributions import DiagonalGaussian, FullGaussian, Noise, Posterior, as_float32, log_prior, noise_like

OPEN = 2.0  # added to s, so that gates begin at 0.88: Kingma et al. 2016 advise 1 to 2
SMALLEST = 1e-18  # standard deviation by softplus: its square is a 32-bit float too


@dataclass
class Family:
    """What makes q(z|x) of the n_outputs numbers that the encoder gives of an image."""

    n_outputs: int
    make: Callable[[Tensor], Posterior]

    def __call__(self, outputs: Tensor) -> Posterior:
        return self.make(outputs)


def diagonal(z_dim: int, scale: str = "exp", log_var_range: list[float] | None = None) -> Family:
    """Make a Gaussian with a variance for each latent (Kingma & Welling 2014): means, then log-variances."""

    def make(outputs: Tensor) -> DiagonalGaussian:
        mean, raw = outputs.chunk(2, dim=1)
        return DiagonalGaussian(mean, _log_var(raw, scale, log_var_range))

    return Family(2 * z_dim, make)


def full(z_dim: int, scale: str = "exp", log_var_range: list[float] | None = None) -> Family:
    """Make a Gaussian with a Cholesky factor for each image: those of `diagonal`, then what is below its diagonal."""
    sizes = [z_dim, z_dim, z_dim * (z_dim - 1) // 2]

    def make(outputs: Tensor) -> FullGaussian:
        mean, raw, lower = outputs.split(sizes, dim=1)
        return FullGaussian(mean, _log_var(raw, scale, log_var_range), lower)

    return Family(sum(sizes), make)


def iaf(
    z_dim: int,
    layers: int,
    hidden_dims: list[int],
    context_dim: int,
    scale: str = "exp",
    log_var_range: list[float] | None = None,
    gate: bool = False,
) -> "InverseAutoregressiveFlow":
    """Make inverse autoregressive flows over a diagonal Gaussian (Kingma et al. 2016, arXiv:1606.04934)."""
    return InverseAutoregressiveFlow(z_dim, layers, hidden_dims, context_dim, scale, log_var_range, gate)


def _log_var(raw: Tensor, scale: str, log_var_range: list[float] | None) -> Tensor:
    """Return log-variances of the encoder's outputs: themselves, or by a softplus for the standard deviation."""
    log_var = 2 * F.softplus(raw).clamp(min=SMALLEST).log() if scale == "softplus" else raw
    return log_var if log_var_range is None else log_var.clamp(*log_var_range)


class InverseAutoregressiveFlow(nn.Module):
    """The steps of a flow: z <- z * exp(s) + m, with m and s of each latent from those before it, and of a context.

    With a gate a step is z <- g * z + (1 - g) * m with g = sigmoid(s + 2), the paper's equations 11 to 14. The encoder
    gives means, log-variances and the context. The latents' order is reversed between steps. The last layers begin at
    zero, so at first q(z|x) is the diagonal Gaussian, of which each gate leaves 0.88 of z.
    """

    def __init__(
        self,
        z_dim: int,
        layers: int,
        hidden_dims: list[int],
        context_dim: int,
        scale: str,
        log_var_range: list[float] | None,
        gate: bool,
    ) -> None:
        super().__init__()
        self.sizes, self.scale, self.log_var_range, self.gate = [z_dim, z_dim, context_dim], scale, log_var_range, gate
        self.n_outputs = sum(self.sizes)
        self.steps = nn.ModuleList(Autoregressive(z_dim, hidden_dims, context_dim) for _ in range(layers))

    def forward(self, outputs: Tensor) -> "FlowPosterior":
        mean, raw, context = outputs.split(self.sizes, dim=1)
        return FlowPosterior(mean, _log_var(raw, self.scale, self.log_var_range), context, self)


class Autoregressive(nn.Module):
    """m and s of each latent as functions of the latents before it (MADE, Germain et al. 2015) and of a context."""

    def __init__(self, z_dim: int, hidden_dims: list[int], context_dim: int) -> None:
        super().__init__()
        # A unit of degree d sees the latents up to d, and those after d see it; of degree -1 it sees the context alone.
        degrees = [torch.arange(z_dim), *(torch.arange(width) % z_dim - 1 for width in hidden_dims)]
        seen = [after[:, None] >= before for before, after in pairwise(degrees)]
        seen.append((degrees[0][:, None] > degrees[-1]).repeat(2, 1))
        self.layers = nn.ModuleList(Masked(mask) for mask in seen)
        self.context = nn.Linear(context_dim, hidden_dims[0], bias=False)
        for weights in self.layers[-1].parameters():
            nn.init.zeros_(weights)

    def forward(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.layers[0](z) + self.context(context)
        for layer in list(self.layers)[1:]:
            hidden = layer(F.relu(hidden))
        m, s = as_float32(hidden).chunk(2, dim=-1)
        return m, s


class Masked(nn.Linear):
    """A linear layer of which only the weights of a mask [outputs, inputs] are used."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__(mask.shape[1], mask.shape[0])
        self.register_buffer("mask", mask.float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.mask, self.bias)


@dataclass
class FlowPosterior:
    """q(z|x) of a flow from a diagonal Gaussian, whose mean and log-variance are [B, Z], with a context [B, K].

    Its density is only known of its own draws: to find the noise of another z would take a pass for each latent.
    """

    base_mean: Tensor
    log_var: Tensor
    context: Tensor
    flow: InverseAutoregressiveFlow

    @cached_property
    def mean(self) -> Tensor:
        """Return where noise of 0 leads, [B, Z]: the middle of q(z|x), whose mean has no closed form."""
        return self.rsample(torch.zeros_like(self.base_mean))

    @property
    def base(self) -> DiagonalGaussian:
        return DiagonalGaussian(self.base_mean, self.log_var)

    def draw(self, noise: Noise = None) -> tuple[Tensor, Tensor]:
        """Draw z, [B, Z] or several draws [K, B, Z] as the noise; return it with log q(z|x), [B] or [K, B] nats."""
        noise = noise_like(self.base_mean, noise)
        z, log_q = self.base.rsample(noise), (log_prior(noise) - 0.5 * self.log_var).sum(-1)
        for number, step in enumerate(self.flow.steps):
            z = z.flip(-1) if number else z
            m, s = step(z, self.context)
            if self.flow.gate:
                m, s = m * torch.sigmoid(-s - OPEN), F.logsigmoid(s + OPEN)
            z, log_q = z * s.exp() + m, log_q - s.sum(-1)
        return z, log_q

    def rsample(self, noise: Noise = None) -> Tensor:
        return self.draw(noise)[0]
