"""The jobs of a sweep one by one, and the table, the files and the figures at the end."""

import contextlib
import logging
import shlex
import time
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vae_exp.comparing import comparable
from vae_exp.comparing import runs as results
from vae_exp.comparing.runs import Run
from vae_exp.comparing.terminal import table, wrapped
from vae_exp.config.keys import WandbKeys
from vae_exp.errors import UserError
from vae_exp.run import resume
from vae_exp.run.console import say
from vae_exp.run.folder import BEST, read_overrides, read_summary, runs_below
from vae_exp.sweep import processes
from vae_exp.sweep.plan import Plan

log = logging.getLogger(__name__)
PRINTED_COLUMNS = ("val/neg_elbo", "test/neg_elbo", "test/reconstruction", "test/kl", "seconds")
MOST_BESTS = 5  # that are told of: where runs do not compare there may be as many as jobs


def start(planned: Plan) -> None:
    """Write down what the sweep is, so that it can be resumed and read."""
    planned.write()
    keys = ", ".join(planned.keys) or "nothing"
    say(f"sweep {planned.name}: {planned.jobs} jobs over {keys}\nfolder {planned.folder}")


def run_job(cfg: DictConfig, run_dir: Path, job: Any) -> float | None:
    """One job. It never raises for a failed run, so that the others go on: the reason is in its files.

    job is Hydra's own configuration. Returns the best validation neg_elbo, which a search minimises, or None,
    which it counts as a failed trial.
    """
    with processes.ends_with_its_sweep():
        return _run_job(cfg, run_dir, job)


def _run_job(cfg: DictConfig, run_dir: Path, job: Any) -> float | None:
    tell = processes.tell
    as_asked, choices = cfg, job.runtime.choices
    swept = [f"{key}={choices.get(key) or _shown(cfg, key)}" for key in cfg.sweep.over]
    changes: dict[str, Any] = {"sweep": {"over": swept}}  # with their values, for the run's name
    title = f"{_progress(cfg, run_dir, job.job.num)}  {'  '.join(swept)}"
    if cfg.sweep.resume:
        processes.wait_for_owner(run_dir)
        before = read_summary(run_dir)
        if before is not None and before.finished and before.score is not None:
            tell(f"{title}  already finished")
            return before.score
        goes_on = resume.can_go_on(run_dir)
        changes |= {"resume": str(run_dir) if goes_on else None, "replace": not goes_on}  # what failed is replaced
        title += "  goes on" if goes_on else ""
    tell(title)
    for handler in logging.getLogger().handlers:  # the epochs of many jobs go to their train.log alone
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            handler.setLevel(logging.WARNING)
    cfg = cast("DictConfig", OmegaConf.merge(cfg, changes))
    started = time.time()
    try:
        from vae_exp.train import train

        _share_cores(cfg, job)
        summary = train(cfg, run_dir)
        value = summary.get("best/val_neg_elbo", summary["test/neg_elbo"])
        tell(f"      neg_elbo {value:.3f}  {time.time() - started:.1f} s")
        return value
    except UserError as error:
        if as_asked.sweep.resume and processes.has_owner(run_dir):  # another process was quicker to take it over
            return _run_job(as_asked, run_dir, job)
        reason = str(error)
    except Exception as error:  # out of memory, or a bug: the traceback is in the job's train.log
        log.exception("The job failed.")
        reason = f"{type(error).__name__}: {error}"
    tell(f"      failed: {reason}")
    from vae_exp.tracking.tracker import record_failure

    record_failure(cfg, run_dir, reason)
    return None


def _shown(cfg: DictConfig, key: str) -> str:
    """A swept value; an interpolation that leads nowhere is complained of by the checks of its job."""
    with contextlib.suppress(OmegaConfBaseException):
        return str(OmegaConf.select(cfg, key.lstrip("+")))
    return "?"


def _share_cores(cfg: DictConfig, job: Any) -> None:
    """Give jobs that run side by side a part of the cores each.

    Joblib says how many there are at once, counted back from all cores where it is negative (-1, its default, is all);
    submitit starts all of them on this machine.
    """
    from vae_exp.run import cores, threads

    at_once = job.launcher.get("n_jobs")
    if job.runtime.choices["hydra/launcher"] == "submitit_local":
        at_once = cfg.sweep.jobs
    elif at_once and at_once < 0:
        at_once = max(1, cores.allowed() + 1 + at_once)
    if at_once and (at_once := min(at_once, cfg.sweep.jobs or at_once)) > 1:
        threads.share(at_once)


