"""`vae-train`: one run or a sweep. Nothing here imports torch until a run starts: help and errors are instant."""

import contextlib
import logging
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import configure_log
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, read_write

from vae_exp import torchrun_env
from vae_exp.cli import common
from vae_exp.cli.common import (
    final_message,
    no_such_flag,
    print_help,
    require_own_options,
    resume_hint,
    with_own_options,
)
from vae_exp.config.checks import CONF_DIR, as_typed, literal, path_of
from vae_exp.config.compose import BASE, IS_NEW, LISTED, UNNAMED, compose, parse, readable
from vae_exp.config.schema import RULES
from vae_exp.errors import PeerLost, Unwritable, UserError, first_line, in_users_code, stop_signals, stopped_by
from vae_exp.sweeps import jobs, plan, sweepers
from vae_exp.training import resume, threads
from vae_exp.training.console import echo, say
from vae_exp.training.run_dir import (
    MULTIRUN,
    holds_run,
    log_bytes,
    read_overrides,
    remove_unopened,
    require_no_owner,
    require_unused,
    require_writable,
)

log = logging.getLogger(__name__)
MULTIRUN_FLAGS = ("-m", "--multirun")
PRINTING_FLAGS = ("-c", "--cfg", "-i", "--info", "--hydra-help", "-sc", "--shell-completion")
OTHER_FLAGS = ("-r", "--run", "--resolve", "-p", "--package", "-cp", "--config-path", "-cn", "--config-name")
HYDRA_FLAGS = (*MULTIRUN_FLAGS, *PRINTING_FLAGS, *OTHER_FLAGS)
ENDING = 10.0  # seconds in which all processes find what is wrong in all of them


