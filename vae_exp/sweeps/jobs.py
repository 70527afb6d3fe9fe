"""The jobs of a sweep, one by one."""

import contextlib
import logging
import time
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vae_exp import torchrun_env
from vae_exp.config.keys import SweepKeys
from vae_exp.errors import PeerLost, UserError
from vae_exp.sweeps import config_cache, processes, study
from vae_exp.sweeps.plan import SEARCH, Plan
from vae_exp.training import console, resume
from vae_exp.training.console import say
from vae_exp.training.folder import read_summary, runs_below

log = logging.getLogger(__name__)


def start(planned: Plan) -> None:
    """Write down what the sweep is, so that it can be resumed and read."""
    planned.write()
    if planned.has_study:
        study.start(planned.folder, planned.name)
    keys = ", ".join(planned.keys) or "nothing"
    say(f"sweep {planned.name}: {planned.jobs} jobs over {keys}\nfolder {planned.folder}")


def run_job(cfg: DictConfig, run_dir: Path, job: Any) -> float | None:
    """Run one job. It never raises for a failed run, so that the others go on: the reason is in its files.

    job is Hydra's own configuration. Returns its sweep.metric, which another sweeper of Hydra's may want, or None if it
    failed or has none.
    """
    if processes.is_worker():
        config_cache.cache_configs_here()
        console.open_streams()
    if job.runtime.choices["hydra/launcher"].startswith("submitit"):
        processes.join_tasks()
    if torchrun_env.started() > 1:
        return _run_together(cfg, run_dir, job)
    with processes.ends_with_its_launcher():
        return _run_job(cfg, run_dir, job)


def _run_together(cfg: DictConfig, run_dir: Path, job: Any) -> float | None:
    """Run a job in several processes: the first decides whether to train, and reports how the job ends."""
    from vae_exp import distributed
    from vae_exp.train import train

    with (
        contextlib.suppress(PeerLost),
        distributed.process_group(),
    ):  # PeerLost is raised in the others when the first is done
        if torchrun_env.follows():
            with contextlib.suppress(Exception):
                if distributed.broadcast(lambda: False):
                    train(cfg, "")
            return None
        return _run_job(cfg, run_dir, job)
    return None


def _run_job(cfg: DictConfig, run_dir: Path, job: Any) -> float | None:
    tell = processes.tell
    as_asked, choices = cfg, job.runtime.choices
    swept = [f"{key}={choices.get(key) or _shown(cfg, key)}" for key in cfg.sweep.over]
    changes: dict[str, Any] = {"sweep": {"over": swept}}  # with their values, for the run's name
    title = f"{_progress(cfg, run_dir, job.job.num)}  {'  '.join(swept)}"
    if cfg.sweep.resume:
        processes.wait_for_owner(run_dir)
        before = read_summary(run_dir)
        if before is not None and before.is_done and before.score is not None:
            tell(f"{title}  already {before.state}")
            _let_train(False)
            if judge := _judge(cfg, swept, run_dir, job):  # the sweep may have been killed before it was told
                judge.tell(before.as_dict())
            return study.value_of(before.as_dict(), cfg.sweep.metric)
        goes_on = resume.is_resumable(run_dir)
        changes |= {"resume": str(run_dir) if goes_on else None, "replace": not goes_on}  # what failed is replaced
        title += "  goes on" if goes_on else ""
    tell(title)
    for handler in logging.getLogger().handlers:  # the epochs of many jobs go to their train.log alone
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            handler.setLevel(logging.WARNING)
    cfg = cast("DictConfig", OmegaConf.merge(cfg, changes))
    started, judge = time.time(), None
    try:
        from vae_exp.train import train

        _share_machine(cfg, job)
        judge = _judge(cfg, swept, run_dir, job)
        _let_train(True)
        summary = train(cfg, run_dir, judge)
        value = study.value_of(summary, cfg.sweep.metric)
        score = summary.get("best/val_neg_elbo", summary["test/neg_elbo"])
        pruned = f"  pruned: {summary['reason']}" if summary["state"] == "pruned" else ""
        tell(f"      neg_elbo {score:.3f}  {time.time() - started:.1f} s{pruned}")
        if judge:
            judge.tell(summary)
            if value is None:
                tell(f"      no {cfg.sweep.metric} to be judged by: the run ended before its first epoch was over")
        return value
    except UserError as error:
        taken = as_asked.sweep.resume and torchrun_env.started() == 1 and processes.has_owner(run_dir)
        if taken:  # another process was quicker to take it over
            return _run_job(as_asked, run_dir, job)
        reason = str(error)
    except Exception as error:  # out of memory, or a bug: the traceback is in the job's train.log
        log.exception("The job failed.")
        reason = f"{type(error).__name__}: {error}"
    tell(f"      failed: {reason}")
    from vae_exp.tracking.tracker import record_failure

    record_failure(cfg, run_dir, reason)
    if judge:
        judge.tell(None)
    return None


def _let_train(it_does: bool) -> None:
    """Tell the other processes of a job, if it has several, whether this one trains."""
    if torchrun_env.started() > 1:
        from vae_exp import distributed

        distributed.broadcast(lambda: it_does)


def _judge(cfg: DictConfig, swept: list[str], run_dir: Path, job: Any) -> study.Judge | None:
    """Return the Judge that follows the job in the study of its sweep, or None if there is no study."""
    is_search = job.sweeper.get("_target_") == SEARCH
    if not is_search and not cfg.sweep.prune:
        return None
    keys = cast("SweepKeys", OmegaConf.to_container(cfg.sweep, resolve=True))
    return study.Judge(keys, swept, cfg.epochs, run_dir, job.job.num if is_search else None)


def _shown(cfg: DictConfig, key: str) -> str:
    """Return a swept value as text, "?" for a broken interpolation: the job's checks complain of that."""
    with contextlib.suppress(OmegaConfBaseException):
        return str(OmegaConf.select(cfg, key.lstrip("+")))
    return "?"


def _share_machine(cfg: DictConfig, job: Any) -> None:
    """Give jobs that run side by side a part of the cores each, and the GPUs by turns.

    submitit starts all jobs of a grid on this machine.
    """
    from vae_exp.config import devices
    from vae_exp.training import threads

    at_once = processes.places(job)
    if job.runtime.choices["hydra/launcher"] == "submitit_local":
        at_once = job.sweeper.get("n_jobs", cfg.sweep.jobs) or 1
    if (at_once := min(at_once, cfg.sweep.jobs or at_once)) > 1:
        threads.share(at_once)
        if torchrun_env.started() == 1:
            cfg.device = devices.of_job(cfg.device, job.job.num)


def _progress(cfg: DictConfig, run_dir: Path, number: int) -> str:
    """Return the progress as text, such as: job 3/6: 2 done, about 1 min left."""
    summaries = [read_summary(folder) for folder in runs_below(run_dir.parent)]  # None: another process writes it
    seconds = [summary.seconds for summary in summaries if summary is not None and summary.is_done]
    failed = sum(summary is not None and summary.state == "failed" for summary in summaries)
    text = f"job {number + 1}/{cfg.sweep.jobs or '?'}: {len(seconds)} done"
    text += f", {failed} failed" if failed else ""
    if seconds and cfg.sweep.jobs:
        text += processes.time_left(sum(seconds) / len(seconds) * (cfg.sweep.jobs - len(seconds) - failed))
    return text
