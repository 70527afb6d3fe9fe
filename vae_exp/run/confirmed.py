"""The best settings of a run's map, which are trained for themselves alone: where they lie, and which are missing."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vae_exp.config.check import flatten
from vae_exp.files import read_json
from vae_exp.run.agreeing import LENGTH
from vae_exp.run.folder import CONFIRMED, MAP, UNREADABLE, read_config, read_summary
from vae_exp.run.places import Place, named, sound


def best(config: Mapping[str, Any], run_dir: Path) -> tuple[str, list[tuple[Place, Path]]]:
    """The settings with the lowest neg_elbo, as many as amortize.confirm says, each with its folder; before them the
    split that they were chosen by: the validation images, or the test images where there are none.
    """
    maps = read_json(run_dir / MAP)
    split = "val" if "val" in maps else "test"
    lowest = sorted(map(sound, maps[split]), key=lambda place: place["neg_elbo"])[: config["amortize"]["confirm"]]
    return split, [(place, run_dir / CONFIRMED / named(place)) for place in lowest]


def is_done(config: Mapping[str, Any], folder: Path) -> bool:
    """Whether the run of a setting is finished, and as long as the run with the map is to be."""
    summary, before = read_summary(folder), read_config(folder)
    if summary is None or before is None or not summary.finished:
        return False
    return all(flatten(before).get(key) == flatten(config).get(key) for key in LENGTH)


def are_missing(config: Mapping[str, Any], run_dir: Path) -> bool:
    """Whether a run that is finished has settings left to confirm."""
    if not config["amortize"]["confirm"]:
        return False
    try:
        return not all(is_done(config, folder) for _, folder in best(config, run_dir)[1])
    except UNREADABLE:  # without its map there is nothing to confirm
        return False
