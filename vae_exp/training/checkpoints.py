"""Read and write checkpoints: their format, and what a stored one must hold."""

import copy
import hashlib
import io
import json
import logging
import math
import os
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, cast

import torch
from pydantic import (
    AfterValidator,
    AllowInfNan,
    BaseModel,
    BeforeValidator,
    Field,
    GetPydanticSchema,
    InstanceOf,
    JsonValue,
    Strict,
    TypeAdapter,
    ValidationError,
    WrapValidator,
)
from pydantic_core.core_schema import no_info_plain_validator_function
from safetensors import safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from vae_exp.config.migrations import renamed
from vae_exp.config.schema import Config
from vae_exp.datasets import Conditions
from vae_exp.errors import UserError
from vae_exp.files import expand, parse_json, require_shallow, write
from vae_exp.tracking import wandb_run
from vae_exp.training.run_dir import BEST, OUTPUTS, Origin, newest
from vae_exp.training.state import Best, RunInfo

log = logging.getLogger(__name__)
FORMAT = 4  # of the files; .github/CONTRIBUTING.md says when it changes
READABLE = (3, 4)  # 3: before functions and dataset.source had today's names
SAFETENSORS = ".safetensors"
ABOUT_KEY, CHECKSUM_KEY = "vae_exp", "sha256"  # in its metadata, beside the library's own key
MAX_THREADS = 1024
REPEATED_BYTES = 2**20  # a tensor may be so large of fewer numbers, each in several places
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


class InvalidCheckpoint(ValueError):
    """An entry of a checkpoint is not what training writes."""


# What is stored, by type. pydantic checks it when a file is read, and never while a run trains.


def _unchanged(value: Any, validate: Callable[[Any], Any]) -> Any:
    validate(value)
    return value  # itself: a state_dict has the versions of its layers beside its tensors


def _require_plain(tensor: Tensor) -> Tensor:
    """Return a tensor. Raises InvalidCheckpoint unless it has a number for each place."""
    is_plain = tensor.layout == torch.strided and not (tensor.is_quantized or tensor.is_meta or tensor.is_nested)
    # A tensor of a few numbers, each in many places, may fill the memory.
    if not is_plain or tensor.nbytes > max(tensor.untyped_storage().nbytes(), REPEATED_BYTES):
        raise InvalidCheckpoint("a tensor is not of plain numbers")
    return tensor


Count = Annotated[int, Strict(), Field(ge=0, lt=2**53)]
Side = Annotated[int, Strict(), Field(gt=0, le=2**16)]
Number = Annotated[float, Strict(), AllowInfNan(False)]
Seconds = Annotated[Number, AfterValidator(partial(max, 0.0))]  # a clock may have gone back
PlainTensor = Annotated[InstanceOf[Tensor], AfterValidator(_require_plain)]
Weights = Annotated[dict[str, PlainTensor], WrapValidator(_unchanged)]
Module = Annotated[str, Field(pattern=r"^\w+$")]
CONFIG, NUMBERS = TypeAdapter(dict[str, JsonValue]), TypeAdapter(dict[str, Number])


class StoredMeters(BaseModel):
    images_seen: Count
    steps: Count
    first_step: Count
    sums: dict[str, Number]
    epoch_sums: dict[str, Number]


class DataRecord(BaseModel):
    """Hold the record that Fingerprint makes: numbers of images, names, digests of labels and of ranges of files."""

    images: dict[str, int]
    class_names: list[str]
    labels: dict[str, str]
    files: list[tuple[str, str, int, str]]


def _read_config(config: Any) -> Config:
    """Return a configuration by today's names. Raises ValueError unless it has groups of plain values."""
    groups = renamed(require_shallow(CONFIG.validate_python(config)))
    names = [groups["model"]["name"], groups["dataset"]["name"], groups["dataset"]["_target_"]]
    has_groups = all(isinstance(groups[group], dict) for group in ("network", "posterior", "prior", "likelihood"))
    if not has_groups or not all(isinstance(name, str) for name in names):
        raise InvalidCheckpoint("a group or a name is missing")
    return cast("Config", groups)


