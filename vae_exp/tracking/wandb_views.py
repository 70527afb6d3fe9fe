"""W&B views and reports for comparing runs, of the same panels: what runs logged, the panels, and saving them."""

import contextlib
import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vae_exp.compare import runs as results
from vae_exp.compare import table
from vae_exp.compare.runs import SCORES, SEEDS, Run
from vae_exp.compare.table import cell, is_logarithmic
from vae_exp.config.checks import flatten
from vae_exp.config.schema import TERMS, is_number, result_of
from vae_exp.errors import UserError
from vae_exp.evaluation.results import SPREAD, stored_numbers
from vae_exp.files import read_json_lines
from vae_exp.tracking import wandb_run
from vae_exp.tracking.wandb_run import SWEEP_SUMMARY
from vae_exp.training.run_dir import BEST, IMAGES, LAST, METRICS, read_config, read_summary

try:
    import wandb_workspaces.expr as expr
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws
except ImportError as error:  # an extra, which only --wandb asks for
    raise UserError(f"--wandb needs wandb-workspaces: pip install 'vae_exp[workspaces]' ({error})") from error

NAME = "vae_exp"
SECONDS = 15  # for an answer of W&B's server
MAX_RUNS = 30  # lines in a plot; W&B's own default is 10
MAX_TITLE, MAX_ROWS = 128, 30
COLUMNS = ("model.z_dim", "model.beta", "optimizer.lr", "seed")
VIEW_RESULTS = ("best/val_neg_elbo", "test/neg_elbo")
STATE = "state"  # ours, which also knows pruned and interrupted; W&B's own is run:state
LATENTS = {"kl_per_dim": "KL of each latent, nats", "active_units": "active units"}
TIMES = {"time/epoch_seconds": "seconds per epoch", "time/images_per_second": "images per second"}
FIRST_PICTURES = ("images/samples", "images/reconstructions")
FIGURES = ("heat_map", "curves", "trade_off")  # of a sweep, in its folder as PNG and in its sweep-summary run
COST = "test/reconstruction"
SPLITS = {"val": "validation", "test": "test", "train_epoch": "training"}
THIRD, HALF, WHOLE = 8, 12, 24  # of the width of a report
MAX_KEYS = 8  # of runs that were not swept: more levels of groups, or axes side by side, tell nothing
OVER = "sweep.over"
NO_SCORES = ("step", "seed", "importance_seed", "importance_samples", "repeats", "images", "active_units")
NO_PANEL = ("_error", "_real", SPREAD)  # how far a number may be off, and what it is read beside


@dataclass
class Logged:
    """Hold the names that W&B has for a set of runs: a panel of any other name would be empty."""

    ids: list[str] = field(default_factory=list)  # of the runs
    groups: list[str] = field(default_factory=list)  # the sweeps of the runs, and other groups that the user made
    keys: list[str] = field(default_factory=list)  # of config: what was swept, or else what differs; no seeds
    columns: list[str] = field(default_factory=list)  # keys, swept seeds, and OVER where something has no key
    values: dict[str, list[Any]] = field(default_factory=dict)  # of these keys, each value once
    config: set[str] = field(default_factory=set)
    history: set[str] = field(default_factory=set)  # numbers and histograms over steps
    pictures: set[str] = field(default_factory=set)
    summary: set[str] = field(default_factory=set)
    scores: list[str] = field(default_factory=list)  # evaluate/SPLIT/NAME
    metric: str = "test/neg_elbo"  # in the summary: what runs are compared by
    sign: int = 1  # -1: of it more is better


