"""Run the jobs of a sweep, in one process or several."""

import contextlib
import functools
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vae_exp.config import checks
from vae_exp.config.compose import without_hydra
from vae_exp.config.schema import Config, SweepKeys, judged_by, result_of
from vae_exp.errors import PeerLost, UserError, in_users_code, printable
from vae_exp.files import read_text
from vae_exp.sweeps import study
from vae_exp.sweeps.plan import SEARCH, Plan
from vae_exp.sweeps.values import line
from vae_exp.torchrun_env import follows, safe_path, started
from vae_exp.training import console, resume, threads
from vae_exp.training.console import say
from vae_exp.training.run_dir import LOCK, LOG, SUMMARY, Summary, read_summary, require_no_owner, runs_below

log = logging.getLogger(__name__)
LAUNCHED_BY = "VAE_EXP_LAUNCHED_BY"  # in the environment of processes that another started for its jobs or its run
POLL_SECONDS = 0.5


@contextlib.contextmanager
def report_jobs(planned: Plan, launcher: str, n_jobs: int | None) -> Iterator[None]:
    """Print a line for each job that ends, read from its folder, while the block runs jobs in other processes."""
    if launcher == "basic" or (launcher == "joblib" and n_jobs == 1):  # jobs in this process speak for themselves
        yield
        return
    added = {name: value for name, value in safe_path().items() if name not in os.environ}
    if launcher == "joblib":
        # Joblib sets what is not set of these, and to 1 also where there are few jobs.
        most = os.environ.get("OMP_NUM_THREADS", str(threads.available_cores()))
        added |= {name: most for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if name not in os.environ}
        added[LAUNCHED_BY] = str(os.getpid())
    os.environ.update(added)
    over = threading.Event()
    reporter = threading.Thread(target=_report, args=(planned, over), daemon=True)
    reporter.start()
    try:
        yield
    finally:
        over.set()
        reporter.join()
        for name in added:
            os.environ.pop(name, None)


def parallel_jobs(hydra_cfg: Any) -> int:
    """Return how many jobs joblib runs at once: n_jobs, from all cores down if negative; other launchers run one."""
    n_jobs = hydra_cfg.launcher.get("n_jobs") or 1
    return n_jobs if n_jobs > 0 else max(1, threads.available_cores() + 1 + n_jobs)


def print_alone(text: str) -> None:
    """Print a text, unless the process that started this one does: lines of parallel jobs would mix."""
    if not _launcher():
        say(text)


def _report(planned: Plan, over: threading.Event) -> None:
    start_time, ended, done = time.monotonic(), 0, 0
    known = {folder: _written_at(folder) for folder in runs_below(planned.folder)}
    for folder in sorted(known):
        if (summary := read_summary(folder)) is not None and summary.is_done:
            done += 1
            say(f"{printable(folder.name)}  already {summary.state}")
    notes, is_last = list(console.NOTES), False
    while not is_last:
        is_last = over.wait(POLL_SECONDS)  # once more after the last job has ended
        summaries = _summaries(planned.folder)
        _, failed = _counts(summaries)
        for folder, summary in reversed(summaries.items()):  # the one that ended first
            written = _written_at(folder)
            if summary.state == "running" or known.get(folder) == written:
                continue
            known[folder], ended, done = written, ended + 1, done + summary.is_done
            with contextlib.suppress(OSError):  # of a job that ended before it had a log
                for note in [note for note in notes if note in read_text(folder / LOG)]:
                    notes.remove(note)
                    say(note)
            left = (time.monotonic() - start_time) / ended * (planned.jobs - done - failed)
            name = printable(folder.relative_to(planned.folder))
            say(f"{name}  {_ending(summary)}    {done} of {planned.jobs} done{_time_left(left)}")


def _summaries(folder: Path) -> dict[Path, Summary]:
    """Return what the jobs of a sweep have written of themselves; not what another process is writing just now."""
    return {run: summary for run in runs_below(folder) if (summary := read_summary(run)) is not None}


