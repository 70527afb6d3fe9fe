"""From a checked configuration to objects: the only file that knows what a _target_ is."""

import copy
import functools
import hashlib
import importlib.util
import inspect
import os
import pkgutil
import sys
from collections.abc import Callable
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from vae_exp import config, conv_networks, datasets, image_folder, likelihoods, networks, speed
from vae_exp.config import UserError, check_values, flatten
from vae_exp.prepare import Data, prepare
from vae_exp.rules import OPTION_RULES, RULES
from vae_exp.vae import VAE

# How the code calls each _target_: so many arguments by place, and these by name. The rest is the config's.
CALLED_WITH = {
    "network": (0, ("x_shape", "z_dim", "context_dim")),
    "likelihood": (0, ()),
    "objective": (2, ()),
    "dataset": (0, ()),
    "optimizer": (1, ()),
    "scheduler": (2, ()),
}
# What a checkpoint, which may be a stranger's, may name.
OURS = {
    "network": (networks, conv_networks),
    "likelihood": (likelihoods,),
    "dataset": (datasets, image_folder),
}


SHARED = inspect.signature(prepare).parameters  # the options of every dataset, and its source


def partial(config: dict, group: str) -> Callable:
    """The group's _target_ with its settings filled in, to be called with what only the code knows.

    A _target_ deeper down, in a checkpoint of a stranger's, is a plain value and never called. Hydra's instantiate
    would do for the rest, but what it returns checks its target at every call: a thirtieth of the tutorial's step.
    """
    settings = {key: value for key, value in config[group].items() if not key.startswith("_")}
    return functools.partial(resolve(group, config[group]["_target_"]), **copy.deepcopy(settings))


def check(cfg: DictConfig, combinations: bool = True) -> dict:
    """The resolved configuration, after every check that needs no data. Raises UserError."""
    checked = config.check(cfg, combinations)
    _check_calls(checked)
    speed.check(checked["precision"], checked["compile"], device(checked["device"]))
    return checked


