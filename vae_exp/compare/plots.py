"""Figures of a sweep: a heat map over two swept numbers, curves with a band over seeds for one."""

from pathlib import Path
from typing import Any, cast

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from vae_exp.compare import table
from vae_exp.compare.runs import PRUNED, SCORES, TRADING, Z_DIM, Run, objective, sign
from vae_exp.compare.table import cell, is_logarithmic
from vae_exp.config.schema import TERMS, is_number
from vae_exp.files import atomic_write

MARKERS = "osD^v"
MAX_NAMED = 16  # settings in a column of a legend
MAX_TICKS = 10  # as many values as have room for a tick each
BEST_FIRST = matplotlib.colors.ListedColormap(plt.get_cmap("viridis")(np.linspace(0, 0.88, 256)))  # as on the HTML page
MAPPED = ("test/reconstruction", "test/kl", "objective", "test/active_units")


def draw(
    folded: list[Run], runs: list[Run], keys: list[str], metric: str, folder: Path, searched: dict[str, bool]
) -> list[Path]:
    """Draw a sweep as PNG files in the folder, by the number of its numeric keys, and return their paths.

    `searched` are the keys that were searched in an interval, and whether on a logarithmic scale.
    """
    figures: dict[str, plt.Figure] = {}
    done = [run for run in folded if metric in run.metrics]
    if all(is_number(run.value(key)) for run in folded for key in keys):
        if len(keys) == 2:
            cells = np.prod([len({run.value(key) for run in done}) for key in keys])
            is_grid = 2 * len(done) > cells
            if is_grid:
                figures["heat_map"] = _heat_map(done, keys[0], keys[1], metric)
            else:
                figures["heat_map"] = _scatter(done, keys[0], keys[1], metric, searched)
            if is_grid and Z_DIM in keys and any(key.startswith(TRADING) for key in keys):
                (along,) = [key for key in keys if key != Z_DIM]
                figures["map"] = _map(done, Z_DIM, along)
                figures["rate_distortion"] = _rate_distortion(done, Z_DIM, along)
        if len(keys) == 1:
            figures["curves"] = _curves(done, runs, keys[0], metric, searched)
    if scores := [name for name in SCORES if sum(name in run.metrics for run in folded) > 1]:
        figures["trade_off"] = _trade_off(folded, keys, scores)
    paths = []
    for name, figure in figures.items():
        paths.append(folder / f"{name}.png")
        with atomic_write(paths[-1]) as file:
            figure.savefig(file, dpi=110)
        plt.close(figure)
    return paths


def _colors(axes: plt.Axes, runs: list[Run], metric: str, cut: float = 0.1) -> Any:
    """Return a scale of colors for a metric, drawn beside it, without this share of the worst: they would hide much."""
    values, is_least = [run.metrics[metric] for run in runs], sign(runs, metric) > 0
    ends, extend = ([0, 1 - cut], "max") if is_least else ([cut, 1], "min")
    norm = plt.Normalize(*np.quantile(values, ends))
    colors = plt.cm.ScalarMappable(norm, BEST_FIRST if is_least else BEST_FIRST.reversed())
    axes.figure.colorbar(colors, ax=axes, label=_with_unit(metric), extend=extend if cut else "neither")
    axes.set_title(f"{metric}, {'lower' if is_least else 'higher'} is better")
    return colors


def _with_unit(metric: str) -> str:
    return f"{metric}, nats per image" if metric.rpartition("/")[2] in TERMS else metric


def _heat_map(runs: list[Run], x_key: str, y_key: str, metric: str) -> plt.Figure:
    xs, ys = (sorted({run.value(key) for run in runs}) for key in (x_key, y_key))
    figure, axes = plt.subplots(figsize=(1.6 + 1.1 * len(xs), 1.4 + 0.8 * len(ys)), layout="constrained")
    values = {(run.value(x_key), run.value(y_key)): run.metrics[metric] for run in runs}
    bests = [(run.value(x_key), run.value(y_key)) for run in table.best_per_group(runs)]
    pruned = [(run.value(x_key), run.value(y_key)) for run in runs if run.state == PRUNED]
    notes = dict.fromkeys(pruned, "pruned") | dict.fromkeys(bests, "best")
    _draw_cells(axes, x_key, y_key, values, notes, _colors(axes, runs, metric, 0.1 if len(runs) > 4 else 0))
    return figure


