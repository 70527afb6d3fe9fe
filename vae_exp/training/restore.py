"""Put a run back to where its checkpoint left it."""

import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vae_exp.config import build
from vae_exp.config.schema import images_per_step
from vae_exp.datasets import Data
from vae_exp.errors import UserError
from vae_exp.training import checkpoints
from vae_exp.training.checkpoints import Checkpoint
from vae_exp.training.run_dir import in_reach, places
from vae_exp.training.state import RngStreams, TrainingRun

log = logging.getLogger(__name__)
_told: set[str] = set()  # the places of data of which this process has said that it does not know them


def read(stored: Checkpoint, run_dir: Path | None, root: str | None = None) -> Data:
    """Return the dataset that a stored run was trained on, split as then.

    It is looked for at root, or where it lay, from wherever the run is now. Raises UserError if it lies at none of
    these places, cannot be read, or differs from then: it would be split anew, and images that were trained on would
    be measured as test images.
    """
    settings = stored.config["dataset"]
    cache = str(settings.get("cache"))
    if settings["_target_"] == "vae_exp.datasets.image_folder" and not Path(cache).expanduser().is_dir():
        settings = settings | {"cache": None}  # it was another machine's, or is cleared
    return _read(stored, run_dir, settings, root)


def read_to_resume(stored: Checkpoint, run_dir: Path, settings: Mapping[str, Any]) -> Data:
    """Read the data as `read` does, for a run that goes on with these settings of its dataset.

    If their root is none of the places where the run's data may lie, only that root is used.
    """
    root = settings.get("root")
    own = places(stored.config["dataset"], stored.origin, run_dir)
    try:
        return _read(stored, run_dir, settings, None if root in own else root)
    except UserError as error:
        raise UserError(f"{error} resume=null starts a new run.") from error


def _read(stored: Checkpoint, run_dir: Path | None, settings: Mapping[str, Any], root: str | None) -> Data:
    found = in_reach(stored.config["dataset"], stored.origin, run_dir) if root is None else [root]
    refused: UserError | None = None
    for place in found:
        try:
            data = build.dataset({"dataset": _at(place, settings, stored)})
            return _unchanged(stored, data, f"dataset.root={place}", run_dir)
        except UserError as error:  # the data may lie at the next place
            refused = refused or error
    if refused is not None:
        raise refused
    return _unchanged(stored, build.dataset({"dataset": settings}), "dataset", None)  # which lies nowhere


def _at(place: str, settings: Mapping[str, Any], stored: Checkpoint) -> dict[str, Any]:
    """Return the settings for data at a place.

    A table of factors is looked for as far from it as it was, and otherwise where it was.
    """
    then, table = stored.origin and stored.origin.root, settings.get("factors")
    if then and isinstance(table, str) and Path(table).is_absolute():
        moved = os.path.normpath(Path(place) / os.path.relpath(table, then))
        if os.path.exists(moved) or not os.path.exists(table):  # noqa: PTH110  (it never raises)
            return {**settings, "root": place, "factors": moved}
    return {**settings, "root": place}


def _unchanged(stored: Checkpoint, data: Data, place: str, run_dir: Path | None) -> Data:
    """Return the data. Raises UserError if they are not those that the run was trained on."""
    assert data.fingerprint is not None, "prepare makes one"
    changes = data.fingerprint.changes(stored.origin.data) if stored.origin else _other_numbers(stored, data)
    if stored.origin is None and not changes and place not in _told and run_dir is not None:
        _told.add(place)
        log.warning(
            f"{place}: {run_dir} is of an older version, which kept no record of its data: whether they have changed "
            "since cannot be told, but for their number."
        )
    if changes:
        raise UserError(
            f"{place}: these are not the data of training any more: {'; '.join(changes)}. Split anew, images that were "
            "trained on would count as test images. Bring the data back as they were, or say where they are: "
            "dataset.root=PATH."
        )
    return data


def _other_numbers(stored: Checkpoint, data: Data) -> list[str]:
    """Return what is known to have changed since a run of an older version."""
    numbers = {"classes": (len(data.class_names), len(stored.class_names))}
    if stored.goes_on is not None:
        facts = stored.goes_on.facts
        numbers["training images"] = len(data.train), facts.train_size
        numbers["validation images"] = len(data.val), facts.val_size
    return [f"{now:,} {what}, and were {then:,}" for what, (now, then) in numbers.items() if now != then]


