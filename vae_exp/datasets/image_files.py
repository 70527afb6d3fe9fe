"""Read image files, and keep what they decode to in a cache."""

import contextlib
import hashlib
import json
import logging
import math
import os
import shutil
import stat
import time
import uuid
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from vae_exp.errors import Unwritable, UserError, printable
from vae_exp.files import announce, cache_folder, content_key, read_json, write

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


FORMAT = 3  # in the key: a cache of another format, or of another way to decode, is not found
CHUNK = 1024  # files decoded between two writes
ABANDONED_SECONDS = 3600  # an unfinished cache that nobody has written to for so long

_told: set[tuple[Path, str]] = set()  # what this process has said of which cache


@dataclass(frozen=True)
class Decoding:
    """The way in which image files become pixels, and the place where these are cached."""

    x_shape: tuple[int, int, int]
    crop: int | None = None
    white: float | None = None
    on_error: str = "skip"
    cache: str | None = None  # a folder; None is the user's cache folder


def cached(root: Path, files: list[str], how: Decoding) -> tuple[Path, list[int]]:
    """Return a file of the decoded images [N, C, H, W], and which of the files they are, in their order.

    The cache is found by the files' names, sizes, times and sampled bytes, and by how they are decoded, wherever they
    lie: reading all of them again would take as long as reading the disk. It appears complete or not at all. Raises
    UserError if it cannot be written, if no file can be used, and with on_error=fail if any file cannot.
    """
    folder = cache_folder("image_cache") if how.cache is None else Path(how.cache).expanduser() / "image_cache"
    cache = folder / _key(root, files, how)
    about = _about(cache, len(files), how.x_shape)
    announce(folder, "decoded images", "dataset.cache")
    if about is None:
        try:
            about = _write(cache, root, files, how)
        except OSError as error:
            raise UserError(
                f"{folder}: the decoded images cannot be written there ({error}). dataset.cache=FOLDER: elsewhere."
            ) from error
    unusable = about.unusable
    if unusable and how.on_error == "fail":
        row, reason = next(iter(unusable.items()))
        raise _refusal(root / files[row], reason)
    if len(unusable) == len(files):
        raise UserError(f"{root}: none of its {len(files):,} images can be used; {_line(files[0], unusable[0])}.")
    _tell_white(cache, root, about.depths, how.white)
    if unusable:
        _tell(cache, root, {files[row]: reason for row, reason in unusable.items()}, len(files))
    return cache / "images.uint8", [row for row in range(len(files)) if row not in unusable]


@dataclass
class About:
    """The facts that a cache records about its files."""

    unusable: dict[int, str]  # the rows of those that cannot be used, with the reasons
    depths: dict[str, int]  # how many of each depth of decode's there are


def _about(cache: Path, files: int, x_shape: tuple[int, int, int]) -> About | None:
    """Return the facts that a cache records about its files; None if it is missing or damaged.

    The size of its images is checked, but they are not read: that would cost as much as decoding saves.
    """
    try:
        kept = read_json(cache / "about.json")
        unusable = {int(row): str(reason) for row, reason in kept["unusable"].items()}
        depths = {str(depth): int(count) for depth, count in kept["depths"].items()}
        size = (cache / "images.uint8").stat().st_size
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    whole = size == (files - len(unusable)) * math.prod(x_shape)
    return About(unusable, depths) if whole and all(0 <= row < files for row in unusable) else None


def _tell_white(cache: Path, root: Path, depths: dict[str, int], white: float | None) -> None:
    """Log which brightness is white in images of more than 8 bits, once per process."""
    if (cache, "white") in _told or not log.isEnabledFor(logging.INFO):
        return
    _told.add((cache, "white"))
    if depths:
        found = ", ".join(f"{count:,} {depth} images: {white or WHITE[depth]:g}" for depth, count in depths.items())
        log.info(
            f"what is white in {printable(root)}: {found} (dataset.white={'null' if white is None else f'{white:g}'})"
        )
    elif white is not None:
        log.warning(
            f"dataset.white={white:g}: changes nothing in {printable(root)}, where no grey has more than 8 bits"
        )


