"""Build what a checked configuration describes."""

import copy
import functools
import hashlib
import importlib
import inspect
import math
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from omegaconf import DictConfig
from torch import nn

from vae_exp import distributed, torchrun_env
from vae_exp.config import checks, targets
from vae_exp.config.checks import check_devices, check_values, flatten, rules_for, source_problems
from vae_exp.config.schema import RULES, Config
from vae_exp.datasets import Data, Split, prepare
from vae_exp.datasets.prepare import require_source
from vae_exp.errors import UserError
from vae_exp.networks.mlp import IMAGES, glorot_init, mean_image
from vae_exp.vae import VAE


def device(name: str) -> torch.device:
    """Return the device of that name; auto is the fastest available. Raises UserError if it is not available.

    If several processes compute a run on GPUs, each gets its own.
    """
    return torch.device(choose(name, _available(), torch.cuda.device_count(), *torchrun_env.local_rank()))


def agreed(config: Mapping[str, Any]) -> int:
    """Return the number of processes of the run: those that were started, even if devices=N is not given.

    Raises UserError if N is another number, or if these processes cannot do what the run is to do.
    """
    asked, there = config["devices"], distributed.world_size()
    if asked not in (1, there) and there == 1:
        raise UserError(
            f"devices={asked}: this is one process. vae-train devices={asked} starts so many, torchrun "
            f"--nproc-per-node={asked} does for a program of your own."
        )
    if asked not in (1, there):
        raise UserError(f"devices={asked}: {there} processes were started for this run. Leave it out, or say {there}.")
    if problems := check_devices(flatten({**config, "devices": there})):
        raise UserError("\n".join(problems))
    return there


def require(name: str, processes: int) -> None:
    """Raise UserError if this many processes on this machine cannot have a device each."""
    choose(name, _available(), torch.cuda.device_count(), processes - 1, processes)


def _available() -> dict[str, bool]:
    return {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}


def choose(name: str, available: Mapping[str, bool], n_gpus: int, process: int, processes: int) -> str:
    """Return the device of one of a run's processes on a machine: cuda:1 for the second.

    Raises UserError as `device` does.
    """
    kind, _, number = name.partition(":")
    if kind == "auto":
        kind = next(kind for kind, is_there in available.items() if is_there)
        kind = "cpu" if kind == "mps" and processes > 1 else kind
    if not available[kind]:
        raise UserError(f"device={name}: PyTorch {torch.__version__} finds no such device here. Use device=auto.")
    if processes > 1 and (kind == "mps" or number):
        raise UserError(f"device={name}: is one device, and {processes} processes need one each. Use cuda or cpu.")
    if kind != "cuda":
        return kind
    index = int(number or process)
    if index >= n_gpus and number:
        raise UserError(f"device={name}: the GPUs here are cuda:0 to cuda:{n_gpus - 1}.")
    if index >= n_gpus:
        raise UserError(f"devices={processes}: the GPUs here are {n_gpus}. Use devices={n_gpus}, or device=cpu.")
    return f"cuda:{index}" if number or processes > 1 else kind


def of_job(name: str, number: int, n_gpus: int | None = None) -> str:
    """Return the device of one of the jobs that run side by side on this machine: the GPUs take turns."""
    n_gpus = torch.cuda.device_count() if n_gpus is None else n_gpus
    return f"cuda:{number % n_gpus}" if name in ("auto", "cuda") and n_gpus > 1 else name


# How the code calls each _target_: so many arguments by place, and these by name. The rest is the config's.
CALLED_WITH = {
    "network": (0, ("x_shape", "z_dim", "context_dim")),
    "likelihood": (0, ()),
    "objective": (2, ()),
    "dataset": (0, ()),
    "optimizer": (1, ()),
    "scheduler": (2, ()),
}
# The options of every dataset, and those that it cannot do without.
SHARED = {
    name: option for name, option in inspect.signature(prepare).parameters.items() if option.kind == option.KEYWORD_ONLY
}
OF_ALL = {"dataset": SHARED, "network": ("init",)}  # keys of a group that the function it names does not get
NEEDED = [name for name, option in SHARED.items() if option.default is option.empty]


