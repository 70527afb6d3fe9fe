"""Figures of a sweep: a heat map over two swept numbers, curves with a band over seeds for one."""

import math
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from vae_exp.compare import table
from vae_exp.compare.runs import PRUNED, SCORES, Run
from vae_exp.compare.table import is_logarithmic
from vae_exp.files import atomic_write


def of_sweep(folded: list[Run], runs: list[Run], keys: list[str], metric: str, folder: Path) -> list[Path]:
    """Draw a sweep as PNG files in the folder, and return their paths.

    The figures are those that the number of swept numeric keys allows, and the reconstruction that scores of
    disentanglement cost, if there are any.
    """
    scored = [name for name in SCORES if sum(name in run.metrics for run in folded) > 1]
    return _of_keys(folded, runs, keys, metric, folder) + (
        [_save(_trade_off(folded, keys, scored), folder / "trade_off.png")] if scored else []
    )


def _of_keys(folded: list[Run], runs: list[Run], keys: list[str], metric: str, folder: Path) -> list[Path]:
    numeric = [key for key in keys if all(_is_number(run.value(key)) for run in folded)]
    done = [run for run in folded if metric in run.metrics]
    if len(keys) == 2 and len(numeric) == 2:
        draw = (
            _heat_map
            if 2 * len(done) > np.prod([len({run.value(key) for run in done}) for key in numeric])
            else _scatter
        )
        return [_save(draw(done, numeric[0], numeric[1], metric), folder / "heat_map.png")]
    if len(keys) == 1 and len(numeric) == 1:
        return [_save(_curves(done, runs, numeric[0], metric), folder / "curves.png")]
    return []


def _heat_map(runs: list[Run], x_key: str, y_key: str, metric: str) -> plt.Figure:
    xs, ys = (sorted({run.value(key) for run in runs}) for key in (x_key, y_key))
    cells = np.full((len(ys), len(xs)), np.nan)
    for run in runs:
        cells[ys.index(run.value(y_key)), xs.index(run.value(x_key))] = run.metrics[metric]
    figure, axes = plt.subplots(figsize=(1.6 + 1.1 * len(xs), 1.4 + 0.8 * len(ys)), layout="constrained")
    # A diverged corner must not wash out the differences among the good runs.
    top = np.nanquantile(cells, 0.9) if np.isfinite(cells).sum() > 4 else None
    mesh = axes.pcolormesh(_edges(xs), _edges(ys), cells, cmap="viridis_r", vmax=top)
    _number_axis(axes.xaxis, xs, x_key)
    _number_axis(axes.yaxis, ys, y_key)
    pruned = {(ys.index(run.value(y_key)), xs.index(run.value(x_key))) for run in runs if run.state == PRUNED}
    bests = {(ys.index(run.value(y_key)), xs.index(run.value(x_key))) for run in table.best_per_group(runs)}
    for (row, column), value in np.ndenumerate(cells):
        if np.isfinite(value):
            strength = mesh.norm(value)
            ink = "white" if strength is not None and float(np.clip(strength, 0, 1)) > 0.5 else "black"
            is_best = (row, column) in bests
            weight = "bold" if is_best else "normal"
            label = f"{value:.2f}" + ("\nbest" if is_best else "\npruned" if (row, column) in pruned else "")
            axes.text(xs[column], ys[row], label, ha="center", va="center", color=ink, weight=weight)
    figure.colorbar(mesh, label=f"{metric}, nats per image", extend="max" if top is not None else "neither")
    axes.set_title(f"{metric}, lower is better")
    return figure


