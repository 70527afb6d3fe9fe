"""Arrays of one's own in one .npz file: images and, if there are any, labels, factors and a test split."""

import logging
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vae_exp.datasets.factors import Factors
from vae_exp.datasets.prepare import with_test
from vae_exp.datasets.splits import Source, Split, Streamed
from vae_exp.datasets.torchvision import last_line
from vae_exp.errors import UserError, printable

log = logging.getLogger(__name__)

ARRAYS = ("images", "labels", "factors")
TEST = "test_"  # of the images of the test split, and of what belongs to them
EVERY_ARRAY = (*ARRAYS, "factor_names", *(f"{TEST}{array}" for array in ARRAYS))
Held = dict[str, np.ndarray]


class Refused(Exception):
    """A fault in the arrays, described without the key and the file."""


def arrays(name: str, root: str, label: str | None = None, test_size: int | float = 0.1) -> Source:
    """Read an .npz file: images uint8 [N, H, W], [N, H, W, C] or [N, C, H, W], labels [N], factors [N, F].

    Without test_images the test split is test_size of the images, the same for every seed. label is the factor that y
    holds in place of the labels. Labels and factors are whole numbers, and are numbered from 0 in their order, over
    both splits. Raises UserError for a file or arrays that do not fit this; nothing pickled is read.
    """
    try:
        held, digests = _read(Path(root).expanduser())
        images = {array: _images(array, held[array]) for array in ("images", f"{TEST}images") if array in held}
        lengths = {array.removesuffix("images"): len(found) for array, found in images.items()}
        if stray := [array for array in held if array.startswith(TEST) and TEST not in lengths]:
            raise Refused(f"it holds {stray[0]}, and no {TEST}images")
        if len({found.shape[1:] for found in images.values()}) > 1:
            raise Refused(
                f"an image is {' and one of test_images '.join(str(list(x.shape[1:])) for x in images.values())}"
            )
        known, values = _factors(held, lengths)
        y, class_names = _labels(held, lengths)
    except Refused as error:
        raise UserError(f"dataset.root={root}: {error}.") from error
    if label is not None:
        if known is None:
            raise UserError(f"dataset.label={label}: it takes null, as {root} holds no factors.")
        y, class_names = known.column(str(label)), values[known.names.index(str(label))]
    splits, at = [], 0
    for x in images.values():
        rows = slice(at, at + len(x))
        streamed = Streamed(x, tuple(x.shape), torch.arange(len(x)))  # choosing rows of it copies nothing
        splits.append(Split(streamed, y[rows], factors=None if known is None else known[rows]))
        at += len(x)
    train, test = splits if TEST in lengths else with_test(splits[0], test_size, root)
    return Source(name, train, lambda: test, class_names, files=digests)


def _read(path: Path) -> tuple[Held, dict[str, str]]:
    """Read the arrays of the file that have a meaning here, with the size and checksum the file has of each.

    Other arrays are not touched, pickled ones among them.
    """
    try:
        if not path.is_file():
            raise Refused("there is no such file. dataset=arrays takes an .npz file, as numpy.savez writes it")
        with path.open("rb") as file:
            if not zipfile.is_zipfile(file):  # NumPy would try to read it as something else
                raise Refused("it is damaged or no .npz file, as numpy.savez writes it")
        with np.load(path, allow_pickle=False) as archive:
            held = {array: _array(archive, array) for array in EVERY_ARRAY if array in archive.files}
            entries = {entry.filename.removesuffix(".npy"): entry for entry in archive.zip.infolist()}
            digests = {array: f"{entries[array].file_size} {entries[array].CRC:08x}" for array in held}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise Refused(f"it cannot be read ({last_line(error)})") from error
    if "images" not in held:
        there = ", ".join(map(printable, archive.files)) or "nothing"
        raise Refused(f"it holds no array images; it holds {there}")
    return held, digests


def _array(archive: Any, array: str) -> np.ndarray:
    try:
        found = archive[array]
    except Exception as error:  # a damaged file makes its readers raise almost anything
        if "allow_pickle" in str(error):
            raise Refused(
                f"{array} is pickled, and reading it would run what it holds. Save it as numbers or text, such as "
                f"numpy.array({array}.tolist())"
            ) from error
        raise Refused(f"{array} cannot be read ({last_line(error)})") from error
    if not isinstance(found, np.ndarray):
        raise Refused(f"{array} is no array of NumPy's")
    return found