def _draw_cells(
    axes: plt.Axes,
    x_key: str,
    y_key: str,
    values: dict[tuple[float, float], float],
    notes: dict[tuple[float, float], str],
    colors: Any = None,
    digits: int = 2,
) -> None:
    """Draw a value for each (x, y) as a cell with its number, in these colors, or from the lowest to the highest."""
    xs, ys = (sorted({cell[i] for cell in values}) for i in (0, 1))
    cells = np.full((len(ys), len(xs)), np.nan)
    for (x, y), value in values.items():
        cells[ys.index(y), xs.index(x)] = value
    mesh = axes.pcolormesh(cells, norm=colors and colors.norm, cmap=colors.cmap if colors else BEST_FIRST)
    for axis, key, numbers in ((axes.xaxis, x_key, xs), (axes.yaxis, y_key, ys)):
        axis.set_ticks([i + 0.5 for i in range(len(numbers))], [f"{number:g}" for number in numbers])
        axis.set_label_text(key)
    luminance = mesh.to_rgba(cells)[..., :3] ** 2.2 @ (0.2126, 0.7152, 0.0722)
    for (x, y), value in values.items():
        note = notes.get((x, y), "")
        axes.text(
            *(xs.index(x) + 0.5, ys.index(y) + 0.5, f"{value:.{digits}f}\n{note}".strip()),
            ha="center",
            va="center",
            color="black" if luminance[ys.index(y), xs.index(x)] > 0.22 else "white",
            weight="bold" if note == "best" else "normal",
        )


def _map(runs: list[Run], x_key: str, y_key: str) -> plt.Figure:
    """Draw what each setting gives, a heat map for each of MAPPED that all runs have."""
    cells = {name: {(run.value(x_key), run.value(y_key)): _mapped(run, name) for run in runs} for name in MAPPED}
    maps = {name: values for name, values in cells.items() if None not in values.values()}
    n_x, n_y = (len({run.value(key) for run in runs}) for key in (x_key, y_key))
    size = (len(maps) * (1.2 + 0.8 * n_x), 1.4 + 0.6 * n_y)
    figure, grid = plt.subplots(1, len(maps), figsize=size, layout="constrained", squeeze=False)
    for axes, (name, values) in zip(grid[0], maps.items(), strict=True):
        digits = 0 if name == "test/active_units" else 1
        _draw_cells(axes, x_key, y_key, cast("dict[tuple[float, float], float]", values), {}, digits=digits)
        axes.set_title(f"{name} = reconstruction + beta KL" if name == "objective" else name, fontsize=10)
    return figure


def _mapped(run: Run, name: str) -> float | None:
    return objective(run) if name == "objective" else run.metrics.get(name)


def _rate_distortion(runs: list[Run], curve_key: str, along: str) -> plt.Figure:
    """Draw the KL, what a code says, over what it leaves of the image: a curve for each value of a key."""
    figure, axes = plt.subplots(figsize=(6, 4.5), layout="constrained")
    curves = sorted({run.value(curve_key) for run in runs})
    for i, value in enumerate(curves):
        members = sorted((run for run in runs if run.value(curve_key) == value), key=lambda run: run.value(along))
        x, y = ([run.metrics[name] for run in members] for name in ("test/kl", "test/reconstruction"))
        color = BEST_FIRST(i / max(len(curves) - 1, 1))
        axes.plot(x, y, "o-", color=color, label=f"{curve_key}={value:g}")
        if i in (0, len(curves) - 1):  # of the others the values lie in between
            for run, point in zip(members, zip(x, y, strict=True), strict=True):
                aside = {"xytext": (-4, -11), "ha": "right"} if i else {"xytext": (4, 4)}
                axes.annotate(f"{run.value(along):g}", point, textcoords="offset points", fontsize=8, **aside)
    axes.set(xlabel="rate: test/kl, nats per image", ylabel="distortion: test/reconstruction, nats per image")
    axes.set_title(f"at the points: {along}", fontsize=10)
    axes.legend()
    return figure


def _scatter(runs: list[Run], x_key: str, y_key: str, metric: str, searched: dict[str, bool]) -> plt.Figure:
    """Draw a point for each run of a search, whose points lie on no grid."""
    figure, axes = plt.subplots(figsize=(6, 4.5), layout="constrained")
    colors = _colors(axes, runs, metric)
    for marker, label in (("o", None), ("X", "pruned")):  # a cross for those whose numbers are of fewer epochs
        if points := [run for run in runs if (run.state == PRUNED) == (label is not None)]:
            x, y, c = ([run.value(key) for run in points] for key in (x_key, y_key, metric))
            axes.scatter(x, y, c=c, cmap=colors.cmap, norm=colors.norm, s=60, marker=marker, label=label)
    for best in table.best_per_group(runs):
        label = f"best: {best.metrics[metric]:.2f}"
        axes.scatter(best.value(x_key), best.value(y_key), s=220, facecolors="none", edgecolors="black", label=label)
    for axis, key in ((axes.xaxis, x_key), (axes.yaxis, y_key)):
        _key_axis(axis, [run.value(key) for run in runs], key, searched)
    axes.legend()
    return figure


