"""A folder of any images: its files are listed, given labels by their folders, and decoded once into a cache."""

import logging
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vae_exp.datasets.factor_table import read_factors
from vae_exp.datasets.factors import Factors
from vae_exp.datasets.image_cache import cached, left_out_lines
from vae_exp.datasets.image_files import Unusable, class_folder, decode, list_images
from vae_exp.datasets.prepare import with_test
from vae_exp.datasets.splits import Source, Split, Streamed
from vae_exp.errors import UserError

log = logging.getLogger(__name__)


def image_folder(
    name: str,
    root: str,
    image_size: int | list[int],
    channels: int,
    crop: int | None,
    test_size: int | float,
    on_error: str,
    cache: str,
    factors: str | None = None,
    label: str | None = None,
) -> Source:
    """A folder of images, or of a folder per class, or of train/, val/ and test/ with either in them.

    Where there is no test/ the test split is test_size of the training images, the same for every seed. factors is a
    CSV with a row for each image, and label the factor that y holds in place of the class folders. Raises UserError
    where there are too few images that can be used, and where the table is none or is not of these images.
    """
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise UserError(f"dataset.root={root}: there is no such folder.")
    if label is not None and factors is None:
        raise UserError(f"dataset.label={label}: it takes null where dataset.factors is null. A table has factors.")
    parts = {part: folder / part for part in ("train", "val", "test") if (folder / part).is_dir()}
    if "train" not in parts:
        parts = {"train": folder}
    listed = {part: list_images(path) for part, path in parts.items()}
    classes, class_names = _class_folders(listed)
    known: dict[str, Factors] = {}
    if factors is not None:
        table = read_factors(folder, factors)
        paths = {part: _below(folder, parts[part], files) for part, files in listed.items()}
        table.require([file for files in paths.values() for file in files])
        known = {part: table.of(files) for part, files in paths.items()}
        if label is not None:
            classes = {part: of_part.column(str(label)).tolist() for part, of_part in known.items()}
            class_names = table.values[str(label)]

    def read(part: str) -> Split:
        how = image_shape(image_size, channels), crop, on_error, cache
        return decoded(name, parts[part], listed[part], classes[part], *how, known.get(part))

    train = read("train")
    val = read("val") if "val" in parts else None
    if "test" in parts:
        return Source(name, train, lambda: read("test"), class_names, val)
    train, test = with_test(train, test_size, str(folder))
    return Source(name, train, lambda: test, class_names, val)


def _class_folders(listed: dict[str, list[str]]) -> tuple[dict[str, list[int]], list[str]]:
    """The label of each file by its class folder, and the names of the labels."""
    folders = {part: [class_folder(file) for file in files] for part, files in listed.items()}
    names = sorted({name for of_part in folders.values() for name in of_part})
    # Images beside the class folders belong to no class; then there are no classes at all.
    names = [] if "" in names else names
    number = {class_name: label for label, class_name in enumerate(names)}
    return {part: [number.get(name, 0) for name in of_part] for part, of_part in folders.items()}, names


def _below(folder: Path, part: Path, files: list[str]) -> list[str]:
    """Files of a part of the folder, relative to the folder."""
    return [(part.relative_to(folder) / file).as_posix() for file in files]


def read_images(path: str | Path, x_shape: tuple[int, int, int], crop: int | None = None) -> tuple[Tensor, list[str]]:
    """The image at path, or those of the folder ordered by name, as training sees them: uint8 [N, C, H, W].

    With them the class folder of each, empty where it lies in none. Files of a folder that cannot be used are left
    out with a warning. Raises UserError where there is none that can be used, and for a single one that cannot.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise UserError(f"{path}: there is no such file or folder.")
    if x_shape[0] not in (1, 3):
        raise UserError(f"{path}: images are read with 1 channel or 3, not with {x_shape[0]}.")
    if not path.is_dir():
        try:
            return torch.from_numpy(decode(path, x_shape, crop).copy())[None], [""]
        except Unusable as error:
            raise UserError(f"{path}: {error}.") from error
    images, left_out = {}, {}
    files = list_images(path)
    for file in files:
        try:
            images[file] = decode(path / file, x_shape, crop)
        except Unusable as error:
            left_out[file] = str(error)
    if not images:
        raise UserError(f"{path}: none of its {len(files):,} images can be used; {left_out_lines(left_out)[0]}.")
    if left_out:
        lines = left_out_lines(left_out)
        log.warning("\n  ".join([f"left out {len(lines):,} of {len(files):,} files in {path}:", *lines]))
    return torch.from_numpy(np.stack(list(images.values()))), [class_folder(file) for file in images]


def image_shape(image_size: int | list[int], channels: int) -> tuple[int, int, int]:
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    return channels, height, width


def decoded(
    name: str,
    root: Path,
    files: list[str],
    labels: list[int],
    shape: tuple,
    crop: int | None,
    on_error: str,
    cache: str,
    factors: Factors | None = None,
) -> Split:
    """The files that can be used, with their labels and where there are any their factors, both of all of the files."""
    path, usable = cached(name, root, files, shape, crop, on_error, Path(cache).expanduser())
    images, rows = Streamed(path, (len(usable), *shape), torch.arange(len(usable))), torch.tensor(usable)
    return Split(images, torch.tensor(labels)[rows], factors=None if factors is None else factors[rows])
