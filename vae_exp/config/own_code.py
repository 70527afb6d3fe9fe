"""Modules of a user's own that a run names: which files they are, and how the same files are found again."""

import importlib.util
import logging
import os
import sys
from collections.abc import Iterable, Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from vae_exp.config.check import CALLS
from vae_exp.config.foreign import is_published
from vae_exp.errors import UserError

log = logging.getLogger(__name__)


def look_here_too(module: str) -> None:
    """Let a module that is not installed be found in the current folder."""
    here = os.getcwd()  # noqa: PTH109
    if module not in sys.modules and here not in sys.path and importlib.util.find_spec(module) is None:
        sys.path.append(here)


def files_of(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the files of the user's own modules that a configuration names, by module; installed ones are left out."""
    found = {}
    for group in CALLS:
        target = str(config[group]["_target_"])
        name = target.partition(".")[0]
        place = None if is_published(group, target) else _place(sys.modules.get(name))
        of_python = name in sys.stdlib_module_names or name in ("vae_exp", "torch", "__main__")
        if place and not of_python and not {"site-packages", "dist-packages"} & set(place.parts):
            found[name] = str(place)
    return found


def _place(module: ModuleType | None) -> Path | None:
    """Return the file of a module, or the folder of a package without __init__.py."""
    file = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ())), None)
    return Path(file).absolute() if file else None


def find(config: Mapping[str, Any], groups: Iterable[str], code: Mapping[str, str]) -> None:
    """Import the user's own modules that a trusted run names, from the files they had when it was trained.

    A missing file is looked for as at the start of a run, with a note. Raises UserError if it cannot be found, and
    for a module that was imported from another file.
    """
    targets = [(group, str(config[group].get("_target_"))) for group in groups]
    for name in dict.fromkeys(t.partition(".")[0] for group, t in targets if not is_published(group, t)):
        place, loaded = Path(code.get(name, "")), _place(sys.modules.get(name))
        if name not in code or (loaded and (not place.exists() or _is_same(loaded, place))):
            continue
        if loaded:
            raise UserError(
                f"{name}: the run's is {place}, and {loaded} is imported already. Each needs a process of its own."
            )
        if place.exists():
            _import(name, place)
            continue
        look_here_too(name)
        spec = importlib.util.find_spec(name)
        if spec is None:
            here = Path.cwd()
            raise UserError(f"{name}: the run's code was {place}, which is gone, and in {here} there is none either.")
        log.warning(f"{name}: the run's code was {place}, which is gone; {spec.origin or name} is taken.")


def compare(config: Mapping[str, Any], before: Mapping[str, str]) -> None:
    """Log which of a run's own modules come from other files now than when it was trained."""
    for name, now in files_of(config).items():
        then = Path(before.get(name, now))
        if not _is_same(Path(now), then):
            log.warning(f"{name}: is {now}, and the run had {then}.")


def _is_same(one: Path, other: Path) -> bool:
    """Return whether two files are one, or have the same content; for packages, whether they are one."""
    if one == other or (one.exists() and other.exists() and one.samefile(other)):
        return True
    are_modules = one.is_file() and other.is_file() and "__init__.py" not in (one.name, other.name)
    return are_modules and one.read_bytes() == other.read_bytes()


def _import(name: str, place: Path) -> None:
    """Import a module from this very file. Raises UserError if it is not a module."""
    spec: ModuleSpec | None = ModuleSpec(name, None, is_package=True)
    inside = [str(place.parent)] if place.name == "__init__.py" else None
    if place.is_dir() and spec:
        spec.submodule_search_locations = [str(place)]
    else:
        spec = importlib.util.spec_from_file_location(name, place, submodule_search_locations=inside)
    folder = str(place.parent.parent if inside else place.parent)
    if folder not in sys.path:  # last, for what it imports itself: no file there hides what is installed
        sys.path.append(folder)
    try:
        if spec is None:
            raise ImportError("no module of Python's")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        if spec.loader:
            spec.loader.exec_module(sys.modules[name])
    except Exception as error:
        sys.modules.pop(name, None)
        if isinstance(error, ImportError | SyntaxError | OSError):
            raise UserError(f"{name}: the run's code {place} cannot be imported ({error}).") from error
        raise
