"""The test of whether a checkpoint holds what training writes: it may be damaged, altered or a stranger's."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

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
