"""Image files of any kind: listed, opened and decoded, in one place that knows what else may have such a name."""

import os
import stat
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vae_exp.errors import UserError

# Pillow refuses images of more than 179 million pixels; its warning from 89 million on names no file.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
ENLARGED_AT_MOST = 4  # an image that would be enlarged more has nothing to show at this size


class Unusable(Exception):
    """A file that is no image, is damaged, or is too small."""


def list_images(folder: Path) -> list[str]:
    """The files below the folder whose ending is an image's, relative to it and in order. Hidden ones are left out.

    Links at the top are followed, but for those that lead back to the folder itself or to one that holds it: its
    images would come twice, the second time as a class of the link's name. Raises UserError where there is none.
    """
    Image.init()
    endings = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    files = []
    for top in (folder, *_linked(folder)):
        for where, folders, names in os.walk(top):
            folders[:] = [name for name in folders if not name.startswith(".")]
            here = Path(where).relative_to(folder)
            images = (name for name in names if Path(name).suffix.lower() in endings and not name.startswith("."))
            files += [(here / name).as_posix() for name in images]
    if not files:
        raise UserError(f"{folder}: no images in it, by the endings of the names (.png, .jpg, .webp, ...).")
    return sorted(files)


def _linked(folder: Path) -> list[Path]:
    """The links in a folder that lead to folders elsewhere. Raises UserError where the folder cannot be listed."""
    try:
        links = [link for link in folder.iterdir() if link.is_symlink() and link.is_dir()]
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed ({error.strerror or error}).") from error
    here = folder.resolve()
    return [link for link in links if not link.name.startswith(".") and not here.is_relative_to(link.resolve())]


def class_folder(file: str) -> str:
    """The first folder on the way to a listed file; nothing where the file lies at the top."""
    return file.split("/")[0] if "/" in file else ""


def decode(path: Path, x_shape: tuple[int, int, int], crop: int | None = None) -> np.ndarray:
    """The image, uint8 [C, H, W]: turned upright, its middle cut out, and resized so that it fills H x W.

    Transparent parts become white; 16 bits become 8; more colours than C become grey, fewer are repeated.
    crop is the side of the middle square that is used, in pixels of the file. Raises Unusable.
    """
    channels, height, width = x_shape
    _require_file(path)
    try:
        with Image.open(path) as image:  # Pillow refuses decompression bombs here
            if crop is None:  # a JPEG's own smaller scales, still twice as large as is needed, save most of the time
                image.draft(None, (2 * max(width, height),) * 2)
            image = _eight_bits(ImageOps.exif_transpose(image))
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            image = image.convert("L" if channels == 1 else "RGB")
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
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def _require_file(path: Path) -> None:
    """Raises Unusable for what is no file: a named pipe would keep its reader waiting for ever."""
    try:
        mode = path.stat().st_mode  # of what a link leads to
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise Unusable(f"a link that leads nowhere ({reason})" if path.is_symlink() else reason) from error
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a folder"}
        raise Unusable(f"{kinds.get(stat.S_IFMT(mode), 'a device')}, not a file")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Pillow clips deep greys at 255 where it converts them, which leaves white: scale them instead."""
    if not image.mode.startswith(("I", "F")):
        return image
    deep = np.asarray(image, dtype=np.float64)
    if not np.isfinite(deep).all():
        raise ValueError("pixels that are not finite numbers")
    top = 1.0 if image.mode == "F" and deep.max() <= 1 else 255.0 if deep.max() <= 255 else 65535.0
    return Image.fromarray((deep / max(top, deep.max()) * 255).clip(0, 255).round().astype(np.uint8))