def _progress(cfg: DictConfig, run_dir: Path, number: int) -> str:
    """Such as: job 3/6: 2 done, about 1 min left."""
    summaries = [read_summary(folder) for folder in runs_below(run_dir.parent)]  # None: another process writes it
    seconds = [summary.seconds for summary in summaries if summary is not None and summary.finished]
    failed = sum(summary is not None and summary.state == "failed" for summary in summaries)
    text = f"job {number + 1}/{cfg.sweep.jobs or '?'}: {len(seconds)} done"
    text += f", {failed} failed" if failed else ""
    if seconds and cfg.sweep.jobs:
        text += processes.time_left(sum(seconds) / len(seconds) * (cfg.sweep.jobs - len(seconds) - failed))
    return text


def finish(planned: Plan, wandb: WandbKeys, stopped: bool = False) -> int:
    """The table at the end, results.csv, the figures, and the same in W&B. Returns the exit code.

    Made from the files of the runs, because Hydra calls no end-of-sweep hook after a failure or a stop.
    """
    runs = _read_jobs(planned)
    done = sum(run.finished for run in runs)
    columns = [*_columns(planned.keys, runs), "state", *results.RESULTS]
    results.write_csv(planned.folder / "results.csv", runs, [*columns, "reason"], base=planned.folder)

    folded = results.fold_seeds(runs)
    metric = comparable.metric_of(runs)
    bests = comparable.bests(folded)
    keys = _columns([key for key in planned.keys if key not in results.SEEDS], folded)
    shown = [*keys, *(name for name in PRINTED_COLUMNS if any(name in run.metrics for run in runs))]
    shown += ["state", "reason"] if done < len(runs) else []
    if runs:
        rows = results.sort_runs(folded, metric)
        say("\n" + table(rows, shown, bests, metric, f"{planned.folder}/results.csv"))
        say("\n".join(wrapped([why] if (why := comparable.why_several(folded)) else [])))
    say(f"{done} of {planned.jobs} jobs finished; table {planned.folder}/results.csv")
    if done < planned.jobs and not planned.search:
        say(f"go on   the same command with sweep.resume={planned.folder}")
    for best in bests[:MOST_BESTS]:
        _say_best(planned, best)
    if bests:
        say(f"compare vae-compare {planned.folder} --html report.html")
    if bests and not stopped:
        from vae_exp.comparing import plots
        from vae_exp.tracking.wandb_afterwards import publish_sweep

        figures = plots.of_sweep(folded, runs, keys, metric, planned.folder)
        for figure in figures:
            say(f"figure  {figure}")
        numbers = {f"best/{column}": bests[0].value(column) for column in shown} if len(bests) == 1 else {}
        lines = [[run.value(column) for column in shown] for run in folded]
        publish_sweep(planned.name, wandb, shown, lines, figures, numbers | {"done": done, "jobs": planned.jobs})
    return 0 if done >= planned.jobs or (planned.search and done) else 1


def _read_jobs(planned: Plan) -> list[Run]:
    """The runs of a sweep, in the order of their swept values; what cannot be read is said and left out."""
    runs = []
    for folder in runs_below(planned.folder):
        try:
            runs.append(results.read_run(folder))
        except UserError as error:  # the other jobs are told of all the same
            say(f"left out: {error}")
    return sorted(runs, key=lambda run: ([results.order(run.value(key)) for key in planned.keys], str(run.folder)))


def _say_best(planned: Plan, best: Run) -> None:
    """Where the best run is, and what to type next."""
    one = comparable.best(best.members, comparable.metric_of(best.members)) or best  # of these settings the best seed
    say(f"best    {one.folder}/{BEST}")
    if typed := read_overrides(one.folder):
        overrides = [word for word in typed if not word.startswith("sweep.")]
        say(f"again   vae-train {shlex.join(overrides + planned.single)}")


def _columns(keys: list[str], runs: list[Run]) -> list[str]:
    """The swept keys as columns of results, and whatever else differs (a swept group changes several keys)."""
    swept = [key for key in keys if any(key in run.config for run in runs)]
    return list(dict.fromkeys([*swept, *results.differing(runs)]))
