"""The test of whether a configuration is that of a run: which keys a run may change on its way, and which not."""

from collections.abc import Mapping
from typing import Any

from vae_exp.config.check import flatten

# What a run may change on its way; a key that ends in a dot stands for its whole group.
MAY_CHANGE = (
    "epochs", "max_steps", "max_minutes", "early_stopping.", "resume", "trust", "replace",
    "device", "devices", "threads", "precision", "compile",
    "wandb.", "sweep.",
    "log_every_steps", "figures", "figure_every_epochs", "scores", "scores_every_epochs",
    "checkpoint_every_epochs", "checkpoint_every_steps", "checkpoint_every_minutes",
    "dataset.root", "dataset.cache", "dataset.device_memory",
)  # fmt: skip

LENGTH = ("epochs", "max_steps", "max_minutes", "early_stopping.patience")  # what gives a finished run more to do


def contradictions(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the keys whose values differ and may not, with both values."""
    before, now = flatten(before), flatten(now)
    missing = "not there"
    return [
        f"{key}={now.get(key, missing)}: the run has {key}={before.get(key, missing)}"
        for key in dict.fromkeys([*before, *now])
        if before.get(key, missing) != now.get(key, missing) and not _may_change(key)
    ]


def _may_change(key: str) -> bool:
    return any(key == name or (name.endswith(".") and key.startswith(name)) for name in MAY_CHANGE)
