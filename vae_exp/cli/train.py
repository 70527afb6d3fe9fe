"""`vae-train`: one run or a sweep. Nothing here imports torch until a run starts: help and errors are instant."""

import contextlib
import functools
import logging
import os
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vae_exp import torchrun_env
from vae_exp.cli import common
from vae_exp.cli.common import final_message, print_help, resume_hint, with_own_options
from vae_exp.config import checks
from vae_exp.config.checks import CONF_DIR, literal
from vae_exp.config.compose import HYDRA_VERSION, compose, parse, readable, without_hydra
from vae_exp.config.schema import Config
from vae_exp.errors import PeerLost, Unwritable, UserError
from vae_exp.files import write
from vae_exp.sweeps import jobs, plan, search, study, summary
from vae_exp.sweeps.jobs import LAUNCHED_BY
from vae_exp.sweeps.plan import Grid
from vae_exp.torchrun_env import safe_path, started
from vae_exp.training import resume, threads
from vae_exp.training.run_dir import (
    OVERRIDES,
    SUMMARY,
    holds_run,
    read_overrides,
    read_summary,
    require_no_owner,
    require_unused,
    require_writable,
)

START_NOTHING = (
    "-h", "--help", "--version", "-c", "--cfg", "-i", "--info", "--hydra-help", "-sc", "--shell-completion", "-m",
    "--multirun",
)  # fmt: skip


def require_one_process(cfg: DictConfig, typed: list[str]) -> None:
    """Raise UserError for a sweep that was started in several processes, or whose jobs would be."""
    swept = [word for word in typed if word.startswith("devices=") and word != "devices=1"]
    if started() > 1 or cfg.devices != 1 or swept:
        asked = swept[0] if swept else f"devices={max(started(), cfg.devices)}"
        raise UserError(
            f"{asked}: is of one run. In a sweep each job is one process on one device; jobs side by side are spread "
            "over the GPUs (hydra/launcher=joblib)."
        )


def launch(devices: int, words: list[str], run_dir: Path) -> None:
    """Start the processes of a run with this command line, and end as they end.

    The first of them prints a run's messages. This process prints only what none of them could.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.disable(logging.CRITICAL)  # of torch's: this process says nothing else
    config = LaunchConfig(
        1,
        1,
        devices,
        run_id="vae_exp",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",  # by its name a machine may not find itself
        max_restarts=0,
    )
    named = any(word.startswith("hydra.run.dir=") for word in words)
    in_folder = [] if named else [f"hydra.run.dir={literal(run_dir)}"]
    os.environ.update({LAUNCHED_BY: str(os.getpid())} | safe_path())
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # its warnings of a connection that is gone say no more
    began = time.time()
    sys.stdout.flush()
    try:
        elastic_launch(config, sys.executable)("-m", "vae_exp", *words, *in_folder)
    except SignalException as stop:
        sys.exit(128 + stop.sigval)
    except ChildFailedError as error:
        codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
        killed = {rank: signal.Signals(-code).name for rank, code in codes.items() if code < 0}
        by_others = {rank: name for rank, name in killed.items() if name != "SIGTERM"}  # which torch sends to the rest
        by_first = codes.get(0, 0) > 0 or (0 not in by_others and _is_told(run_dir, began))
        if by_others and not by_first:
            rank, name = next(iter(by_others.items()))
            said = f"process {rank} of {devices} was killed ({name}), and the run ends. What was saved is whole."
            print(f"vae-train: {said}{resume_hint(run_dir)}", file=sys.stderr)
        told = [code for _, code in sorted(codes.items()) if code > 0]
        sys.exit(told[0] if told else 1)


def _is_told(run_dir: Path, began: float) -> bool:
    """Return whether the first process has recorded, and printed, how the run that started at `began` ended."""
    summary, path = read_summary(run_dir), run_dir / SUMMARY
    return summary is not None and summary.state != "running" and path.stat().st_mtime >= began


def follow(arguments: list[str]) -> int:
    """Run a further process of a run, and return its exit code; the first process alone decides and prints."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # until the run begins there is nothing to save
    if any(word.partition("=")[0] in START_NOTHING for word in arguments):
        return 0  # the first does it alone
    warnings.simplefilter("ignore")
    from vae_exp import distributed
    from vae_exp.train import train

    try:
        train(OmegaConf.create({}), "")
    except BaseException as error:
        agreed = {KeyboardInterrupt: 130, SystemExit: getattr(error, "code", 1)}.get(type(error))
        if isinstance(error, PeerLost) or distributed.fail_with_rank0(surely=agreed is not None):
            sys.stderr.flush()
            os._exit(agreed or 1)  # at once: what is left of the connections is in nobody's hands
        if isinstance(error, UserError):
            raise UserError(f"process {os.environ['RANK']}: {error}") from error
        raise
    return 0


