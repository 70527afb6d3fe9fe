"""The statistics that scores need of a set of images: features, batch by batch; those of real images are cached."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vae_exp.cli import reference_classifier
from vae_exp.config import build
from vae_exp.datasets.splits import Split, batches
from vae_exp.scores.frechet import Moments
from vae_exp.training import arrays

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