def main() -> None:
    """Run `vae-train`: exit with code 0, or 1 with one message for what the user can fix; our bugs give a traceback."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra then raises its errors instead of printing them
    os.environ.setdefault("OTEL_SDK_DISABLED", "true")  # W&B's own telemetry waits 10 s more for a server that hangs
    threads.limit_spin()
    with common.exits("vae-train", "config"):
        arguments = with_own_options(sys.argv[1:])
        if torchrun_env.follows():
            sys.exit(follow(arguments))
        if {"--help", "-h"} & set(arguments):
            print_help(arguments)
            return
        if "--version" in arguments:
            echo(common.versions())
            return
        common.complete_options(arguments)
        sys.argv[1:] = _command_line(arguments)
        require_own_options(sys.argv[1:])
        sweepers.register()
        with _in_the_users_words(sys.argv[1:]):
            _job()


def _command_line(arguments: list[str]) -> list[str]:
    """Return what Hydra is given: the arguments, readable for it, with what a run that resumes was started with."""
    flags = [argument for argument in arguments if argument.startswith("-")]
    if unknown := [flag for flag in flags if flag.partition("=")[0] not in HYDRA_FLAGS]:
        advice = "`vae-train --help` says what can be typed, --hydra-help the flags."
        raise UserError(f"{no_such_flag(unknown[0], arguments)} {advice}")
    if set(flags) - set(MULTIRUN_FLAGS):  # Hydra reads no overrides on both sides of a flag
        return sorted(arguments, key=lambda word: word.startswith("-") or "=" not in word)
    overrides = readable([argument for argument in arguments if not argument.startswith("-")], of_sweep=bool(flags))
    words = parse(overrides)
    keys = [word.key_or_group for word in words]
    if "rerun" in keys:
        return _rerun(overrides)
    if flags and keys == ["sweep.resume"]:
        folder, _ = plan.find(str(words[0].value()))
        return [*flags, *_of_sweep(folder, []), *overrides]
    if not flags:
        overrides = _with_stored_overrides(overrides)
        is_told = any(word.startswith("hydra.mode=") for word in overrides)
        flags = ["-m"] if IS_NEW and not is_told and plan.is_preset(overrides) else []
    return [*flags, *overrides]


def _rerun(overrides: list[str]) -> list[str]:
    """Return the command line of a new run, or sweep, with the overrides of the one that rerun=PATH names, and these.

    Raises UserError if it has none that can be read, or names code that is neither typed nor trusted.
    """
    words = parse(overrides)
    folder = path_of("rerun", next(word for word in words if word.key_or_group == "rerun").value())
    overrides = resume.without(overrides, {"rerun"})
    if (folder / plan.SWEEP).is_file():
        return ["-m", *_of_sweep(folder, overrides), *overrides]
    stored = resume.stored_overrides(folder, overrides)
    if stored is None:
        raise UserError(f"rerun={folder}: there is no run that can be read.")
    keys = {word.key_or_group for word in words}
    stored = [
        text for text in resume.without(stored, {"resume", "replace", "hydra.run.dir", *keys}) if not _is_of_sweep(text)
    ]
    resume.require_known(folder, stored, overrides, resume.trusts(words))
    return [*resume.with_its_data(folder, [*stored, *overrides], keys), "hydra.mode=RUN"]


def _of_sweep(folder: Path, overrides: list[str]) -> list[str]:
    """Return what a sweep was started with, but for its name, its folder and what is typed now. Raises UserError."""
    stored = read_overrides(folder, of_sweep=True, typed=overrides)
    if stored is None:
        raise UserError(f"{folder}: its {MULTIRUN} cannot be read. Type all that the sweep was started with again.")
    words = parse(overrides)
    own = {"sweep.resume", "sweep.name", "sweep.over", "sweep.jobs", "hydra.sweep.dir"}
    stored = resume.without(stored, own | {word.key_or_group for word in words})
    resume.require_known(folder, plan.first_job(stored), plan.first_job(overrides), resume.trusts(words))
    return stored


def _is_of_sweep(text: str) -> bool:
    return text.lstrip("+").startswith(plan.OF_A_SWEEP)


def _with_stored_overrides(overrides: list[str]) -> list[str]:
    """Return the command line that resumes the run that resume=PATH names, or it as it is. Raises UserError."""
    resumed, folder = resume.with_stored_overrides(overrides)
    if folder is None:
        return overrides
    plan.require_no_sweep(overrides)
    # One run, also where it was a job of a preset that is a sweep.
    return [*resumed, f"hydra.run.dir={literal(folder)}", "hydra.mode=RUN"]


@contextlib.contextmanager
def _in_the_users_words(arguments: list[str]) -> Iterator[None]:
    """Run Hydra in the block, and raise UserError for what it says in nobody's words, as it does of model=null."""
    try:
        yield
    except (UserError, OSError):
        raise
    except Exception as error:
        flags = [argument for argument in arguments if argument.startswith("-") and argument not in MULTIRUN_FLAGS]
        if flags and isinstance(error, ValueError | KeyError | yaml.YAMLError):
            hint = "--hydra-help says what the flags are for"
            raise UserError(f"{' '.join(flags)}: {first_line(error)}. {hint}.") from error
        if not flags and (not isinstance(error, HydraException) or UNNAMED.search(str(error))):
            # If it was Hydra that failed, before the run began, it fails again here; else it is the run's own error.
            overrides = [argument for argument in arguments if argument not in MULTIRUN_FLAGS]
            _require_logging(compose("config", plan.first_job(overrides)))
        raise


