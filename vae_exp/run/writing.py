"""Files that are whole or not there, whatever happens while they are written."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vae_exp.errors import Unwritable


@contextlib.contextmanager
def writing(path: Path, key: str = "hydra.run.dir", resume: str = "resume") -> Iterator[None]:
    """Raises Unwritable, naming the file and the reason, where the system refuses to write it.

    key is what chooses another place, and resume what goes on from there.
    """
    try:
        yield
    except OSError as error:
        raise Unwritable(
            f"{path}: cannot be written ({error.strerror or error}). Make room or choose another place, such as "
            f"{key}=PATH; what was saved before is whole, and {resume}=FOLDER goes on from there."
        ) from error


def write(path: Path, content: bytes | memoryview, previous: Path | None = None, same: Path | None = None) -> None:
    """Write beside, flush to the disk, rename: a killed process leaves the old file or the new one.

    With `previous` the file that was there until now is kept under that name. Where `same` has just been written with
    the same content, this is a second name of that file, if the system allows it. Raises Unwritable where the system
    refuses, such as for a full disk.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with writing(path):
            partial.unlink(missing_ok=True)  # of a process that was killed: it may be another name of a whole file
            if same is None or not _linked(partial, same):
                with partial.open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
            if previous is not None and path.exists():
                path.replace(previous)
            partial.replace(path)
    except Unwritable:
        with contextlib.suppress(OSError):  # a full disk needs the room
            partial.unlink()
        raise


def _linked(path: Path, other: Path) -> bool:
    """Whether the system gives a file a second name."""
    try:
        os.link(other, path)
    except OSError:
        return False
    return True


def write_json(path: Path, content: dict[str, Any]) -> None:
    """As write does, for people to read."""
    write(path, (json.dumps(content, indent=2) + "\n").encode())
