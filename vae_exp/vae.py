"""The variational autoencoder of Kingma & Welling (2014), https://arxiv.org/abs/1312.6114."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vae_exp.distributions import DiagonalGaussian, Point, Posterior
from vae_exp.errors import UserError


class VAE(nn.Module):
    """q(z|x, y), the prior N(0, I) and p(x|z, y). The only model class: every variant is a value.

    n_classes is the width of the one-hot label that the encoder and the decoder see, 0 for the unconditional model.
    With stochastic=False it is the deterministic autoencoder: the code is q's mean, and its log-variance goes unused.
    There is no KL then, so no bound on the likelihood and no prior to sample from.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        likelihood: Callable[[Tensor], Any],
        z_dim: int,
        n_classes: int,
        stochastic: bool = True,
    ) -> None:
        super().__init__()
        self.encoder, self.decoder, self.likelihood = encoder, decoder, likelihood
        self.z_dim, self.n_classes, self.stochastic = z_dim, n_classes, stochastic
        self._frozen: list[nn.Module] = []

    def freeze(self, names: Iterable[str]) -> None:
        """Keep the parts or weights of these names, such as encoder, as they are. Raises UserError for unknown ones."""
        parts, weights = dict(self.named_modules()), dict(self.named_parameters())
        for name in names:
            if not name or not (name in weights or name in parts):
                raise UserError(f"freeze=[{name}]: no such part. There are {', '.join(_outer(weights))}, ...")
            for frozen in [parts[name]] if name in parts else []:
                frozen.requires_grad_(False)
                self._frozen.append(frozen)
            if name in weights:
                weights[name].requires_grad_(False)
        if not any(values.requires_grad for values in weights.values()):
            raise UserError(f"freeze=[{','.join(names)}]: then nothing is left to learn.")

    def train(self, mode: bool = True) -> "VAE":
        """Set training mode, but for frozen parts, whose batch norms stay as they are too."""
        super().train(mode)
        for part in self._frozen:
            part.eval()
        return self

    def context(self, y: Tensor) -> Tensor:
        """Return the one-hot labels of y [B], as [B, n_classes]; an unconditional model's are [B, 0]."""
        if self.n_classes == 0:  # F.one_hot refuses zero classes
            return torch.empty(len(y), 0, device=y.device)
        return F.one_hot(y, self.n_classes).float()

    def encode(self, x: Tensor, y: Tensor) -> Posterior:
        """Return the approximate posterior q(z|x, y) of images x [B, C, H, W] in [0, 1] with labels y [B]."""
        mean, log_var = _float32(self.encoder(x, self.context(y))).chunk(2, dim=1)
        return DiagonalGaussian(mean, log_var) if self.stochastic else Point(mean)

    def decode(self, z: Tensor, y: Tensor) -> Any:
        """Return the likelihood p(x|z, y) of codes z [B, Z] with labels y [B]; its mean is an image."""
        return self.likelihood(_float32(self.decoder(z, self.context(y))))

    @property
    @torch.no_grad()
    def support(self) -> str:
        """Return what p(x|z) is a density over: binary, unit interval, real, bytes, or other if it does not say."""
        with self.evaluating():
            device = next(self.parameters()).device
            p = self.decode(torch.zeros(1, self.z_dim, device=device), torch.zeros(1, dtype=torch.long, device=device))
        return getattr(p, "support", "other")

    @torch.no_grad()
    def scale(self) -> dict[str, Tensor]:
        """Return the sigma or scale of p(x|z) by its name, a scalar on the device, if one is learned or fitted."""
        name = getattr(self.likelihood, "scale_name", None)
        return {} if name is None else {name: torch.as_tensor(self.likelihood.scale)}  # type: ignore[attr-defined]

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Run the block with layers and likelihoods in evaluation mode; restore the previous mode afterwards."""
        was_training = self.training
        self.eval()
        try:
            yield
        finally:
            self.train(was_training)

    def prior_sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n codes from the prior N(0, I), [n, Z]. Raises UserError for an autoencoder, which has none."""
        if not self.stochastic:
            raise UserError("model.stochastic=false: an autoencoder has no prior over its codes to sample from.")
        device = next(self.parameters()).device
        source = device if generator is None else generator.device  # one on the CPU gives every device the same
        return torch.randn(n, self.z_dim, generator=generator, device=source).to(device)


def _outer(names: Iterable[str]) -> list[str]:
    """Return the first one and two parts of dotted names, each once."""
    return list(dict.fromkeys(".".join(name.split(".")[:n]) for n in (1, 2) for name in names))


def _float32(outputs: Tensor) -> Tensor:
    """Return outputs of 16 bits as float32: their digits, or their range, are too few for a density's sums."""
    return outputs.float() if outputs.dtype in (torch.bfloat16, torch.float16) else outputs