class Checks(Callback):
    """Hydra's callback that checks a run before its folder is made, and a sweep before its sweeper is."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        _check(check_run, config)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        _check(check_sweep, config)


def _check(check: Callable[[DictConfig], None], config: DictConfig) -> None:
    try:
        check(config)
    except Exception as error:
        raise common.Refusal from error


def check_run(cfg: DictConfig) -> None:
    """Check a run before anything is written, and enter in cfg where it goes on if it resumes. Raises UserError."""
    _require_whole(cfg)
    HydraConfig.instance().set_config(cfg)  # so that ${hydra:runtime.cwd} can be checked
    if cfg.resume is None:
        plan.require_no_sweep([*plan.overrides_of(cfg, "hydra"), *plan.overrides_of(cfg, "task")])
    config = jobs.check(cfg)
    run_dir = path_of("hydra.run.dir", cfg.hydra.run.dir)
    folder = None
    if cfg.resume == "auto":
        folder = resume.find_unfinished(config, run_dir)
        if folder is None:  # what a run left that was stopped before its first checkpoint is no loss
            run_dir = resume.find_abandoned(config) or run_dir
            cfg.replace = holds_run(run_dir)
    elif cfg.resume is not None:
        folder = resume.find(str(cfg.resume))
    require_no_owner(folder or run_dir)
    if folder is None:
        require_unused(run_dir, cfg.replace)
        jobs.check_init_from(config)
    else:
        run_dir = folder
        resume.require_unfinished(folder, config)
        resume.load(folder, config, quiet=True)
        cfg.init_from = None  # of a run that goes on the checkpoint knows it
    require_writable(run_dir)
    cfg.resume = None if folder is None else str(folder)
    with read_write(cfg.hydra):
        cfg.hydra.run.dir = str(run_dir)
    _require_logging(cfg)


def check_sweep(cfg: DictConfig) -> None:
    """Check that a sweep has a launcher, and a sweeper of ours. Raises UserError."""
    _require_whole(cfg)
    for kind in ("launcher", "sweeper"):
        if cfg.hydra[kind] is None:
            raise UserError(f"hydra.{kind}=null: a sweep needs one. Leave it out, or choose with hydra/{kind}=NAME.")
    if not sweepers.is_ours(cfg.hydra.sweeper["_target_"]):
        name = cfg.hydra.runtime.choices["hydra/sweeper"]
        raise UserError(f"hydra/sweeper={name}: there is no such sweeper. There are basic, optuna.")


def _require_whole(cfg: DictConfig) -> None:
    """Raise UserError if a key was taken away, or a part of Hydra's own configuration replaced by a single value."""
    removed = [word for word in plan.overrides_of(cfg, "task") if word.startswith("~")]
    if keys := [key for key in (word[1:].partition("=")[0] for word in removed) if key in RULES]:
        raise UserError(f"~{keys[0]}: every key has a value; leave {keys[0]} out for its default.")
    hydras: Any = OmegaConf.to_container(cfg.hydra, resolve=False)
    for name in ("run", "sweep", "launcher", "sweeper", "job", "runtime"):
        value = hydras[name]
        if not isinstance(value, dict) and not (value is None and name in ("launcher", "sweeper")):
            raise UserError(f"hydra.{name}={as_typed(value)}: it has keys of its own, such as hydra.run.dir=PATH.")


def _require_logging(cfg: DictConfig) -> None:
    """Raise UserError if Hydra could not set its logging up: it tries when the run's folder is made already."""
    with read_write(cfg.hydra):
        cfg.hydra.runtime.output_dir = str(Path(cfg.hydra.run.dir).absolute())
    settings: Any = OmegaConf.to_container(cfg.hydra.job_logging, resolve=True)
    try:
        configure_log(cfg.hydra.hydra_logging, cfg.hydra.verbose, **LISTED)
        for handler in (settings or {}).get("handlers", {}).values():
            handler |= {"filename": os.devnull} if "filename" in handler else {}
        configure_log(OmegaConf.create(settings), cfg.hydra.verbose, **LISTED)
    except Exception as error:
        words = [word for word in plan.overrides_of(cfg, "hydra") if not word.startswith("hydra.mode=")]
        reason = str(error).strip() or type(error).__name__
        raise UserError(f"{' '.join(words) or 'hydra'}: Hydra does not start the run ({reason}).") from error


@hydra.main(**BASE, **LISTED, config_path=str(CONF_DIR), config_name="config")
def _job(cfg: DictConfig) -> None:
    job = HydraConfig.get()
    run_dir = Path(os.path.relpath(job.runtime.output_dir))
    if job.mode == RunMode.MULTIRUN:
        jobs.run_job(cfg, run_dir, job)
        return
    with jobs.ends_with_its_launcher():
        _one_run(cfg, run_dir)


