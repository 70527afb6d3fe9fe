"""Image files of any kind: listed, opened and decoded, in one place that also handles other things with such names."""

import logging
import os
import stat
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vae_exp.errors import UserError, printable

log = logging.getLogger(__name__)

# Pillow refuses images of more than 179 million pixels; its warning from 89 million on names no file.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
SHOWN = 5  # files or folders that were left out
LONGEST_SHOWN = 200  # characters of a folder's path
ENLARGED_AT_MOST = 4  # an image that would be enlarged more has nothing to show at this size


WHITE = {"16-bit": 65535.0, "32-bit": 65535.0, "float": 1.0}  # of the deep greys, where dataset.white is null


class Unusable(Exception):
    """A file that is no image, is damaged, or is too small."""


class Decoded(NamedTuple):
    """An image as training takes it."""

    pixels: np.ndarray  # uint8 [C, H, W]
    depth: str | None  # of a deep grey, a key of WHITE; None of what has 8 bits, or is given 8 by Pillow


def list_images(folder: Path, on_error: str = "skip") -> list[str]:
    """Return the image files below the folder, relative to it and in order.

    Raises UserError if there are none, and with on_error=fail for a folder that cannot be read; otherwise a warning
    counts such folders.
    """
    unread: list[OSError] = []
    files = find_images(folder, unread=unread)
    if unread:
        places = [os.path.relpath(error.filename, folder)[:LONGEST_SHOWN] for error in unread]
        lines = [printable(f"{place}: {error.strerror}") for place, error in zip(places, unread, strict=True)]
        if on_error == "fail":
            raise UserError(f"{folder}: {lines[0]}. dataset.on_error=skip leaves such folders out.")
        count = f"{len(lines):,} folder{'s' * (len(lines) > 1)} in {printable(folder)} that cannot be read"
        log.warning("\n  ".join([f"left out {count}, with all that is in them", *lines[:SHOWN]]))
    if not files:
        raise UserError(f"{folder}: no images in it, by the endings of the names (.png, .jpg, .webp, ...).")
    return files


def find_images(folder: Path, below: bool = True, unread: list[OSError] | None = None) -> list[str]:
    """Return the files in the folder, and below it, that have an image's ending, in order; no hidden ones.

    Links at the top are followed, except those that lead back to the folder itself or to one that holds it: its images
    would come twice, the second time as a class of the link's name. `unread` collects why folders below cannot be read.
    Raises UserError if the folder itself cannot be.
    """
    Image.init()
    endings = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    files = []
    for top in (folder, *_linked(folder)):
        for where, folders, names in os.walk(top, onerror=None if unread is None else unread.append):
            folders[:] = [name for name in folders if below and not name.startswith(".")]
            here = Path(where).relative_to(folder)
            images = (name for name in names if Path(name).suffix.lower() in endings and not name.startswith("."))
            files += [(here / name).as_posix() for name in images]
        if not below:
            break
    return sorted(files)


def folders_in(folder: Path) -> list[str]:
    """Return the names of the folders in a folder, and of links to folders, in order.

    Raises UserError if it cannot be listed.
    """
    try:
        return sorted(path.name for path in folder.iterdir() if path.is_dir())
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed ({error.strerror or error}).") from error


def _linked(folder: Path) -> list[Path]:
    """Return the links in a folder that lead to folders elsewhere. Raises UserError if the folder cannot be listed."""
    links = [folder / name for name in folders_in(folder) if not name.startswith(".") and (folder / name).is_symlink()]
    here = folder.resolve()
    return [link for link in links if not here.is_relative_to(link.resolve())]


def class_folder(file: str) -> str:
    """Return the first folder on the way to a listed file; nothing if the file lies at the top."""
    return file.split("/")[0] if "/" in file else ""


def decode(path: Path, x_shape: tuple[int, int, int], crop: int | None = None, white: float | None = None) -> Decoded:
    """Return the image turned upright, cropped to its middle, and resized so that it fills H x W.

    Transparent parts become white; more colours than C become grey, fewer are repeated. Greys of 16 or 32 bits and
    floats go from 0 to white, or to WHITE if that is None. crop is the side of the middle square that is used, in
    pixels of the file. Raises Unusable, and UserError for deep greys out of this range if white is None.
    """
    channels, height, width = x_shape
    _require_file(path)
    try:
        with Image.open(path) as image:  # Pillow refuses decompression bombs here
            if crop is None:  # a JPEG's own smaller scales, still twice as large as is needed, save most of the time
                image.draft(None, (2 * max(width, height),) * 2)
            depth = _depth(image)
            image = ImageOps.exif_transpose(image)
            if depth is not None:
                image = _eight_bits(path, image, depth, white)
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            image = image.convert("L" if channels == 1 else "RGB")
    except UserError:
        raise
    except Exception as error:  # a damaged file makes Pillow's readers raise almost anything
        unknown = isinstance(error, UnidentifiedImageError)
        raise Unusable("not an image that Pillow can read" if unknown else str(error) or repr(error)) from error
    if crop is not None:
        across, down = min(crop, image.width), min(crop, image.height)
        left, top = (image.width - across) // 2, (image.height - down) // 2
        image = image.crop((left, top, left + across, top + down))
    if max(width / image.width, height / image.height) > ENLARGED_AT_MOST:
        raise Unusable(f"{image.width}x{image.height} pixels are too few for {width}x{height} (dataset.image_size)")
    pixels = np.asarray(ImageOps.fit(image, (width, height)))
    return Decoded(pixels[None] if channels == 1 else pixels.transpose(2, 0, 1), depth)


def _require_file(path: Path) -> None:
    """Raise Unusable if the path is not a file: a named pipe would keep its reader waiting for ever."""
    try:
        mode = path.stat().st_mode  # of what a link leads to
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise Unusable(f"a link that leads nowhere ({reason})" if path.is_symlink() else reason) from error
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a folder"}
        raise Unusable(f"{kinds.get(stat.S_IFMT(mode), 'a device')}, not a file")


def _depth(image: Image.Image) -> str | None:
    """Return the kind of a deep grey, a key of WHITE; None for what Pillow reads as 8 bits."""
    if image.mode == "F":
        return "float"
    if image.mode == "I":  # of a PNG or a PGM it is Pillow's word for 16 bits
        return "32-bit" if image.format == "TIFF" else "16-bit"
    return "16-bit" if image.mode.startswith("I;16") else None


def _eight_bits(path: Path, image: Image.Image, depth: str, white: float | None) -> Image.Image:
    """Return a deep grey scaled so that white is 255, where Pillow would clip it instead.

    The scale is never guessed from the pixels: one image would then be brighter than the next. Raises UserError if
    white is None and the pixels are outside of their usual range.
    """
    deep = np.asarray(image, dtype=np.float64)
    if not np.isfinite(deep).all():
        raise ValueError("pixels that are not finite numbers")
    low, high, top = deep.min(), deep.max(), white or WHITE[depth]
    if white is None and (low < 0 or high > top):
        raise UserError(
            f"{printable(path)}: its pixels go from {low:g} to {high:g}, and a {depth} grey from 0 (black) to {top:g} "
            "(white). Say what white is, the same for all images, such as dataset.white=255; what lies outside is cut "
            "off then."
        )
    return Image.fromarray((deep / top * 255).clip(0, 255).round().astype(np.uint8))
