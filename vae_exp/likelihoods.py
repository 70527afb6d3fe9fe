"""The likelihoods p(x|z): what the decoder's numbers mean. Everything is per image and in nats.

A config names one of the functions at the end, which returns what turns the decoder's output [B, C, H, W] into a
distribution; its outputs_per_pixel, if it has them, are so many times the channels. `support` says what that is a
density over: only for "bytes", and for "binary" where pixels really are black or white, is log_prob a probability,
which bits per dimension ask for. A module that learns or fits one scale has a `scale_name`, such as sigma, and a
`scale`, which are logged.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vae_exp import distributed

INITIAL_SCALE = 0.1  # of a pixel in [0, 1]: about the error a small VAE leaves on MNIST
LOG_SCALE = 2.25  # minus this, give or take as much, is the logarithm of a pixel's own scale: from 1/90 to 1
BY_PIXEL = "by_pixel"
FEW_LOGARITHMS = 32  # of an image: they are taken in less time than it would take to make them fewer
MAX_LOGIT = 16.0  # of the continuous Bernoulli: a probability of float32's epsilon, torch.distributions' limit
MIN_SIGMA = math.exp(-6)  # of the optimal sigma, which would be 0 for a perfect batch; as in Rybkin et al.
# From the decoder's outputs to the mean of a family with a scale. Where much is black or white, a sigmoid, which stays
# there however sure the decoder is, suits densities; the discretized logistic's tails also take in means beyond.
MEANS: dict[str, Callable[[Tensor], Tensor]] = {"linear": lambda outputs: outputs, "sigmoid": torch.sigmoid}


class _CrossEntropy(torch.autograd.Function):
    """sum_d t_d x_d - log(1 + exp(t_d)) of logits t and pixels x in [0, 1], both [B, D]; [B] nats.

    Minus it is a sum of |t| (x or 1 - x, the one that t is against) and log(1 + exp(-|t|)), neither of them negative:
    nothing cancels however sure the decoder is, as it does in PyTorch's. (1 + a)(1 + b) - 1 = a + b + ab keeps the
    digits of a small a and b: up to 64 pixels share one logarithm, which takes most of the time otherwise, unless an
    image is so small that calling PyTorch does. With setup_context, which torch.func asks for, PyTorch would look at
    its signature at each call, a twentieth of a small step.
    """

    @staticmethod
    def forward(ctx: Any, t: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(t, x)
        odds = t.abs().neg_().exp_()
        for _ in range(6):  # 2^64 is in the range of a 32-bit float
            if odds.shape[1] % 2 or odds.shape[1] <= FEW_LOGARITHMS:
                break
            a, b = odds.chunk(2, 1)
            odds = torch.addcmul(a + b, a, b)
        against = (t > 0).to(t.dtype).sub_(x).mul_(t)
        return against.sum(1).add_(odds.log1p_().sum(1)).neg_()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        t, x = ctx.saved_tensors
        for_t, for_x = ctx.needs_input_grad
        grad = grad[:, None]
        return (x - torch.sigmoid(t)).mul_(grad) if for_t else None, t * grad if for_x else None


@dataclass
class Bernoulli:
    """p(x|z) with a probability per pixel, given by its logits [B, C, H, W]."""

    logits: Tensor
    support = "binary"

    @property
    def mean(self) -> Tensor:
        """Return the mean, [B, C, H, W] in (0, 1)."""
        return torch.sigmoid(self.logits)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x|z) summed over pixels, [B] nats. On grey pixels: minus the binary cross-entropy."""
        return _CrossEntropy.apply(self.logits.flatten(1), x.flatten(1).to(self.logits.dtype))


