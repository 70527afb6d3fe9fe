"""Compose configurations with Hydra, and say its complaints in the user's words."""

import contextlib
import inspect
import itertools
import re
from collections.abc import Callable, Iterator
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException, HydraException, OverrideParseException
from hydra.version import VersionBase
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vae_exp.config.checks import CONF_DIR, RUN_DIR, closest, groups, made_name, options, options_with, quoted
from vae_exp.config.migrations import GONE
from vae_exp.config.schema import DATASET_RULES, EVALUATE_RULES, GENERATE_RULES, OPTION_RULES, RULES, is_number
from vae_exp.errors import UserError, first_line, printable
from vae_exp.files import MAX_DEPTH

# Hydra 1.4 makes only those parts of a configuration that a program lists, and has no versions to be compatible with.
IS_NEW = "execution_whitelist" in inspect.signature(hydra.main).parameters
LISTED: dict[str, Any] = {"execution_whitelist": ("vae_exp.*", "hydra.*", "hydra_plugins.*")} if IS_NEW else {}
BASE: dict[str, Any] = {} if IS_NEW else {"version_base": "1.3"}
register: Any = getattr(OmegaConf, "register_resolver" if IS_NEW else "register_new_resolver")
register("made_name", lambda *, _root_: made_name(_root_), replace=True)  # of a run's folder
KNOWN_RULES = RULES | DATASET_RULES | EVALUATE_RULES | GENERATE_RULES  # not those of options, which may be a user's own
PLUGINS = {"launcher": ["basic", "joblib", "ray", "submitit"], "sweeper": ["basic", "optuna"]}  # extras of vae_exp
UNNAMED = re.compile("resolving interpolation|Backslash")  # of an option that Hydra's complaint does not name


def parse(overrides: list[str]) -> list[Override]:
    """Parse overrides with Hydra's grammar. Raises HydraException for what it cannot read."""
    steps = ([(letter in "[{(") - (letter in "]})") for letter in word] for word in overrides)
    if any(max(itertools.accumulate(word), default=0) > MAX_DEPTH for word in steps):
        raise HydraException(f"nested deeper than {MAX_DEPTH} levels")
    return OverridesParser.create().parse_overrides(overrides)


def readable(overrides: list[str], of_sweep: bool = False) -> list[str]:
    """Return the overrides, with quotes around values that Hydra's grammar cannot read, or reads as no text.

    Such a value is a path with a space or an é, or a class called +1 or true: nobody should have to quote it twice.
    Of a sweep commas separate values, elsewhere they are part of what Hydra cannot read.
    Raises UserError for a word that is not KEY=VALUE, and for bytes that are no text where Hydra cannot write them.
    """
    if IS_NEW and (no_text := [word for word in overrides if any("\ud800" <= letter <= "\udfff" for letter in word)]):
        raise UserError(f"{no_text[0]}: no text in UTF-8, which Hydra 1.4 needs. Rename what it names.")
    return [_readable(_with_text_quoted(word, of_sweep)) for word in overrides]


def _readable(word: str) -> str:
    key, sign, value = word.partition("=")
    try:
        parse([word])
        return word
    except HydraException as error:
        with contextlib.suppress(HydraException):
            if sign and parse([f"{key}={quoted(value)}"]):
                return f"{key}={quoted(value)}"
        reason = printable(first_line(error))
        raise UserError(f"{printable(word)}: unknown argument; arguments are KEY=VALUE. ({reason})") from error


PART = re.compile(  # of comma-separated values: what is in quotes or brackets is one
    r"""(?:^|,) ( (?: '(?:\\.|[^'\\])*' | "(?:\\.|[^"\\])*" | \[[^]]*] | \([^)]*\) | \{[^}]*} | [^,] )* )""",
    re.DOTALL | re.VERBOSE,
)
SWEEP = re.compile(r"((?:choice|shuffle|sort)\()(.*)\)", re.DOTALL)