SAME_FACTS = ("train_size", "val_size", "x_shape", "parameters")


def restore(before: Checkpoint, training: TrainingRun) -> None:
    """Set weights, optimizer, random numbers, meters and state as they were.

    Raises UserError for other data, and for a state that is not of this model and this optimizer. On another kind of
    device than before, its random numbers are a new stream.
    """
    assert before.goes_on is not None, "resume.load takes no other"
    facts, then = training.info, before.goes_on.facts
    if wrong := [name for name in SAME_FACTS if getattr(facts, name) != getattr(then, name)]:
        changes = "; ".join(f"{name} is {getattr(facts, name)}, and was {getattr(then, name)}" for name in wrong)
        raise UserError(f"resume: the data or the model have changed since the run began: {changes}.")
    steps_per_epoch = math.ceil(facts.train_size / images_per_step(training.config))
    if not 0 <= before.step - before.epoch * steps_per_epoch <= steps_per_epoch:
        raise _damaged(f"its step {before.step} is not in the epoch after epoch {before.epoch}")
    trained = before.goes_on.weights if training.config["ema"] else before.model
    try:
        for weights in (before.model, trained):
            checkpoints.require_weights(weights or {}, training.model.state_dict())
        checkpoints.require_latents(before.kl_per_dim, training.config["model"]["z_dim"])
        _restore_optimizer(before, training)
    except checkpoints.InvalidCheckpoint as error:
        raise _damaged(error) from error
    training.eval_model.load_state_dict(before.model)
    training.model.load_state_dict(trained or {})
    training.meters.restore(before.goes_on.means)
    _restore_streams(before.goes_on.streams, training.rng, before.step, facts.trained_on == then.trained_on)
    state = training.state
    state.step, state.epoch, state.best = before.step, before.epoch, before.best
    state.kl_per_dim, state.order = before.kl_per_dim, training.rng.order.get_state()


def _restore_optimizer(before: Checkpoint, training: TrainingRun) -> None:
    """Raise InvalidCheckpoint for a state that is not this optimizer's; else load it with the present settings.

    A step with gradients of 0 shows what its state must be. It spoils the weights, which are set afterwards.
    """
    optimizer, given = training.optimizer, before.optimizer or {}
    for weights in training.model.parameters():
        weights.grad = torch.zeros_like(weights)
    optimizer.step()
    optimizer.zero_grad()
    own = optimizer.state_dict()
    checkpoints.require_optimizer(given, own, before.step)
    for group, then in zip(own["param_groups"], given["param_groups"], strict=True):
        lr = then.get("lr")  # of the last step: a run that has no step left to do writes it down again
        group["lr"] = lr if type(lr) is float and 0 <= lr < math.inf else group["lr"]
    optimizer.load_state_dict({"state": given["state"], "param_groups": own["param_groups"]})


def _restore_streams(states: Mapping[str, Tensor], streams: RngStreams, step: int, same_device: bool) -> None:
    """Set the streams' states and torch's own. Raises UserError for what is no state of a generator."""
    try:
        for name, stream in vars(streams).items():
            if name == "order" or same_device or states[name].shape == stream.get_state().shape:
                stream.set_state(states[name])
            else:
                stream.manual_seed(stream.initial_seed() + step)
                log.warning(f"resumed on another kind of device: the random numbers for {name} are a new stream")
        torch.set_rng_state(states["torch"])
        device = streams.noise.device
        if device.type == "cuda" and "cuda" in states:
            torch.cuda.set_rng_state(states["cuda"], device)
        elif device.type == "mps" and "mps" in states:
            torch.mps.set_rng_state(states["mps"])
    except (RuntimeError, TypeError) as error:  # PyTorch's answers to a state of another size or kind
        raise _damaged(f"its random numbers are no state of a generator ({str(error).splitlines()[0]})") from error


def _damaged(reason: object) -> UserError:
    return UserError(f"resume: the checkpoint is damaged, or made by hand: {reason}.")
