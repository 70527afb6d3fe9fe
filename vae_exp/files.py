"""Read and write files, whoever wrote them; find caches, and tell contents apart."""

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
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import yaml

from vae_exp.errors import Unwritable, UserError

if TYPE_CHECKING:
    import numpy as np

log = logging.getLogger(__name__)
_logged: set[str] = set()
BLOCK = 4096  # bytes that are sampled at once; of a smaller file than four of them, all
BLOCK_DISTANCE = 2**20  # bytes of a larger file between two blocks
MAX_BLOCKS = 64
MAX_BYTES = 2**24  # of a text file: the largest of ours have kilobytes
FAST_YAML = getattr(yaml, "CSafeLoader", None)  # of PyYAML where it was built with libyaml
MAX_YAML_BYTES = 2**17  # PyYAML takes a second for so many
MAX_LINE_BYTES = 2**20
MAX_DEPTH = 50  # levels of lists and groups
ABANDONED_SECONDS = 3600  # what nobody has written to for so long was left by a process that was killed


class Unreadable(OSError, ValueError):
    """Not a regular file, or not the content that such a file has."""


def expand(path: object) -> Path:
    """Return a path as anybody gives one, with ~ for their home. Raises UserError if there is no such home."""
    try:
        return Path(str(path)).expanduser()
    except RuntimeError as error:
        home = f"~ is a home, and there is none of this name. A file or folder called so is ./{path}"
        raise UserError(f"{path}: {home}.") from error


def use_surroundings() -> None:
    """Give a user without a home one in the temporary folder, and a cache where theirs cannot be written.

    PyTorch, W&B and matplotlib fail without, or say much. Raises UserError where nothing is there to begin with.
    """
    try:
        Path.cwd()
    except OSError as error:
        raise UserError("the current folder is there no more. Change into another: cd PATH.") from error
    try:
        own = Path(tempfile.gettempdir()) / f"vae_exp-{os.getuid() if hasattr(os, 'getuid') else ''}"
    except OSError as error:
        raise UserError("no folder for temporary files can be written. Name one: TMPDIR=PATH.") from error
    places = {"XDG_CACHE_HOME": ".cache", "XDG_DATA_HOME": ".local/share", "MPLCONFIGDIR": "matplotlib"}
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vae_exp"
        folder = next(path for path in (cache, *cache.parents) if os.path.exists(path))  # noqa: PTH110  (it never raises)
        if folder.is_dir() and os.access(folder, os.W_OK):
            return
        if folder == cache:  # the data in it can be read
            os.environ.setdefault("VAE_EXP_DATA", str(cache))
    except RuntimeError:  # the user's number is of no account, as in containers
        places["HOME"] = "."
    try:
        own.mkdir(mode=0o700, exist_ok=True)
        is_own = not own.is_symlink() and own.stat().st_uid == os.getuid()
    except (OSError, AttributeError):
        is_own = False
    own = own if is_own else Path(tempfile.mkdtemp())
    os.environ.update({name: str(own / place) for name, place in places.items()})


