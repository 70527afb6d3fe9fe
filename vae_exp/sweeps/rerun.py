"""The command that repeats a sweep, from what Hydra wrote down of it."""

import shlex
from pathlib import Path
from typing import Any

from vae_exp.config.check import CONF_DIR, as_typed
from vae_exp.files import read_yaml
from vae_exp.training.folder import config_dir, read_overrides

# Added by the plan of a sweep to what was typed.
PLANNED = ("sweep.name=", "sweep.over=", "sweep.jobs=", "sweep.resume=")


def rerun_command(folder: Path) -> str | None:
    """Return vae-train -m and what was typed, with a new name and folder for the sweep, or None if unknown."""
    typed = read_overrides(folder, of_sweep=True)
    if typed is None:
        return None
    defaults: dict[str, Any] = read_yaml(CONF_DIR / "config.yaml")["sweep"]
    unchanged = {f"sweep.{key}={as_typed(value)}" for key, value in defaults.items()}
    kept = [word for word in typed if word not in unchanged and not word.startswith(PLANNED)]
    return shlex.join(["vae-train", "-m", *config_dir(folder), *kept])
