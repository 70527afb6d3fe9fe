"""The state of a run that goes on, put back to the bit."""

import logging
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from vae_exp.config.keys import images_per_step
from vae_exp.errors import UserError
from vae_exp.training import validate
from vae_exp.training.checkpoint import Checkpoint
from vae_exp.training.state import RngStreams, TrainingRun

log = logging.getLogger(__name__)
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
            validate.require_weights(weights or {}, training.model.state_dict())
        validate.require_latents(before.kl_per_dim, training.config["model"]["z_dim"])
        _restore_optimizer(before, training)
    except validate.InvalidCheckpoint as error:
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
    validate.require_optimizer(given, own, before.step)
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