log = logging.getLogger(__name__)
PACKAGE = Path(__file__).resolve().parents[1]
RUN_HAS_BEGUN: list[bool] = []  # empty while Hydra is at work alone
HYDRA_FLAGS = (
    "-m", "--multirun", "-r", "--run", "-c", "--cfg", "--resolve", "-p", "--package", "-i", "--info", "--hydra-help",
    "-sc", "--shell-completion", "-cp", "--config-path", "-cn", "--config-name",
)  # fmt: skip
ON_THIS_MACHINE = ("basic", "joblib", "submitit_local")  # launchers


def main() -> None:
    """Run `vae-train`: exit with code 0, or 1 with one message for what the user can fix; our bugs give a traceback."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra then raises its errors instead of printing them
    os.environ.setdefault("OTEL_SDK_DISABLED", "true")  # W&B's own telemetry waits 10 s more for a server that hangs
    threads.limit_spin()
    with common.exits("vae-train", "config"):
        sys.argv[1:] = with_own_options(sys.argv[1:])
        sys.exit(_main(sys.argv[1:]))


def _main(arguments: list[str]) -> int:
    if torchrun_env.follows():
        return follow(arguments)
    if {"--help", "-h"} & set(arguments):
        print_help(arguments)
        return 0
    if "--version" in arguments:
        print(common.versions())
        return 0
    if unknown := [a for a in arguments if a.startswith("-") and a.partition("=")[0] not in HYDRA_FLAGS]:
        raise UserError(
            f"{unknown[0]}: no such flag. `vae-train --help` says what can be typed, --hydra-help the flags."
        )
    if flags := [a for a in arguments if a.startswith("-") and a not in ("-m", "--multirun")]:
        with _flags_go_together(flags):
            _job()  # --cfg and the like start nothing; with other flags the run itself does the checks
        return 0
    typed = readable([a for a in arguments if not a.startswith("-")])
    first = plan.first_job(typed)
    cfg = compose("config", first)
    _require_hydras_own(cfg)
    HydraConfig.instance().set_config(cfg)  # so that ${hydra:runtime.cwd} can be checked
    if len(typed) < len(arguments) or cfg.hydra.mode == RunMode.MULTIRUN:
        require_one_process(cfg, typed)
        return _sweep(typed, cfg)
    if first != typed:
        compose("config", typed)  # which is refused: a sweep without -m
    plan.require_no_sweep(typed)
    if cfg.resume is not None:
        sys.argv[1:], run_dir = _to_resume(typed, cfg)
    else:
        _check(cfg)
        run_dir = checks.path_of("hydra.run.dir", cfg.hydra.run.dir)
        require_no_owner(run_dir)
        require_unused(run_dir, cfg.replace)
        sys.argv[1:] = typed
    if not any(word.startswith("hydra.run.dir=") for word in sys.argv):  # else Hydra's clock names another folder
        sys.argv.append(f"hydra.run.dir={literal(run_dir)}")
    with _before_it_begins(run_dir, typed):
        _job()
    return 0


@contextlib.contextmanager
def _flags_go_together(flags: list[str]) -> Iterator[None]:
    """Run the block and raise UserError for flags that Hydra refuses, such as --resolve without --cfg."""
    RUN_HAS_BEGUN.clear()
    try:
        yield
    except ValueError as error:
        if RUN_HAS_BEGUN:
            raise
        raise UserError(f"{' '.join(flags)}: {error}. --hydra-help says what the flags are for.") from error


def _require_hydras_own(cfg: DictConfig) -> None:
    """Raise UserError if a part of Hydra's own configuration was replaced by a single value."""
    for name in ("run", "sweep", "launcher", "sweeper", "job", "runtime"):
        value = cfg.hydra[name]
        if not isinstance(value, DictConfig) and not (value is None and name in ("launcher", "sweeper")):
            raise UserError(
                f"hydra.{name}={checks.as_typed(value)}: it has keys of its own, such as hydra.run.dir=PATH."
            )


