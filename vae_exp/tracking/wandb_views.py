"""W&B workspaces, reports and panels for comparing runs, and how they are saved."""

import hashlib
import logging
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import wandb_workspaces.expr as expr
import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws

from vae_exp.compare import table
from vae_exp.compare.runs import RESULTS, SCORES, Run, fold_seeds, is_number, setting_columns, sort_runs
from vae_exp.compare.table import cell
from vae_exp.config.checks import as_typed
from vae_exp.config.schema import Config, WandbKeys
from vae_exp.errors import UserError
from vae_exp.tracking import wandb_run
from vae_exp.tracking.wandb_logged import Logged
from vae_exp.tracking.wandb_run import (
    as_id,
    choose_mode,
    common,
    first_line,
    from_environment,
    group,
    new_id,
    tags,
    tags_of_sweep,
)
from vae_exp.training.run_dir import Summary, read_summary

log = logging.getLogger(__name__)
SWEEP_SUMMARY = "sweep-summary"  # the job type of the run that has a sweep's table and figures


def record_evaluation(
    wandb_mode: str, run_dir: Path, config: Config, values: dict[str, Any], pictures: dict[str, Path]
) -> str | None:
    """Add numbers and pictures to a run's W&B run, or, if that cannot be reopened, to a run in its group.

    wandb_mode is wandb.mode; auto means the mode in which the run itself was logged. Return what was done, in words, or
    None if nothing was logged.
    """
    summary = read_summary(run_dir)
    if summary is None or summary.name is None:  # a checkpoint that was taken out of its run's folder
        return None
    is_disabled = wandb_mode == "auto" and from_environment() == "disabled"
    mode = "disabled" if is_disabled else choose_mode(summary.wandb.mode if wandb_mode == "auto" else wandb_mode)
    if mode == "disabled":
        return None
    import wandb

    keys = cast("WandbKeys", dict.fromkeys(WandbKeys.__annotations__) | config.get("wandb", {}))
    reopened: dict[str, Any] = {"id": summary.wandb.id, "resume": "must"}
    beside: dict[str, Any] = {
        "id": _id_beside(summary, run_dir),
        "resume": "allow",
        "name": f"evaluate {summary.name}",
        "group": group(config, summary.name, summary.wandb),
        "tags": tags(config, summary.wandb),
        "job_type": "evaluate",
        "config": config,
    }
    can_reopen = mode == "online" and summary.wandb.id and summary.wandb.url
    for options in [reopened, beside] if can_reopen else [beside]:
        try:
            with wandb.init(mode=mode, **common(keys, summary.wandb), **options) as run:
                run.summary.update(values)
                if pictures:
                    run.log({name: wandb.Image(str(path)) for name, path in pictures.items()})
            where = os.path.relpath(Path(run.dir).parent) if run.offline else run.url
            if options is reopened:
                return f"run {run.id}, {where}"
            if run.offline:
                _remove_earlier(Path(run.dir).parent, beside["id"])
            return f"{run.name!r} in group {run.group}, {where}"
        except Exception as error:  # see Tracker._open_wandb
            log.warning("W&B: the evaluation could not be logged (%s).", first_line(error))
    return None


def _id_beside(summary: Summary, run_dir: Path) -> str:
    """Return an id that is the same for every evaluation of a run, so that W&B joins them."""
    run = summary.wandb.id or run_dir.resolve()
    return f"{as_id(f'evaluate-{summary.name}')}-{hashlib.sha256(os.fsencode(run)).hexdigest()[:6]}"


def _remove_earlier(folder: Path, run_id: str) -> None:
    """Remove the folders of earlier evaluations of the same run, whose numbers the new one has too."""
    of_this_run = re.compile(rf"offline-run-\d+_\d+-{re.escape(run_id)}(-\d+)?")  # the last for two of one second
    for earlier in folder.parent.iterdir():
        if of_this_run.fullmatch(earlier.name) and earlier.name != folder.name:
            shutil.rmtree(earlier, ignore_errors=True)


