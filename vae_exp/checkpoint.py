"""Checkpoints: one dict of plain values and tensors, written whole or not at all, safe to load from a stranger."""

import os
import pickle
from pathlib import Path
from typing import Any

import torch

from vae_exp.config import UserError

FORMAT = 3
HOLDS = ("format", "config", "x_shape", "n_classes", "model", "optimizer", "step", "epoch", "best", "kl_per_dim")


def save(path: Path, **state: Any) -> None:
    """Write beside, flush to the disk, rename: a killed process leaves the old file or the new one."""
    beside = path.with_name(path.name + ".partial")
    with beside.open("wb") as file:
        torch.save({"format": FORMAT, **state}, file)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint without running anything in it.

    Raises UserError where the file is missing, damaged, or not one of ours.
    """
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"checkpoint={path}: there is no such file.") from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise UserError(f"checkpoint={path}: damaged, or not a checkpoint ({type(error).__name__}).") from error
    if not isinstance(state, dict) or not set(HOLDS) <= set(state):
        raise UserError(f"checkpoint={path}: not a checkpoint of vae_exp.")
    if state["format"] != FORMAT:
        raise UserError(f"checkpoint={path}: format {state['format']}, and this version reads {FORMAT}.")
    return state
