"""The drawings of vae-generate: each function takes a trained model, options and a number, and returns a Drawing."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vae_exp.config import build
from vae_exp.config.schema import GenerateOptions
from vae_exp.datasets.image_folder import read_images
from vae_exp.errors import UserError, printable
from vae_exp.figures import grids, latent_walks
from vae_exp.inference import TrainedVAE

LARGEST_GRID = 10_000  # images: a picture of more is larger than what shows it can open
LARGEST_MEMORY = 2 * 10**9  # bytes of images as floats; a picture of them takes as much again
CHUNK = 1000  # images drawn at a time, always whole: the first images are the same for every n


@dataclass
class Drawing:
    """Single images, and the ways to show them together."""

    n: int
    chunks: Iterable[tuple[Tensor, Tensor]]  # images [B, C, H, W] in [0, 1] and their labels [B]
    sheet: Callable[[Tensor], np.ndarray]  # all of them as one picture
    frames: Callable[[], list[np.ndarray]] | None = None  # as a film


def _samples(model: TrainedVAE, options: GenerateOptions, n: int) -> Drawing:
    label, temperature = options["label"], options["temperature"]
    if options["format"] == "grid":  # the others are written as they are drawn
        _require_room(model, n, f"n={n}: {n:,} samples", options)

    draw = model.sampler(options["sampler"], options["dataset"]["root"])
    chunks = model.samples(n, label, draw, build.generator(options["seed"], "samples"), temperature)
    title = f"{n} samples" + ("" if label is None else _label(model, options)[1])
    title += "" if options["sampler"] == "prior" else f" from {options['sampler']}"
    title += "" if temperature == 1 else f", temperature {temperature:g}"
    columns = math.ceil(math.sqrt(n))
    if label is None and 0 < model.classes_there <= grids.MOST_CLASSES:
        columns, title = model.classes_there, f"{title}, a label a column"
    return Drawing(n, chunks, lambda x: grids.label_sheet(grids.grid(x, columns), title))


def _classes(model: TrainedVAE, options: GenerateOptions, n: int) -> Drawing:
    n_classes = grids.shown_classes(model.model.n_classes, model.class_names)
    if not n_classes:
        raise UserError("what=classes: the model is not conditional; use what=samples.")
    _require_room(model, n * n_classes, f"n={n}: {n_classes} classes make {n * n_classes:,} images", options)
    z = options["temperature"] * model.model.prior_sample(n, build.generator(options["seed"], "samples"))
    images = latent_walks.classes(model.model, z, n_classes).flatten(0, 1)
    y = torch.arange(n_classes).repeat_interleave(n)
    title = "a row per label, the same z in each column"
    if n_classes < model.model.n_classes:
        title += f"; the first {n_classes} of {model.model.n_classes:,}"
    names = grids.drawable(model.class_names[:n_classes])
    names += map(str, range(len(names), n_classes))
    return Drawing(len(y), [(images, y)], lambda x: grids.label_sheet(grids.samples(x, n_classes), title, names))


def _reconstructions(model: TrainedVAE, options: GenerateOptions, n: int) -> Drawing:
    x, y, source = _images(model, options, n)
    _require_room(model, 2 * len(x), f"n={n}: {len(x):,} images and their reconstructions", options)
    again = torch.cat([model.reconstruct(*part) for part in zip(x.split(CHUNK), y.split(CHUNK), strict=True)])

    def sheet(again: Tensor) -> np.ndarray:
        return grids.label_sheet(grids.reconstructions(x.float() / 255, again), f"{source}, reconstructions below")

    return Drawing(len(x), [(again, y)], sheet)


def _interpolations(model: TrainedVAE, options: GenerateOptions, n: int) -> Drawing:
    if options["inputs"] is not None:
        x, y, _ = _images(model, options, n + 1)
        if len(x) < 2:
            raise UserError(f"inputs={options['inputs']}: an interpolation needs two images or more.")
        starts, ends = list(range(len(x) - 1)), list(range(1, len(x)))
    else:
        x, y, _ = _images(model, options, None)
        starts, ends = latent_walks.pairs(y, n, same_label=model.model.n_classes > 0)
        if not starts:
            raise UserError("what=interpolations: there are no two images to walk between.")
    _require_room(model, *_sides(len(starts), options), options)
    start, end = model.encode(x[starts], y[starts]).mean, model.encode(x[ends], y[ends]).mean
    labels, path = model.labels(y[starts], len(starts)), options["path"]
    images = latent_walks.interpolation(model.model, start, end, labels, options["steps"], path)
    return _walk(images, labels, lambda: grids.interpolations(images, path), f"{path} interpolations")


def _traversals(model: TrainedVAE, options: GenerateOptions, n: int) -> Drawing:
    dims = options["dims"] or latent_walks.most_kl(model.kl_per_dim)[:n]
    check_dims(dims, model)
    _require_room(model, *_sides(len(dims), options), options)
    values = torch.linspace(-options["range"], options["range"], options["steps"])
    if options["around"] == "image":
        x, y, source = _images(model, options, 1)
        centre, label, around = model.encode(x, y).mean[0], model.labels(y, 1)[0], f"an image ({source})"
    else:
        _needs_prior(model, "what=traversals around=prior", "what=traversals around=image")
        label, label_in_title = _label(model, options)
        centre = torch.zeros(model.model.z_dim, device=model.device)
        around = f"the prior's mean{label_in_title}"
    images = latent_walks.traversal(model.model, centre, label, dims, values)

    def sheet() -> np.ndarray:
        return grids.traversals(images, dims, values, model.kl_per_dim, around)

    return _walk(images, label.expand(len(dims)), sheet, "one latent at a time")


def _manifold(model: TrainedVAE, options: GenerateOptions, n: int) -> Drawing:
    _needs_prior(model, "what=manifold", "what=latents")
    dims = options["dims"] or latent_walks.most_kl(model.kl_per_dim)[:2]
    check_dims(dims, model)
    side = n if len(dims) > 1 else 1
    _require_room(model, n * side, f"n={n}: a manifold of {n} x {side} images", options)
    label, label_in_title = _label(model, options)
    images, values = latent_walks.manifold(model.model, dims, label, n)

    def sheet() -> np.ndarray:
        return grids.manifold(images, values, dims, label_in_title)

    return _walk(images, label.expand(len(images)), sheet, "manifold")


DRAW: dict[str, Callable[[TrainedVAE, GenerateOptions, int], Drawing]] = {
    "samples": _samples,
    "classes": _classes,
    "reconstructions": _reconstructions,
    "interpolations": _interpolations,
    "traversals": _traversals,
    "manifold": _manifold,
}


def _walk(images: Tensor, y: Tensor, sheet: Callable[[], np.ndarray], title: str) -> Drawing:
    """Make a Drawing of walks [R, S, C, H, W] with labels y [R]; a film plays them side by side, back and forth."""
    rows, steps = images.shape[:2]

    def frames() -> list[np.ndarray]:
        columns = math.ceil(math.sqrt(rows))
        forth = [grids.label_sheet(grids.grid(images[:, step], columns), title) for step in range(steps)]
        return forth + forth[-2:0:-1]

    return Drawing(rows * steps, [(images.flatten(0, 1), y.repeat_interleave(steps))], lambda _: sheet(), frames)


def _label(model: TrainedVAE, options: GenerateOptions) -> tuple[Tensor, str]:
    """Return one label for a whole figure, by default the first class, and its words for the title."""
    if not model.model.n_classes:
        return torch.tensor(0, device=model.device), ""
    number = 0 if options["label"] is None else model.number(options["label"])
    in_title = f", label {grids.drawable_name(model.class_names, number)}"
    return torch.tensor(number, device=model.device), in_title


def _needs_prior(model: TrainedVAE, typed: str, instead: str) -> None:
    """Raise UserError for a deterministic autoencoder."""
    if not model.model.stochastic:
        raise UserError(f"{typed}: an autoencoder has no prior to say where its codes lie. Use {instead}.")


def check_dims(dims: list[int], model: TrainedVAE) -> None:
    """Raise UserError for a latent dimension that the model does not have."""
    if wrong := [dim for dim in dims if dim >= model.model.z_dim]:
        raise UserError(f"dims: there is no latent {wrong[0]}; this model has 0 to {model.model.z_dim - 1}.")


def _sides(rows: int, options: GenerateOptions) -> tuple[int, str]:
    """Return how many images the walks have, as a number and in words."""
    steps = options["steps"]
    return rows * steps, f"steps={steps}: {rows:,} walks of {steps} images"


def _require_room(model: TrainedVAE, images: int, typed: str, options: GenerateOptions) -> None:
    """Raise UserError for more images than one picture can show or memory may hold at once."""
    if options["format"] == "grid" and images > LARGEST_GRID:
        raise UserError(f"{typed}; a picture shows up to {LARGEST_GRID:,} images.")
    most = LARGEST_MEMORY // (4 * math.prod(model.x_shape))
    if images > most:
        shape = "x".join(map(str, model.x_shape))
        raise UserError(f"{typed}; of {shape} pixels up to {most:,} are held in memory ({LARGEST_MEMORY / 1e9:g} GB).")


def _images(model: TrainedVAE, options: GenerateOptions, n: int | None) -> tuple[Tensor, Tensor, str]:
    """Return n images or all, the user's own or held-out ones ordered by seed, with labels and their source.

    Held-out images of several classes take turns, so that a few of them show many classes.
    """
    if options["inputs"] is not None:
        settings = model.config["dataset"]
        x, folders = read_images(options["inputs"], model.x_shape, settings.get("crop"), settings.get("white"))
        return x[:n], _labels_of_inputs(model, options, folders[:n]), "given images"
    data = model.read_data(options["dataset"]["root"])
    split = data.split(options["split"])
    split = split[torch.randperm(len(split), generator=build.generator(options["seed"], "images"))]
    if options["label"] is not None:
        split = split[split.y == model.number(options["label"])]
        if not len(split):
            raise UserError(f"label={options['label']}: none of the {options['split']} images has it.")
    if n is not None:
        split = split[grids.in_turn(split.y)[:n]]
    return split.x, split.y, f"{options['split']} images"


def _labels_of_inputs(model: TrainedVAE, options: GenerateOptions, folders: list[str]) -> Tensor:
    """Return the label that was typed, or each image's label from its class folder.

    Raises UserError if a conditional model is given neither.
    """
    if not model.model.n_classes or options["label"] is not None or not any(folders):
        return model.labels(options["label"], len(folders)).cpu()
    number = {name: label for label, name in reversed(list(enumerate(model.class_names)))}
    known = ", ".join(model.class_names)
    for folder in map(printable, folders):
        if folder not in number:
            wrong = f"the folder {folder} is none of its classes" if folder else "some images there lie in no folder"
            raise UserError(
                f"label: this model is conditional; inputs={options['inputs']}: {wrong}. Put each image into a folder "
                f"of its class, one of {known}, or give all of them one with label=."
            )
    return torch.tensor([number[printable(folder)] for folder in folders])
