"""Measure a model on a split: bounds, KL by latent, active units, factor scores."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from vae_exp import distributed
from vae_exp.config.schema import Config
from vae_exp.datasets.factors import Factors
from vae_exp.datasets.splits import Split, batches
from vae_exp.distributed import Share
from vae_exp.distributions import (
    DiagonalGaussian,
    FullGaussian,
    Posterior,
    concatenate,
    draw,
    log_prior,
    map_parameters,
    total,
)
from vae_exp.errors import UserError, printable
from vae_exp.priors import ByLabel
from vae_exp.scores.mig import BINS, above_chance
from vae_exp.scores.repeats import spread, usual_size
from vae_exp.training.precision import full_precision
from vae_exp.vae import VAE

log = logging.getLogger(__name__)
EVAL_BATCH_SIZE = 500  # for speed and memory alone: what is computed of 1,000 MNIST images leaves the cache
ACTIVE = 0.01  # a unit is active where its posterior mean varies more than this over the data (Burda et al. 2016)
MIXTURE = 10_000  # images whose posteriors make up q(z): comparing all pairs costs its square
MARGIN = 0.1  # nats that a mean may tell more than its latent carries
FAR = 4  # standard deviations of what chance finds, where that is more: of all latents and factors one lies far out
NAMED = 3  # latents, in a warning


@dataclass
class Evaluation:
    """Both sides of the negative ELBO for each image of a split, in nats, on the CPU and in float64, as sums need."""

    q: Posterior  # of all images, [N, Z], still on the device
    reconstruction_draws: Tensor  # [R, N]: -log p(x|z) at R draws of z ~ q(z|x)
    kl_terms: Tensor | None  # [N, Z], where the prior and the posterior factorise
    kl_draws: Tensor | None = None  # [R, N] without kl_terms: log q(z|x) - log p(z), or [1, N] of the closed form

    @cached_property
    def per_image(self) -> dict[str, Tensor]:
        """Return neg_elbo, reconstruction and KL of each image, means over the draws, [N]."""
        reconstruction = self.reconstruction_draws.mean(0)
        if self.kl_terms is not None:
            kl = self.kl_terms.sum(1).clamp(min=0)  # rounding
        else:
            assert self.kl_draws is not None, "there is one of the two"
            kl = self.kl_draws.mean(0)
        return {"neg_elbo": reconstruction + kl, "reconstruction": reconstruction, "kl": kl}

    @property
    def kl_per_dim(self) -> list[float]:
        """Return the KL of each latent, [Z], if it divides; in float32 a collapsed one's may be slightly negative."""
        return [] if self.kl_terms is None else self.kl_terms.mean(0).clamp(min=0).tolist()

    @property
    def active_units(self) -> int:
        return int((self.q.mean.cpu().double().var(0, correction=0) > ACTIVE).sum())

    def scalars(self, prefix: str) -> dict[str, float]:
        means = {f"{prefix}/{name}": values.mean().item() for name, values in self.per_image.items()}
        return means | {f"{prefix}/active_units": self.active_units}

    def noise_error(self, name: str) -> float | None:
        """Return the standard error that the draws of z leave in a mean over images; None for one, or none."""
        kl = torch.zeros(1, 1) if self.kl_draws is None else self.kl_draws
        draws = {"reconstruction": self.reconstruction_draws, "kl": kl, "neg_elbo": self.reconstruction_draws + kl}
        return standard_error(draws[name].mean(1))


def standard_error(per_image: Tensor) -> float | None:
    """Return the standard error of a mean over images: how far off another test set would be. None for one image."""
    return None if len(per_image) == 1 else per_image.std().item() / math.sqrt(len(per_image))


