"""Arrays that can be computed again, kept in a file: whole or not there, and no code when they are read."""

import contextlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

log = logging.getLogger(__name__)


def read(path: Path) -> dict[str, np.ndarray] | None:
    """The arrays by their names; None where the file is not there, not whole, or holds more than plain arrays."""
    try:
        with np.load(path, allow_pickle=False) as kept:
            return {name: kept[name] for name in kept.files}
    except Exception:  # a damaged file may raise nearly anything: zlib's, zipfile's, tokenize's errors, no memory
        return None


def are_numbers(content: dict[str, np.ndarray], dtypes: Mapping[str, type]) -> bool:
    """Whether these arrays are there and no others, each of its type, and finite."""
    return content.keys() == dtypes.keys() and all(
        values.dtype == dtypes[name] and bool(np.isfinite(values).all()) for name, values in content.items()
    )


def write(path: Path, content: dict[str, np.ndarray]) -> None:
    """Beside, then renamed. Where the system refuses, a warning says that they will be computed again."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            np.savez(file, **content)  # type: ignore[arg-type]
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        log.warning("%s: cannot be kept (%s), and will be computed again.", path, error.strerror or error)
