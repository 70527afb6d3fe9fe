"""Build what a checked configuration describes."""

import contextlib
import copy
import functools
import hashlib
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral
from pathlib import Path
from typing import Any, cast

import torch
from omegaconf import DictConfig
from torch import nn

from vae_exp import distributed, torchrun_env
from vae_exp.config import checks, targets
from vae_exp.config.checks import (
    CALLS,
    check_devices,
    check_values,
    closest,
    dataset_problems,
    flatten,
    is_ours,
    rules_for,
)
from vae_exp.config.schema import Config, Rule, is_number, rule_of
from vae_exp.datasets import Conditions, Data, Split, prepare
from vae_exp.datasets.prepare import require_source
from vae_exp.errors import UserError
from vae_exp.networks.mlp import IMAGES, glorot_init, he_init, mean_image
from vae_exp.vae import VAE


def device(name: str, processes: int | None = None) -> torch.device:
    """Return the device of this process, or of the last of so many here; auto is the fastest. Raises UserError."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    rank, size = torchrun_env.local_rank() if processes is None else (processes - 1, processes)
    return torch.device(choose(name, available, torch.cuda.device_count(), rank, size))


def agreed(config: Mapping[str, Any]) -> int:
    """Return the number of processes that were started for the run. Raises UserError if devices=N is another."""
    requested, started = config["devices"], distributed.world_size()
    if requested not in (1, started):
        kind = "this is one process" if started == 1 else f"these are {started} processes"
        how = f"vae-train devices={requested} starts so many, or torchrun --nproc-per-node={requested}"
        raise UserError(f"devices={requested}: {kind}. {how} for a program of your own.")
    if problems := check_devices(flatten({**config, "devices": started})):
        raise UserError("\n".join(problems))
    return started


def choose(name: str, available: Mapping[str, bool], n_gpus: int, process: int, processes: int) -> str:
    """Return the device of one of a run's processes on a machine: cuda:1 for the second. Raises UserError."""
    kind, _, number = name.partition(":")
    if kind == "auto":
        kind = next(kind for kind, is_available in available.items() if is_available)
        kind = "cpu" if kind == "mps" and processes > 1 else kind
    if not available[kind]:
        raise UserError(f"device={name}: PyTorch {torch.__version__} finds no such device here. Use device=auto.")
    if processes > 1 and (kind == "mps" or number):
        raise UserError(f"device={name}: is one device, and {processes} processes need one each. Use cuda or cpu.")
    index = int(number or process)
    if kind == "cuda" and index >= n_gpus:
        if number:
            raise UserError(f"device={name}: the GPUs here are cuda:0 to cuda:{n_gpus - 1}.")
        raise UserError(f"devices={processes}: the GPUs here are {n_gpus}. Use devices={n_gpus}, or device=cpu.")
    return f"cuda:{index}" if kind == "cuda" and (number or processes > 1) else kind


def job_device(name: str, number: int, n_gpus: int | None = None) -> str:
    """Return the device of one of the jobs that run side by side on this machine: the GPUs take turns."""
    n_gpus = torch.cuda.device_count() if n_gpus is None else n_gpus
    return f"cuda:{number % n_gpus}" if name in ("auto", "cuda") and n_gpus > 1 else name


# What the code calls a group's _target_ with: so many arguments by position, and these by name.
BY_POSITION = {"objective": 2, "optimizer": 1, "scheduler": 2}
BY_NAME = {
    "network": ("x_shape", "z_dim", "context_dim"),
    "posterior": ("z_dim",),
    "prior": ("x_shape", "z_dim", "n_classes"),
}
PREPARE = {
    name: option for name, option in inspect.signature(prepare).parameters.items() if option.kind == option.KEYWORD_ONLY
}
MARKED = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")  # methods of PyTorch's optimizers
# Settings of a group that are used elsewhere: its function gets them only if it takes them.
USED_ELSEWHERE: dict[str, Iterable[str]] = {"dataset": PREPARE, "network": ("init",), "likelihood": ("mean",)}
GIVES = ("n_outputs", "outputs_per_pixel")  # numbers that a network may take: posterior and likelihood know them


def partial(config: Mapping[str, Any], group: str) -> functools.partial[Any]:
    """Return the group's _target_ with its settings filled in; unlike Hydra's, it calls no _target_ deeper down."""
    function = resolve(group, config[group]["_target_"])
    parameters, elsewhere = inspect.signature(function).parameters, USED_ELSEWHERE.get(group, ())
    settings = {key: value for key, value in config[group].items() if not key.startswith("_")}
    settings = {key: value for key, value in settings.items() if key in parameters or key not in elsewhere}
    return functools.partial(function, **copy.deepcopy(settings))


