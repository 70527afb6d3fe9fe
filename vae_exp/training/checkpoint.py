"""Checkpoints: plain values and tensors, written whole or not at all, safe to load from a stranger."""

import copy
import hashlib
import io
import json
import logging
import pickle
import zipfile
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from vae_exp.config.keys import Config
from vae_exp.config.moved import renamed
from vae_exp.errors import UserError
from vae_exp.files import parse_json, write
from vae_exp.training.folder import LAST, PREVIOUS
from vae_exp.training.meters import Sums
from vae_exp.training.origin import Origin
from vae_exp.training.state import Best, RunInfo
from vae_exp.training.validate import InvalidCheckpoint, require_continuation, require_model

log = logging.getLogger(__name__)
FORMAT = 4  # of the files; .github/CONTRIBUTING.md says when it changes
READABLE = (3, 4)  # 3: before functions and dataset.source had today's names
SAFETENSORS = ".safetensors"
ABOUT_KEY, CHECKSUM_KEY = "vae_exp", "sha256"  # in its metadata, beside the library's own key
# With the weights, all that makes a model.
ABOUT = ("format", "config", "x_shape", "n_classes", "class_names", "step", "epoch", "best", "kl_per_dim")


@dataclass(frozen=True)
class Written:
    """The files and the time of a run, as far as its checkpoint knows them."""

    seconds: float
    epoch_seconds: float
    metrics_bytes: int
    wandb_id: str | None


@dataclass(frozen=True)
class Continuation:
    """The state that a run needs to go on, beside its model and its optimizer."""

    facts: RunInfo
    streams: dict[str, Tensor]
    means: Sums
    written: Written
    weights: dict[str, Tensor] | None = None  # of the last step, where the model's are their moving average


@dataclass(frozen=True)
class Checkpoint:
    """A model with all that rebuilds it and, if it is of a run, with all that the run needs to go on."""

    config: Config
    x_shape: tuple[int, int, int]
    n_classes: int
    class_names: list[str]
    step: int
    epoch: int
    best: Best | None
    kl_per_dim: list[float]
    model: dict[str, Tensor]
    optimizer: dict[str, Any] | None = None
    goes_on: Continuation | None = None
    origin: Origin | None = None  # None of a version that wrote none
    code: dict[str, str] = field(default_factory=dict)  # the files of own modules that config names, by module

    def about(self) -> dict[str, Any]:
        """Return all but the tensors and what only a resumed run needs, in the form in which it is stored."""
        values = {name: getattr(self, name) for name in ABOUT if name not in ("format", "best")}
        best = self.best.summary() if self.best else {}
        origin = {} if self.origin is None else {"origin": asdict(self.origin)}
        code = {"code": self.code} if self.code else {}
        return {"format": FORMAT, **values, "x_shape": list(self.x_shape), "best": best, **origin, **code}


def content(checkpoint: Checkpoint) -> memoryview:
    """Return the bytes of a checkpoint's file, made in memory: PyTorch's own writer hides why a disk refuses."""
    stored = checkpoint.about() | {"model": checkpoint.model}
    if checkpoint.goes_on is not None:
        parts = checkpoint.goes_on
        stored["optimizer"] = checkpoint.optimizer
        stored["resume"] = {"facts": asdict(parts.facts), "streams": parts.streams, "means": parts.means}
        stored["resume"] |= asdict(parts.written)
        if parts.weights is not None:
            stored["resume"]["weights"] = parts.weights
    buffer = io.BytesIO()
    torch.save(stored, buffer)
    return buffer.getbuffer()


def copied(checkpoint: Checkpoint) -> Checkpoint:
    """Return a copy of a checkpoint on the CPU, which stays as it is while training goes on."""
    parts = checkpoint.goes_on
    return replace(
        checkpoint,
        model=_copied(checkpoint.model),
        optimizer=_copied(checkpoint.optimizer),
        goes_on=parts
        and replace(parts, streams=_copied(parts.streams), means=_copied(parts.means), weights=_copied(parts.weights)),
    )


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        same_kind = copy.copy(value)  # with the versions of its layers, which a state_dict has beside its tensors
        same_kind.update({key: _copied(item) for key, item in value.items()})
        return same_kind
    return type(value)(map(_copied, value)) if isinstance(value, list | tuple) else value


def save(path: Path, content: memoryview, same: Path | None = None) -> None:
    """Write a checkpoint whole or not at all; the previous last.pt stays as last.previous.pt.

    `same` is a file that has just been written with the same content. Raises UserError if the system refuses, such as
    for a full disk.
    """
    write(path, content, path.with_name(PREVIOUS) if path.name == LAST else None, same)


