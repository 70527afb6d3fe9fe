"""Measure a model on a split: bounds, KL by latent, active units, factor scores."""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from vae_exp import distributed
from vae_exp.datasets.factors import Factors
from vae_exp.datasets.splits import Split, batches
from vae_exp.distributed import Share
from vae_exp.distributions import LOG_2PI, DiagonalGaussian, Point, log_prior
from vae_exp.errors import UserError, printable
from vae_exp.scores.mutual_information import BINS, above_chance
from vae_exp.scores.repeats import Spread, spread, usual_size
from vae_exp.training.precision import full_precision
from vae_exp.vae import VAE

EVAL_BATCH_SIZE = 500  # for speed and memory alone: what is computed of 1,000 MNIST images leaves the cache
ACTIVE = 0.01  # a unit is active where its posterior mean varies more than this over the data (Burda et al. 2016)
MIXTURE = 10_000  # images whose posteriors make up q(z): comparing all pairs costs its square
BEYOND = 0.1  # nats that a mean may tell more than its latent carries
FAR = 4  # standard deviations of what chance finds, where that is more: of all latents and factors one lies far out
NAMED = 3  # latents, in a warning


@dataclass
class Evaluation:
    """The two sides of the negative ELBO for each image of a split, in nats, on the CPU and in float64.

    A sum of 10,000 float32 loses digits that people compare.
    """

    q: DiagonalGaussian | Point  # of all images, [N, Z], still on the device
    reconstruction_draws: Tensor  # [R, N]: -log p(x|z) at R draws of z ~ q(z|x)
    kl_terms: Tensor  # [N, Z]

    @cached_property
    def per_image(self) -> dict[str, Tensor]:
        """Return neg_elbo, reconstruction and KL of each image, means over the draws, [N]."""
        reconstruction, kl = self.reconstruction_draws.mean(0), self.kl_terms.sum(1).clamp(min=0)  # rounding
        return {"neg_elbo": reconstruction + kl, "reconstruction": reconstruction, "kl": kl}

    @property
    def neg_elbo(self) -> float:
        return self.per_image["neg_elbo"].mean().item()

    @property
    def kl_per_dim(self) -> list[float]:
        """Return the KL of each latent, [Z]; in float32 that of a collapsed one may be slightly negative."""
        return self.kl_terms.mean(0).clamp(min=0).tolist()

    @property
    def active_units(self) -> int:
        """Return how many latents have a posterior mean that varies over the images (Burda et al. 2016)."""
        return int((self.q.mean.cpu().double().var(0, correction=0) > ACTIVE).sum())

    def scalars(self, prefix: str) -> dict[str, float]:
        means = {f"{prefix}/{name}": values.mean().item() for name, values in self.per_image.items()}
        return means | {f"{prefix}/active_units": self.active_units}

    def noise_error(self) -> float | None:
        """Return the standard error that the draws of z leave in the mean over images; None for one draw."""
        draws = self.reconstruction_draws.mean(1)
        return None if len(draws) == 1 else draws.std().item() / math.sqrt(len(draws))


def standard_error(per_image: Tensor) -> float | None:
    """Return the standard error of the mean over images: how far off another test set of this size would be.

    It is None for one image.
    """
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

    The noise is drawn here, or given for one draw of each image, [N, Z]. If `shared`, each process of the run
    computes some of the batches, and all of them get every number.
    """
    batch_size = min(batch_size, math.ceil(len(split) / distributed.world_size())) if shared else batch_size
    drawn = [noise] if isinstance(noise, Tensor) else [sample_eps(split, model.z_dim, noise) for _ in range(repeats)]
    eps = [each.split(batch_size) for each in drawn]
    n_batches = len(eps[0])
    share = distributed.share(n_batches) if shared and n_batches >= distributed.world_size() else Share((n_batches,))
    rows, parts, draws = share.rows, [], []
    with model.evaluating():
        mine = batches(split, batch_size, skip=rows.start, stop=rows.stop)
        for (x, y), *noises in zip(mine, *(each[rows] for each in eps), strict=True):
            q = model.encode(x, y)
            parts.append(q)
            draws.append(torch.stack([-model.decode(q.rsample(e), y).log_prob(x) for e in noises]))
    q, reconstruction = _joined(parts), torch.cat(draws, dim=1)
    if len(share.sizes) > 1:
        images = Share(tuple(len(split.y[batch_size * part.start : batch_size * part.stop]) for part in share.parts))
        q = type(q)(**{name: images.gather(values) for name, values in vars(q).items()})
        reconstruction = images.gather(reconstruction, dim=1)
    return Evaluation(q, reconstruction.cpu().double(), q.kl_to_prior().cpu().double())


def sample_eps(split: Split, z_dim: int, noise: torch.Generator) -> Tensor:
    """Draw the noise for one z per image, [N, Z] on the split's device."""
    return torch.randn(len(split), z_dim, generator=noise, device=noise.device).to(split.y.device)