def cache_folder(name: str) -> Path:
    """Return the folder of one kind of cache in the user's cache folder; it need not exist."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    except RuntimeError:  # for a user without a home, as in some containers
        folder = Path(tempfile.gettempdir())
    return folder / "vae_exp" / name


def log_once(message: str, level: int = logging.INFO) -> None:
    """Log what the later jobs of a sweep need not repeat, once per process."""
    if message not in _logged and log.isEnabledFor(level):
        _logged.add(message)
        log.log(level, message)


def content_key(files: Mapping[str, Path]) -> str:
    """Return a key of the files' names in this order, their times and sampled bytes, but not of their folder."""
    digest = hashlib.sha256()
    for name, path in files.items():
        content = ""
        with contextlib.suppress(OSError, ValueError):  # unreadable: it may be readable the next time
            content = f"{path.stat().st_mtime_ns}\0{sampled_digest(path)}"
        digest.update(f"{name}\0{content}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def digests(files: Mapping[str, Path]) -> dict[str, str]:
    """Return the sampled digest of each file by its name, or "no file" for what cannot be read, such as a pipe."""
    result = dict.fromkeys(files, "no file")
    for name, path in files.items():
        with contextlib.suppress(OSError, ValueError):
            result[name] = sampled_digest(path)
    return result


def sampled_digest(path: Path) -> str:
    """Return a hash of a file's size and of at most 256 KiB, in blocks spread evenly over it. Raises OSError."""
    with open_regular(path, buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        digest = hashlib.sha256(f"{size}\n".encode())
        if size <= 4 * BLOCK:
            digest.update(file.read(4 * BLOCK))
        else:
            blocks = min(MAX_BLOCKS, max(4, size // BLOCK_DISTANCE))
            for i in range(blocks):
                file.seek(i * (size - BLOCK) // (blocks - 1))
                digest.update(file.read(BLOCK))
    return digest.hexdigest()[:16]


# Reading. Anybody may have written what is on the disk: a pipe keeps its reader waiting, a device never ends, a text of
# a few bytes may mean lists without end. All raise OSError for what cannot be read, or is not such a file.


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
    return parse_json(read_text(path))


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file with one JSON object per line; none if it cannot be read, and no damaged ones."""
    with contextlib.suppress(OSError), open_regular(path) as file:
        while line := file.readline(MAX_LINE_BYTES):
            with contextlib.suppress(Unreadable):
                row = parse_json(line.decode(errors="replace"))
                if isinstance(row, dict):
                    yield row


def read_yaml(path: Path) -> Any:
    return parse_yaml(read_text(path, MAX_YAML_BYTES))


def parse_json(text: str) -> Any:
    """Return the value of a JSON text. Raises Unreadable if it is none, or nests deeper than MAX_DEPTH."""
    return _parse("JSON", json.loads, text)


def parse_yaml(text: str) -> Any:
    """Return the value of a YAML text. Raises Unreadable if it is none, has aliases, or is deeper than MAX_DEPTH."""
    # libyaml is eight times as fast, and cannot be told to refuse aliases, whose signs these are.
    if FAST_YAML and not {"&", "*"} & set(text):
        with contextlib.suppress(Unreadable):  # it refuses half of a character, which a name of bytes may have
            return _parse("YAML", lambda text: yaml.load(text, FAST_YAML), text)
    return _parse("YAML", lambda text: yaml.load(text, _WithoutAliases), text)


def _parse(kind: str, load: Callable[[str], Any], text: str) -> Any:
    try:
        value = load(text)
    except Exception as error:  # PyYAML lets errors of Python through, such as for the 13th month
        raise Unreadable(f"no {kind} ({type(error).__name__})") from error
    return require_shallow(value)


class _WithoutAliases(yaml.SafeLoader):
    """PyYAML's safe loader without aliases: with them nine lines can mean a billion values, or an endless one."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not read")
        return super().compose_node(parent, index)


def require_shallow(value: Any) -> Any:
    """Return the value. Raises Unreadable if it is deeper than MAX_DEPTH."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        nested = [item for item in level if isinstance(item, list)]
        nested += [[*item, *item.values()] for item in level if isinstance(item, dict)]
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
    path: Path, content: str | bytes | memoryview, previous: Path | None = None, same: Path | None = None
) -> None:
    """Write a file as `atomic_write` does, or where that works as a hard link to `same`, of the same content."""
    if same is not None:
        with contextlib.suppress(OSError):
            partial = partial_of(path)
            os.link(same, partial)
            _replace(path, partial, previous)
            return
    with atomic_write(path, previous=previous) as file:
        file.write(content.encode(errors="backslashreplace") if isinstance(content, str) else content)


def write_json(path: Path, content: Any) -> None:
    write(path, json.dumps(content, indent=2) + "\n")


@contextlib.contextmanager
def atomic_write(path: Path, sync: bool = True, previous: Path | None = None) -> Iterator[BinaryIO]:
    """Yield a file that replaces path when the block ends, and is deleted if it fails. Raises Unwritable.

    Its folder is made if there is none. With sync it is on disk before it takes its place; with `previous` the old
    file is kept under that name.
    """
    partial = partial_of(path)
    with writing(path), making(path.parent):
        try:
            with partial.open("xb") as file:
                yield file
                if sync:
                    file.flush()
                    os.fsync(file.fileno())
            _replace(path, partial, previous)
        except BaseException:
            with contextlib.suppress(OSError):  # a full disk needs the room
                partial.unlink()
            raise


@contextlib.contextmanager
def making(folder: Path) -> Iterator[None]:
    """Make a folder for the block; afterwards remove it, and the folders above that are new, where they are empty."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for path in missing:
            with contextlib.suppress(OSError):  # not empty, as after success
                path.rmdir()


def _replace(path: Path, partial: Path, previous: Path | None) -> None:
    if previous is not None and path.exists():
        path.replace(previous)
    partial.replace(path)


def partial_of(path: Path) -> Path:
    """Return a new name beside path for an unfinished file or folder; delete those that killed processes left."""
    start = path.name[:50]  # short enough for every file system
    for abandoned in path.parent.glob(f"{glob.escape(start)}.*.partial"):
        with contextlib.suppress(OSError):  # another process takes it away, or is still writing it
            if time.time() - abandoned.lstat().st_mtime > ABANDONED_SECONDS:
                shutil.rmtree(abandoned) if abandoned.is_dir() else abandoned.unlink()
    return path.with_name(f"{start}.{os.urandom(4).hex()}.partial")


# Arrays that can be computed again: whole or not there, and no code when they are read.


def read_arrays(path: Path, types: Mapping[str, type]) -> "dict[str, np.ndarray] | None":
    """Return the arrays of a file by name; None unless these are there, whole, of these types and finite."""
    import numpy as np

    try:
        with open_regular(path) as file, np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
            are_whole = all(kind is np.str_ or np.isfinite(arrays[name]).all() for name, kind in types.items())
    except Exception:  # a damaged file may raise nearly anything: zlib's, zipfile's, tokenize's errors, no memory
        return None
    same_types = {name: values.dtype.type for name, values in arrays.items()} == types
    return arrays if are_whole and same_types else None


def write_arrays(path: Path, arrays: "Mapping[str, np.ndarray]") -> None:
    """Write arrays by name. If the system refuses, log a warning that they will be computed again."""
    import numpy as np

    try:
        with atomic_write(path, sync=False) as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
    except Unwritable as error:
        log.warning("%s These arrays will be computed again.", error)


# A folder of somebody else's may hold links: what is written, moved or deleted through them lies elsewhere.


def no_links(path: str, flags: int) -> int:
    """Open a file as an `opener` of `open`. Raises OSError if it is a link."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def require_no_links(folder: Path, names: Iterable[str]) -> None:
    """Raise UserError if one of these names in a folder is a link, a pipe or a device, or contains one."""
    for top in (folder / name for name in names):
        below = (Path(parent, name) for parent, folders, files in os.walk(top) for name in (*folders, *files))
        for path in itertools.chain([top], below):
            if path.is_symlink():
                raise UserError(
                    f"{path}: a link, to {path.readlink()}. What is written, moved or deleted in {folder} must lie "
                    "there: put the file or folder itself in its place, or take the link away."
                )
            if path.exists() and not path.is_file() and not path.is_dir():  # whoever opens a pipe waits for ever
                raise UserError(f"{path}: not a file or folder. Take it away first.")
