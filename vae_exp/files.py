"""Files, whoever wrote them: how they are read and written, where caches are, and how contents are told apart."""

import contextlib
import glob
import hashlib
import itertools
import json
import logging
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import yaml

from vae_exp.errors import Unwritable, UserError, printable

log = logging.getLogger(__name__)
_announced: set[Path] = set()
BLOCK = 4096  # bytes read at each of the sampled places
WHOLE = 4 * BLOCK  # bytes of a file that is hashed whole
EVERY = 2**20  # bytes of a larger file between two sampled places
MAX_BLOCKS = 64
NO_FILE = "no file"  # in the place of a digest
MAX_BYTES = 2**24  # of a text file: the largest of ours have kilobytes
MAX_YAML_BYTES = 2**17  # PyYAML takes a second for so many
MAX_LINE_BYTES = 2**20
MAX_DEPTH = 50  # levels of lists and groups
MAX_BITS = 10_000  # of a whole number: Python refuses to print one of 4300 digits
ABANDONED_SECONDS = 3600  # what nobody has written to for so long was left by a process that was killed


class Unreadable(OSError, ValueError):
    """Not a regular file, or not the content that such a file has."""


def cache_folder(name: str) -> Path:
    """Return the folder of one kind of cache in the user's cache folder; it need not exist.

    For a user without a home, as in some containers, it is in the temporary folder.
    """
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    except RuntimeError:
        folder = Path(tempfile.gettempdir())
    return folder / "vae_exp" / name


def announce(folder: Path, what: str, key: str | None = None) -> None:
    """Log where something is cached, once per process; `key` is the setting that chooses another folder."""
    if folder not in _announced and log.isEnabledFor(logging.INFO):
        _announced.add(folder)
        log.info(f"{what} are cached in {printable(folder)}{f' ({key}=FOLDER: elsewhere)' if key else ''}")