@functools.cache
def _ended(folder: Path) -> dict[Path, Summary]:
    """Return what `_summaries` finds when it is first asked, to which this process adds the jobs that it runs.

    Looking through the folder before each job would take the longer the more there are.
    """
    return _summaries(folder)


def _counts(summaries: dict[Path, Summary]) -> tuple[list[float], int]:
    """Return the seconds of each job that is done, and how many have failed."""
    failed = sum(summary.state == "failed" for summary in summaries.values())
    return [summary.seconds for summary in summaries.values() if summary.is_done], failed


def _time_left(seconds: float) -> str:
    if seconds <= 0:
        return ""
    return f", about {seconds / 60:.0f} min left" if seconds >= 90 else f", about {seconds:.0f} s left"


def _ending(summary: Summary) -> str:
    if not summary.is_done:
        return f"{summary.state}: {summary.reason}"
    pruned = "" if summary.finished else f"  {summary.state}"
    return f"neg_elbo {summary.score:.3f}  {summary.seconds:.1f} s{pruned}" if summary.score is not None else "finished"


def _written_at(folder: Path) -> int:
    with contextlib.suppress(OSError):
        return (folder / SUMMARY).stat().st_mtime_ns
    return 0


def _launcher() -> int | None:
    """Return the id of the process that started this one for its jobs or its run, or None in any other process."""
    pid = os.environ.get(LAUNCHED_BY)
    return int(pid) if pid and int(pid) != os.getpid() else None


@contextlib.contextmanager
def ends_with_its_launcher() -> Iterator[None]:
    """Run the block, a run; if the process that started this one is gone, save as for SIGTERM and end."""
    launcher = _launcher()
    if launcher is None:
        yield
        return
    over = threading.Event()

    def watch() -> None:
        while not over.wait(POLL_SECONDS):
            if os.getppid() != launcher:
                os.kill(os.getpid(), signal.SIGTERM)
                return

    threading.Thread(target=watch, daemon=True).start()
    try:
        if os.getppid() == launcher:
            yield
    finally:
        over.set()
        if os.getppid() != launcher:
            sys.stdout.flush()  # joblib would go on to the next job that it holds, or wait for one
            os._exit(128 + signal.SIGTERM)


def has_owner(folder: Path) -> bool:
    try:
        require_no_owner(folder)
    except UserError:
        return True
    return False


def wait_for_owner(folder: Path) -> None:
    """Wait until no other process trains in the folder: one that outlived its sweep saves, or finishes."""
    if has_owner(folder):
        with contextlib.suppress(OSError):
            say(f"waits for process {read_text(folder / LOCK).strip() or '?'}, which trains in {printable(folder)}")
    while has_owner(folder):
        time.sleep(POLL_SECONDS)


def check(cfg: DictConfig, several_runs: bool = False) -> Config:
    """Return the checked configuration of a run, or of the first job of a sweep. Raises UserError for a bad one."""
    cfg = without_hydra(cfg)
    checks.check(cfg, combinations=not several_runs)  # at once, before torch is imported for what only torch can tell
    from vae_exp.config import build
    from vae_exp.tracking import wandb_run
    from vae_exp.training import precision

    wandb_run.check_environment(cfg.wandb.mode, several_runs=several_runs)
    if cfg.wandb.mode == "online":
        wandb_run.api_key(cfg.wandb.mode)
    config = build.check(cfg, combinations=not several_runs)
    if started() == 1:
        build.device(config["device"], config["devices"])
    precision.check(config["precision"], config["compile"], build.device(config["device"]))
    return config


def check_init_from(config: Config) -> None:
    """Raise UserError if the weights that a run is to begin with cannot be read."""
    if config["init_from"] is not None:  # else torch need not be imported
        from vae_exp.training import init_from

        init_from.read(config, keep=True)


def require_one_process(cfg: DictConfig, overrides: list[Override]) -> None:
    """Raise UserError for a sweep that was started in several processes, or whose jobs would be so by `devices`."""
    swept = [line(word) for word in overrides if word.key_or_group == "devices" and line(word) != "devices=1"]
    if started() > 1 or cfg.devices != 1 or swept:
        setting = swept[0] if swept else f"devices={max(started(), cfg.devices)}"
        instead = "jobs side by side are spread over the GPUs (hydra/launcher=joblib)"
        raise UserError(f"{setting}: is of one run. In a sweep each job is one process on one device; {instead}.")