@torch.no_grad()
@full_precision()
def evaluate(
    model: VAE,
    split: Split,
    noise: torch.Generator | Tensor,
    repeats: int = 1,
    batch_size: int = EVAL_BATCH_SIZE,
    shared: bool = False,
) -> Evaluation:
    """Return the negative ELBO and its two terms with z sampled from q, as in training; the KL's weight is 1.

    The noise is drawn here, or given for one draw of each image, [N, Z]. `shared` divides batches between processes.
    """
    if shared:
        batch_size = min(batch_size, math.ceil(len(split) / distributed.world_size()))
    eps = [noise] if isinstance(noise, Tensor) else [sample_eps(split, model.z_dim, noise) for _ in range(repeats)]
    n_batches = math.ceil(len(split) / batch_size)
    shard = distributed.share(n_batches) if shared and n_batches >= distributed.world_size() else Share((n_batches,))
    rows, posteriors, draws, ratios = shard.rows, [], [], []
    with model.evaluating():
        local = batches(split, batch_size, skip=rows.start, stop=rows.stop)
        for (x, y), *noises in zip(local, *(e.split(batch_size)[rows] for e in eps), strict=True):
            q = model.encode(x, y)
            posteriors.append(map_parameters(Tensor.detach, q))  # without what q keeps: of posterior=full all of L
            codes = [draw(q, e) for e in noises]
            draws.append(torch.stack([-model.decode(z, y).log_prob(x) for z, _ in codes]))
            if (kl := model.kl(q, y)) is None:
                ratios.append(torch.stack([-model.log_ratio(q, z, y, log_q) for z, log_q in codes]))
            elif kl.ndim == 1:
                ratios.append(kl[None])
    images = Share(tuple(len(split.y[batch_size * part.start : batch_size * part.stop]) for part in shard.parts))
    q = map_parameters(images.gather, concatenate(posteriors))
    reconstruction = images.gather(torch.cat(draws, dim=1), dim=1)
    if ratios:
        return Evaluation(q, reconstruction.cpu().double(), None, images.gather(torch.cat(ratios, 1), 1).cpu().double())
    kl = model.kl(q, split.y)
    assert kl is not None, "of each batch it is known"
    return Evaluation(q, reconstruction.cpu().double(), kl.cpu().double())


def sample_eps(split: Split, z_dim: int, noise: torch.Generator) -> Tensor:
    return torch.randn(len(split), z_dim, generator=noise, device=noise.device).to(split.y.device)


@torch.no_grad()
def posterior(model: VAE, split: Split, batch_size: int = EVAL_BATCH_SIZE) -> Posterior:
    """Return q(z|x, y) of every image of a split, [N, Z]."""
    return concatenate([model.encode(x, y) for x, y in batches(split, batch_size)])


@torch.no_grad()
@full_precision()
def importance_bound(
    model: VAE,
    split: Split,
    importance_samples: int,
    noise: torch.Generator,
    batch_size: int = EVAL_BATCH_SIZE,
    after_sample: Callable[[], object] = lambda: None,
) -> Tensor:
    """Return the importance-weighted lower bound on log p(x) of each image, [N] nats (Burda et al. 2016).

    It is log 1/K sum_k p(x, z_k) / q(z_k|x) with z_k ~ q(z|x), which rises to log p(x) as K grows. The K samples are
    taken one after the other; after_sample is called after each. Raises UserError for a deterministic autoencoder.
    """
    if not model.stochastic:
        raise UserError("an autoencoder (model.stochastic=false) gives images no likelihood, so no bound on it.")
    log_sum = torch.full((len(split),), -math.inf, dtype=torch.float64)
    with model.evaluating():
        posteriors = [model.encode(x, y) for x, y in batches(split, batch_size)]
        for _ in range(importance_samples):
            log_weight, eps = [], sample_eps(split, model.z_dim, noise).split(batch_size)
            for (x, y), q, e in zip(batches(split, batch_size), posteriors, eps, strict=True):
                z, log_q = draw(map_parameters(Tensor.detach, q), e)
                log_weight.append(model.decode(z, y).log_prob(x) + model.log_ratio(q, z, y, log_q))
            log_sum = torch.logaddexp(log_sum, torch.cat(log_weight).cpu().double())
            after_sample()
    return log_sum - math.log(importance_samples)


def factor_scores(
    evaluation: Evaluation, split: Split, config: Config, prefix: str, warn: bool = False
) -> dict[str, float]:
    """Return the scores of disentanglement that a run logs, such as val/mig, from one repeat; without NaN.

    With warn a caution about them is logged, if there is one.
    """
    if split.factors is None or not config["scores"]:
        return {}
    factors = split.unknown_factors(config["model"]["conditional"])
    scores = spread(evaluation.q.mean, factors.table, config["scores"], usual_size(len(split), repeats=1), repeats=1)
    if warn and (warning := scores_warning(evaluation, factors)):
        log.warning(f"scores: {warning}")
    return {f"{prefix}/{name}": score.mean for name, score in scores.items() if not math.isnan(score.mean)}


def max_information(evaluation: Evaluation) -> np.ndarray:
    """Return the most that each latent can tell about anything: its KL, as I(x; z_i) is at most that, [Z], nats."""
    kl = np.array(evaluation.kl_per_dim)
    is_known = len(kl) and isinstance(evaluation.q, DiagonalGaussian)  # else codes have no noise, or no KL of each
    return kl if is_known else np.full(evaluation.q.mean.shape[1], np.inf)


