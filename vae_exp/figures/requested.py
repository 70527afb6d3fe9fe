"""The drawings of vae-generate: each function takes a trained model, options and a number, and returns a Drawing."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vae_exp.config import build
from vae_exp.config.checks import as_typed, names_in
from vae_exp.config.schema import PICTURES, GenerateOptions
from vae_exp.datasets.factors import read_column
from vae_exp.datasets.image_folder import class_folder, read_images
from vae_exp.datasets.splits import Split
from vae_exp.errors import UserError, printable, shortened
from vae_exp.evaluation import codes
from vae_exp.figures import grids, latent_walks
from vae_exp.files import expand
from vae_exp.inference import TrainedVAE
from vae_exp.priors import ByLabel, Mixture, VampPrior

MAX_GRID = 10_000  # images: a picture of more is larger than what shows it can open
MAX_PIXELS = 170_000_000  # of a picture with a scale; Pillow opens no more
IMPORTANCE_SAMPLES = 20  # of the bound on log p(x) by which anomalies are found
MAX_NAME = 40  # characters of a file's path beside its image, its end
MAX_BYTES = 2 * 10**9  # of images as floats in memory; a picture of them takes as much again


@dataclass
class Drawing:
    """Single images, and the ways to show them together."""

    n: int
    chunks: Iterable[tuple[Tensor, Tensor]]  # images [B, C, H, W] in [0, 1] and their labels [B]
    sheet: Callable[[Tensor], grids.Sheet]  # all of them as one picture
    frames: Callable[[], list[grids.Sheet]] | None = None  # as a film


def _samples(model: TrainedVAE, options: GenerateOptions, n: int) -> Drawing:
    label, temperature = options["label"], options["temperature"]
    in_turn = model.n_classes_in_data if label is None else 0  # by default whole rows of them
    n = n if options["n"] or not 0 < in_turn < n else n // in_turn * in_turn
    if options["format"] in PICTURES:  # the others are written as they are drawn
        _require_room(model, n, f"n={n}: {n:,} samples", options)
    sampler = model.sampler(options["sampler"], options["dataset"]["root"])
    chunks = model.samples(n, label, sampler, build.generator(options["seed"], "samples"), temperature)
    title = f"{n} samples" + ("" if label is None else _label(model, options)[1])
    title += "" if options["sampler"] == "prior" else f" from {options['sampler']}"
    title += "" if temperature == 1 else f", temperature {temperature:g}"
    columns, words = math.ceil(math.sqrt(n)), list[str]()
    if 0 < in_turn <= grids.MAX_CLASSES:
        columns = in_turn
        words = grids.class_words(model.class_names, model.every_class(0, columns).tolist())
    return Drawing(n, chunks, lambda x: grids.Sheet(x, columns, title, words=words))


def _classes(model: TrainedVAE, options: GenerateOptions, n: int) -> Drawing:
    rows = grids.class_rows(model.n_classes_in_data, model.class_names)
    if not rows:
        raise UserError("what=classes: the model is not conditional; use what=samples.")
    _require_room(model, n * len(rows), f"n={n}: {len(rows)} classes make {n * len(rows):,} images", options)
    noise = build.generator(options["seed"], "samples")
    images = latent_walks.classes(model.model, n, rows, noise, options["temperature"]).flatten(0, 1)
    title = f"a row per label, {latent_walks.shared(model.model)} in each column"
    if len(rows) < model.model.n_classes:
        title += f"; {len(rows)} of {model.model.n_classes:,}"
    names = grids.class_words(model.class_names, rows)
    y = torch.tensor(rows).repeat_interleave(n)
    return Drawing(len(y), [(images, y)], lambda x: grids.Sheet(x, n, title, names))


def _components(model: TrainedVAE, options: GenerateOptions, n: int) -> Drawing:
    _require_prior(model, "what=components", "what=latents")
    prior, (label, in_title) = model.model.prior, _label(model, options)
    if isinstance(prior, Mixture | VampPrior):
        z, weights = prior.gaussians().mean, prior.weights
        y = prior.labels if isinstance(prior, VampPrior) else label.expand(len(z))
    elif isinstance(prior, ByLabel):
        z = prior.mean[: model.n_classes_in_data]
        y, weights = torch.arange(len(z), device=z.device), torch.ones(len(z), device=z.device)
    else:
        none = f"prior={model.config['prior']['_target_'].rpartition('.')[2]} has no components"
        raise UserError(f"what=components: {none}. It is for prior=mixture, prior=vamp and prior=by_label.")
    heaviest = weights.argsort(descending=True, stable=True)
    if options["label"] is not None:
        heaviest = heaviest[y[heaviest] == label]
        if not len(heaviest):
            raise UserError(f"label={as_typed(options['label'])}: no component of the prior has it.")
    shown = heaviest[:n]
    _require_room(model, 2 * len(shown), f"n={n}: {len(shown):,} components", options)
    images = latent_walks.decode(model.model, z[shown, None], y[shown])[:, 0]
    count = f"{len(shown):,} of the {len(heaviest):,}" if len(shown) < len(heaviest) else f"{len(shown):,}"

    def sheet(images: Tensor) -> grids.Sheet:
        if isinstance(prior, VampPrior):
            title = f"{count} pseudo-inputs{in_title if options['label'] is not None else ''}"
            return grids.reconstructions(prior.images[shown], images, f"{title}, each beside its decoded mean")
        if isinstance(prior, ByLabel):
            words = grids.class_words(model.class_names, shown.tolist())
            return grids.Sheet(images, len(images), "the decoded mean of each label's prior", words=words)
        rows = [f"{part[0]:.1%} to {part[-1]:.1%}" for part in weights[shown].split(grids.COLUMNS)]
        return grids.Sheet(images, grids.COLUMNS, f"means of {count} components, the heaviest first{in_title}", rows)

    return Drawing(len(images), [(images, y[shown])], sheet)


def _reconstructions(model: TrainedVAE, options: GenerateOptions, n: int) -> Drawing:
    x, y, source = _images(model, options, n)
    _require_room(model, 2 * len(x), f"n={n}: {len(x):,} images and their reconstructions", options)
    images, recon, title = x.float() / 255, _reconstruct(model, x, y), f"{source}, each beside its reconstruction"
    return Drawing(len(x), [(recon, y)], lambda recon: grids.reconstructions(images, recon, title))


def _reconstruct(model: TrainedVAE, x: Tensor, y: Tensor) -> Tensor:
    parts = zip(x.split(latent_walks.BATCH_SIZE), y.split(latent_walks.BATCH_SIZE), strict=True)
    return torch.cat([model.reconstruct(*part) for part in parts])


def anomalies(model: TrainedVAE, options: GenerateOptions, n: int) -> tuple[Drawing, codes.Columns]:
    """Return the n images with the lowest bound on log p(x), and columns of all images, the lowest bound first."""
    if not model.model.stochastic:
        raise UserError("what=anomalies: an autoencoder gives images no likelihood to bound.")
    _require_room(model, 2 * n, f"n={n}: {n:,} images and their reconstructions", options)
    label = options["label"]
    if options["inputs"] is not None:
        x, files = _own_images(model, options)
        split = Split(x, _labels_of_inputs(model, options, files), files=files)
        rows = codes.Rows({"given": split.to(model.device)}, model.class_names if model.model.n_classes else ())
    else:
        rows = codes.rows_of(model.read_data(options["dataset"]["root"]), options["split"], model.device)
        if label is not None:
            number = model.number(label)
            rows = replace(rows, splits={name: split[split.y == number] for name, split in rows.splits.items()})
            if not len(rows):
                raise UserError(f"label={as_typed(label)}: none of the {options['split']} images has it.")
    chunks = []
    with tqdm(total=len(rows), unit="image", disable=None, leave=False) as bar:
        for x, y, columns in rows.batches(codes.MAX_BOUNDED):
            bound = model.log_prob_bound(x, y, IMPORTANCE_SAMPLES, options["seed"])
            chunks.append(columns | {"log_prob_bound": bound.numpy()})
            bar.update(len(x))
    every = {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}
    order = every["log_prob_bound"].argsort(kind="stable")
    x, y = rows.images(order[:n].tolist())
    recon, every, words = _reconstruct(model, x, y), {name: values[order] for name, values in every.items()}, []
    for i, bound in enumerate(every["log_prob_bound"][:n]):
        file = str(every["file"][i]) if "file" in every else ""
        name = file if file and grids.is_drawable(file) else f"{every['split'][i]} {every['index'][i]}"
        words.append(f"{bound:.1f}  {name[-MAX_NAME:]}")
    title = f"lowest of {len(order):,} bounds on log p(x), nats, K = {IMPORTANCE_SAMPLES}"
    pairs = torch.stack([x.float() / 255, recon], 1).flatten(0, 1)
    drawing = Drawing(len(x), [(pairs, y)], lambda pairs: grids.Sheet(pairs, 2, title, words))
    return drawing, codes.flat(every, rows.names)


def _interpolations(model: TrainedVAE, options: GenerateOptions, n: int) -> Drawing:
    steps, path = options["steps"], options["path"]
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
    _require_room(model, len(starts) * steps, f"steps={steps}: {len(starts):,} walks of {steps} images", options)
    start, end = model.encode(x[starts], y[starts]).mean, model.encode(x[ends], y[ends]).mean
    labels = model.labels(y[starts], len(starts))
    images = latent_walks.interpolation(model.model, start, end, labels, steps, path)
    rows = grids.class_words(model.class_names, labels.tolist()) if model.model.n_classes else []
    real = (x[starts].float() / 255, x[ends].float() / 255)
    return _walk(images, labels, lambda: grids.interpolations(images, *real, path, rows), f"{path} interpolations")


def _traversals(model: TrainedVAE, options: GenerateOptions, n: int) -> Drawing:
    steps, names = options["steps"], list[str]()
    if options["around"] == "image":
        x, y, source = _images(model, options, 1)
        centre, labels, around = model.encode(x, y).mean[0], model.labels(y, 1), f"an image ({source})"
    else:
        _require_prior(model, "what=traversals around=prior", "what=traversals around=image")
        label, in_title = _label(model, options)
        centre, labels, around = None, label[None], f"the prior's mean{in_title}"
        if options["label"] is None and model.model.n_classes:
            shown = grids.class_rows(model.n_classes_in_data, model.class_names)
            names = grids.class_words(model.class_names, shown)
            labels, around = torch.tensor(shown, device=model.device), "the prior's mean, a block per label"
    dims = _dims(model, options, n if options["n"] else max(1, n // len(labels)), labels)
    rows = len(labels) * len(dims)
    _require_room(model, rows * steps, f"steps={steps}: {rows:,} walks of {steps} images", options)
    values = torch.linspace(-options["range"], options["range"], steps)
    images, kl = latent_walks.traversal(model.model, labels, dims, values, centre), model.kl_per_dim
    sheet = lambda: grids.traversals(images, dims, values, kl, around, names)  # noqa: E731
    return _walk(images, labels.repeat_interleave(len(dims)), sheet, "one latent at a time")


def _manifold(model: TrainedVAE, options: GenerateOptions, n: int) -> Drawing:
    _require_prior(model, "what=manifold", "what=latents")
    label, in_title = _label(model, options)
    dims = _dims(model, options, 2, label[None])
    side = n if len(dims) > 1 else 1
    _require_room(model, n * side, f"n={n}: a manifold of {n} x {side} images", options)
    images, values, title = latent_walks.manifold(model.model, dims, label, n)
    labels = label.expand(len(images))
    return _walk(images, labels, lambda: grids.manifold(images, values, dims, title + in_title), "manifold")


DRAW: dict[str, Callable[[TrainedVAE, GenerateOptions, int], Drawing]] = {
    "samples": _samples,
    "classes": _classes,
    "components": _components,
    "reconstructions": _reconstructions,
    "interpolations": _interpolations,
    "traversals": _traversals,
    "manifold": _manifold,
}


def _walk(images: Tensor, y: Tensor, sheet: Callable[[], grids.Sheet], title: str) -> Drawing:
    """Make a Drawing of walks [R, S, C, H, W] with labels y [R]; a film plays them side by side, back and forth."""
    rows, steps = images.shape[:2]

    def frames() -> list[grids.Sheet]:
        columns = math.ceil(math.sqrt(rows))
        forth = [grids.Sheet(images[:, step], columns, title) for step in range(steps)]
        return forth + forth[-2:0:-1]

    return Drawing(rows * steps, [(images.flatten(0, 1), y.repeat_interleave(steps))], lambda _: sheet(), frames)


def _label(model: TrainedVAE, options: GenerateOptions) -> tuple[Tensor, str]:
    """Return one label for a whole figure, by default the first class, and its words for the title."""
    if not model.model.n_classes:
        return torch.tensor(0, device=model.device), ""
    number = 0 if options["label"] is None else model.number(options["label"])
    (name,) = grids.class_words(model.class_names, [number])
    return torch.tensor(number, device=model.device), f", label {name}"


def _dims(model: TrainedVAE, options: GenerateOptions, n: int, labels: Tensor) -> list[int]:
    """Return the latents of the options, or n in order of their KL, or else of how they change images of labels [L]."""
    check_dims(options["dims"] or [], model)
    by_kl = latent_walks.most_kl(model.kl_per_dim)
    return options["dims"] or (by_kl or latent_walks.most_change(model.model, labels))[:n]


def check_dims(dims: list[int], model: TrainedVAE) -> None:
    """Raise UserError for a latent dimension that the model does not have."""
    if wrong := [dim for dim in dims if dim >= model.model.z_dim]:
        raise UserError(f"dims: there is no latent {wrong[0]}; this model has 0 to {model.model.z_dim - 1}.")


def _require_prior(model: TrainedVAE, requested: str, instead: str) -> None:
    if not model.model.stochastic:
        raise UserError(f"{requested}: an autoencoder has no prior to say where its codes lie. Use {instead}.")


def _require_room(model: TrainedVAE, n: int, requested: str, options: GenerateOptions) -> None:
    """Raise UserError for more images than one picture can show or memory may hold at once."""
    if options["format"] in PICTURES:
        if n > MAX_GRID:
            raise UserError(f"{requested}; a picture shows up to {MAX_GRID:,} images.")
        if (scale := options["scale"]) and n * math.prod(model.x_shape[1:]) * scale**2 > MAX_PIXELS:
            raise UserError(f"scale={scale}: {n:,} images would have more than {MAX_PIXELS:,} pixels.")
    most = MAX_BYTES // (4 * math.prod(model.x_shape))
    if n > most:
        shape = "x".join(map(str, model.x_shape))
        raise UserError(f"{requested}; of {shape} pixels up to {most:,} are held in memory ({MAX_BYTES / 1e9:g} GB).")


def _own_images(model: TrainedVAE, options: GenerateOptions) -> tuple[Tensor, list[str]]:
    settings = model.config["dataset"]
    return read_images(str(options["inputs"]), model.x_shape, settings.get("crop"), settings.get("white"))


def _images(model: TrainedVAE, options: GenerateOptions, n: int | None) -> tuple[Tensor, Tensor, str]:
    """Return n images or all, the user's own or held-out ones with classes in turn, with labels and their source."""
    if options["inputs"] is not None:
        x, files = _own_images(model, options)
        return x[:n], _labels_of_inputs(model, options, files[:n]), "given images"
    split = model.read_data(options["dataset"]["root"]).split(options["split"])
    order = torch.randperm(len(split), generator=build.generator(options["seed"], "images"))
    if options["label"] is not None:
        order = order[split.y[order].cpu() == model.number(options["label"])]
        if not len(order):
            raise UserError(f"label={as_typed(options['label'])}: none of the {options['split']} images has it.")
    if n is not None:  # of images without classes one of each part of the split
        kinds = split.y[order] if len(split.y.unique()) > 1 else order * n // len(split)
        order = order[grids.in_turn(kinds)[:n]]
    split = split[order]
    return split.x, split.y, f"{options['split']} images"


