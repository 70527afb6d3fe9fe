"""End a sweep: table, figures, closing lines."""

import shlex
from pathlib import Path
from typing import Any

from vae_exp.compare import runs as results
from vae_exp.compare import table
from vae_exp.compare.runs import PRUNED, Run
from vae_exp.compare.table import format_table, wrapped
from vae_exp.config.checks import CONF_DIR, as_argument, as_typed
from vae_exp.config.schema import WandbKeys
from vae_exp.errors import UserError
from vae_exp.files import read_yaml, write
from vae_exp.sweeps.plan import Plan
from vae_exp.tracking import wandb_logged
from vae_exp.training.console import say
from vae_exp.training.run_dir import BEST, config_dir, read_overrides, runs_below

# Added by the plan of a sweep to what was typed.
PLANNED = ("sweep.name=", "sweep.over=", "sweep.jobs=", "sweep.resume=")


def rerun_command(folder: Path) -> str | None:
    """Return vae-train -m and what was typed, with a new name and folder for the sweep, or None if unknown."""
    typed = read_overrides(folder, of_sweep=True)
    if typed is None:
        return None
    defaults: dict[str, Any] = read_yaml(CONF_DIR / "config.yaml")["sweep"]
    unchanged = {f"sweep.{key}={as_typed(value)}" for key, value in defaults.items()}
    kept = [word for word in typed if word not in unchanged and not word.startswith(PLANNED)]
    return shlex.join(["vae-train", "-m", *config_dir(folder), *kept])


PRINTED_COLUMNS = ("val/neg_elbo", "test/neg_elbo", "test/reconstruction", "test/kl", *results.SCORES, "seconds")
MOST_BESTS = 5  # that are told of: where runs do not compare there may be as many as jobs


def finish(planned: Plan, wandb: WandbKeys, stopped: bool = False) -> int:
    """Write the table at the end, results.csv, the figures, and the same in W&B. Returns the exit code.

    They are made from the files of the runs, because Hydra calls no end-of-sweep hook after a failure or a stop.
    """
    runs = _read_jobs(planned)
    pruned = sum(run.state == PRUNED for run in runs)
    done = sum(run.finished for run in runs) + pruned
    rare = (*results.SCORES, results.UDR)
    measured = [name for name in results.RESULTS if name not in rare or any(name in run.metrics for run in runs)]
    columns = [*results.setting_columns(runs), "state", *measured]
    write(planned.folder / "results.csv", results.as_csv(runs, [*columns, "reason"], base=planned.folder))

    folded = results.fold_seeds(runs)
    metric = table.metric_of(runs)
    bests = table.best_per_group(folded)
    keys = results.setting_columns(folded)
    shown = [*keys, *(name for name in PRINTED_COLUMNS if any(name in run.metrics for run in runs))]
    shown += ["state"] if done - pruned < len(runs) else []
    shown += ["reason"] if done < len(runs) else []
    figures: list[Path] = []
    if bests and not stopped:  # before anything is printed: whoever reads it may have gone
        from vae_exp.compare import plots
        from vae_exp.tracking.wandb_run import publish_sweep

        figures = plots.draw(folded, runs, keys, metric, planned.folder)
        numbers = {f"best/{column}": bests[0].value(column) for column in shown} if len(bests) == 1 else {}
        lines = [[run.value(column) for column in shown] for run in folded]
        folders = [run.folder for run in runs]
        numbers |= {"done": done, "jobs": planned.jobs}
        publish_sweep(planned.name, wandb, folders, shown, lines, figures, numbers)
    if runs:
        rows = results.sort_runs(folded, metric)
        say("\n" + format_table(rows, shown, bests, metric, f"{planned.folder}/results.csv"))
        say("\n".join(wrapped([why] if (why := table.describe_groups(folded)) else [])))
    told = f", {pruned} of them pruned" if pruned else ""
    say(f"{done} of {planned.jobs} jobs finished{told}; table {planned.folder}/results.csv")
    if done < planned.jobs and (stopped or not planned.search):
        say(f"go on   the same command with {as_argument('sweep.resume', planned.folder)}")
    for best in bests[:MOST_BESTS]:
        _say_best(planned, best)
    if bests:
        place_of = shlex.quote(str(planned.folder))
        say(f"compare vae-compare {place_of} --html report.html")
        if place := wandb_logged.project_of(run.folder for run in runs):
            say(f"in W&B  vae-compare {place_of} --wandb {shlex.quote(place)} --wandb-report")
    for figure in figures:
        say(f"figure  {figure}")
    return 0 if done >= planned.jobs or (planned.search and done) else 1


def _read_jobs(planned: Plan) -> list[Run]:
    """Read the runs of a sweep, in the order of their swept values; report and leave out unreadable ones."""
    runs = []
    for folder in runs_below(planned.folder):
        try:
            runs.append(results.read_run(folder))
        except UserError as error:  # the other jobs are told of all the same
            say(f"left out: {error}")
    keys = results.swept_keys(runs)
    return sorted(runs, key=lambda run: ([results.order(run.value(key)) for key in keys], str(run.folder)))


def _say_best(planned: Plan, best: Run) -> None:
    """Print where the best run is, and what to type next."""
    one = table.best(best.members, table.metric_of(best.members)) or best  # of these settings the best seed
    say(f"best    {one.folder}/{BEST}")
    if typed := read_overrides(one.folder, typed=planned.overrides):
        overrides = [word for word in typed if not word.startswith("sweep.")]
        again = [*config_dir(one.folder), *overrides, *planned.single]
        say(f"again   vae-train {shlex.join(again)}")
