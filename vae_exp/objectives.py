"""Objectives: pure functions of a batch's terms and of the progress of training.

Each returns the loss to minimise and what it wants logged under train/, as numbers or as scalars on the device.
Nothing remembers anything: a resumed run continues every schedule from its step number alone.
"""

import math

import torch
from torch import Tensor

from vae_exp.distributions import DiagonalGaussian, FullGaussian, log_prior, total
from vae_exp.errors import UserError
from vae_exp.terms import Logged, Progress, Terms

RISING = 0.5  # the part of each cycle in which the KL weight rises (Fu et al. 2019)


def elbo(
    terms: Terms,
    now: Progress,
    *,
    beta: float,
    warmup: str = "linear",
    warmup_epochs: float = 0,
    warmup_steps: int = 0,
    warmup_fraction: float = 0,
    cycles: int = 4,
) -> tuple[Tensor, Logged]:
    """Return reconstruction + kl_weight * KL, a mean over images: the negative ELBO if kl_weight is 1.

    With another beta it is beta-VAE's objective (Higgins et al. 2017). The weight rises from 0 to beta over the
    warm-up (Bowman et al. 2016; Sønderby et al. 2016), several times if it is cyclical (Fu et al. 2019).
    """
    kl_weight = beta * _ramp(_fraction_of_span(now, warmup_epochs, warmup_steps, warmup_fraction), warmup, cycles)
    return (terms.reconstruction + kl_weight * terms.kl_total).mean(), {"kl_weight": kl_weight}


def free_bits(terms: Terms, now: Progress, *, beta: float, free_nats: float) -> tuple[Tensor, Logged]:
    """Return the negative ELBO, each latent's mean KL at least free_nats (Kingma et al. 2016, appendix C.8)."""
    if terms.kl is None:
        raise UserError("objective=free_bits: it counts the KL of each latent, and this prior or posterior gives none.")
    kl = terms.kl.mean(0).clamp(min=free_nats).sum()
    return terms.reconstruction.mean() + beta * kl, {"kl_weight": beta}


def capacity(
    terms: Terms,
    now: Progress,
    *,
    gamma: float,
    capacity_nats: float,
    warmup_epochs: float = 0,
    warmup_steps: int = 0,
    warmup_fraction: float = 0,
) -> tuple[Tensor, Logged]:
    """Return reconstruction + gamma * |KL - C|; C rises linearly from 0 to capacity_nats (Burgess et al. 2018)."""
    target = capacity_nats * _fraction_of_span(now, warmup_epochs, warmup_steps, warmup_fraction)
    kl = terms.kl_total.mean()
    return terms.reconstruction.mean() + gamma * (kl - target).abs(), {"capacity": target}


def iwae(terms: Terms, now: Progress, *, beta: float, samples: int, samples_at_once: int) -> tuple[Tensor, Logged]:
    """Return minus the importance-weighted bound, log 1/K sum_k p(x, z_k) / q(z_k|x) (Burda et al. 2016).

    beta weighs log p(z) / q(z|x) in it; with 1 it is the bound.
    """
    assert terms.draws is not None, "compute_loss gives it"
    log_likelihood, log_ratio = terms.draws(samples, samples_at_once)
    log_weight = log_likelihood + beta * log_ratio
    return -(log_weight.logsumexp(0) - math.log(samples)).mean(), {"kl_weight": beta}


def beta_tc(
    terms: Terms, now: Progress, *, alpha: float, beta: float, gamma: float, sampling: str
) -> tuple[Tensor, Logged]:
    """Return reconstruction + alpha * mutual information + beta * total correlation + gamma * dimension-wise KL.

    The last three sum to the KL (Chen et al. 2018, eq. 2 and 4). Its closed form is used for that sum, and the
    sampled terms only for what their weights add to 1: with all three 1 this is the negative ELBO.
    """
    q, z = _gaussian(terms, "beta_tc")
    parts = decompose(q, z, now.train_size, sampling)
    extra = sum((weight - 1) * part for weight, part in zip((alpha, beta, gamma), parts.values(), strict=True))
    return (terms.neg_elbo + extra).mean(), {name: part.detach().mean() for name, part in parts.items()}


