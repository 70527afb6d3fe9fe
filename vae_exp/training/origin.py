"""Where a run and its data lay when it was trained, and where the data may lie now. No torch, and no data are read."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vae_exp.errors import UserError
from vae_exp.files import cache_folder
from vae_exp.training.folder import UNREADABLE, read_config, read_hydra

OWN_IMAGES = ("vae_exp.datasets.image_folder", "vae_exp.datasets.arrays")  # whatever lies at dataset.root


@dataclass(frozen=True)
class Origin:
    """The place of dataset.root, absolute and from the run's folder, and the record of the data's fingerprint."""

    root: str | None  # None here and below of data that lie nowhere
    from_run: str | None
    data: dict[str, Any]


def in_reach(dataset: Mapping[str, Any], origin: Origin | None, run_dir: Path | None) -> list[str]:
    """Return the places at which something lies, the likeliest first; none for a dataset without a root.

    Raises UserError where nothing lies at any place, unless the data can be downloaded or are code's of the user's own.
    """
    found, target = places(dataset, origin, run_dir), str(dataset.get("_target_"))
    there = [place for place in found if os.path.exists(os.path.expanduser(place))]  # noqa: PTH110, PTH111  (never raise)
    if there or not found:
        return there
    if target in OWN_IMAGES:
        raise UserError(
            f"dataset.root={found[0]}: the data of the run are not there"
            f"{''.join(f', nor at {place}' for place in found[1:])}. Say where they lie now: dataset.root=PATH."
        )
    return found[-1:] if target.startswith("vae_exp.") else found[:1]


def places(dataset: Mapping[str, Any], origin: Origin | None, run_dir: Path | None) -> list[str]:
    """Return where the data of a run may lie, the likeliest first: where they lay, or as far from where the run is now.

    `dataset` are its settings as they were stored. A relative root is of an older version, which wrote down no origin
    either; Hydra's own record says where it was typed. Data that anybody can download may lie where this user's do.
    """
    root, target = dataset.get("root"), str(dataset.get("_target_"))
    if not isinstance(root, str):
        return []
    if origin is not None:
        found, from_run = [root, *([origin.root] if origin.root else [])], origin.from_run
    else:
        cwd, run_dir_then = _as_hydra_has_it(run_dir)
        root = _resumed_with(run_dir) or root
        found = [str((cwd or Path()) / os.path.expanduser(root))]  # noqa: PTH111
        from_run = os.path.relpath(found[0], run_dir_then) if run_dir_then else None
    if run_dir is not None and from_run is not None:
        found.append(os.path.normpath(run_dir.absolute() / from_run))
    if target.startswith("vae_exp.") and target not in OWN_IMAGES:
        found.append(str(data_folder()))
    return list(dict.fromkeys(found))


def data_folder() -> Path:
    """Return where downloaded data and decoded images lie, as conf/dataset/*.yaml say."""
    return Path(os.environ.get("VAE_EXP_DATA") or cache_folder("").parent)


def _resumed_with(run_dir: Path | None) -> str | None:
    """Return the absolute root in a run's config.yaml, or None.

    It is where the run went on since; best.pt may still be of an older version.
    """
    dataset = ((read_config(run_dir) if run_dir else None) or {}).get("dataset")
    root = dataset.get("root") if isinstance(dataset, dict) else None
    return root if isinstance(root, str) and Path(root).is_absolute() else None


def _as_hydra_has_it(run_dir: Path | None) -> tuple[Path | None, Path | None]:
    """Return the folder in which a run was started, and its own at that time.

    They are None if Hydra left no record that can be read.
    """
    try:
        runtime = read_hydra(run_dir or Path())["runtime"]
        cwd, output_dir = Path(runtime["cwd"]), Path(runtime["output_dir"])
    except UNREADABLE:
        return None, None
    return (cwd, output_dir) if cwd.is_absolute() and output_dir.is_absolute() else (None, None)
