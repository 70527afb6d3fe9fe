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
    """Pictures of a run after its epochs: those that are due, and all of them after the last epoch."""

    def __init__(self, every_epochs: int | str) -> None:
        self.usual, self.further = Cadence(every_epochs, SHARE), Cadence(every_epochs, SHARE, price=FIGURE_SECONDS)

    def after_epoch(
        self, run: TrainingRun, split: Split, held_out: str, evaluation: Evaluation, is_last: bool
    ) -> Iterator[Picture]:
        """Yield pictures of held-out images, of samples, and those of figures=[...]; the caller writes them."""
        for cadence, draw in ((self.usual, _usual), (self.further, _further)):
            if is_last or cadence.is_due(run.state.epoch):
                with cadence.measure():
                    for name, pixels, caption in draw(run, split, held_out, evaluation):
                        yield name, pixels, f"epoch {run.state.epoch}: {caption}"


def _usual(run: TrainingRun, split: Split, held_out: str, _: Evaluation) -> Iterator[Picture]:
    """Yield reconstructions of the held-out split and samples, from the same noise every epoch."""
    model, noise = run.eval_model, build.generator(run.config["seed"], "pictures")
    yield "reconstructions", reconstructions(model, split, noise), f"{held_out} images, each beside its reconstruction"
    if model.stochastic:  # else there is no prior to draw samples from
        rows = grids.class_rows(model.n_classes, run.data.class_names)
        same = latent_walks.shared(model)
        how = f"a row per class, {same} in each column" if rows else f"{same} every epoch"
        names = ", ".join(grids.class_words(run.data.class_names, rows))
        how += f"; {len(rows)} of {model.n_classes:,} classes: {names}" if len(rows) < model.n_classes else ""
        yield "samples", samples(model, rows, noise), f"samples from the prior, {how}"


def _further(run: TrainingRun, split: Split, held_out: str, evaluation: Evaluation) -> Iterator[Picture]:
    """Yield the figures of figures=[...], or those that a model of two latents gets by default."""
    model, names = run.eval_model, run.config["figures"]
    if names is None:
        names = ["manifold", "latents"] if model.z_dim == 2 and model.stochastic else []
    for name in names:
        yield name, _figure(name, model, split, evaluation, run.data.class_names), f"{name}, {held_out} images"


def test_figure(model: VAE, split: Split, seed: int, epoch: int) -> Picture:
    """Draw reconstructions of the test split, at the end, with the weights of the best epoch."""
    pixels = reconstructions(model, split, build.generator(seed, "pictures"))
    return "test_reconstructions", pixels, f"epoch {epoch}: test images, each beside its reconstruction"


@torch.no_grad()
def reconstructions(model: VAE, held_out: Split, noise: torch.Generator) -> np.ndarray:
    """Draw images of every class of a split, in whole rows, beside the mean of p(x|z) at one z ~ q(z|x) of each."""
    first = held_out[grids.rows(held_out.y, SIZES["reconstructions"])]
    columns = min(grids.COLUMNS // 2, len(first))
    first = first[: len(first) // columns * columns]
    x, y = first.x.float() / 255, first.y
    with model.evaluating():
        recon = model.decode(model.encode(x, y).rsample(noise), y).mean
    return grids.reconstructions(x, recon).pixels()


@torch.no_grad()
def samples(model: VAE, rows: list[int], noise: torch.Generator) -> np.ndarray:
    """Draw the mean of p(x|z) at z ~ p(z); a conditional model gets rows of classes, the same noise in each column."""
    images = latent_walks.classes(model, SIZES["classes"] if rows else SIZES["samples"], rows, noise)
    return grids.Sheet(images.flatten(0, 1), images.shape[1] if rows else grids.COLUMNS).pixels()


def _figure(name: str, model: VAE, split: Split, evaluation: Evaluation, class_names: Sequence[str]) -> np.ndarray:
    """Draw one of the further figures by its name in figures=[...]; a conditional model's manifold is of one class."""
    means, y, kl = evaluation.q.mean, split.y, evaluation.kl_per_dim
    rows = grids.class_rows(model.n_classes, class_names)
    labels = torch.tensor(rows or [0], device=y.device)
    if name == "latents":
        return grids.pixels(grids.latents(means, y, class_names, None, density=latent_walks.density(model, rows)))
    if name == "manifold":
        dims = (latent_walks.most_kl(kl) or latent_walks.most_change(model, labels[:1]))[:2]
        images, values, title = latent_walks.manifold(model, dims, labels[0], SIZES["manifold"])
        title += f", label {grids.class_words(class_names, rows)[0]}" if model.n_classes else ""
        return grids.manifold(images, values, dims, title).pixels()
    if name == "traversals":
        dims = latent_walks.most_kl(kl) or latent_walks.most_change(model, labels)
        dims = dims[: max(1, SIZES["traversals"] // len(labels))]
        values = torch.linspace(-grids.RANGE, grids.RANGE, grids.STEPS)
        images = latent_walks.traversal(model, labels, dims, values)
        names = grids.class_words(class_names, rows)
        return grids.traversals(images, dims, values, kl, "the prior's mean", names).pixels()
    if not model.n_classes:
        chosen = grids.rows(y, SIZES["reconstructions"])
        split, means, y = split[chosen], means[chosen], y[chosen]
    starts, ends = latent_walks.pairs(y, SIZES["interpolations"], same_label=model.n_classes > 0)
    images = latent_walks.interpolation(model, means[starts], means[ends], y[starts], grids.STEPS, "spherical")
    start, end = (split[torch.tensor(rows, dtype=torch.long)].x.float() / 255 for rows in (starts, ends))
    names = grids.class_words(class_names, y[starts].tolist()) if model.n_classes else []
    return grids.interpolations(images, start, end, "spherical", names).pixels()
