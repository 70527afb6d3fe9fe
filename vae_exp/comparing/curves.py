"""The figures of the page: curves over training, and swept keys beside results."""

import math
import statistics
from collections.abc import Callable
from html import escape
from typing import Any

import plotly.graph_objects as go

from vae_exp.comparing.plots import is_logarithmic
from vae_exp.comparing.runs import Run

COLORS = ["#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5", "#9c6b4e"]
MOST_IN_LEGEND = 12  # of more runs the names are told where the mouse points: a legend would be larger than the curves


def label(run: Run, keys: list[str]) -> str:
    """What a run is in a figure: its values of the keys that differ, or its name."""
    settings = [f"{key.rsplit('.', 1)[-1]}={text(run.value(key))}" for key in keys if run.value(key) is not None]
    return " ".join(settings) or run.name


def text(value: Any) -> str:
    """A value as a cell or an axis shows it."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def over_epochs(runs: list[Run], keys: list[str], metric: str) -> go.Figure:
    """A number over training, a line a run; the mean over seeds, with a band, of those that were folded."""
    figure = go.Figure()
    for i, run in enumerate(runs):
        epochs, means, spreads = _mean([member.history(metric) for member in run.members or [run]])
        if not epochs:  # it failed before it logged any
            continue
        color, group, name = COLORS[i % len(COLORS)], str(run.folder), label(run, keys)
        if any(spreads):
            low = [mean - spread for mean, spread in zip(means, spreads, strict=True)]
            high = [mean + spread for mean, spread in zip(means, spreads, strict=True)]
            band = go.Scatter(
                x=epochs + epochs[::-1],
                y=high + low[::-1],
                mode="lines",
                fill="toself",
                fillcolor=color,
                opacity=0.2,
                line={"width": 0},
                hoverinfo="skip",
                showlegend=False,
                legendgroup=group,
            )
            figure.add_trace(band)
        line = go.Scatter(
            x=epochs,
            y=means,
            name=escape(name),
            legendgroup=group,
            mode="lines" if len(epochs) > 1 else "markers",  # a line through one point is none
            line={"color": color},
            hovertemplate="%{y:.3f} at epoch %{x}<br>" + escape(f"{name}, {run.name}") + "<extra></extra>",
        )
        figure.add_trace(line)
    figure.update_xaxes(title_text="epoch")
    has_legend = len(runs) <= MOST_IN_LEGEND
    # Below the curves, which it takes no width from; the figure is as high as its longest lines need.
    legend = {"orientation": "h", "y": -0.2, "yanchor": "top", "x": 0}
    hover = {"align": "left", "namelength": -1}
    size: dict[str, Any] = {"height": 400 + (28 * len(runs) if has_legend else 0)}
    size["margin"] = {"t": 40, "r": 10, "l": 50, "b": 50}
    title = {"text": "train neg_elbo" if metric.startswith("train") else metric, "font": {"size": 15}}
    return figure.update_layout(**size, title=title, showlegend=has_legend, legend=legend, hoverlabel=hover)


def _mean(histories: list[list[tuple[float, float]]]) -> tuple[list[float], list[float], list[float]]:
    """Epochs, means and standard deviations of histories, over the epochs that all of them have."""
    values = [dict(history) for history in histories if history]
    epochs = [epoch for epoch in (values[0] if values else {}) if all(epoch in each for each in values)]
    at = [[each[epoch] for each in values] for epoch in epochs]
    spreads = [statistics.stdev(each) if len(each) > 1 else 0.0 for each in at]
    return epochs, [statistics.fmean(each) for each in at], spreads


def parallel(runs: list[Run], keys: list[str], metric: str) -> go.Figure:
    """A line a run through its values of the keys that differ, to its result."""
    numbers = [run.metrics[metric] for run in runs]
    axes = [_axis(key, [run.value(key) for run in runs]) for key in keys]
    axes.append({"label": metric, "values": numbers})
    # A run that went far off would leave all the others one colour.
    top = sorted(numbers)[math.ceil(0.9 * (len(numbers) - 1))]
    line = {"color": numbers, "colorscale": "Viridis", "cmax": top, "cmin": min(numbers), "showscale": True}
    return go.Figure(go.Parcoords(dimensions=axes, line=line)).update_layout(height=420, margin={"t": 60})


def _axis(key: str, values: list[Any]) -> dict[str, Any]:
    """One axis: numbers on their own or a logarithmic scale, anything else by name."""
    numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    ticks = sorted(set(values)) if numeric else sorted({text(v) for v in values})
    if not numeric:
        places = [ticks.index(text(v)) for v in values]
        return {"label": key, "values": places, "tickvals": list(range(len(ticks))), "ticktext": ticks}
    scale: Callable[[Any], float] = math.log10 if is_logarithmic(values) else float
    ticks = ticks if len(ticks) <= 12 else [ticks[0], ticks[-1]]
    return {
        "label": key,
        "values": [scale(v) for v in values],
        "tickvals": [scale(v) for v in ticks],
        "ticktext": [f"{v:g}" for v in ticks],
    }
