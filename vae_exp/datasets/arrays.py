"""Arrays of one's own in one .npz file: images and, if there are any, labels, factors and a test split."""

import logging
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vae_exp.datasets.conditions import Labels, choose_labels
from vae_exp.datasets.factors import Factors, columns_of
from vae_exp.datasets.prepare import with_test
from vae_exp.datasets.splits import Source, Split, Streamed
from vae_exp.datasets.torchvision import last_line
from vae_exp.errors import UserError, printable
from vae_exp.files import expand

log = logging.getLogger(__name__)

ARRAYS = ("images", "labels", "factors")
TEST = "test_"  # of the images of the test split, and of what belongs to them
EVERY_ARRAY = (*ARRAYS, "factor_names", *(f"{TEST}{array}" for array in ARRAYS))
AS_FACTORS = "Number its values, sort them into bins, or name it in dataset.condition"
Arrays = dict[str, np.ndarray]


class Refused(Exception):
    """A fault in the arrays, described without the key and the file."""


def arrays(
    name: str,
    root: str,
    label: str | list[str] | None = None,
    test_size: int | float = 0.1,
    factor_columns: list[str] | None = None,
    condition: list[str] | None = None,
) -> Source:
    """Read an .npz file: images uint8 [N, H, W], [N, H, W, C] or [N, C, H, W], labels [N], factors [N, F].

    Without test_images the test split is test_size of the images, the same for every seed. label is the factor, or the
    factors, that y holds in place of the labels, condition those that are numbers, and factor_columns those to use
    (null: all). Labels and factors are whole numbers, but for those of condition, and are numbered from 0 in their
    order, over both splits. Raises UserError for a file or arrays that do not fit this; nothing pickled is read.
    """
    try:
        content, digests = _read(expand(root))
        prefixes = [prefix for prefix in ("", TEST) if f"{prefix}images" in content]
        images = {prefix: _images(f"{prefix}images", content[f"{prefix}images"]) for prefix in prefixes}
        if TEST not in images and (stray := [array for array in content if array.startswith(TEST)]):
            raise Refused(f"it holds {stray[0]}, and no {TEST}images")
        lengths, shapes = {prefix: len(x) for prefix, x in images.items()}, [list(x.shape[1:]) for x in images.values()]
        if shapes[0] != shapes[-1]:
            raise Refused(f"an image is {shapes[0]} and one of test_images {shapes[1]}")
        factors, values = _factors(content, lengths, factor_columns, condition or ())
        labels = Labels(*_labels(content, lengths))
    except Refused as error:
        raise UserError(f"dataset.root={root}: {error}.") from error
    y, class_names, conditions = choose_labels(factors, values, label, condition, labels)
    if factors is not None:
        measured = [name for name, texts in zip(factors.names, values, strict=True) if any("." in t for t in texts)]
        factors = factors.without(measured) if len(measured) < len(factors.names) else None
    splits, rows = [], torch.arange(len(y)).split(list(lengths.values()))
    for x, part in zip(images.values(), rows, strict=True):
        streamed = Streamed(x, tuple(x.shape), torch.arange(len(x)))  # choosing rows of it copies nothing
        splits.append(Split(streamed, y[part], factors=None if factors is None else factors[part]))
    train, test = splits if TEST in images else with_test(splits[0], test_size, root)
    return Source(name, train, lambda: test, class_names, files=digests, conditions=conditions)


def _read(path: Path) -> tuple[Arrays, dict[str, str]]:
    """Read the arrays that have a meaning here, and no others, with the size and checksum the file has of each."""
    if not path.is_file():
        raise Refused("there is no such file. dataset=arrays takes an .npz file, as numpy.savez writes it")
    if not zipfile.is_zipfile(path):  # NumPy would try to read it as something else
        raise Refused("it is damaged or no .npz file, as numpy.savez writes it")
    content, digests, array = {}, {}, "it"
    try:
        with np.load(path, allow_pickle=False) as archive:
            entries = {entry.filename: entry for entry in archive.zip.infolist()}
            for array in EVERY_ARRAY:
                if entry := entries.get(f"{array}.npy"):
                    content[array], digests[array] = archive[array], f"{entry.file_size} {entry.CRC:08x}"
    except Exception as error:  # a damaged file makes its readers raise almost anything
        if "allow_pickle" not in str(error):
            raise Refused(f"{array} cannot be read ({last_line(error)})") from error
        raise Refused(
            f"{array} is pickled, and reading it would run what it holds. Save it as numbers or text, such as "
            f"numpy.array({array}.tolist())"
        ) from error
    if "images" not in content:
        names = ", ".join(printable(name.removesuffix(".npy")) for name in entries)
        raise Refused(f"it holds no array images; it holds {names or 'nothing'}")
    return content, digests


def _images(array: str, x: np.ndarray) -> Tensor:
    """Return the images as uint8 [N, C, H, W]. If the channels could be last or first, last is assumed."""
    shape = list(x.shape)
    if x.dtype != np.uint8:
        hint = ". Floats from 0 to 1 become that by (x * 255).round().astype('uint8')" if x.dtype.kind == "f" else ""
        if x.dtype == np.uint16:
            hint = ". Numbers from 0 to 65535 become that by (x / 257).round().astype('uint8')"
        raise Refused(f"{array} must be uint8, 0 to 255, and is {x.dtype} {shape}{hint}")
    last, first = (len(shape) == 4 and shape[at] in (1, 3) for at in (3, 1))
    if 0 in shape or not (len(shape) == 3 or last or first):
        raise Refused(f"{array} must be [N, H, W], [N, H, W, C] or [N, C, H, W] with C of 1 or 3, and is {shape}")
    if last and first:
        log.warning(f"{array} {shape} may be read in two ways: they are taken as [N, H, W, C]")
    if len(shape) == 3:
        x = x[:, None]
    elif last:
        x = x.transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(x))


