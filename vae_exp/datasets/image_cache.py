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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from vae_exp.datasets.image_files import Unusable, decode
from vae_exp.errors import UserError, printable

log = logging.getLogger(__name__)

FORMAT = 2  # in the key: a cache of another format, or of another way to decode, is not found
CHUNK = 1024  # files decoded between two writes
ABANDONED_SECONDS = 3600  # an unfinished cache that nobody has written to for so long
SHOWN = 5  # files that were left out; all of them are in a file of the cache

_told: set[Path] = set()  # the caches whose files left out this process has listed


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
    unusable = _unusable(cache, len(files), x_shape)
    if unusable is None:
        try:
            if cache.exists() or cache.is_symlink():
                log.warning(f"{cache}: damaged, so the images are decoded anew")
                shutil.rmtree(cache) if cache.is_dir() and not cache.is_symlink() else cache.unlink()
            _write(cache, root, files, x_shape, crop, on_error)
        except OSError as error:
            raise UserError(f"{cache.parent}: the decoded images cannot be written there ({error}).") from error
        unusable = _unusable(cache, len(files), x_shape) or {}
    if unusable and on_error == "fail":
        row, reason = next(iter(unusable.items()))
        raise _refusal(root / files[row], reason)
    if len(unusable) == len(files):
        raise UserError(f"{root}: none of its {len(files):,} images can be used; {_line(files[0], unusable[0])}.")
    if unusable:
        _tell(cache, root, {files[row]: reason for row, reason in unusable.items()}, len(files))
    return cache / "images.uint8", [row for row in range(len(files)) if row not in unusable]


def _unusable(cache: Path, files: int, x_shape: tuple[int, int, int]) -> dict[int, str] | None:
    """The rows of a cache's files that cannot be used, with the reasons; None where the cache is not there or damaged.

    Its images are as many bytes as they must be, but are not read: that would cost as much as decoding saves.
    """
    try:
        about = json.loads((cache / "about.json").read_text())
        unusable = {int(row): str(reason) for row, reason in about["unusable"].items()}
        size = (cache / "images.uint8").stat().st_size
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    whole = size == (files - len(unusable)) * math.prod(x_shape)
    return unusable if whole and all(0 <= row < files for row in unusable) else None


def left_out_lines(left_out: dict[str, str]) -> list[str]:
    """A line for each of the files that cannot be used, with the reason."""
    return [_line(*item) for item in left_out.items()]


def _tell(cache: Path, root: Path, left_out: dict[str, str], of: int) -> None:
    """Name the files left out: all in a file of the cache, the first ones in a warning, once in a process."""
    lines, named = left_out_lines(left_out), cache / "left_out.txt"
    if not named.is_file():  # it appears whole: another process may be reading the cache
        partial = named.with_name(f"left_out.{uuid.uuid4().hex}")
        with contextlib.suppress(OSError):  # a cache that only others may write to
            partial.write_text("\n".join([*lines, ""]), encoding="utf-8")
            partial.replace(named)
    shown = [] if cache in _told else lines[:SHOWN]
    _told.add(cache)
    where = f"; all of them are named in {named}" if named.is_file() and len(shown) < len(lines) else ""
    log.warning("\n  ".join([f"left out {len(lines):,} of {of:,} files in {root}{where}", *shown]))


def _line(file: str, reason: str) -> str:
    return printable(f"{file}: {reason}")


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
    return UserError(f"{printable(str(path))}: {reason}. dataset.on_error=skip leaves such files out.")


def _key(root: Path, files: list[str], x_shape: tuple, crop: int | None) -> str:
    digest = hashlib.sha256(json.dumps([FORMAT, list(x_shape), crop]).encode())
    for file in files:
        try:
            known = (root / file).stat()
            of_file = f"{known.st_size}\0{known.st_mtime_ns}"
        except OSError:  # a link that leads nowhere: one more file that cannot be used
            of_file = "nothing"
        digest.update(f"{file}\0{of_file}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def _clear_abandoned(folder: Path) -> None:
    """What a killed process left: its own clearing up did not run."""
    for partial in folder.glob("*.partial-*"):
        with contextlib.suppress(OSError):  # its owner may be renaming it just now
            written = max(path.stat().st_mtime for path in (partial, *partial.iterdir()))
            if time.time() - written > ABANDONED_SECONDS:
                shutil.rmtree(partial)
