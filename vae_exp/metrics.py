"""What a model knows of a split: numbers in nats per image, from terms kept apart per image until the end.

Noise is drawn on the CPU for the whole split at once, so no number depends on the batch size or the device.
"""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from vae_exp import shares, together
from vae_exp.datasets.factors import Factors
from vae_exp.datasets.splits import Split, batches
from vae_exp.distributions import LOG_2PI, DiagonalGaussian, Point, log_prior
from vae_exp.errors import UserError
from vae_exp.run.speed import exact_products
from vae_exp.scores.repeats import Spread, spread, usual_size
from vae_exp.shares import Share
from vae_exp.vae import VAE

EVAL_BATCH_SIZE = 500  # for speed and memory alone: what is computed of 1,000 MNIST images leaves the cache
ACTIVE = 0.01  # a unit is active where its posterior mean varies more than this over the data (Burda et al. 2016)
MIXTURE = 10_000  # images whose posteriors make up q(z): comparing all pairs costs its square


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
        """neg_elbo, reconstruction and KL of each image, means over the draws, [N]."""
        reconstruction, kl = self.reconstruction_draws.mean(0), self.kl_terms.sum(1)
        return {"neg_elbo": reconstruction + kl, "reconstruction": reconstruction, "kl": kl}

    @property
    def neg_elbo(self) -> float:
        return self.per_image["neg_elbo"].mean().item()

    @property
    def kl_per_dim(self) -> list[float]:
        """[Z]."""
        return self.kl_terms.mean(0).tolist()

    @property
    def active_units(self) -> int:
        """How many latents have a posterior mean that varies over the images (Burda et al. 2016)."""
        return int((self.q.mean.cpu().double().var(0, correction=0) > ACTIVE).sum())

    def scalars(self, prefix: str) -> dict[str, float]:
        means = {f"{prefix}/{name}": values.mean().item() for name, values in self.per_image.items()}
        return means | {f"{prefix}/active_units": self.active_units}

    def noise_error(self) -> float | None:
        """The standard error that the draws of z leave in the mean over images; None of one draw."""
        draws = self.reconstruction_draws.mean(1)
        return None if len(draws) == 1 else draws.std().item() / math.sqrt(len(draws))


def standard_error(per_image: Tensor) -> float | None:
    """Of the mean over images: how far another test set of this size would lie away. None of one image."""
    return None if len(per_image) == 1 else per_image.std().item() / math.sqrt(len(per_image))


@torch.no_grad()
@exact_products()
def evaluate(
    model: VAE,
    split: Split,
    noise: torch.Generator | Tensor,
    repeats: int = 1,
    batch_size: int = EVAL_BATCH_SIZE,
    shared: bool = False,
) -> Evaluation:
    """The negative ELBO and its two terms with z sampled from q, as in training; the KL's weight is 1.

    The noise is drawn here, or given for one draw of each image, [N, Z]. Where it is shared, each process of the run
    computes some of the batches, and all of them get every number.
    """
    batch_size = min(batch_size, math.ceil(len(split) / together.size())) if shared else batch_size
    drawn = [noise] if isinstance(noise, Tensor) else [noise_of(split, model.z_dim, noise) for _ in range(repeats)]
    eps = [each.split(batch_size) for each in drawn]
    n_batches = len(eps[0])
    share = shares.share(n_batches) if shared and n_batches >= together.size() else Share((n_batches,))
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
        q = type(q)(**{name: images.whole(values) for name, values in vars(q).items()})
        reconstruction = images.whole(reconstruction, dim=1)
    return Evaluation(q, reconstruction.cpu().double(), q.kl_to_prior().cpu().double())


def noise_of(split: Split, z_dim: int, noise: torch.Generator) -> Tensor:
    """The noise of one draw z for each image, [N, Z] on the split's device."""
    return torch.randn(len(split), z_dim, generator=noise, device=noise.device).to(split.y.device)