def _read_best(summary: Any) -> Best | None:
    NUMBERS.validate_python(summary)
    return Best.from_summary(summary)


def _require_means(means: dict[str, Any]) -> dict[str, Any]:
    """Return the state of Meters. Raises ValueError unless there are sums over images, or none."""
    stored = StoredMeters.model_validate(means)
    for sums in filter(None, (stored.sums, stored.epoch_sums)):
        if not sums.keys() >= {"images", "reconstruction", "kl"} or sums["images"] <= 0:
            raise InvalidCheckpoint("no sums over images")
    return means


@dataclass(frozen=True)
class Continuation:
    """Hold the state that a run needs to go on, beside its model and its optimizer; an older one may lack the rest."""

    facts: RunInfo
    streams: Weights
    means: Annotated[dict[str, Any], AfterValidator(_require_means)]
    metrics_bytes: Count  # of metrics.jsonl
    seconds: Seconds = 0.0
    epoch_seconds: Seconds = 0.0
    wandb_id: str | None = None
    weights: Weights | None = None  # of the last step, where the model's are their moving average


@dataclass(frozen=True)
class Checkpoint:
    """Hold a model with all that rebuilds it and, if it is of a run, with all that the run needs to go on."""

    # A TypedDict, which pydantic itself reads from Python 3.12 on.
    config: Annotated[Config, GetPydanticSchema(lambda *_: no_info_plain_validator_function(_read_config))]
    x_shape: tuple[Side, Side, Side]
    n_classes: Count
    class_names: list[str]
    step: Count
    epoch: Count
    best: Annotated[Best | None, BeforeValidator(_read_best)]
    kl_per_dim: list[Number]
    model: Weights
    optimizer: dict[str, Any] | None = None
    resume: Continuation | None = None
    origin: Origin | None = None  # None of a version that wrote none
    conditions: Conditions | None = None  # what each label combines, where it is more than one thing
    code: dict[Module, str] = field(default_factory=dict)  # the files of own modules that config names

    def about(self) -> dict[str, Any]:
        """Return all but the tensors and what only a resumed run needs, in the form in which it is stored."""
        values = vars(self) | {"x_shape": list(self.x_shape), "best": self.best.summary() if self.best else {}}
        values["origin"] = self.origin and asdict(self.origin)
        values["conditions"] = self.conditions and vars(self.conditions).copy()
        optional = ("origin", "conditions", "code")
        left_out = {"model", "optimizer", "resume"} | {name for name in optional if not values[name]}
        return {"format": FORMAT} | {name: value for name, value in values.items() if name not in left_out}


def _require_complete(checkpoint: Checkpoint) -> Checkpoint:
    if checkpoint.origin is not None:
        DataRecord.model_validate(checkpoint.origin.data)
    if (parts := checkpoint.resume) is not None:
        has_streams = parts.streams.keys() >= {"order", "noise", "draws", "torch"}
        if not has_streams or not 1 <= (parts.facts.threads or 1) <= MAX_THREADS:
            raise InvalidCheckpoint("random numbers or threads are not those of a run")
    conditions = checkpoint.conditions
    if conditions and (conditions.n, len(conditions.ranges)) != (checkpoint.n_classes, len(conditions.numbers)):
        raise InvalidCheckpoint("conditions are not those of its classes")
    if checkpoint.config["prior"].get("_target_") == "vae_exp.priors.vamp":
        for weights in (checkpoint.model, (parts and parts.weights) or {}):
            labels = weights.get("prior.labels", torch.empty(0))
            if not ((labels >= 0) & (labels < max(1, checkpoint.n_classes))).all():
                raise InvalidCheckpoint("prior.labels are not labels of its classes")
    return checkpoint


