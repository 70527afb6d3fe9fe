"""What the commands share: exit codes, options, help, closing lines."""

import argparse
import contextlib
import errno
import gc
import io
import itertools
import logging
import os
import platform
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from string import Template
from typing import Any, NoReturn

import hydra
import yaml
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vae_exp import __version__
from vae_exp.compare import table
from vae_exp.compare.runs import fold_seeds, read_runs, sweep_of
from vae_exp.config import checks
from vae_exp.config.checks import CONF_DIR, check_values, closest, flatten, given_name, path_of, quoted, resolve
from vae_exp.config.compose import BASE, KNOWN_RULES, LISTED, compose, explain, parse, readable
from vae_exp.config.schema import OPTION_RULES, TERMS, Rule
from vae_exp.errors import UserError, first_line, in_users_code, is_out_of_memory, printable, shortened, stop_signals
from vae_exp.files import use_surroundings
from vae_exp.training import console, threads
from vae_exp.training.console import echo, say
from vae_exp.training.run_dir import (
    BEST,
    IMAGES,
    LAST,
    LATEST,
    METRICS,
    OUTPUTS,
    SUMMARY,
    newest,
    on_checkpoint,
    on_resume,
    read_config,
)


class ArgumentParser(argparse.ArgumentParser):
    """Print what was typed, as a message does, safe on a terminal."""

    def error(self, message: str) -> NoReturn:
        super().error(str(UserError(message)))


def with_own_options(arguments: list[str]) -> list[str]:
    """Return the arguments with --config-dir FOLDER turned into a setting, which the jobs of a sweep keep, too."""
    for i, argument in enumerate(arguments):
        flag, is_given, folder = argument.partition("=")
        if flag in ("--config-dir", "-cd"):
            folder, *rest = arguments[i + 1 :] or [""] if not is_given else [folder, *arguments[i + 1 :]]
            if not folder or not path_of(flag, folder).is_dir():
                advice = "It holds options of your own: objective/NAME.yaml"
                raise UserError(f"{flag} {folder}: there is no such folder. {advice}")
            path = f"file://{path_of(flag, folder).resolve()}"
            path = path if re.fullmatch(r"[\w:/.-]+", path) else quoted(path)
            return [*arguments[:i], *rest, f"hydra.searchpath=[{path}]"]
    return arguments


def own_folders(words: list[str]) -> list[Path]:
    """Return the folders of options that --config-dir named."""
    matches = [re.fullmatch(r"hydra\.searchpath=\['?file://(.*?)'?\]", word) for word in words]
    return [Path(match[1]) for match in matches if match]


def require_own_options(words: list[str]) -> None:
    """Raise UserError, with file, line and column, if an option of one's own that is chosen is not one."""
    chosen = [word.lstrip("+").partition("=") for word in words]
    for folder, (group, _, names) in itertools.product(own_folders(words), chosen):
        for name in names.split(","):
            _require_option(folder, f"{group}/{name}", [])


def _require_option(folder: Path, option: str, above: list[str]) -> None:
    file = os.path.join(folder, f"{option}.yaml")  # noqa: PTH118  (these never raise, whatever was typed)
    if not os.path.isfile(file):  # noqa: PTH113
        return
    if option in above:
        raise UserError(f"{file}: its defaults lead back to it: {' > '.join([*above, option])}.")
    content = Path(file).read_bytes()
    try:
        settings = OmegaConf.load(io.StringIO(content.decode()))
    except UnicodeDecodeError as error:
        before = content[: error.start].splitlines(keepends=True)
        raise UserError(f"{file}, line {len(before)}, column {len(before[-1]) + 1}: no text in UTF-8.") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(f"{file}{place}: no YAML ({error.problem or error.context}).") from error
    except OmegaConfBaseException as error:
        raise UserError(f"{file}: {error.full_key}: {first_line(error)}.") from error
    except Exception as error:  # a text with control characters, a list that contains itself
        raise UserError(f"{file}: no YAML ({type(error).__name__}: {first_line(error)}).") from error
    if not isinstance(settings, DictConfig):
        raise UserError(f"{file}, line 1, column 1: it must hold lines of KEY: VALUE.")
    defaults = settings.get("defaults")
    for name in defaults if isinstance(defaults, ListConfig) else []:
        _require_option(folder, f"{option.rpartition('/')[0]}/{name}", [*above, option])


def no_such_flag(flag: str, arguments: list[str]) -> str:
    """Return the first sentences on an unknown flag: what it would be as KEY=VALUE."""
    name, _, value = flag.lstrip("-").partition("=")
    key, following = name.replace("-", "_"), arguments[arguments.index(flag) + 1 :][:1]
    value = value or "".join(word for word in following if not word.startswith("-") and "=" not in word) or "VALUE"
    hint = f" Keys have no dashes: {key}={value}." if key in KNOWN_RULES else closest(key, KNOWN_RULES | OPTION_RULES)
    return f"{flag}: no such flag.{hint}"


