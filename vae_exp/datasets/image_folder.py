"""A folder of any images: its files are listed, given labels by their folders, and decoded once into a cache."""

import contextlib
import hashlib
import itertools
import json
import logging
import math
import os
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from tqdm import tqdm

from vae_exp.config.checks import as_typed
from vae_exp.datasets.conditions import Labels, choose_labels
from vae_exp.datasets.factors import Factors, read_factors
from vae_exp.datasets.prepare import with_test
from vae_exp.datasets.splits import Source, Split, Streamed
from vae_exp.errors import Unwritable, UserError, composed, printable
from vae_exp.files import (
    atomic_write,
    cache_folder,
    content_key,
    digests,
    expand,
    log_once,
    partial_of,
    read_json,
    write,
)

log = logging.getLogger(__name__)

# Pillow refuses images of more than 179 million pixels; its warning from 89 million on names no file.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
IMAGES = "images.uint8"
FORMAT = 3  # in the key: a cache of another format, or of another way to decode, is not found
CHUNK = 1024  # files decoded before their images are used
MAX_ENLARGED = 4  # an image that would be enlarged more has nothing to show at this size
MAX_FILES = 5  # or folders named in a message
MAX_PATH = 200  # characters of a folder's path in a message
VALIDATION = ("val", "valid", "validation", "dev")  # what people call the folder
WHITE = {"16-bit": 65535.0, "32-bit": 65535.0, "float": 1.0}  # of the deep greys, where dataset.white is null

Reasons = dict[int, str]  # why files cannot be used, by their rows
_listed: set[Path] = set()  # caches of which this process has logged what was left out


class Unusable(Exception):
    """A file that is no image, is damaged, or is too small."""


class Decoded(NamedTuple):
    pixels: np.ndarray  # uint8 [C, H, W]
    depth: str | None  # of a deep grey, a key of WHITE; None of what has 8 bits, or is given 8 by Pillow


@dataclass(frozen=True)
class Decoding:
    """Settings by which image files become pixels, and the folder where these are cached."""

    x_shape: tuple[int, int, int]
    crop: int | None = None  # side of the middle square that is used, in pixels of the file
    white: float | None = None  # where greys of 16 or 32 bits and floats, which begin at 0, end; None is WHITE
    on_error: str = "skip"  # or fail
    cache: str | None = None  # None is the user's cache folder


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
    label: str | list[str] | None = None,
    white: float | None = None,
    factor_columns: list[str] | None = None,
    condition: list[str] | None = None,
) -> Source:
    """Return the images of a folder: flat, in a folder per class, or in train/, val/ and test/ with either in them.

    Without test/ the test split is test_size of the training images, the same for every seed. factors is a CSV with a
    row for each image, of which factor_columns are read (null: all). label is the factor, or the factors, that y holds
    in place of the class folders, and condition names columns that are numbers. white is that of Decoding.
    Raises UserError if there are too few usable images, and if the table is not one or does not fit these images.
    """
    folder = expand(root)
    if not folder.is_dir():
        raise UserError(f"dataset.root={root}: there is no such folder.")
    for key, value in (("label", label), ("condition", condition), ("factor_columns", factor_columns)):
        if value is not None and factors is None:
            typed = f"dataset.{key}={as_typed(value)}"
            raise UserError(f"{typed}: it takes null where dataset.factors is null. A table has factors.")
    parts = _parts(folder)
    listed = {part: list_images(path, on_error) for part, path in parts.items()}
    paths = [parts[part] / file for part, files in listed.items() for file in files]
    sources = {path.relative_to(folder).as_posix(): path for path in paths}
    labels, class_names = _class_labels(listed)
    known: dict[str, Factors] = {}
    conditions = None
    if factors is not None:
        every, values, measured = read_factors(folder, factors, list(sources), factor_columns, condition or ())
        own = Labels(torch.tensor(list(itertools.chain(*labels.values()))), class_names)
        y, class_names, conditions = choose_labels(every, values, label, condition, own)
        every, ends = every.without(measured), itertools.accumulate(map(len, listed.values()))
        rows = {part: slice(end - len(listed[part]), end) for part, end in zip(listed, ends, strict=True)}
        known = {part: every[rows[part]] for part in listed if every.names}
        labels = {part: y[rows[part]].tolist() for part in listed}
        sources["dataset.factors"] = folder / expand(factors)
    how = Decoding(image_shape(image_size, channels), crop, white, on_error, cache)

    def read(part: str) -> Split:
        split = read_split(parts[part], listed[part], labels[part], how, known.get(part))
        inside = parts[part].relative_to(folder).as_posix()
        return split if inside == "." else replace(split, files=[f"{inside}/{file}" for file in split.files or ()])

    train = read("train")
    val = read("val") if "val" in parts else None
    if "test" in parts:
        return Source(
            name, train, lambda: read("test"), class_names, val, files=digests(sources), conditions=conditions
        )
    train, test = with_test(train, test_size, str(folder))
    return Source(name, train, lambda: test, class_names, val, files=digests(sources), conditions=conditions)