def _labels_of_inputs(model: TrainedVAE, options: GenerateOptions, files: list[str]) -> Tensor:
    """Return the label of the options, or each image's from a table as in training, or else from its class folder.

    Raises UserError for images without one.
    """
    if not model.model.n_classes or options["label"] is not None:
        return model.labels(options["label"], len(files)).cpu()
    settings, path, key = model.config["dataset"], expand(str(options["inputs"])), f"inputs={options['inputs']}"
    factors, conditions = settings.get("factors"), model.conditions
    columns = names_in(settings.get("label")) + names_in(settings.get("condition"))
    root, table = (
        path if path.is_dir() else path.parent,
        Path(factors).name if columns and isinstance(factors, str) else "",
    )
    names, words, where = list(model.class_names), list(map(class_folder, files)), "the folder "
    if table and (root / table).exists():
        read = [read_column(f"{key}: {table}", root, table, files, column) for column in columns]
        if conditions:
            read = [words, *read] if len(read) < len(conditions.names) else read  # after the class folders
            return torch.tensor([model.number(list(values)) for values in zip(*read, strict=True)])
        words, where = read[0], f"in {table} "
    words = list(map(printable, words))
    if unknown := [word for word in words if word not in names]:
        wrong = f"{where}{unknown[0]} is none of its classes" if unknown[0] else "some images lie in no folder below it"
        beside = f"name it in the column {columns[0]} of {table} beside them, " if table else ""
        raise UserError(
            f"label: this model is conditional; {key}: {wrong}. Put each image into a folder of its class, one of "
            f"{shortened(', '.join(names))}, {beside}or give all of them one with label=."
        )
    return torch.tensor([names.index(word) for word in words])