def print_help(arguments: list[str]) -> None:
    """Print the help of vae-train; Hydra would fill in the same text, but asks every plugin's groups, for seconds."""
    names: dict[str, list[str]] = {}
    for folder in (CONF_DIR, *own_folders(arguments)):
        for group in checks.groups(folder):
            names.setdefault(group, []).extend(checks.options(group, folder))
    groups = "".join(f"{group}: {', '.join(options)}\n" for group, options in sorted(names.items()))
    template = OmegaConf.load(CONF_DIR / "hydra" / "help" / "vae_exp.yaml").template
    echo(Template(template).substitute(APP_CONFIG_GROUPS=groups))


UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR)


@contextlib.contextmanager
def exits(program: str, config_name: str) -> Iterator[None]:
    """Run the block; exit with code 1 and one message for an error the user can fix, or a traceback for our bugs."""
    # Collect garbage more rarely, to the end: looking for it among what is imported takes half a second of the start.
    gc.set_threshold(10_000)
    threads.end_quickly()
    logging.raiseExceptions = False  # a log that cannot be written is no reason to stop, or to fill stderr
    console.open_streams()
    signals = stop_signals()
    for number in set(signals) - {signal.SIGINT}:
        signal.signal(number, lambda number, _: sys.exit(128 + number))  # so that `with` blocks close
    ending: Any = None
    try:
        use_surroundings()
        yield
    except BaseException as error:
        ending = _code_or_message(error, program, config_name)
    finally:
        for number in signals:  # what is left is W&B's own ending; nothing to tell of it
            signal.signal(number, signal.SIG_DFL)
    try:
        sys.stdout.flush()
    except OSError as error:  # its text is dropped, as Python would complain of it otherwise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        ending = ending or _code_or_message(error, program, config_name)
    if ending:
        sys.exit(ending)


class Refusal(BaseException):
    """An error on its way through Hydra, which makes a warning of an Exception in a callback; the cause is its own."""


def _code_or_message(error: BaseException, program: str, config_name: str) -> Any:
    """Return what the program exits with: a code or a message. Raises the error itself if it is a bug of ours."""
    error = error.__cause__ if isinstance(error, Refusal) and error.__cause__ else error
    if isinstance(error, SystemExit):
        return error.code
    if _comes_of_ctrl_c(error):
        return 130
    if isinstance(error, HydraException | OmegaConfBaseException):
        error = UserError(explain(error, program, config_name))
    if isinstance(error, UserError):
        return f"{program}: {error}"
    if isinstance(error, BrokenPipeError):  # `vae-train --help | head`
        return 1
    if is_out_of_memory(error):
        smaller = {"vae-generate": "a smaller n", "vae-compare": "fewer runs"}.get(program, "a smaller batch_size")
        return f"{program}: out of memory ({first_line(error)}). Try {smaller}."
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return f"{program}: {shortened(printable(error.filename))}: this name is too long for the file system."
    if isinstance(error, OSError) and error.errno in UNWRITABLE:
        return f"{program}: {error.filename or 'standard output'}: cannot be written ({error.strerror})."
    if isinstance(error, Exception) and (problem := in_users_code(error)):
        return f"{program}: {problem}"
    raise error