def publish_sweep(
    name: str,
    keys: WandbKeys,
    folders: list[Path],
    columns: list[str],
    rows: list[list[Any]],
    figures: list[Path],
    results: dict[str, Any],
) -> None:
    """Log the table and figures of a sweep as one W&B run, sweep-summary, in the sweep's group, with its runs' tags."""
    mode = choose_mode(keys["mode"])
    if mode == "disabled":
        return
    import wandb

    known = [summary.wandb for folder in folders if (summary := read_summary(folder)) is not None]
    options: dict[str, Any] = {
        "id": new_id(f"{SWEEP_SUMMARY}-{name}"),
        "name": f"{SWEEP_SUMMARY} {name}",
        "group": keys["group"] or name,
        "tags": tags_of_sweep(keys, known),
        "job_type": SWEEP_SUMMARY,
    }
    table = wandb.Table(columns=[*columns], data=[*zip(*map(_of_one_type, zip(*rows, strict=True)), strict=True)])
    try:
        with wandb.init(mode=mode, **common(keys), **options) as run:
            run.log({"sweep/table": table})
            run.log({f"sweep/{figure.stem}": wandb.Image(str(figure)) for figure in figures})
            run.summary.update(results)
    except Exception as error:  # see Tracker._open_wandb
        log.warning("W&B: the sweep's summary could not be logged (%s).", first_line(error))


def _of_one_type(column: Sequence[Any]) -> list[Any]:
    """Return a column as W&B's tables take it: numbers, texts or booleans, else all of it as it would be typed."""
    for kind in (bool, str):
        if all(value is None or isinstance(value, kind) for value in column):
            return [*column]
    if all(value is None or is_number(value) for value in column):
        return [*column]
    return [None if value is None else as_typed(value) for value in column]


TERMS = ("neg_elbo", "reconstruction", "kl")
FIRST_PICTURES = ("images/samples", "images/reconstructions")
COST = "test/reconstruction"
FROM = {"train_epoch": "training", "val": "validation", "test": "test"}
THIRD, HALF, WHOLE = 8, 12, 24  # of the width of a report


def terms(logged: Logged) -> list[Any]:
    """Return panels of the negative ELBO and its two terms over steps, in nats per image, held-out images first."""
    return [
        line(f"{term} ({FROM[split]})", f"{split}/{term}", "nats per image")
        for split in ("val", "test", "train_epoch")
        for term in TERMS
        if f"{split}/{term}" in logged.history
    ]


def parallel(logged: Logged) -> list[Any]:
    """Return a panel of parallel coordinates, from what was swept to the metric that runs are compared by."""
    keys = [key for key in logged.keys if not any(isinstance(value, list | dict) for value in logged.values[key])]
    if not keys or logged.metric not in logged.summary:
        return []
    columns = [
        wr.ParallelCoordinatesPlotColumn(wr.Config(key), display_name=key, log=is_wide(logged.values[key]) or None)
        for key in keys
    ]
    columns.append(wr.ParallelCoordinatesPlotColumn(wr.SummaryMetric(logged.metric), display_name=logged.metric))
    title = f"what was swept, and {logged.metric} (lower is better)"
    return [wr.ParallelCoordinatesPlot(columns=columns, title=title, layout=wr.Layout(w=WHOLE))]


def scatter(logged: Logged) -> list[Any]:
    """Return a panel of two swept numbers against each other, coloured by the metric that runs are compared by."""
    numeric = _numeric(logged)
    if len(logged.keys) != 2 or len(numeric) != 2 or logged.metric not in logged.summary:
        return []
    x, y = numeric
    return [
        wr.ScatterPlot(
            title=f"{logged.metric} over {x} and {y}",
            x=wr.Config(x),
            y=wr.Config(y),
            z=wr.SummaryMetric(logged.metric),
            log_x=is_wide(logged.values[x]) or None,
            log_y=is_wide(logged.values[y]) or None,
            layout=wr.Layout(w=HALF),
        )
    ]