def _images(array: str, found: np.ndarray) -> Tensor:
    """Return the images as uint8 [N, C, H, W]. If the channels could be last or first, last is assumed."""
    shape = list(found.shape)
    if found.dtype != np.uint8:
        hint = " Floats from 0 to 1 become that by (x * 255).round().astype('uint8')" if found.dtype.kind == "f" else ""
        if found.dtype == np.uint16:
            hint = " Numbers from 0 to 65535 become that by (x / 257).round().astype('uint8')"
        raise Refused(f"{array} must be uint8, 0 to 255, and is {found.dtype} {shape}{'.' * bool(hint)}{hint}")
    last, first = (len(shape) == 4 and shape[at] in (1, 3) for at in (3, 1))
    if 0 in shape or not (len(shape) == 3 or last or first):
        raise Refused(f"{array} must be [N, H, W], [N, H, W, C] or [N, C, H, W] with C of 1 or 3, and is {shape}")
    if last and first:
        log.warning(f"{array} {shape} may be read in two ways: they are taken as [N, H, W, C]")
    if len(shape) == 3:
        found = found[:, None]
    elif last:
        found = found.transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(found))


def _labels(held: Held, lengths: dict[str, int]) -> tuple[Tensor, list[str]]:
    """Return the labels of all images, numbered from 0 in their order, and their original values as text."""
    found = _joined("labels", held, lengths, dims=1)
    if found is None:
        return torch.zeros(sum(lengths.values()), dtype=torch.int64), []
    if found.min() < 0:
        raise Refused(f"labels must be 0 or more, and one is {found.min()}")
    numbers, called = _numbered(found)
    return torch.from_numpy(numbers), called


def _factors(held: Held, lengths: dict[str, int]) -> tuple[Factors | None, list[list[str]]]:
    """Return the factors of all images, and the values of each as text, in their order."""
    found = _joined("factors", held, lengths, dims=2)
    if found is None:
        if "factor_names" in held:
            raise Refused("it holds factor_names, and no factors")
        return None, []
    names = _names(held.get("factor_names"), found.shape[1])
    columns = [_numbered(column) for column in found.T]
    table = torch.from_numpy(np.stack([numbers for numbers, _ in columns], axis=1))
    values = [called for _, called in columns]
    return Factors(table, names, list(map(len, values))), values


def _joined(array: str, held: Held, lengths: dict[str, int], dims: int) -> np.ndarray | None:
    """Return an array of all images as int64, test images last; None if there is no array of that name."""
    names = [f"{prefix}{array}" for prefix in lengths]
    if missing := [name for name in names if name not in held]:
        if len(missing) == len(names):
            return None
        raise Refused(f"it holds {(set(names) - set(missing)).pop()}, and no {missing[0]}; save both or neither")
    found = [_whole(name, held[name], n, dims) for name, n in zip(names, lengths.values(), strict=True)]
    if len({part.shape[1:] for part in found}) > 1:
        raise Refused(" and ".join(f"{name} is {list(part.shape)}" for name, part in zip(names, found, strict=True)))
    return np.concatenate(found)


def _whole(array: str, found: np.ndarray, n: int, dims: int) -> np.ndarray:
    """Return whole numbers as int64. Raises Refused for other numbers, another shape, or a length other than n."""
    if found.dtype.kind not in "iub":
        raise Refused(f"{array} must be whole numbers of an integer type, and is {found.dtype}{_what_of_it(found)}")
    if found.ndim != dims or 0 in found.shape[1:]:
        raise Refused(f"{array} must be {'[N]' if dims == 1 else '[N, F]'}, and is {list(found.shape)}")
    if len(found) != n:
        of = f"{TEST}images" if array.startswith(TEST) else "images"
        raise Refused(f"{array} has {len(found):,} rows, and {of} {n:,}; both need one for each image")
    if found.max() > np.iinfo(np.int64).max:
        raise Refused(f"{array} holds {found.max()}, which no int64 can be")
    return found.astype(np.int64)


def _what_of_it(found: np.ndarray) -> str:
    """Return the reason why floats cannot become whole numbers, as the end of a message."""
    if found.dtype.kind != "f":
        return ""
    if not np.isfinite(found).all():
        return f", with {found[~np.isfinite(found)][0]} in it"
    if len(part := found[found != np.floor(found)]):
        return f", with {part[0]} in it. Number its values, or sort them into bins"
    return ". Save it with .astype('int64')"


def _numbered(found: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Return the number of each value, counted from 0 in their order, and the values as text."""
    values, numbers = np.unique(found, return_inverse=True)
    return numbers.astype(np.int64), list(map(str, values.tolist()))


def _names(found: np.ndarray | None, n: int) -> list[str]:
    if found is None:
        return [f"factor{at}" for at in range(n)]
    if found.dtype.kind != "U" or found.ndim != 1:
        raise Refused(f"factor_names must be text [F], and is {found.dtype} {list(found.shape)}")
    names = [printable(name.strip()) for name in found.tolist()]
    if len(names) != n:
        raise Refused(f"factor_names has {len(names):,} names, and factors {n:,} columns")
    if "" in names or len(set(names)) < len(names):
        raise Refused(f"factor_names must be different names, and is [{','.join(names)}]")
    return names