def read_logged(runs: list[Run]) -> Logged:
    """Read what the runs logged. Raise UserError if W&B was disabled for all of them."""
    logged, known, configs = Logged(), [], []
    for run in runs:
        config, summary = flatten(read_config(run.folder) or {}), read_summary(run.folder)
        if not config or summary is None or not summary.wandb.id:
            continue
        known.append(run)
        configs.append(config)
        logged.ids.append(summary.wandb.id)
        logged.config |= config.keys()
        logged.summary |= {name for name, value in summary.results.items() if is_number(value)}
        items = (item for row in read_json_lines(run.folder / METRICS) for item in row.items())
        logged.history |= {name for name, value in items if is_number(value) or isinstance(value, list)} - {"step"}
        matches = [re.fullmatch(r"(.+)_\d{7,}", path.stem) for path in (run.folder / IMAGES).glob("*.png")]
        logged.pictures |= {f"{IMAGES}/{match[1]}" for match in matches if match}
        logged.scores += [name for name in _evaluated(run.folder) if name not in logged.scores]
        group = config.get("wandb.group") or config.get("sweep.name") or summary.wandb.group
        if group not in (None, summary.name, *logged.groups):  # a run alone shares its name with its evaluations
            logged.groups.append(str(group))
    if not known:
        raise UserError(f"none of the {len(runs)} runs was logged to W&B (wandb.mode=disabled).")
    metric = table.metric_of(known)
    logged.metric, logged.sign = result_of(metric), results.sign(known, metric)
    swept = [_name_of(key, logged.config) for key in results.swept_keys(known)]
    logged.keys = [key for key in swept if key not in (*SEEDS, OVER)]
    if not logged.keys:
        names = [_name_of(key, logged.config) for key in results.differing(known) if key not in SEEDS]
        plain = [name for name in names if not any(isinstance(config.get(name), list | dict) for config in configs)]
        logged.keys = [name for name in plain if name != OVER][:MAX_KEYS]
    logged.columns = list(dict.fromkeys([*logged.keys, *swept]))
    for key in logged.keys:
        values = [config[key] for config in configs if config.get(key) is not None]
        logged.values[key] = [value for i, value in enumerate(values) if value not in values[:i]]
    return logged


def _name_of(key: str, config: set[str]) -> str:
    """Return W&B's name for a key; a swept option that no key has, as for experiment, is in the list of all."""
    return next((name for name in (key, f"{key}._target_") if name in config), OVER)


def _evaluated(folder: Path) -> list[str]:
    """Return the names of the scores that vae-evaluate added to a run's summary in W&B, without how far they vary."""
    names = [name for checkpoint in (BEST, LAST) for name in stored_numbers(folder / checkpoint)]
    return [name for name in names if name.split("/")[-1] not in NO_SCORES and not name.endswith(NO_PANEL)]


def terms(logged: Logged) -> list[Any]:
    """Return panels of the negative ELBO and its two terms over steps, in nats per image, held-out images first."""
    titles = {f"{split}/{term}": f"{term} ({images})" for split, images in SPLITS.items() for term in TERMS}
    return lines(logged, titles, "nats per image")


def latents(logged: Logged) -> list[Any]:
    """Return panels of how the KL is spread over the latents, as a histogram over steps, and how many are active."""
    parts = [(split, name) for split in ("val", "test") for name in LATENTS]
    return lines(logged, {f"{split}/{name}": f"{LATENTS[name]} ({SPLITS[split]})" for split, name in parts})


def lines(logged: Logged, titles: Mapping[str, str], unit: str | None = None) -> list[Any]:
    """Return a panel over optimizer steps for each logged name; of folded runs the mean, in a band of one deviation."""
    look: dict[str, Any] = {"title_x": "optimizer steps", "groupby_aggfunc": "mean", "groupby_rangefunc": "stddev"}
    return [
        wr.LinePlot(title=title, x="Step", y=[name], title_y=unit, layout=wr.Layout(w=THIRD), **look)
        for name, title in titles.items()
        if name in logged.history
    ]


def swept(logged: Logged) -> list[Any]:
    """Return a panel of parallel coordinates from what was swept to the metric, and one of two swept numbers."""
    metric, panels = wr.SummaryMetric(logged.metric), list[Any]()
    if logged.metric not in logged.summary:
        return panels
    log = {key: is_logarithmic(logged.values[key]) or None for key in logged.keys}
    column = wr.ParallelCoordinatesPlotColumn
    keys = [key for key in logged.keys if not any(isinstance(value, list | dict) for value in logged.values[key])]
    if keys:
        columns = [column(wr.Config(key), display_name=key, log=log[key]) for key in keys]
        columns.append(column(metric, display_name=logged.metric))
        title = f"what was swept, and {logged.metric} ({'lower' if logged.sign > 0 else 'higher'} is better)"
        panels.append(wr.ParallelCoordinatesPlot(columns=columns, title=title, layout=wr.Layout(w=WHOLE)))
    if len(logged.keys) == 2 and _numeric(logged) == logged.keys:
        (x, y), title = map(wr.Config, logged.keys), f"{logged.metric} over {' and '.join(logged.keys)}"
        log_x, log_y = log.values()
        layout = wr.Layout(w=HALF)
        panels.append(wr.ScatterPlot(title=title, x=x, y=y, z=metric, log_x=log_x, log_y=log_y, layout=layout))
    return panels


def _numeric(logged: Logged) -> list[str]:
    return [key for key in logged.keys if logged.values[key] and all(map(is_number, logged.values[key]))]


