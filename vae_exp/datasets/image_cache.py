"""Image files become one file of raw bytes, decoded once and in parallel: what training then maps into memory."""

import contextlib
import hashlib
import json
import logging
import math
import os
import shutil
import time
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from vae_exp.datasets.image_files import SHOWN, WHITE, Decoded, Unusable, decode
from vae_exp.errors import Unwritable, UserError, printable
from vae_exp.files import announce, cache_folder, content_key, read_json, write

log = logging.getLogger(__name__)

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