def _with_text_quoted(word: str, of_sweep: bool) -> str:
    """Return the word with quotes around each text that Hydra would read differently; Python's numbers stay numbers."""
    key, _, value = word.partition("=")
    rule = KNOWN_RULES.get(key.lstrip("+"))
    if rule is None or "${" in value or not (rule.allows(["text"]) or rule.allows("text")):
        return word
    if sweep := SWEEP.fullmatch(value):  # choice(+1,0): quotes inside of it
        inner = _with_text_quoted(f"{key}={sweep[2]}", of_sweep=True).partition("=")[2]
        # Hydra forgets quotes in a choice(a,b), and not in a,b, which is the same.
        is_forgotten = inner != sweep[2] and sweep[1] == "choice(" and "," in inner
        return f"{key}={inner}" if is_forgotten else f"{key}={sweep[1]}{inner})"
    parts = PART.findall(value)
    if rule.allows(["text"]):
        lists = [part.strip() for part in parts]
        if all(part.startswith("[") and part.endswith("]") for part in lists):
            inner_lists = [",".join(_text(text) for text in PART.findall(part[1:-1])) for part in lists]
            return f"{key}={','.join(f'[{texts}]' for texts in inner_lists)}"
        if not rule.allows("text"):
            return word
    as_text = f"{key}={','.join(_text(part, null=key != 'label') for part in parts)}"
    with contextlib.suppress(HydraException):  # what cannot be read is one text, its commas too
        if of_sweep or parse([as_text if value.startswith("{") else word]):
            return as_text
    return word


def _text(word: str, null: bool = False) -> str:
    """Return one value, quoted if Hydra would read another text; `null` says that null is not text."""
    text = word.strip()
    if text.startswith("{") and text.endswith("}"):
        pairs = [pair.partition(":") for pair in PART.findall(text[1:-1])]
        return "{" + ",".join(f"{name}{colon}{_text(value, null)}" for name, colon, value in pairs) + "}"
    if not text or text[0] in "'\"[{" or re.fullmatch(r"\w+\(.*\)", text):  # quoted, no text, or a function of Hydra's
        return word
    try:
        value = parse([f"x={text}"])[0].value()
    except HydraException:
        return quoted(text)
    is_as_typed = isinstance(value, str) or (is_number(value) and str(value) == text) or (value is None and null)
    return word if is_as_typed else quoted(text)


def compose(config_name: str, overrides: list[str]) -> DictConfig:
    """Compose conf/CONFIG_NAME.yaml; vae-train's has Hydra's part. Raises UserError, or what `explain` rewords."""
    try:
        with _hydra_of_our_own(), hydra.initialize_config_dir(str(CONF_DIR), **BASE):
            return hydra.compose(config_name, overrides, return_hydra_config=config_name == "config")
    except (ConfigCompositionException, ValueError, AssertionError, TypeError, AttributeError, KeyError) as error:
        # A group's option is chosen before there are any values to refer to; Hydra answers model=null with its bugs.
        wrong = [word for word in overrides if _names_no_option(word)]
        if isinstance(error, ConfigCompositionException) and not (wrong and UNNAMED.search(str(error))):
            raise
        named = options(_group_of(wrong[0])) if wrong else []
        choose = f"Choose one of {', '.join(named)}." if named else f"({first_line(error)})"
        raise UserError(f"{' '.join(wrong or overrides)}: a group takes the name of an option. {choose}") from error


@contextlib.contextmanager
def _hydra_of_our_own() -> Iterator[None]:
    """Set Hydra's state of the program aside for the block: the program may be an application of Hydra's itself."""
    theirs, base = GlobalHydra.instance().hydra, VersionBase.instance().version_base
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = theirs
        VersionBase.instance().version_base = base


def _group_of(word: str) -> str:
    return re.split("[=@]", word.lstrip("+~"))[0]


