"""Begin a run with the weights of a trained model: `init_from`."""

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vae_exp.config.checks import as_typed, chosen, families, flatten
from vae_exp.config.schema import Config
from vae_exp.errors import UserError, printable
from vae_exp.tracking import wandb_run
from vae_exp.training import checkpoints
from vae_exp.training.checkpoints import Checkpoint
from vae_exp.training.run_dir import LAST
from vae_exp.training.state import Start
from vae_exp.vae import VAE

log = logging.getLogger(__name__)
MAX_NAMED = 4  # tensors in a message
MEANING = ("network", "posterior", "likelihood")  # groups that decide what weights of the same shape do
NO_MEANING = ("init", "hidden_dims", "channels", "layers", "context_dim")  # but for how they begin, and shapes
LABELS = ("dataset.condition", "dataset.label", "dataset.labels")


_kept: dict[Path, Checkpoint] = {}  # what was read to be checked, until the run reads it


def read(config: Config, keep: bool = False) -> Checkpoint | None:
    """Return the checkpoint that init_from names, or None if a run begins anew or goes on. Raises UserError.

    Nothing in the file is run, whatever it names: only its tensors and its KL per latent are used. config then has the
    file, for a folder's best.pt and the newest run are others one day. The next call has what this one keeps.
    """
    given = config["init_from"]
    if given is None or config["resume"]:
        return None
    try:
        (file,) = checkpoints.find(str(given), only_one=True)
        file = file.absolute()
        source = _kept.pop(file, None) or checkpoints.load(file)
        checkpoints.require_latents(source.kl_per_dim, source.config["model"]["z_dim"])
        if not all(weights.isfinite().all() for weights in source.model.values()):
            raise checkpoints.InvalidCheckpoint("it holds weights that are not finite")
    except (UserError, checkpoints.InvalidCheckpoint) as error:
        reason = str(error).partition(": ")[2] if isinstance(error, UserError) else f"damaged: {error}."
        raise UserError(f"init_from={_named(given)}: {reason}") from error
    if wandb_run.artifact_of(given) is None:
        config["init_from"] = str(file)
    if keep:
        _kept[file] = source
    if file.name == LAST and source.resume is not None and source.resume.weights is not None:
        return replace(source, model=source.resume.weights)  # of a run with ema: where its training stands
    return source


@torch.no_grad()
def initialise(model: VAE, source: Checkpoint, config: Config, make: Callable[[int], VAE]) -> Start:
    """Give a model the weights and buffers of a checkpoint that fit by name and shape; return where it starts.

    make gives this model with another z_dim: what is shaped otherwise in it than in the checkpoint does not fit. With
    another z_dim the latents of the largest mean KL are taken, or fresh ones come after the old ones. Raises UserError
    for what does not fit, unless init_from_partial=true, and if nothing does.
    """
    path, z_dim, old_z_dim = _named(config["init_from"]), model.z_dim, source.config["model"]["z_dim"]
    if z_dim < old_z_dim and not any(source.kl_per_dim):
        raise UserError(f"init_from={path}: it has no KL by which {z_dim} of its {old_z_dim} latents could be chosen.")
    if z_dim != old_z_dim and (part := whole_codes(config)):
        why = f"its code has {old_z_dim} latents, and weights of {part} cannot be divided between them"
        raise UserError(f"init_from={path}: {why}. Use model.z_dim={old_z_dim}.")
    latents = _largest(source.kl_per_dim or [0.0] * old_z_dim, z_dim)
    target = model.state_dict()
    with torch.device("meta"):
        expected = make(old_z_dim).state_dict()
    fits = {
        name: _with_latents(source.model[name], target[name], latents, old_z_dim, z_dim)
        for name in target
        if name in source.model and _is_like(source.model[name], expected[name])
    }
    misfits = [
        f"{printable(name)} is {_shape(expected.get(name))} here and {_shape(source.model.get(name))} there"
        for name in {**target, **source.model}
        if name not in fits
    ]
    if not fits or (misfits and not config["init_from_partial"]):
        named = "; ".join(misfits[:MAX_NAMED]) + (f"; and {len(misfits) - MAX_NAMED} more" * (len(misfits) > MAX_NAMED))
        advice = f"init_from_partial=true takes the {len(fits)} of {len(target)} that fit." if fits else "Nothing fits."
        raise UserError(f"init_from={path}: its weights do not fit this model: {named}. {advice}")
    for name, weights in fits.items():
        target[name].copy_(weights)
    left = f", with {len(fits)} of {len(target)} weights; not {'; '.join(misfits[:MAX_NAMED])}" if misfits else ""
    log.info(f"starts from epoch {source.epoch} of {path}{left}")
    if others := _other_meanings(source.config, config):
        log.warning(f"init_from={path}: its weights were trained with {', '.join(others)}")
    if z_dim != old_z_dim:
        taken = (
            f"{z_dim - old_z_dim} are fresh" if z_dim > old_z_dim else f"it takes those of the largest KL, {latents}"
        )
        log.info(f"model.z_dim={z_dim}, and there were {old_z_dim} latents: {taken}")
    before = source.resume.facts.start if source.resume else None
    epochs = source.epoch + (before.epochs if before else 0)
    return Start(str(config["init_from"]), source.epoch, source.step, epochs, latents if z_dim < old_z_dim else None)


