"""Panels for W&B that a saved view and a report share; each is there only if a run logged what it shows."""

from typing import Any

import wandb_workspaces.reports.v2 as wr

from vae_exp.compare.runs import SCORES, is_number
from vae_exp.tracking.wandb_logged import Logged

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
