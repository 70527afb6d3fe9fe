"""Numbers of a model on a split, from terms kept apart per image until the end."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vae_exp.datasets import Split, batches
from vae_exp.objectives import Terms, elbo_terms
from vae_exp.vae import VAE

EVAL_BATCH_SIZE = 1000  # of its own, so that batch_size does not change which noise an image meets
ACTIVE = 0.01  # a unit is active where its posterior mean varies more than this over the data (Burda et al. 2016)


@dataclass
class Evaluation:
    """Means over a split, in nats per image, each from one draw of z per image."""

    neg_elbo: float
    reconstruction: float
    kl: float
    kl_per_dim: list[float]  # [Z]
    active_units: int

    def scalars(self, prefix: str) -> dict[str, float]:
        names = ("neg_elbo", "reconstruction", "kl", "active_units")
        return {f"{prefix}/{name}": getattr(self, name) for name in names}


@torch.no_grad()
def evaluate(model: VAE, split: Split, noise: torch.Generator) -> Evaluation:
    """The negative ELBO and its two terms with z sampled from q, as in training; beta plays no part."""
    model.eval()
    terms, means = [], []
    for x, y in batches(split, EVAL_BATCH_SIZE):
        q = model.encode(x, y)
        terms.append(elbo_terms(x, q, model.decode(q.rsample(noise), y)))
        means.append(q.mean)
    model.train()
    # One transfer a tensor, then float64: a sum of 10,000 float32 loses digits that people compare.
    every = Terms(*(torch.cat(parts).cpu().double() for parts in zip(*terms, strict=True)))
    variance = torch.cat(means).cpu().double().var(0, correction=0)
    return Evaluation(
        neg_elbo=every.neg_elbo.mean().item(),
        reconstruction=every.reconstruction.mean().item(),
        kl=every.kl.sum(1).mean().item(),
        kl_per_dim=every.kl.mean(0).tolist(),
        active_units=int((variance > ACTIVE).sum()),
    )


class RunningMeans:
    """Means of the training terms over images. The sums stay on the device: only read() waits for it."""

    def __init__(self) -> None:
        self.images_seen = self.steps = self.first_step = 0
        self._epoch: dict[str, float] = {}
        self._start()

    def _start(self) -> None:
        self._images, self._on_device, self._numbers = 0, torch.zeros(()), {}

    def add(self, terms: Terms, loss: Tensor, grad_norm: Tensor, **numbers: float) -> None:
        """One step of training. A value of the whole batch counts once for each of its images."""
        n = len(terms.reconstruction)
        sums = (loss * n, terms.reconstruction.sum(), terms.kl.sum(), grad_norm * n)
        self._on_device = self._on_device.to(loss.device) + torch.stack(sums).detach()
        self._numbers = {name: self._numbers.get(name, 0.0) + number * n for name, number in numbers.items()}
        self.first_step = self.steps + 1 if self._images == 0 else self.first_step
        self.steps += 1
        self._images += n
        self.images_seen += n

    def read(self, prefix: str) -> dict[str, float]:
        """The means since the last read, and the steps they span: first_step to steps."""
        names = ("loss", "reconstruction", "kl", "grad_norm")
        sums = {"images": self._images} | dict(zip(names, self._on_device.tolist(), strict=True)) | self._numbers
        self._epoch = {name: self._epoch.get(name, 0.0) + value for name, value in sums.items()}
        self._start()
        return _means(sums, prefix)

    def read_epoch(self, prefix: str) -> dict[str, float]:
        """The means since the last read_epoch, from the sums that were read since."""
        sums, self._epoch = self._epoch, {}
        return _means(sums, prefix)


def _means(sums: dict[str, float], prefix: str) -> dict[str, float]:
    means = {f"{prefix}/{name}": value / sums["images"] for name, value in sums.items() if name != "images"}
    return means | {f"{prefix}/neg_elbo": means[f"{prefix}/reconstruction"] + means[f"{prefix}/kl"]}