def partial(config: Mapping[str, Any], group: str) -> Callable[..., Any]:
    """Return the group's _target_ with its settings filled in, to be called with what only the code knows.

    A _target_ deeper down, as in a stranger's checkpoint, is a plain value and never called. Hydra's instantiate
    would do for the rest, but what it returns checks its target at every call: a thirtieth of the tutorial's step.
    """
    settings = {key: value for key, value in config[group].items() if not key.startswith("_")}
    return functools.partial(resolve(group, config[group]["_target_"]), **copy.deepcopy(settings))


def check(cfg: DictConfig, combinations: bool = True) -> Config:
    """Check everything that needs no data, and return the resolved configuration.

    Raises UserError for a value, a combination or a _target_ that cannot work, and for a missing device.
    """
    config = checks.check(cfg, combinations)
    _check_calls(config)
    device(config["device"])
    return config


def _check_calls(config: Config) -> None:
    """Check that every _target_ exists and takes its arguments, and that the optimizer accepts their values."""
    for group, (by_place, by_name) in CALLED_WITH.items():
        settings = cast("dict[str, Any]", config)[group]
        target = settings["_target_"]
        signature = inspect.signature(resolve(group, target))
        given = {key: value for key, value in settings.items() if not key.startswith("_")}
        shared = OF_ALL.get(group, {})
        given = {key: value for key, value in given.items() if key in signature.parameters or key not in shared}
        if group == "dataset" and (missing := [name for name in NEEDED if name not in settings]):
            raise UserError(f"dataset.{missing[0]}: is missing. Every dataset needs it.")
        try:
            signature.bind(*[None] * by_place, **dict.fromkeys(by_name), **given)
        except TypeError as error:
            names = [name for name in list(signature.parameters)[by_place:] if name not in by_name]
            names += [name for name in shared if name not in names]
            problem = f"{group}: {target} {error}; its settings are {', '.join(names)}."
            raise UserError(problem + _of_another_option(group, set(given) - set(names))) from error
    _check_schedule(config)
    target = config["optimizer"]["_target_"]
    try:
        step = optimizer(config, nn.Linear(1, 1)).step
    except Exception as error:  # nothing of ours has run: it is the optimizer that refuses
        raise UserError(f"optimizer: {target} refuses its settings: {error}") from error
    closure = inspect.signature(step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise UserError(f"optimizer: {target} evaluates the loss several times a step, which this loop does not do.")


def _of_another_option(group: str, unknown: set[str]) -> str:
    """Return what to do about settings that a preset made for another option of the group."""
    for key in sorted(f"{group}.{name}" for name in unknown):
        if having := checks.options_with(key):
            return f"\n{key} is of {group}={'|'.join(having)}. Where a preset sets it, ~{key} takes it away."
    return ""


def _check_schedule(config: Config) -> None:
    """Raise UserError if scheduler._target_ does not return a factor on the learning rate."""
    target = config["scheduler"]["_target_"]
    epochs = config["epochs"]
    for epoch in (0.0, epochs / 2, float(epochs)):
        try:
            factor = partial(config, "scheduler")(epoch, epochs)
        except Exception as error:  # nothing of the run has begun: it is the schedule that refuses
            reason = f"{type(error).__name__}: {error}"
            raise UserError(f"scheduler: {target} fails at epoch {epoch:g}: {reason}") from error
        if isinstance(factor, bool) or not isinstance(factor, int | float) or not math.isfinite(factor):
            raise UserError(
                f"scheduler._target_={target}: it returns {type(factor).__name__} at epoch {epoch:g}, and must return "
                "a number: the factor on optimizer.lr at (epoch, epochs)."
            )


def resolve(group: str, target: str) -> Callable[..., Any]:
    """Return the function or class that a _target_ names. Raises UserError if there is none of that name.

    A module that is not installed is looked for in the current folder: last, so that no file there hides another.
    """
    try:
        targets.look_here_too(target.partition(".")[0])
        found = _named(target)
        inspect.signature(found)
    except (ImportError, AttributeError, TypeError, ValueError, SyntaxError) as error:
        raise UserError(f"{group}._target_={target}: there is no such function or class ({error}).") from error
    return found


def _named(target: str) -> Any:
    """Return what a dotted name refers to.

    What a package exports under a name comes before a file of that name: vae_exp.networks.mlp is a function.
    """
    home, _, name = target.rpartition(".")
    try:
        return getattr(importlib.import_module(home), name)
    except (ImportError, AttributeError, ValueError):  # a name inside a class
        return pkgutil.resolve_name(target)


def dataset(config: Mapping[str, Any]) -> Data:
    """Return the dataset, downloaded on first use, with the options that all datasets share applied to it.

    Raises UserError if its files are missing or damaged, or if it does not have what the options ask for.
    """
    settings = config["dataset"]
    own = inspect.signature(resolve("dataset", settings["_target_"])).parameters
    read = {"_target_": settings["_target_"]} | {key: value for key, value in settings.items() if key in own}
    shared = {key: value for key, value in settings.items() if key in SHARED}
    source = require_source(partial({"dataset": read}, "dataset")(), settings["_target_"])
    return prepare(source, **shared)


def model(config: Mapping[str, Any], x_shape: tuple[int, int, int], n_classes: int, train: Split | None = None) -> VAE:
    """Return the VAE for images of x_shape. The labels of an unconditional model have width 0.

    With network.init=glorot the outputs begin at the mean of the first training images.
    """
    z_dim, width = config["model"]["z_dim"], n_classes if config["model"]["conditional"] else 0
    own = {"network": {key: value for key, value in config["network"].items() if key not in OF_ALL["network"]}}
    networks = partial(own, "network")(x_shape=x_shape, z_dim=z_dim, context_dim=width)
    encoder, decoder = _two_modules(networks, config["network"]["_target_"])
    likelihood = partial(config, "likelihood")()
    if not callable(likelihood):
        target = config["likelihood"]["_target_"]
        raise UserError(f"likelihood._target_={target}: it must return a function of the decoder's outputs.")
    if config["network"].get("init", "pytorch") == "glorot":
        mean = None if train is None else mean_image(train[:IMAGES].x)
        glorot_init(encoder, decoder, likelihood, mean)
    return VAE(encoder, decoder, likelihood, z_dim, width, config["model"]["stochastic"])


def _two_modules(networks: Any, target: str) -> tuple[nn.Module, nn.Module]:
    """Return the encoder and the decoder. Raises UserError if the network's function returns something else."""
    are_modules = [isinstance(part, nn.Module) for part in networks] if isinstance(networks, tuple | list) else []
    if are_modules != [True, True]:
        shown = f"{len(are_modules)} values" if are_modules else type(networks).__name__
        raise UserError(
            f"network._target_={target}: it must return two modules, an encoder and a decoder, and returned {shown}."
        )
    return networks[0], networks[1]


def optimizer(config: Mapping[str, Any], model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer of the model's parameters."""
    return partial(config, "optimizer")(model.parameters())


def generator(seed: int, stream: str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a random generator of its own for each use, so that a change in one does not affect the others."""
    digest = hashlib.sha256(f"{stream} {seed}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:6], "big"))


def check_known_values(config: Mapping[str, Any]) -> None:
    """Raise UserError for values in a checkpoint that training would have refused."""
    kept = flatten({group: config.get(group) for group in ("model", "network", "likelihood")})
    rules = rules_for(kept)
    needed = [key for key in RULES if key.startswith("model.")]
    flat = {key: value for key, value in kept.items() if key in rules}
    if problems := check_values(flat, {key: rules[key] for key in [*flat, *needed]}):
        raise UserError("checkpoint: " + "\n".join(problems))


def check_dataset(config: Mapping[str, Any]) -> None:
    """Raise UserError for settings of a checkpoint's dataset that it does not take, or training would have refused."""
    kept, target = flatten({"dataset": config["dataset"]}), config["dataset"]["_target_"]
    rules = {key: rule for key, rule in rules_for(kept).items() if key in kept}
    if problems := check_values({key: kept[key] for key in rules}, rules) + source_problems(kept):
        raise UserError("checkpoint: " + "\n".join(problems))
    own, given = inspect.signature(resolve("dataset", target)), set(config["dataset"]) - {"_target_"}
    try:
        own.bind(**dict.fromkeys(given & {*own.parameters} | given - {*SHARED}))
        inspect.signature(prepare).bind(None, **dict.fromkeys(given & {*SHARED}))
    except TypeError as error:
        raise UserError(f"checkpoint: its dataset's settings are not those of {target} ({error}).") from error
