"""Score samples: features of a reference classifier, their statistics and distances."""

import importlib.util
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from vae_exp.config import build
from vae_exp.config.schema import EvaluateOptions
from vae_exp.datasets.splits import Split, batches
from vae_exp.errors import UserError
from vae_exp.evaluation import reference_classifier
from vae_exp.figures import grids
from vae_exp.scores import features as of_images
from vae_exp.scores.frechet import Moments, frechet_of, kid_of_subsets
from vae_exp.scores.neighbours import K_DENSITY, K_MANIFOLD, neighbour_scores, squared_distances
from vae_exp.training import arrays
from vae_exp.training.precision import full_precision

Features = Callable[[Tensor], Tensor]  # of images [B, C, H, W] in [0, 1], [B, D]
COMPARED = 10_000  # images whose features are held at once, for the scores of pairs: memory is flat in their number
LARGEST_COVARIANCE = 4096  # features: that of more takes minutes and gigabytes


@dataclass
class FeatureStats:
    """The statistics that scores need of a set of images: sums over all, and the features of up to COMPARED of them."""

    moments: Moments | None  # None where their covariance is too large
    rows: Tensor  # [min(N, COMPARED), D]


def real_stats(split: Split, n: int, key: str, features: Features) -> FeatureStats:
    """Return the statistics of n real images, or of all, from the cache or else computed now and cached."""
    split = split[random_rows(len(split), n)]
    path = reference_classifier.cache() / f"{reference_classifier.digest(split)}-{key}.npz"
    if (content := arrays.read(path)) and (kept := _kept(content, len(split))):
        return kept
    seen = gather((x for x, _ in batches(split, 1000)), len(split), features, "real images")
    made = {"rows": seen.rows}
    if seen.moments:
        made |= {"mean": seen.moments.mean, "scatter": seen.moments.scatter}
    arrays.write(path, {name: values.numpy() for name, values in made.items()})
    return seen


def _kept(content: dict[str, np.ndarray], n: int) -> FeatureStats | None:
    """Return the content of a cache file for n images, or None if it cannot be what was written."""
    types = {"rows": np.float32} | ({"mean": np.float64, "scatter": np.float64} if "mean" in content else {})
    if not arrays.are_numbers(content, types) or content["rows"].ndim != 2:
        return None
    held, dims = content["rows"].shape
    has_moments = dims <= LARGEST_COVARIANCE
    if held != min(n, COMPARED) or has_moments != ("mean" in content):
        return None
    if has_moments and (content["mean"].shape != (dims,) or content["scatter"].shape != (dims, dims)):
        return None
    found = {name: torch.from_numpy(values) for name, values in content.items()}
    return FeatureStats(Moments(n, found["mean"], found["scatter"]) if has_moments else None, found["rows"])


def gather(images: Iterable[Tensor], n: int, features: Features, what: str) -> FeatureStats:
    """Return the statistics of all n images, with a progress bar that says what they are."""
    moments: Moments | None = None
    rows: list[Tensor] = []
    held = 0
    with tqdm(total=n, desc=what, unit="image", disable=None, leave=False) as bar:
        for x in images:
            found = features(x).cpu()
            if found.shape[1] <= LARGEST_COVARIANCE:
                more = Moments.of(found)
                moments = moments.joined(more) if moments else more
            if held < COMPARED:
                rows.append(found[: COMPARED - held])
                held += len(rows[-1])
            bar.update(len(x))
    return FeatureStats(moments, torch.cat(rows))


def random_rows(of: int, n: int) -> Tensor:
    """Return the rows of n images, or of all, in random order: neighbours in a file are often alike."""
    return torch.randperm(of, generator=build.generator(0, "compared"))[:n]


if TYPE_CHECKING:
    from vae_exp.datasets import Data
    from vae_exp.inference import TrainedVAE

Judged = Callable[[], tuple[nn.Sequential, str]]  # the judge of the data, trained when it is first asked for
IN_PAIRS = ("precision", "recall", "density", "coverage")
FEWEST = {"frechet": 2, "kid": 2, "precision": K_MANIFOLD + 1, "recall": K_MANIFOLD + 1}  # real images
FEWEST |= {"density": K_DENSITY + 1, "coverage": K_DENSITY + 1}
SHOWN, NEIGHBOURS = 10, 7  # samples in the picture, and training images beside each
MEASURED = 1000  # samples whose nearest training image is looked for


def check(options: EvaluateOptions) -> None:
    """Raise UserError for features whose package is not installed, before anything is read."""
    if options["samples"] and options["features"] == "inception" and not importlib.util.find_spec("torch_fidelity"):
        raise UserError(of_images.PACKAGE)


def scored(
    model: "TrainedVAE", data: "Data", split: Split, judged: Judged, options: EvaluateOptions
) -> tuple[dict[str, dict[str, Any]], dict[str, np.ndarray]]:
    """Return the scores by sampler and features, such as prior/classifier, and the picture of neighbours by name.

    Raises UserError for features that do not suit the data, and for fewer images than the scores need.
    """
    drawn = f"{options['sampler']}/{options['features']}"
    _check_images(model, data, split, options)
    scores, neighbours = score(model, data, split, judged, options)
    if neighbours is None:
        return {drawn: scores}, {}
    title = f"a row: a sample ({options['sampler']}), then the training images nearest to it"
    sheet = grids.label_sheet(grids.grid(neighbours.flatten(0, 1), neighbours.shape[1]), title)
    return {drawn: scores}, {f"nearest_{drawn.replace('/', '_')}": sheet}


