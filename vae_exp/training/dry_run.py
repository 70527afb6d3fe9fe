"""Try out before training: memory, own parts, and data that suit the model."""

import contextlib
import logging
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from vae_exp.config import build
from vae_exp.config.schema import Config
from vae_exp.datasets import Data, Split
from vae_exp.distributed import Share
from vae_exp.errors import UserError, printable
from vae_exp.scores import repeats as scores
from vae_exp.scores.common import TooFewFactors, UnsuitableFactors
from vae_exp.terms import Logged, Progress, elbo_terms, extra_samples
from vae_exp.vae import VAE

log = logging.getLogger(__name__)
COPIES = 4  # of each weight: itself, its gradient and Adam's two moments
HAVE_FACTORS = "sprites, dsprites, shapes3d and mpi3d have them"
OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "_status_alloc_failed")  # the last of cuBLAS and cuDNN
IMAGES = 2  # that are passed through a model before it is trained


@contextlib.contextmanager
def explain_out_of_memory(config: Config) -> Iterator[None]:
    """Raise UserError, with what can be made smaller, if PyTorch runs out of memory inside the block."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = str(error).strip()
        is_known = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not is_known and not any(sign in text.lower() for sign in OUT_OF_MEMORY):
            raise
        half, odd = divmod(config["batch_size"], 2)
        same = "" if odd else f" accumulate_steps={2 * config['accumulate_steps']}, which makes the same steps"
        raise UserError(
            f"out of memory with batch_size={config['batch_size']}, model.z_dim={config['model']['z_dim']} and "
            f"device={config['device']} ({text.splitlines()[0] if text else 'MemoryError'}). Try batch_size="
            f"{max(1, half)}{same}, a smaller network or model.z_dim, or, where the images are large, a smaller "
            "dataset.device_memory, which streams them."
        ) from error


def check_model(config: Config, x_shape: tuple[int, int, int], n_classes: int, device: torch.device) -> None:
    """Raise UserError if the weights and what training keeps beside them need more than all of the memory.

    The model is built without its numbers, so this costs nothing however large it is.
    """
    key, advice = (
        f"model.z_dim={config['model']['z_dim']}",
        "lower model.z_dim, network.hidden_dims or network.channels",
    )
    try:
        with torch.device("meta"):
            parameters = list(build.model(config, x_shape, n_classes).parameters())
    except (RuntimeError, OverflowError, TypeError) as error:
        if "overflow" not in str(error).lower() and "invalid combination" not in str(error).lower():
            raise
        raise UserError(f"{key}: the model is too large; {advice}.") from error
    copies, memory = COPIES + (config["ema"] is not None), _available_memory(device)
    needed = copies * sum(tensor.numel() * tensor.element_size() for tensor in parameters)
    if memory is not None and needed > memory:
        free = " free" if device.type == "cuda" else ""
        raise UserError(
            f"{key}: to train this model takes {needed / 1e9:,.1f} GB for its weights alone, and {device} has "
            f"{memory / 1e9:,.1f} GB{free}; {advice}."
        )


def _available_memory(device: torch.device) -> int | None:
    """Return the bytes that a GPU has free, or else that this process may use in all; None if that is not known."""
    if device.type == "cuda":
        reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(
            device
        )  # PyTorch's, to be used again
        return torch.cuda.mem_get_info(device)[0] + reserve
    limits = []
    with contextlib.suppress(OSError, ValueError, AttributeError):
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with contextlib.suppress(OSError, ValueError):  # of a container; "max" where there is no limit
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(limits, default=None)


def check_data(config: Config, data: Data, held_out: str, held_out_split: Split) -> None:
    """Raise UserError for a conditional model of data without labels, or for scores of data that do not suit them.

    Scores need known factors and enough images: of the test split, which is measured at the end, and of the held-out
    one if it is measured while the run trains.
    """
    if config["scores"]:
        if held_out == "test" or config["scores_every_epochs"]:
            _require_suited(config, data.name, held_out, held_out_split)
        if held_out != "test":
            _require_suited(config, data.name, "test", data.read_test())
        if config["model"]["conditional"] and (given := held_out_split.given_factors()):
            log.info(f"left out  {given_as_label(given)}")
    if config["model"]["conditional"] and not data.n_classes:
        raise UserError(
            f"model.conditional=true: dataset={data.name} has no labels here. An image folder has them where every "
            "image lies in a folder of its class, CelebA with dataset.attribute=Smiling. Or use model=vanilla."
        )


def _require_suited(config: Config, name: str, part: str, split: Split) -> None:
    overrides = f"scores=[{','.join(config['scores'])}]"
    overrides += f" scores_every_epochs={config['scores_every_epochs']}" if part == "val" else ""
    require_factors(overrides, name, part, split)
    rows, conditional = scores.usual_size(len(split), 1), config["model"]["conditional"]
    if unsuited := find_unsuited(split, config["scores"], rows, conditional=conditional):
        raise UserError(
            f"{overrides}: the {part} split, {len(split):,} images, does not suit {describe(unsuited)}. It needs "
            f"{what_helps(unsuited, part, config['dataset'])}."
        )


def require_factors(overrides: str, name: str, part: str, split: Split) -> None:
    """Raise UserError if it is not known what the images of a split were made from."""
    if split.factors is None:
        raise UserError(f"{overrides}: the {part} split of dataset={name} has no known factors; {HAVE_FACTORS}.")


def given_as_label(names: Sequence[str]) -> str:
    """Return why scores of a conditional model are not of these factors."""
    return f"{printable(', '.join(names))} of the scores: the model is given it as its label (model.conditional=true)"


def find_unsuited(
    split: Split, names: Collection[str], rows: int, repeats: int = 1, seed: int = 0, *, conditional: bool
) -> dict[str, UnsuitableFactors]:
    """Return the scores that cannot be measured of so many of a split's images at a time, each with what is wrong."""
    varying = split.unknown_factors(conditional)
    if not varying.names:
        given = split.given_factors() if conditional else []
        but = f" but {', '.join(given)}, which the model is given as its label" if given else ""
        return dict.fromkeys(names, TooFewFactors(f"no factor varies{but}"))
    return scores.unsuitable(varying.table.cpu().numpy(), names, rows, repeats, seed, varying.names)


