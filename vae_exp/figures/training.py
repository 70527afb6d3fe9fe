"""The pictures that a run logs, each as its name, its pixels and its caption."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from vae_exp.config import build
from vae_exp.datasets import Split
from vae_exp.evaluation.metrics import Evaluation
from vae_exp.figures import grids, latent_walks
from vae_exp.figures.grids import SIZES
from vae_exp.training.state import TrainingRun
from vae_exp.training.stopper import Cadence
from vae_exp.vae import VAE

Picture = tuple[str, np.ndarray, str]
FIGURE_SECONDS = 0.2  # of a further figure, before one was drawn
SHARE = 0.005  # of the time with figure_every_epochs=auto, for the usual pictures and for further figures each


class TrainingFigures:
    """The pictures of a run after its epochs: those that are due, and all of them after the last epoch."""

    def __init__(self, every_epochs: int | str) -> None:
        self.usual, self.further = Cadence(every_epochs, SHARE), Cadence(every_epochs, SHARE, price=FIGURE_SECONDS)

    def after_epoch(
        self, training: TrainingRun, split: Split, held_out: str, measured: Evaluation, is_last: bool
    ) -> Iterator[Picture]:
        """Yield pictures of held-out images, of samples, and those of figures=[...]; the caller writes them."""
        epoch = training.state.epoch
        for due, drawn in ((self.usual, _usual), (self.further, _further)):
            if is_last or due.is_due(epoch):
                with due.measure():
                    yield from drawn(training, training.eval_model, split, held_out, measured)


def _usual(training: TrainingRun, model: VAE, split: Split, held_out: str, _: Evaluation) -> Iterator[Picture]:
    """Yield reconstructions of the held-out split and samples, from the same noise every epoch."""
    epoch = training.state.epoch
    noise = build.generator(training.config["seed"], "pictures")
    pixels = reconstructions(model, split, noise)
    yield "reconstructions", pixels, f"epoch {epoch}: {held_out} images, reconstructions below"
    if model.stochastic:  # else there is no prior to draw samples from
        n_rows = grids.shown_classes(model.n_classes, training.data.class_names)
        how = "a row per class, the same z in each column" if n_rows else "the same z every epoch"
        how += f"; the first {n_rows} of {model.n_classes:,} classes" if n_rows < model.n_classes else ""
        yield "samples", samples(model, n_rows, noise), f"epoch {epoch}: samples from the prior, {how}"


def _further(training: TrainingRun, model: VAE, split: Split, held_out: str, measured: Evaluation) -> Iterator[Picture]:
    """Yield the figures of figures=[...], or those that a model of two latents gets by default."""
    names = training.config["figures"]
    if names is None:
        names = ["manifold", "latents"] if model.z_dim == 2 and model.stochastic else []
    for name in names:
        pixels = _figure(name, model, split, measured, training.data.class_names)
        yield name, pixels, f"epoch {training.state.epoch}: {name}, {held_out} images"


def test_figure(model: VAE, split: Split, seed: int, epoch: int) -> Picture:
    """Draw reconstructions of the test split, at the end, with the weights of the best epoch."""
    pixels = reconstructions(model, split, build.generator(seed, "pictures"))
    return "test_reconstructions", pixels, f"epoch {epoch}: test images, reconstructions below"


@torch.no_grad()
def reconstructions(model: VAE, held_out: Split, noise: torch.Generator) -> np.ndarray:
    """Draw images of every class of a split, in whole rows, above the mean of p(x|z) at one z ~ q(z|x) of each."""
    first = held_out[grids.rows(held_out.y, SIZES["reconstructions"])]
    columns = min(grids.COLUMNS, len(first))
    whole_rows = first[: len(first) // columns * columns]
    x, y = whole_rows.x.float() / 255, whole_rows.y
    with model.evaluating():
        again = model.decode(model.encode(x, y).rsample(noise), y).mean
    return grids.reconstructions(x, again)


@torch.no_grad()
def samples(model: VAE, n_rows: int, noise: torch.Generator) -> np.ndarray:
    """Draw the mean of p(x|z) at z ~ p(z); a conditional model gets n_rows classes, the same z in each column."""
    z = model.prior_sample(SIZES["classes"] if n_rows else SIZES["samples"], noise)
    return grids.samples(latent_walks.classes(model, z, n_rows).flatten(0, 1), n_rows)


def _figure(name: str, model: VAE, held_out: Split, measured: Evaluation, class_names: Sequence[str]) -> np.ndarray:
    """Draw one of the further figures by its name in figures=[...]; a conditional model's show its first class."""
    y, dims = torch.zeros((), dtype=torch.long, device=held_out.y.device), latent_walks.most_kl(measured.kl_per_dim)
    label = f", label {grids.drawable_name(class_names, 0)}" if model.n_classes else ""
    if name == "latents":
        return grids.latents(measured.q.mean, held_out.y, class_names, None)
    if name == "manifold":
        return grids.manifold(*latent_walks.manifold(model, dims[:2], y, SIZES["manifold"]), dims[:2], label)
    if name == "traversals":
        dims, values = dims[: SIZES["traversals"]], torch.linspace(-grids.RANGE, grids.RANGE, grids.STEPS)
        images = latent_walks.traversal(model, torch.zeros_like(measured.q.mean[0]), y, dims, values)
        return grids.traversals(images, dims, values, measured.kl_per_dim, f"the prior's mean{label}")
    pictured = grids.rows(held_out.y, SIZES["reconstructions"]) if not model.n_classes else slice(None)
    means, y = measured.q.mean[pictured], held_out.y[pictured]
    starts, ends = latent_walks.pairs(y, SIZES["interpolations"], same_label=model.n_classes > 0)
    images = latent_walks.interpolation(model, means[starts], means[ends], y[starts], grids.STEPS, "spherical")
    return grids.interpolations(images, "spherical")
