"""The map of a run for many settings, as map.json holds it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from vae_exp.errors import UserError


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
        places = json.loads(path.read_text())["test"]
        return [
            Place(
                beta=float(place["beta"]),
                z_dim=int(place["z_dim"]),
                neg_elbo=float(place["neg_elbo"]),
                reconstruction=float(place["reconstruction"]),
                kl=float(place["kl"]),
                active_units=int(place["active_units"]),
            )
            for place in places
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged, or not the map of a run ({type(error).__name__}).") from error