def resolve(group: str, target: str) -> Callable[..., Any]:
    """Return the function or class that a _target_ names, also in the current folder. Raises UserError."""
    module, _, name = target.rpartition(".")
    try:
        targets.look_here_too(target.partition(".")[0])
        try:  # what a package exports comes before a file of that name: vae_exp.networks.mlp is a function
            function = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError):
            function = pkgutil.resolve_name(target)  # a name inside a class
        inspect.signature(function)
    except (ImportError, AttributeError, TypeError, ValueError, SyntaxError) as error:
        hint = f" Code of your own is found in the current folder, {Path.cwd()}." * (not is_ours(target))
        raise UserError(f"{group}._target_={target}: there is no such function or class ({error}).{hint}") from error
    return cast("Callable[..., Any]", function)


def check(cfg: DictConfig, combinations: bool = True) -> Config:
    """Check everything that needs no data, and return the resolved configuration. Raises UserError."""
    config = checks.check(cfg, combinations)
    for group in CALLS:
        _check_call(group, cast("dict[str, Any]", config)[group])
    _check_schedule(config)
    _check_optimizer(config)
    device(config["device"])
    return config


def _check_call(group: str, settings: dict[str, Any]) -> None:
    target, by_position, by_name = settings["_target_"], BY_POSITION.get(group, 0), BY_NAME.get(group, ())
    function = partial({group: settings}, group)
    signature = inspect.signature(function.func)
    by_name += tuple(name for name in GIVES if group == "network" and name in signature.parameters)
    try:
        signature.bind(*[None] * by_position, **dict.fromkeys(by_name), **function.keywords)
    except TypeError as error:
        named = [name for name, parameter in signature.parameters.items() if parameter.kind != parameter.VAR_KEYWORD]
        known = [name for name in named[by_position:] if name not in by_name]
        unknown = [] if len(named) < len(signature.parameters) else sorted(function.keywords.keys() - known)
        hint = "".join(closest(name, known) for name in unknown)
        problem = f"takes no {', '.join(unknown)}.{hint} Its" if unknown else f"{error}; its"
        known += [name for name in USED_ELSEWHERE.get(group, ()) if is_ours(target) and name not in known]
        problem = f"{group}: {target} {problem} settings are {', '.join(known) or 'none'}."
        raise UserError(problem + _hint_of_option(group, set(unknown))) from error
    if not is_ours(target):
        _check_hints(group, function)


def _check_hints(group: str, function: functools.partial[Any]) -> None:
    rules: dict[str, Rule] = {}
    settings = function.keywords
    with contextlib.suppress(Exception):  # hints may be any text, and a function works without them
        for name, parameter in inspect.signature(function.func, eval_str=True).parameters.items():
            if name in settings and settings[name] != parameter.default and (rule := rule_of(parameter.annotation)):
                rules[name] = rule
    if problems := check_values({name: settings[name] for name in rules}, rules):
        raise UserError("\n".join(f"{group}.{problem}" for problem in problems))


def _hint_of_option(group: str, unknown: set[str]) -> str:
    """Return what to do about settings that a preset made for another option of the group."""
    for key in sorted(f"{group}.{name}" for name in unknown):
        if names := checks.options_with(key):
            return f"\n{key} is of {group}={'|'.join(names)}. Where a preset sets it, ~{key} removes it."
    return ""


def _check_schedule(config: Config) -> None:
    target, epochs = config["scheduler"]["_target_"], config["epochs"]
    for epoch in (0.0, epochs / 2, float(epochs)):
        try:
            factor = partial(config, "scheduler")(epoch, epochs)
        except Exception as error:  # nothing of the run has begun: it is the schedule that refuses
            reason = f"{type(error).__name__}: {error}"
            raise UserError(f"scheduler: {target} fails at epoch {epoch:g}: {reason}") from error
        if not is_number(factor):
            kind = f"{type(factor).__name__} at epoch {epoch:g}"
            raise UserError(f"scheduler._target_={target}: it returns {kind}, not a factor on optimizer.lr.")


