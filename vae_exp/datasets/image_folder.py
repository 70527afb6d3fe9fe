"""A folder of any images: its files are listed, given labels by their folders, and decoded once into a cache."""

import logging
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vae_exp.datasets.image_cache import cached, left_out_lines
from vae_exp.datasets.image_files import Unusable, class_folder, decode, list_images
from vae_exp.datasets.prepare import count
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
) -> Source:
    """A folder of images, or of a folder per class, or of train/, val/ and test/ with either in them.

    Where there is no test/ the test split is test_size of the training images, the same for every seed.
    Raises UserError where there are too few images that can be used.
    """
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise UserError(f"dataset.root={root}: there is no such folder.")
    parts = {part: folder / part for part in ("train", "val", "test") if (folder / part).is_dir()}
    if "train" not in parts:
        parts = {"train": folder}
    listed = {part: list_images(path) for part, path in parts.items()}
    classes = {part: {class_folder(file) for file in files} for part, files in listed.items()}
    # Images beside the class folders belong to no class; then there are no classes at all.
    names = sorted(set.union(*classes.values()))
    class_names = [] if "" in names else names
    number = {class_name: label for label, class_name in enumerate(class_names)}

    def read(part: str) -> Split:
        labels = [number.get(class_folder(file), 0) for file in listed[part]]
        return decoded(
            name, parts[part], listed[part], labels, image_shape(image_size, channels), crop, on_error, cache
        )

    train = read("train")
    val = read("val") if "val" in parts else None
    if "test" in parts:
        return Source(name, train, lambda: read("test"), class_names, val)
    rows = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    n_test = count(test_size, len(train))
    if n_test >= len(train):
        raise UserError(
            f"dataset.test_size={test_size}: {folder} has {len(train):,} usable image{'s' * (len(train) > 1)}; "
            "training and testing need at least one each."
        )
    test, train = train[rows[:n_test].sort().values], train[rows[n_test:].sort().values]
    return Source(name, train, lambda: test, class_names, val)


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
) -> Split:
    path, usable = cached(name, root, files, shape, crop, on_error, Path(cache).expanduser())
    images = Streamed(path, (len(usable), *shape), torch.arange(len(usable)))
    return Split(images, torch.tensor([labels[row] for row in usable]))
