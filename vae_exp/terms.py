"""The terms of a batch, which objectives are functions of. Nothing is reduced over images except what is logged."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from vae_exp import distributed
from vae_exp.distributed import Share
from vae_exp.distributions import Point, Posterior, draw, parameters
from vae_exp.vae import VAE

Logged = dict[str, float | Tensor]
# (samples, at once): log p(x|z) and log p(z) - log q(z|x) of so many draws, [samples, B] each
Draws = Callable[[int, int], tuple[Tensor, Tensor]]


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
    kl: Tensor | None  # [B, Z]: KL(q(z|x) || p(z)) of each latent dimension, where both factorise
    q: Posterior | None = None
    z: Tensor | None = None  # [B, Z]: the draw of the reconstruction
    draws: Draws | None = None  # importance_samples of the same images
    kl_joint: Tensor | None = None  # [B], without kl: in closed form, or else log q(z|x) - log p(z) at z

    @property
    def kl_total(self) -> Tensor:
        """Return KL(q(z|x) || p(z)), or an estimate of it from one draw, [B]."""
        if self.kl is not None:
            return self.kl.sum(1)
        assert self.kl_joint is not None, "there is one of the two"
        return self.kl_joint

    @property
    def neg_elbo(self) -> Tensor:
        """Return reconstruction + KL with weight 1, whatever is optimised, [B]."""
        return self.reconstruction + self.kl_total


def elbo_terms(model: VAE, x: Tensor, y: Tensor, eps: Tensor, shard: Share, noise: torch.Generator) -> Terms:
    """Return the terms at one draw z ~ q(z|x, y) per image, from noise eps [B, Z]; further draws are from `noise`.

    The KL is in closed form where there is one (Kingma & Welling 2014, eq. 10), else it is at that draw. x, y and eps
    are this process's shard of the batch, and so are the terms.
    """
    q = model.encode(x, y)
    z, log_q = draw(q, eps)
    reconstruction = -model.decode(z, y).log_prob(x)
    kl = model.kl(q, y)
    joint = -model.log_ratio(q, z, y, log_q) if kl is None else kl if kl.ndim == 1 else None
    first = -reconstruction, z, log_q
    draws = partial(importance_samples, model, x, y, q, first, shard, noise)
    return Terms(reconstruction, kl if joint is None else None, q, z, draws, joint)


def importance_samples(
    model: VAE,
    x: Tensor,
    y: Tensor,
    q: Posterior,
    first: tuple[Tensor, Tensor, Tensor | None],
    shard: Share,
    noise: torch.Generator,
    samples: int,
    at_once: int,
) -> tuple[Tensor, Tensor]:
    """Return log p(x|z, y) and log p(z) - log q(z|x, y) of draws z ~ q(z|x, y), [samples, B] nats.

    The first draw is given, as log p(x|z, y), z and log q where q knows it. At most at_once of the others are decoded
    together, and the backward pass decodes them again, so memory does not grow with samples; no number depends on it.
    x, y and q are this process's shard of the batch, the result is of the full batch.
    """

    def log_likelihood(z: Tensor) -> Tensor:
        k = len(z)
        p = model.decode(z.flatten(0, 1), y.repeat(k))
        return p.log_prob(x.repeat(k, 1, 1, 1)).view(k, -1)

    if isinstance(q, Point):
        raise TypeError("an autoencoder's code is always the same: there are no more draws of it")
    log_p, z, log_q = [first[0][None]], first[1][None], first[2] if first[2] is None else first[2][None]
    if more := samples - 1:
        shape = more, sum(shard.sizes), model.z_dim
        eps = torch.randn(shape, generator=noise, device=noise.device, dtype=z.dtype)
        others, their_log_q = draw(q, shard.local(eps, dim=1))
        for part in others.split(at_once):
            is_all = more <= at_once
            log_p.append(log_likelihood(part) if is_all else checkpoint(log_likelihood, part, use_reentrant=False))
        z = torch.cat([z, others])
        log_q = log_q if log_q is None or their_log_q is None else torch.cat([log_q, their_log_q])
    log_ratio = model.log_ratio(q, z, y, log_q)
    return shard.gather(torch.cat(log_p), dim=1), shard.gather(log_ratio, dim=1)


def gather_terms(terms: Terms, shard: Share) -> Terms:
    """Return the terms of the full batch, from all processes, so that an objective is the same function everywhere."""
    if len(shard.sizes) == 1 or terms.q is None or terms.z is None:
        return terms
    local = terms._asdict() | {f"q.{name}": value for name, value in parameters(terms.q).items()}
    local = {name: value for name, value in local.items() if isinstance(value, Tensor)}
    sizes = [value.shape[1:].numel() for value in local.values()]  # a process may have no image
    flat = torch.cat([value.reshape(len(value), size) for value, size in zip(local.values(), sizes, strict=True)], 1)
    parts = zip(local.items(), shard.gather(flat).split(sizes, 1), strict=True)
    full = {name: part.reshape(len(part), *value.shape[1:]) for (name, value), part in parts}
    q = {name.removeprefix("q."): full.pop(name) for name in local if name.startswith("q.")}
    return terms._replace(**full, q=replace(cast("Any", terms.q), **q))


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
    terms = gather_terms(elbo_terms(model, x, y, eps, shard, noise), shard)
    loss, logged = objective(terms, now)
    with torch.no_grad():  # what is logged has no gradient
        means = {"loss": loss, "reconstruction": terms.reconstruction.mean(), "kl": terms.kl_total.mean(), **logged}
    return loss, {name: mean.detach() if isinstance(mean, Tensor) else mean for name, mean in means.items()}