def _check_optimizer(config: Config) -> None:
    target = config["optimizer"]["_target_"]
    try:
        step = optimizer(config, nn.Linear(1, 1)).step
    except Exception as error:  # nothing of ours has run: it is the optimizer that refuses
        raise UserError(f"optimizer: {target} refuses its settings: {error}") from error
    closure = inspect.signature(step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise UserError(f"optimizer: {target} evaluates the loss several times a step, which this loop does not do.")


def check_stored(config: Mapping[str, Any], *groups: str) -> None:
    """Raise UserError for values of these groups of a checkpoint that training would have refused."""
    flat = flatten({group: config.get(group) for group in groups})
    rules = {key: rule for key, rule in rules_for(flat).items() if key.split(".")[0] in groups}
    problems = check_values({key: flat[key] for key in rules if key in flat}, rules)
    if problems := [*problems, *dataset_problems(flat)]:
        raise UserError("checkpoint: " + "\n".join(problems))


def check_dataset(config: Mapping[str, Any]) -> None:
    """Raise UserError for settings of a checkpoint's dataset that it does not take, or training would have refused."""
    check_stored(config, "dataset")
    try:
        _check_call("dataset", config["dataset"])
    except UserError as error:
        raise UserError(f"checkpoint: {error}") from error


def dataset(config: Mapping[str, Any]) -> Data:
    """Return the dataset, downloaded on first use. Raises UserError for missing or damaged files, or unfit options."""
    settings = config["dataset"]
    source = require_source(partial(config, "dataset")(), settings["_target_"])
    return prepare(source, **{key: value for key, value in settings.items() if key in PREPARE})


def model(
    config: Mapping[str, Any],
    x_shape: tuple[int, int, int],
    n_classes: int,
    train: Split | None = None,
    conditions: Conditions | None = None,
) -> VAE:
    """Return the VAE for images of x_shape; with init=glorot its outputs begin at the mean of training images."""
    z_dim, n_classes = config["model"]["z_dim"], n_classes if config["model"]["conditional"] else 0
    contexts = conditions.table() if conditions and n_classes else None
    width = n_classes if contexts is None else contexts.shape[1]
    posterior, likelihood = partial(config, "posterior")(z_dim=z_dim), partial(config, "likelihood")()
    for group, function, of in (("posterior", posterior, "encoder"), ("likelihood", likelihood, "decoder")):
        if not callable(function):
            target = config[group]["_target_"]
            raise UserError(f"{group}._target_={target}: it must return a function of the {of}'s outputs.")
    encoder, decoder = _networks(config, x_shape, z_dim, width, posterior, likelihood)
    if config["network"].get("init") == "glorot":
        mean = None if train is None else mean_image(train[:IMAGES].x)
        glorot_init(encoder, decoder, likelihood, mean)
    if config["network"].get("init") == "he":
        he_init(encoder, decoder)
    prior = partial(config, "prior")(x_shape=x_shape, z_dim=z_dim, n_classes=n_classes)
    if missing := [name for name in ("log_prob", "sample") if not callable(getattr(prior, name, None))]:
        raise UserError(f"prior._target_={config['prior']['_target_']}: what it returns has no {missing[0]}.")
    stochastic = config["model"]["stochastic"]
    vae = VAE(encoder, decoder, likelihood, z_dim, n_classes, stochastic, posterior, prior, contexts)
    if train is not None and hasattr(prior, "start_from"):
        prior.start_from(train)
    return vae


def _networks(
    config: Mapping[str, Any], x_shape: tuple[int, int, int], z_dim: int, width: int, posterior: Any, likelihood: Any
) -> tuple[nn.Module, nn.Module]:
    """Return an encoder and a decoder that give as many numbers as posterior and likelihood take. Raises UserError."""
    make, target = partial(config, "network"), f"network._target_={config['network']['_target_']}"
    taken, parameters = {}, inspect.signature(make.func).parameters
    for name, group, family, usual, gives in (
        ("n_outputs", "posterior", posterior, 2 * z_dim, "an image, and an encoder gives 2 model.z_dim"),
        ("outputs_per_pixel", "likelihood", likelihood, 1, "a pixel, and a decoder gives one"),
    ):
        needed = getattr(family, name, usual)
        if not isinstance(needed, Integral) or isinstance(needed, bool) or needed < 1:
            own = f"{group}._target_={config[group]['_target_']}"
            raise UserError(f"{own}: its {name} must be a whole number, 1 or more, not {needed!r}.")
        if name in parameters:
            taken[name] = needed
        elif needed != usual:
            why = f"{config[group]['_target_']} takes {needed} numbers of {gives}"
            raise UserError(f"{target}: {why} unless its function has an argument {name}.")
    networks = make(x_shape=x_shape, z_dim=z_dim, context_dim=width, **taken)
    pair = networks if isinstance(networks, tuple | list) else ()
    if [isinstance(module, nn.Module) for module in pair] != [True, True]:
        returned = f"{len(pair)} values" if pair else type(networks).__name__
        raise UserError(f"{target}: it must return two modules, an encoder and a decoder, and returned {returned}.")
    return networks[0], networks[1]


def model_of(config: Mapping[str, Any], data: Data, z_dim: int) -> VAE:
    """Return the VAE of a configuration and its data with another z_dim."""
    config = {**config, "model": {**config["model"], "z_dim": z_dim}}
    return model(config, data.x_shape, data.n_classes, conditions=data.conditions)


def optimizer(config: Mapping[str, Any], model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer of the weights that are not frozen."""
    for name in MARKED:  # marked to stay out of compiled steps, by importing the compiler, 1.2 s; ours stay out anyway
        method = getattr(getattr(torch.optim.Optimizer, name), "__wrapped__", None)
        if method is not None and not hasattr(method, "__dynamo_disable"):
            method.__dynamo_disable = method
    learned = [weights for weights in model.parameters() if weights.requires_grad]
    return cast("torch.optim.Optimizer", partial(config, "optimizer")(learned))


def generator(seed: int, stream: str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a random generator of its own for each use, so that a change in one does not affect the others."""
    digest = hashlib.sha256(f"{stream} {seed}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:6], "big"))