@dataclass
class ContinuousBernoulli:
    """p(x|z) of the Bernoulli as a density over [0, 1], with its normalising constant (Loaiza-Ganem & Cunningham 2019).

    In the logit t it is p(x) = t exp(t x) / (exp(t) - 1). Around 1/2 both its constant and its mean come from
    functions of u = t/2 that tend to 0/0 at u = 0; below |u| = 0.3 their series are exact to float32.
    """

    logits: Tensor
    support = "unit interval"

    @property
    def mean(self) -> Tensor:
        """Return the mean, [B, C, H, W] in (0, 1): 1/2 + (coth(u) - 1/u) / 2."""
        near, small, large = self._halves()
        series = small / 3 - small**3 / 45 + 2 * small**5 / 945 - small**7 / 4725
        return 0.5 + 0.5 * self.logits.sign() * torch.where(near, series, 1 / torch.tanh(large) - 1 / large)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x|z) summed over pixels, [B] nats: t (x - 1/2) - log(sinh(u) / u)."""
        near, small, large = self._halves()
        series = small**2 / 6 - small**4 / 180 + small**6 / 2835
        log_sinhc = torch.where(near, series, large + torch.log(-torch.expm1(-2 * large) / (2 * large)))
        return (self.logits * (x - 0.5) - log_sinhc).flatten(1).sum(1)

    def _halves(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return where |u| < 0.3, and |u| for the series and for the closed form: 0.3 where it is the other's."""
        u = 0.5 * self.logits.abs()
        near = u < 0.3
        return near, torch.where(near, u, 0.3), torch.where(near, 0.3, u)


@dataclass
class Gaussian:
    """p(x|z) = N(mean, sigma^2) per pixel; mean is [B, C, H, W], and sigma one number or as many."""

    mean: Tensor
    sigma: float | Tensor
    support = "real"

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x|z) summed over pixels, normalising constant included, [B] nats."""
        squared = ((x - self.mean) / self.sigma).square().flatten(1)
        constant = _sum(_log(self.sigma) + 0.5 * math.log(2 * math.pi), squared.shape[1])
        return -0.5 * squared.sum(1) - constant


@dataclass
class Laplace:
    """p(x|z) = exp(-|x - mean| / scale) / (2 scale) per pixel; mean is [B, C, H, W], scale one number or as many."""

    mean: Tensor
    scale: float | Tensor
    support = "real"

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x|z) summed over pixels, normalising constant included, [B] nats."""
        far = ((x - self.mean) / self.scale).abs().flatten(1)
        return -far.sum(1) - _sum(_log(2 * self.scale), far.shape[1])


@dataclass
class DiscretizedLogistic:
    """p(x|z) = the probability that a logistic variable rounds to the byte of each pixel (Kingma et al. 2016, IAF).

    mean is [B, C, H, W] in pixels of [0, 1], scale one number or as many. 0 and 255 take the tails.
    """

    mean: Tensor
    scale: float | Tensor
    support = "bytes"

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x|z) of pixels x = byte / 255, summed over them, [B] nats."""
        upper = (x - self.mean + 0.5 / 255) / self.scale
        lower = (x - self.mean - 0.5 / 255) / self.scale
        # sigmoid(b) - sigmoid(a) = sigmoid(b) sigmoid(-a) (1 - exp(a - b)), and b - a is known from the scale:
        # nothing cancels, however far the mean. A tail lacks one of its edges, and with it that edge's factor.
        below, above = F.logsigmoid(upper), F.logsigmoid(-lower)
        black, white = x < 0.5 / 255, x > 254.5 / 255
        width = _log1mexp(1 / (255 * self.scale))
        inside = torch.where(white, 0.0, below) + torch.where(black, 0.0, above)
        return (inside + torch.where(black | white, 0.0, width)).flatten(1).sum(1)


class Learned(nn.Module):
    """Make distributions of a family with one scale for all pixels, learned by its logarithm beside the weights."""

    def __init__(self, family: Callable[[Tensor, Tensor], Any], mean: str) -> None:
        super().__init__()
        self.family, self.to_mean = family, MEANS[mean]
        self.scale_name = "sigma" if family is Gaussian else "scale"
        self.log_scale = nn.Parameter(torch.tensor(math.log(INITIAL_SCALE)))

    @property
    def scale(self) -> Tensor:
        """Return the scale, a scalar, in pixels of [0, 1]."""
        return self.log_scale.exp()

    def forward(self, outputs: Tensor) -> Any:
        return self.family(self.to_mean(outputs), self.scale)


class ByPixel:
    """Make distributions of a family with a scale for each pixel, a function of z as the mean is.

    The decoder's outputs [B, 2C, H, W] are means and what gives the scales (Kingma & Welling 2014, appendix C.2). These
    lie between 1/90 and 1, where a clamp keeps them in the code of Tomczak & Welling 2018: a density would have no
    bound at a pixel in which all images agree.
    """

    outputs_per_pixel = 2

    def __init__(self, family: Callable[[Tensor, Tensor], Any], mean: str) -> None:
        self.family, self.to_mean = family, MEANS[mean]

    def __call__(self, outputs: Tensor) -> Any:
        mean, raw = outputs.chunk(2, dim=1)
        return self.family(self.to_mean(mean), (LOG_SCALE * (torch.tanh(raw / LOG_SCALE) - 1)).exp())


class Optimal(nn.Module):
    """Make Gaussians with their most likely sigma, the root mean square error (sigma-VAE, Rybkin et al. 2021).

    In training it is that of the batch; in evaluation that of the running mean of the batches' squared errors, over the
    last hundred or so, so that it does not depend on which images are measured together.
    """

    scale_name = "sigma"

    def __init__(self, mean: str) -> None:
        super().__init__()
        self.to_mean = MEANS[mean]
        self.register_buffer("mean_square", torch.tensor(INITIAL_SCALE**2))
        self.register_buffer("batches", torch.tensor(0.0))
        self.mean_square: Tensor
        self.batches: Tensor

    @property
    def scale(self) -> Tensor:
        """Return the sigma that evaluation uses, a scalar."""
        return self.mean_square.sqrt()

    def forward(self, outputs: Tensor) -> "Gaussian | FittedGaussian":
        mean = self.to_mean(outputs)
        return FittedGaussian(mean, self) if self.training else Gaussian(mean, self.scale)

    def fit(self, error: Tensor) -> Tensor:
        """Return the sigma of the batch, a scalar; add its square to the running mean."""
        # Detached: at its optimum the density does not change with sigma, so the gradient is the same without it.
        mean_square = distributed.mean(error.detach().square()).clamp(min=MIN_SIGMA**2)
        self.batches += 1
        self.mean_square.lerp_(mean_square, (2 / (self.batches + 1)).clamp(min=0.01))
        return mean_square.sqrt()


@dataclass
class FittedGaussian:
    """A Gaussian whose sigma is fitted to the images whose density is computed."""

    mean: Tensor
    optimal: Optimal
    support = "real"

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x|z) under the most likely sigma of all of x, summed over pixels, [B] nats."""
        return Gaussian(self.mean, self.optimal.fit(x - self.mean)).log_prob(x)


