"""Checks of a configuration before anything is started. Nothing here imports torch."""

import contextlib
import difflib
import os
import re
import shlex
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vae_exp.config.combinations import check_combinations, check_metric, is_ours, source_problems
from vae_exp.config.keys import Config
from vae_exp.config.kinds import RUN_PATH, Rule, is_path
from vae_exp.config.moved import renamed
from vae_exp.config.rules import DATASET_RULES, OPTION_RULES, RULES
from vae_exp.errors import UserError

_PACKAGE = Path(__file__).parents[1]
# An installed package carries its own copy of conf/; a checkout has it at the top level.
CONF_DIR = next(path for path in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if path.is_dir())

LONGEST_SHOWN = 500  # characters of a value in a message
EVERY_RULE = RULES | OPTION_RULES | DATASET_RULES
# A dictionary given for these is refused whole; what has keys of its own is not one of them.
LEAVES = {key for key in EVERY_RULE if not any(other.startswith(f"{key}.") for other in EVERY_RULE)}
DATA_PATHS = ("root", "cache")  # of a dataset
CALLS = ("network", "likelihood", "objective", "dataset", "optimizer", "scheduler")  # groups with a _target_


def resolve(cfg: DictConfig) -> dict[str, Any]:
    """Return the configuration as plain values. Raises UserError for an interpolation that leads nowhere."""
    try:
        return cast("dict[str, Any]", OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True))
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key}: {str(error).splitlines()[0]}") from error


def check(cfg: DictConfig, combinations: bool = True) -> Config:
    """Check every value against its rule, and their combinations, and return the resolved configuration.

    Its paths mean the same from any folder. For a sweep only the values of its first job are checked: other jobs may
    combine them better. Raises UserError naming each wrong key, its value and what is allowed.
    """
    config = renamed(resolve(cfg))
    config.pop("published", None)  # what a preset claims is no setting: vae-reproduce reads it
    problems: list[str] = []
    for group in CALLS:
        if not isinstance(config.get(group), dict) or not isinstance(config[group].get("_target_"), str):
            problems.append(f"{group}: choose one of {', '.join(options(group))}")
    flat = flatten(config, LEAVES)
    rules = rules_for(flat)
    ruled = {key: value for key, value in flat.items() if key in rules or key.split(".")[0] not in CALLS}
    problems += check_values(ruled, rules, _copies_of_wrong_ones(cfg, ruled, rules))
    if combinations:
        problems += check_combinations(flat)
    if flat.get("dataset.binarize") == "larochelle" and flat.get("dataset.source") != "mnist":
        problems.append("dataset.binarize=larochelle: these files are MNIST's; use it with dataset=mnist.")
    problems += source_problems(flat)
    if flat.get("sweep.prune"):
        size = flat.get("dataset.val_size")
        by, why = f"sweep.prune={flat['sweep.prune']}", f"dataset.val_size={size}"
        problems += check_metric(by, str(flat.get("sweep.metric")), size != 0, why)
    if problems:
        raise UserError("\n".join(problems))
    return cast("Config", from_anywhere(config))


