"""The terms of a batch, which objectives are functions of. Nothing is reduced over images except what is logged."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from vae_exp import distributed
from vae_exp.distributed import Share
from vae_exp.distributions import DiagonalGaussian, Point, Posterior
from vae_exp.vae import VAE

Logged = dict[str, float | Tensor]
DrawMore = Callable[[int, int], Iterator[tuple[Tensor, Tensor]]]  # (samples, at once): z [k, B, Z], log p(x|z) [k, B]


class Progress(NamedTuple):
    """Progress of a run when it takes its next step."""

    step: int  # taken so far
    steps_per_epoch: int
    epochs: int  # of the whole run
    train_size: int  # images

    @property
    def epoch(self) -> float:
        """Return the epoch as a fraction: 1.5 is halfway through the second."""
        return self.step / self.steps_per_epoch


class Terms(NamedTuple):
    """Both sides of the negative ELBO, in nats per image and not yet reduced, and what they were made from."""

    reconstruction: Tensor  # [B]: -log p(x|z), summed over pixels
    kl: Tensor  # [B, Z]: KL(q(z|x) || p(z)) of each latent dimension
    q: Posterior | None = None
    z: Tensor | None = None  # [B, Z]: the draw of the reconstruction
    draw_more: DrawMore | None = None  # extra_samples of the same images

    @property
    def neg_elbo(self) -> Tensor:
        """Return reconstruction + KL with weight 1, whatever is optimised, [B]."""
        return self.reconstruction + self.kl.sum(1)

    @property
    def draw(self) -> tuple[DiagonalGaussian, Tensor]:
        """Return q(z|x) and z ~ q. Raises TypeError for an autoencoder's single point, which has no density."""
        if not isinstance(self.q, DiagonalGaussian) or self.z is None:
            raise TypeError("this objective needs a density q(z|x) and a draw of it")
        return self.q, self.z


def elbo_terms(x: Tensor, q: Posterior, p: Any, z: Tensor | None = None, draw_more: DrawMore | None = None) -> Terms:
    """Return -log p(x|z) of one draw z ~ q, and the closed-form KL (Kingma & Welling 2014, eq. 10)."""
    return Terms(-p.log_prob(x), q.kl_to_prior(), q, z, draw_more)


def extra_samples(
    model: VAE, x: Tensor, y: Tensor, q: Posterior, shard: Share, noise: torch.Generator, samples: int, at_once: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield further draws z ~ q(z|x, y) [k, B, Z] with log p(x|z, y) [k, B] nats, at most at_once in a chunk.

    The backward pass decodes a chunk again, so memory does not grow with samples; the draws do not depend on chunks.
    x, y and q are this process's shard of the batch, the result is of the full batch.
    """

    def log_likelihood(z: Tensor) -> Tensor:
        k = len(z)
        p = model.decode(z.flatten(0, 1), y.repeat(k))
        return p.log_prob(x.repeat(k, 1, 1, 1)).view(k, -1)

    if isinstance(q, Point):
        raise TypeError("an autoencoder's code is always the same: there are no more draws of it")
    many = DiagonalGaussian(q.mean.expand(samples, -1, -1), q.log_var.expand(samples, -1, -1))
    shape = (samples, sum(shard.sizes), model.z_dim)
    eps = torch.randn(shape, generator=noise, device=noise.device, dtype=q.mean.dtype)
    for z in many.rsample(shard.local(eps, dim=1)).split(at_once) if samples else ():
        log_p = log_likelihood(z) if samples <= at_once else checkpoint(log_likelihood, z, use_reentrant=False)
        yield shard.gather(z, dim=1), shard.gather(log_p, dim=1)


def gather_terms(terms: Terms, shard: Share) -> Terms:
    """Return the terms of the full batch, from all processes, so that an objective is the same function everywhere."""
    if len(shard.sizes) == 1 or terms.q is None or terms.z is None:
        return terms
    parts = [terms.reconstruction[:, None], terms.kl, terms.z, *vars(terms.q).values()]
    reconstruction, kl, z, *q = shard.gather(torch.cat(parts, 1)).split([part.shape[1] for part in parts], 1)
    return Terms(reconstruction[:, 0], kl, type(terms.q)(*q), z, terms.draw_more)


def compute_loss(
    model: VAE,
    objective: Callable[[Terms, Progress], tuple[Tensor, Logged]],
    noise: torch.Generator,
    now: Progress,
    x: Tensor,
    y: Tensor,
    eps: Tensor,
) -> tuple[Tensor, Logged]:
    """Return the loss at one draw z ~ q(z|x, y) per image, from noise eps [B, Z], and what of it is logged.

    Images x are [B, C, H, W] in [0, 1], labels y [B]. Further draws are taken from `noise`. Each process computes its
    shard, and the loss is that of all of them.
    """
    shard = distributed.share(len(x))
    x, y, eps = (shard.local(part) for part in (x, y, eps))
    q = model.encode(x, y)
    z = q.rsample(eps)
    p = model.decode(z, y)
    terms = gather_terms(elbo_terms(x, q, p, z, partial(extra_samples, model, x, y, q, shard, noise)), shard)
    loss, logged = objective(terms, now)
    with torch.no_grad():  # what is logged has no gradient
        means = {"loss": loss, "reconstruction": terms.reconstruction.mean(), "kl": terms.kl.sum(1).mean(), **logged}
    return loss, {name: mean.detach() if isinstance(mean, Tensor) else mean for name, mean in means.items()}
