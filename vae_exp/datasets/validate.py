"""Checks that a dataset's function returned what a run can use: before training, in the words of its author."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vae_exp.datasets.factors import Factors
from vae_exp.datasets.splits import Source, Split, Streamed
from vae_exp.errors import UserError


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
