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
from vae_exp.training.console import say
from vae_exp.training.run_dir import BEST, config_dir, read_overrides, runs_below

# Added to what was typed by the sweeps of older versions; a new sweep has a new name and folder.
PLANNED = ("sweep.name=", "sweep.over=", "sweep.jobs=", "sweep.resume=")


def rerun_command(folder: Path) -> str | None:
    """Return vae-train -m and what was typed, with a new name and folder for the sweep, or None if unknown."""
    stored = read_overrides(folder, of_sweep=True)
    if stored is None:
        return None
    defaults: dict[str, Any] = read_yaml(CONF_DIR / "config.yaml")["sweep"]
    unchanged = {f"sweep.{key}={as_typed(value)}" for key, value in defaults.items()}
    overrides = [word for word in stored if word not in unchanged and not word.startswith(PLANNED)]
    return shlex.join(["vae-train", "-m", *config_dir(folder), *overrides])


PRINTED_COLUMNS = ("val/neg_elbo", "test/neg_elbo", "test/reconstruction", "test/kl", *results.SCORES, "seconds")
MAX_BEST = 5  # that are printed: where runs do not compare there may be as many as jobs


def finish(plan: Plan, wandb: WandbKeys, stopped: bool = False) -> int:
    """Write table, results.csv, figures, and the same in W&B, from the runs' files. Returns the exit code."""
    runs = _read_jobs(plan)
    pruned = sum(run.state == PRUNED for run in runs)
    done = sum(run.finished for run in runs) + pruned
    optional = (*results.SCORES, results.UDR)
    metrics = [name for name in results.RESULTS if name not in optional or any(name in run.metrics for run in runs)]
    columns = [*results.setting_columns(runs), "state", *metrics, "reason"]
    write(plan.folder / "results.csv", results.as_csv(runs, columns, base=plan.folder))

    folded = results.fold_seeds(runs)
    metric, bests = table.metric_of(runs), table.best_per_group(folded)
    keys = results.setting_columns(folded)
    printed = [*keys, *(name for name in PRINTED_COLUMNS if any(name in run.metrics for run in runs))]
    printed += ["state"] if done - pruned < len(runs) else []
    printed += ["reason"] if done < len(runs) else []
    figures: list[Path] = []
    if bests and not stopped:  # before anything is printed: whoever reads it may have gone
        from vae_exp.compare import plots
        from vae_exp.tracking.wandb_run import publish_sweep

        figures = plots.draw(folded, runs, keys, metric, plan.folder)
        numbers = {f"best/{column}": bests[0].value(column) for column in printed} if len(bests) == 1 else {}
        rows = [[run.value(column) for column in printed] for run in folded]
        numbers |= {"done": done, "jobs": plan.jobs}
        publish_sweep(plan.name, wandb, [run.folder for run in runs], printed, rows, figures, numbers)
    if runs:
        ordered = results.sort_runs(folded, metric)
        say("\n" + format_table(ordered, printed, bests, metric, f"{plan.folder}/results.csv"))
        say("\n".join(wrapped([why] if (why := table.describe_groups(folded)) else [])))
    count = f", {pruned} of them pruned" if pruned else ""
    say(f"{done} of {plan.jobs} jobs finished{count}; table {plan.folder}/results.csv")
    if done < plan.jobs and (stopped or not plan.is_search):
        say(f"go on   the same command with {as_argument('sweep.resume', plan.folder)}")
    _say_what_next(plan, runs, bests)
    for figure in figures:
        say(f"figure  {figure}")
    return 0 if done >= plan.jobs or (plan.is_search and done) else 1


def _read_jobs(plan: Plan) -> list[Run]:
    """Read the runs of a sweep, in the order of their swept values; report and leave out unreadable ones."""
    runs = []
    for folder in runs_below(plan.folder):
        try:
            runs.append(results.read_run(folder))
        except UserError as error:
            say(f"left out: {error}")
    keys = results.swept_keys(runs)
    return sorted(runs, key=lambda run: ([results.order(run.value(key)) for key in keys], str(run.folder)))


def _say_what_next(plan: Plan, runs: list[Run], bests: list[Run]) -> None:
    """Print where the best runs are, and what to type next."""
    for best in bests[:MAX_BEST]:
        one = table.best(best.members, table.metric_of(best.members)) or best  # of these settings the best seed
        say(f"best    {one.folder}/{BEST}")
        if stored := read_overrides(one.folder, typed=plan.overrides):
            overrides = [word for word in stored if not word.startswith("sweep.")]
            say(f"again   vae-train {shlex.join([*config_dir(one.folder), *overrides, *plan.single])}")
    if bests:
        from vae_exp.tracking.wandb_run import project_of

        folder = shlex.quote(str(plan.folder))
        say(f"compare vae-compare {folder} --html report.html")
        if project := project_of(run.folder for run in runs):
            say(f"in W&B  vae-compare {folder} --wandb {shlex.quote(project)} --wandb-report")