def bernoulli() -> Callable[[Tensor], Bernoulli]:
    """Return the binary cross-entropy: a probability of black and white pixels, but no density of grey ones."""
    return Bernoulli


def continuous_bernoulli() -> Callable[[Tensor], ContinuousBernoulli]:
    """Return a density over pixels in [0, 1], with the Bernoulli's one number per pixel.

    Its logits are bounded: a decoder would spend its training, and hundreds of nats of KL, on ever blacker black.
    """
    return lambda outputs: ContinuousBernoulli(MAX_LOGIT * torch.tanh(outputs / MAX_LOGIT))


def gaussian(sigma: float | str, mean: str = "linear") -> Callable[[Tensor], Any]:
    """Return a density over real pixels, with sigma a number, learned, optimal or by_pixel; mean is of MEANS."""
    return Optimal(mean) if sigma == "optimal" else _scaled(Gaussian, sigma, mean)


def laplace(scale: float | str, mean: str = "linear") -> Callable[[Tensor], Any]:
    """Return a density over real pixels, with scale a number, learned or by_pixel; mean is of MEANS."""
    return _scaled(Laplace, scale, mean)


def discretized_logistic(scale: float | str, mean: str = "linear") -> Callable[[Tensor], Any]:
    """Return a probability over a pixel's 256 values, with scale a number, learned or by_pixel; mean is of MEANS."""
    return _scaled(DiscretizedLogistic, scale, mean)


def _scaled(family: type, scale: float | str, mean: str) -> Callable[[Tensor], Any]:
    if scale == BY_PIXEL:
        return ByPixel(family, mean)
    return Learned(family, mean) if scale == "learned" else lambda outputs: family(MEANS[mean](outputs), float(scale))


def _sum(value: float | Tensor, pixels: int) -> float | Tensor:
    """Return the sum over pixels of a value for all of them, or of their own [B, C, H, W]."""
    return value.flatten(1).sum(1) if isinstance(value, Tensor) and value.ndim else value * pixels


def _log(scale: float | Tensor) -> float | Tensor:
    return scale.log() if isinstance(scale, Tensor) else math.log(scale)


def _log1mexp(x: float | Tensor) -> float | Tensor:  # log(1 - exp(-x)) for x > 0
    return torch.log(-torch.expm1(-x)) if isinstance(x, Tensor) else math.log(-math.expm1(-x))
