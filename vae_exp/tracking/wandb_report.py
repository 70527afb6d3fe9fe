"""A W&B report of one sweep: its table, its heat map, its curves, the best run's pictures, the command."""

from pathlib import Path
from typing import Any

import wandb_workspaces.expr as expr
import wandb_workspaces.reports.v2 as wr

from vae_exp.compare import comparable
from vae_exp.compare.runs import RESULTS, Run, fold_seeds, setting_columns, sort_runs
from vae_exp.compare.terminal import cell
from vae_exp.tracking import wandb_panels as panels
from vae_exp.tracking.wandb_afterwards import SWEEP_SUMMARY
from vae_exp.tracking.wandb_logged import Logged
from vae_exp.training.folder import read_summary

LONGEST_TITLE, MOST_ROWS = 128, 30
FIGURES = ("heat_map", "curves", "trade_off")  # of a sweep, in its folder as PNG and in its sweep-summary run


def title(sweep: str) -> str:
    """Return the title of a sweep's report, by which a later call finds it again."""
    return f"vae_exp sweep {sweep}"[:LONGEST_TITLE]


def report(
    entity: str,
    project: str,
    sweep: str,
    logged: Logged,
    runs: list[Run],
    command: str | None,
    ask_server: bool = True,
) -> wr.Report:
    """Return the report, not saved yet. Without ask_server it lacks the project's number, which only W&B knows."""
    where: dict[str, Any] = {"entity": entity, "project": project} if ask_server else {}
    metric = comparable.metric_of(runs)
    folded = sort_runs(fold_seeds(runs), metric)
    best = comparable.best(runs, metric)
    of_sweep = [expr.Metric("Group") == sweep, expr.Metric("JobType") != SWEEP_SUMMARY]
    groups = [f"config.{key}" for key in logged.keys]
    blocks: list[Any] = [wr.H2("Results"), wr.MarkdownBlock(_table(folded, metric))]
    if over := [*panels.scatter(logged), *panels.parallel(logged)]:
        each_run = wr.Runset(name="runs", filters=of_sweep, **where)
        blocks += [wr.H2("What was swept"), wr.PanelGrid(runsets=[each_run], panels=over)]
    if scored := panels.trade_off(logged):
        each_run = wr.Runset(name="runs", filters=of_sweep, **where)
        blocks += [wr.H2("Disentanglement and reconstruction"), wr.PanelGrid(runsets=[each_run], panels=scored)]
    if figures := _figures(runs):
        summary = [expr.Metric("Group") == sweep, expr.Metric("JobType") == SWEEP_SUMMARY]
        drawn = wr.Runset(name=SWEEP_SUMMARY, filters=summary, **where)
        blocks.append(wr.PanelGrid(runsets=[drawn], panels=figures))
    if curves := [*panels.terms(logged), *panels.latents(logged)]:
        settings = wr.Runset(name="settings, seeds folded", filters=of_sweep, groupby=groups, **where)
        blocks += [wr.H2("Curves"), wr.PanelGrid(runsets=[settings], panels=curves)]
    summary_of_best = read_summary(best.folder) if best else None
    if best and summary_of_best and summary_of_best.wandb.id and (shown := panels.pictures(logged)):
        only = wr.Runset(name="best run", filters=[expr.Metric("ID") == summary_of_best.wandb.id], **where)
        blocks += [wr.H2(f"Pictures of the best run, {best.name}"), wr.PanelGrid(runsets=[only], panels=shown)]
    if command:
        blocks += [wr.H2("The command that repeats it"), wr.CodeBlock(code=command, language="markdown")]
    return wr.Report(
        entity=entity,
        project=project,
        title=title(sweep),
        description=f"{len(runs)} runs of vae_exp; neg_elbo = reconstruction + KL, in nats per image, lower is better",
        blocks=blocks,
        width="fluid",
    )


def _figures(runs: list[Run]) -> list[Any]:
    """Return panels of the figures that the end of the sweep drew and logged."""
    folders: set[Path] = {run.folder.parent for run in runs}
    names = [name for name in FIGURES if any((folder / f"{name}.png").is_file() for folder in folders)]
    return [
        wr.MediaBrowser(title=name, media_keys=[f"sweep/{name}"], layout=wr.Layout(w=panels.HALF, h=12))
        for name in names
    ]


def _table(folded: list[Run], metric: str) -> str:
    """Return the settings as a Markdown table, best first, without what they have in common, unless it was swept."""
    results = [name for name in RESULTS if any(name in run.metrics for run in folded)]
    columns = [*setting_columns(folded), metric, *(name for name in results if name != metric), "state"]
    rows = [["run", *columns], ["---"] * (len(columns) + 1)]
    rows += [[run.name, *(cell(run, column) for column in columns)] for run in folded[:MOST_ROWS]]
    lines = ["| " + " | ".join(word.replace("|", "\\|") for word in row) + " |" for row in rows]
    more = len(folded) - MOST_ROWS
    return "\n".join([*lines, *([f"\nand {more} more settings, behind these"] if more > 0 else [])])
