"""Read and write checkpoints: their format and what is validated."""

import copy
import hashlib
import io
import json
import logging
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from vae_exp.config.migrations import renamed
from vae_exp.config.schema import Config
from vae_exp.errors import UserError
from vae_exp.files import parse_json, write
from vae_exp.training.run_dir import LAST, PREVIOUS, Origin
from vae_exp.training.state import Best, RunInfo, Sums

GROUPS = ("model", "network", "likelihood", "dataset")  # of the config: without them there is no model
KEYS = ("wandb", "sweep", "early_stopping")  # groups that an older version may not have had
LARGEST_SIDE, LARGEST_COUNT = 2**16, 2**53
REPEATED_BYTES = 2**20  # a tensor may be so large of fewer numbers, each in several places
LARGEST_NUMBER = 1e308  # no infinity, no NaN, and no whole number that no float can hold
MOST_THREADS = 1024
DEEPEST = 20  # levels of lists and groups in a config
WEIGHTS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
STREAMS = ("order", "noise", "draws", "torch")
FACTS = ("parameters", "train_size", "val_size")

WRONG = "its entries are not what they must be ({})"


class InvalidCheckpoint(Exception):
    """An entry of a checkpoint is not what training writes; the message names it."""


def require_model(stored: Mapping[str, Any]) -> None:
    """Raise InvalidCheckpoint if the entries that make a model do not have their types and sizes."""
    config, shape, names = stored["config"], stored["x_shape"], stored["class_names"]
    _require(
        isinstance(config, dict) and _is_plain(config) and all(isinstance(config.get(name), dict) for name in GROUPS),
        "config",
    )
    for group, key in (("model", "name"), ("dataset", "name"), ("dataset", "_target_")):
        _require(isinstance(config[group].get(key), str), f"config, {group}.{key}")
    for group in KEYS:
        _require(isinstance(config.get(group, {}), dict), f"config, {group}")
    _require(
        isinstance(shape, list | tuple)
        and len(shape) == 3
        and all(type(side) is int and 0 < side <= LARGEST_SIDE for side in shape),
        "x_shape",
    )
    for name in ("n_classes", "step", "epoch"):
        _require(_is_count(stored[name]), name)
    _require(isinstance(names, list) and all(isinstance(name, str) for name in names), "class_names")
    _require(_is_best(stored["best"], stored["step"], stored["epoch"]), "best")
    kl_per_dim = stored["kl_per_dim"]
    _require(isinstance(kl_per_dim, list) and all(map(_is_number, kl_per_dim)), "kl_per_dim")
    _require(_is_named(stored["model"], Tensor), "model")
    _require("origin" not in stored or _is_origin(stored["origin"]), "origin")
    code = stored.get("code", {})
    _require(_is_named(code, str) and all(map(str.isidentifier, code)), "code")


def require_continuation(stored: Mapping[str, Any]) -> None:
    """Raise InvalidCheckpoint if what a resume needs does not have its types; old versions may lack some."""
    kept = stored["resume"]
    _require(isinstance(kept, dict), "resume")
    facts, streams, means = kept.get("facts"), kept.get("streams"), kept.get("means")
    _require(isinstance(facts, dict) and all(_is_count(facts.get(name)) for name in FACTS), "resume, facts")
    sides = facts.get("x_shape")
    _require(isinstance(sides, list) and all(map(_is_count, sides)), "resume, facts, x_shape")
    _require(isinstance(facts.get("trained_on"), str), "resume, facts, trained_on")
    threads = facts.get("threads", 1)
    _require(_is_count(threads) and 1 <= threads <= MOST_THREADS, "resume, facts, threads")
    _require(isinstance(facts.get("compiled", False), bool), "resume, facts, compiled")
    _require(isinstance(facts.get("data_digest"), str | None), "resume, facts, data_digest")
    _require(_is_named(streams, Tensor) and set(STREAMS) <= set(streams), "resume, streams")
    for name, state in streams.items():
        _require(_is_whole(state) and state.dtype == torch.uint8 and state.dim() == 1, f"resume, streams, {name}")
    _require(isinstance(means, dict), "resume, means")
    for name in ("images_seen", "steps", "first_step"):
        _require(_is_count(means.get(name)), f"resume, means, {name}")
    for name in ("sums", "epoch_sums"):
        sums = means.get(name, {})
        _require(_is_named(sums, int | float) and all(map(_is_number, sums.values())), f"resume, means, {name}")
        _require(not sums or {"images", "reconstruction", "kl"} <= set(sums), f"resume, means, {name}")
        _require(sums.get("images", 1) > 0, f"resume, means, {name}")
    _require(_is_named(kept.get("weights", {}), Tensor), "resume, weights")
    for name in ("seconds", "epoch_seconds"):
        _require(_is_number(kept.get(name, 0.0)), f"resume, {name}")
    _require(_is_count(kept.get("metrics_bytes")), "resume, metrics_bytes")
    _require(isinstance(kept.get("wandb_id"), str | None), "resume, wandb_id")
    _require(isinstance(stored.get("optimizer"), dict), "optimizer")


