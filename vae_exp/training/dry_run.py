"""Try out before training: memory, own parts, and data that suit the model."""

import contextlib
import inspect
import logging
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from vae_exp.config import build
from vae_exp.config.schema import Config
from vae_exp.datasets import Data, Split
from vae_exp.datasets.prepare import kind_of
from vae_exp.distributed import Share
from vae_exp.distributions import DiagonalGaussian, FullGaussian, draw
from vae_exp.errors import UserError, first_line, is_out_of_memory, printable
from vae_exp.priors import VampPrior
from vae_exp.scores import repeats as scores
from vae_exp.scores.common import TooFewFactors, UnsuitableFactors
from vae_exp.terms import Logged, Progress, Terms, elbo_terms
from vae_exp.vae import VAE

log = logging.getLogger(__name__)
COPIES = 4  # of each weight: itself, its gradient and Adam's two moments


@contextlib.contextmanager
def explain_out_of_memory(config: Config) -> Iterator[None]:
    """Raise UserError, with what can be made smaller, if PyTorch runs out of memory inside the block."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        half, odd = divmod(config["batch_size"], 2)
        same = "" if odd else f" accumulate_steps={2 * config['accumulate_steps']}, which makes the same steps"
        raise UserError(
            f"out of memory with batch_size={config['batch_size']}, model.z_dim={config['model']['z_dim']} and "
            f"device={config['device']} ({first_line(error)}). Try batch_size="
            f"{max(1, half)}{same}, a smaller network or model.z_dim, or, where the images are large, a smaller "
            "dataset.device_memory, which streams them."
        ) from error


def check_model(config: Config, data: Data, device: torch.device) -> None:
    """Raise UserError if the weights and what training keeps beside them need more than all of the memory."""
    key = f"model.z_dim={config['model']['z_dim']}"
    advice = "lower model.z_dim, network.hidden_dims or network.channels"
    try:
        with torch.device("meta"):  # without its numbers it costs nothing however large it is
            parameters = list(build.model_of(config, data, config["model"]["z_dim"]).parameters())
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
        reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # to be used again
        return torch.cuda.mem_get_info(device)[0] + reserve
    limits = []
    with contextlib.suppress(OSError, ValueError, AttributeError):
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with contextlib.suppress(OSError, ValueError):  # of a container; "max" where there is no limit
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(limits, default=None)


def check_data(config: Config, data: Data, held_out: str, held_out_split: Split) -> None:
    """Raise UserError for a conditional model of data without labels, or for scores of data that do not suit them."""
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
    request = f"scores=[{','.join(config['scores'])}]"
    request += f" scores_every_epochs={config['scores_every_epochs']}" if part == "val" else ""
    require_factors(request, name, part, split)
    rows, conditional = scores.usual_size(len(split), 1), config["model"]["conditional"]
    if errors := find_unsuited(split, config["scores"], rows, conditional=conditional):
        problem, remedy = explain_unsuited(errors, part, split, config["dataset"])
        raise UserError(f"{request}: {problem}. It needs {remedy}.")


def require_factors(request: str, name: str, part: str, split: Split) -> None:
    if split.factors is None:
        have_them = "sprites, dsprites, shapes3d and mpi3d have them"
        raise UserError(f"{request}: the {part} split of dataset={name} has no known factors; {have_them}.")


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


def explain_unsuited(
    errors: Mapping[str, UnsuitableFactors], part: str, split: Split, dataset: Mapping[str, Any]
) -> tuple[str, str]:
    """Return which scores a split does not suit and why, and what must change in training for it to suit them."""
    by_reason: dict[str, list[str]] = {}
    for name, error in errors.items():
        by_reason.setdefault(error.reason, []).append(name)
    reasons = "; ".join(f"{', '.join(names)} ({reason})" for reason, names in by_reason.items())
    few_factors = {isinstance(error, TooFewFactors) for error in errors.values()}
    images = f"a larger dataset.{part}_size" if f"{part}_size" in dataset else f"more images in the {part} split"
    factors = "more factors that vary" + (" (dataset.factors)" if "factors" in dataset else "")
    remedy = " and ".join([images] * (False in few_factors) + [factors] * (True in few_factors))
    return f"the {part} split, {len(split):,} images, does not suit {reasons}", remedy


def check_own_parts(config: Config, model: VAE, objective: Callable[..., tuple[Tensor, Logged]], train: Split) -> float:
    """Return the multiplications and additions of a forward pass per image. Raises UserError for a wrong part."""
    first = train[:2]
    x, y = first.x.float() / 255, first.y
    if config["devices"] > 1 and any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in model.modules()):
        raise UserError(
            f"devices={config['devices']}: {_target(config, 'network')} has a batch norm, which would normalise by a "
            "process's part of the batch. Use devices=1, or a group norm."
        )
    operations: list[float] = []
    pseudo_inputs = len(model.prior.inputs) if isinstance(model.prior, VampPrior) else 0

    def count(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        weight = getattr(layer, "weight", None)
        if isinstance(weight, Tensor) and weight.dim() > 1 and isinstance(output, Tensor):
            # In a transposed layer each input's pixel meets every weight, elsewhere each output's.
            pixels = inputs[0] if getattr(layer, "transposed", False) else output
            # Pseudo-inputs are encoded once a batch, however many images it has.
            share = len(x) / config["batch_size"] if len(output) == pseudo_inputs else 1
            operations.append(share * 2 * weight.numel() * pixels.numel() / weight.shape[0])

    with torch.random.fork_rng([x.device] if x.device.type == "cuda" else []), model.evaluating():
        _check_network(config, model, x, y)
        noise = torch.Generator(x.device).manual_seed(0)
        eps, q = torch.randn(len(x), model.z_dim, generator=noise, device=x.device), model.encode(x, y)
        if model.stochastic:
            _check_family(config, model, q, eps, y)
        _check_likelihood(config, model.decode(q.rsample(eps), y), x)
        with register_module_forward_hook(count):  # PyTorch's own counter takes a tenth of PyTorch's time to import
            terms = elbo_terms(model, x, y, eps, Share((len(x),)), noise)
            now = Progress(0, 1, max(1, config["epochs"]), len(train))
            _check_objective(config, _called(config, objective, terms, now))
    return sum(operations) / len(x)


def _check_network(config: Config, model: VAE, x: Tensor, y: Tensor) -> None:
    size, context = [len(x), getattr(model.posterior, "n_outputs", 2 * model.z_dim)], model.context(y)
    for name, part in (("encoder", model.encoder), ("decoder", model.decoder)):
        try:
            inspect.signature(part.forward).bind(x, context)
        except TypeError as error:
            takes = "forward(images or codes, context), where context [B, W] is the one-hot label"
            raise UserError(f"{_target(config, 'network')}: its {name} must have {takes}: {error}.") from error
    encoded = model.encoder(x, context)
    outputs = "2 model.z_dim], means beside log-variances" if size[1] == 2 * model.z_dim else "n_outputs]"
    must = f"its encoder must return [B, {outputs}: {size} here"
    _require_shape(config, "network", must, encoded, size)
    q = model.encode(x, y)
    if isinstance(q, DiagonalGaussian | FullGaussian):
        variances = q.log_var.exp()
        _require_shape(config, "network", "the variances of its posterior must be [B, Z]", variances, variances.shape)
    per_pixel = getattr(model.likelihood, "outputs_per_pixel", 1)
    size = [x.shape[0], per_pixel * x.shape[1], *x.shape[2:]]
    several = (
        "a number for each pixel, [B, C" if per_pixel == 1 else f"{per_pixel} numbers for each pixel, [B, {per_pixel}C"
    )
    must = f"its decoder must return {several}, H, W]: {size} here"
    _require_shape(config, "network", must, model.decoder(encoded[:, : model.z_dim], context), size)


def _check_family(config: Config, model: VAE, q: Any, eps: Tensor, y: Tensor) -> None:
    """Raise UserError for a posterior or a prior that does not give what the ELBO takes of it."""
    methods = ("mean", "rsample", "draw" if hasattr(q, "draw") else "log_prob")
    if not (is_dataclass(type(q)) and all(hasattr(q, name) for name in methods)):
        must = "it must make of the encoder's outputs a dataclass with mean, rsample(noise) and log_prob(z)"
        _refuse(config, "posterior", must, q)
    codes = f"must be codes, [B, Z]: {list(eps.shape)} here"
    _require_shape(config, "posterior", f"mean {codes}", q.mean, eps.shape)
    z, log_q = draw(q, eps)
    _require_shape(config, "posterior", f"rsample(noise) {codes}", z, eps.shape)
    log_q = q.log_prob(z) if log_q is None else log_q
    nats = [("posterior", "log_prob", log_q), ("prior", "log_prob", model.prior.log_prob(z, y))]
    nats += [] if (kl := model.kl(q, y)) is None else [("prior", "kl", kl)]
    for group, method, values in nats:
        must = f"{method} must be [B], or [B, Z] where it is of each latent: [{len(z)}] or {list(z.shape)} here"
        _require_shape(config, group, must, values, z.shape if getattr(values, "ndim", 0) == 2 else z.shape[:1])
    must = f"sample(y, noise, temperature) must return codes [B, Z]: {list(z.shape)} here"
    sampled = model.prior_sample(len(y), torch.Generator().manual_seed(0), y)
    _require_shape(config, "prior", must, sampled, z.shape)


def _called(config: Config, objective: Callable[..., Any], terms: Terms, now: Progress) -> Any:
    try:
        return objective(terms, now)
    except (TypeError, AttributeError) as error:
        if terms.kl is None and "NoneType" in str(error):  # what it asks of terms.kl
            why = "terms.kl is None, because this prior or posterior gives no KL of each latent; terms.kl_total is [B]"
            raise UserError(f"{_target(config, 'objective')}: {why}.") from error
        raise


def _check_likelihood(config: Config, p: Any, x: Tensor) -> None:
    if missing := [name for name in ("log_prob", "mean") if not hasattr(p, name)]:
        must = "it must return what makes of the decoder's outputs a distribution with log_prob(x) and mean"
        raise UserError(f"{_target(config, 'likelihood')}: {must}; {kind_of(p)} has no {' and no '.join(missing)}.")
    must = f"log_prob(x) must be summed over pixels, [B]: [{len(x)}] here"
    _require_shape(config, "likelihood", must, p.log_prob(x), [len(x)])
    _require_shape(config, "likelihood", f"mean must be an image, [B, C, H, W]: {list(x.shape)} here", p.mean, x.shape)


def _check_objective(config: Config, returned: Any) -> None:
    if not isinstance(returned, tuple | list) or len(returned) != 2 or not isinstance(returned[1], dict):
        _refuse(config, "objective", "it must return the loss and a dict of what to log, such as (loss, {})", returned)
    loss, logs = returned
    _require_shape(config, "objective", "the loss must be one number, a tensor of shape [] such as a mean", loss, [])
    if not loss.requires_grad:
        raise UserError(f"{_target(config, 'objective')}: no gradient leads from the loss to the weights.")
    for name, value in logs.items():
        if not isinstance(value, int | float):
            _require_shape(config, "objective", f"what it logs as {name} must be one number, such as a mean", value, [])


def _require_shape(config: Config, group: str, must: str, value: Any, shape: Sequence[int]) -> None:
    if not isinstance(value, Tensor) or list(value.shape) != list(shape):
        _refuse(config, group, must, value)
    if not value.isfinite().all():
        when = "for the first two training images, before any step: the fault is there, not in optimizer.lr"
        raise UserError(f"{_target(config, group)}: {must}, and it holds NaN or infinity {when}.")


def _refuse(config: Config, group: str, must: str, returned: Any) -> NoReturn:
    raise UserError(f"{_target(config, group)}: {must}, not {kind_of(returned)}.")


def _target(config: Config, group: str) -> str:
    return f"{group}._target_={cast('dict[str, Any]', config)[group]['_target_']}"