def _parts(folder: Path) -> dict[str, Path]:
    """Return the folders of train, val and test, or only train, the folder itself; warn of images that are not read."""
    names = folders_in(folder)
    parts_are = ", ".join(f"{name}/" for name in (*VALIDATION, "test"))
    if "train" not in names:
        if misread := [f"{name}/" for name in names if name.lower() in ("train", "training", "test", *VALIDATION)]:
            classes = f"{printable(folder)}: {printable(', '.join(misread))} taken for classes"
            log.warning(f"{classes}, as there is no train/; with one, {parts_are} beside it are its other parts")
        return {"train": folder}
    held_out = [name for name in VALIDATION if name in names]
    if len(held_out) > 1:
        both = " and ".join(f"{name}/" for name in held_out)
        raise UserError(f"dataset.root={folder}: {both} beside train/: which are the validation images? Keep one.")
    folders = {"train": "train", "val": next(iter(held_out), "val"), "test": "test"}
    parts = {part: folder / name for part, name in folders.items() if name in names}
    unread = {f"in {name}/": _count(folder / name) for name in names if folder / name not in parts.values()}
    unread["in no folder"] = len(find_images(folder, below=False))
    if counts := ", ".join(f"{count:,} {where}" for where, count in unread.items() if count):
        where = f"{printable(folder)}: images beside train/"
        log.warning(f"{where} that are not read: {printable(counts)}; {parts_are} would be")
    return parts


def _count(folder: Path) -> int:
    with contextlib.suppress(UserError):  # one that cannot be listed, such as lost+found
        return len(find_images(folder))
    return 0


def _class_labels(listed: dict[str, list[str]]) -> tuple[dict[str, list[int]], list[str]]:
    """Return the label of each file by its class folder, and the names of the labels."""
    folders = {part: list(map(class_folder, files)) for part, files in listed.items()}
    names = sorted({name for files in folders.values() for name in files})
    if "" in names:  # an image beside the class folders belongs to no class; then there are no classes at all
        return {part: [0] * len(files) for part, files in listed.items()}, []
    number = {name: label for label, name in enumerate(names)}
    return {part: [number[name] for name in files] for part, files in folders.items()}, names


def class_folder(file: str) -> str:
    """Return the name of the first folder on the way to a listed file; nothing if the file lies at the top."""
    return composed(file.split("/")[0]) if "/" in file else ""


def image_shape(image_size: int | list[int], channels: int) -> tuple[int, int, int]:
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    return channels, height, width