def trade_off(logged: Logged) -> list[Any]:
    """Return panels of scores of disentanglement: over the reconstruction that each costs, and over steps if logged."""
    if COST not in logged.summary:
        return []
    color, x = next(map(wr.Config, _numeric(logged)), None), wr.SummaryMetric(COST)
    title = f"(higher is better) over {COST}"
    plots = [
        wr.ScatterPlot(title=f"{name} {title}", x=x, y=wr.SummaryMetric(name), z=color, layout=wr.Layout(w=HALF))
        for name in SCORES
        if name in logged.summary
    ]
    over_steps = [name.replace("test/", f"{split}/") for split in ("val", "test") for name in SCORES]
    return plots + lines(logged, dict(zip(over_steps, over_steps, strict=True)))


def pictures(logged: Logged) -> list[Any]:
    """Return a panel for each picture, which W&B shows with a slider over steps: samples and reconstructions first."""
    first = [name for name in FIRST_PICTURES if name in logged.pictures]
    names = [*first, *sorted(logged.pictures - set(first))]
    return [media(name.removeprefix("images/"), name, THIRD, 9) for name in names]


def media(title: str, name: str, width: int, height: int) -> Any:
    return wr.MediaBrowser(title=title, media_keys=[name], layout=wr.Layout(w=width, h=height))


def scores(logged: Logged) -> list[Any]:
    """Return a panel for each score that vae-evaluate measured, with a bar for each setting."""
    return [wr.BarPlot(title=name, metrics=[name], layout=wr.Layout(w=THIRD)) for name in logged.scores]


SECTIONS = {  # of the view and the report, and how many panels stand side by side in the view
    "ELBO and its terms": (terms, 3),
    "What was swept": (swept, 1),
    "Disentanglement": (trade_off, 2),
    "Pictures": (pictures, 3),
    "KL of each latent": (latents, 2),
    "Scores": (scores, 3),
    "Time": (lambda logged: lines(logged, TIMES), 2),
}


def view(entity: str, project: str, logged: Logged) -> ws.Workspace:
    """Return the view, not saved yet. Its id follows from the project, so that a later call finds it again."""
    sections = [
        ws.Section(name=name, panels=panels, is_open=True, layout_settings=ws.SectionLayoutSettings(columns=width))
        for name, (draw, width) in SECTIONS.items()
        if (panels := draw(logged))
    ]
    workspace = ws.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=sections,
        settings=ws.WorkspaceSettings(max_runs=MAX_RUNS),
        runset_settings=ws.RunsetSettings(
            filters=[ws.Metric("JobType") != SWEEP_SUMMARY],  # its table and figures are no run's
            # By group only where there are any: a run alone is one with its evaluations, and its seeds are others.
            groupby=[*([ws.Metric("Group")] if logged.groups else []), *map(ws.Config, logged.keys)],
            order=[ws.Ordering(ws.Summary(logged.metric), ascending=logged.sign > 0)],  # the best first
            pinned_columns=_view_columns(logged),
        ),
    )
    # The part after ?nw= in its address: eleven letters and digits, as W&B's own.
    view_id = hashlib.sha256(f"{NAME} {entity}/{project}".encode()).hexdigest()[:11]
    workspace._internal_name = f"nw-{view_id}-v"
    return workspace


def _view_columns(logged: Logged) -> list[str]:
    keys = [key.partition(".") for key in dict.fromkeys([*COLUMNS, *logged.columns]) if key in logged.config]
    config = [f"config:{first}.value{dot}{rest}" for first, dot, rest in keys]  # W&B has {"model": {"value": ...}}
    summary = [f"summary:{name}" for name in (*VIEW_RESULTS, STATE) if name in logged.summary | {STATE}]
    return ["run:displayName", *config, *summary]