def _comes_of_ctrl_c(error: BaseException | None) -> bool:
    """Return whether Ctrl-C caused the error: Hydra may raise one of its own instead if it is composing at the time."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def versions() -> str:
    """Return the versions of vae_exp and of its main dependencies, found without importing them."""
    used = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "hydra-core", "wandb"))
    return f"vae_exp {__version__} ({used}, Python {platform.python_version()})"


def complete_options(arguments: list[str]) -> None:
    """Print the experiments in folders for the word that a shell completes: Hydra lists those beside the folders."""
    group, _, start = os.environ.get("COMP_LINE", "").rpartition(" ")[2].partition("=")
    if arguments[:1] == ["-sc"] and group == "experiment":
        names = [path.relative_to(CONF_DIR / group).with_suffix("") for path in CONF_DIR.glob(f"{group}/*/*.yaml")]
        print(*sorted(f"{group}={name}\n" for name in names if str(name).startswith(start)), sep="", end="")


def run(program: str, config_name: str, rules: dict[str, Rule], about: str, work: Callable[[Any], object]) -> None:
    """Run a command whose keys are those of conf/CONFIG_NAME.yaml, which with its comments is also its help."""
    arguments = sys.argv[1:]
    with exits(program, config_name):
        if {"--help", "-h"} & set(arguments):
            keys = (CONF_DIR / f"{config_name}.yaml").read_text()
            echo(f"{about}\n\n{keys.rstrip()}\n\nAlso: {program} --cfg job prints the configuration and does nothing.")
            return
        if "--version" in arguments:
            echo(versions())
            return
        if arguments[:1] == ["-sc"] and re.match(r"(un)?install=|query=", "".join(arguments[1:])):
            hydra.main(**BASE, **LISTED, config_path=str(CONF_DIR), config_name=config_name)(lambda _: None)()
            return
        only_prints = arguments[:2] == ["--cfg", "job"]
        cfg = compose(config_name, _overrides(program, arguments[2:] if only_prints else arguments))
        if only_prints:
            echo(OmegaConf.to_yaml(cfg))
            return
        if OmegaConf.is_missing(cfg, "checkpoint"):
            such_as = f"`{program} checkpoint=outputs/.../best.pt`, a run's folder, or checkpoint=latest"
            raise UserError(f"checkpoint: say which, such as {such_as}.")
        config = resolve(cfg)
        if problems := check_values(flatten(config, rules), rules):
            raise UserError("\n".join(problems))
        logging.basicConfig(level=logging.WARNING, format="%(message)s")
        work(config)


def _overrides(program: str, arguments: list[str]) -> list[str]:
    """Return the arguments of a command that takes only KEY=VALUE. Raises UserError for another."""
    for word in arguments:
        if word.startswith("-"):
            flags = "There are --help, --version and --cfg job; all else is KEY=VALUE."
            raise UserError(f"{no_such_flag(word, arguments)} {flags}")
        if word.startswith("~"):
            raise UserError(f"{word}: every key has a value; leave {word.lstrip('~')} out for its default.")
        if "=" not in word:
            raise UserError(f"{word}: write {program} checkpoint={word}; all that is typed is KEY=VALUE.")
    overrides = readable(arguments)
    if swept := [override for override in parse(overrides) if override.is_sweep_override()]:
        raise UserError(f"{swept[0].input_line}: {program} takes one value of it.")
    return overrides


def say_latest(program: str, run_dir: Path) -> None:
    """Print which run checkpoint=latest means, and the best of its sweep if it is a job of one."""
    text = f"{LATEST} is {printable(run_dir)}"
    if sweep := sweep_of(run_dir):
        settings = fold_seeds(read_runs([sweep])[0])
        bests = [table.best(run.members, table.metric_of(run.members)) or run for run in table.best_per_group(settings)]
        text += ", the last job of a sweep"
        if any(best.folder.samefile(run_dir) for best in bests):
            text += ", and its best"
        elif len(bests) == 1:
            text += f". The sweep's best: {on_checkpoint(program, bests[0].folder)}"
    say(text, sys.stderr)


def resume_hint(run_dir: Path) -> str:
    """Return the command that resumes a run, on a line of its own, or nothing if there is no checkpoint."""
    return f"\nresume    {on_resume(run_dir)}" if (run_dir / LAST).exists() else ""


def final_message(summary: dict[str, Any], run_dir: Path, is_demo: bool) -> str:
    """Return the message that says where everything is, and what to type next."""

    def program(name: str) -> str:
        return name if shutil.which(name) else shlex.quote(os.path.relpath(Path(sys.executable).with_name(name)))

    test_results = {key.removeprefix("test/"): value for key, value in summary.items() if key.startswith("test/")}
    scores = {name: value for name, value in test_results.items() if name not in (*TERMS, "active_units")}
    test = "   ".join(f"{name} {test_results[name]:.3f}" for name in TERMS)
    run = summary["wandb"]
    folder = Path(run["dir"] or "")
    beside = shlex.quote(str(folder.parent))
    offline = f"{beside}/offline-run-*-{run['id']}"  # each resume leaves a part
    if len(list(folder.parent.glob(f"offline-run-*-{run['id']}"))) < 2:
        offline = shlex.quote(str(folder))
    latest = LATEST if OUTPUTS in run_dir.parents and newest(BEST) == run_dir else None
    lines = {
        "name": given_name(read_config(run_dir)),
        "test": f"{test}   ({test_results['active_units']} active units)",
        "scores": "  ".join(f"{name} {value:.3f}" for name, value in scores.items()),
        "folder": f"{run_dir}    ({IMAGES}/, {METRICS}, {SUMMARY}, {BEST})",
        "W&B": run["url"],
        "view": run["dir"] and f"{program('wandb')} leet {beside}    (all runs, here, without an account)",
        "upload": run["mode"] == "offline" and f"{program('wandb')} sync {offline}",
        "evaluate": on_checkpoint(program("vae-evaluate"), run_dir, latest),
        "generate": on_checkpoint(program("vae-generate"), run_dir, latest),
        "compare": f"{program('vae-compare')} {shlex.quote(str(run_dir.parent))}",
        "MNIST": is_demo and f"{program('vae-train')} experiment=tutorial    (downloads it once)",
    }
    return "\n".join(f"{name:<9} {text}" for name, text in lines.items() if text)
