"""Priors p(z): small classes, modules where something of them is learned.

log_prob(z, y) is of each latent, [..., B, Z], where the prior factorises, else of the code, [..., B]; in nats. Labels y
[B] matter to by_label alone. sample(y, noise, temperature) draws a code for each label, [B, Z]; a temperature below 1
draws nearer to the middle. kl(q, y), if there is one, returns KL(q(z|x) || p(z)) in closed form, [B, Z] or [B], or None
where q has none. moments(y) returns the mean and the standard deviation of each latent where they are known.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from operator import itemgetter
from typing import Protocol

import torch
from torch import Tensor, nn

from vae_exp.datasets import Split
from vae_exp.distributions import DiagonalGaussian, FullGaussian, Posterior, as_float32, log_prior, map_parameters
from vae_exp.errors import UserError
from vae_exp.posteriors import FlowPosterior

Shape = tuple[int, int, int]
Encode = Callable[[Tensor, Tensor], Posterior]
MAX_LOG_SCALE = 2.0  # of one coupling
CHUNK = 1000  # codes drawn at a time


class Prior(Protocol):
    def log_prob(self, z: Tensor, y: Tensor) -> Tensor: ...
    def sample(self, y: Tensor, noise: torch.Generator | None, temperature: float) -> Tensor: ...


class Standard:
    """N(0, I)."""

    def __init__(self, z_dim: int) -> None:
        self.z_dim = z_dim

    def log_prob(self, z: Tensor, y: Tensor) -> Tensor:
        return log_prior(z)

    def sample(self, y: Tensor, noise: torch.Generator | None, temperature: float) -> Tensor:
        return temperature * _normal(y, self.z_dim, noise)

    def kl(self, q: Posterior, y: Tensor) -> Tensor | None:
        return q.kl_to_prior() if hasattr(q, "kl_to_prior") else None

    def moments(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros(self.z_dim, device=y.device), torch.ones(self.z_dim, device=y.device)


class ByLabel(nn.Module):
    """A learned diagonal Gaussian for each label, N(0, I) at first."""

    def __init__(self, z_dim: int, n_classes: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(n_classes, z_dim))
        self.log_var = nn.Parameter(torch.zeros(n_classes, z_dim))

    def of(self, y: Tensor) -> DiagonalGaussian:
        return DiagonalGaussian(self.mean[y], self.log_var[y])

    def log_prob(self, z: Tensor, y: Tensor) -> Tensor:
        return self.of(y).log_prob(z)

    def sample(self, y: Tensor, noise: torch.Generator | None, temperature: float) -> Tensor:
        return self.of(y).rsample(temperature * _normal(y, self.mean.shape[1], noise))

    def kl(self, q: Posterior, y: Tensor) -> Tensor | None:
        p = self.of(y)
        if isinstance(q, FullGaussian):
            marginal = _kl(q.marginals, p).sum(1)  # what is left is how much more certain q is than its marginals
            return marginal + 0.5 * (q.marginals.log_var - q.log_var).sum(1)
        return _kl(q, p) if isinstance(q, DiagonalGaussian) else None

    def moments(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.mean[y], torch.exp(0.5 * self.log_var[y])


def _kl(q: DiagonalGaussian, p: DiagonalGaussian) -> Tensor:
    """Return KL(q || p) of each latent, [B, Z] nats."""
    far = (q.mean - p.mean).square() + q.log_var.exp()
    return 0.5 * (far * torch.exp(-p.log_var) - 1.0 - q.log_var + p.log_var)


class Mixture(nn.Module):
    """Diagonal Gaussians with learned weights. At first they are spread so that the mixture is about N(0, I)."""

    def __init__(self, z_dim: int, components: int) -> None:
        super().__init__()
        spread = 0.0 if components == 1 else math.sqrt(0.5)
        self.mean = nn.Parameter(spread * torch.randn(components, z_dim))
        self.log_var = nn.Parameter(torch.full((components, z_dim), math.log(1 - spread**2)))
        self.logits = nn.Parameter(torch.zeros(components))

    def gaussians(self) -> DiagonalGaussian:
        return DiagonalGaussian(self.mean, self.log_var)

    @property
    def weights(self) -> Tensor:
        """Return the share of each component, [M]; they sum to 1."""
        return self.logits.softmax(0)

    def log_prob(self, z: Tensor, y: Tensor) -> Tensor:
        return (self.gaussians().log_prob_pairs(z) + self.logits.log_softmax(0)).logsumexp(-1)

    def sample(self, y: Tensor, noise: torch.Generator | None, temperature: float) -> Tensor:
        return _sample(self.gaussians(), self.weights, y, noise, temperature)


class VampPrior(nn.Module):
    """The mean of q(z|u) over learned pseudo-inputs u (Tomczak & Welling 2018, arXiv:1705.07120).

    Of a conditional model each pseudo-input has a label of its own. A posterior that flows from a Gaussian lends only
    that Gaussian: its own density is not known of other z.
    """

    labels: Tensor
    encode: Encode | None = None  # the model's, which it sets
    _keeps = False
    _kept: DiagonalGaussian | FullGaussian | None = None

    def __init__(self, x_shape: Shape, n_classes: int, components: int, init: str, mean: float, std: float) -> None:
        super().__init__()
        self.init, self.n_classes = init, n_classes
        self.inputs = nn.Parameter(mean + std * torch.randn(components, *x_shape))
        self.register_buffer("labels", torch.arange(components) % max(1, n_classes))

    @torch.no_grad()
    def start_from(self, train: Split) -> None:
        """Begin with training images, evenly over the split, if init=data."""
        if self.init == "data":
            chosen = train[torch.arange(len(self.inputs)) * len(train) // len(self.inputs)]
            self.inputs.copy_(chosen.x.float() / 255)
            if self.n_classes:
                self.labels.copy_(chosen.y)

    @property
    def images(self) -> Tensor:
        """Return the pseudo-inputs, [M, C, H, W] in [0, 1]."""
        return self.inputs.clamp(0, 1)

    @contextlib.contextmanager
    def keeping(self) -> Iterator[None]:
        """Encode the pseudo-inputs only once in the block, in which no weight changes."""
        before, self._keeps = self._keeps, True
        try:
            yield
        finally:
            self._keeps = before
            self._kept = self._kept if before else None

    def gaussians(self) -> DiagonalGaussian | FullGaussian:
        """Return q(z|u) of each pseudo-input."""
        if self._kept is not None and not torch.is_grad_enabled():
            return self._kept
        assert self.encode is not None, "the VAE sets it"
        q = self.encode(self.images, self.labels)
        q = q.base if isinstance(q, FlowPosterior) else q
        if not isinstance(q, DiagonalGaussian | FullGaussian):
            raise UserError(f"prior=vamp: it needs a Gaussian q(z|x), not {type(q).__name__}. Use another prior.")
        if self._keeps and not torch.is_grad_enabled():
            self._kept = q
        return q

    @property
    def weights(self) -> Tensor:
        """Return the share of each component, [M]: the same."""
        return torch.full((len(self.inputs),), 1 / len(self.inputs), device=self.inputs.device)

    def log_prob(self, z: Tensor, y: Tensor) -> Tensor:
        return self.gaussians().log_prob_pairs(z).logsumexp(-1) - math.log(len(self.inputs))

    def sample(self, y: Tensor, noise: torch.Generator | None, temperature: float) -> Tensor:
        return _sample(self.gaussians(), self.weights, y, noise, temperature)


class Flow(nn.Module):
    """Affine couplings from N(0, I) (Dinh et al. 2017, arXiv:1605.08803): even latents move odd ones, and so on."""

    def __init__(self, z_dim: int, layers: int, hidden_dim: int) -> None:
        super().__init__()
        self.z_dim = z_dim
        halves = [(z_dim + 1) // 2, z_dim // 2]
        self.couplings = nn.ModuleList(Coupling(halves[i % 2], halves[1 - i % 2], hidden_dim) for i in range(layers))

    def log_prob(self, z: Tensor, y: Tensor) -> Tensor:
        parts, log_det = [z[..., ::2], z[..., 1::2]], torch.zeros_like(z[..., 0])
        for i, coupling in reversed(list(enumerate(self.couplings))):
            given, moved = parts[i % 2], parts[1 - i % 2]
            shift, log_scale = coupling(given)
            parts[1 - i % 2] = (moved - shift) * torch.exp(-log_scale)
            log_det = log_det - log_scale.sum(-1)
        return log_prior(torch.cat(parts, -1)).sum(-1) + log_det

    def sample(self, y: Tensor, noise: torch.Generator | None, temperature: float) -> Tensor:
        z = temperature * _normal(y, self.z_dim, noise)
        parts = [z[..., ::2], z[..., 1::2]]
        for i, coupling in enumerate(self.couplings):
            shift, log_scale = coupling(parts[i % 2])
            parts[1 - i % 2] = parts[1 - i % 2] * torch.exp(log_scale) + shift
        result = torch.empty_like(z)
        result[..., ::2], result[..., 1::2] = parts
        return result


class Coupling(nn.Module):
    """The shift and the log-scale of some latents as functions of the others, 0 at first."""

    def __init__(self, n_given: int, n_moved: int, hidden_dim: int) -> None:
        super().__init__()
        last = nn.Linear(hidden_dim, 2 * n_moved)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(nn.Linear(n_given, hidden_dim), nn.SiLU(), last)

    def forward(self, given: Tensor) -> tuple[Tensor, Tensor]:
        shift, raw = as_float32(self.layers(given)).chunk(2, dim=-1)
        return shift, MAX_LOG_SCALE * torch.tanh(raw / MAX_LOG_SCALE)


# What conf/prior/*.yaml name. Each gets the shape of an image, z_dim, and how many classes the model is given.


def standard(x_shape: Shape, z_dim: int, n_classes: int) -> Standard:
    """Make N(0, I) (Kingma & Welling 2014)."""
    return Standard(z_dim)


def by_label(x_shape: Shape, z_dim: int, n_classes: int) -> ByLabel:
    """Make p(z|y), a Gaussian for each label (Sohn et al. 2015)."""
    return ByLabel(z_dim, n_classes)


def mixture(x_shape: Shape, z_dim: int, n_classes: int, components: int) -> Mixture:
    """Make a mixture of Gaussians."""
    return Mixture(z_dim, components)


def vamp(
    x_shape: Shape, z_dim: int, n_classes: int, components: int, init: str, init_mean: float, init_std: float
) -> VampPrior:
    """Make a VampPrior whose pseudo-inputs are noise at first, or training images."""
    return VampPrior(x_shape, n_classes, components, init, init_mean, init_std)


def flow(x_shape: Shape, z_dim: int, n_classes: int, layers: int, hidden_dim: int) -> Flow:
    """Make a flow of affine couplings over N(0, I)."""
    return Flow(z_dim, layers, hidden_dim)


def _normal(y: Tensor, z_dim: int, noise: torch.Generator | None) -> Tensor:
    """Return standard normal noise, [B, Z], on the device of labels y [B]."""
    device = y.device if noise is None else noise.device  # a generator on the CPU gives every device the same
    return torch.randn(len(y), z_dim, generator=noise, device=device).to(y.device)


def _sample(
    gaussians: DiagonalGaussian | FullGaussian,
    weights: Tensor,
    y: Tensor,
    noise: torch.Generator | None,
    temperature: float,
) -> Tensor:
    """Draw a component for each label y [B] and a code from it, [B, Z]; the temperature scales each spread."""
    device = "cpu" if noise is None else noise.device  # Apple's has no float64
    uniform = torch.rand(len(y), generator=noise, device=device, dtype=torch.float64).to("cpu")
    ends = weights.detach().cpu().double().cumsum(0)
    chosen = torch.searchsorted(ends, uniform * ends[-1], right=True).clamp(max=len(weights) - 1).to(y.device)
    eps = temperature * _normal(y, gaussians.mean.shape[1], noise)
    parts = zip(chosen.split(CHUNK), eps.split(CHUNK), strict=True)  # a full covariance is a matrix for each code
    return torch.cat([map_parameters(itemgetter(rows), gaussians).rsample(e) for rows, e in parts])
