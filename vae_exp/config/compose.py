"""Compose configurations with Hydra, and say its complaints in the user's words."""

import contextlib
import re
from typing import Any, cast

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vae_exp.config.checks import CONF_DIR, closest, flatten, groups, options, options_with, quoted
from vae_exp.config.schema import DATASET_RULES, EVALUATE_RULES, GENERATE_RULES, RULES, is_number
from vae_exp.errors import UserError, printable

HYDRA_VERSION = "1.3"
# What Hydra's plugins are called, and the extras of vae_exp that bring them.
TEXT_OR_NOT = RULES | DATASET_RULES | EVALUATE_RULES | GENERATE_RULES  # not those of options, which may be a user's own
PLUGINS = {"launcher": ["basic", "joblib", "ray", "submitit"], "sweeper": ["basic", "optuna"]}


def parse(overrides: list[str]) -> list[Override]:
    """Parse overrides with Hydra's grammar."""
    return OverridesParser.create().parse_overrides(overrides)


def readable(overrides: list[str]) -> list[str]:
    """Return the overrides, with quotes around values that Hydra's grammar cannot read.

    Such a value is a path with a space or an é. Text that Hydra would take for a number or a truth value, such as
    a class +1 or true, is quoted too.

    The shell passes such a value in one piece; nobody should have to quote it twice. Raises UserError for a word that
    is not KEY=VALUE.
    """
    return [_readable(_with_text_quoted(word)) for word in overrides]


def _with_text_quoted(word: str) -> str:
    """Return the word with quotes around each text that Hydra would read differently from what was typed.

    Numbers that are written as Python writes them stay numbers, as in configurations of older runs.
    """
    key, _, value = word.partition("=")
    rule = TEXT_OR_NOT.get(key.lstrip("+"))
    if rule is None or "${" in value:
        return word
    if rule.allows(["text"]):
        lists = [part.strip() for part in _split(value)]
        if not all(part.startswith("[") and part.endswith("]") for part in lists):
            return _inside_of_choice(word)
        return f"{key}={','.join(f'[{_texts(part[1:-1])}]' for part in lists)}"
    if rule.allows("text"):
        with contextlib.suppress(HydraException):  # what cannot be read is one text, its commas too
            parse([word])
            return (
                _inside_of_choice(word) if SWEEP_OF.fullmatch(value) else f"{key}={_texts(value, null=key != 'label')}"
            )
    return word


SWEEP_OF = re.compile(r"((?:choice|shuffle|sort)\()(.*)\)", re.DOTALL)


def _inside_of_choice(word: str) -> str:
    """Return a sweep such as choice(+1,0) with the texts in it quoted; any other word unchanged."""
    key, _, value = word.partition("=")
    found = SWEEP_OF.fullmatch(value)
    return f"{key}={found[1]}{_with_text_quoted(f'{key}={found[2]}').partition('=')[2]})" if found else word


def _texts(value: str, null: bool = False) -> str:
    """Return comma-separated values, quoted if Hydra would read another text; `null` says that null is not text."""
    return ",".join(_text(part, null) for part in _split(value))


def _text(typed: str, null: bool) -> str:
    text = typed.strip()
    if not text or text[0] in "'\"[{" or re.fullmatch(r"\w+\(.*\)", text):  # quoted, no text, or a function of Hydra's
        return typed
    try:
        read = parse([f"x={text}"])[0].value()
    except HydraException:
        return quoted(text)
    is_as_typed = isinstance(read, str) or (is_number(read) and str(read) == text) or (read is None and null)
    return typed if is_as_typed else quoted(text)


def _split(values: str) -> list[str]:
    """Split at the commas that are inside neither quotes nor brackets."""
    parts, depth, quote, before = [""], 0, "", ""
    for letter in values:
        if quote:
            quote = "" if letter == quote and before != "\\" else quote
        elif letter in "'\"":
            quote = letter
        else:
            depth += (letter in "[{(") - (letter in ")}]")
        if letter == "," and not quote and not depth:
            parts.append("")
        else:
            parts[-1] += letter
        before = letter
    return parts