@torch.no_grad()
def posterior(model: VAE, split: Split, batch_size: int = EVAL_BATCH_SIZE) -> DiagonalGaussian | Point:
    """Return q(z|x, y) of every image of a split, [N, Z]."""
    return _joined([model.encode(x, y) for x, y in batches(split, batch_size)])


def _joined(parts: list[DiagonalGaussian | Point]) -> DiagonalGaussian | Point:
    """Return one posterior over all the images of the parts."""
    of_all = {name: torch.cat([getattr(q, name) for q in parts]) for name in vars(parts[0])}
    return type(parts[0])(**of_all)


def log_likelihood(model: VAE, split: Split, z: Tensor, batch_size: int) -> Tensor:
    """Return log p(x|z, y) of every image of a split at its own code, z [N, Z]; [N] nats."""
    pairs = zip(batches(split, batch_size), z.split(batch_size), strict=True)
    return torch.cat([model.decode(codes, y).log_prob(x) for (x, y), codes in pairs])


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
    """Return the importance-weighted bound on log p(x) of each image, [N] nats (Burda et al. 2016).

    It is log 1/K sum_k p(x, z_k) / q(z_k|x) with z_k ~ q(z|x), a lower bound.

    It rises to log p(x) as K grows; with K = 1 its mean is minus the neg_elbo. The K samples are taken one after
    the other, so memory does not grow with K; after_sample is called after each of them. Raises UserError for a
    deterministic autoencoder.
    """
    if not model.stochastic:
        raise UserError(
            "an autoencoder (model.stochastic=false) gives images no likelihood, so there is no bound on it."
        )
    log_sum = torch.full((len(split),), -math.inf, dtype=torch.float64)
    with model.evaluating():
        q = posterior(model, split, batch_size)
        assert isinstance(q, DiagonalGaussian), "of a model that is stochastic"
        for _ in range(importance_samples):
            z = q.rsample(noise)
            log_weight = log_likelihood(model, split, z, batch_size) + (log_prior(z) - q.log_prob(z)).sum(1)
            log_sum = torch.logaddexp(log_sum, log_weight.cpu().double())
            after_sample()
    return log_sum - math.log(importance_samples)


def disentanglement(
    q: DiagonalGaussian | Point,
    factors: Factors,
    names: Collection[str],
    rows: int,
    repeats: int = 1,
    seed: int = 0,
) -> dict[str, Spread]:
    """Return disentanglement scores of the means of q(z|x) by the factors that vary, each with its spread.

    The spread is over random parts of `rows` images. Raises UserError if the images are too few for their factors'
    values.
    """
    return spread(q.mean.cpu().numpy(), factors.table.cpu().numpy(), names, rows, repeats, seed)


def factor_scores(
    measured: Evaluation, split: Split, names: Collection[str], prefix: str, conditional: bool = False
) -> dict[str, float]:
    """Return the disentanglement scores that a run logs, such as val/mig: from one repeat, so without their spread.

    A score that is not a number here, such as InfoC of one active latent, is left out.
    """
    if split.factors is None or not names:
        return {}
    factors = split.unknown_factors(conditional)
    found = disentanglement(measured.q, factors, names, usual_size(len(split), repeats=1))
    return {f"{prefix}/{name}": score.mean for name, score in found.items() if not math.isnan(score.mean)}


def told_by_means(measured: Evaluation, factors: Factors, seed: int = 0) -> np.ndarray:
    """Return what the mean of each latent tells about each factor, above chance: [Z, F], nats."""
    return above_chance(measured.q.mean.cpu(), factors.table.cpu(), seed=seed)


def carried(measured: Evaluation) -> np.ndarray:
    """Return the most that each latent can tell about anything: its KL, as I(x; z_i) is at most that, [Z], nats.

    The codes of a deterministic autoencoder have no noise, so nothing bounds what they tell.
    """
    kl = np.array(measured.kl_per_dim)
    return kl if isinstance(measured.q, DiagonalGaussian) else np.full_like(kl, np.inf)


