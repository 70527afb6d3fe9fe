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


def write(path: Path, content: bytes | memoryview, previous: Path | None = None) -> None:
    """Write beside, flush to the disk, rename: a killed process leaves the old file or the new one.

    With `previous` the file that was there until now is kept under that name. Raises Unwritable where the system
    refuses, such as for a full disk.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with writing(path):
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


def write_same(path: Path, other: Path, content: bytes | memoryview, previous: Path | None = None) -> None:
    """As write, of what has just been written to `other`: a second name of that file, where the system allows it."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.unlink(missing_ok=True)
        os.link(other, partial)
    except OSError:
        write(path, content, previous)
        return
    with writing(path):
        if previous is not None and path.exists():
            path.replace(previous)
        partial.replace(path)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """As write does, for people to read."""
    write(path, (json.dumps(content, indent=2) + "\n").encode())