def scores_warning(evaluation: Evaluation, factors: Factors, known: np.ndarray | None = None) -> str | None:
    """Return a warning if the means of q(z|x), which the scores read, tell more than z with its noise does."""
    known = above_chance(evaluation.q.mean, factors.table) if known is None else known
    bound, most, names = max_information(evaluation), known.max(1), factors.names
    n_values = np.array([len(column.unique()) for column in factors.table.T])
    # 2 N times the estimate of nothing is chi-squared: of few images and many values chance finds much.
    chance = np.sqrt((BINS - 1) * (n_values - 1) / 2) / len(factors)
    surplus = (known - np.maximum(FAR * chance, MARGIN)).max(1)
    worst_first = np.argsort(bound - most, kind="stable")
    beyond = [int(latent) for latent in worst_first if surplus[latent] > bound[latent]]
    inactive = not evaluation.active_units and bool(np.isfinite(bound).all())
    if not beyond and not inactive:
        return None
    text = "the means of q(z|x), which they read, "
    if beyond:
        best = {i: printable(names[known[i].argmax()]) for i in beyond[:NAMED]}
        listed = "; ".join(f"z{i} {most[i]:.2f} about {name}, KL {bound[i]:.2f}" for i, name in best.items())
        text += f"tell more than z with its noise carries: {listed} nats ({len(beyond)} of {len(bound)} latents)"
    else:
        text += "hardly vary"
    return text + (f"; no latent is active, KL {sum(bound):.3f} nats in all" if inactive else "")


def has_information(model: VAE, q: Posterior) -> bool:
    """Return whether I(x; z) and KL(q(z) || p(z)) are defined: q has a density, and one prior is that of all images."""
    return isinstance(q, DiagonalGaussian | FullGaussian) and not isinstance(model.prior, ByLabel)


@torch.no_grad()
def information(
    evaluation: Evaluation,
    part: torch.Generator,
    noise: torch.Generator,
    log_p: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> dict[str, float | None]:
    """Divide the KL into I(x; z) and KL(q(z) || p(z)), for at most MIXTURE random images; return these in nats.

    log_p gives the log density of the prior of codes z for these rows, if it is not N(0, I).

    q(z) is the mixture of the posteriors of the part, and I(x; z) = E log q(z|x) / q(z) at one z for each image
    (Hoffman & Johnson 2016), which is at most the log of their number: at that value the estimate is a lower bound.
    Errors are standard errors, over images and draws. Raises UserError for q without a Gaussian density.
    """
    q = evaluation.q
    if not isinstance(q, DiagonalGaussian | FullGaussian):
        raise UserError(f"I(x; z) needs a Gaussian q(z|x) (model.stochastic=true), not {type(q).__name__}.")
    rows = torch.randperm(len(q.mean), generator=part)[:MIXTURE].sort().values
    kl = evaluation.per_image["kl"][rows]
    device = "cpu" if q.mean.device.type == "mps" else q.mean.device  # Apple's has no float64
    rows = rows.to(q.mean.device)
    q = map_parameters(lambda values: values[rows].to(device), q)
    z = q.rsample(noise).double()
    q = map_parameters(Tensor.double, q)
    gained = _log_ratio_to_mixture(q, z).cpu()
    chunks = zip(z.split(EVAL_BATCH_SIZE), rows.split(EVAL_BATCH_SIZE), strict=True)
    log_p_z = log_prior(z) if log_p is None else torch.cat([log_p(*chunk) for chunk in chunks])
    known = (total(q.log_prob(z), z) - total(log_p_z, z)).cpu() - kl  # a control variate, of mean 0 over draws
    centred = known - known.mean()  # the slope of least squares leaves the least noise
    slope = (centred * gained).mean() / centred.square().mean().clamp(min=torch.finfo(torch.double).tiny)
    gained = gained - slope * known
    mean_kl, at_most = kl.mean().item(), math.log(len(kl))
    mutual = max(0.0, min(gained.mean().item(), at_most, mean_kl))
    return {
        "mutual_information": mutual,
        "mutual_information_error": standard_error(gained),
        "mutual_information_at_most": at_most,
        "mutual_information_images": len(kl),
        "mutual_information_kl": mean_kl,
        "kl_aggregate": mean_kl - mutual,
        "kl_aggregate_error": standard_error(kl - gained),
    }


def _log_ratio_to_mixture(q: DiagonalGaussian | FullGaussian, z: Tensor) -> Tensor:
    """Return log q(z_i|x_i) / q(z_i) of codes z [N, Z] under the mixture q(z) of all N posteriors, [N] float64 nats."""
    n = len(z)
    at_once = 500 if isinstance(q, DiagonalGaussian) else 1 + 5 * 10**7 // z.numel()
    gained = []
    for rows in torch.arange(n, device=z.device).split(at_once):
        pairs = q.log_prob_pairs(z[rows])
        log_q = pairs[torch.arange(len(rows), device=z.device), rows]  # of the image's own posterior
        gained.append(log_q - torch.logsumexp(pairs, dim=1) + math.log(n))
    return torch.cat(gained)