def _readable(word: str) -> str:
    key, sign, value = word.partition("=")
    try:
        parse([word])
        return word
    except HydraException as error:
        with contextlib.suppress(HydraException):
            if sign and parse([f"{key}={quoted(value)}"]):
                return f"{key}={quoted(value)}"
        reason = str(error).splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{printable(word)}: what is typed has the form KEY=VALUE. ({printable(reason)})") from error


def compose(config_name: str, overrides: list[str]) -> DictConfig:
    """Return the configuration that conf/CONFIG_NAME.yaml and the command line make; vae-train's has Hydra's part.

    Raises UserError for a group without a name, and Hydra's own errors for everything else: `explain` rewords them.
    """
    try:
        with hydra.initialize_config_dir(str(CONF_DIR), version_base=HYDRA_VERSION):
            return hydra.compose(config_name, overrides, return_hydra_config=config_name == "config")
    except ConfigCompositionException as error:
        if not str(error).startswith("Error resolving interpolation"):
            raise
        # A group's option is chosen before there are any values to refer to.
        chosen = [word.partition("=") for word in overrides if "${" in word]
        wrong = [(key, value) for key, _, value in chosen if options(key) or key.startswith("hydra/")]
        if not wrong:
            raise
        key, value = wrong[0]
        named = f" Choose one of {', '.join(options(key))}." if options(key) else ""
        raise UserError(f"{key}={value}: a group takes the name of an option.{named}") from error
    except (ValueError, AssertionError, TypeError, AttributeError, KeyError) as error:  # Hydra's answers to model=null
        of_groups = [
            word
            for word in overrides
            if options(re.split("[=@]", word.lstrip("+~"))[0]) and not isinstance(parse([word])[0].value(), str)
        ] or overrides
        reason = str(error).splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{' '.join(of_groups)}: a group takes the name of an option. ({reason})") from error


def without_hydra(cfg: DictConfig) -> DictConfig:
    """Return the configuration without Hydra's own part."""
    return OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])


def explain(error: Exception, program: str, config_name: str) -> str:
    """Return Hydra's error in the user's words, with the nearest names."""
    text = str(error)
    if isinstance(error, OverrideParseException):  # the grammar's own complaint, which does not name the key
        return f"{error.override}: Hydra cannot read it ({text.splitlines()[0]}). Quotes may help: 'KEY=\"VALUE\"'."
    if found := re.search(r"Could not find 'hydra/(launcher|sweeper)/(\w*?)(?:_local|_slurm)?'", text):
        kind, name = found.groups()
        known = PLUGINS[kind]
        if name not in known:
            return f"hydra/{kind}={name}: there is no such {kind}.{closest(name, known)} There are {', '.join(known)}."
        return f"hydra/{kind}={name}: not installed. It comes with: pip install 'vae_exp[{name}]'"
    if isinstance(error, MissingConfigException) and (
        found := re.search(r"Could not (?:find|load) '(hydra/\w+|\w+)/(.*?)'", text)
    ):
        group, option = found.groups()
        if not options(group):  # Hydra's own
            return f"{group}={option}: there is no such option of Hydra's."
        if not option:
            return f"{group}=: choose one of {', '.join(options(group))}."
        hint = closest(option, options(group))
        own = "" if hint else " One of your own is found with --config-dir FOLDER."
        return f"{group}={option}: there is no such {group}.{hint} There are {', '.join(options(group))}.{own}"
    if found := re.match(r"Ambiguous value for argument '(.*?)=(.*)'", text):
        key, value = found.groups()
        return (
            f"{key}={value}: several values are a sweep; add -m. One list is written {key}=[...], text with a comma "
            f"'{key}=\"...\"'."
        )
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
    """Return the keys of a configuration without overrides; some of their values may still be missing."""
    return cast("dict[str, Any]", OmegaConf.to_container(without_hydra(compose(config_name, []))))
