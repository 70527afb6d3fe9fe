"""Files, whoever wrote them: where caches lie, and what tells one content from another."""

import hashlib
import logging
import os
import stat
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vae_exp.errors import printable

log = logging.getLogger(__name__)
_announced: set[Path] = set()
BLOCK = 4096  # bytes read at each of the sampled places
WHOLE = 4 * BLOCK  # bytes of a file that is hashed whole
EVERY = 2**20  # bytes of a larger file between two sampled places
MAX_BLOCKS = 64


def cache_folder(name: str) -> Path:
    """Return the folder of one kind of cache in the user's cache folder; it need not exist.

    Of a user without a home, as in some containers, it lies in the temporary folder.
    """
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    except RuntimeError:
        folder = Path(tempfile.gettempdir())
    return folder / "vae_exp" / name


def announce(folder: Path, what: str, key: str | None = None) -> None:
    """Say where something is cached, once in a process; key is what chooses another folder."""
    if folder not in _announced and log.isEnabledFor(logging.INFO):
        _announced.add(folder)
        log.info(f"{what} are cached in {printable(folder)}{f' ({key}=FOLDER: elsewhere)' if key else ''}")


def content_key(files: Mapping[str, Path]) -> str:
    """Return what tells files apart: their names in this order, sizes, times in nanoseconds and sampled bytes.

    Where they lie is no part of it. A file that cannot be read counts by its name: it may be read the next time.
    """

    def describe(item: tuple[str, Path]) -> str:
        name, path = item
        try:
            return f"{name}\0{path.stat().st_mtime_ns}\0{sampled_digest(path)}\n"
        except (OSError, ValueError):  # a link that leads nowhere, a pipe, a file of somebody else's
            return f"{name}\0\n"

    digest = hashlib.sha256()
    with ThreadPoolExecutor(8) as pool:  # a disk of the network answers many at once
        for described in pool.map(describe, files.items()):
            digest.update(described.encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def sampled_digest(path: Path) -> str:
    """Return a hash of a file's size and of blocks spread evenly over it, its first and last bytes among them.

    It reads at most 256 KiB of any file, so that 60,000 images or 10 GB of arrays cost seconds. Raises OSError where
    the file cannot be read, and for what is no regular file: a named pipe would keep its reader waiting for ever.
    """
    # Without waiting for a pipe's writer.
    with os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb", buffering=0) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(f"{path}: not a file")
        size = status.st_size
        digest = hashlib.sha256(f"{size}\n".encode())
        if size <= WHOLE:
            digest.update(file.read(WHOLE))
        else:
            blocks = min(MAX_BLOCKS, max(WHOLE // BLOCK, size // EVERY))
            for i in range(blocks):
                file.seek(i * (size - BLOCK) // (blocks - 1))
                digest.update(file.read(BLOCK))
    return digest.hexdigest()[:16]
