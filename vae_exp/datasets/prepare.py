"""Turn a source of images into the splits of a run: validate, split, binarise, fingerprint."""

import hashlib
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vae_exp.datasets.conditions import Conditions
from vae_exp.datasets.factors import Factors
from vae_exp.datasets.splits import Source, Split, Streamed, size_in_bytes
from vae_exp.errors import UserError, composed, printable

ROWS = 64  # images sampled of a split that is read from no file
LABELS = 2**18  # of fewer images all labels and factors are hashed, of more each second, third, ...
MAX_RANGES = 256  # of files in a record, which every checkpoint holds: so many files or fewer are recorded one by one
MAX_NAMES = 3  # in a message


@dataclass(frozen=True)
class Fingerprint:
    """Number of images, classes, and digests of labels, of factors and of what the images are read from."""

    images: dict[str, int]  # of train, and of val where the data come with one
    class_names: list[str]
    labels: dict[str, str]
    files: dict[str, str]  # by name; of data that are no files by split

    def digest(self) -> str:
        """Return a digest that depends on the images, and not on their labels."""
        return _hash([*(f"{part} {n}" for part, n in sorted(self.images.items())), *self._lines(sorted(self.files))])

    def record(self) -> dict[str, Any]:
        """Return a short record of plain values for the checkpoint, with which `changes` compares later data."""
        names = sorted(self.files)
        size = max(1, -(-len(names) // MAX_RANGES))
        parts = [names[at : at + size] for at in range(0, len(names), size)]
        ranges = [[part[0], part[-1], len(part), _hash(self._lines(part))] for part in parts]
        return {"images": self.images, "class_names": self.class_names, "labels": self.labels, "files": ranges}

    def changes(self, record: Mapping[str, Any]) -> list[str]:
        """Return, in words, the differences from the record of earlier data; nothing if all is the same."""
        changes = []
        if self.class_names != record["class_names"]:
            changes.append(f"the classes are {_first(self.class_names)}, and were {_first(record['class_names'])}")
        if changes := changes + self._changed_files(record["files"]):
            return changes
        for part in {**record["images"], **self.images}:
            n, before = self.images.get(part, 0), record["images"].get(part, 0)
            changes += [f"{n:,} images for {part}, and were {before:,}"] if n != before else []
        names = {**record["labels"], **self.labels}
        return changes or [f"other {name}" for name in names if self.labels.get(name) != record["labels"].get(name)]

    def _changed_files(self, ranges: list[list[Any]]) -> list[str]:
        """Return which files are new, gone or changed, or between which names; a range goes up to the next one."""
        files = sorted(self.files)
        starts = [*(bisect_left(files, first) for first, *_ in ranges), len(files)]
        changed: dict[str, list[str]] = {"new": files[: starts[0]], "gone": [], "changed": [], "among": []}
        for (first, last, n, digest), start, end in zip(ranges, starts[:-1], starts[1:], strict=True):
            names = files[start:end]
            if _hash(self._lines(names)) == digest:
                continue
            if n > 1:
                count = f" ({len(names)}, and were {n})" if len(names) != n else ""
                changed["among"].append(f"{first} to {last}{count}")
            else:
                changed["new"] += [name for name in names if name != first]
                if first not in names or _hash(self._lines([first])) != digest:
                    changed["changed" if first in names else "gone"].append(first)
        total, before = len(self.files), sum(n for _, _, n, _ in ranges)
        numbers = [f"{total:,} files, and were {before:,}"] if total != before else []
        return numbers + [f"{how} {_first(names)}" for how, names in changed.items() if names]

    def _lines(self, names: Iterable[str]) -> list[str]:
        return [f"{name}\0{self.files[name]}" for name in names]


def fingerprint(source: Source) -> Fingerprint:
    """Return the fingerprint of a dataset. A test split is not read for it, unless it is at hand."""
    splits = {"train": source.train} | ({} if source.val is None else {"val": source.val})
    n_images = {part: len(split) for part, split in splits.items()}
    if source.test_is_at_hand:
        splits["test"] = source.read_test()
    labels = {f"labels of {part}": _hash_values(split.y) for part, split in splits.items()}
    factors = {part: split.factors for part, split in splits.items() if split.factors is not None}
    labels |= {f"factors of {part}": _hash_values(values.table) for part, values in factors.items()}
    files = source.files
    if files is None:
        files = {}
        for part, split in splits.items():
            rows = torch.linspace(0, len(split) - 1, min(ROWS, len(split))).round().long()
            shape = f"{list(split.images.shape[1:])} {len(split)}"
            files[f"images of {part}"] = _hash([shape], split[rows].x)
    return Fingerprint(n_images, list(source.class_names), labels, files)


def _hash_values(values: Tensor) -> str:
    return _hash([str(list(values.shape))], values[:: 1 + len(values) // LABELS])


def _hash(lines: Iterable[str], values: Tensor | None = None) -> str:
    digest = hashlib.sha256("\n".join(lines).encode(errors="surrogateescape"))
    if values is not None:
        digest.update(values.cpu().contiguous().numpy().data)
    return digest.hexdigest()[:16]


def _first(names: list[str]) -> str:
    more = f" and {len(names) - MAX_NAMES:,} more" if len(names) > MAX_NAMES else ""
    return ", ".join(map(printable, names[:MAX_NAMES])) + more if names else "none"


@dataclass
class Data:
    """A dataset as a run uses it."""

    name: str
    train: Split
    val: Split  # may be empty
    read_test: Callable[[], Split]
    n_classes: int  # 0 where there are no labels
    class_names: list[str]
    read_train: Callable[[], Split]  # with the images that were split off for validation, or left out by train_size
    fingerprint: Fingerprint | None = None  # of all of the dataset, whatever part of it is used
    conditions: Conditions | None = None  # what each label combines, where it is more than one thing

    def split(self, name: str) -> Split:
        """Return train, val or test. Raises UserError for one that is empty."""
        split = self.read_test() if name == "test" else getattr(self, name)
        if not len(split):
            raise UserError(f"split={name}: the model was trained with dataset.val_size=0, on all; use split=test.")
        return split

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
    """Choose classes, split off validation images by seed, choose a part, binarise, and load into memory or stream.

    A size below 1 is a fraction. n_classes is the data's if it is null, and 0 hides the labels. Images taken for
    validation are the same whatever train_size is. Raises UserError for options that this data cannot satisfy.
    """
    limit, numbers = size_in_bytes(device_memory), _label_numbers(source, labels, n_classes)
    conditions, names = source.conditions, [printable(source.class_names[number]) for number in numbers]

    def load(split: Split, binarize: str, part: str = "training") -> Split:
        # Binarised first: which images are chosen must not change the draw that an image meets.
        split = _binarize(split.stream_above(limit), binarize)
        split = split if conditions is None else replace(split, given=conditions.names)
        if labels is None:
            return split
        split = split[_rows_with(split, labels, numbers, part)]  # y counts from 0: no class is empty
        return replace(split, y=torch.searchsorted(torch.tensor(numbers), split.y))

    dynamic = binarize == "dynamic"
    before, held_out = ("none", "static") if dynamic else (binarize, binarize)
    train = load(source.train, before)
    train_y = train.y  # those of validation too: numbers mean the same whatever is chosen
    rows = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    n_val = count(val_size, len(train)) if source.val is None else 0
    if n_val >= len(train):
        images = f"{source.name} has {len(train):,} training images"
        raise UserError(f"dataset.val_size={val_size}: {images}; leave at least one.")
    val_rows, rows = rows[:n_val].sort().values, rows[n_val:]
    if source.val is not None:
        val = load(source.val, held_out, "validation")[: None if val_size else 0]
    else:
        val = _validation(train, val_rows, binarize, limit, lambda: load(source.train, "static"))
    n_train = len(rows) if train_size is None else count(train_size, len(rows))
    if not 0 < n_train <= len(rows):
        raise UserError(f"dataset.train_size={train_size}: {source.name} has {len(rows):,} images left for training.")
    train = train if n_train == len(train) else train[rows[:n_train].sort().values]
    return Data(
        name=source.name,
        train=replace(train.stream_above(limit), flip=flip, dynamic=dynamic),
        val=val.stream_above(limit),
        read_test=lambda: load(source.read_test(), held_out, "test").stream_above(limit),
        n_classes=len(names) if n_classes is None else n_classes,
        class_names=[] if n_classes == 0 else names,
        read_train=lambda: load(source.train, before),
        fingerprint=fingerprint(source),
        conditions=conditions.chosen(numbers).fitted(train_y) if conditions and n_classes is None else None,
    )


def _validation(train: Split, rows: Tensor, binarize: str, limit: int, static: Callable[[], Split]) -> Split:
    """Return some of the training images, with the one draw of binarize=static where training draws anew."""
    if binarize != "dynamic":
        return train[rows]
    if isinstance(train.images, Streamed):
        return _binarize(train[rows].stream_above(limit), "static")
    return static()[rows]


def count(size: int | float, n: int) -> int:
    """Return a whole number as it is, and a fraction as that part of n images: at least one if it is not 0."""
    return size if isinstance(size, int) else max(1, round(size * n)) if size else 0


def with_test(split: Split, test_size: int | float, name: str) -> tuple[Split, Split]:
    """Return the images to train on, and test_size of them set aside at random, the same for every seed."""
    n, n_test = len(split), count(test_size, len(split))
    if n_test >= n:
        images = f"{name} has {n:,} usable image{'s' * (n > 1)}"
        raise UserError(f"dataset.test_size={test_size}: {images}; training and testing need at least one each.")
    rows = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    return split[rows[n_test:].sort().values], split[rows[:n_test].sort().values]


def _label_numbers(source: Source, labels: list[int | str] | None, n_classes: int | None) -> list[int]:
    """Return the numbers of the labels to use, given by names or numbers, in the data's own order."""
    class_names, conditions = list(map(printable, source.class_names)), source.conditions
    if conditions is not None and n_classes:
        what = f"the {conditions.n:,} combinations of {', '.join(map(printable, conditions.names))}"
        raise UserError(f"dataset.n_classes={n_classes}: here the labels are {what}. Use null.")
    numbers = {str(number): number for number in range(len(class_names))}
    numbers |= {name: number for number, name in enumerate(class_names)}
    requested = [printable(composed(label)) for label in labels or ()]
    if unknown := [label for label in requested if label not in numbers]:
        known = ", ".join(class_names) or "none"
        raise UserError(f"dataset.labels: {source.name} has no {', '.join(unknown)}. Its labels: {known}.")
    chosen = list(range(len(class_names))) if labels is None else sorted({numbers[label] for label in requested})
    largest = len(chosen) - 1 if chosen else int(source.train.y.max())
    if n_classes and largest >= n_classes:
        raise UserError(f"dataset.n_classes={n_classes}: {source.name} has labels up to {largest}.")
    if source.test_is_at_hand and labels is not None:
        _rows_with(source.read_test(), labels, chosen, "test")
    return chosen


def _rows_with(split: Split, labels: list[int | str], numbers: list[int], part: str) -> Tensor:
    rows = torch.isin(split.y, torch.tensor(numbers)).nonzero()[:, 0]
    if not len(rows):
        requested = ",".join(map(printable, labels))
        raise UserError(f"dataset.labels=[{requested}]: none of the {len(split):,} {part} images has such a label.")
    return rows


def _binarize(split: Split, how: str) -> Split:
    """Make every pixel black or white: by a threshold at one half, or by one fixed draw of Bernoulli(pixel)."""
    if how in ("none", "larochelle"):  # Larochelle's files are binary
        return split
    if isinstance(split.images, Streamed):
        if split.images.is_binary:
            return split
        raise UserError(
            f"dataset.binarize: {len(split):,} images are more than dataset.device_memory, and only images in memory "
            "can be binarised once and for all. Raise dataset.device_memory, or use dataset.binarize=none."
        )
    if how == "threshold":
        white = split.images >= 128
    else:  # the same for every seed: otherwise runs would have different test images
        draws = torch.rand(split.images.shape, generator=torch.Generator().manual_seed(0))
        white = draws < split.images.float() / 255
    return replace(split, images=white.to(torch.uint8) * 255)


def require_source(source: Any, target: str) -> Source:
    """Return the Source that the function named target returned. Raises UserError if its parts do not go together."""
    if not isinstance(source, Source):
        kind = kind_of(source)
        raise UserError(f"dataset._target_={target}: it must return a vae_exp.datasets.Source, and returned {kind}.")

    def require(part: str, split: Any) -> Split:
        if problem := _problem(part, split, source):
            raise UserError(f"dataset._target_={target}: of the Source that it returned, {problem}.")
        return split

    require("train", source.train)
    if source.val is not None:
        require("val", source.val)
    return replace(source, read_test=lambda: require("test", source.read_test()))


def _problem(part: str, split: Any, source: Source) -> str | None:
    """Return what is wrong with a split of a source, in words, or None."""
    names = source.class_names
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        return "class_names must be a list of text, the name of each label"
    if not callable(source.read_test):
        return f"read_test must be a function that returns the test split, not {kind_of(source.read_test)}"
    if not isinstance(split, Split):
        return f"{part} must be a vae_exp.datasets.Split, not {kind_of(split)}"
    images, y, factors = split.images, split.y, split.factors
    pixels = images.source if isinstance(images, Streamed) else images
    if not isinstance(images, Tensor | Streamed) or (isinstance(pixels, Tensor) and pixels.dtype != torch.uint8):
        return f"the images of {part} must be a tensor of uint8, 0 to 255, not {kind_of(pixels)}"
    if len(images.shape) != 4 or 0 in images.shape[1:]:
        return f"the images of {part} must have the shape [N, C, H, W], not {list(images.shape)}"
    if not isinstance(y, Tensor) or y.dtype != torch.int64 or y.shape != (len(images),):
        return f"the labels of {part} must be a tensor of int64 [N], one for each of {len(images):,}, not {kind_of(y)}"
    if not len(y):
        return f"{part} is empty" + ("; val=None where there are no validation images" if part == "val" else "")
    if images.shape[1:] != source.train.images.shape[1:]:
        return f"the images of {part} are {split.x_shape}, and those of train {source.train.x_shape}"
    if factors is not None and not _are_factors(factors, len(y)):
        parts = list(vars(factors).values()) if isinstance(factors, Factors) else [factors]
        return (
            f"the factors of {part} must be a vae_exp.datasets.Factors of int64 [N, F] from 0 to below F sizes, with F "
            f"different names, not {kind_of(parts[0])} {parts[1:] or ''}"
        )
    if source.conditions is not None and not isinstance(source.conditions, Conditions):
        return f"conditions must be a vae_exp.datasets.Conditions, not {kind_of(source.conditions)}"
    if source.conditions is not None and source.conditions.n != len(names):
        return f"conditions has {source.conditions.n:,} combinations, and there are {len(names):,} class_names"
    low, high, n = int(y.min()), int(y.max()), len(names)
    if low < 0 or (n and high >= n):
        return f"the labels of {part} go from {low} to {high:,}" + (f", and there are {n:,} class_names" * (low >= 0))
    return None


def _are_factors(factors: Any, n_images: int) -> bool:
    if not isinstance(factors, Factors):
        return False
    table, names, sizes = factors.table, factors.names, factors.sizes
    are_names = all(isinstance(name, str) for name in names) and len(set(names)) == len(names) == len(sizes)
    if not are_names or not isinstance(table, Tensor) or table.dtype != torch.int64:
        return False
    return table.shape == (n_images, len(names)) and bool(((table >= 0) & (table < torch.tensor(sizes).long())).all())


def kind_of(value: Any) -> str:
    """Return the kind of a value in words: for an array, its type and shape; for a tuple, the kinds in it."""
    if isinstance(value, tuple | list) and 0 < len(value) < 5:
        return f"({', '.join(map(kind_of, value))})"
    name = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    if hasattr(value, "dtype"):
        return f"{name} of {str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    return name
