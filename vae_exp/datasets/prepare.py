"""Turn a source of images into the splits of a run: split, binarise, fingerprint, validate."""

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vae_exp.datasets.factors import Factors
from vae_exp.datasets.splits import Source, Split, Streamed, size_in_bytes
from vae_exp.errors import UserError, printable

ROWS = 64  # images looked at of a split that no file is known of
LABELS = 2**18  # of fewer images all labels and factors are looked at, of more each second, third, ...
MAX_RANGES = 256  # of files in a record, which every checkpoint holds: so many files or fewer are recorded one by one
SHOWN = 3  # names in a message


@dataclass(frozen=True)
class Fingerprint:
    """The number of images, the classes, and digests of labels, of factors and of what the images are read from."""

    images: dict[str, int]  # of train, and of val where the data come with one
    class_names: list[str]
    labels: dict[str, str]
    files: dict[str, str]  # by their names, or of the data that are no files by the names of their splits

    def digest(self) -> str:
        """Return a digest that depends on the images, and not on their labels."""
        return _hashed([*(f"{part} {n}" for part, n in sorted(self.images.items())), *self._lines(sorted(self.files))])

    def record(self) -> dict[str, Any]:
        """Return a short record of plain values for the checkpoint, with which `changes` compares later data."""
        names = sorted(self.files)
        size = max(1, -(-len(names) // MAX_RANGES))
        parts = [names[at : at + size] for at in range(0, len(names), size)]
        ranges = [[part[0], part[-1], len(part), _hashed(self._lines(part))] for part in parts]
        return {"images": self.images, "class_names": self.class_names, "labels": self.labels, "files": ranges}

    def changes(self, record: Mapping[str, Any]) -> list[str]:
        """Return, in words, the differences from the record of earlier data; nothing if all is the same."""
        told = []
        if self.class_names != record["class_names"]:
            told.append(f"the classes are {_listed(self.class_names)}, and were {_listed(record['class_names'])}")
        told += self._changed_files(record["files"])
        if not told:
            for part in {**record["images"], **self.images}:
                now, then = self.images.get(part, 0), record["images"].get(part, 0)
                told += [f"{now:,} images for {part}, and were {then:,}"] if now != then else []
        if not told:
            names = {**record["labels"], **self.labels}
            told += [f"other {name}" for name in names if self.labels.get(name) != record["labels"].get(name)]
        return told

    def _changed_files(self, ranges: list[list[Any]]) -> list[str]:
        """Return which files are new, gone or changed, or between which names; a range goes up to the next one."""
        starts = [first for first, *_ in ranges]
        now: list[list[str]] = [[] for _ in ranges]
        found: dict[str, list[str]] = {"new": [], "gone": [], "changed": [], "among": []}
        for name in sorted(self.files):
            at = bisect_right(starts, name)
            (now[at - 1] if at else found["new"]).append(name)
        for (first, last, n, digest), names in zip(ranges, now, strict=True):
            if _hashed(self._lines(names)) == digest:
                continue
            if n > 1:
                found["among"].append(
                    f"{first} to {last}" + (f" ({len(names)}, and were {n})" if len(names) != n else "")
                )
                continue
            found["new"] += [name for name in names if name != first]
            if first not in names:
                found["gone"].append(first)
            elif _hashed(self._lines([first])) != digest:
                found["changed"].append(first)
        total, before = len(self.files), sum(n for _, _, n, _ in ranges)
        told = [f"{total:,} files, and were {before:,}"] if total != before else []
        return told + [f"{kind} {_listed(names)}" for kind, names in found.items() if names]

    def _lines(self, names: Iterable[str]) -> list[str]:
        return [f"{name}\0{self.files[name]}" for name in names]


def fingerprint(source: Source) -> Fingerprint:
    """Return the fingerprint of a dataset: from the digests of its files, or of some images of each split.

    A test split that is not at hand is not read for it: it is read once, at the end of training.
    """
    splits = {"train": source.train} | ({} if source.val is None else {"val": source.val})
    images = {part: len(split) for part, split in splits.items()}
    if source.test_is_at_hand:
        splits["test"] = source.read_test()
    labels = {f"labels of {part}": _of_tensor(split.y) for part, split in splits.items()}
    for part, split in splits.items():
        if split.factors is not None:
            labels[f"factors of {part}"] = _of_tensor(split.factors.table)
    files = source.files
    if files is None:
        files = {f"images of {part}": _of_images(split) for part, split in splits.items()}
    return Fingerprint(images, list(source.class_names), labels, files)


def _of_images(split: Split) -> str:
    """Return a digest of the number and shape of the images and of evenly spread rows of them."""
    rows = torch.linspace(0, len(split) - 1, min(ROWS, len(split))).round().long()
    images = split.images[rows]
    shown = images.read() if isinstance(images, Streamed) else images
    return _hashed([f"{list(split.images.shape[1:])} {len(split)}"], shown)


def _of_tensor(values: Tensor) -> str:
    return _hashed([str(list(values.shape))], values[:: 1 + len(values) // LABELS])


def _hashed(lines: Iterable[str], values: Tensor | None = None) -> str:
    digest = hashlib.sha256("\n".join(lines).encode(errors="surrogateescape"))
    if values is not None:
        digest.update(values.cpu().contiguous().numpy().data)
    return digest.hexdigest()[:16]


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(map(printable, names[:SHOWN])) + more if names else "none"


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


def require_source(found: Any, target: str) -> Source:
    """Return what the function named target returned; its test split is checked when it is read.

    Raises UserError if that is not a Source, and for images and labels that do not go together.
    """
    if not isinstance(found, Source):
        raise UserError(
            f"dataset._target_={target}: it must return a vae_exp.datasets.Source, and returned {_kind(found)}."
        )
    wrong = None
    if not isinstance(found.class_names, list | tuple) or not all(isinstance(name, str) for name in found.class_names):
        wrong = "class_names must be a list of text, the name of each label"
    elif not callable(found.read_test):
        wrong = f"read_test must be a function that returns the test split, not {_kind(found.read_test)}"
    wrong = wrong or _why_unsound("train", found.train, found)
    if wrong is None and found.val is not None:
        wrong = _why_unsound("val", found.val, found)
    if wrong:
        raise UserError(f"dataset._target_={target}: of the Source that it returned, {wrong}.")
    return replace(found, read_test=_reader(found, target))


def _reader(source: Source, target: str) -> Callable[[], Split]:
    def read_test() -> Split:
        split = source.read_test()
        if wrong := _why_unsound("test", split, source):
            raise UserError(f"dataset._target_={target}: of the Source that it returned, {wrong}.")
        return split

    return read_test


def _why_unsound(part: str, split: Any, source: Source) -> str | None:
    """Return what is wrong with a split, in words, or None."""
    if not isinstance(split, Split):
        return f"{part} must be a vae_exp.datasets.Split, not {_kind(split)}"
    images, y = split.images, split.y
    held = images.source if isinstance(images, Streamed) else images
    if not isinstance(images, Tensor | Streamed) or (isinstance(held, Tensor) and held.dtype != torch.uint8):
        return f"the images of {part} must be a tensor of uint8, 0 to 255, not {_kind(held)}"
    if len(images.shape) != 4 or 0 in images.shape[1:]:
        return f"the images of {part} must have the shape [N, C, H, W], not {list(images.shape)}"
    if not isinstance(y, Tensor) or y.dtype != torch.int64 or y.ndim != 1:
        return f"the labels of {part} must be a tensor of int64 [N], not {_kind(y)}"
    if len(images) != len(y):
        return f"{part} has {len(images):,} images and {len(y):,} labels"
    if not len(y):
        return f"{part} is empty" + ("; val=None where there are no validation images" if part == "val" else "")
    if images.shape[1:] != source.train.images.shape[1:]:
        return f"the images of {part} are {split.x_shape}, and those of train {source.train.x_shape}"
    if wrong := _why_factors_unsound(part, split):
        return wrong
    low, high = int(y.min()), int(y.max())
    if low < 0 or (source.class_names and high >= len(source.class_names)):
        of = f", and there are {len(source.class_names):,} class_names" if low >= 0 else ""
        return f"the labels of {part} go from {low} to {high:,}{of}"
    return None


def _why_factors_unsound(part: str, split: Split) -> str | None:
    factors = split.factors
    if factors is None:
        return None
    if not isinstance(factors, Factors):
        return f"the factors of {part} must be a vae_exp.datasets.Factors, not {_kind(factors)}"
    table, n = factors.table, len(factors.names)
    if not isinstance(table, Tensor) or table.dtype != torch.int64 or table.shape != (len(split), n):
        return f"the factors of {part} must be a tensor of int64 {[len(split), n]}, not {_kind(table)}"
    if not all(isinstance(name, str) for name in factors.names) or len(set(factors.names)) < n:
        return f"the names of the factors of {part} must be different texts, not {list(factors.names)}"
    if len(factors.sizes) != n:
        return f"the factors of {part} have {n} names and {len(factors.sizes)} sizes"
    if n and (bool((table < 0).any()) or bool((table >= torch.tensor(factors.sizes)).any())):
        return f"the factors of {part} must be numbered from 0 to below their sizes {list(factors.sizes)}"
    return None


def _kind(value: Any) -> str:
    """Return the kind of a value in words: for an array, its type and shape."""
    name = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    if isinstance(value, Tensor) or hasattr(value, "dtype"):
        return f"{name} of {str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    return name
