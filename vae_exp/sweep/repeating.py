"""The command that repeats a sweep, from what Hydra wrote down of it."""

import shlex
from pathlib import Path
from typing import Any

import yaml

from vae_exp.config.check import CONF_DIR, as_typed
from vae_exp.run.folder import MULTIRUN, UNREADABLE

# Added by the plan of a sweep to what was typed.
PLANNED = ("sweep.name=", "sweep.over=", "sweep.jobs=", "sweep.resume=", "hydra.sweep.", "hydra.mode=")
PLANNED_SWEEPER = ("hydra.sweeper._target_=", "hydra.sweeper.params=")


def command(folder: Path) -> str | None:
    """vae-train -m and what was typed; the name and the folder of the sweep are new ones. None where it is unknown."""
    try:
        overrides = yaml.safe_load((folder / MULTIRUN).read_text())["hydra"]["overrides"]
        typed = [str(word) for word in [*overrides["hydra"], *overrides["task"]]]
    except UNREADABLE:
        return None
    defaults: dict[str, Any] = yaml.safe_load((CONF_DIR / "config.yaml").read_text())["sweep"]
    unchanged = {f"sweep.{key}={as_typed(value)}" for key, value in defaults.items()}
    kept = [word for word in typed if word not in unchanged and not word.startswith((*PLANNED, *PLANNED_SWEEPER))]
    return shlex.join(["vae-train", "-m", *kept])
