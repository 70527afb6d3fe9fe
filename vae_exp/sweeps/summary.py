"""End a sweep: table, figures, closing lines."""

import shlex
from collections.abc import Collection
from pathlib import Path
from typing import Any

from vae_exp.compare import runs as results
from vae_exp.compare import table
from vae_exp.compare.runs import PRUNED, Run
from vae_exp.compare.table import format_groups, wrapped
from vae_exp.config.checks import CONF_DIR, as_argument, as_typed
from vae_exp.config.schema import WandbKeys
from vae_exp.errors import UserError, printable
from vae_exp.files import read_yaml, write
from vae_exp.sweeps.plan import Plan
from vae_exp.training.console import say
from vae_exp.training.run_dir import BEST, LATEST, SUMMARY, config_dir, newest, read_overrides, runs_below

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


PRINTED_COLUMNS = (
    "val/neg_elbo",
    "test/neg_elbo",
    "test/reconstruction",
    "test/kl",
    *results.SCORES,
    results.PATH_EPOCHS,
    "seconds",
)
MAX_MISSING = 6  # jobs that are named
MAX_BEST = 5  # that are printed: where runs do not compare there may be as many as jobs


def finish(plan: Plan, wandb: WandbKeys, stopped: bool = False) -> int:
    """Write table, results.csv, figures, and the same in W&B, from the runs' files. Returns the exit code."""
    runs = _read_jobs(plan)
    by_name = {run.folder.relative_to(plan.folder).as_posix(): run for run in runs}
    planned = {name: run for name, run in by_name.items() if not plan.names or name in plan.names}
    pruned = sum(run.state == PRUNED for run in planned.values())
    finished = {name for name, run in planned.items() if run.finished or run.state == PRUNED}
    done = len(finished)
    optional = (*results.SCORES, results.UDR)
    always = [name for name in results.RESULTS if name not in optional]
    metrics = dict.fromkeys([*results.result_columns(runs), *always])
    columns = [*results.setting_columns(runs), "state", *metrics, "reason"]
    write(plan.folder / "results.csv", results.as_csv(runs, columns, base=plan.folder))

    folded = results.fold_seeds(runs)
    metric, bests = table.metric_of(runs), table.best_per_group(folded)
    keys = results.setting_columns(folded)
    names = dict.fromkeys((metric, *PRINTED_COLUMNS))
    printed = [*keys, *(name for name in names if any(name in run.metrics for run in runs))]
    printed += ["state"] if done - pruned < len(runs) else []
    printed += ["reason"] if done < len(runs) else []
    figures: list[Path] = []
    if bests and not stopped:  # before anything is printed: whoever reads it may have gone
        from vae_exp.compare import plots
        from vae_exp.tracking.wandb_run import publish_sweep

        path = [run for run in runs if results.CONFIRM not in run.config]
        folded_path = results.fold_seeds(path)
        keys_of_path = results.setting_columns(folded_path)
        figures = plots.draw(folded_path, path, keys_of_path, metric, plan.folder, plan.searched)
        numbers = {f"best/{column}": bests[0].value(column) for column in printed} if len(bests) == 1 else {}
        rows = [[run.value(column) for column in printed] for run in folded]
        numbers |= {"done": done, "jobs": plan.jobs}
        publish_sweep(plan.name, wandb, [run.folder for run in runs], printed, rows, figures, numbers)
    if runs:
        ordered = results.sort_runs(folded, metric)
        last = printed[len(keys) :]
        say("\n" + format_groups(ordered, lambda group: [*results.setting_columns(group), *last], "results.csv"))
        is_first = not bests or ordered[0] in bests
        notes = [table.describe_groups(folded), None if is_first else "best is a setting of which all seeds finished"]
        say("\n".join(wrapped([note for note in notes if note])))
    count = f", {pruned} of them pruned" if pruned else ""
    say(f"{done} of {plan.jobs} jobs finished{count}")
    say(f"folder     {printable(plan.folder)}    ({', '.join(['results.csv', *(figure.name for figure in figures)])})")
    if missing := [name for name in plan.names if name not in finished]:
        more = f" and {len(missing) - MAX_MISSING} more" if len(missing) > MAX_MISSING else ""
        say(f"missing    {', '.join(missing[:MAX_MISSING])}{more}")
    if done < plan.jobs and (stopped or not plan.is_search):
        words = shlex.join(["vae-train", "-m", *config_dir(plan.folder)])
        say(f"resume     {words} {as_argument('sweep.resume', plan.folder)}")
    if plan.warm_start:
        say("\n".join(_path_lines(plan, runs)))
    _say_what_next(plan, runs, bests)
    return 0 if done >= plan.jobs or (plan.is_search and done) else 1