def content_key(files: Mapping[str, Path]) -> str:
    """Return a key of the files' content: their names in this order, sizes, times in nanoseconds and sampled bytes.

    Their folder is not part of it. A file that cannot be read counts by its name: it may be readable the next time.
    """
    digest = hashlib.sha256()
    for name, known in of_files(files).items():
        content = ""
        with contextlib.suppress(OSError):  # it may have gone meanwhile
            content = "" if known == NO_FILE else f"{files[name].stat().st_mtime_ns}\0{known}"
        digest.update(f"{name}\0{content}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def of_files(files: Mapping[str, Path]) -> dict[str, str]:
    """Return a digest of each file's size and some of its bytes, by the given names."""
    return {name: _digest_or_none(path) for name, path in files.items()}


def _digest_or_none(path: Path) -> str:
    try:
        return sampled_digest(path)
    except (OSError, ValueError):  # a link that leads nowhere, a pipe, a file of somebody else's
        return NO_FILE


def sampled_digest(path: Path) -> str:
    """Return a hash of a file's size and of blocks spread evenly over it, its first and last bytes among them.

    It reads at most 256 KiB of any file, so that 60,000 images or 10 GB of arrays cost seconds. Raises OSError if
    the file cannot be read, or is not a regular file.
    """
    with open_regular(path, buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        digest = hashlib.sha256(f"{size}\n".encode())
        if size <= WHOLE:
            digest.update(file.read(WHOLE))
        else:
            blocks = min(MAX_BLOCKS, max(WHOLE // BLOCK, size // EVERY))
            for i in range(blocks):
                file.seek(i * (size - BLOCK) // (blocks - 1))
                digest.update(file.read(BLOCK))
    return digest.hexdigest()[:16]


# Reading. Anybody may have written what is found on the disk: a pipe would keep its reader waiting for ever, a device
# never ends, and a text of a few bytes may mean lists without end.


def open_regular(path: Path, buffering: int = -1) -> BinaryIO:
    """Open a file for reading, without waiting. Raises OSError if it cannot be opened, or is not a regular file."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # no waiting for a pipe's writer
    file = os.fdopen(os.open(path, flags), "rb", buffering)
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise Unreadable(f"{path}: not a file")
    return cast("BinaryIO", file)


def read_text(path: Path, max_bytes: int = MAX_BYTES) -> str:
    """Return the text of a small file. Raises OSError if it cannot be read, is larger, or is not UTF-8."""
    with open_regular(path) as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise Unreadable(f"{path}: larger than {max_bytes:,} bytes")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise Unreadable(f"{path}: no text in UTF-8") from error


def read_json(path: Path) -> Any:
    """Return the content of a small JSON file. Raises OSError if it cannot be read, or is not such a file."""
    return parse_json(read_text(path))


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file with one JSON object per line; none if it cannot be read, and no damaged ones.

    The last line of a killed process may be incomplete.
    """
    with contextlib.suppress(OSError), open_regular(path) as file:
        while line := file.readline(MAX_LINE_BYTES):
            with contextlib.suppress(Unreadable):
                row = parse_json(line.decode(errors="replace"))
                if isinstance(row, dict):
                    yield row


def read_yaml(path: Path) -> Any:
    """Return the content of a small YAML file. Raises OSError if it cannot be read, or is not such a file."""
    return parse_yaml(read_text(path, MAX_YAML_BYTES))


def parse_json(text: str) -> Any:
    """Return the value of a JSON text. Raises Unreadable if it is none, or nests deeper than MAX_DEPTH."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"no JSON ({type(error).__name__})") from error
    return _shallow(value)


def parse_yaml(text: str) -> Any:
    """Return the value of a YAML text. Raises Unreadable if it is none, has aliases, or is deeper than MAX_DEPTH."""
    try:
        value = yaml.load(text, _WithoutAliases)
    # PyYAML lets errors of Python through, such as for the 13th month.
    except (
        yaml.YAMLError,
        ValueError,
        TypeError,
        AttributeError,
        LookupError,
        ArithmeticError,
        RecursionError,
    ) as error:
        raise Unreadable(f"no YAML ({type(error).__name__})") from error
    return _shallow(value)


class _WithoutAliases(yaml.SafeLoader):
    """PyYAML's safe loader without aliases: with them nine lines can mean a billion values, or an endless one."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not read")
        return super().compose_node(parent, index)


def _shallow(value: Any) -> Any:
    """Return the value. Raises Unreadable if it is deeper than MAX_DEPTH, or has a number of over MAX_BITS."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        if any(isinstance(item, int) and item.bit_length() > MAX_BITS for item in level):
            raise Unreadable("a number without end")
        nested = [
            [*item, *item.values()] if isinstance(item, dict) else item
            for item in level
            if isinstance(item, dict | list)
        ]
        if not nested:
            return value
        level = [item for items in nested for item in items]
    raise Unreadable(f"nested deeper than {MAX_DEPTH} levels")


# Writing. A file is written beside its place and then renamed: a full disk, a kill or another process that writes the
# same file leaves the old content or the new one.


@contextlib.contextmanager
def writing(path: Path, key: str | None = None) -> Iterator[None]:
    """Raise Unwritable, naming file and reason, if the system refuses to write; `key` is the setting to change."""
    try:
        yield
    except OSError as error:
        such_as = f", such as {key}=PATH" if key else ""
        raise Unwritable(
            f"{path}: cannot be written ({error.strerror or error}). Make room, or choose another place{such_as}."
        ) from error


def write(
    path: Path,
    content: str | bytes | memoryview,
    previous: Path | None = None,
    same: Path | None = None,
    sync: bool = True,
) -> None:
    """Write a file completely or not at all, text as UTF-8; with sync it is on disk before it takes its place.

    With `previous` the old file is kept under that name. If `same` has just been written with the same content, this
    becomes a second name (a hard link) of that file, where the system allows it. Raises Unwritable.
    """
    content = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    with _beside(path, previous) as partial:
        if same is None or not _linked(partial, same):
            with _new(partial, sync) as file:
                file.write(content)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file for people to read, as `write` does."""
    write(path, json.dumps(content, indent=2) + "\n")


@contextlib.contextmanager
def atomic_write(path: Path, sync: bool = True) -> Iterator[BinaryIO]:
    """Yield a file that replaces path when the block ends, and is deleted if the block fails.

    For what is written piece by piece, or by a library. Any OSError inside is raised as Unwritable.
    """
    with _beside(path) as partial, _new(partial, sync) as file:
        yield file


@contextlib.contextmanager
def _beside(path: Path, previous: Path | None = None) -> Iterator[Path]:
    """Yield a name in the same folder that nobody else writes to; that file is renamed to path at the end."""
    partial = partial_of(path)
    try:
        with writing(path):
            yield partial
            if previous is not None and path.exists():
                path.replace(previous)
            partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):  # a full disk needs the room
            partial.unlink()
        raise


def partial_of(path: Path) -> Path:
    """Return a new name beside path for an unfinished file or folder; delete those that killed processes left."""
    start = path.name[:50]  # short enough for every file system
    for left in path.parent.glob(f"{glob.escape(start)}.*.partial"):
        with contextlib.suppress(OSError):  # another process takes it away, or is still writing it
            if time.time() - left.lstat().st_mtime > ABANDONED_SECONDS:
                shutil.rmtree(left) if left.is_dir() else left.unlink()
    return path.with_name(f"{start}.{os.urandom(4).hex()}.partial")


@contextlib.contextmanager
def _new(path: Path, sync: bool) -> Iterator[BinaryIO]:
    with path.open("xb") as file:
        yield file
        if sync:
            file.flush()
            os.fsync(file.fileno())


def _linked(path: Path, other: Path) -> bool:
    """Return whether a second name (a hard link) of the file could be made."""
    try:
        os.link(other, path)
    except OSError:
        return False
    return True


# A folder of somebody else's may hold links: what is written, moved or deleted through them lies elsewhere.


def no_links(path: str, flags: int) -> int:
    """Open a file as an `opener` of `open`. Raises OSError if it is a link."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def require_no_links(folder: Path, names: Iterable[str]) -> None:
    """Raise UserError if one of these names in a folder is a link, a pipe or a device, or contains one."""
    for path in (folder / name for name in names):
        below = (Path(at, name) for at, folders, files in os.walk(path) for name in (*folders, *files))
        for each in itertools.chain([path], below):
            if each.is_symlink():
                raise UserError(
                    f"{each}: a link, to {each.readlink()}. What is written, moved or deleted in {folder} must lie "
                    "there: put the file or folder itself in its place, or take the link away."
                )
            if each.exists() and not each.is_file() and not each.is_dir():  # whoever opens a pipe waits for ever
                raise UserError(f"{each}: not a file or folder. Take it away first.")