def whole_codes(config: Mapping[str, Any]) -> str | None:
    """Return the posterior or the prior, such as prior=flow, whose weights do not divide into those of each latent."""
    posterior, prior = families(config)
    if posterior in ("full", "iaf"):
        return f"posterior={posterior}"
    return "prior=flow" if prior == "flow" else None


def _other_meanings(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the settings, as key=value, under which the weights did something else than they do now."""
    old, new = flatten(before), flatten(now)
    keys = [key for group in MEANING for key in new if key.startswith(f"{group}.")]
    keys = [key for key in keys if key.rpartition(".")[2] not in NO_MEANING]
    keys += ["model.stochastic", *(LABELS if now["model"]["conditional"] else ())]
    options = {f"{group}._target_": f"{group}={option}" for group in MEANING if (option := chosen(old, group))}
    changed = [key for key in keys if key in old and old[key] != new.get(key)]
    return [options.get(key) or f"{key}={printable(as_typed(old[key]))}" for key in changed]


def _named(path: object) -> str:
    """Return a path as it is printed: one below the current folder from there."""
    named = os.path.relpath(str(path)) if Path(str(path)).is_absolute() else str(path)
    return printable(path if named.startswith("..") else named)


def _largest(kl_per_dim: list[float], n: int) -> list[int]:
    """Return the latents of the largest KL, at most n, in their order."""
    by_kl = sorted(range(len(kl_per_dim)), key=lambda i: -kl_per_dim[i])
    return sorted(by_kl[:n])


def _is_like(given: Tensor, expected: Tensor) -> bool:
    return given.shape == expected.shape and given.is_floating_point() == expected.is_floating_point()


def _with_latents(old: Tensor, new: Tensor, latents: list[int], old_z_dim: int, z_dim: int) -> Tensor:
    """Return an old tensor as the new one's shape has it, whose axes are otherwise by the latents alone.

    On such an axis there is a number of blocks of latents, two in the last layer of an encoder, which gives means and
    then log-variances; what comes after them, such as the context of a decoder, stays.
    """
    result = old
    for axis, (old_size, size) in enumerate(zip(old.shape, new.shape, strict=True)):
        if old_size != size:
            blocks = (old_size - size) // (old_z_dim - z_dim)
            context = range(old_size - blocks * old_z_dim)
            read = [block * old_z_dim + i for block in range(blocks) for i in latents]
            write = [block * z_dim + i for block in range(blocks) for i in range(len(latents))]
            read += [blocks * old_z_dim + i for i in context]
            write += [blocks * z_dim + i for i in context]
            picked = result.index_select(axis, torch.tensor(read, device=result.device))
            shape = [*result.shape[:axis], size, *result.shape[axis + 1 :]]
            fresh = new if list(new.shape) == shape else new.new_zeros(shape)
            result = fresh.clone().index_copy_(axis, torch.tensor(write, device=new.device), picked.to(new))
    return result


def _shape(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else str(list(tensor.shape))