def start(planned: Plan) -> None:
    """Write down what the sweep is, so that it can be resumed and read."""
    planned.write()
    _ended.cache_clear()
    if planned.has_study:
        study.start(planned.folder, planned.name, planned.sign)
    over = f" over {', '.join(planned.keys)}" if planned.keys else "; nothing to sweep: no key has several values"
    name, folder = printable(planned.name), printable(planned.folder)
    say(f"sweep {name}: {planned.jobs} job{'s' * (planned.jobs != 1)}{over}\nfolder {folder}")


def run_job(cfg: DictConfig, run_dir: Path, job: Any) -> None:
    """Run one job, without an error if it fails, so that the others go on; job is Hydra's own configuration."""
    if _launcher() is not None:
        threads.end_quickly()
        console.open_streams()
        console.noted |= set(console.NOTES)  # _report prints them once
    if job.runtime.choices["hydra/launcher"].startswith("submitit"):
        from submitit import JobEnvironment
        from submitit.helpers import TorchDistributedEnvironment

        if JobEnvironment().num_tasks > 1:  # each with all GPUs in sight, of which it takes its own
            TorchDistributedEnvironment().export(overwrite=True, set_cuda_visible_devices=False)
    if started() > 1:
        _run_distributed(cfg, run_dir, job)
        return
    with ends_with_its_launcher():
        _run_job(cfg, run_dir, job)
    if (summary := read_summary(run_dir)) is not None:
        _ended(Path(job.sweep.dir).absolute())[run_dir.absolute()] = summary


def _run_distributed(cfg: DictConfig, run_dir: Path, job: Any) -> None:
    """Run a job in several processes: the first decides whether to train, and reports how the job ends."""
    from vae_exp import distributed
    from vae_exp.train import train

    # PeerLost is raised in the others when the first is done.
    with contextlib.suppress(PeerLost), distributed.process_group():
        if not follows():
            _run_job(cfg, run_dir, job)
            return
        with contextlib.suppress(Exception):
            if distributed.broadcast(lambda: False):
                train(cfg, "")


def _run_job(cfg: DictConfig, run_dir: Path, job: Any) -> None:
    choices, requested = job.runtime.choices, cfg
    swept = [f"{key}={choices.get(key) or _as_text(cfg, key)}" for key in cfg.sweep.over]
    changes: dict[str, Any] = {"sweep": {"over": swept}}  # with their values, for the run's name
    title = f"{_progress(cfg, Path(job.sweep.dir), job.job.num)}  {'  '.join(swept)}"
    if cfg.sweep.resume or (run_dir / LOCK).exists():  # or a cluster starts the job again
        wait_for_owner(run_dir)
        before = read_summary(run_dir)
        if before is not None and before.is_done and before.score is not None:
            print_alone(f"{title}  already {before.state}")
            _let_train(False)
            if judge := _judge(cfg, swept, run_dir, job):  # the sweep may have been killed before it was told
                judge.record(before.as_dict())
            return
        is_resumable = resume.is_resumable(run_dir)  # what failed is replaced
        changes |= {"resume": str(run_dir) if is_resumable else None, "replace": not is_resumable}
        changes |= {"init_from": None} if is_resumable else {}
        title += "  resumes" if is_resumable else ""
    print_alone(title)
    for handler in logging.getLogger().handlers:  # the epochs of many jobs go to their train.log alone
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            handler.setLevel(logging.WARNING)
    cfg, judge = cast("DictConfig", OmegaConf.merge(cfg, changes)), None
    from vae_exp.tracking.tracker import record_failure

    try:
        if reason := _ending_of_parent(cfg, run_dir):
            _let_train(False)
            raise UserError(reason)
        _share_machine(cfg, job)
        judge = _judge(cfg, swept, run_dir, job)
        _let_train(True)
        _train(cfg, run_dir, judge)
        return
    except UserError as error:
        if started() == 1 and has_owner(run_dir):  # another process took it over
            _run_job(requested, run_dir, job)
            return
        reason = str(error)
    except Exception as error:
        problem = in_users_code(error)  # then the traceback is for train.log alone
        log.log(logging.INFO if problem else logging.ERROR, "The job failed.", exc_info=True)
        reason = str(problem or f"{type(error).__name__}: {error}")
    log.info(f"failed: {reason}")  # for train.log
    print_alone(f"      failed: {reason}")
    record_failure(cfg, run_dir, reason)
    if judge:
        judge.record(None)


