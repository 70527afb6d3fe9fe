"""One self-contained page that compares runs: a table to sort and filter, curves, swept keys, pictures."""

import base64
import math
from collections.abc import Callable
from html import escape
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from vae_exp.comparing.plots import is_logarithmic
from vae_exp.comparing.runs import RESULTS, Run, differing, sort_runs

PICTURES = {"test_reconstructions": "test images, reconstructions below", "samples": "samples from the prior"}
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 1200px; padding: 0 1rem; color: #222 }
h2 { margin-top: 2.2rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums } .scroll { overflow-x: auto }
th { cursor: pointer; text-align: right; border-bottom: 2px solid #888; padding: .3rem .8rem; white-space: nowrap }
td { text-align: right; padding: .2rem .8rem; border-bottom: 1px solid #ddd; white-space: nowrap }
td.reason { max-width: 20rem; overflow: hidden; text-overflow: ellipsis }
th:first-child, td:first-child { text-align: left } tr.best { background: #fff3c4 }
th[data-order="1"]::after { content: " \\25B2" } th[data-order="-1"]::after { content: " \\25BC" }
#filter { padding: .4rem; width: 22rem; margin-bottom: .8rem }
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(270px, 1fr)); gap: 1.4rem }
figure { margin: 0 } figure img { width: 100%; image-rendering: pixelated } figcaption { font-size: 13px }
"""
# Sorting by a click on a column's head, and one box that filters the rows and the pictures.
SCRIPT = """
const body = document.querySelector("#runs tbody");
document.querySelectorAll("#runs th").forEach((head, column) => head.onclick = () => {
  const order = head.dataset.order === "1" ? -1 : 1;
  document.querySelectorAll("#runs th").forEach(other => delete other.dataset.order);
  head.dataset.order = order;
  const value = row => row.cells[column].dataset.value;
  const compare = (a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === "" || y === "") return (x === "") - (y === "");
    return order * (isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y);
  };
  [...body.rows].sort(compare).forEach(row => body.append(row));
});
document.querySelector("#filter").oninput = event => {
  const words = event.target.value.toLowerCase().trim().split(/\\s+/);
  document.querySelectorAll("[data-run]").forEach(item => {
    const known = item.dataset.run.toLowerCase();  // z_dim=2 finds model.z_dim=2, and not z_dim=20
    const has = word => word.includes("=")
      ? known.split(" ").some(token => token === word || token.endsWith("." + word)) : known.includes(word);
    item.hidden = !words.every(has);
  });
};
"""


def page(rows: list[Run], runs: list[Run], columns: list[str], metric: str) -> str:
    """The page: rows are what the table shows (perhaps folded over seeds), runs each run by itself."""
    keys = differing(runs)
    runs = sort_runs(runs, metric)
    measured = [run for run in runs if metric in run.metrics]
    figures = [_curves(runs, keys, metric)]
    if len(measured) > 1 and keys:
        figures.append(_parallel(measured, keys, metric))
    drawn = [figure.to_html(full_html=False, include_plotlyjs=i == 0) for i, figure in enumerate(figures)]
    titles = ["Training", "Swept keys and results"]
    parts = [f"<h2>{title}</h2>{html}" for title, html in zip(titles, drawn, strict=False)]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{len(runs)} VAE runs</title>'
        f"<style>{STYLE}</style><h1>{len(runs)} runs</h1>"
        f"<p>Nats per image; lower is better. Click a column to sort by it.</p>{_table(rows, columns, keys, metric)}"
        f"{''.join(parts)}<h2>Pictures</h2><p>Test images above their reconstructions by the best epoch; "
        f"samples of the last epoch.</p>{_sheet(runs, keys, metric)}"
        f"<script>{SCRIPT}</script></html>"
    )


def _label(run: Run, keys: list[str]) -> str:
    settings = [f"{key.rsplit('.', 1)[-1]}={_text(run.value(key))}" for key in keys if run.value(key) is not None]
    return " ".join(settings) or run.folder.name


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _table(rows: list[Run], columns: list[str], keys: list[str], metric: str) -> str:
    lowest = min((run.metrics[metric] for run in rows if metric in run.metrics), default=None)
    head = "".join(f"<th>{escape(name)}</th>" for name in ["run", *columns])
    lines = []
    for run in rows:
        name = f"{run.seeds} seeds" if run.members else run.folder.name
        cells = [f'<td data-value="{escape(name)}">{escape(name)}</td>']
        for column in columns:
            value = run.value(column)
            shown = "" if value is None else _text(value)
            if column in RESULTS and value is not None:
                shown = f"{value:.3f}" + (f" ± {run.spread[column]:.3f}" if column in run.spread else "")
            plain, kind = (
                escape(_text(value) if value is not None else ""),
                ' class="reason"' if column == "reason" else "",
            )
            cells.append(f'<td{kind} title="{plain}" data-value="{plain}">{escape(shown)}</td>')
        mark = ' class="best"' if lowest is not None and run.metrics.get(metric) == lowest else ""
        search = escape(" ".join([name, run.state, *(f"{k}={_text(run.value(k))}" for k in keys)]))
        lines.append(f'<tr{mark} data-run="{search}">{"".join(cells)}</tr>')
    return (
        '<input id="filter" placeholder="filter, such as z_dim=10 finished"><div class="scroll">'
        f'<table id="runs"><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
    )


def _curves(runs: list[Run], keys: list[str], metric: str) -> go.Figure:
    figure = make_subplots(1, 2, subplot_titles=(metric, "train neg_elbo"), horizontal_spacing=0.07)
    colors = ["#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5", "#9c6b4e"]
    for i, run in enumerate(runs):
        label = _label(run, keys)
        for column, name in ((1, metric), (2, "train_epoch/neg_elbo")):
            points = run.history(name)
            line = go.Scatter(
                x=[epoch for epoch, _ in points],
                y=[value for _, value in points],
                name=label,
                legendgroup=str(run.folder),
                showlegend=column == 1,
                line={"color": colors[i % len(colors)]},
                hovertemplate="%{y:.3f} at epoch %{x}<extra>" + escape(label) + "</extra>",
            )
            figure.add_trace(line, 1, column)
    figure.update_xaxes(title_text="epoch")
    return figure.update_layout(height=460, margin={"t": 40, "r": 10})


def _parallel(runs: list[Run], keys: list[str], metric: str) -> go.Figure:
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
    ticks = sorted(set(values)) if numeric else sorted({_text(v) for v in values})
    if not numeric:
        places = [ticks.index(_text(v)) for v in values]
        return {"label": key, "values": places, "tickvals": list(range(len(ticks))), "ticktext": ticks}
    scale: Callable[[Any], float] = math.log10 if is_logarithmic(values) else float
    ticks = ticks if len(ticks) <= 12 else [ticks[0], ticks[-1]]
    return {
        "label": key,
        "values": [scale(v) for v in values],
        "tickvals": [scale(v) for v in ticks],
        "ticktext": [f"{v:g}" for v in ticks],
    }


def _sheet(runs: list[Run], keys: list[str], metric: str) -> str:
    figures = []
    for run in runs:
        label = _label(run, keys)
        pictures = []
        for name, caption in PICTURES.items():
            drawn = sorted((run.folder / "images").glob(f"{name}_*.png"))
            if drawn:
                data = base64.b64encode(drawn[-1].read_bytes()).decode()
                pictures.append(f'<img alt="{escape(caption)}" title="{caption}" src="data:image/png;base64,{data}">')
        if not pictures:
            continue
        text = escape(label + (f": {run.metrics[metric]:.2f}" if metric in run.metrics else f": {run.state}"))
        search = escape(" ".join([run.folder.name, *(f"{k}={_text(run.value(k))}" for k in keys), run.state]))
        figures.append(f'<figure data-run="{search}"><figcaption>{text}</figcaption>{"".join(pictures)}</figure>')
    return f'<div class="sheet">{"".join(figures)}</div>'
