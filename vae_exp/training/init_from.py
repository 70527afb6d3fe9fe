"""Begin a run with the weights of a trained model: `init_from`."""

import logging
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from vae_exp.config.schema import Config
from vae_exp.errors import UserError, printable
from vae_exp.training import checkpoints
from vae_exp.training.checkpoints import Checkpoint
from vae_exp.training.run_dir import LAST
from vae_exp.training.state import Start
from vae_exp.vae import VAE

log = logging.getLogger(__name__)
MAX_NAMED = 4  # tensors in a message


def read(config: Config) -> Checkpoint | None:
    """Return the checkpoint that init_from names, or None if a run begins anew or goes on. Raises UserError.

    Nothing in the file is run, whatever it names: only its tensors and its KL per latent are used.
    """
    path = config["init_from"]
    if path is None or config["resume"]:
        return None
    try:
        (file,) = checkpoints.find(str(path), only_one=True)
        checkpoint = checkpoints.load(file)
    except UserError as error:
        raise UserError(f"init_from={_named(path)}: {str(error).partition(': ')[2]}") from error
    if file.name == LAST and checkpoint.resume is not None and checkpoint.resume.weights is not None:
        return replace(checkpoint, model=checkpoint.resume.weights)  # of a run with ema: where its training stands
    return checkpoint


@torch.no_grad()
def initialise(model: VAE, source: Checkpoint, config: Config) -> Start:
    """Give a model the weights and buffers of a checkpoint that fit by name and shape; return where it starts.

    With another z_dim the latents of the largest mean KL are latents, or fresh ones come after the old ones. Raises
    UserError for what does not fit, unless init_from_partial=true, and if nothing does.
    """
    path, z_dim, old_z_dim = _named(config["init_from"]), model.z_dim, source.config["model"]["z_dim"]
    latents = _largest(source.kl_per_dim or [0.0] * old_z_dim, z_dim)
    target = model.state_dict()
    fitted = {
        name: _fit(source.model[name], target[name], latents, old_z_dim, z_dim)
        for name in target
        if name in source.model
    }
    misfits = [
        f"{printable(name)} is {_shape(target.get(name))} here and {_shape(source.model.get(name))} there"
        for name in {**target, **source.model}
        if fitted.get(name) is None
    ]
    fits = {name: weights for name, weights in fitted.items() if weights is not None}
    if not fits or (misfits and not config["init_from_partial"]):
        named = "; ".join(misfits[:MAX_NAMED]) + (f"; and {len(misfits) - MAX_NAMED} more" * (len(misfits) > MAX_NAMED))
        advice = f"init_from_partial=true takes the {len(fits)} of {len(target)} that fit." if fits else "Nothing fits."
        raise UserError(f"init_from={path}: its weights do not fit this model: {named}. {advice}")
    for name, weights in fits.items():
        target[name].copy_(weights)
    what = f"epoch {source.epoch} of {path}"
    if misfits:
        log.info(f"starts from {what}, with {len(fits)} of {len(target)} weights; not {'; '.join(misfits[:MAX_NAMED])}")
    else:
        log.info(f"starts from {what}")
    if z_dim > old_z_dim:
        log.info(f"model.z_dim={z_dim}, and there it is {old_z_dim}: {z_dim - old_z_dim} latents are fresh")
    elif z_dim < old_z_dim:
        log.info(f"model.z_dim={z_dim}, and there it is {old_z_dim}: keeps those of the largest KL, {latents}")
    before = source.resume.facts.start if source.resume else None
    epochs = source.epoch + (before.epochs if before else 0)
    return Start(str(config["init_from"]), source.epoch, source.step, epochs, latents if z_dim < old_z_dim else None)


def _named(path: object) -> str:
    """Return a path as it is printed: one below the current folder from there."""
    named = Path(str(path))
    return printable(named.relative_to(Path.cwd()) if named.is_relative_to(Path.cwd()) else path)


def _largest(kl_per_dim: list[float], n: int) -> list[int]:
    """Return the latents of the largest KL, at most n, in their order."""
    by_kl = sorted(range(len(kl_per_dim)), key=lambda i: -kl_per_dim[i])
    return sorted(by_kl[:n])


def _fit(old: Tensor, new: Tensor, latents: list[int], old_z_dim: int, z_dim: int) -> Tensor | None:
    """Return the old tensor as the new one's shape has it, or None if they do not fit.

    They may differ in one axis, by the latents: of the first layer of a decoder, whose context comes after them, or of
    the last one of an encoder, which gives means and then log-variances.
    """
    if old.shape == new.shape:
        return old
    axes = [axis for axis, (a, b) in enumerate(zip(old.shape, new.shape, strict=False)) if a != b]
    if old.ndim != new.ndim or len(axes) != 1 or old_z_dim == z_dim:
        return None
    axis = axes[0]
    blocks, rest = divmod(old.shape[axis] - new.shape[axis], old_z_dim - z_dim)
    if rest or blocks not in (1, 2) or old.shape[axis] < blocks * old_z_dim:
        return None
    context = range(old.shape[axis] - blocks * old_z_dim)
    to_read = [block * old_z_dim + i for block in range(blocks) for i in latents]
    to_write = [block * z_dim + i for block in range(blocks) for i in range(len(latents))]
    to_read += [blocks * old_z_dim + i for i in context]
    to_write += [blocks * z_dim + i for i in context]
    result = new.clone()
    values = old.index_select(axis, torch.tensor(to_read, device=old.device)).to(result)
    return result.index_copy_(axis, torch.tensor(to_write, device=result.device), values)


def _shape(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else str(list(tensor.shape))