def _numeric(logged: Logged) -> list[str]:
    """Return the swept keys whose values are numbers."""
    return [key for key in logged.keys if logged.values[key] and all(map(is_number, logged.values[key]))]


def pictures(logged: Logged, width: int = THIRD) -> list[Any]:
    """Return a panel for each picture, which W&B shows with a slider over steps: samples and reconstructions first."""
    first = [name for name in FIRST_PICTURES if name in logged.pictures]
    rest = sorted(logged.pictures - set(first))
    return [
        wr.MediaBrowser(title=name.removeprefix("images/"), media_keys=[name], layout=wr.Layout(w=width, h=9))
        for name in [*first, *rest]
    ]


def latents(logged: Logged) -> list[Any]:
    """Return panels of how the KL is spread over the latents, as a histogram over steps, and how many are active."""
    shown = {"kl_per_dim": "KL of each latent, nats", "active_units": "active units"}
    return [
        line(f"{title} ({FROM[split]})", f"{split}/{name}")
        for split in ("val", "test")
        for name, title in shown.items()
        if f"{split}/{name}" in logged.history
    ]


def times(logged: Logged) -> list[Any]:
    names = {"time/epoch_seconds": "seconds per epoch", "time/images_per_second": "images per second"}
    return [line(title, name) for name, title in names.items() if name in logged.history]


def scores(logged: Logged) -> list[Any]:
    """Return a panel for each score that vae-evaluate measured, with a bar for each setting."""
    return [wr.BarPlot(title=name, metrics=[name], layout=wr.Layout(w=THIRD)) for name in logged.scores]


def trade_off(logged: Logged) -> list[Any]:
    """Return panels of scores of disentanglement: over the reconstruction that each costs, and over steps if logged."""
    if COST not in logged.summary:
        return []
    numeric = _numeric(logged)
    plots = [
        wr.ScatterPlot(
            title=f"{name} (higher is better) over {COST}",
            x=wr.SummaryMetric(COST),
            y=wr.SummaryMetric(name),
            z=wr.Config(numeric[0]) if numeric else None,
            layout=wr.Layout(w=HALF),
        )
        for name in SCORES
        if name in logged.summary
    ]
    of_epochs = [name.replace("test/", f"{split}/") for split in ("val", "test") for name in SCORES]
    return plots + [line(name, name) for name in of_epochs if name in logged.history]


def line(title: str, name: str, unit: str | None = None) -> Any:
    """Return a panel of a number over optimizer steps; of folded runs the mean, in a band of one standard deviation."""
    return wr.LinePlot(
        title=title,
        x="Step",
        y=[name],
        title_x="optimizer steps",
        title_y=unit,
        groupby_aggfunc="mean",
        groupby_rangefunc="stddev",
        layout=wr.Layout(w=THIRD),
    )


def is_wide(values: list[Any]) -> bool:
    """Return whether the numbers are so far apart that a logarithmic axis shows them better."""
    numbers = [value for value in values if is_number(value)]
    return len(numbers) == len(values) > 1 and 0 < 10 * min(numbers) <= max(numbers)


NAME = "vae_exp"
COLUMNS = ("model.z_dim", "model.beta", "optimizer.lr", "seed")
VIEW_RESULTS = ("best/val_neg_elbo", "test/neg_elbo")
STATE = "state"  # ours, which also knows pruned and interrupted; W&B's own is run:state
MOST_RUNS = 30  # lines in a plot; W&B's own default is 10
SECTIONS = {  # and how many panels stand side by side
    "ELBO and its terms": (terms, 3),
    "What was swept": (parallel, 1),
    "Disentanglement": (trade_off, 2),
    "Pictures": (pictures, 3),
    "KL of each latent": (latents, 2),
    "Scores": (scores, 3),
    "Time": (times, 2),
}


