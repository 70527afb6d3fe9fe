"""Fingerprints that tell datasets apart, whatever their folder is called and wherever it lies. No image is decoded."""

import hashlib
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vae_exp.datasets.splits import Source, Split, Streamed
from vae_exp.errors import printable

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