def report(
    entity: str, project: str, sweep: str, logged: Logged, runs: list[Run], command: str | None, ask_server: bool = True
) -> wr.Report:
    """Return the report, not saved yet. Without ask_server it lacks the project's number, which only W&B knows."""
    metric = table.metric_of(runs)
    best = table.best(runs, metric)
    summary_of_best = read_summary(best.folder) if best else None
    figures = [name for name in FIGURES if any((run.folder.parent / f"{name}.png").is_file() for run in runs)]

    in_sweep, job = expr.Metric("Group") == sweep, expr.Metric("JobType")
    folded: dict[str, Any] = {"name": "settings, seeds folded", "filters": [in_sweep, job != SWEEP_SUMMARY]}
    folded["groupby"] = [f"config.{key}" for key in logged.keys]
    summary: dict[str, Any] = {"name": SWEEP_SUMMARY, "filters": [in_sweep, job == SWEEP_SUMMARY]}
    parts = [("Figures", summary, [media(name, f"sweep/{name}", HALF, 12) for name in figures])]
    parts += [(name, folded, draw(logged)) for name, (draw, _) in SECTIONS.items() if draw is not pictures]
    if best and summary_of_best and summary_of_best.wandb.id:
        only_best: dict[str, Any] = {"name": "best run", "filters": [expr.Metric("ID") == summary_of_best.wandb.id]}
        parts.append((f"Pictures of the best run, {best.name}", only_best, pictures(logged)))

    where: dict[str, Any] = {"entity": entity, "project": project} if ask_server else {}
    blocks: list[Any] = [wr.H2("Results"), wr.MarkdownBlock(_markdown(runs, metric))]
    for heading, runset, panels in parts:
        if panels:
            blocks += [wr.H2(heading), wr.PanelGrid(runsets=[wr.Runset(**runset, **where)], panels=panels)]
    if command:
        blocks += [wr.H2("The command that repeats it"), wr.CodeBlock(code=command, language="markdown")]
    return wr.Report(
        entity=entity,
        project=project,
        title=f"vae_exp sweep {sweep}"[:MAX_TITLE],  # by which a later call finds it again
        description=f"{len(runs)} runs of vae_exp; neg_elbo = reconstruction + KL, in nats per image, lower is better",
        blocks=blocks,
        width="fluid",
    )


def _markdown(runs: list[Run], metric: str) -> str:
    """Return the settings as a Markdown table, best first, without what they have in common, unless it was swept."""
    settings = results.sort_runs(results.fold_seeds(runs), metric)
    columns = [*results.setting_columns(settings), metric, *results.result_columns(settings), "state"]
    columns = list(dict.fromkeys(columns))
    rows = [["run", *columns], ["---"] * (len(columns) + 1)]
    rows += [[run.name, *(cell(run, column) for column in columns)] for run in settings[:MAX_ROWS]]
    lines = ["| " + " | ".join(word.replace("|", "\\|") for word in row) + " |" for row in rows]
    more = len(settings) - MAX_ROWS
    return "\n".join([*lines, *([f"\nand {more} more settings, behind these"] if more > 0 else [])])


def require_account() -> None:
    """Raise UserError if no API key is configured, or if the server does not answer or refuses it."""
    import wandb

    # Asked once more and no oftener: a server that fails would otherwise be waited for again by every question.
    wandb.setup(wandb.Settings(silent=True, x_graphql_retry_max=1))
    wandb_run.api_key("online", "--wandb", "print what would be sent with --dry-run")
    if problem := wandb_run.server_problem():
        raise UserError(f"--wandb: {problem}. Nothing was sent.")


@contextlib.contextmanager
def _one_message(entity: str, project: str) -> Iterator[None]:
    """Raise UserError for whatever W&B raises inside: no such project, no right to it, no network."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        message = " ".join(str(error).split())
        raise UserError(f"--wandb {entity}/{project}: W&B did not take it ({message}).") from error


def missing_runs(entity: str, project: str, logged: Logged) -> int:
    """Return how many of the runs the project lacks. Raise UserError if there is no such project, or W&B refuses."""
    import wandb

    with _one_message(entity, project):
        try:
            runs = wandb.Api(timeout=SECONDS).runs(f"{entity}/{project}", {"name": {"$in": logged.ids}})
            return len(set(logged.ids) - {run.id for run in runs})
        except ValueError as error:  # of the library, where the server knows no such project
            why = "W&B has no such project, or shows it to others than you"
            how = "It comes to be with its first run: wandb sync, or wandb.mode=online."
            raise UserError(f"--wandb {entity}/{project}: {why}. {how}") from error


def save_view(view: ws.Workspace) -> tuple[str, bool]:
    """Save the view, keep sections that the user added; return its address, and whether it was there before."""
    from pydantic import ValidationError

    with _one_message(view.entity, view.project):
        try:
            before = ws.Workspace.from_url(view.url)
        except ValueError as error:  # of the library, where the project has no view of this name
            if isinstance(error, ValidationError):  # it has one, which this version of the library cannot read
                raise
            before = None
        if before is not None:
            view._internal_id = before._internal_id
            ours = {section.name for section in view.sections} | set(SECTIONS)
            view.sections = [*view.sections, *(section for section in before.sections if section.name not in ours)]
        view.save()
        return view.url, before is not None


def save_report(report: wr.Report) -> tuple[str, bool]:
    """Save the report in place of one of the same title; return its address, and whether it was there before."""
    import wandb

    with _one_message(report.entity, report.project):
        reports = wandb.Api(timeout=SECONDS).reports(f"{report.entity}/{report.project}")
        before = next((other for other in reports if other.display_name == report.title), None)
        if before is not None:
            report.id = before.id
        report.save()
        return report.url, before is not None
