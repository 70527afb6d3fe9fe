"""Score samples: the features of samples and of real images, their statistics and distances."""

import importlib.util
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from vae_exp.config import build
from vae_exp.config.schema import EvaluateOptions
from vae_exp.datasets import Data
from vae_exp.datasets.splits import Split, batches
from vae_exp.errors import UserError
from vae_exp.evaluation import reference_classifier
from vae_exp.figures import grids
from vae_exp.files import cache_folder, read_arrays, write_arrays
from vae_exp.inference import TrainedVAE
from vae_exp.scores import features as image_features
from vae_exp.scores.frechet import Moments, frechet_of, kid
from vae_exp.scores.neighbours import neighbour_scores, squared_distances
from vae_exp.training.precision import full_precision

Features = Callable[[Tensor], Tensor]  # of images [B, C, H, W] in [0, 1], [B, D]
Classifier = Callable[[], tuple[nn.Sequential, str]]  # the reference classifier, trained when it is first asked for
COMPARED = 10_000  # images whose features are held at once, for the scores of pairs: memory is flat in their number
MAX_COVARIANCE = 4096  # features: that of more takes minutes and gigabytes
PAIR_SCORES = ("precision", "recall", "density", "coverage")
PICTURED, NEIGHBOURS = 10, 7  # samples in the picture, and training images beside each
MEASURED = 1000  # samples whose nearest training image is looked for


@dataclass
class FeatureStats:
    """Statistics that scores need of a set of images: sums over all, and the features of up to COMPARED of them."""

    moments: Moments | None  # None where their covariance is too large
    rows: Tensor  # [min(N, COMPARED), D]


def random_rows(length: int, n: int) -> Tensor:
    """Return the rows of n images, or of all, in random order."""
    return torch.randperm(length, generator=build.generator(0, "compared"))[:n]


def real_stats(split: Split, n: int, key: str, features: Features) -> FeatureStats:
    """Return the statistics of n real images, or of all, from the cache or else computed now and cached."""
    split = split[random_rows(len(split), n)]
    path = cache_folder("features") / f"{reference_classifier.digest(split)}-{key}.npz"
    cached = read_arrays(path, {"rows": np.float32, "mean": np.float64, "scatter": np.float64})
    if cached and len(cached["rows"]) == min(len(split), COMPARED):
        rows, mean, scatter = (torch.from_numpy(cached[name]) for name in ("rows", "mean", "scatter"))
        return FeatureStats(Moments(len(split), mean, scatter), rows)
    stats = gather((x for x, _ in batches(split, 1000)), len(split), features, "real images")
    if stats.moments:  # else they are pixels, which are at hand as they are
        content = {"rows": stats.rows, "mean": stats.moments.mean, "scatter": stats.moments.scatter}
        write_arrays(path, {name: values.numpy() for name, values in content.items()})
    return stats


def gather(images: Iterable[Tensor], n: int, features: Features, what: str) -> FeatureStats:
    """Return the statistics of all n images, with a progress bar that says what they are."""
    moments: Moments | None = None
    rows: list[Tensor] = []
    with tqdm(total=n, desc=what, unit="image", disable=None, leave=False) as bar:
        for x in images:
            batch = features(x).cpu()
            if batch.shape[1] <= MAX_COVARIANCE:
                more = Moments.of(batch)
                moments = moments.joined(more) if moments else more
            if (held := sum(map(len, rows))) < COMPARED:
                rows.append(batch[: COMPARED - held])
            bar.update(len(x))
    return FeatureStats(moments, torch.cat(rows))


def check(options: EvaluateOptions) -> None:
    """Raise UserError for features whose package is not installed, before anything is read."""
    if options["samples"] and options["features"] == "inception" and not importlib.util.find_spec("torch_fidelity"):
        raise UserError(image_features.PACKAGE)


def evaluate_samples(
    model: TrainedVAE, data: Data, split: Split, classifier: Classifier, options: EvaluateOptions
) -> tuple[dict[str, dict[str, Any]], dict[str, np.ndarray]]:
    """Return the scores by sampler and features, such as prior/classifier, and the picture of neighbours by name."""
    if not options["samples"]:
        return {}, {}
    if options["features"] == "classifier" and data.n_classes < 2:
        raise UserError("features=classifier: this data set has no labels to train one on; use pixels or inception.")
    n_pixels = math.prod(model.x_shape)
    if "frechet" in options["samples"] and options["features"] == "pixels" and n_pixels > MAX_COVARIANCE:
        raise UserError(f"samples=[frechet]: {n_pixels:,} pixels have too large a covariance; choose other features.")
    source = f"{options['sampler']}/{options['features']}"
    scores, neighbours = score(model, data, split, classifier, options)
    if neighbours is None:
        return {source: scores}, {}
    title = f"a row: a sample ({options['sampler']}), then the training images nearest to it"
    figure = grids.walk_sheet(neighbours, title).pixels()
    return {source: scores}, {f"nearest_{source.replace('/', '_')}": figure}


