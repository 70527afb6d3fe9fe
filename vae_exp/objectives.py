"""Objectives: pure functions of a batch's terms and of the progress of training."""

from typing import Any, NamedTuple

from torch import Tensor

from vae_exp.distributions import DiagonalGaussian, Point


class Terms(NamedTuple):
    """The two sides of the negative ELBO, in nats per image and not yet reduced."""

    reconstruction: Tensor  # [B]: -log p(x|z), summed over pixels
    kl: Tensor  # [B, Z]: KL(q(z|x) || p(z)) of each latent dimension

    @property
    def neg_elbo(self) -> Tensor:
        """reconstruction + KL with weight 1, whatever is optimised, [B]."""
        return self.reconstruction + self.kl.sum(1)


def elbo_terms(x: Tensor, q: DiagonalGaussian | Point, p: Any) -> Terms:
    """-log p(x|z) of one draw z ~ q, and the closed-form KL (Kingma & Welling 2014, eq. 10)."""
    return Terms(reconstruction=-p.log_prob(x), kl=q.kl_to_prior())


def elbo(terms: Terms, epoch: float, *, beta: float, warmup_epochs: float) -> tuple[Tensor, float]:
    """The loss to minimise, reconstruction + kl_weight * KL as a mean over images, and that kl_weight.

    With beta 1 this is the negative ELBO, else beta-VAE's objective (Higgins et al. 2017). Over the first
    warmup_epochs the weight rises linearly from 0 to beta (Bowman et al. 2016; Sønderby et al. 2016);
    epoch is fractional: 1.5 is halfway through the second.
    """
    kl_weight = beta if epoch >= warmup_epochs else beta * epoch / warmup_epochs
    return (terms.reconstruction + kl_weight * terms.kl.sum(1)).mean(), kl_weight