def scores_warning(measured: Evaluation, told: np.ndarray, factors: Factors) -> str | None:
    """Return a warning if the means of q(z|x), which the scores read, tell more than z with its noise does.

    `told` is what `told_by_means` returns for these factors, [Z, F]. None if the latents carry what they seem to tell.
    """
    bound, most, names = carried(measured), told.max(1), factors.names
    n_values = np.array([len(column.unique()) for column in factors.table.T])
    # 2 N times the estimate of nothing is chi-squared: of few images and many values chance finds much.
    chance = np.sqrt((BINS - 1) * (n_values - 1) / 2) / len(factors)
    found = (told - np.maximum(FAR * chance, BEYOND)).max(1)
    worst_first = np.argsort(bound - most, kind="stable")
    beyond = [int(latent) for latent in worst_first if found[latent] > bound[latent]]
    inactive = not measured.active_units and bool(np.isfinite(bound).all())
    if not beyond and not inactive:
        return None
    said = "the means of q(z|x), which they read, "
    if beyond:
        best = {i: printable(names[told[i].argmax()]) for i in beyond[:NAMED]}
        listed = (f"z{i} {most[i]:.2f} about {name}, KL {bound[i]:.2f}" for i, name in best.items())
        said += (
            f"tell more than z with its noise carries: {'; '.join(listed)} nats ({len(beyond)} of {len(bound)} latents)"
        )
    else:
        said += "hardly vary"
    return said + (f"; no latent is active, KL {sum(bound):.3f} nats in all" if inactive else "")


@dataclass
class Information:
    """The two parts of the KL of a sample of the images, nats per image: kl = mutual + aggregate."""

    images: int  # of the part
    kl: float
    mutual: float  # I(x; z) under q, from 0 to log of the images
    mutual_error: float | None  # standard errors, over images and draws
    aggregate: float  # KL(q(z) || p(z)), 0 or more
    aggregate_error: float | None


@torch.no_grad()
def information(measured: Evaluation, part: torch.Generator, noise: torch.Generator) -> Information:
    """Divide the KL into I(x; z) and KL(q(z) || p(z)), for at most MIXTURE random images, the same for both.

    q(z) is the mixture of the posteriors of the part, and I(x; z) = E log q(z|x) / q(z) at one z for each image
    (Hoffman & Johnson 2016). Its own posterior is part of the mixture, so no image can give more than the log of their
    number: at that value the estimate is only a lower bound. The mean of log q(z|x) / p(z) is known, as it is the KL:
    as a control variate it removes most of the noise, even where nearly all of the KL is information, or nearly none.
    Raises UserError for a deterministic autoencoder.
    """
    q = measured.q
    if isinstance(q, Point):
        raise UserError("an autoencoder (model.stochastic=false) has codes without a spread: no I(x; z) is defined.")
    rows = torch.randperm(len(q.mean), generator=part)[:MIXTURE].sort().values
    kl = measured.per_image["kl"][rows]
    device = "cpu" if q.mean.device.type == "mps" else q.mean.device  # Apple's has no float64
    rows = rows.to(q.mean.device)
    q = DiagonalGaussian(q.mean[rows].to(device), q.log_var[rows].to(device))
    z = q.rsample(noise).double()
    q = DiagonalGaussian(q.mean.double(), q.log_var.double())
    gained = _log_ratio_to_mixture(q, z).cpu()
    known = (q.log_prob(z) - log_prior(z)).sum(1).cpu() - kl  # of mean 0 over draws
    centred = known - known.mean()  # the slope of least squares leaves the least noise
    slope = (centred * gained).mean() / centred.square().mean().clamp(min=torch.finfo(torch.double).tiny)
    gained = gained - slope * known
    bounded = max(0.0, min(gained.mean().item(), math.log(len(kl)), kl.mean().item()))
    return Information(
        images=len(kl),
        kl=kl.mean().item(),
        mutual=bounded,
        mutual_error=standard_error(gained),
        aggregate=kl.mean().item() - bounded,
        aggregate_error=standard_error(kl - gained),
    )


def _log_ratio_to_mixture(q: DiagonalGaussian, z: Tensor) -> Tensor:
    """Return log q(z_i|x_i) / q(z_i) of codes z [N, Z] under the mixture q(z) of all N posteriors, [N] float64 nats."""
    n, z_dim = q.mean.shape
    precision = torch.exp(-q.log_var)
    # log q(z_i|x_j) for all pairs as matrix products, in float64: their large terms cancel.
    weighted = q.mean * precision
    constant = (q.mean * weighted + q.log_var).sum(1) + z_dim * LOG_2PI
    gained = []
    for rows in torch.arange(n, device=z.device).split(500):
        pairs = -0.5 * (z[rows].square() @ precision.T - 2 * z[rows] @ weighted.T + constant)
        own = pairs[torch.arange(len(rows), device=z.device), rows]
        gained.append(own - torch.logsumexp(pairs, dim=1) + math.log(n))
    return torch.cat(gained)
