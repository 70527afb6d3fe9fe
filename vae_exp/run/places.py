"""The map of a run for many settings, as map.json holds it."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict, cast

from vae_exp.errors import UserError
from vae_exp.files import read_json


class Place(TypedDict):
    """What is measured at one setting, in nats per image."""

    beta: float
    z_dim: int
    neg_elbo: float
    reconstruction: float
    kl: float
    active_units: int


def named(place: Mapping[str, Any]) -> str:
    """beta-4_z_dim-10."""
    return f"beta-{place['beta']:g}_z_dim-{place['z_dim']}"


def read(path: Path) -> list[Place]:
    """Of the test images. Raises UserError for a damaged file."""
    try:
        places = [sound(place) for place in read_json(path)["test"]]
        if not places:
            raise ValueError("it has no settings")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged, or not the map of a run ({type(error).__name__}).") from error
    return places


def sound(found: Mapping[str, Any]) -> Place:
    """Raises ValueError for what is no number, no beta or no z_dim."""
    place = {name: found[name] for name in Place.__annotations__}
    if not all(type(value) in (int, float) and math.isfinite(value) for value in place.values()):
        raise ValueError("some are no numbers")
    if place["beta"] < 0 or not (type(place["z_dim"]) is int and place["z_dim"] > 0):
        raise ValueError("no such setting")
    return cast("Place", place)