def read_split(root: Path, files: list[str], labels: list[int], how: Decoding, factors: Factors | None = None) -> Split:
    """Return the usable files as a split, decoded once into a cache; labels and any factors are those of all files."""
    folder = cache_folder("image_cache") if how.cache is None else expand(how.cache) / "image_cache"
    decoding = json.dumps([FORMAT, list(how.x_shape), how.crop, how.white])
    content = content_key({file: root / file for file in files})
    cache = folder / hashlib.sha256(f"{decoding}\n{content}".encode()).hexdigest()[:16]
    about = _read_about(cache, len(files), how.x_shape)
    log_once(f"decoded images are cached in {printable(folder)} (dataset.cache=FOLDER: elsewhere)")
    try:
        unusable, depths = about or _write(cache, root, files, how)
    except (OSError, Unwritable) as error:
        hint = "dataset.cache=FOLDER: elsewhere"
        raise UserError(f"{folder}: the decoded images cannot be written there ({error}). {hint}.") from error
    if unusable and how.on_error == "fail":
        row, reason = next(iter(unusable.items()))
        raise _refusal(root / files[row], reason)
    report_unusable(root, files, unusable, cache)
    _report_white(root, depths, how.white)
    usable = [row for row in range(len(files)) if row not in unusable]
    rows, names = torch.tensor(usable), [files[row] for row in usable]
    images = Streamed(cache / IMAGES, (len(rows), *how.x_shape), torch.arange(len(rows)))
    return Split(images, torch.tensor(labels)[rows], factors=None if factors is None else factors[rows], files=names)


def list_images(folder: Path, on_error: str = "skip") -> list[str]:
    """Return the image files below the folder, relative to it and in order. Raises UserError if there are none."""
    errors: list[OSError] = []
    files = find_images(folder, errors=errors)
    if errors:
        paths = [os.path.relpath(error.filename, folder)[:MAX_PATH] for error in errors]
        lines = [printable(f"{path}: {error.strerror}") for path, error in zip(paths, errors, strict=True)]
        if on_error == "fail":
            raise UserError(f"{folder}: {lines[0]}. dataset.on_error=skip leaves such folders out.")
        count = f"{len(lines):,} folder{'s' * (len(lines) > 1)} in {printable(folder)} that cannot be read"
        log.warning("\n  ".join([f"left out {count}, with all that is in them", *lines[:MAX_FILES]]))
    if not files:
        raise UserError(f"{folder}: no images in it, by the endings of the names (.png, .jpg, .webp, ...).")
    return files


def find_images(folder: Path, below: bool = True, errors: list[OSError] | None = None) -> list[str]:
    """Return the images in the folder, and below it, by their endings, in order; no hidden ones.

    `errors` collects why folders below cannot be read. Raises UserError if the folder itself cannot be.
    """
    Image.init()
    endings = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    linked = [folder / name for name in folders_in(folder) if (folder / name).is_symlink()]
    # The images of a link to the folder itself, or to one that holds it, would come twice.
    linked = [link for link in linked if not folder.resolve().is_relative_to(link.resolve())]
    files = []
    for top in (folder, *linked) if below else (folder,):
        for path, folders, names in os.walk(top, onerror=None if errors is None else errors.append):
            folders[:] = [name for name in folders if below and not name.startswith(".")]
            relative = Path(path).relative_to(folder)
            images = (name for name in names if Path(name).suffix.lower() in endings and not name.startswith("."))
            files += [(relative / name).as_posix() for name in images]
    return sorted(files)


def folders_in(folder: Path) -> list[str]:
    """Return the folders in a folder by name, in order; no hidden ones. Raises UserError if it cannot be listed."""
    try:
        return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed ({error.strerror or error}).") from error


