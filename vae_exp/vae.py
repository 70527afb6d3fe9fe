"""The variational autoencoder of Kingma & Welling (2014), https://arxiv.org/abs/1312.6114."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vae_exp.distributions import Point, Posterior, as_float32, total
from vae_exp.errors import UserError
from vae_exp.posteriors import diagonal
from vae_exp.priors import Prior, Standard, VampPrior

MOMENTS = 10_000  # draws of a prior whose mean and spread have no closed form


class VAE(nn.Module):
    """q(z|x, y), the prior p(z) and p(x|z, y). The only model class: every variant is a value.

    n_classes is the number of labels, 0 for the unconditional model. The encoder and the decoder see the one-hot label,
    or the row of contexts [n_classes, W] for it.
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
        posterior: Callable[[Tensor], Posterior] | None = None,
        prior: Prior | None = None,
        contexts: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.decoder, self.likelihood = encoder, decoder, likelihood
        self.posterior: Callable[[Tensor], Posterior] = diagonal(z_dim) if posterior is None else posterior
        self.prior: Prior = Standard(z_dim) if prior is None else prior
        if isinstance(self.prior, VampPrior):
            self.prior.encode = self.encode
        self.z_dim, self.n_classes, self.stochastic = z_dim, n_classes, stochastic
        self.contexts: Tensor | None
        self.register_buffer("contexts", contexts, persistent=False)  # the data say what they are, and no weights
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
        """Return what the networks see of labels y [B], one-hot or contexts [B, W]; without labels [B, 0].

        y may be contexts [B, W] themselves.
        """
        if y.is_floating_point():
            return y
        if self.contexts is not None:
            return self.contexts[y]
        if self.n_classes == 0:  # F.one_hot refuses zero classes
            return torch.empty(y.shape[0], 0, device=y.device)
        return F.one_hot(y, self.n_classes).float()

    def encode(self, x: Tensor, y: Tensor) -> Posterior:
        """Return the approximate posterior q(z|x, y) of images x [B, C, H, W] in [0, 1] with labels y [B]."""
        outputs = as_float32(self.encoder(x, self.context(y)))
        return self.posterior(outputs) if self.stochastic else Point(outputs[:, : self.z_dim])

    def decode(self, z: Tensor, y: Tensor) -> Any:
        """Return the likelihood p(x|z, y) of codes z [B, Z] with labels y [B]; its mean is an image."""
        return self.likelihood(as_float32(self.decoder(z, self.context(y))))

    @property
    @torch.no_grad()
    def support(self) -> str:
        """Return what p(x|z) is a density over: binary, unit interval, real, bytes, or other if it does not say."""
        with self.evaluating():
            y = torch.zeros(1, dtype=torch.long, device=self.device)
            p = self.decode(torch.zeros(1, self.z_dim, device=self.device), y)
        return getattr(p, "support", "other")

    @torch.no_grad()
    def scale(self) -> dict[str, Tensor]:
        """Return the sigma or scale of p(x|z) by its name, a scalar on the device, if one is learned or fitted."""
        name = getattr(self.likelihood, "scale_name", None)
        return {} if name is None else {name: torch.as_tensor(self.likelihood.scale)}  # type: ignore[attr-defined]

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Run the block with layers and likelihoods in evaluation mode; restore the previous mode afterwards."""
        was_training, prior = self.training, self.prior
        self.eval()
        try:
            with prior.keeping() if isinstance(prior, VampPrior) else contextlib.nullcontext():
                yield
        finally:
            self.train(was_training)

    def kl(self, q: Posterior, y: Tensor) -> Tensor | None:
        """Return KL(q(z|x, y) || p(z)) in closed form, of each latent [B, Z] or of the code [B]; None without one."""
        if isinstance(q, Point):
            return q.kl_to_prior()
        return self.prior.kl(q, y) if hasattr(self.prior, "kl") else None

    def log_ratio(self, q: Posterior, z: Tensor, y: Tensor, log_q: Tensor | None = None) -> Tensor:
        """Return log p(z) - log q(z|x, y) of codes z [..., B, Z], [..., B] nats; q's part may be known, as log_q."""
        log_p = self.prior.log_prob(z, y)
        if log_q is None:
            log_q = q.log_prob(z)  # type: ignore[attr-defined]
        return (log_p - log_q).sum(-1) if log_p.ndim == log_q.ndim == z.ndim else total(log_p, z) - total(log_q, z)

    @torch.no_grad()
    def prior_sample(
        self, n: int, noise: torch.Generator | None = None, y: Tensor | None = None, temperature: float = 1.0
    ) -> Tensor:
        """Draw n codes from the prior, [n, Z], with labels y [n] for a prior that has use of them.

        A temperature below 1 draws nearer to its middle. Raises UserError for an autoencoder, which has no prior.
        """
        if not self.stochastic:
            raise UserError("model.stochastic=false: an autoencoder has no prior over its codes to sample from.")
        y = torch.zeros(n, dtype=torch.long, device=self.device) if y is None else y
        with self.evaluating():  # a VampPrior encodes its pseudo-inputs
            return self.prior.sample(y, noise, temperature)

    @torch.no_grad()
    def prior_moments(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and the standard deviation of the prior in each latent, [Z], for a label y [].

        Without a closed form they are of draws, always the same ones.
        """
        if hasattr(self.prior, "moments"):
            return self.prior.moments(y)
        z = self.prior_sample(MOMENTS, torch.Generator().manual_seed(0), y.expand(MOMENTS))
        return z.mean(0), z.std(0)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device


def _outer(names: Iterable[str]) -> list[str]:
    """Return the first one and two parts of dotted names, each once."""
    return list(dict.fromkeys(".".join(name.split(".")[:n]) for n in (1, 2) for name in names))