def require_weights(given: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise InvalidCheckpoint if weights are not finite, or have other names or shapes than `expected`."""
    shapes = {name: tuple(weights.shape) for name, weights in given.items()}
    needed = {name: tuple(weights.shape) for name, weights in expected.items()}
    if wrong := [name for name in needed | shapes if needed.get(name) != shapes.get(name)]:
        raise InvalidCheckpoint(
            f"its weights are not those of the model in its config: {wrong[0]} is {shapes.get(wrong[0], 'missing')} "
            f"and should be {needed.get(wrong[0], 'absent')}"
        )
    for name, weights in given.items():
        known = (
            weights.dtype in WEIGHTS if expected[name].is_floating_point() else weights.dtype == expected[name].dtype
        )
        if not known or not _is_whole(weights):
            raise InvalidCheckpoint(f"its weights {name} are not plain numbers ({weights.dtype}, {weights.layout})")
        if not weights.isfinite().all():
            raise InvalidCheckpoint(f"its weights {name} hold numbers that are not finite")


def require_latents(kl_per_dim: list[float], z_dim: int) -> None:
    """Raise InvalidCheckpoint unless there is a KL for each latent, or none was measured."""
    _require(len(kl_per_dim) in (0, z_dim), "kl_per_dim")


def require_optimizer(given: Mapping[str, Any], expected: Mapping[str, Any], steps: int) -> None:
    """Raise InvalidCheckpoint if a state after so many steps is of another kind than `expected`."""
    state, groups = given.get("state"), given.get("param_groups")
    if not isinstance(state, dict) or not set(state) <= set(expected["state"]):
        raise InvalidCheckpoint(WRONG.format("optimizer, state"))
    _require(bool(state) or not (steps and any(expected["state"].values())), "optimizer, state")
    for number, values in state.items():
        _require_state(values, expected["state"][number], steps, f"optimizer, state, {number}")
    known = [group["params"] for group in expected["param_groups"]]
    if not isinstance(groups, list) or not all(isinstance(group, dict) for group in groups):
        raise InvalidCheckpoint(WRONG.format("optimizer, param_groups"))
    _require(_is_plain(groups) and [group.get("params") for group in groups] == known, "optimizer, param_groups")


def _require_state(given: Any, expected: Mapping[str, Any], steps: int, where: str) -> None:
    """Raise InvalidCheckpoint if the state of one parameter is of another kind than `expected`."""
    _require(isinstance(given, dict) and set(given) == set(expected), where)
    for name, own in expected.items():
        value = given[name]
        if isinstance(own, Tensor):
            value = (
                torch.tensor(float(value)) if _is_number(value) and not own.dim() else value
            )  # as older PyTorch kept steps
            sound = isinstance(value, Tensor) and value.shape == own.shape and _is_whole(value)
            _require(
                sound
                and value.is_floating_point() == own.is_floating_point()
                and not value.is_complex()
                and bool(value.isfinite().all()),
                f"{where}, {name}",
            )
        else:
            _require(_is_number(value) if _is_number(own) else type(value) is type(own), f"{where}, {name}")
        if name == "step":
            _require(0 <= float(value) <= steps, f"{where}, {name}")


def _require(is_sound: bool, entry: str) -> None:
    if not is_sound:
        raise InvalidCheckpoint(WRONG.format(entry))


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < LARGEST_COUNT


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= LARGEST_NUMBER


def _is_named(values: Any, kind: Any) -> bool:
    return isinstance(values, dict) and all(isinstance(k, str) and isinstance(v, kind) for k, v in values.items())


def _is_whole(tensor: Tensor) -> bool:
    """Return whether a tensor has a number for each place: not sparse, quantized, or without numbers at all."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta or tensor.is_nested:
        return False
    there = max(tensor.untyped_storage().nbytes(), REPEATED_BYTES)  # else a file of a few bytes may fill the memory
    return tensor.numel() * tensor.element_size() <= there


def _is_plain(value: Any, depth: int = 0) -> bool:
    if isinstance(value, dict):
        inner = list(value.values()) if all(isinstance(key, str) for key in value) else [...]
    elif isinstance(value, list | tuple):
        inner = list(value)
    else:
        return value is None or type(value) in (bool, int, float, str)
    return depth < DEEPEST and all(_is_plain(item, depth + 1) for item in inner)


def _is_origin(origin: Any) -> bool:
    """Return whether this is two paths, and the record that Fingerprint.record makes."""
    if not isinstance(origin, dict) or set(origin) != {"root", "from_run", "data"}:
        return False
    data = origin["data"]
    if not all(isinstance(origin[name], str | None) for name in ("root", "from_run")):
        return False
    if not isinstance(data, dict) or set(data) != {"images", "class_names", "labels", "files"}:
        return False
    names, files = data["class_names"], data["files"]
    return (
        _is_named(data["images"], int)
        and _is_named(data["labels"], str)
        and isinstance(names, list)
        and all(isinstance(name, str) for name in names)
        and isinstance(files, list)
        and all(isinstance(part, list) and list(map(type, part)) == [str, str, int, str] for part in files)
    )


def _is_best(best: Any, step: int, epoch: int) -> bool:
    """Return whether this is an epoch that is over and its scores, or nothing."""
    if not _is_named(best, int | float) or not all(map(_is_number, best.values())):
        return False
    at, after = best.get("best/step"), best.get("best/epoch")
    return not best or (_is_count(at) and _is_count(after) and at <= step and after <= epoch)


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