def describe(found: Mapping[str, UnsuitableFactors]) -> str:
    """Return the scores that something is wrong with, and what, as in `mig, dci (x has 12 values in 18 rows, ...)`."""
    by_reason: dict[str, list[str]] = {}
    for name, error in found.items():
        by_reason.setdefault(error.reason, []).append(name)
    return "; ".join(f"{', '.join(names)} ({reason})" for reason, names in by_reason.items())


def what_helps(found: Mapping[str, UnsuitableFactors], part: str, dataset: Mapping[str, Any]) -> str:
    """Return what must change in training for a split to suit the scores."""
    key = f"{part}_size"
    few_factors = {isinstance(error, TooFewFactors) for error in found.values()}
    images = f"a larger dataset.{key}" if key in dataset else f"more images in the {part} split"
    factors = "more factors that vary" + (" (dataset.factors)" if "factors" in dataset else "")
    return " and ".join([images] * (False in few_factors) + [factors] * (True in few_factors))


def check_own_parts(config: Config, model: VAE, objective: Callable[..., tuple[Tensor, Logged]], train: Split) -> float:
    """Return the multiplications and additions of a forward pass with its loss, for each image.

    Raises UserError naming the function whose part returns something else, and what it must return.
    """
    first = train[:IMAGES]
    x, y = first.x.float() / 255, first.y
    if config["devices"] > 1 and any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in model.modules()):
        raise UserError(
            f"devices={config['devices']}: {_target(config, 'network')} has a batch norm, which would normalise by a "
            "process's part of the batch. Use devices=1, or a group norm."
        )
    with torch.random.fork_rng([x.device] if x.device.type == "cuda" else []), model.evaluating():
        _check_network(config, model, x, y)
        noise = torch.Generator(x.device).manual_seed(0)
        with _counting(model) as operations:
            q = model.encode(x, y)
            z = q.rsample(noise)
            p = model.decode(z, y)
            _check_likelihood(config, p, x)
            terms = elbo_terms(x, q, p, z, partial(extra_samples, model, x, y, q, Share((len(x),)), noise))
            now = Progress(0, 1, max(1, config["epochs"]), len(train))
            _check_objective(config, objective(terms, now))
    return sum(operations) / len(x)


