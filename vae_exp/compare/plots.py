"""Figures of a sweep: a heat map over two swept numbers, curves with a band over seeds for one."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from vae_exp.compare import table
from vae_exp.compare.runs import PRUNED, SCORES, Run
from vae_exp.compare.table import cell, is_logarithmic
from vae_exp.config.schema import is_number
from vae_exp.files import atomic_write


def draw(folded: list[Run], runs: list[Run], keys: list[str], metric: str, folder: Path) -> list[Path]:
    """Draw a sweep as PNG files in the folder, by the number of its numeric keys, and return their paths."""
    figures: dict[str, plt.Figure] = {}
    done = [run for run in folded if metric in run.metrics]
    if all(is_number(run.value(key)) for run in folded for key in keys):
        if len(keys) == 2:
            cells = np.prod([len({run.value(key) for run in done}) for key in keys])
            figures["heat_map"] = (_heat_map if 2 * len(done) > cells else _scatter)(done, keys[0], keys[1], metric)
        if len(keys) == 1:
            figures["curves"] = _curves(done, runs, keys[0], metric)
    if scores := [name for name in SCORES if sum(name in run.metrics for run in folded) > 1]:
        figures["trade_off"] = _trade_off(folded, keys, scores)
    paths = []
    for name, figure in figures.items():
        paths.append(folder / f"{name}.png")
        with atomic_write(paths[-1]) as file:
            figure.savefig(file, dpi=110)
        plt.close(figure)
    return paths


def _heat_map(runs: list[Run], x_key: str, y_key: str, metric: str) -> plt.Figure:
    xs, ys = (sorted({run.value(key) for run in runs}) for key in (x_key, y_key))
    cells = np.full((len(ys), len(xs)), np.nan)
    by_cell = {(ys.index(run.value(y_key)), xs.index(run.value(x_key))): run for run in runs}
    for index, run in by_cell.items():
        cells[index] = run.metrics[metric]
    figure, axes = plt.subplots(figsize=(1.6 + 1.1 * len(xs), 1.4 + 0.8 * len(ys)), layout="constrained")
    # A diverged corner must not wash out the differences among the good runs.
    top = np.nanquantile(cells, 0.9) if len(runs) > 4 else None
    mesh = axes.pcolormesh(_edges(xs), _edges(ys), cells, cmap="viridis_r", vmax=top)
    _number_axis(axes.xaxis, xs, x_key)
    _number_axis(axes.yaxis, ys, y_key)
    bests, strength = table.best_per_group(runs), np.asarray(mesh.norm(cells))
    for (row, column), run in by_cell.items():
        is_best = any(run is best for best in bests)
        note = "\nbest" if is_best else "\npruned" if run.state == PRUNED else ""
        axes.text(
            *(xs[column], ys[row], f"{run.metrics[metric]:.2f}{note}"),
            ha="center",
            va="center",
            color="white" if strength[row, column] > 0.5 else "black",
            weight="bold" if is_best else "normal",
        )
    figure.colorbar(mesh, label=f"{metric}, nats per image", extend="max" if top is not None else "neither")
    axes.set_title(f"{metric}, lower is better")
    return figure


def _scatter(runs: list[Run], x_key: str, y_key: str, metric: str) -> plt.Figure:
    """Draw a point for each run of a search, whose points lie on no grid."""
    figure, axes = plt.subplots(figsize=(6, 4.5), layout="constrained")
    values = [run.metrics[metric] for run in runs]
    colors = plt.Normalize(min(values), np.quantile(values, 0.9))
    for marker, label in (("o", None), ("X", "pruned")):  # a cross for those whose numbers are of fewer epochs
        if points := [run for run in runs if (run.state == PRUNED) == (label is not None)]:
            x, y, c = ([run.value(key) for run in points] for key in (x_key, y_key, metric))
            axes.scatter(x, y, c=c, cmap="viridis_r", norm=colors, s=60, marker=marker, label=label)
    for best in table.best_per_group(runs):
        label = f"best: {best.metrics[metric]:.2f}"
        axes.scatter(best.value(x_key), best.value(y_key), s=220, facecolors="none", edgecolors="black", label=label)
    scales = ["log" if is_logarithmic({run.value(key) for run in runs}) else "linear" for key in (x_key, y_key)]
    axes.set(xlabel=x_key, ylabel=y_key, xscale=scales[0], yscale=scales[1], title=f"{metric}, lower is better")
    axes.legend()
    mappable = plt.cm.ScalarMappable(colors, "viridis_r")
    figure.colorbar(mappable, ax=axes, label=f"{metric}, nats per image", extend="max")
    return figure


def _curves(folded: list[Run], runs: list[Run], key: str, metric: str) -> plt.Figure:
    figure, (over_key, over_epochs) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    folded = sorted(folded, key=lambda run: run.value(key))
    xs = [run.value(key) for run in folded]
    means = np.array([run.metrics[metric] for run in folded])
    spread = np.array([run.spread.get(metric, 0.0) for run in folded])
    over_key.plot(xs, means, "o-")
    over_key.fill_between(xs, means - spread, means + spread, alpha=0.25)
    _number_axis(over_key.xaxis, xs, key)
    over_key.set_ylabel(f"{metric}, nats per image")
    seeds = max(run.seeds for run in folded)
    over_key.set_title(f"best epoch, band: one standard deviation over {seeds} seeds" if seeds > 1 else "best epoch")
    for i, setting in enumerate(folded):
        same = [run for run in runs if run.state == setting.state and run.value(key) == setting.value(key)]
        histories = [
            [(row["epoch"], row[metric]) for row in run.logged() if is_number(row.get(metric))] for run in same
        ]
        if histories and (epochs := min(map(len, histories))):
            values = np.array([[value for _, value in history[:epochs]] for history in histories])
            color = plt.get_cmap("viridis")(i / max(len(folded) - 1, 1) * 0.9)
            ticks = [epoch for epoch, _ in histories[0][:epochs]]
            marker = "o" if epochs == 1 else None  # a line through one point is none
            over_epochs.plot(ticks, values.mean(0), marker=marker, color=color, label=f"{key}={setting.value(key):g}")
            over_epochs.fill_between(ticks, values.min(0), values.max(0), color=color, alpha=0.2)
    over_epochs.set(xlabel="epoch", title="over training, band: all seeds")
    if over_epochs.lines:  # there are none of runs that ended within their first epoch
        over_epochs.legend()
    return figure


def _trade_off(folded: list[Run], keys: list[str], scores: list[str]) -> plt.Figure:
    """Draw each score over the reconstruction, a point per setting, with bars of one standard deviation over seeds."""
    figure, grid = plt.subplots(1, len(scores), figsize=(3.6 * len(scores), 3.6), layout="constrained", squeeze=False)
    cost = "test/reconstruction"
    for axes, name in zip(grid[0], scores, strict=True):
        for run in (run for run in folded if name in run.metrics):
            (x, x_spread), (y, y_spread) = ((run.metrics[key], run.spread.get(key, 0.0)) for key in (cost, name))
            axes.errorbar([x], [y], xerr=[x_spread], yerr=[y_spread], fmt="o", capsize=2)
            settings = " ".join(cell(run, key) for key in keys)
            axes.annotate(settings, (x, y), xytext=(5, 5), textcoords="offset points", fontsize=8, parse_math=False)
        axes.set(xlabel=f"{cost}, nats per image")
        axes.set_title(f"{name}, higher is better", fontsize=10)
        axes.margins(0.15)  # for the words beside the points
        axes.set_ylim(bottom=0)
    figure.suptitle(", ".join(keys), fontsize=9)
    return figure


def _number_axis(axis: Any, values: list[float], key: str) -> None:
    axis.axes.set(**{f"{axis.axis_name}scale": "log" if is_logarithmic(values) else "linear"})
    axis.set_ticks(values, [f"{value:g}" for value in values], minor=False)
    axis.set_minor_locator(matplotlib.ticker.NullLocator())
    axis.set_label_text(key)


def _edges(values: list[float]) -> np.ndarray:
    """Return the borders of the cells around the values: halfway between neighbours, on the axis's own scale."""
    log = is_logarithmic(values)
    v = np.log(values) if log else np.array(values, dtype=float)
    v = np.pad(v, 1, "reflect", reflect_type="odd") if len(v) > 1 else v + np.arange(-1, 2)
    edges = (v[1:] + v[:-1]) / 2
    return np.exp(edges) if log else edges