def from_anywhere(config: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration with absolute paths to its data, which were relative to the current folder.

    ~ stays: it means the same everywhere. In a user's own dataset such a key is a path only if that path exists.
    """
    dataset = config.get("dataset")
    if not isinstance(dataset, dict):
        return config
    ours = is_ours({"dataset._target_": dataset.get("_target_")}, "dataset")
    paths = {key: dataset[key] for key in DATA_PATHS if is_path(dataset.get(key))}
    placed = {key: absolute(path) for key, path in paths.items() if ours or Path(path).exists()}
    return config | {"dataset": dataset | placed}


def absolute(path: str, folder: Path | None = None) -> str:
    """Return the path as one that means the same from any folder; relative ones start at `folder`, or the current."""
    if path.startswith("~"):
        return path
    whole = str((folder or Path.cwd()) / path)
    plain = os.path.normpath(whole)
    return plain if os.path.realpath(plain) == os.path.realpath(whole) else whole  # a link makes a/../b another place


def path_of(key: str, value: Any) -> Path:
    """Return the path that a key gives, for keys without a rule. Raises UserError if the value is not a path."""
    if problems := check_values({key: value}, {key: RUN_PATH}):
        raise UserError(problems[0])
    return Path(str(value)).expanduser()


def _copies_of_wrong_ones(cfg: DictConfig, flat: Mapping[str, Any], rules: Mapping[str, Rule]) -> set[str]:
    """Return the keys that are interpolations, such as ${seed}, of a wrong key: the error is reported only once."""
    written = flatten(cast("dict[str, Any]", OmegaConf.to_container(cfg)), LEAVES)
    wrong = {key for key, value in flat.items() if key in rules and not rules[key].allows(value)}
    sources = {key: re.fullmatch(r"\$\{([\w.]+)\}", str(written.get(key))) for key in wrong}
    return {key for key, source in sources.items() if source is not None and source[1] in wrong}


def rules_for(flat: Mapping[str, Any]) -> dict[str, Rule]:
    """Return the rules of every configuration, and those of the options that are present.

    Options of a user's own _target_ mean what the user says: rules bind only vae_exp's and torch's. What all datasets
    share goes to `prepare`, whoever made the dataset.
    """
    options_there = {
        key: rule for key, rule in OPTION_RULES.items() if key in flat and is_ours(flat, key.split(".")[0])
    }
    return RULES | options_there | {key: rule for key, rule in DATASET_RULES.items() if key in flat}


def check_values(flat: Mapping[str, Any], rules: Mapping[str, Rule], copies: Iterable[str] = ()) -> list[str]:
    """Return what is wrong with each key: missing, unknown, or a value that its rule does not allow."""
    problems = [f"{key}: is missing. It takes {rule.words}." for key, rule in rules.items() if key not in flat]
    for key, value in flat.items():
        rule = rules.get(key)
        if rule is None:
            problems.append(f"{key}: no such key.{closest(key, rules)}")
        elif key not in copies and not rule.allows(value):
            hint = _sweep_hint(key, value, rule) or _text_hint(value, rule)
            problems.append(f"{key}={shortened(as_typed(value))}: it takes {rule.words}.{hint}")
    return problems


def as_typed(value: Any) -> str:
    """Return a value as it is written on a command line."""
    if isinstance(value, list):
        return f"[{','.join(map(as_typed, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{as_typed(item)}" for key, item in value.items()) + "}"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def quoted(text: object, mark: str = "'") -> str:
    """Return text quoted for Hydra's command line, whatever is in it."""
    return mark + str(text).replace("\\", "\\\\").replace(mark, f"\\{mark}") + mark


def literal(path: object, mark: str = "'") -> str:
    """Return a path quoted for Hydra's command line: a folder called ${oc.env:HOME} is not an interpolation."""
    return quoted(path, mark).replace("${", "\\${")


def as_argument(key: str, path: object) -> str:
    """Return KEY=PATH as typed in a shell, with the quotes that the shell and Hydra need; shlex reads it back."""
    text, is_number = str(path), False
    with contextlib.suppress(ValueError):
        is_number = isinstance(float(text), float)
    if is_number or text.lower() in ("null", "true", "false") or not re.fullmatch(r"[\w./+-]+( [\w./+-]+)*", text):
        text = literal(text, '"')
    return shlex.quote(f"{key}={text}")


def _sweep_hint(key: str, value: Any, rule: Rule) -> str:
    """Return what to type for one run with each of several values."""
    if not isinstance(value, list) or not value or not all(map(rule.allows, value)):
        return ""
    return f" A run for each value is vae-train -m {key}={','.join(map(as_typed, value))}"


def _text_hint(value: Any, rule: Rule) -> str:
    """Return a hint on why a number is text: it is in quotes, or comes from the environment."""
    for read in (int, float, {"true": True, "false": False}.__getitem__):
        with contextlib.suppress(ValueError, KeyError):
            if isinstance(value, str) and rule.allows(read(value)):
                return f" This {value} is text: leave its quotes out, or decode it: ${{oc.decode:${{oc.env:NAME}}}}"
    return ""


def shortened(text: str) -> str:
    """Return text for a message, which shows only the beginning of a very long one."""
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}... ({len(text):,} characters)"


def flatten(values: Mapping[str, Any], leaves: Collection[str] = (), prefix: str = "") -> dict[str, Any]:
    """Return {"model.z_dim": 20} for {"model": {"z_dim": 20}}; the values of the keys in `leaves` stay nested."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict) and value and path not in leaves:
            flat |= flatten(value, leaves, f"{path}.")
        else:
            flat[path] = value
    return flat


def options(group: str, folder: Path = CONF_DIR) -> list[str]:
    """Return the options of a config group, from the names of their files."""
    return sorted(path.stem for path in (folder / group).glob("*.yaml"))


def groups(folder: Path = CONF_DIR) -> list[str]:
    """Return the config groups, from the names of their folders."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name != "hydra")


def options_with(key: str) -> list[str]:
    """Return the options of a group that have the key, such as sgd and rmsprop for optimizer.momentum."""
    group, _, name = key.partition(".")
    return [option for option in options(group) if name in OmegaConf.load(CONF_DIR / group / f"{option}.yaml")]


def closest(word: str, known: Collection[str]) -> str:
    """Return a sentence with the known names nearest to a misspelt one, or nothing if none is near.

    Keys are compared in full and by their last part, since people write z_dim=10 for model.z_dim=10.
    """
    last = word.rsplit(".", 1)[-1]
    near = difflib.get_close_matches(word, known, n=3, cutoff=0.7)
    near += [key for key in known if key.rsplit(".", 1)[-1] == last]
    near += [key for key in known if difflib.get_close_matches(last, [key.rsplit(".", 1)[-1]], cutoff=0.75)]
    return f" Did you mean {' or '.join(list(dict.fromkeys(near))[:3])}?" if near else ""