def dip_vae(
    terms: Terms, now: Progress, *, beta: float, variant: str, off_diagonal: float, diagonal: float
) -> tuple[Tensor, Logged]:
    """Return the negative ELBO, the KL weighted by beta, plus a penalty on a covariance of the codes far from I.

    The penalty is off_diagonal * sum_i!=j C_ij^2 + diagonal * sum_i (C_ii - 1)^2 (Kumar et al. 2018, eq. 6 and 7).
    C, [Z, Z], is that of q's means over the batch (I), or of q(z), which adds q's mean variance to it (II).
    """
    q, _ = _gaussian(terms, "dip_vae")
    centred = q.mean - q.mean.mean(0)
    covariance = centred.T @ centred / len(centred)
    if variant == "II":
        covariance = covariance + q.mean_covariance()
    away = (covariance - torch.eye(len(covariance), device=covariance.device)).square()
    on = away.diagonal().sum()
    penalty = off_diagonal * (away.sum() - on) + diagonal * on
    loss = terms.reconstruction.mean() + beta * terms.kl_total.mean() + penalty
    return loss, {"kl_weight": beta, "covariance_penalty": penalty.detach()}


def _gaussian(terms: Terms, objective: str) -> tuple[DiagonalGaussian | FullGaussian, Tensor]:
    """Return q(z|x) and z ~ q. Raises UserError for a posterior that is no Gaussian."""
    if not isinstance(terms.q, DiagonalGaussian | FullGaussian) or terms.z is None:
        raise UserError(f"objective={objective}: it needs a Gaussian q(z|x), not {type(terms.q).__name__}.")
    return terms.q, terms.z


def decompose(q: DiagonalGaussian | FullGaussian, z: Tensor, train_size: int, sampling: str) -> dict[str, Tensor]:
    """Return log q(z|x) / p(z) at z ~ q(z|x) as three terms, [B] nats each (Chen et al. 2018, eq. 2).

    I(x; z), KL(q(z) || prod_j q(z_j)) and sum_j KL(q(z_j) || p(z_j)), with q(z) estimated from the batch. Few images of
    a batch lie near z, so log q(z) is estimated too low and I(x; z) too high: 10.9 nats where it is 9.0.
    """
    each = q.marginals
    pairs = DiagonalGaussian(each.mean[None], each.log_var[None]).log_prob(z[:, None])  # [B, B, Z]: log q(z_i|x_j)
    log_share = log_shares(len(z), train_size, sampling, z.device)
    log_q_given_x = total(q.log_prob(z), z)
    joint = pairs.sum(2) if each is q else q.log_prob_pairs(z)
    log_q = (joint + log_share).logsumexp(1)
    log_q_per_dim = (pairs + log_share[:, :, None]).logsumexp(1).sum(1)
    return {
        "mutual_information": log_q_given_x - log_q,
        "total_correlation": log_q - log_q_per_dim,
        "dimension_wise_kl": log_q_per_dim - log_prior(z).sum(1),
    }


def log_shares(n: int, train_size: int, sampling: str, device: torch.device | str = "cpu") -> Tensor:
    """Return the log weight of q(.|x_j) in the estimate of q(z_i) from a batch of n images, [n, n].

    stratified: x_i itself is one of the train_size images, and the others of the batch represent all the others, which
    is unbiased. (Chen et al., appendix C, give one of the others another weight, with the same expectation.) weighted:
    1 / (n * train_size) each, their biased eq. 5; the three terms are off by constants, but still sum to the KL.
    """
    if sampling == "weighted":
        return torch.full((n, n), -math.log(n * train_size), device=device)
    others = (train_size - 1) / (train_size * max(n - 1, 1))
    return torch.full((n, n), others, device=device).fill_diagonal_(1 / train_size).log()


def _fraction_of_span(now: Progress, epochs: float, steps: int, fraction: float) -> float:
    """Return the part of a span that is over, 0 to 1; one of the three gives its length, and 0 is over at once."""
    length = steps or (epochs or fraction * now.epochs) * now.steps_per_epoch
    return min(1.0, now.step / length) if length else 1.0


def _ramp(part: float, shape: str, cycles: int) -> float:
    """Return how far a weight has risen, 0 to 1, when this part of its warm-up is over."""
    if part >= 1:
        return 1.0
    if shape == "cosine":
        return 0.5 * (1 - math.cos(math.pi * part))
    if shape == "cyclical":
        return min(1.0, part * cycles % 1 / RISING)
    return part
