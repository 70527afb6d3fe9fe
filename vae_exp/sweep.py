"""Sweeps: their jobs one by one, and the table, the files and the figures at the end."""

import json
import logging
import os
import shutil
import time
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from vae_exp import results
from vae_exp.config import UserError
from vae_exp.plan import Plan

TOLD = ("val/neg_elbo", "test/neg_elbo", "test/reconstruction", "test/kl", "seconds")  # columns for people


def start(planned: Plan) -> None:
    """Write down what the sweep is, so that it can be resumed and read."""
    planned.folder.mkdir(parents=True, exist_ok=True)
    record = {name: getattr(planned, name) for name in ("name", "keys", "jobs", "settings", "values")}
    (planned.folder / "sweep.json").write_text(json.dumps(record, indent=2) + "\n")
    keys = ", ".join(planned.keys) or "nothing"
    _say(f"sweep {planned.name}: {planned.jobs} jobs over {keys}\nfolder {planned.folder}")


def run_job(cfg: DictConfig, run_dir: Path, number: int, launcher: DictConfig) -> float | None:
    """One job. It never raises for a failed run, so that the others go on: the reason is in its files.

    Returns the best validation neg_elbo, which a search minimises, or None, which it counts as a failed trial.
    """
    words = "  ".join(f"{key}={OmegaConf.select(cfg, key)}" for key in cfg.sweep.over if "." in key or key == "seed")
    if cfg.sweep.resume:
        kept = _finished_value(run_dir)
        if kept is not None:
            _say(f"{_progress(cfg, run_dir, number)}  {words}  already finished")
            return kept
        for stale in ("images", "metrics.jsonl", "last.pt", "best.pt", "summary.json"):
            path = run_dir / stale
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    _say(f"{_progress(cfg, run_dir, number)}  {words}")
    for handler in logging.getLogger().handlers:  # the epochs of many jobs go to their train.log alone
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            handler.setLevel(logging.WARNING)
    started = time.time()
    try:
        from vae_exp.train import train

        _share_cores(cfg, launcher)
        summary = train(cfg, run_dir)
        value = summary.get("best/val_neg_elbo", summary["test/neg_elbo"])
        _say(f"      neg_elbo {value:.3f}  {time.time() - started:.1f} s")
        return value
    except UserError as error:
        reason = str(error)
    except Exception as error:
        logging.getLogger(__name__).exception("The job failed by a bug.")
        reason = f"{type(error).__name__}: {error}"
    _say(f"      failed: {reason}")
    from vae_exp import tracker

    tracker.record_failure(cfg, run_dir, reason)
    return None


def _share_cores(cfg: DictConfig, launcher: DictConfig) -> None:
    """Give jobs that run side by side a part of the cores each: thread pools that share cores spin against each other.

    Joblib says how many there are at once; submitit starts all of them on this machine.
    """
    import torch

    at_once = cfg.sweep.jobs if str(launcher["_target_"]).endswith("LocalLauncher") else launcher.get("n_jobs")
    if at_once:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        at_once = cores if at_once < 0 else at_once
        torch.set_num_threads(min(torch.get_num_threads(), max(1, cores // at_once)))


def finish(planned: Plan, wandb: DictConfig, stopped: bool = False) -> int:
    """The table at the end, results.csv, the figures, and the same in W&B. Returns the exit code.

    Made from the files of the runs, because Hydra calls no end-of-sweep hook after a failure or a stop.
    """
    folders = [summary.parent for summary in planned.folder.glob("*/summary.json")]
    runs = sorted((results.read_run(folder) for folder in folders), key=_by_keys(planned.keys))
    done = sum(run.finished for run in runs)
    columns = [*_columns(planned.keys, runs), "state", *results.METRICS]
    results.write_csv(planned.folder / "results.csv", runs, [*columns, "reason"], base=planned.folder)
    folded = results.fold_seeds(runs)
    metric = "val/neg_elbo" if any("val/neg_elbo" in run.metrics for run in runs) else "test/neg_elbo"
    best = results.best(folded, metric)
    shown = [*_columns([key for key in planned.keys if key not in results.SEEDS], folded)]
    shown += ["state"] if done < len(runs) else []
    shown += [name for name in TOLD if any(name in run.metrics for run in runs)]
    shown += ["reason"] if done < len(runs) else []
    lines = ["", results.table(results.sort_runs(folded, metric), shown, best) if best else "no job has finished"]
    figures = []
    if best and not stopped:
        from vae_exp import plots

        figures = plots.of_sweep(folded, runs, [key for key in shown if key in best.config], metric, planned.folder)
    lines += ["", f"{done} of {planned.jobs} jobs finished; table {planned.folder}/results.csv"]
    lines += [f"figure  {figure}" for figure in figures]
    if done < planned.jobs and not planned.search:
        lines += [f"go on   the same command with sweep.resume={planned.folder}"]
    if best:
        one = results.best([run for run in runs if run.finished], metric)
        settings = [f"{key}={one.value(key)}" for key in planned.keys if one.value(key) is not None]
        lines += [
            f"best    {one.folder}/best.pt",
            f"again   vae-train {' '.join([*planned.settings, *settings, *planned.single])}",
        ]
    lines += [f"compare vae-compare {planned.folder} --html report.html"] if best else []
    _say("\n".join(lines))
    if runs and not stopped:
        from vae_exp import tracker

        rows = [[run.value(column) for column in shown] for run in folded]
        numbers = {f"best/{column}": best.value(column) for column in shown} if best else {}
        tracker.publish_sweep(planned.name, wandb, shown, rows, figures, numbers | {"done": done, "jobs": planned.jobs})
    return 0 if done >= planned.jobs or (planned.search and done) else 1


def _finished_value(run_dir: Path) -> float | None:
    try:
        summary = json.loads((run_dir / "summary.json").read_text())
        if summary["state"] == "finished":
            return summary.get("best/val_neg_elbo", summary["test/neg_elbo"])
    except (OSError, ValueError, KeyError):
        pass  # never started, or not whole: it is run again
    return None


def _progress(cfg: DictConfig, run_dir: Path, number: int) -> str:
    """Such as: job 3/6 (2 done, about 1 min left)."""
    summaries = [json.loads(path.read_text()) for path in run_dir.parent.glob("*/summary.json")]
    seconds = [summary["seconds"] for summary in summaries if summary["state"] == "finished"]
    failed = sum(summary["state"] == "failed" for summary in summaries)
    total = cfg.sweep.jobs
    text = f"job {number + 1}/{total}: {len(seconds)} done"
    text += f", {failed} failed" if failed else ""
    if seconds:
        left = sum(seconds) / len(seconds) * (total - len(seconds) - failed)
        text += f", about {left / 60:.0f} min left" if left >= 90 else f", about {left:.0f} s left"
    return text


def _columns(keys: list[str], runs: list[results.Run]) -> list[str]:
    """The swept keys as columns of results, and whatever else differs (a swept group changes several keys)."""
    return list(
        dict.fromkeys([*(key for key in keys if any(key in run.config for run in runs)), *results.differing(runs)])
    )


def _by_keys(keys: list[str]):
    def place(run: results.Run) -> list[tuple]:
        values = [run.value(key) for key in keys]
        return [(isinstance(v, str), v if isinstance(v, int | float | str) else str(v)) for v in values]

    return place


def _say(text: str) -> None:
    """Above the job's own progress bar, whatever the level of the log."""
    from tqdm import tqdm

    tqdm.write(text)
