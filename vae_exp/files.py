"""Files that are whole or not there, and a run's folder that belongs to one process at a time."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from vae_exp.config import UserError


class Unwritable(UserError):
    """A disk that is full, a folder that is read-only: the user's to mend."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises Unwritable, naming the file and the reason, where the system refuses to write it."""
    try:
        yield
    except OSError as error:
        raise Unwritable(
            f"{path}: cannot be written ({error.strerror or error}). Make room or choose another place, such as "
            "hydra.run.dir=PATH; what was saved before is whole, and resume=RUN_FOLDER goes on from there."
        ) from error


def write(path: Path, content: bytes | memoryview, previous: Path | None = None) -> None:
    """Write beside, flush to the disk, rename: a killed process leaves the old file or the new one.

    With `previous` the file that was there until now is kept under that name. Raises Unwritable.
    """
    beside = path.with_name(path.name + ".partial")
    try:
        with writing(path):
            with beside.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if previous is not None and path.exists():
                path.replace(previous)
            beside.replace(path)
    except Unwritable:
        with contextlib.suppress(OSError):  # a full disk needs the room
            beside.unlink()
        raise


def write_json(path: Path, content: dict[str, Any]) -> None:
    """As write does, for people to read."""
    write(path, (json.dumps(content, indent=2) + "\n").encode())


def make_parents(folder: Path) -> None:
    """Make the folders that a folder is to lie in. Raises Unwritable."""
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def only_process(folder: Path) -> Iterator[None]:
    """Hold the folder for this process; the system lets go of it when the process ends, however it ends.

    Raises UserError naming the process that holds it already.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("a+")
    with lock:
        if not _locked(lock):
            raise _taken(folder, lock)
        with contextlib.suppress(OSError):  # the number is for people; a full disk may refuse it
            lock.truncate(0)
            lock.write(f"{os.getpid()}\n")
            lock.flush()
        yield


def check_owner(folder: Path) -> None:
    """Raises UserError as only_process does, and holds nothing: for before a folder is touched."""
    with contextlib.suppress(OSError), (folder / "lock").open("r+") as lock:
        if not _locked(lock):
            raise _taken(folder, lock)


def _taken(folder: Path, lock: TextIO) -> UserError:
    lock.seek(0)
    return UserError(f"{folder}: process {lock.read().strip() or '?'} is training in this folder just now.")


def _locked(lock: TextIO) -> bool:
    """Whether this process now holds the lock. Where there are no locks nothing can be told, so it does."""
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True
