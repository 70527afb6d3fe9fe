"""What the commands share: composing a configuration, saying what is wrong with it, and how a program ends."""

import contextlib
import errno
import gc
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import hydra
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vae_exp.config import CONF_DIR, UserError, check_values, closest, flatten, options, options_with, resolve
from vae_exp.rules import Rule

HYDRA_VERSION = "1.3"
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR)


@contextlib.contextmanager
def exits(program: str, config_name: str) -> Iterator[None]:
    """Exit code 1 with one message for what the user can mend; a traceback for our own bugs."""
    # Collect garbage more rarely, to the end: looking for it among what is imported takes half a second of the start.
    gc.set_threshold(10_000)
    logging.raiseExceptions = False  # a log that cannot be written is no reason to stop, or to fill stderr
    signal.signal(signal.SIGTERM, _exit_on_sigterm)
    try:
        yield
        sys.stdout.flush()  # here, where a reader that has gone can be told from a bug
    except UserError as error:
        sys.exit(f"{program}: {error}")
    except (HydraException, OmegaConfBaseException) as error:
        sys.exit(f"{program}: {_explain(error, program, config_name)}")
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # `vae-train --help | head`: Python would complain once more when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        sys.exit(f"{program}: {error.filename or 'a file'}: cannot be written ({error.strerror}).")
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):  # what is left is W&B's own ending; nothing to tell of it
            signal.signal(number, signal.SIG_DFL)


def run(program: str, config_name: str, rules: dict[str, Rule], about: str, work: Callable[[dict], None]) -> None:
    """A command whose keys are those of conf/CONFIG_NAME.yaml: compose and check them, then work.

    That file with its comments is also the command's help.
    """
    arguments = sys.argv[1:]
    with exits(program, config_name):
        if {"--help", "-h"} & set(arguments):
            keys = (CONF_DIR / f"{config_name}.yaml").read_text()
            print(f"{about}\n\n{keys.rstrip()}\n\nAlso: {program} --cfg job prints the configuration and does nothing.")
            return
        show = arguments[:2] == ["--cfg", "job"]
        overrides = arguments[2:] if show else arguments
        if flags := [argument for argument in overrides if argument.startswith("-")]:
            raise UserError(f"{flags[0]}: no such flag. There are --help and --cfg job; all else is KEY=VALUE.")
        cfg = compose(config_name, overrides)
        if show:
            print(OmegaConf.to_yaml(cfg))
            return
        config = resolve(OmegaConf.merge(cfg, {"checkpoint": _given(cfg, "checkpoint", program)}))
        if problems := check_values(flatten(config), rules):
            raise UserError("\n".join(problems))
        logging.basicConfig(level=logging.WARNING, format="%(message)s")
        work(config)


def _given(cfg: DictConfig, key: str, program: str) -> Any:
    if OmegaConf.is_missing(cfg, key):
        raise UserError(
            f"{key}: say which, such as `{program} {key}=outputs/.../best.pt`, a run's folder, or {key}=latest."
        )
    return cfg[key]


def compose(config_name: str, overrides: list[str]) -> DictConfig:
    """The configuration that conf/CONFIG_NAME.yaml and the command line make; that of training with Hydra's own."""
    try:
        with hydra.initialize_config_dir(str(CONF_DIR), version_base=HYDRA_VERSION):
            return hydra.compose(config_name, overrides, return_hydra_config=config_name == "config")
    except ValueError as error:  # Hydra's answer to model=null
        raise UserError(f"{' '.join(overrides)}: a group takes the name of an option. ({error})") from error


def without_hydra(cfg: DictConfig) -> DictConfig:
    return OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])


def _explain(error: Exception, program: str, config_name: str) -> str:
    """Hydra's complaint in the user's words, with the nearest names."""
    text = str(error)
    if isinstance(error, OverrideParseException):  # the grammar's own complaint, which does not name the key
        return f"{error.override}: Hydra cannot read it ({text.splitlines()[0]}). Quotes may help: 'KEY=\"VALUE\"'."
    if found := re.search(r"Could not find 'hydra/(launcher|sweeper)/(\w+?)(?:_local|_slurm)?'", text):
        kind, name = found.groups()
        known = {"launcher": ["basic", "joblib", "ray", "submitit"], "sweeper": ["basic", "optuna"]}[kind]
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
    known = [*flatten(OmegaConf.to_container(without_hydra(compose(config_name, []))))]
    if config_name != "config":
        return f"{key}: no such key.{closest(key, known)} `{program} --help` lists every key."
    if having := options_with(key):
        group = key.split(".")[0]
        return f"{key}: the chosen {group} has no such key; {group}={'|'.join(having)} has."
    groups = [path.name for path in CONF_DIR.iterdir() if path.is_dir() and path.name != "hydra"]
    hint = closest(key, [*known, *groups])
    return f"{key}: no such key.{hint} `vae-train --help` lists the groups, `vae-train --cfg job` every key."


def _exit_on_sigterm(*_: Any) -> None:
    sys.exit(128 + signal.SIGTERM)  # so that `with` blocks close, and W&B's file is whole
