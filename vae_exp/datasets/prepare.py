"""The step from a dataset to the data of a run: the options that all datasets share, in one place."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vae_exp.datasets.fingerprint import Fingerprint, fingerprint
from vae_exp.datasets.splits import Source, Split, Streamed, size_in_bytes
from vae_exp.errors import UserError, printable


@dataclass
class Data:
    """A dataset as a run uses it. Its shapes decide the model's, so that nobody types 784."""

    name: str
    train: Split
    val: Split  # may be empty
    read_test: Callable[[], Split]
    n_classes: int  # 0 where there are no labels
    class_names: list[str]
    read_train: Callable[[], Split]  # with the images that were split off for validation, or left out by train_size
    fingerprint: Fingerprint | None = None  # of all of the dataset, whatever part of it was chosen

    def split(self, name: str) -> Split:
        """Return train, val or test. Raises UserError for a validation split that is empty."""
        chosen = self.read_test() if name == "test" else getattr(self, name)
        if not len(chosen):
            raise UserError(f"split={name}: the model was trained with dataset.val_size=0, on all; use split=test.")
        return chosen

    @property
    def x_shape(self) -> tuple[int, int, int]:
        return self.train.x_shape


def prepare(
    source: Source,
    /,
    *,
    val_size: int | float,
    seed: int,
    n_classes: int | None = None,
    train_size: int | float | None = None,
    labels: list[int | str] | None = None,
    binarize: str = "none",
    flip: bool = False,
    device_memory: int | str = "2GB",
) -> Data:
    """Choose classes, split off validation images by seed, choose a part, binarise, and place in memory or stream.

    A size below 1 is a fraction. n_classes is the data's if it is null, and 0 hides the labels. Images taken for
    validation are the same whatever train_size is. Raises UserError for options that this data cannot satisfy, and for
    labels that leave nothing to train on, to validate with or, when it is read, to test on.
    """
    limit = size_in_bytes(device_memory)
    kept = _kept_labels(source, labels)
    names = [printable(source.class_names[label]) for label in kept]
    largest = len(names) - 1 if names else int(source.train.y.max())
    if n_classes and largest >= n_classes:
        raise UserError(f"dataset.n_classes={n_classes}: {source.name} has labels up to {largest}.")

    def require_some(split: Split, part: str) -> None:
        if labels is not None and not torch.isin(split.y, torch.tensor(kept)).any():
            shown = ",".join(printable(label) for label in labels)
            raise UserError(f"dataset.labels=[{shown}]: none of the {len(split):,} {part} images has such a label.")

    def chosen(split: Split, how: str, part: str = "training") -> Split:
        require_some(split, part)
        # Binarised first: which images are chosen must not change the draw that an image meets.
        split = _binarized(split.placed(limit), how)
        return split if labels is None else _with_labels(split, kept)

    if source.test_is_at_hand:
        require_some(source.read_test(), "test")
    before = "none" if binarize == "dynamic" else binarize
    held_out = "static" if binarize == "dynamic" else binarize
    train = chosen(source.train, before)
    by_seed = torch.Generator().manual_seed(seed)
    if source.val is None:
        rows = torch.randperm(len(train), generator=by_seed)
        n_val = count(val_size, len(train))
        if n_val >= len(train):
            raise UserError(
                f"dataset.val_size={val_size}: {source.name} has {len(train):,} training images; "
                "leave at least one of them."
            )
        held = rows[:n_val].sort().values
        if binarize != "dynamic":
            val = train[held]
        elif isinstance(train.images, Streamed):
            val = _binarized(train[held].placed(limit), "static")
        else:  # the draw that binarize=static gives them
            val = chosen(source.train, "static")[held]
        rows = rows[n_val:]
    else:
        val = chosen(source.val, held_out, "validation")[: None if val_size else 0]
        rows = torch.randperm(len(train), generator=by_seed)
    n_train = len(rows) if train_size is None else count(train_size, len(rows))
    if not 0 < n_train <= len(rows):
        raise UserError(f"dataset.train_size={train_size}: {source.name} has {len(rows):,} images left for training.")
    train = train if n_train == len(train) else train[rows[:n_train].sort().values]
    return Data(
        name=source.name,
        train=replace(train.placed(limit), flip=flip, dynamic=binarize == "dynamic"),
        val=val.placed(limit),
        read_test=lambda: chosen(source.read_test(), held_out, "test").placed(limit),
        n_classes=len(names) if n_classes is None else n_classes,
        class_names=[] if n_classes == 0 else names,
        read_train=lambda: chosen(source.train, before),
        fingerprint=fingerprint(source),
    )


def count(size: int | float, of: int) -> int:
    """Return a whole number as it is, and a fraction as that part of the images: at least one if it is not 0."""
    return size if isinstance(size, int) else max(1, round(size * of)) if size else 0


def with_test(split: Split, test_size: int | float, of: str) -> tuple[Split, Split]:
    """Return the images to train on, and test_size of them set aside, the same for every seed.

    Raises UserError if nothing is left to train on.
    """
    n_test = count(test_size, len(split))
    if n_test >= len(split):
        raise UserError(
            f"dataset.test_size={test_size}: {of} has {len(split):,} usable image{'s' * (len(split) > 1)}; "
            "training and testing need at least one each."
        )
    return split_off(split, n_test)


def split_off(split: Split, n: int) -> tuple[Split, Split]:
    """Return the remaining images, and n that are chosen at random, always the same ones."""
    rows = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))
    return split[rows[n:].sort().values], split[rows[:n].sort().values]


def _kept_labels(source: Source, labels: list[int | str] | None) -> list[int]:
    """Return the numbers of the labels to use, given by names or numbers, in the data's own order."""
    if labels is None:
        return list(range(len(source.class_names)))
    numbers = {str(number): number for number in range(len(source.class_names))}
    class_names = list(map(printable, source.class_names))
    known = numbers | {name: number for number, name in enumerate(class_names)}
    wanted = [printable(str(label)) for label in labels]
    if unknown := [label for label in wanted if label not in known]:
        names = ", ".join(class_names) if class_names else "none"
        raise UserError(f"dataset.labels: {source.name} has no {', '.join(unknown)}. Its labels: {names}.")
    return sorted({known[label] for label in wanted})


def _with_labels(split: Split, kept: list[int]) -> Split:
    """Return the images with these labels, renumbered from 0, so that a conditional model has no empty class."""
    rows = torch.isin(split.y, torch.tensor(kept)).nonzero()[:, 0]
    chosen = split[rows]
    return replace(chosen, y=torch.searchsorted(torch.tensor(kept), chosen.y))


def _binarized(split: Split, how: str) -> Split:
    """Make every pixel black or white: by a threshold at one half, or by one fixed draw of Bernoulli(pixel).

    That draw is the same for every seed, as a binarised dataset on disk would be: otherwise runs of different seeds
    would be measured on different test images. Larochelle's files are binary already.
    """
    if how in ("none", "larochelle"):
        return split
    if isinstance(split.images, Streamed) and split.images.is_binary:
        return split
    if isinstance(split.images, Streamed):
        raise UserError(
            f"dataset.binarize: {len(split):,} images are more than dataset.device_memory, and only images in memory "
            "can be binarised once and for all. Raise dataset.device_memory, or use dataset.binarize=none."
        )
    return replace(split, images=_black_or_white(split.images, how))


def _black_or_white(x: Tensor, how: str) -> Tensor:
    if how == "threshold":
        return (x >= 128).to(torch.uint8) * 255
    fixed = torch.Generator().manual_seed(0)
    return (torch.rand(x.shape, generator=fixed) < x.float() / 255).to(torch.uint8) * 255