@torch.no_grad()
@full_precision()
def score(
    model: TrainedVAE, data: Data, split: Split, classifier: Classifier, options: EvaluateOptions
) -> tuple[dict[str, Any], Tensor | None]:
    """Return scores of samples and, as NAME_real, of real images in their place; and neighbours [R, 1 + K, C, H, W]."""
    draw = model.sampler(options["sampler"], options["dataset"]["root"])
    key, features = _features(options["features"], model, classifier)
    names, n = options["samples"], options["n_samples"]
    is_train = options["split"] == "train"

    def samples() -> Iterator[Tensor]:
        noise = build.generator(options["seed"], "samples")  # the images of vae-generate what=samples
        for x, _ in model.samples(n, None, draw, noise):
            yield x.clamp(0, 1).mul(255).round().div(255)  # as image files have them

    result: dict[str, Any] = {"n": n, "seed": options["seed"]}
    if set(names) - {"nearest"}:
        other = data.split("test") if is_train else data.read_train()
        real = real_stats(split.to(model.device), len(split), key, features)
        result |= _distances(real, gather(samples(), n, features, "samples"), names)
        baseline = _distances(real, real_stats(other.to(model.device), n, key, features), names)
        result |= {f"{name}_real": value for name, value in baseline.items()}
    if "nearest" not in names:
        return result, None
    fake = next(samples())[:MEASURED]
    held_out = data.split("test") if is_train else split
    held_out = held_out[random_rows(len(held_out), MEASURED)].to(model.device)
    train = data.train.to(model.device)
    queries = features(torch.cat([fake, held_out.x.float() / 255]))
    distances, rows = _nearest(queries, train, features, options["batch_size"])
    result["nearest"] = distances[: len(fake), 0].median().item()
    result["nearest_real"] = distances[len(fake) :, 0].median().item()
    rows = rows[: min(PICTURED, len(fake))]
    beside = train[rows.flatten().to(train.y.device)].x.float() / 255
    return result, torch.cat([fake[:PICTURED, None], beside.unflatten(0, rows.shape)], dim=1)


def _distances(real: FeatureStats, fake: FeatureStats, names: Sequence[str]) -> dict[str, float]:
    scores: dict[str, float] = {}
    if "frechet" in names:
        assert real.moments and fake.moments, "too many features were refused"
        scores["frechet"] = frechet_of(real.moments, fake.moments)
    if "kid" in names:
        scores["kid"] = kid(real.rows, fake.rows)
    if pairs := [name for name in PAIR_SCORES if name in names]:
        scores |= neighbour_scores(real.rows, fake.rows, pairs)
    return scores


def _nearest(queries: Tensor, train: Split, features: Features, batch_size: int) -> tuple[Tensor, Tensor]:
    """Return distances and rows of the training images nearest to each query [M, D], the nearest first: both [M, K]."""
    distances, nearest = torch.empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.long)
    with tqdm(total=len(train), desc="training images", unit="image", disable=None, leave=False) as bar:
        for number, (x, _) in enumerate(batches(train, batch_size)):
            rows = (number * batch_size + torch.arange(len(x))).expand(len(queries), -1)
            both = torch.cat([distances, squared_distances(queries, features(x)).cpu()], dim=1)
            distances, columns = both.topk(min(NEIGHBOURS, both.shape[1]), largest=False)
            nearest = torch.cat([nearest, rows], dim=1).gather(1, columns)
            bar.update(len(x))
    return distances.sqrt(), nearest


def _features(name: str, model: TrainedVAE, classifier: Classifier) -> tuple[str, Features]:
    """Return a name that identifies the features, and the function that computes them."""
    if name == "pixels":
        return name, image_features.pixels
    if name == "inception":
        return name, image_features.Inception(model.device)
    network, key = classifier()
    return key, network[:3]  # the hidden units, by which it tells classes apart
