"""Put a run back to where its checkpoint left it."""

import logging
import math
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vae_exp import distributed
from vae_exp.config import build, targets
from vae_exp.config.checks import CALLS
from vae_exp.config.schema import Config, images_per_step
from vae_exp.datasets import Data
from vae_exp.errors import UserError, first_line
from vae_exp.files import expand, log_once
from vae_exp.training import checkpoints, resume
from vae_exp.training.checkpoints import Checkpoint, InvalidCheckpoint
from vae_exp.training.optimizer import step_of
from vae_exp.training.run_dir import available_roots, data_roots
from vae_exp.training.state import TrainingRun

SAME_FACTS = ("train_size", "val_size", "x_shape", "parameters")


def read(stored: Checkpoint, run_dir: Path | None, root: str | None = None) -> Data:
    """Return the dataset that a stored run was trained on, split as then. Raises UserError if it is lost or changed."""
    settings = stored.config["dataset"]
    cache = str(settings.get("cache"))
    if settings["_target_"] == "vae_exp.datasets.image_folder" and not expand(cache).is_dir():
        settings = settings | {"cache": None}  # it was another machine's, or is cleared
    return _read(stored, run_dir, settings, root)


def read_data(stored: Checkpoint, run_dir: Path, settings: Mapping[str, Any]) -> Data:
    """Read the data as `read` does, for a run that goes on with these settings of its dataset and their root."""
    root = settings.get("root")
    try:
        may_have_moved = root in data_roots(stored.config["dataset"], stored.origin, run_dir)
        return _read(stored, run_dir, settings, None if may_have_moved else root)
    except UserError as error:
        raise UserError(f"{error} resume=null starts a new run.") from error


def _read(stored: Checkpoint, run_dir: Path | None, settings: Mapping[str, Any], root: str | None) -> Data:
    roots = available_roots(stored.config["dataset"], stored.origin, run_dir) if root is None else [root]
    errors = []
    for candidate in roots:
        try:
            data = build.dataset({"dataset": _moved_to(candidate, settings, stored)})
            return _require_unchanged(stored, data, f"dataset.root={candidate}", run_dir)
        except UserError as error:  # the data may lie at the next root
            errors.append(error)
    if errors:
        raise errors[0]
    return _require_unchanged(stored, build.dataset({"dataset": settings}), "dataset", None)  # which has no root


def _moved_to(root: str, settings: Mapping[str, Any], stored: Checkpoint) -> dict[str, Any]:
    """Return the settings for data at a root, and for a table of factors that has moved with them."""
    old_root, table = stored.origin and stored.origin.root, settings.get("factors")
    if old_root and isinstance(table, str) and Path(table).is_absolute():
        moved = os.path.normpath(Path(root) / os.path.relpath(table, old_root))
        if os.path.exists(moved) or not os.path.exists(table):  # noqa: PTH110  (it never raises)
            return {**settings, "root": root, "factors": moved}
    return {**settings, "root": root}


def _require_unchanged(stored: Checkpoint, data: Data, what: str, run_dir: Path | None) -> Data:
    assert data.fingerprint is not None, "prepare makes one"
    changes = data.fingerprint.changes(stored.origin.data) if stored.origin else _changed_sizes(stored, data)
    if changes:
        raise UserError(
            f"{what}: these are not the data of training any more: {'; '.join(changes)}. Split anew, images that were "
            "trained on would count as test images. Bring the data back, or say where they are: dataset.root=PATH."
        )
    if stored.origin is None and run_dir is not None:
        without = "runs of older versions have no record of their data"
        unknown = "whether they have changed since cannot be told, but for their number"
        log_once(f"{what}: {without}: {unknown}.", logging.WARNING)
    return data


def _changed_sizes(stored: Checkpoint, data: Data) -> list[str]:
    numbers = {"classes": (len(data.class_names), len(stored.class_names))}
    if stored.resume is not None:
        info = stored.resume.facts
        numbers["training images"] = len(data.train), info.train_size
        numbers["validation images"] = len(data.val), info.val_size
    return [f"{now:,} {what}, and were {then:,}" for what, (now, then) in numbers.items() if now != then]


def load(run_dir: Path, config: Config) -> Checkpoint | None:
    """Return the checkpoint that a run goes on from, in every process, with the modules of its own parts; or None."""
    if not config["resume"]:
        return None
    resumed = distributed.broadcast(lambda: resume.load(run_dir, config))
    config["init_from"] = resumed.config["init_from"]  # where it began, which is not read again
    if config["trust"]:
        targets.find(config, CALLS, resumed.code)
    else:
        targets.compare(config, resumed.code)
    return resumed


def restore(resumed: Checkpoint, run: TrainingRun) -> None:
    """Set weights, optimizer, random numbers, meters and state as they were. Raises UserError if they do not fit."""
    assert resumed.resume is not None, "resume.load takes no other"
    info, then = run.info, resumed.resume.facts
    facts = [(name, getattr(info, name), getattr(then, name)) for name in SAME_FACTS]
    if changes := [f"{name} is {new}, and was {old}" for name, new, old in facts if new != old]:
        raise UserError(f"resume: the data or the model have changed since the run began: {'; '.join(changes)}.")
    run.info = replace(info, start=then.start)
    trained = (resumed.resume.weights if run.config["ema"] else resumed.model) or {}
    try:
        steps_per_epoch = math.ceil(info.train_size / images_per_step(run.config))
        if not 0 <= resumed.step - resumed.epoch * steps_per_epoch <= steps_per_epoch:
            raise InvalidCheckpoint(f"its step {resumed.step} is not in the epoch after epoch {resumed.epoch}")
        for weights in (resumed.model, trained):
            checkpoints.require_weights(weights, run.model.state_dict())
        checkpoints.require_latents(resumed.kl_per_dim, run.config["model"]["z_dim"])
        _restore_optimizer(resumed, run)
        try:
            run.rng.load_state_dict(resumed.resume.streams, resumed.step, info.trained_on == then.trained_on)
        except (RuntimeError, TypeError) as error:  # PyTorch's answers to a state of another size or kind
            raise InvalidCheckpoint(f"its random numbers are no state ({first_line(error)})") from error
    except InvalidCheckpoint as error:
        raise UserError(f"resume: the checkpoint is damaged, or made by hand: {error}.") from error
    run.eval_model.load_state_dict(resumed.model)
    run.model.load_state_dict(trained)
    run.meters.load_state_dict(resumed.resume.means)
    state = run.state
    state.step, state.epoch, state.best = resumed.step, resumed.epoch, resumed.best
    state.kl_per_dim, state.order = resumed.kl_per_dim, run.rng.order.get_state()


def _restore_optimizer(resumed: Checkpoint, run: TrainingRun) -> None:
    """Load the optimizer's state with the present settings. Raises InvalidCheckpoint if it is not this optimizer's."""
    optimizer, stored = run.optimizer, resumed.optimizer or {}
    # A step with gradients of 0 shows what the state must be. It spoils the weights, which are set afterwards.
    for weights in run.model.parameters():
        weights.grad = torch.zeros_like(weights) if weights.requires_grad else None
    step_of(optimizer)()
    optimizer.zero_grad()
    fresh = optimizer.state_dict()
    checkpoints.require_optimizer(stored, fresh, resumed.step)
    for group, then in zip(fresh["param_groups"], stored["param_groups"], strict=True):
        lr = then.get("lr")  # of the last step: a run that has no step left to do writes it down again
        group["lr"] = lr if type(lr) is float and 0 <= lr < math.inf else group["lr"]
    optimizer.load_state_dict({"state": stored["state"], "param_groups": fresh["param_groups"]})