def _check_images(model: "TrainedVAE", data: "Data", split: Split, options: EvaluateOptions) -> None:
    """Raise UserError for the reasons that `scored` gives, before anything is drawn or trained."""
    if options["features"] == "classifier" and data.n_classes < 2:
        raise UserError("features=classifier: this data set has no labels to train one on; use pixels or inception.")
    for name, fewest in FEWEST.items():
        if name in options["samples"] and len(split) < fewest:
            raise UserError(
                f"samples=[{name}]: needs {fewest} real images or more, and split={options['split']} has {len(split)}."
            )
    n_features = math.prod(model.x_shape) if options["features"] == "pixels" else 0
    if "frechet" in options["samples"] and n_features > LARGEST_COVARIANCE:
        raise UserError(
            f"samples=[frechet]: {n_features:,} pixels have too large a covariance; choose other features or other "
            "scores."
        )


@torch.no_grad()
@full_precision()
def score(
    model: "TrainedVAE", data: "Data", split: Split, judged: Judged, options: EvaluateOptions
) -> tuple[dict[str, Any], Tensor | None]:
    """Return each score of the samples and, as NAME_real, of other real images in their place, and a picture or None.

    The picture has samples beside their nearest training images [R, 1 + K, C, H, W], if those were asked for.
    """
    draw = model.sampler(options["sampler"], options["dataset"]["root"])
    key, features = _features(options["features"], model, judged)
    names, n = options["samples"], options["n_samples"]

    def samples() -> Iterator[Tensor]:
        noise = build.generator(options["seed"], "samples")  # the images of vae-generate what=samples
        for x, _ in model.samples(n, None, draw, noise):
            yield x.clamp(0, 1).mul(255).round().div(255)  # as image files have them

    found: dict[str, Any] = {"n": n, "seed": options["seed"]}
    picture = None
    if set(names) - {"nearest"}:
        other = data.split("test") if options["split"] == "train" else data.read_train()
        real = real_stats(split.to(model.device), len(split), key, features)
        found |= _scores(real, gather(samples(), n, features, "samples"), names)
        instead = _scores(real, real_stats(other.to(model.device), n, key, features), names)
        found |= {f"{name}_real": value for name, value in instead.items()}
    if "nearest" in names:
        few = torch.cat(list(_first(samples(), MEASURED)))
        held_out = data.split("test") if options["split"] == "train" else split
        held = held_out[random_rows(len(held_out), MEASURED)].to(model.device).x.float() / 255
        train = data.train.to(model.device)
        distances, rows = _nearest(features(torch.cat([few, held])), train, features, options["batch_size"])
        found["nearest"] = distances[: len(few), 0].median().item()
        found["nearest_real"] = distances[len(few) :, 0].median().item()
        beside = train[rows[:SHOWN].flatten().to(train.y.device)].x.float() / 255
        picture = torch.cat([few[:SHOWN, None], beside.view(min(SHOWN, len(few)), -1, *beside.shape[1:])], dim=1)
    return found, picture


def _scores(real: FeatureStats, fake: FeatureStats, names: Sequence[str]) -> dict[str, float]:
    found = {}
    if "frechet" in names:
        assert real.moments and fake.moments, "too many features were refused"
        found["frechet"] = frechet_of(real.moments, fake.moments)
    if "kid" in names:
        found["kid"] = kid_of_subsets(real.rows, fake.rows).mean().item()
    if pairs := [name for name in IN_PAIRS if name in names]:
        found |= neighbour_scores(real.rows, fake.rows, pairs)
    return found


def _first(images: Iterable[Tensor], n: int) -> Iterator[Tensor]:
    """Yield the first n images, batch by batch."""
    for x in images:
        yield x[:n]
        n -= len(x)
        if n <= 0:
            return


def _nearest(queries: Tensor, train: Split, features: Features, batch_size: int) -> tuple[Tensor, Tensor]:
    """Return distances and rows of the training images nearest to each query [M, D], the nearest first: both [M, K]."""
    distance, nearest, at = torch.empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.long), 0
    with tqdm(total=len(train), desc="training images", unit="image", disable=None, leave=False) as bar:
        for x, _ in batches(train, batch_size):
            here = squared_distances(queries, features(x)).cpu()
            rows = torch.arange(at, at + len(x)).expand(len(queries), -1)
            both = torch.cat([distance, here], dim=1)
            distance, place = both.topk(min(NEIGHBOURS, both.shape[1]), largest=False)
            nearest, at = torch.cat([nearest, rows], dim=1).gather(1, place), at + len(x)
            bar.update(len(x))
    return distance.sqrt(), nearest


def _features(name: str, model: "TrainedVAE", judged: Judged) -> tuple[str, Features]:
    """Return a name that identifies the features, and the function that computes them.

    Raises UserError if the features' network cannot be downloaded.
    """
    if name == "pixels":
        return name, of_images.pixels
    if name == "inception":
        return name, of_images.Inception(model.device)
    classifier, key = judged()
    return key, lambda x: reference_classifier.features(classifier, x)