@contextlib.contextmanager
def _counting(model: VAE) -> Iterator[list[float]]:
    """Count the multiplications and additions of layers called inside the block, by the sizes of their weights.

    PyTorch's own counter would take as long to import as a tenth of PyTorch.
    """
    operations: list[float] = []

    def count(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        weight = getattr(layer, "weight", None)
        if isinstance(weight, Tensor) and weight.dim() > 1 and isinstance(output, Tensor):
            # In a transposed layer each input's pixel meets every weight, elsewhere each output's.
            pixels = inputs[0] if getattr(layer, "transposed", False) else output
            operations.append(2 * weight.numel() * pixels.numel() / weight.shape[0])

    hooks = [layer.register_forward_hook(count) for layer in model.modules()]
    try:
        yield operations
    finally:
        for hook in hooks:
            hook.remove()


def _check_network(config: Config, model: VAE, x: Tensor, y: Tensor) -> None:
    size, context = [len(x), 2 * model.z_dim], model.context(y)
    encoded = model.encoder(x, context)
    must = f"its encoder must return [B, 2 model.z_dim], means beside log-variances: {size} here"
    _require_shape(config, "network", must, encoded, size)
    decoded = model.decoder(encoded[:, : model.z_dim], context)
    must = f"its decoder must return a number for each pixel, [B, C, H, W]: {list(x.shape)} here"
    _require_shape(config, "network", must, decoded, x.shape)


def _check_likelihood(config: Config, p: Any, x: Tensor) -> None:
    if missing := [name for name in ("log_prob", "mean") if not hasattr(p, name)]:
        must = "it must return what makes of the decoder's outputs a distribution with log_prob(x) and mean"
        raise UserError(f"{_target(config, 'likelihood')}: {must}; {_kind(p)} has no {' and no '.join(missing)}.")
    must = f"log_prob(x) must be summed over pixels, [B]: [{len(x)}] here"
    _require_shape(config, "likelihood", must, p.log_prob(x), [len(x)])
    must = f"mean must be an image, [B, C, H, W]: {list(x.shape)} here"
    _require_shape(config, "likelihood", must, p.mean, x.shape)


def _check_objective(config: Config, returned: Any) -> None:
    if not isinstance(returned, tuple | list) or len(returned) != 2 or not isinstance(returned[1], dict):
        must = "it must return the loss and a dict of what to log, such as (loss, {})"
        raise _refusal(config, "objective", must, returned)
    loss, logs = returned
    must = "the loss must be one number, a tensor of shape [] such as a mean"
    _require_shape(config, "objective", must, loss, [])
    if not loss.is_floating_point():
        raise _refusal(config, "objective", must, loss)
    if not loss.requires_grad:
        raise UserError(f"{_target(config, 'objective')}: no gradient leads from the loss to the weights.")
    for name, value in logs.items():
        if not isinstance(value, int | float):
            _require_shape(config, "objective", f"what it logs as {name} must be one number, such as a mean", value, [])


def _require_shape(config: Config, group: str, must: str, value: Any, shape: Sequence[int]) -> None:
    if not isinstance(value, Tensor) or list(value.shape) != list(shape):
        raise _refusal(config, group, must, value)


def _refusal(config: Config, group: str, must: str, returned: Any) -> UserError:
    return UserError(f"{_target(config, group)}: {must}, and it is {_kind(returned)}.")


def _target(config: Config, group: str) -> str:
    return f"{group}._target_={cast('dict[str, Any]', config)[group]['_target_']}"


def _kind(value: Any) -> str:
    """Return what a value is, in words: a tensor by its shape, a tuple by what is in it."""
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)}"
    if isinstance(value, tuple | list) and len(value) < 5:
        return f"({', '.join(map(_kind, value))})"
    return f"of the type {type(value).__name__}"