def decode(path: Path, how: Decoding) -> Decoded:
    """Return the image turned upright, cropped to its middle, and resized so that it fills H x W.

    Transparent parts become white; more colours than C become grey, fewer are repeated. Raises Unusable.
    """
    channels, height, width = how.x_shape
    try:
        if not path.is_file():  # a named pipe would keep its reader waiting for ever
            raise Unusable("not a file, or a link that leads nowhere")
        with Image.open(path) as image:  # Pillow refuses decompression bombs here
            if how.crop is None:  # a JPEG's own smaller scales, still twice as large as is needed, save much time
                image.draft(None, (2 * max(width, height),) * 2)
            depth = _depth(image)
            image = ImageOps.exif_transpose(image)
            if depth is not None:
                image = _eight_bits(path, image, depth, how.white)
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            image = image.convert("L" if channels == 1 else "RGB")
    except (UserError, Unusable):
        raise
    except UnidentifiedImageError as error:
        raise Unusable("not an image that Pillow can read") from error
    except Exception as error:  # a damaged file makes Pillow's readers raise almost anything
        raise Unusable(str(error) or repr(error)) from error
    if how.crop is not None:
        across, down = min(how.crop, image.width), min(how.crop, image.height)
        left, top = (image.width - across) // 2, (image.height - down) // 2
        image = image.crop((left, top, left + across, top + down))
    if max(width / image.width, height / image.height) > MAX_ENLARGED:
        raise Unusable(f"{image.width}x{image.height} pixels are too few for {width}x{height} (dataset.image_size)")
    pixels = np.asarray(ImageOps.fit(image, (width, height)))
    return Decoded(pixels[None] if channels == 1 else pixels.transpose(2, 0, 1), depth)


def _depth(image: Image.Image) -> str | None:
    """Return the kind of a deep grey, a key of WHITE; None for what Pillow reads as 8 bits."""
    if image.mode == "F":
        return "float"
    if image.mode == "I":  # of a PNG or a PGM it is Pillow's word for 16 bits
        return "32-bit" if image.format == "TIFF" else "16-bit"
    return "16-bit" if image.mode.startswith("I;16") else None


def _eight_bits(path: Path, image: Image.Image, depth: str, white: float | None) -> Image.Image:
    """Return a deep grey scaled so that white is 255. Raises UserError for pixels beyond: no scale is guessed."""
    deep = np.asarray(image, dtype=np.float64)
    if not np.isfinite(deep).all():
        raise Unusable("pixels that are not finite numbers")
    low, high, top = deep.min(), deep.max(), white or WHITE[depth]
    if white is None and (low < 0 or high > top):
        raise UserError(
            f"{printable(path)}: its pixels go from {low:g} to {high:g}, and a {depth} grey from 0 (black) to {top:g} "
            "(white). Say what white is for all images, such as dataset.white=255; what lies outside is cut off then."
        )
    return Image.fromarray((deep / top * 255).clip(0, 255).round().astype(np.uint8))


def decode_all(root: Path, files: list[str], how: Decoding) -> Iterator[tuple[int, Decoded | Unusable]]:
    """Yield the row and the image of each file in order, or, unless how.on_error is fail, why it cannot be used."""

    def attempt(file: str) -> Decoded | Unusable:
        try:
            return decode(root / file, how)
        except Unusable as error:
            return error

    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    bar = tqdm(total=len(files), unit="image", desc="decoding", disable=None, leave=False, dynamic_ncols=True)
    # Threads are enough: Pillow lets go of Python's lock while it decodes and resizes.
    with bar, ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(files), CHUNK):
            for row, image in enumerate(pool.map(attempt, files[start : start + CHUNK]), start):
                bar.update()
                if isinstance(image, Unusable) and how.on_error == "fail":
                    raise _refusal(root / files[row], image)
                yield row, image


def _refusal(path: Path, reason: object) -> UserError:
    return UserError(f"{printable(path)}: {reason}. dataset.on_error=skip leaves such files out.")


