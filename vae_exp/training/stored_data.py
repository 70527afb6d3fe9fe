"""The data of a stored run, read again: found where they lie now, and refused if they are not those of training."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vae_exp.config import build
from vae_exp.datasets import Data
from vae_exp.errors import UserError
from vae_exp.training.checkpoint import Checkpoint
from vae_exp.training.origin import in_reach, places

log = logging.getLogger(__name__)
_told: set[str] = set()  # the places of data of which this process has said that it does not know them


def read(stored: Checkpoint, run_dir: Path | None, root: str | None = None) -> Data:
    """Return the dataset that a stored run was trained on, split as then.

    It is looked for at root, or where it lay, from wherever the run is now. Raises UserError if it lies at none of
    these places, cannot be read, or differs from then: it would be split anew, and images that were trained on would
    be measured as test images.
    """
    settings = stored.config["dataset"]
    cache = str(settings.get("cache"))
    if settings["_target_"] == "vae_exp.datasets.image_folder" and not Path(cache).expanduser().is_dir():
        settings = settings | {"cache": None}  # it was another machine's, or is cleared
    return _read(stored, run_dir, settings, root)


def read_to_resume(stored: Checkpoint, run_dir: Path, settings: Mapping[str, Any]) -> Data:
    """Read the data as `read` does, for a run that goes on with these settings of its dataset.

    If their root is none of the places where the run's data may lie, only that root is used.
    """
    root = settings.get("root")
    own = places(stored.config["dataset"], stored.origin, run_dir)
    try:
        return _read(stored, run_dir, settings, None if root in own else root)
    except UserError as error:
        raise UserError(f"{error} resume=null starts a new run.") from error


def _read(stored: Checkpoint, run_dir: Path | None, settings: Mapping[str, Any], root: str | None) -> Data:
    found = in_reach(stored.config["dataset"], stored.origin, run_dir) if root is None else [root]
    refused: UserError | None = None
    for place in found:
        try:
            data = build.dataset({"dataset": _at(place, settings, stored)})
            return _unchanged(stored, data, f"dataset.root={place}", run_dir)
        except UserError as error:  # the data may lie at the next place
            refused = refused or error
    if refused is not None:
        raise refused
    return _unchanged(stored, build.dataset({"dataset": settings}), "dataset", None)  # which lies nowhere


def _at(place: str, settings: Mapping[str, Any], stored: Checkpoint) -> dict[str, Any]:
    """Return the settings for data at a place.

    A table of factors is looked for as far from it as it was, and otherwise where it was.
    """
    then, table = stored.origin and stored.origin.root, settings.get("factors")
    if then and isinstance(table, str) and Path(table).is_absolute():
        moved = os.path.normpath(Path(place) / os.path.relpath(table, then))
        if os.path.exists(moved) or not os.path.exists(table):  # noqa: PTH110  (it never raises)
            return {**settings, "root": place, "factors": moved}
    return {**settings, "root": place}


def _unchanged(stored: Checkpoint, data: Data, place: str, run_dir: Path | None) -> Data:
    """Return the data. Raises UserError if they are not those that the run was trained on."""
    assert data.fingerprint is not None, "prepare makes one"
    changes = data.fingerprint.changes(stored.origin.data) if stored.origin else _other_numbers(stored, data)
    if stored.origin is None and not changes and place not in _told and run_dir is not None:
        _told.add(place)
        log.warning(
            f"{place}: {run_dir} is of an older version, which kept no record of its data: whether they have changed "
            "since cannot be told, but for their number."
        )
    if changes:
        raise UserError(
            f"{place}: these are not the data of training any more: {'; '.join(changes)}. Split anew, images that were "
            "trained on would count as test images. Bring the data back as they were, or say where they are: "
            "dataset.root=PATH."
        )
    return data


def _other_numbers(stored: Checkpoint, data: Data) -> list[str]:
    """Return what is known to have changed since a run of an older version."""
    numbers = {"classes": (len(data.class_names), len(stored.class_names))}
    if stored.goes_on is not None:
        facts = stored.goes_on.facts
        numbers["training images"] = len(data.train), facts.train_size
        numbers["validation images"] = len(data.val), facts.val_size
    return [f"{now:,} {what}, and were {then:,}" for what, (now, then) in numbers.items() if now != then]
