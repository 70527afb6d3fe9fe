"""Checkpoints: one dict of plain values and tensors, written whole or not at all, safe to load from a stranger."""

import io
import json
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from vae_exp import files, resume
from vae_exp.config import UserError

FORMAT = 3
# With the weights, all that makes a model.
ABOUT = ("format", "config", "x_shape", "n_classes", "class_names", "step", "epoch", "best", "kl_per_dim")
ARTIFACT = re.compile(r"(wandb:)?(?P<name>([\w.-]+/){1,2}[\w.-]+:[\w.-]+)")


def save(*paths: Path, **state: Any) -> None:
    """Write each whole or not at all; the last.pt before stays as last.previous.pt. Raises UserError for a full disk.

    It is made in memory first: PyTorch's writer hides why a disk refuses.
    """
    content = io.BytesIO()
    torch.save({"format": FORMAT, **state}, content)
    for path in paths:
        keep = path.with_name(resume.PREVIOUS) if path.name == resume.LAST else None
        files.write(path, content.getbuffer(), previous=keep)


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
            _check_bytes(path)
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
        AttributeError,
        IndexError,
        MemoryError,
        RecursionError,
        zipfile.BadZipFile,
        pickle.UnpicklingError,
        SafetensorError,
    ) as error:
        raise UserError(f"checkpoint={path}: damaged, or not a checkpoint ({type(error).__name__}).") from error
    if not isinstance(state, dict) or not {*ABOUT, "model"} <= set(state):
        raise UserError(f"checkpoint={path}: not a checkpoint of vae_exp.")
    if state["format"] != FORMAT:
        raise UserError(f"checkpoint={path}: format {state['format']}, and this version reads {FORMAT}.")
    if not _is_sound(state):
        raise UserError(f"checkpoint={path}: damaged, or made by hand: its entries are not what they must be.")
    return state


def _check_bytes(path: Path) -> None:
    """Raises ValueError where a byte has changed: the file is a zip archive, whose checksums PyTorch does not read."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        plain = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
        if not plain or sum(entry.file_size for entry in entries) > path.stat().st_size or archive.testzip():
            raise ValueError("a checksum is wrong")


def _is_sound(state: dict[str, Any]) -> bool:
    """Whether the entries have their types, and the sizes are such as images have."""
    shape, names = state["x_shape"], state["class_names"]
    counts = (state["n_classes"], state["step"], state["epoch"])
    return (
        isinstance(state["config"], dict)
        and all(isinstance(state["config"].get(group), dict) for group in ("model", "network", "likelihood", "dataset"))
        and isinstance(shape, list | tuple)
        and len(shape) == 3
        and all(type(side) is int and 0 < side <= 2**16 for side in shape)
        and all(type(number) is int and 0 <= number < 2**53 for number in counts)
        and isinstance(names, list)
        and all(isinstance(name, str) and name.isprintable() for name in names)
        and isinstance(state["best"], dict)
        and isinstance(state["kl_per_dim"], list)
        and isinstance(state["model"], dict)
        and all(isinstance(weights, torch.Tensor) for weights in state["model"].values())
    )


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