def _one_run(cfg: DictConfig, run_dir: Path) -> None:
    """Carry out a run that is not a job of a sweep, and log how it ended."""
    if cfg.devices > 1 and torchrun_env.started() == 1:
        launch(cfg.devices, sys.argv[1:], run_dir)
        return
    old_log_bytes = log_bytes(run_dir)  # of whoever wrote to this folder before
    from vae_exp.train import train

    try:
        summary = train(cfg, run_dir)
        is_demo = HydraConfig.get().runtime.choices.get("experiment") == "demo"
        log.info(final_message(summary, run_dir, is_demo))
    except (KeyboardInterrupt, SystemExit) as stop:
        where = f" What was finished until then is in {run_dir}{resume_hint(run_dir)}"
        log.info(f"Stopped by {stopped_by(stop)}.{'' if remove_unopened(run_dir, old_log_bytes) else where}")
        raise
    except Exception as error:
        if (problem := in_users_code(error)) is None:
            raise
        remove_unopened(run_dir, old_log_bytes)
        log.error(f"vae-train: {problem}{resume_hint(run_dir) if isinstance(error, PeerLost | Unwritable) else ''}")
        sys.exit(1)


def launch(devices: int, words: list[str], run_dir: Path) -> None:
    """Start the processes of a run with this command line by torchrun's launcher, and end as they end."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.disable(logging.CRITICAL)  # of torch's: this process says nothing else
    host = "localhost"  # by its name a machine may not find itself
    config = LaunchConfig(
        1, 1, devices, run_id="vae_exp", rdzv_backend="c10d", rdzv_endpoint=f"{host}:0", local_addr=host
    )
    config.max_restarts = 0
    config.signals_to_handle = ",".join([*(number.name for number in stop_signals()), "SIGQUIT"])
    is_named = any(word.startswith("hydra.run.dir=") for word in words)
    in_folder = [] if is_named else [f"hydra.run.dir={literal(run_dir)}"]
    os.environ.update({jobs.LAUNCHED_BY: str(os.getpid())} | torchrun_env.safe_path())
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # its warnings of a connection that is gone say no more
    sys.stdout.flush()
    try:
        elastic_launch(config, sys.executable)("-m", "vae_exp", *words, *in_folder)
    except SignalException as stop:
        sys.exit(128 + stop.sigval)
    except ChildFailedError as error:
        codes = {rank: failure.exitcode for rank, failure in sorted(error.failures.items())}
        for rank, code in codes.items():
            # The first reports its own end, but for such a one; torch sends SIGTERM to those that are left.
            if code < 0 and code != -signal.SIGTERM and codes.get(0, -1) < 0:
                hint = "" if rank else resume_hint(run_dir)
                ending = f"process {rank} of {devices} was killed ({signal.Signals(-code).name}), and the run ends."
                say(f"vae-train: {ending} What was saved is whole.{hint}", sys.stderr)
        sys.exit(next((code for code in codes.values() if code > 0), 1))


def follow(arguments: list[str]) -> int:
    """Run a further process of a run, and return its exit code; the first process alone decides and prints."""
    for number in set(stop_signals()) - {signal.SIGINT}:
        signal.signal(number, signal.SIG_DFL)  # until the run begins there is nothing to save
    alone = {"-h", "--help", "--version", *PRINTING_FLAGS, *MULTIRUN_FLAGS}
    if alone & {word.partition("=")[0] for word in arguments}:
        return 0  # the first does it alone
    warnings.simplefilter("ignore")
    from vae_exp import distributed
    from vae_exp.train import train

    try:
        train(OmegaConf.create({}), "")
    except (KeyboardInterrupt, SystemExit, PeerLost) as error:  # all have agreed to stop, or the first is gone
        if not isinstance(error, PeerLost):
            distributed.wait_for_rank0()
        sys.stderr.flush()
        code = {KeyboardInterrupt: 130, SystemExit: getattr(error, "code", 1)}.get(type(error), 1)
        os._exit(code or 1)  # at once: what is left of the connections is in nobody's hands
    except Exception as error:
        time.sleep(ENDING)  # what is wrong in all processes the first reports, and the launcher ends the others
        if isinstance(error, UserError):
            raise UserError(f"process {os.environ['RANK']}: {error}") from error
        raise
    return 0


if __name__ == "__main__":
    from vae_exp.cli import train

    train.main()  # of the module that conf/config.yaml names, and not of a second copy of it