def view(entity: str, project: str, logged: Logged) -> ws.Workspace:
    """Return the view, not saved yet. Its id follows from the project, so that a later call finds it again."""
    sections = [
        ws.Section(name=name, panels=drawn, is_open=True, layout_settings=ws.SectionLayoutSettings(columns=width))
        for name, (draw, width) in SECTIONS.items()
        if (drawn := draw(logged))
    ]
    made = ws.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=sections,
        settings=ws.WorkspaceSettings(max_runs=MOST_RUNS),
        runset_settings=ws.RunsetSettings(
            filters=[ws.Metric("JobType") != SWEEP_SUMMARY],  # its table and figures are no run's
            # By group only where there are any: a run alone is one with its evaluations, and its seeds are others.
            groupby=[*([ws.Metric("Group")] if logged.groups else []), *map(ws.Config, logged.keys)],
            order=[ws.Ordering(ws.Summary(logged.metric), ascending=True)],  # the lowest, so the best, first
            pinned_columns=columns(logged),
        ),
    )
    made._internal_name = f"nw-{view_id(entity, project)}-v"
    return made


def view_id(entity: str, project: str) -> str:
    """Return the part after ?nw= in the view's address: eleven letters and digits, as W&B's own."""
    return hashlib.sha256(f"{NAME} {entity}/{project}".encode()).hexdigest()[:11]


def columns(logged: Logged) -> list[str]:
    """Return the columns of the table of runs, by W&B's names: usual changes, what was swept, results, state."""
    keys = [key for key in dict.fromkeys([*COLUMNS, *logged.columns]) if key in logged.config]
    results = [f"summary:{name}" for name in VIEW_RESULTS if name in logged.summary]
    return ["run:displayName", *map(_config_column, keys), *results, f"summary:{STATE}"]


def _config_column(key: str) -> str:
    """Return a column such as config:model.value.z_dim: W&B keeps each top-level key as {"value": ...}."""
    first, _, rest = key.partition(".")
    return f"config:{first}.value" + (f".{rest}" if rest else "")


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
    metric = table.metric_of(runs)
    folded = sort_runs(fold_seeds(runs), metric)
    best = table.best(runs, metric)
    of_sweep = [expr.Metric("Group") == sweep, expr.Metric("JobType") != SWEEP_SUMMARY]
    groups = [f"config.{key}" for key in logged.keys]
    blocks: list[Any] = [wr.H2("Results"), wr.MarkdownBlock(_table(folded, metric))]
    if over := [*scatter(logged), *parallel(logged)]:
        each_run = wr.Runset(name="runs", filters=of_sweep, **where)
        blocks += [wr.H2("What was swept"), wr.PanelGrid(runsets=[each_run], panels=over)]
    if scored := trade_off(logged):
        each_run = wr.Runset(name="runs", filters=of_sweep, **where)
        blocks += [wr.H2("Disentanglement and reconstruction"), wr.PanelGrid(runsets=[each_run], panels=scored)]
    if figures := _figures(runs):
        summary = [expr.Metric("Group") == sweep, expr.Metric("JobType") == SWEEP_SUMMARY]
        drawn = wr.Runset(name=SWEEP_SUMMARY, filters=summary, **where)
        blocks.append(wr.PanelGrid(runsets=[drawn], panels=figures))
    if curves := [*terms(logged), *latents(logged)]:
        settings = wr.Runset(name="settings, seeds folded", filters=of_sweep, groupby=groups, **where)
        blocks += [wr.H2("Curves"), wr.PanelGrid(runsets=[settings], panels=curves)]
    summary_of_best = read_summary(best.folder) if best else None
    if best and summary_of_best and summary_of_best.wandb.id and (shown := pictures(logged)):
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
    return [wr.MediaBrowser(title=name, media_keys=[f"sweep/{name}"], layout=wr.Layout(w=HALF, h=12)) for name in names]