def _check_calls(config: dict) -> None:
    """Every _target_ exists and takes the arguments given to it, and the optimizer accepts their values."""
    for group, (by_place, by_name) in CALLED_WITH.items():
        target = config[group]["_target_"]
        signature = inspect.signature(resolve(group, target))
        given = {key: value for key, value in config[group].items() if not key.startswith("_")}
        if group == "dataset":  # what all datasets share goes to prepare
            given = {key: value for key, value in given.items() if key in signature.parameters or key not in SHARED}
        try:
            signature.bind(*[None] * by_place, **dict.fromkeys(by_name), **given)
        except TypeError as error:
            settings = [name for name in list(signature.parameters)[by_place:] if name not in by_name]
            settings += [name for name in list(SHARED)[1:] if group == "dataset" and name not in settings]
            raise UserError(f"{group}: {target} {error}; its settings are {', '.join(settings)}.") from error
    target = config["optimizer"]["_target_"]
    try:
        step = optimizer(config, nn.Linear(1, 1)).step
    except Exception as error:  # nothing of ours has run: it is the optimizer that refuses
        raise UserError(f"optimizer: {target} refuses its settings: {error}") from error
    closure = inspect.signature(step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise UserError(f"optimizer: {target} evaluates the loss several times a step, which this loop does not do.")


def resolve(group: str, target: str) -> Callable:
    """The function or class that a _target_ names. Raises UserError where it cannot be had.

    A module that is not installed is looked for where the user stands: last, so that no file there hides another.
    """
    here, module = os.getcwd(), target.partition(".")[0]  # noqa: PTH109
    try:
        if module not in sys.modules and here not in sys.path and importlib.util.find_spec(module) is None:
            sys.path.append(here)
        found = pkgutil.resolve_name(target)
        inspect.signature(found)
    except (ImportError, AttributeError, TypeError, ValueError, SyntaxError) as error:
        raise UserError(f"{group}._target_={target}: there is no such function or class ({error}).") from error
    return found


def device(name: str) -> torch.device:
    """auto is the fastest device there is. Raises UserError for one that is not there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, available in there.items() if available))
    if not there[name]:
        raise UserError(f"device={name}: PyTorch {torch.__version__} finds no such device here. Use device=auto.")
    return torch.device(name)


def dataset(config: dict) -> Data:
    """The dataset, downloaded on first use, with the options that all datasets share applied to it.

    Raises UserError where it cannot be had.
    """
    settings = config["dataset"]
    own = inspect.signature(resolve("dataset", settings["_target_"])).parameters
    read = {"_target_": settings["_target_"]} | {key: value for key, value in settings.items() if key in own}
    shared = {key: value for key, value in settings.items() if key in SHARED}
    return prepare(partial({"dataset": read}, "dataset")(), **shared)


def check_labels(config: dict, data: Data) -> None:
    """Raises UserError for a conditional model of data that turn out to have no labels."""
    if config["model"]["conditional"] and not data.n_classes:
        raise UserError(
            f"model.conditional=true: dataset={data.name} has no labels here. An image folder has them where every "
            "image lies in a folder of its class, CelebA with dataset.attribute=Smiling. Or use model=vanilla."
        )


def model(config: dict, x_shape: tuple[int, int, int], n_classes: int) -> VAE:
    """The VAE for images of x_shape. The labels of an unconditional model have width 0."""
    z_dim, width = config["model"]["z_dim"], n_classes if config["model"]["conditional"] else 0
    encoder, decoder = partial(config, "network")(x_shape=x_shape, z_dim=z_dim, context_dim=width)
    return VAE(encoder, decoder, partial(config, "likelihood")(), z_dim, width, config["model"]["stochastic"])


def model_from(state: dict[str, Any], trust: bool = False) -> VAE:
    """Rebuild a checkpoint's model with its weights, after its sizes were compared with theirs, which costs nothing.

    Raises UserError for a _target_ that is not vae_exp's own, unless the file and what it names are trusted, and where
    the weights are not those of the config.
    """
    for group in ("network", "likelihood"):
        _only_ours(state["config"], group, trust)
    _only_known_values(state["config"])
    given = {name: tuple(weights.shape) for name, weights in state["model"].items()}
    try:
        with torch.device("meta"):  # shapes without numbers: a small file may ask for a huge model
            empty = model(state["config"], tuple(state["x_shape"]), state["n_classes"])
    except (TypeError, ValueError, KeyError, RuntimeError, ArithmeticError) as error:
        raise UserError(f"checkpoint: its config gives no model ({str(error).splitlines()[0]}).") from error
    expected = {name: tuple(weights.shape) for name, weights in empty.state_dict().items()}
    if wrong := [name for name in expected | given if expected.get(name) != given.get(name)]:
        shown = f"{wrong[0]} is {given.get(wrong[0], 'missing')} and should be {expected.get(wrong[0], 'absent')}"
        raise UserError(f"checkpoint: its weights are not those of the model in its config: {shown}.")
    rebuilt = model(state["config"], tuple(state["x_shape"]), state["n_classes"])
    rebuilt.load_state_dict(state["model"])
    return rebuilt


def dataset_from(state: dict[str, Any], trust: bool = False) -> Data:
    """The dataset that a checkpoint's model was trained on. Raises UserError as model_from and dataset do."""
    _only_ours(state["config"], "dataset", trust)
    return dataset(state["config"])


def _only_known_values(config: dict) -> None:
    """Raises UserError for values that training would have refused."""
    known = RULES | OPTION_RULES
    kept = {group: config.get(group) for group in ("model", "network", "likelihood")}
    flat = {key: value for key, value in flatten(kept).items() if key in known}
    needed = [key for key in RULES if key.startswith("model.")]
    if problems := check_values(flat, {key: known[key] for key in [*flat, *needed]}):
        raise UserError("checkpoint: " + "\n".join(problems))


def _only_ours(config: dict, group: str, trust: bool) -> None:
    settings = config.get(group)
    # Hydra would obey a _recursive_ here, and then call what is named deeper down.
    if not isinstance(settings, dict) or any(
        (key.startswith("_") and key != "_target_") or not _is_plain(value) for key, value in settings.items()
    ):
        raise UserError(f"checkpoint: its {group} is not a _target_ with plain values.")
    target = str(settings.get("_target_"))
    if trust:
        resolve(group, target)
        return
    home, _, name = target.rpartition(".")
    module = next((module for module in OURS[group] if module.__name__ == home), None)
    if module is None or getattr(getattr(module, name, None), "__module__", None) != home:
        raise UserError(
            f"{group}._target_={target}: the checkpoint names code that is not vae_exp's, and using it would run that "
            "code. Where you know both, say trust=true, or vae_exp.load(..., trust=True), in the folder of that code."
        )


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def optimizer(config: dict, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of the model's parameters."""
    return partial(config, "optimizer")(model.parameters())


def generator(seed: int, stream: str, device: torch.device | str = "cpu") -> torch.Generator:
    """A stream of random numbers of its own for each use, so that a change in one moves no other."""
    digest = hashlib.sha256(f"{stream} {seed}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:6], "big"))