def _scatter(runs: list[Run], x_key: str, y_key: str, metric: str) -> plt.Figure:
    """Draw a point for each run of a search, whose points lie on no grid."""
    xs, ys, numbers = ([run.value(key) for run in runs] for key in (x_key, y_key, metric))
    figure, axes = plt.subplots(figsize=(6, 4.5), layout="constrained")
    colors = plt.Normalize(min(numbers), np.quantile(numbers, 0.9))
    for marker, is_pruned in (("o", False), ("X", True)):  # a cross for those whose numbers are of fewer epochs
        x, y, c = (
            [value for run, value in zip(runs, values, strict=True) if (run.state == PRUNED) == is_pruned]
            for values in (xs, ys, numbers)
        )
        label = "pruned" if is_pruned and x else None
        points = axes.scatter(x, y, c=c, cmap="viridis_r", norm=colors, s=60, marker=marker, label=label)
    for best in table.best_per_group(runs):
        x, y, label = best.value(x_key), best.value(y_key), f"best: {best.metrics[metric]:.2f}"
        axes.scatter([x], [y], s=220, facecolors="none", edgecolors="black", label=label)
    axes.set(xlabel=x_key, ylabel=y_key, title=f"{metric}, lower is better")
    axes.set_xscale("log" if 0 < 30 * min(xs) < max(xs) else "linear")
    axes.set_yscale("log" if 0 < 30 * min(ys) < max(ys) else "linear")
    axes.legend()
    figure.colorbar(points, label=f"{metric}, nats per image", extend="max")
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
    for i, run in enumerate(folded):
        same = [r.history(metric) for r in runs if r.state == run.state and r.value(key) == run.value(key)]
        epochs = min(map(len, same), default=0)
        values = np.array([[value for _, value in history[:epochs]] for history in same])
        if values.size:
            color = plt.get_cmap("viridis")(i / max(len(folded) - 1, 1) * 0.9)
            ticks = [epoch for epoch, _ in same[0][:epochs]]
            marker = "o" if len(ticks) == 1 else None  # a line through one point is none
            over_epochs.plot(ticks, values.mean(0), marker=marker, color=color, label=f"{key}={run.value(key):g}")
            over_epochs.fill_between(ticks, values.min(0), values.max(0), color=color, alpha=0.2)
    over_epochs.set_xlabel("epoch")
    over_epochs.set_title("over training, band: all seeds")
    if over_epochs.lines:  # there are none of runs that ended within their first epoch
        over_epochs.legend()
    return figure


def _trade_off(folded: list[Run], keys: list[str], scores: list[str]) -> plt.Figure:
    """Draw each score over the reconstruction, a point per setting, with bars of one standard deviation over seeds."""
    figure, drawn = plt.subplots(1, len(scores), figsize=(3.6 * len(scores), 3.6), layout="constrained", squeeze=False)
    cost = "test/reconstruction"
    for axes, name in zip(drawn[0], scores, strict=True):
        for run in (run for run in folded if name in run.metrics):
            x, y, spreads = run.metrics[cost], run.metrics[name], [run.spread.get(key, 0.0) for key in (cost, name)]
            axes.errorbar([x], [y], xerr=[spreads[0]], yerr=[spreads[1]], fmt="o", capsize=2)
            settings = " ".join(
                f"{run.value(key):g}" if _is_number(run.value(key)) else str(run.value(key)) for key in keys
            )
            axes.annotate(settings, (x, y), xytext=(5, 5), textcoords="offset points", fontsize=8, parse_math=False)
        axes.set(xlabel=f"{cost}, nats per image", title=f"{name}, higher is better")
        axes.margins(0.15)  # for the words beside the points
        axes.set_ylim(bottom=0)
        axes.title.set_fontsize(10)
    figure.suptitle(", ".join(keys), fontsize=9)
    return figure


def _number_axis(axis, values: list[float], key: str) -> None:
    axis.axes.set(**{f"{axis.axis_name}scale": "log" if is_logarithmic(values) else "linear"})
    axis.set_ticks(values, [f"{value:g}" for value in values], minor=False)
    axis.set_minor_locator(matplotlib.ticker.NullLocator())
    axis.set_label_text(key)


def _edges(values: list[float]) -> np.ndarray:
    """Return the borders of the cells around the values: halfway between neighbours, on the axis's own scale."""
    log = is_logarithmic(values)
    v = np.log(values) if log else np.array(values, dtype=float)
    if len(v) == 1:
        edges = np.array([v[0] - 0.5, v[0] + 0.5])
    else:
        middle = (v[1:] + v[:-1]) / 2
        edges = np.concatenate([[2 * v[0] - middle[0]], middle, [2 * v[-1] - middle[-1]]])
    return np.exp(edges) if log else edges


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _save(figure: plt.Figure, path: Path) -> Path:
    with atomic_write(path) as file:
        figure.savefig(file, dpi=110)
    plt.close(figure)
    return path