def _table(folded: list[Run], metric: str) -> str:
    """Return the settings as a Markdown table, best first, without what they have in common, unless it was swept."""
    results = [name for name in RESULTS if any(name in run.metrics for run in folded)]
    columns = [*setting_columns(folded), metric, *(name for name in results if name != metric), "state"]
    rows = [["run", *columns], ["---"] * (len(columns) + 1)]
    rows += [[run.name, *(cell(run, column) for column in columns)] for run in folded[:MOST_ROWS]]
    lines = ["| " + " | ".join(word.replace("|", "\\|") for word in row) + " |" for row in rows]
    more = len(folded) - MOST_ROWS
    return "\n".join([*lines, *([f"\nand {more} more settings, behind these"] if more > 0 else [])])


SECONDS = 15  # for an answer of W&B's server
MISSING = "--wandb needs wandb-workspaces, which is not installed: pip install 'vae_exp[workspaces]'"


def require_library() -> None:
    """Raise UserError if wandb-workspaces is not installed."""
    try:
        import wandb_workspaces  # noqa: F401
    except ImportError as error:
        raise UserError(f"{MISSING} ({error})") from error


def require_account() -> None:
    """Raise UserError if no API key is configured, or if the server does not answer or refuses it."""
    import wandb

    # Asked once more and no oftener: a server that fails would otherwise be waited for again by every question.
    wandb.setup(wandb.Settings(silent=True, x_graphql_retry_max=1))
    wandb_run.api_key("online", "--wandb", "print what would be sent with --dry-run")
    if trouble := wandb_run.trouble():
        raise UserError(f"--wandb: {trouble}. Nothing was sent.")


def missing_runs(entity: str, project: str, logged: Logged) -> int:
    """Return how many of the runs the project lacks. Raise UserError if there is no such project, or W&B refuses."""
    import wandb

    try:
        runs = wandb.Api(timeout=SECONDS).runs(f"{entity}/{project}", {"name": {"$in": logged.ids}})
        found = {run.id for run in runs}
    except ValueError as error:  # of the library, where the server knows no such project
        raise UserError(
            f"--wandb {entity}/{project}: W&B has no such project, or shows it to others than you. "
            "A project comes to be with its first run: wandb sync, or wandb.mode=online."
        ) from error
    except Exception as error:
        raise _refused(entity, project, error) from error
    return len(set(logged.ids) - found)


def save_view(view: Any) -> tuple[str, bool]:
    """Make or update the saved view.

    Return its address, and whether it was there before. Raise UserError if W&B refuses, or if it cannot be read.
    """
    from pydantic import ValidationError
    from wandb_workspaces.workspaces import Workspace
    from wandb_workspaces.workspaces.errors import SpecVersionError

    try:
        url = view.url
        try:
            before = Workspace.from_url(url)
        except (ValidationError, SpecVersionError) as error:
            raise UserError(
                f"{url}: this view is there, and wandb-workspaces cannot read it ({first_line(error)}). "
                "Upgrade wandb-workspaces, or delete the view."
            ) from error
        except ValueError:  # of the library, where the project has no view of this name
            before = None
        if before is not None:
            view._internal_id = before._internal_id
            ours = {section.name for section in view.sections} | set(_sections())
            view.sections = [*view.sections, *(each for each in before.sections if each.name not in ours)]
        view.save()
    except UserError:
        raise
    except Exception as error:
        raise _refused(view.entity, view.project, error) from error
    return view.url, before is not None


def save_report(report: Any) -> tuple[str, bool]:
    """Make the report, or update the project's report of the same title.

    Return its address, and whether it was there before. Raise UserError if W&B refuses.
    """
    import wandb

    try:
        of_project = wandb.Api(timeout=SECONDS).reports(f"{report.entity}/{report.project}")
        before = next((each for each in of_project if each.display_name == report.title), None)
        if before is not None:
            report.id = before.id
        report.save()
    except Exception as error:
        raise _refused(report.entity, report.project, error) from error
    return report.url, before is not None


def _sections() -> dict[str, Any]:

    return SECTIONS


def _refused(entity: str, project: str, error: Exception) -> UserError:
    return UserError(f"--wandb {entity}/{project}: W&B did not take it ({' '.join(str(error).split())}).")