@contextlib.contextmanager
def _before_it_begins(run_dir: Path, typed: list[str]) -> Iterator[None]:
    """Run the block and turn what Hydra raises before the run begins into UserError.

    At that point a folder or a value of hydra.* is wrong.
    """
    RUN_HAS_BEGUN.clear()
    new = [folder for folder in (run_dir, *run_dir.parents) if not folder.exists()]
    try:
        require_writable(run_dir)
        yield
    except Exception as error:
        raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        of_hydra = isinstance(error, HydraException | OmegaConfBaseException)
        if RUN_HAS_BEGUN or (PACKAGE in raised_in.parents and not of_hydra):  # the run's own error, or a bug of ours
            raise
        with contextlib.suppress(OSError):  # nothing was begun, so nothing is left behind
            if run_dir in new:
                shutil.rmtree(run_dir, ignore_errors=True)
            for folder in new[1:]:
                folder.rmdir()
        if of_hydra:
            raise
        causes: list[BaseException | None] = [error, error.__cause__, error.__context__]
        for cause in causes:
            if isinstance(cause, OSError):
                raise UserError(f"{cause.filename}: cannot be written ({cause.strerror}).") from error
        words = [word for word in typed if word.lstrip("+~").startswith(("hydra.", "hydra/"))]
        reason = str(error).strip() or type(error).__name__
        raise UserError(f"{' '.join(words) or 'hydra'}: Hydra does not start the run ({reason}).") from error


def _sweep(typed: list[str], cfg: DictConfig) -> int:
    """Run the jobs of a sweep, then its table, and return the exit code; cfg is the configuration of the first job."""
    if cfg.resume is not None:
        raise UserError(f"resume={cfg.resume}: is of one run. A sweep goes on with sweep.resume={cfg.resume}.")
    config = _check(cfg, of_sweep=True)
    for kind in ("launcher", "sweeper"):
        if cfg.hydra[kind] is None:
            raise UserError(f"hydra.{kind}=null: a sweep needs one. Leave it out, or choose with hydra/{kind}=NAME.")
    Plugins.instance().class_name_to_class |= {plan.GRID: Grid, plan.SEARCH: search.Search}
    launcher = cfg.hydra.runtime.choices["hydra/launcher"]

    @functools.cache  # so that jobs side by side do not all download it; kept for those of this process
    def data_digest() -> str | None:
        if launcher not in ON_THIS_MACHINE:
            return None
        from vae_exp.config import build

        found = build.dataset(config).fingerprint
        return None if found is None else found.digest()

    planned = plan.plan(typed, cfg, data_digest)
    if planned.search:
        search.check(cfg, planned.values)
    elif cfg.sweep.prune:
        study.require_optuna(f"sweep.prune={cfg.sweep.prune}")
    digest = data_digest()  # read last: what else may be refused needs no data
    planned = replace(planned, data=digest if planned.has_one_dataset else None)
    jobs.start(planned)
    sys.argv[1:] = ["--multirun", *planned.overrides]
    stopped, error = 0, None
    try:
        with jobs.report_jobs(planned, launcher, cfg.hydra.launcher.get("n_jobs")), jobs.cache_configs():
            _job()
    except KeyboardInterrupt:
        stopped = 130
    except SystemExit as stop:
        stopped = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except Exception as raised:  # a launcher's or a sweeper's: what was done until then is still told
        error = raised
    code = summary.finish(planned, config["wandb"], stopped=bool(stopped))
    if error is not None and code:
        write(planned.folder / "error.log", "".join(traceback.format_exception(error)))
        raise UserError(f"the sweep ended early: {error}\nThe traceback is in {planned.folder}/error.log") from error
    return stopped or code


