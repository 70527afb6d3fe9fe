"""Arrays that can be computed again, kept in a file: whole or not there, and no code when they are read."""

import logging
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from vae_exp.errors import Unwritable
from vae_exp.files import atomic_write, open_regular, writing

log = logging.getLogger(__name__)


def read(path: Path) -> dict[str, np.ndarray] | None:
    """Return the arrays by name; None if the file is missing, not whole, or holds more than plain arrays."""
    try:
        with open_regular(path) as file, np.load(file, allow_pickle=False) as kept:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in kept.zip.infolist()):
                return None  # as write leaves none: what is packed may be of any size
            return {name: kept[name] for name in kept.files}
    except Exception:  # a damaged file may raise nearly anything: zlib's, zipfile's, tokenize's errors, no memory
        return None


def are_numbers(content: dict[str, np.ndarray], dtypes: Mapping[str, type]) -> bool:
    """Return whether exactly these arrays are there, each of its type and finite."""
    return content.keys() == dtypes.keys() and all(
        values.dtype == dtypes[name] and bool(np.isfinite(values).all()) for name, values in content.items()
    )


def write(path: Path, content: dict[str, np.ndarray]) -> None:
    """Write arrays by name. If the system refuses, log a warning that they will be computed again."""
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path, sync=False) as file:
            np.savez(file, **content)  # type: ignore[arg-type]
    except Unwritable as error:
        log.warning("%s These arrays will be computed again.", error)