STORED = TypeAdapter(Annotated[Checkpoint, AfterValidator(_require_complete)])


def require_weights(given: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise InvalidCheckpoint if weights are not finite, or have other names or shapes than `expected`."""
    for name in {**expected, **given}:
        shapes = [tuple(weights[name].shape) if name in weights else "absent" for weights in (given, expected)]
        if shapes[0] != shapes[1]:
            raise InvalidCheckpoint(
                f"its weights are not those of the model in its config: {name} is {shapes[0]} and should be {shapes[1]}"
            )
        if not _is_like(given[name], expected[name]):
            raise InvalidCheckpoint(f"its weights {name} are not finite numbers of the type {expected[name].dtype}")


def require_latents(kl_per_dim: list[float], z_dim: int) -> None:
    if len(kl_per_dim) not in (0, z_dim):
        raise InvalidCheckpoint(f"it has the KL of {len(kl_per_dim)} latents, and model.z_dim={z_dim}")


def require_optimizer(given: Mapping[str, Any], expected: Mapping[str, Any], steps: int) -> None:
    """Raise InvalidCheckpoint if a state after so many steps is of another kind than `expected`."""
    try:
        state, needed = given["state"], expected["state"]
        params = [[group["params"] for group in stored["param_groups"]] for stored in (given, expected)]
        is_known = params[0] == params[1] and all(_is_like(values, needed[key]) for key, values in state.items())
    except Exception:  # made by hand: a tensor in the place of a list, say
        is_known = False
    if not is_known or (steps and not state and any(needed.values())):
        raise InvalidCheckpoint("its optimizer is not in a state of this one")


def _is_like(given: Any, expected: Any) -> bool:
    """Return whether a stored value is of the same kind as what is expected: types, keys, shapes, finite numbers."""
    if isinstance(expected, Mapping):
        same_keys = isinstance(given, Mapping) and given.keys() == expected.keys()
        return same_keys and all(_is_like(given[key], value) for key, value in expected.items())
    if not isinstance(expected, Tensor):
        return type(given) is type(expected) and (not isinstance(given, float) or math.isfinite(given))
    if not isinstance(given, Tensor) or given.shape != expected.shape:
        return False
    same_type = given.dtype in FLOATS if expected.is_floating_point() else given.dtype == expected.dtype
    return same_type and bool(_require_plain(given).isfinite().all())


def content(checkpoint: Checkpoint) -> memoryview:
    """Return the bytes of a checkpoint's file, made in memory: PyTorch's own writer hides why a disk refuses."""
    stored = checkpoint.about() | {"model": checkpoint.model}
    if (parts := checkpoint.resume) is not None:
        stored |= {"optimizer": checkpoint.optimizer, "resume": vars(parts) | {"facts": asdict(parts.facts)}}
    buffer = io.BytesIO()
    torch.save(stored, buffer)
    return buffer.getbuffer()


def copied(value: Any) -> Any:
    """Return a copy of a part of a checkpoint, on the CPU, which stays as it is while training goes on."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        same_kind = copy.copy(value)  # with the versions of its layers, which a state_dict has beside its tensors
        same_kind.update({key: copied(item) for key, item in value.items()})
        return same_kind
    return type(value)(map(copied, value)) if isinstance(value, list | tuple) else value


def export(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint's weights as safetensors; what rebuilds the model goes into its metadata as JSON."""
    if path.suffix != SAFETENSORS:
        others = "the explorer as .html, a network as encoder or decoder.onnx or .pt2"
        raise UserError(f"{path}: weights are written as {SAFETENSORS}, {others}. Use one of these endings.")
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


def find(checkpoint: str, only_one: bool = False) -> list[Path]:
    """Return the checkpoints that a path means, or raise UserError.

    It may be a file, a run (its best.pt), a folder of runs (the best.pt of each), the newest run (latest), or a W&B
    artifact such as ENTITY/PROJECT/NAME:best, which is downloaded.
    """
    path = expand(checkpoint)
    if path.is_file():
        return [path]
    if path.is_dir():
        folder, paths = path, [path / BEST] if (path / BEST).exists() else _below(path)
    elif checkpoint == "latest":
        run = newest(BEST)
        folder, paths = OUTPUTS, [run / BEST] if run else []
    elif artifact := wandb_run.artifact_of(checkpoint):
        folder = wandb_run.download(artifact)
        paths = sorted(folder.glob("*.pt"))
    else:
        raise UserError(f"checkpoint={checkpoint}: there is no such file or folder.")
    if not paths:
        raise UserError(f"checkpoint={checkpoint}: no {BEST} in {folder}; a run writes it after its first epoch.")
    if only_one and len(paths) > 1:
        raise UserError(f"checkpoint={checkpoint}: holds {len(paths)} runs; name one, such as {paths[0]}")
    return paths


def _below(folder: Path) -> list[Path]:
    """Return the best.pt of every run in a folder. Raises UserError for a whole disk and for the user's home."""
    if folder.resolve() in (Path(folder.resolve().anchor), Path(os.path.expanduser("~")).resolve()):  # noqa: PTH111
        raise UserError(f"checkpoint={folder}: is a whole disk or your home. Name a folder of runs, such as {OUTPUTS}.")
    return sorted(folder.rglob(BEST))


def load(path: Path, device: torch.device | str = "cpu") -> Checkpoint:
    """Read a .pt or .safetensors file without running anything in it. Raises UserError unless it is whole and ours."""
    try:
        if path.exists() and not path.is_file():  # a named pipe would keep its reader waiting for ever
            raise InvalidCheckpoint("not a file")
        stored = _read_safetensors(path, device) if path.suffix == SAFETENSORS else _read_pt(path, device)
        if stored["format"] not in READABLE:
            raise InvalidCheckpoint(f"format {stored['format']}, and it reads {' and '.join(map(str, READABLE))}")
        # What only a resumed run needs is read with it alone.
        return STORED.validate_python(stored if stored.get("resume") else stored | {"optimizer": None})
    except FileNotFoundError as error:
        raise UserError(f"checkpoint={path}: there is no such file.") from error
    except Exception as error:  # a damaged file may raise nearly anything: zipfile's, pickle's, PyTorch's errors
        reason = str(error) if isinstance(error, InvalidCheckpoint) else type(error).__name__
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise UserError(
            f"checkpoint={path}: damaged, or not a checkpoint that this version reads ({reason})."
        ) from error


def _read_safetensors(path: Path, device: torch.device | str) -> dict[str, Any]:
    """Read a safetensors file. Raises InvalidCheckpoint if its content is not of its checksum; older ones have none."""
    with safe_open(path, "pt", device=str(device)) as file:
        metadata = file.metadata() or {}
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    about = metadata.pop(ABOUT_KEY, "{}")
    checksum = metadata.pop(CHECKSUM_KEY, None)
    if metadata != {"format": "pt"} or checksum not in (None, _checksum(weights, about)):
        raise InvalidCheckpoint("a checksum is wrong")
    if checksum is None:
        log.warning(f"checkpoint={path}: of an older version, without a checksum: nothing tells if it is damaged.")
    return {**parse_json(about), "model": weights}


def _read_pt(path: Path, device: torch.device | str) -> Any:
    """Read a .pt file, a zip archive whose checksums PyTorch ignores. Raises InvalidCheckpoint if one is wrong."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        # PyTorch reads nothing of an entry whose attributes call it a folder, and its own have none.
        plain = all(entry.compress_type == zipfile.ZIP_STORED and not entry.external_attr for entry in entries)
        if not plain or sum(entry.file_size for entry in entries) > path.stat().st_size or archive.testzip():
            raise InvalidCheckpoint("a checksum is wrong")
    return torch.load(path, map_location=device, weights_only=True)