def _curves(folded: list[Run], runs: list[Run], key: str, metric: str, searched: dict[str, bool]) -> plt.Figure:
    figure, (over_key, over_epochs) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    folded = sorted(folded, key=lambda run: run.value(key))
    xs = [run.value(key) for run in folded]
    means = np.array([run.metrics[metric] for run in folded])
    spread = np.array([run.spread.get(metric, 0.0) for run in folded])
    over_key.plot(xs, means, "o-")
    _key_axis(over_key.xaxis, xs, key, searched)
    over_key.set_ylabel(_with_unit(metric))
    over_key.set_title("best epoch")
    over_epochs.set(xlabel="epoch", title="over training")
    over_epochs.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    if (seeds := max(run.seeds for run in folded)) > 1:
        over_key.fill_between(xs, means - spread, means + spread, alpha=0.25)
        over_key.set_title(f"best epoch, band: one standard deviation over {seeds} seeds")
        over_epochs.set_title(f"over training, band: lowest to highest of {seeds} seeds")
    for i, setting in enumerate(folded):
        same = [run for run in runs if run.state == setting.state and run.value(key) == setting.value(key)]
        histories = [
            [(row["epoch"], row[metric]) for row in run.logged() if is_number(row.get(metric))] for run in same
        ]
        if histories and (epochs := min(map(len, histories))):
            values = np.array([[value for _, value in history[:epochs]] for history in histories])
            color = BEST_FIRST(i / max(len(folded) - 1, 1))
            ticks = [epoch for epoch, _ in histories[0][:epochs]]
            marker = "o" if epochs == 1 else None  # a line through one point is none
            over_epochs.plot(ticks, values.mean(0), marker=marker, color=color, label=f"{key}={setting.value(key):g}")
            if seeds > 1:
                over_epochs.fill_between(ticks, values.min(0), values.max(0), color=color, alpha=0.2)
    if over_epochs.lines:  # there are none of runs that ended within their first epoch
        over_epochs.legend()
    return figure


def _trade_off(folded: list[Run], keys: list[str], scores: list[str]) -> plt.Figure:
    """Draw each score over the reconstruction, a point per setting, with bars of one standard deviation over seeds."""
    cost, scored = "test/reconstruction", [run for run in folded if any(name in run.metrics for name in scores)]
    settings = [" ".join(cell(run, key) for key in keys) for run in scored]
    columns = -(-len(scored) // MAX_NAMED)
    legend = columns * (0.5 + 0.075 * max(map(len, (*settings, *keys)))), 0.4 + 0.18 * (len(keys) + MAX_NAMED)  # inches
    size = (3.4 * len(scores) + legend[0], legend[1] if columns > 1 else max(3.6, 0.18 * (len(keys) + len(scored))))
    figure, grid = plt.subplots(1, len(scores), figsize=size, layout="constrained", squeeze=False)
    points: dict[int, Any] = {}
    for axes, name in zip(grid[0], scores, strict=True):
        for i, run in enumerate(scored):
            if name in run.metrics:
                (x, x_spread), (y, y_spread) = ((run.metrics[key], run.spread.get(key, 0.0)) for key in (cost, name))
                style: dict[str, Any] = {"fmt": MARKERS[i // 10 % len(MARKERS)], "color": f"C{i % 10}", "capsize": 2}
                points[i] = axes.errorbar([x], [y], xerr=[x_spread], yerr=[y_spread], **style)[0]
        axes.set_title(name, fontsize=10)
        axes.set_ylim(bottom=0)
    grid[0][0].set_ylabel("higher is better")
    figure.supxlabel(f"{cost}, nats per image", fontsize=10)
    place: dict[str, Any] = {"loc": "outside right upper", "ncols": columns, "columnspacing": 1}
    place |= {"title": "\n".join(keys), "fontsize": 8, "title_fontsize": 8, "alignment": "left"}
    named = [settings[i] for i in points]
    for text in figure.legend(list(points.values()), named, **place).get_texts():
        text.set_parse_math(False)
    return figure


def _key_axis(axis: Any, values: list[float], key: str, searched: dict[str, bool]) -> None:
    """Scale an axis as its key was searched or looks swept, with a tick for each value where there is room."""
    is_log = searched.get(key, is_logarithmic(values))
    axis.axes.set(**{f"{axis.axis_name}scale": "log" if is_log else "linear"})
    axis.set_label_text(key)
    if len(ticks := sorted(set(values))) <= MAX_TICKS and key not in searched:
        axis.set_ticks(ticks, [f"{value:g}" for value in ticks], minor=False)
        axis.set_minor_locator(matplotlib.ticker.NullLocator())
    elif is_log:
        parts = (1, 2, 5) if ticks[-1] < 100 * ticks[0] else (1,)
        axis.set_major_locator(matplotlib.ticker.LogLocator(subs=parts))
        axis.set_major_formatter(matplotlib.ticker.StrMethodFormatter("{x:g}"))
        axis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    else:
        whole = all(isinstance(value, int) for value in values)
        axis.set_major_locator(matplotlib.ticker.MaxNLocator(5, integer=whole))
