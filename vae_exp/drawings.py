"""What vae-generate can draw: each function takes a trained model and what was asked for, and returns a Drawing."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vae_exp import build, figures, walks
from vae_exp.config import UserError
from vae_exp.image_folder import read_images
from vae_exp.trained import TrainedVAE

SIZES = {  # n, where it is not given: images, or rows of a walk, or steps a side of the manifold
    "samples": 64,
    "classes": 8,
    "reconstructions": 32,
    "interpolations": 8,
    "traversals": 20,
    "manifold": 20,
    "latents": 5000,
}
CHUNK = 1000  # images drawn at a time, always whole: the first images are the same for every n


@dataclass
class Drawing:
    """What is drawn: single images, and the ways to show them together."""

    n: int
    chunks: Iterable[tuple[Tensor, Tensor]]  # images [B, C, H, W] in [0, 1] and their labels [B]
    sheet: Callable[[Tensor], np.ndarray]  # all of them as one picture
    frames: Callable[[], list[np.ndarray]] | None = None  # as a film


def _samples(model: TrainedVAE, asked: dict) -> Drawing:
    n, label, temperature = asked["n"], asked["label"], asked["temperature"]

    def chunks() -> Iterator[tuple[Tensor, Tensor]]:
        noise, n_classes = build.generator(asked["seed"], "samples"), max(model.model.n_classes, 1)
        for first in range(0, n, CHUNK):
            rows = torch.arange(first, min(first + CHUNK, n))
            y = rows % n_classes if label is None else model.labels(label, len(rows)).cpu()
            z = temperature * model.model.prior_sample(CHUNK, noise)[: len(rows)]
            yield model.decode(z, y), y

    title = f"{n} samples" + ("" if label is None else f", label {label}")
    title += "" if temperature == 1 else f", temperature {temperature:g}"
    columns = math.ceil(math.sqrt(n))
    if model.model.n_classes and label is None:
        columns, title = model.model.n_classes, f"{title}, a label a column"
    return Drawing(n, chunks(), lambda x: figures.label_sheet(figures.grid(x, columns), title))


def _classes(model: TrainedVAE, asked: dict) -> Drawing:
    n_classes, n = model.model.n_classes, asked["n"]
    if not n_classes:
        raise UserError("what=classes: the model is not conditional; use what=samples.")
    z = asked["temperature"] * model.model.prior_sample(n, build.generator(asked["seed"], "samples"))
    y = torch.arange(n_classes).repeat_interleave(n)
    images = torch.cat([model.decode(z, int(label)) for label in range(n_classes)])
    words = model.class_names
    title = "a row per label, the same z in each column"
    return Drawing(len(y), [(images, y)], lambda x: figures.label_sheet(figures.grid(x, n), title, words))


def _reconstructions(model: TrainedVAE, asked: dict) -> Drawing:
    x, y, where = _images(model, asked, asked["n"])
    again = torch.cat([model.reconstruct(*part) for part in zip(x.split(CHUNK), y.split(CHUNK), strict=True)])
    columns = min(figures.COLUMNS, len(x))

    def sheet(again: Tensor) -> np.ndarray:
        rows = zip((x.float() / 255).split(columns), again.cpu().split(columns), strict=True)
        missing = -len(x) % columns  # fill the last row, or the next would begin in it
        blank = torch.full((missing, *x.shape[1:]), 0.5)
        both = [torch.cat([row, blank]) if len(row) < columns else row for pair in rows for row in pair]
        return figures.label_sheet(figures.grid(torch.cat(both), columns), f"{where}, reconstructions below")

    return Drawing(len(x), [(again, y)], sheet)


def _interpolations(model: TrainedVAE, asked: dict) -> Drawing:
    if asked["inputs"] is not None:
        x, y, _ = _images(model, asked, asked["n"] + 1)
        if len(x) < 2:
            raise UserError(f"inputs={asked['inputs']}: an interpolation needs two images or more.")
        starts, ends = list(range(len(x) - 1)), list(range(1, len(x)))
    else:
        x, y, _ = _images(model, asked, None)
        starts, ends = walks.pairs(y, asked["n"], same_label=model.model.n_classes > 0)
        if not starts:
            raise UserError("what=interpolations: there are no two images to walk between.")
    start, end = model.encode(x[starts], y[starts]).mean, model.encode(x[ends], y[ends]).mean
    labels = model.labels(y[starts], len(starts))
    images = walks.interpolation(model.model, start, end, labels, asked["steps"], asked["path"])
    return _walk(
        images, labels, lambda: figures.interpolations(images, asked["path"]), f"{asked['path']} interpolations"
    )


def _traversals(model: TrainedVAE, asked: dict) -> Drawing:
    dims = asked["dims"] or walks.most_kl(model.kl_per_dim)[: asked["n"]]
    check_dims(dims, model)
    values = torch.linspace(-asked["range"], asked["range"], asked["steps"])
    if asked["around"] == "image":
        x, y, where = _images(model, asked, 1)
        centre, label, around = model.encode(x, y).mean[0], model.labels(y, 1)[0], f"an image ({where})"
    else:
        _needs_prior(model, "what=traversals around=prior", "what=traversals around=image")
        label, around = _label(model, asked)
        centre = torch.zeros(model.model.z_dim, device=model.device)
        around = f"the prior's mean{around}"
    images = walks.traversal(model.model, centre, label, dims, values)
    labels = label.expand(len(dims))
    return _walk(
        images,
        labels,
        lambda: figures.traversals(images, dims, values, model.kl_per_dim, around),
        "one latent at a time",
    )


def _manifold(model: TrainedVAE, asked: dict) -> Drawing:
    _needs_prior(model, "what=manifold", "what=latents")
    dims = asked["dims"] or walks.most_kl(model.kl_per_dim)[:2]
    check_dims(dims, model)
    label, note = _label(model, asked)
    images, values = walks.manifold(model.model, dims, label, asked["n"])
    return _walk(images, label.expand(len(images)), lambda: figures.manifold(images, values, dims, note), "manifold")


DRAW = {
    "samples": _samples,
    "classes": _classes,
    "reconstructions": _reconstructions,
    "interpolations": _interpolations,
    "traversals": _traversals,
    "manifold": _manifold,
}


def _walk(images: Tensor, y: Tensor, sheet: Callable[[], np.ndarray], title: str) -> Drawing:
    """Images [R, S, C, H, W] of walks with labels y [R]; as a film all walks go side by side, there and back."""
    rows, steps = images.shape[:2]

    def frames() -> list[np.ndarray]:
        columns = math.ceil(math.sqrt(rows))
        there = [figures.label_sheet(figures.grid(images[:, step], columns), title) for step in range(steps)]
        return there + there[-2:0:-1]

    return Drawing(rows * steps, [(images.flatten(0, 1), y.repeat_interleave(steps))], lambda _: sheet(), frames)


def _label(model: TrainedVAE, asked: dict) -> tuple[Tensor, str]:
    """One label for a whole figure, the first class unless told otherwise, and what the title says of it."""
    number = model.number(asked["label"] or 0) if model.model.n_classes else 0
    said = f", label {model.class_names[number]}" if model.model.n_classes else ""
    return torch.tensor(number, device=model.device), said


def _needs_prior(model: TrainedVAE, asked: str, instead: str) -> None:
    if not model.model.stochastic:
        raise UserError(f"{asked}: an autoencoder has no prior to say where its codes lie. Use {instead}.")


def check_dims(dims: list[int], model: TrainedVAE) -> None:
    """Raises UserError for a latent dimension that the model does not have."""
    if wrong := [dim for dim in dims if dim >= model.model.z_dim]:
        raise UserError(f"dims: there is no latent {wrong[0]}; this model has 0 to {model.model.z_dim - 1}.")


def _images(model: TrainedVAE, asked: dict, n: int | None) -> tuple[Tensor, Tensor, str]:
    """n images, or all: the user's own, or held-out ones in an order by seed; with labels, and where they are from."""
    if asked["inputs"] is not None:
        x = read_images(asked["inputs"], model.x_shape, model.config["dataset"].get("crop"))[:n]
        return x, model.labels(asked["label"], len(x)).cpu(), "given images"
    data = model.read_data(asked["dataset"]["root"])
    split = data.split(asked["split"])
    split = split[torch.randperm(len(split), generator=build.generator(asked["seed"], "images"))]
    if asked["label"] is not None:
        split = split[split.y == model.number(asked["label"])]
    return split[:n].x, split.y[:n], f"{asked['split']} images"
