"""Image files become one file of raw bytes, decoded once and in parallel: what training then maps into memory."""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from vae_exp.errors import UserError

log = logging.getLogger(__name__)

FORMAT = 1  # in the key: a cache of another format, or of another way to decode, is not found
CHUNK = 1024  # files decoded between two writes
ENLARGED_AT_MOST = 4  # an image that would be enlarged more has nothing to show at this size
ABANDONED_SECONDS = 3600  # an unfinished cache that nobody has written to for so long


class Unusable(Exception):
    """A file that is no image, is damaged, or is too small."""


def decode(path: Path, x_shape: tuple[int, int, int], crop: int | None = None) -> np.ndarray:
    """The image, uint8 [C, H, W]: turned upright, its middle cut out, and resized so that it fills H x W.

    Transparent parts become white; 16 bits become 8; more colours than C become grey, fewer are repeated.
    crop is the side of the middle square that is used, in pixels of the file. Raises Unusable.
    """
    channels, height, width = x_shape
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


def _eight_bits(image: Image.Image) -> Image.Image:
    """Pillow clips deep greys at 255 where it converts them, which leaves white: scale them instead."""
    if not image.mode.startswith(("I", "F")):
        return image
    deep = np.asarray(image, dtype=np.float64)
    top = 1.0 if image.mode == "F" and deep.max() <= 1 else 255.0 if deep.max() <= 255 else 65535.0
    return Image.fromarray((deep / max(top, deep.max()) * 255).clip(0, 255).round().astype(np.uint8))


def cached(
    name: str,
    root: Path,
    files: list[str],
    x_shape: tuple[int, int, int],
    crop: int | None,
    on_error: str,
    folder: Path,
) -> tuple[Path, list[int]]:
    """A file of the decoded images [N, C, H, W], and which of the files they are, in their order.

    The key is the files' names, sizes and times of change, and how they are decoded: their contents are not read
    again, which would cost as much as the disk takes. The cache appears whole or not at all. Raises UserError where it
    cannot be written, where no file can be used, and with on_error=fail where one cannot.
    """
    cache = folder / "image_cache" / f"{root.name or name}-{_key(root, files, x_shape, crop)}"
    if not (cache / "about.json").is_file():
        try:
            _write(cache, root, files, x_shape, crop, on_error)
        except OSError as error:
            raise UserError(f"{cache.parent}: the decoded images cannot be written there ({error}).") from error
    about = json.loads((cache / "about.json").read_text())
    unusable = {int(row): reason for row, reason in about["unusable"].items()}
    if unusable and on_error == "fail":
        row, reason = next(iter(unusable.items()))
        raise _refusal(root / files[row], reason)
    if len(unusable) == len(files):
        raise UserError(f"{root}: none of its {len(files):,} images can be used; {files[0]}: {unusable[0]}.")
    if unusable:
        shown = "".join(f"\n  {files[row]}: {reason}" for row, reason in list(unusable.items())[:5])
        rest = f"\n  and {len(unusable) - 5:,} more" if len(unusable) > 5 else ""
        log.warning(f"left out {len(unusable):,} of {len(files):,} files in {root}:{shown}{rest}")
    return cache / "images.uint8", [row for row in range(len(files)) if row not in unusable]


def _write(cache: Path, root: Path, files: list[str], x_shape: tuple, crop: int | None, on_error: str) -> None:
    """Write beside, flush to the disk, rename: the cache is whole or not there."""
    cache.parent.mkdir(parents=True, exist_ok=True)
    _clear_abandoned(cache.parent)
    partial = cache.with_name(f"{cache.name}.partial-{uuid.uuid4().hex}")
    partial.mkdir()
    try:
        about = _decode_into(partial / "images.uint8", root, files, x_shape, crop, on_error)
        (partial / "about.json").write_text(json.dumps(about))
        try:
            partial.rename(cache)
        except OSError:
            if not (cache / "about.json").is_file():  # else another process was faster
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _decode_into(path: Path, root: Path, files: list[str], x_shape: tuple, crop: int | None, on_error: str) -> dict:
    def attempt(file: str) -> np.ndarray | Unusable:
        try:
            return decode(root / file, x_shape, crop)
        except Unusable as error:
            return error

    unusable = {}
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    bar = tqdm(total=len(files), unit="image", desc="decoding", disable=None, leave=False, dynamic_ncols=True)
    # Threads are enough: Pillow lets go of Python's lock while it decodes and resizes.
    with path.open("wb") as out, bar, ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(files), CHUNK):
            for row, image in enumerate(pool.map(attempt, files[start : start + CHUNK]), start):
                bar.update()
                if isinstance(image, np.ndarray):
                    out.write(np.ascontiguousarray(image).data)
                elif on_error == "fail":
                    raise _refusal(root / files[row], image)
                else:
                    unusable[row] = str(image)
        out.flush()
        os.fsync(out.fileno())
    return {"x_shape": x_shape, "images": len(files) - len(unusable), "unusable": unusable}


def _refusal(path: Path, reason: object) -> UserError:
    return UserError(f"{path}: {reason}. dataset.on_error=skip leaves such files out.")


def _key(root: Path, files: list[str], x_shape: tuple, crop: int | None) -> str:
    digest = hashlib.sha256(json.dumps([FORMAT, list(x_shape), crop]).encode())
    for file in files:
        known = (root / file).stat()
        digest.update(f"{file}\0{known.st_size}\0{known.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def _clear_abandoned(folder: Path) -> None:
    """What a killed process left: its own clearing up did not run."""
    for partial in folder.glob("*.partial-*"):
        with contextlib.suppress(OSError):  # its owner may be renaming it just now
            written = max(path.stat().st_mtime for path in (partial, *partial.iterdir()))
            if time.time() - written > ABANDONED_SECONDS:
                shutil.rmtree(partial)