def _labels(content: Arrays, lengths: dict[str, int]) -> tuple[Tensor, list[str]]:
    """Return the labels of all images, numbered from 0, and their original values as text."""
    labels = _joined("labels", content, lengths, dims=1)
    if labels is None:
        return torch.zeros(sum(lengths.values()), dtype=torch.int64), []
    if labels.min() < 0:
        raise Refused(f"labels must be 0 or more, and one is {labels.min()}")
    numbers, names = _numbered(labels)
    return torch.from_numpy(numbers), names


def _factors(
    content: Arrays, lengths: dict[str, int], requested: list[str] | None, fractions: Sequence[str]
) -> tuple[Factors | None, list[list[str]]]:
    """Return the factors of all images, and the values of each as text, in their order; some may be fractions."""
    table = _joined("factors", content, lengths, dims=2, floats=bool(fractions or requested))
    names = content.get("factor_names")
    if table is None:
        if names is not None:
            raise Refused("it holds factor_names, and no factors")
        if requested is not None:
            raise Refused("it holds no factors of which factor_columns could choose")
        return None, []
    every = _factor_names(names, table.shape[1])
    kept = columns_of(every, requested, "the file")
    for at in kept:
        if len(odd := table[~np.isfinite(table[:, at]), at]):
            raise Refused(f"factors must be finite numbers, and {every[at]} has {odd[0]} in it")
        if every[at] not in fractions and len(odd := table[table[:, at] % 1 != 0, at]):
            raise Refused(f"factors must be whole numbers, and {every[at]} has {odd[0]} in it. {AS_FACTORS}")
    columns = [_numbered(column) for column in table.T[kept]]
    numbers = torch.from_numpy(np.stack([numbers for numbers, _ in columns], axis=1))
    values = [values for _, values in columns]
    return Factors(numbers, [every[at] for at in kept], list(map(len, values))), values


def _joined(array: str, content: Arrays, lengths: dict[str, int], dims: int, floats: bool = False) -> np.ndarray | None:
    """Return an array of all images, test images last; None if there is no array of that name.

    It is int64, or the floats that it may be.
    """
    names = [f"{prefix}{array}" for prefix in lengths]
    missing = [name for name in names if name not in content]
    if len(missing) == len(names):
        return None
    if missing:
        raise Refused(f"it holds {(set(names) - set(missing)).pop()}, and no {missing[0]}; save both or neither")
    parts = [_numbers(name, content[name], n, dims, floats) for name, n in zip(names, lengths.values(), strict=True)]
    if parts[0].shape[1:] != parts[-1].shape[1:]:
        raise Refused(" and ".join(f"{name} is {list(part.shape)}" for name, part in zip(names, parts, strict=True)))
    return np.concatenate(parts)


def _numbers(array: str, values: np.ndarray, n: int, dims: int, floats: bool) -> np.ndarray:
    """Return whole numbers as int64, and floats, where there may be any, as they are.

    Raises Refused for other numbers, another shape, or a length other than n.
    """
    is_float = values.dtype.kind == "f"
    if values.dtype.kind not in "iub" and not (is_float and floats):
        hint = ". Save it with .astype('int64')" if is_float else ""
        if hint and len(odd := values[~np.isfinite(values) | (values != np.floor(values))]):
            hint = f", with {odd[0]} in it. {AS_FACTORS if dims == 2 else 'Number its values'}"
        raise Refused(f"{array} must be whole numbers of an integer type, and is {values.dtype}{hint}")
    if values.ndim != dims or 0 in values.shape[1:]:
        raise Refused(f"{array} must be {'[N]' if dims == 1 else '[N, F]'}, and is {list(values.shape)}")
    if len(values) != n:
        images = f"{TEST}images" if array.startswith(TEST) else "images"
        raise Refused(f"{array} has {len(values):,} rows, and {images} {n:,}; both need one for each image")
    if not is_float and values.max() > np.iinfo(np.int64).max:
        raise Refused(f"{array} holds {values.max()}, which no int64 can be")
    return values if is_float else values.astype(np.int64)


def _numbered(values: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Return the number of each value, counted from 0 in their order, and the values as text."""
    different, numbers = np.unique(values, return_inverse=True)
    is_float = different.dtype.kind == "f"
    texts = [np.format_float_positional(value, trim="-") for value in different] if is_float else different.tolist()
    return numbers.astype(np.int64), list(map(str, texts))


def _factor_names(names: np.ndarray | None, n: int) -> list[str]:
    if names is None:
        return [f"factor{at}" for at in range(n)]
    texts = [printable(str(name).strip()) for name in names.ravel().tolist()]
    if names.dtype.kind != "U" or names.ndim != 1 or len(texts) != n or "" in texts or len(set(texts)) < n:
        raise Refused(
            f"factor_names must be text [F], a different name for each of the {n} columns of factors, and is "
            f"{names.dtype} [{','.join(texts)}]"
        )
    return texts
