"""A folder of any images: its files are listed, given labels by their folders, and decoded once into a cache."""

import contextlib
import logging
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vae_exp.datasets.factors import Factors, read_factors
from vae_exp.datasets.image_files import (
    Decoding,
    Unusable,
    cached,
    class_folder,
    decode,
    find_images,
    folders_in,
    left_out_lines,
    list_images,
)
from vae_exp.datasets.prepare import with_test
from vae_exp.datasets.splits import Source, Split, Streamed
from vae_exp.errors import UserError, printable
from vae_exp.files import of_files

log = logging.getLogger(__name__)
VALIDATION = ("val", "valid", "validation", "dev")  # what people call the folder


def image_folder(
    name: str,
    root: str,
    image_size: int | list[int],
    channels: int,
    crop: int | None,
    test_size: int | float,
    on_error: str,
    cache: str | None = None,
    factors: str | None = None,
    label: str | None = None,
    white: float | None = None,
) -> Source:
    """Return the images of a folder: flat, in a folder per class, or in train/, val/ and test/ with either in them.

    Without test/ the test split is test_size of the training images, the same for every seed. factors is a CSV with a
    row for each image, and label the factor that y holds in place of the class folders. white is the white of greys of
    more than 8 bits, see decode. Raises UserError if there are too few images that can be used, if a folder cannot be
    read and on_error=fail, and if the table is not one or does not fit these images.
    """
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise UserError(f"dataset.root={root}: there is no such folder.")
    if label is not None and factors is None:
        raise UserError(f"dataset.label={label}: it takes null where dataset.factors is null. A table has factors.")
    parts = _parts(folder)
    listed = {part: list_images(path, on_error) for part, path in parts.items()}
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

    how = Decoding(image_shape(image_size, channels), crop, white, on_error, cache)

    def read(part: str) -> Split:
        return decoded(parts[part], listed[part], classes[part], how, known.get(part))

    train = read("train")
    val = read("val") if "val" in parts else None
    read_from = {file: folder / file for part, files in listed.items() for file in _below(folder, parts[part], files)}
    read_from |= {} if factors is None else {"dataset.factors": folder / Path(factors).expanduser()}
    digests = of_files(read_from)
    if "test" in parts:
        return Source(name, train, lambda: read("test"), class_names, val, files=digests)
    train, test = with_test(train, test_size, str(folder))
    return Source(name, train, lambda: test, class_names, val, files=digests)


def _parts(folder: Path) -> dict[str, Path]:
    """Return the folders of train, val and test; only train, the folder itself, if there is no train/ in it.

    Warns of everything else that holds images and is not read, and of a test/ that is taken for a class. Raises
    UserError for several folders of validation images.
    """
    beside = {name: folder / name for name in folders_in(folder) if not name.startswith(".")}
    named = ", ".join(f"{name}/" for name in (*VALIDATION, "test"))
    if "train" not in beside:
        if misread := [f"{name}/" for name in beside if name.lower() in ("train", "training", "test", *VALIDATION)]:
            log.warning(
                f"{printable(folder)}: {printable(', '.join(misread))} taken for classes, as there is no train/; with "
                f"one, {named} beside it are its other parts"
            )
        return {"train": folder}
    held_out = [name for name in VALIDATION if name in beside]
    if len(held_out) > 1:
        raise UserError(
            f"dataset.root={folder}: {' and '.join(f'{name}/' for name in held_out)} beside train/: which are the "
            "validation images? Keep one of them."
        )
    parts = {"train": beside["train"]}
    if held_out:
        parts["val"] = beside[held_out[0]]
    if "test" in beside:
        parts["test"] = beside["test"]
    unread = {f"in {name}/": _count(path) for name, path in beside.items() if path not in parts.values()}
    unread["in no folder"] = len(find_images(folder, below=False))
    if counted := ", ".join(f"{count:,} {where}" for where, count in unread.items() if count):
        log.warning(
            f"{printable(folder)}: images beside train/ that are not read: {printable(counted)}; {named} would be"
        )
    return parts


def _count(folder: Path) -> int:
    """Return the number of images below a folder; 0 for one that cannot be listed, such as lost+found."""
    with contextlib.suppress(UserError):
        return len(find_images(folder))
    return 0


def _class_folders(listed: dict[str, list[str]]) -> tuple[dict[str, list[int]], list[str]]:
    """Return the label of each file by its class folder, and the names of the labels."""
    folders = {part: [class_folder(file) for file in files] for part, files in listed.items()}
    names = sorted({name for of_part in folders.values() for name in of_part})
    # Images beside the class folders belong to no class; then there are no classes at all.
    names = [] if "" in names else names
    number = {class_name: label for label, class_name in enumerate(names)}
    return {part: [number.get(name, 0) for name in of_part] for part, of_part in folders.items()}, names


def _below(folder: Path, part: Path, files: list[str]) -> list[str]:
    """Return the files of a part of the folder, relative to the folder."""
    return [(part.relative_to(folder) / file).as_posix() for file in files]


def read_images(
    path: str | Path, x_shape: tuple[int, int, int], crop: int | None = None, white: float | None = None
) -> tuple[Tensor, list[str]]:
    """Read the image at path, or those of the folder ordered by name, as in training: uint8 [N, C, H, W].

    Returns with them the class folder of each, empty for an image outside of any. Files of a folder that cannot be used
    are left out with a warning. Raises UserError if none can be used, or if a single one cannot.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise UserError(f"{path}: there is no such file or folder.")
    if x_shape[0] not in (1, 3):
        raise UserError(f"{path}: images are read with 1 channel or 3, not with {x_shape[0]}.")
    if not path.is_dir():
        try:
            return torch.from_numpy(decode(path, x_shape, crop, white).pixels.copy())[None], [""]
        except Unusable as error:
            raise UserError(f"{path}: {error}.") from error
    images, left_out = {}, {}
    files = list_images(path)
    for file in files:
        try:
            images[file] = decode(path / file, x_shape, crop, white).pixels
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


def decoded(root: Path, files: list[str], labels: list[int], how: Decoding, factors: Factors | None = None) -> Split:
    """Return the usable files as a split; the labels and any factors are given for all files, usable or not."""
    path, usable = cached(root, files, how)
    images, rows = Streamed(path, (len(usable), *how.x_shape), torch.arange(len(usable))), torch.tensor(usable)
    return Split(images, torch.tensor(labels)[rows], factors=None if factors is None else factors[rows])