def _names_no_option(word: str) -> bool:
    is_group = options(_group_of(word)) or _group_of(word).startswith("hydra/")
    return bool(is_group and (re.search(r"\${|\\", word) or not isinstance(parse([word])[0].value(), str)))


def without_hydra(cfg: DictConfig) -> DictConfig:
    """Return the configuration without Hydra's own part."""
    return OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])


def explain(error: Exception, program: str, config_name: str) -> str:
    """Return Hydra's error in the user's words, with the nearest names."""
    text = str(error)
    if isinstance(error, OverrideParseException):  # the grammar's own complaint, which does not name the key
        return f"{error.override}: Hydra cannot read it ({text.splitlines()[0]}). Quotes may help: 'KEY=\"VALUE\"'."
    if match := re.search(r"Could not (?:find|load) '(?!hydra/(?:launcher|sweeper)/)(hydra/\w+|\w+)/(.*?)'", text):
        return _no_option(match[1], match[2], getattr(error, "options", None) or options(match[1]))
    for pattern, reword in COMPLAINTS.items():
        if match := re.search(pattern, text):
            return reword(*match.groups())
    if match := re.search(r"Could not override '([^']+)'", text):
        return _unknown_key(match[1], program, config_name)
    text += f"\n{error.__cause__}" if isinstance(error.__cause__, OmegaConfBaseException) else ""
    return re.sub(r"\n\s*(full_key: |object_type=|reference_type=).*", "", text).strip()


def _no_plugin(kind: str, name: str) -> str:
    known = PLUGINS[kind]
    if name not in known:
        return f"hydra/{kind}={name}: there is no such {kind}.{closest(name, known)} There are {', '.join(known)}."
    return f"hydra/{kind}={name}: not installed. It comes with: pip install 'vae_exp[{name}]'"


def _no_option(group: str, option: str, known: list[str]) -> str:
    if group not in groups():
        return f"{group}={option}: there is no such option of Hydra's."
    if not option:
        return f"{group}=: choose one of {', '.join(known)}."
    hint, has_own = closest(option, known), known != options(group)
    elsewhere = "" if hint or has_own else " One of your own is found with --config-dir FOLDER."
    return f"{group}={option}: there is no such {group}.{hint} There are {', '.join(known)}.{elsewhere}"


def _several_values(key: str, value: str) -> str:
    how = f"One list is written {key}=[...], text with a comma '{key}=\"...\"'."
    return f"{key}={value}: several values are a sweep; add -m. {how}"


NOT_LISTED = "{}: Hydra 1.4 takes only callbacks of its own and of vae_exp; Hydra 1.3 takes yours too."
# What Hydra complains of, and what we say of it.
COMPLAINTS: dict[str, Callable[..., str]] = {
    r"Could not find 'hydra/(launcher|sweeper)/(\w*?)(?:_local|_slurm)?'": _no_plugin,
    r"^Ambiguous value for argument '(.*?)=(.*)'": _several_values,
    r"[Tt]arget '(.*?)'.* is not in the Hydra execution whitelist": NOT_LISTED.format,
}


def _unknown_key(key: str, program: str, config_name: str) -> str:
    known = {"config": RULES | OPTION_RULES | DATASET_RULES, "evaluate": EVALUATE_RULES, "generate": GENERATE_RULES}[
        config_name
    ]
    if (gone := key.split(".")[0]) in (("amortize",) if config_name == "config" else GONE):
        return f"{key}: no such key any more. {GONE[gone]}"
    if config_name != "config":
        return f"{key}: no such key.{closest(key, known)} `{program} --help` lists every key."
    if names := options_with(key):
        group = key.split(".")[0]
        return f"{key}: the chosen {group} has no such key; {group}={'|'.join(names)} has."
    hint = closest(key, [*known, *groups(), RUN_DIR])
    return f"{key}: no such key.{hint} `vae-train --help` lists the groups, `vae-train --cfg job` every key."
