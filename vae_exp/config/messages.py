"""Hydra composes a configuration; what it complains of is told in the user's words."""

import re
from typing import Any, cast

import hydra
from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vae_exp.config.check import CONF_DIR, closest, flatten, groups, options, options_with
from vae_exp.errors import UserError

HYDRA_VERSION = "1.3"
# What Hydra's plugins are called, and the extras of vae_exp that bring them.
PLUGINS = {"launcher": ["basic", "joblib", "ray", "submitit"], "sweeper": ["basic", "optuna"]}


def compose(config_name: str, overrides: list[str]) -> DictConfig:
    """The configuration that conf/CONFIG_NAME.yaml and the command line make; that of training with Hydra's own.

    Raises UserError where a group is given no name, and what Hydra raises for everything else: `explain` tells it.
    """
    try:
        with hydra.initialize_config_dir(str(CONF_DIR), version_base=HYDRA_VERSION):
            return hydra.compose(config_name, overrides, return_hydra_config=config_name == "config")
    except ValueError as error:  # Hydra's answer to model=null
        raise UserError(f"{' '.join(overrides)}: a group takes the name of an option. ({error})") from error


def without_hydra(cfg: DictConfig) -> DictConfig:
    """The configuration without Hydra's own part."""
    return OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])


def explain(error: Exception, program: str, config_name: str) -> str:
    """Hydra's complaint in the user's words, with the nearest names."""
    text = str(error)
    if isinstance(error, OverrideParseException):  # the grammar's own complaint, which does not name the key
        return f"{error.override}: Hydra cannot read it ({text.splitlines()[0]}). Quotes may help: 'KEY=\"VALUE\"'."
    if found := re.search(r"Could not find 'hydra/(launcher|sweeper)/(\w+?)(?:_local|_slurm)?'", text):
        kind, name = found.groups()
        known = PLUGINS[kind]
        if name not in known:
            return f"hydra/{kind}={name}: there is no such {kind}.{closest(name, known)} There are {', '.join(known)}."
        return f"hydra/{kind}={name}: not installed. It comes with: pip install 'vae_exp[{name}]'"
    if isinstance(error, MissingConfigException) and (found := re.search(r"Could not find '(\w+)/(.+?)'", text)):
        group, option = found.groups()
        hint = closest(option, options(group))
        own = "" if hint else " One of your own is found with --config-dir FOLDER."
        return f"{group}={option}: there is no such {group}.{hint} There are {', '.join(options(group))}.{own}"
    if found := re.search(r"Could not override '([^']+)'", text):
        return _unknown_key(found[1], program, config_name)
    cause = f"\n{error.__cause__}" if isinstance(error.__cause__, OmegaConfBaseException) else ""
    return text + cause


def _unknown_key(key: str, program: str, config_name: str) -> str:
    known = list(flatten(_keys_of(config_name)))
    if config_name != "config":
        return f"{key}: no such key.{closest(key, known)} `{program} --help` lists every key."
    if having := options_with(key):
        group = key.split(".")[0]
        return f"{key}: the chosen {group} has no such key; {group}={'|'.join(having)} has."
    hint = closest(key, [*known, *groups()])
    return f"{key}: no such key.{hint} `vae-train --help` lists the groups, `vae-train --cfg job` every key."


def _keys_of(config_name: str) -> dict[str, Any]:
    """The keys of a configuration as it is without overrides, some of whose values may be missing yet."""
    return cast("dict[str, Any]", OmegaConf.to_container(without_hydra(compose(config_name, []))))