def left_out_lines(left_out: dict[str, str]) -> list[str]:
    """Return a line for each of the files that cannot be used, with the reason."""
    return [_line(*item) for item in left_out.items()]


def _tell(cache: Path, root: Path, left_out: dict[str, str], of: int) -> None:
    """Log the files that were left out: all in a file of the cache, the first ones in a warning, once per process."""
    lines, named = left_out_lines(left_out), cache / "left_out.txt"
    if not named.is_file():  # it appears whole: another process may be reading the cache
        with contextlib.suppress(Unwritable):  # a cache that only others may write to
            write(named, "\n".join([*lines, ""]), sync=False)
    shown = [] if (cache, "left out") in _told else lines[:SHOWN]
    _told.add((cache, "left out"))
    where = f"; all of them are named in {named}" if named.is_file() and len(shown) < len(lines) else ""
    log.warning("\n  ".join([f"left out {len(lines):,} of {of:,} files in {root}{where}", *shown]))


def _line(file: str, reason: str) -> str:
    return printable(f"{file}: {reason}")


def _write(cache: Path, root: Path, files: list[str], how: Decoding) -> About:
    """Write beside the cache, flush to the disk, rename: it is complete or missing, even if others make it too."""
    cache.parent.mkdir(parents=True, exist_ok=True)
    _clear_abandoned(cache.parent)
    partial = cache.with_name(f"{cache.name}.partial-{uuid.uuid4().hex}")
    damaged = partial.with_name(f"{partial.name}-damaged")
    partial.mkdir()
    try:
        about = _decode_into(partial / "images.uint8", root, files, how)
        (partial / "about.json").write_text(json.dumps(asdict(about)))
        if _about(cache, len(files), how.x_shape) is None and (cache.exists() or cache.is_symlink()):
            log.warning(f"{cache}: damaged, so the images are decoded anew")
            cache.rename(damaged)
        try:
            partial.rename(cache)
        except OSError:
            if _about(cache, len(files), how.x_shape) is None:  # else another process was faster
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        _remove(damaged)
    return about


def _remove(path: Path) -> None:
    """Remove a folder, a file or a link, if it exists."""
    with contextlib.suppress(OSError):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _decode_into(path: Path, root: Path, files: list[str], how: Decoding) -> About:
    def attempt(file: str) -> Decoded | Unusable:
        try:
            return decode(root / file, how.x_shape, how.crop, how.white)
        except Unusable as error:
            return error

    unusable: dict[int, str] = {}
    depths: Counter[str] = Counter()
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    bar = tqdm(total=len(files), unit="image", desc="decoding", disable=None, leave=False, dynamic_ncols=True)
    # Threads are enough: Pillow lets go of Python's lock while it decodes and resizes.
    with path.open("wb") as out, bar, ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(files), CHUNK):
            for row, image in enumerate(pool.map(attempt, files[start : start + CHUNK]), start):
                bar.update()
                if isinstance(image, Decoded):
                    out.write(np.ascontiguousarray(image.pixels).data)
                    depths.update([image.depth] if image.depth else [])
                elif how.on_error == "fail":
                    raise _refusal(root / files[row], image)
                else:
                    unusable[row] = str(image)
        out.flush()
        os.fsync(out.fileno())
    return About(unusable, dict(depths))


def _refusal(path: Path, reason: object) -> UserError:
    return UserError(f"{printable(str(path))}: {reason}. dataset.on_error=skip leaves such files out.")


def _key(root: Path, files: list[str], how: Decoding) -> str:
    decoding = json.dumps([FORMAT, list(how.x_shape), how.crop, how.white])
    content = content_key({file: root / file for file in files})
    return hashlib.sha256(f"{decoding}\n{content}".encode()).hexdigest()[:16]


def _clear_abandoned(folder: Path) -> None:
    """Remove what a killed process left behind: its own clean-up did not run."""
    for partial in folder.glob("*.partial-*"):
        with contextlib.suppress(OSError):  # its owner may be renaming it just now
            written = max(path.stat().st_mtime for path in (partial, *partial.iterdir()))
            if time.time() - written > ABANDONED_SECONDS:
                shutil.rmtree(partial)