def export(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint's weights as safetensors; what rebuilds the model goes into its metadata as JSON.

    Raises UserError for a name with another ending, which would not be read again, and Unwritable.
    """
    if path.suffix != SAFETENSORS:
        raise UserError(f"{path}: weights are written as safetensors, so its name must end in {SAFETENSORS}.")
    weights = {name: tensor.contiguous() for name, tensor in checkpoint.model.items()}
    about = json.dumps(checkpoint.about())
    metadata = {ABOUT_KEY: about, "format": "pt", CHECKSUM_KEY: _checksum(weights, about)}
    write(path, safetensors_bytes(weights, metadata))


def _checksum(weights: dict[str, Tensor], about: str) -> str:
    """Return a hash of all that a safetensors file means: names, types, shapes and bytes, and what rebuilds them."""
    digest = hashlib.sha256(about.encode())
    for name, tensor in sorted(weights.items()):
        digest.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        digest.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def load(path: Path, device: torch.device | str = "cpu") -> Checkpoint:
    """Read a checkpoint, .pt or .safetensors, without running anything in it.

    Raises UserError if the file is missing, damaged, or not one of ours.
    """
    if path.exists() and not path.is_file():  # a named pipe would keep its reader waiting for ever
        raise UserError(f"checkpoint={path}: not a file.")
    try:
        stored = _read_safetensors(path, device) if path.suffix == SAFETENSORS else _read_pt(path, device)
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
    if not isinstance(stored, dict) or not {*ABOUT, "model"} <= set(stored):
        raise UserError(f"checkpoint={path}: not a checkpoint of vae_exp.")
    if type(stored["format"]) is not int or stored["format"] not in READABLE:
        raise UserError(
            f"checkpoint={path}: format {stored['format']}, and this version reads {' and '.join(map(str, READABLE))}."
        )
    try:
        require_model(stored)
        if "resume" in stored:
            require_continuation(stored)
    except InvalidCheckpoint as error:
        raise UserError(f"checkpoint={path}: damaged, or made by hand: {error}.") from error
    return _from_stored(stored)


def _read_safetensors(path: Path, device: torch.device | str) -> dict[str, Any]:
    """Read a safetensors file: what rebuilds the model, and the weights as "model".

    Raises ValueError if the file's checksum does not match its content; older files have none.
    """
    with safe_open(path, "pt", device=str(device)) as file:
        metadata = file.metadata() or {}
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    about = metadata.pop(ABOUT_KEY, "{}")
    checksum = metadata.pop(CHECKSUM_KEY, None)
    if metadata != {"format": "pt"} or checksum not in (None, _checksum(weights, about)):
        raise ValueError("a checksum is wrong")
    if checksum is None:
        log.warning(
            "checkpoint=%s: of an older version, without a checksum: nothing tells whether it is damaged.", path
        )
    return {**parse_json(about), "model": weights}


def _read_pt(path: Path, device: torch.device | str) -> Any:
    """Read a .pt file; raise ValueError if a byte has changed.

    The file is a zip archive, whose checksums PyTorch does not read. PyTorch reads nothing of an entry whose attributes
    call it a folder, and its own entries have none.
    """
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        plain = all(entry.compress_type == zipfile.ZIP_STORED and not entry.external_attr for entry in entries)
        if not plain or sum(entry.file_size for entry in entries) > path.stat().st_size or archive.testzip():
            raise ValueError("a checksum is wrong")
    return torch.load(path, map_location=device, weights_only=True)


def _from_stored(stored: dict[str, Any]) -> Checkpoint:
    """Make a checkpoint from the layout that `content` writes; nothing else reads that layout."""
    about = {name: stored[name] for name in ABOUT if name != "format"}
    about |= {"config": cast("Config", renamed(stored["config"])), "x_shape": tuple(stored["x_shape"])}
    about |= {"best": Best.from_summary(stored["best"]), "code": stored.get("code", {})}
    about["origin"] = Origin(**stored["origin"]) if "origin" in stored else None
    if "resume" not in stored:
        return Checkpoint(**about, model=stored["model"])
    kept = stored["resume"]
    seconds, of_epoch = (max(0.0, kept.get(name, 0.0)) for name in ("seconds", "epoch_seconds"))  # a clock went back
    written = Written(seconds, of_epoch, kept["metrics_bytes"], kept.get("wandb_id"))
    facts = RunInfo(**{name: kept["facts"][name] for name in RunInfo.__dataclass_fields__ if name in kept["facts"]})
    goes_on = Continuation(facts, kept["streams"], kept["means"], written, kept.get("weights"))
    return Checkpoint(**about, model=stored["model"], optimizer=stored["optimizer"], goes_on=goes_on)