def read_images(
    path: str | Path, x_shape: tuple[int, int, int], crop: int | None = None, white: float | None = None
) -> tuple[Tensor, list[str]]:
    """Read the image at path, or those of the folder by name: uint8 [N, C, H, W], and the path of each in it."""
    path, how = expand(path), Decoding(x_shape, crop, white)
    if not path.exists():
        raise UserError(f"{path}: there is no such file or folder.")
    if x_shape[0] not in (1, 3):
        raise UserError(f"{path}: images are read with 1 channel or 3, not with {x_shape[0]}.")
    if not path.is_dir():
        try:
            return torch.from_numpy(decode(path, how).pixels.copy())[None], [path.name]
        except Unusable as error:
            raise UserError(f"{path}: {error}.") from error
    files = list_images(path)
    images = dict(decode_all(path, files, how))
    report_unusable(path, files, {row: str(image) for row, image in images.items() if isinstance(image, Unusable)})
    usable = {files[row]: image.pixels for row, image in images.items() if isinstance(image, Decoded)}
    return torch.from_numpy(np.stack(list(usable.values()))), list(usable)


def _read_about(cache: Path, n_files: int, x_shape: tuple[int, int, int]) -> tuple[Reasons, dict[str, int]] | None:
    """Return a cache's unusable files, and how many images there are of each deep grey; None if it is damaged."""
    try:
        stored = read_json(cache / "about.json")
        unusable = {int(row): str(reason) for row, reason in stored["unusable"].items()}
        depths = {str(depth): int(count) for depth, count in stored["depths"].items()}
        # Reading the images themselves would cost as much as decoding saves.
        is_complete = (cache / IMAGES).stat().st_size == (n_files - len(unusable)) * math.prod(x_shape)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    is_sound = is_complete and depths.keys() <= WHITE.keys() and all(0 <= row < n_files for row in unusable)
    return (unusable, depths) if is_sound else None


def _write(cache: Path, root: Path, files: list[str], how: Decoding) -> tuple[Reasons, dict[str, int]]:
    """Decode the files into the cache. Each of its files appears complete or not at all, about.json last."""
    for abandoned in cache.parent.glob("*/*.partial"):
        partial_of(abandoned.with_name(IMAGES))  # which deletes those that killed processes left
    if (cache / "about.json").exists():
        log.warning(f"{cache}: damaged, so the images are decoded anew")
    unusable: Reasons = {}
    depths: Counter[str] = Counter()
    with atomic_write(cache / IMAGES) as out:
        for row, image in decode_all(root, files, how):
            if isinstance(image, Unusable):
                unusable[row] = str(image)
            else:
                out.write(np.ascontiguousarray(image.pixels).data)
                depths.update([image.depth] if image.depth else [])
    if unusable:
        write(cache / "left_out.txt", "\n".join([*_lines(files, unusable), ""]))
    write(cache / "about.json", json.dumps({"unusable": unusable, "depths": depths}))
    return unusable, depths


def _report_white(root: Path, depths: dict[str, int], white: float | None) -> None:
    """Log which brightness is white in images of more than 8 bits."""
    setting = f"dataset.white={'null' if white is None else f'{white:g}'}"
    if depths:
        images = ", ".join(f"{count:,} {depth} images: {white or WHITE[depth]:g}" for depth, count in depths.items())
        log_once(f"what is white in {printable(root)}: {images} ({setting})")
    elif white is not None:
        text = f"{setting}: changes nothing in {printable(root)}, where no grey has more than 8 bits"
        log_once(text, logging.WARNING)


def report_unusable(root: Path, files: list[str], unusable: Reasons, cache: Path | None = None) -> None:
    """Warn of files that cannot be used, naming the first ones, of a cache once. Raises UserError if none is left."""
    if not unusable:
        return
    lines = _lines(files, unusable)
    if len(lines) == len(files):
        raise UserError(f"{root}: none of its {len(files):,} images can be used; {lines[0]}.")
    where, named = "", lines[:MAX_FILES]
    if cache is not None:
        named = [] if cache in _listed else named
        _listed.add(cache)
        if len(named) < len(lines) and (cache / "left_out.txt").is_file():
            where = f"; all of them are named in {cache / 'left_out.txt'}"
    log.warning("\n  ".join([f"left out {len(lines):,} of {len(files):,} files in {root}{where}", *named]))


def _lines(files: list[str], unusable: Reasons) -> list[str]:
    return [printable(f"{files[row]}: {reason}") for row, reason in unusable.items()]
