"""Checkpoints: one dict of plain values and tensors, written whole or not at all, safe to load from a stranger."""

import json
import os
import pickle
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from vae_exp.config import UserError

FORMAT = 3
# With the weights, all that makes a model.
ABOUT = ("format", "config", "x_shape", "n_classes", "class_names", "step", "epoch", "best", "kl_per_dim")
ARTIFACT = re.compile(r"(wandb:)?(?P<name>([\w.-]+/){1,2}[\w.-]+:[\w.-]+)")


def save(path: Path, **state: Any) -> None:
    """Write beside, flush to the disk, rename: a killed process leaves the old file or the new one."""
    beside = path.with_name(path.name + ".partial")
    with beside.open("wb") as file:
        torch.save({"format": FORMAT, **state}, file)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def export(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint's weights as safetensors; what rebuilds the model goes into its metadata as JSON."""
    beside = path.with_name(path.name + ".partial")
    about = {"vae_exp": json.dumps({key: state[key] for key in ABOUT})}
    weights = {name: tensor.contiguous() for name, tensor in state["model"].items()}
    save_file(weights, beside, metadata=about | {"format": "pt"})
    beside.replace(path)


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint, .pt or .safetensors, without running anything in it.

    Raises UserError where the file is missing, damaged, or not one of ours.
    """
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt", device=str(device)) as file:
                about = json.loads((file.metadata() or {}).get("vae_exp", "{}"))
                state = {**about, "model": {name: file.get_tensor(name) for name in file.keys()}}  # noqa: SIM118
        else:
            state = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"checkpoint={path}: there is no such file.") from error
    except (
        OSError,
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
        TypeError,
        pickle.UnpicklingError,
        SafetensorError,
    ) as error:
        raise UserError(f"checkpoint={path}: damaged, or not a checkpoint ({type(error).__name__}).") from error
    if not isinstance(state, dict) or not {*ABOUT, "model"} <= set(state):
        raise UserError(f"checkpoint={path}: not a checkpoint of vae_exp.")
    if state["format"] != FORMAT:
        raise UserError(f"checkpoint={path}: format {state['format']}, and this version reads {FORMAT}.")
    return state


def find(asked: str, only_one: bool = False) -> list[Path]:
    """The checkpoints that a path means: a file, a run's best.pt, the best.pt of every run in a folder, the newest
    run (latest), or a W&B artifact such as ENTITY/PROJECT/NAME:best, which is downloaded.

    Raises UserError where there is none, or more than one and only_one is asked for.
    """
    path = Path(asked).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        where, found = path, [path / "best.pt"] if (path / "best.pt").exists() else sorted(path.rglob("best.pt"))
    elif asked == "latest":
        where = Path("outputs")
        found = sorted(where.rglob("best.pt"), key=lambda file: file.stat().st_mtime)[-1:]
    elif artifact := ARTIFACT.fullmatch(asked):
        from vae_exp import online

        where = online.download(artifact["name"])
        found = sorted(where.glob("*.pt"))
    else:
        raise UserError(f"checkpoint={asked}: there is no such file or folder.")
    if not found:
        raise UserError(f"checkpoint={asked}: no best.pt in {where}; a run writes it after its first epoch.")
    if only_one and len(found) > 1:
        raise UserError(f"checkpoint={asked}: holds {len(found)} runs; name one, such as {found[0]}")
    return found