def _ending_of_parent(cfg: DictConfig, run_dir: Path) -> str | None:
    """Return why a job cannot begin if the job that it starts from has not finished, else None."""
    if not cfg.sweep.warm_start or cfg.init_from is None:
        return None
    parent = Path(cfg.init_from).parent
    summary = read_summary(parent)
    if parent.resolve().parent != run_dir.resolve().parent or (summary is not None and summary.finished):
        return None
    return f"it starts from {parent.name}, which is {'not there' if summary is None else summary.state}"


def _train(cfg: DictConfig, run_dir: Path, judge: study.Judge | None) -> None:
    """Train, print how the run ended, and record it in the study."""
    from vae_exp.train import train

    start_time = time.time()
    summary = train(cfg, run_dir, judge)
    score = summary.get("best/val_neg_elbo", summary["test/neg_elbo"])
    pruned = f"  pruned: {summary['reason']}" if summary["state"] == "pruned" else ""
    print_alone(f"      neg_elbo {score:.3f}  {time.time() - start_time:.1f} s{pruned}")
    if judge:
        judge.record(summary)
        if summary.get(result_of(judge.metric)) is None:
            print_alone(f"      no {judge.metric} to be judged by: the run ended before its first epoch was over")


def _let_train(trains: bool) -> None:
    """Tell the other processes of a job, if it has several, whether this one trains."""
    if started() > 1:
        from vae_exp import distributed

        distributed.broadcast(lambda: trains)


def _judge(cfg: DictConfig, swept: list[str], run_dir: Path, job: Any) -> study.Judge | None:
    """Return the Judge that follows the job in the study of its sweep, or None if there is no study."""
    is_search = job.sweeper.get("_target_") == SEARCH
    if not is_search and not cfg.sweep.prune:
        return None
    keys = cast("SweepKeys", OmegaConf.to_container(cfg.sweep, resolve=True))
    keys["metric"], _ = judged_by(cfg)
    return study.Judge(keys, swept, cfg.epochs, run_dir, job.job.num if is_search else None)


def _as_text(cfg: DictConfig, key: str) -> str:
    """Return a swept value as text, "?" for a broken interpolation: the job's checks complain of that."""
    with contextlib.suppress(OmegaConfBaseException):
        return str(OmegaConf.select(cfg, key.lstrip("+")))
    return "?"


def _share_machine(cfg: DictConfig, job: Any) -> None:
    """Give jobs that run side by side a part of the cores each, and the GPUs by turns."""
    from vae_exp.config import build

    at_once = parallel_jobs(job)
    if job.runtime.choices["hydra/launcher"] == "submitit_local":  # it starts all jobs of a grid on this machine
        at_once = job.sweeper.get("n_jobs", cfg.sweep.jobs) or 1
    if (at_once := min(at_once, cfg.sweep.jobs or at_once)) > 1:
        threads.share(at_once)
        if started() == 1:
            cfg.device = build.job_device(cfg.device, job.job.num)


def _progress(cfg: DictConfig, folder: Path, number: int) -> str:
    """Return the progress as text, such as: job 3/6: 2 done, about 1 min left."""
    (seconds, failed), total = _counts(_ended(folder.absolute())), cfg.sweep.jobs
    text = f"job {number + 1}/{total or '?'}: {len(seconds)} done" + (f", {failed} failed" if failed else "")
    if not seconds or not total:
        return text
    return text + _time_left(sum(seconds) / len(seconds) * (total - len(seconds) - failed))
