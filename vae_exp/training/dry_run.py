"""Parts of a user's own on two images, before a run is opened: whether they return what they must.

In evaluation mode and with random numbers of its own, so that the run is the same without it. What goes wrong inside
such a part keeps its traceback: its author needs the line.
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from vae_exp.config.keys import Config
from vae_exp.datasets import Split
from vae_exp.errors import UserError
from vae_exp.shares import Share
from vae_exp.terms import Logged, Progress, elbo_terms, extra_samples
from vae_exp.vae import VAE

IMAGES = 2


def check(config: Config, model: VAE, objective: Callable[..., tuple[Tensor, Logged]], train: Split) -> float:
    """Return the multiplications and additions of a forward pass with its loss, for each image.

    Raises UserError naming the function whose part returns something else, and what it must return.
    """
    first = train[:IMAGES]
    x, y = first.x.float() / 255, first.y
    if config["devices"] > 1 and any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in model.modules()):
        raise UserError(
            f"devices={config['devices']}: {_named(config, 'network')} has a batch norm, which would normalise by a "
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
    counted: list[float] = []

    def count(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        weight = getattr(layer, "weight", None)
        if isinstance(weight, Tensor) and weight.dim() > 1 and isinstance(output, Tensor):
            transposed = getattr(
                layer, "transposed", False
            )  # then each input's place meets every weight, not each output's
            meets = inputs[0] if transposed else output
            counted.append(2 * weight.numel() * meets.numel() / weight.shape[0])

    hooks = [layer.register_forward_hook(count) for layer in model.modules()]
    try:
        yield counted
    finally:
        for hook in hooks:
            hook.remove()


def _check_network(config: Config, model: VAE, x: Tensor, y: Tensor) -> None:
    n, z_dim, context = len(x), model.z_dim, model.context(y)
    encoded = model.encoder(x, context)
    if not _has_shape(encoded, n, 2 * z_dim):
        must = f"its encoder must return [B, 2 model.z_dim], means beside log-variances: [{n}, {2 * z_dim}] here"
        raise _refusal(config, "network", must, encoded)
    decoded = model.decoder(encoded[:, :z_dim], context)
    if not _has_shape(decoded, *x.shape):
        must = f"its decoder must return a number for each pixel, [B, C, H, W]: {list(x.shape)} here"
        raise _refusal(config, "network", must, decoded)


def _check_likelihood(config: Config, p: Any, x: Tensor) -> None:
    must = "it must return what makes of the decoder's outputs a distribution with log_prob(x) and mean"
    if missing := [name for name in ("log_prob", "mean") if not hasattr(p, name)]:
        raise UserError(f"{_named(config, 'likelihood')}: {must}; {_kind(p)} has no {' and no '.join(missing)}.")
    log_prob = p.log_prob(x)
    if not _has_shape(log_prob, len(x)):
        raise _refusal(config, "likelihood", f"log_prob(x) must be summed over pixels, [B]: [{len(x)}] here", log_prob)
    if not _has_shape(p.mean, *x.shape):
        raise _refusal(config, "likelihood", f"mean must be an image, [B, C, H, W]: {list(x.shape)} here", p.mean)


def _check_objective(config: Config, returned: Any) -> None:
    must = "it must return the loss and a dict of what to log, such as (loss, {})"
    if not isinstance(returned, tuple | list) or len(returned) != 2 or not isinstance(returned[1], dict):
        raise _refusal(config, "objective", must, returned)
    loss, logged = returned
    if not _has_shape(loss) or not loss.is_floating_point():
        raise _refusal(config, "objective", "the loss must be one number, a tensor of shape [] such as a mean", loss)
    if not loss.requires_grad:
        raise UserError(f"{_named(config, 'objective')}: no gradient leads from the loss to the weights.")
    for name, value in logged.items():
        if not isinstance(value, int | float) and not _has_shape(value):
            must = f"what it logs as {name} must be one number, such as a mean"
            raise _refusal(config, "objective", must, value)


def _has_shape(value: Any, *shape: int) -> bool:
    return isinstance(value, Tensor) and tuple(value.shape) == shape


def _refusal(config: Config, group: str, must: str, returned: Any) -> UserError:
    return UserError(f"{_named(config, group)}: {must}, and it is {_kind(returned)}.")


def _named(config: Config, group: str) -> str:
    return f"{group}._target_={cast('dict[str, Any]', config)[group]['_target_']}"


def _kind(value: Any) -> str:
    """Return what a value is, in words: a tensor by its shape, a tuple by what is in it."""
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)}"
    if isinstance(value, tuple | list) and len(value) < 5:
        return f"({', '.join(map(_kind, value))})"
    return f"of the type {type(value).__name__}"