def _path_lines(plan: Plan, runs: list[Run]) -> list[str]:
    """Return the price of a sweep that starts warm, and how far it is off where jobs were trained from nothing too."""
    path = {run.folder.name: run for run in runs if results.CONFIRM not in run.config}
    epochs = sum(max((row["epoch"] for row in run.logged()), default=0) for run in path.values())
    price = f"{len(path)} settings for {epochs:g} epochs: {epochs / plan.epochs:.1f} runs of {plan.epochs}"
    lines = [f"price      {price}"]
    if any(score in run.metrics for run in path.values() for score in results.SCORES):
        lines.append("scores     stay near those of a path's first job; what beta does to them, separate runs tell")
    for run in runs:
        if results.CONFIRM in run.config and run.folder.name in path:
            warm, alone = (results.objective(one) for one in (path[run.folder.name], run))
            if warm is not None and alone is not None:
                change = 100 * (warm - alone) / abs(alone)
                name = run.folder.name
                lines.append(
                    f"confirm    {name}: {warm:.3f} on the path, {alone:.3f} in a separate run ({change:+.1f} %)"
                )
    return lines


def best_of(folder: Path, names: Collection[str], n: int) -> list[str]:
    """Return those among these jobs of a sweep that have its n best settings, each with all of its seeds."""
    runs = [results.read_run(folder / name) for name in (names if n else ()) if (folder / name / SUMMARY).exists()]
    settings = [run for run in results.fold_seeds(runs) if run.finished]
    ordered = results.sort_runs(settings, table.metric_of(settings))[:n]
    return [member.folder.name for setting in ordered for member in setting.members]


def _read_jobs(plan: Plan) -> list[Run]:
    """Read the runs of a sweep, in the order of their swept values; report and leave out unreadable ones."""
    runs = []
    for folder in runs_below(plan.folder):
        try:
            runs.append(results.read_run(folder))
        except UserError as error:
            say(f"left out: {printable(error)}")
    keys = results.swept_keys(runs)
    return sorted(runs, key=lambda run: ([results.order(run.value(key)) for key in keys], str(run.folder)))


def _say_what_next(plan: Plan, runs: list[Run], bests: list[Run]) -> None:
    """Print where the best runs are, and what to type next."""
    for best in bests[:MAX_BEST]:
        one = table.best(best.members, table.metric_of(best.members)) or best  # of these settings the best seed
        say(f"best       {printable(one.folder.relative_to(plan.folder))}/{BEST}")
        if stored := read_overrides(one.folder, typed=plan.overrides):
            overrides = [word for word in stored if not word.startswith("sweep.")]
            if plan.warm_start:  # from nothing, for all epochs
                values = [word for word in stored if word.startswith(tuple(f"{key}=" for key in plan.keys))]
                shared = [word for word in overrides if word in plan.overrides and not word.startswith("init_from=")]
                overrides = [*dict.fromkeys(shared), *values]
            command = shlex.join([*config_dir(one.folder), *overrides, *plan.single])
            if plan.warm_start:
                say(f"rerun best vae-train rerun={shlex.quote(str(one.folder))}")
            say(f"{'separate  ' if plan.warm_start else 'rerun best'} vae-train {command}")
    if bests:
        from vae_exp.tracking.wandb_run import project_of

        is_newest = plan.folder in (newest(SUMMARY) or Path()).parents
        folder = LATEST if is_newest else shlex.quote(str(plan.folder))
        say(f"compare    vae-compare {folder} --html report.html")
        if project := project_of(run.folder for run in runs):
            say(f"in W&B     vae-compare {folder} --wandb {shlex.quote(project)} --wandb-report")