@hydra.main(version_base=HYDRA_VERSION, config_path=str(CONF_DIR), config_name="config")
def _job(cfg: DictConfig) -> float | None:
    """Run one job of Hydra's, which is one run, and return what a search minimises."""
    RUN_HAS_BEGUN.append(True)
    job = HydraConfig.get()
    run_dir = Path(os.path.relpath(job.runtime.output_dir))
    if job.mode == RunMode.MULTIRUN:
        return jobs.run_job(cfg, run_dir, job)

    with jobs.ends_with_its_launcher():
        _one_run(cfg, run_dir)
    return None


def _one_run(cfg: DictConfig, run_dir: Path) -> None:
    """Carry out a run that is not a job of a sweep, and log how it ended."""
    if cfg.devices > 1 and torchrun_env.started() == 1:
        launch(cfg.devices, sys.argv[1:], run_dir)
        return
    from vae_exp.tracking.tracker import record_failure
    from vae_exp.train import train

    try:
        summary = train(cfg, run_dir)
        log.info(final_message(summary, run_dir, cfg.dataset["_target_"]))
    except KeyboardInterrupt:
        log.info(f"Stopped by Ctrl-C. What was finished until then is in {run_dir}{resume_hint(run_dir)}")
        raise
    except SystemExit:
        log.info(f"Stopped by SIGTERM. What was finished until then is in {run_dir}{resume_hint(run_dir)}")
        raise
    except UserError as error:
        record_failure(cfg, run_dir, str(error))
        log.error(f"vae-train: {error}{resume_hint(run_dir) if isinstance(error, PeerLost | Unwritable) else ''}")
        sys.exit(1)


def _to_resume(typed: list[str], cfg: DictConfig) -> tuple[list[str], Path]:
    """Return the command line that resumes the run that cfg.resume means, as it was started, and its folder.

    Raises UserError if there is none, if it is finished or still running, or if the configuration contradicts it.
    """
    run_dir = checks.path_of("hydra.run.dir", cfg.hydra.run.dir)
    if cfg.resume == "auto":
        folder = resume.find_unfinished(_check(cfg), run_dir)
        if folder is None:
            anew = [*_without(typed, {"resume"}), "resume=null"]
            # What a run left that was stopped before its first checkpoint is no loss.
            return [*anew, "replace=true"] if holds_run(run_dir) else anew, run_dir
    else:
        folder = resume.find(str(cfg.resume))
        words = parse(typed)
        before = read_overrides(folder, typed=typed)
        if before is None:
            print(f"resume={folder}: {OVERRIDES} cannot be read there: type all that the run was started with again.")
        stored = _without(before or [], {"resume", "replace", *(word.key_or_group for word in words)})
        typed = _without(typed, {"resume"})
        resume.require_known(folder, stored, typed, cfg.trust is True)
        typed = [*stored, *typed]
        typed = resume.with_its_data(folder, typed, {word.key_or_group for word in words})
    typed = [*_without(typed, {"resume", "hydra.run.dir"}), f"resume={literal(folder)}"]
    config = _check(compose("config", typed))
    require_no_owner(folder)
    resume.require_unfinished(folder, config)
    resume.load(folder, config, quiet=True)
    # One run, also where it was a job of a preset that is a sweep.
    return [*typed, f"hydra.run.dir={literal(folder)}", "hydra.mode=RUN"], folder


def _without(overrides: list[str], keys: set[str]) -> list[str]:
    return [plan.line(word) for word in parse(overrides) if word.key_or_group not in keys]


def _check(cfg: DictConfig, of_sweep: bool = False) -> Config:
    """Raise UserError for a bad configuration, before Hydra makes a folder for the run; return the checked one."""
    cfg = without_hydra(cfg)
    checks.check(cfg, combinations=not of_sweep)  # at once, before torch is imported for what only torch can tell
    from vae_exp.config import build
    from vae_exp.tracking import wandb_run
    from vae_exp.training import precision

    wandb_run.check_environment(cfg.wandb.mode, several_runs=of_sweep)
    if cfg.wandb.mode == "online":
        wandb_run.api_key(cfg.wandb.mode)
    config = build.check(cfg, combinations=not of_sweep)
    if torchrun_env.started() == 1:
        build.require(config["device"], config["devices"])
    precision.check(config["precision"], config["compile"], build.device(config["device"]))
    return config