@torch.no_grad()
def posterior(model: VAE, split: Split, batch_size: int = EVAL_BATCH_SIZE) -> DiagonalGaussian | Point:
    """q(z|x, y) of every image of a split, [N, Z]."""
    return _joined([model.encode(x, y) for x, y in batches(split, batch_size)])


def _joined(parts: list[DiagonalGaussian | Point]) -> DiagonalGaussian | Point:
    """One posterior over all the images of the parts."""
    of_all = {name: torch.cat([getattr(q, name) for q in parts]) for name in vars(parts[0])}
    return type(parts[0])(**of_all)


def log_likelihood(model: VAE, split: Split, z: Tensor, batch_size: int) -> Tensor:
    """log p(x|z, y) of every image of a split at its own code, z [N, Z]; [N] nats."""
    pairs = zip(batches(split, batch_size), z.split(batch_size), strict=True)
    return torch.cat([model.decode(codes, y).log_prob(x) for (x, y), codes in pairs])


@torch.no_grad()
@exact_products()
def importance_bound(
    model: VAE,
    split: Split,
    importance_samples: int,
    noise: torch.Generator,
    batch_size: int = EVAL_BATCH_SIZE,
    after_sample: Callable[[], object] = lambda: None,
) -> Tensor:
    """log 1/K sum_k p(x, z_k) / q(z_k|x), z_k ~ q(z|x): a lower bound on log p(x), [N] nats (Burda et al. 2016).

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
    """Scores of the means of q(z|x) by factors that vary, each with its spread over random parts of so many images.

    Raises UserError where the images are too few for their factors' values.
    """
    return spread(q.mean.cpu().numpy(), factors.table.cpu().numpy(), names, rows, repeats, seed)


def of_factors(measured: Evaluation, split: Split, names: Collection[str], prefix: str) -> dict[str, float]:
    """Scores of disentanglement as a run logs them, such as val/mig: of one repeat, so without their spread.

    A score that is no number here, such as InfoC of one active latent, is left out.
    """
    if split.factors is None or not names:
        return {}
    found = disentanglement(measured.q, split.factors.varying(), names, usual_size(len(split), repeats=1))
    return {f"{prefix}/{name}": score.mean for name, score in found.items() if not math.isnan(score.mean)}


@torch.no_grad()
def mutual_information(q: DiagonalGaussian | Point, noise: torch.Generator) -> Tensor:
    """I(x; z) under q, what each image gives to it, [N] nats; q(z) is the mixture of at most MIXTURE posteriors.

    E log q(z|x) / q(z) at one z for each image (Hoffman & Johnson 2016). Its own posterior is part of the mixture,
    so no image can give more than log N: at that value the estimate says "at least log N" and no more.
    KL(q(z) || p(z)) is what is left of the mean KL.
    """
    if isinstance(q, Point):
        raise UserError("an autoencoder (model.stochastic=false) has codes without a spread: no I(x; z) is defined.")
    device = "cpu" if q.mean.device.type == "mps" else q.mean.device  # Apple's has no float64
    q = DiagonalGaussian(q.mean[:MIXTURE].to(device), q.log_var[:MIXTURE].to(device))
    n, z_dim = q.mean.shape
    z = q.rsample(noise).double()
    mean, precision = q.mean.double(), torch.exp(-q.log_var.double())
    # log q(z_i|x_j) for all pairs as matrix products, in float64: their large terms cancel.
    weighted = mean * precision
    constant = (mean * weighted + q.log_var.double()).sum(1) + z_dim * LOG_2PI
    gained = []
    for rows in torch.arange(n, device=z.device).split(500):
        pairs = -0.5 * (z[rows].square() @ precision.T - 2 * z[rows] @ weighted.T + constant)
        own = pairs[torch.arange(len(rows), device=z.device), rows]
        gained.append(own - torch.logsumexp(pairs, dim=1) + math.log(n))
    return torch.cat(gained)
