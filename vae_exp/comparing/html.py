"""One self-contained page that compares runs: a table to sort and filter, curves, swept keys, pictures."""

import base64
from html import escape

from vae_exp.comparing import comparable, curves
from vae_exp.comparing.curves import label, text
from vae_exp.comparing.names import short_names
from vae_exp.comparing.runs import REASON, RESULTS, STATE, Run, differing, sort_runs
from vae_exp.comparing.terminal import cell
from vae_exp.run.folder import IMAGES

LONGEST_NAME = 44  # characters; the whole name is shown where the mouse points
PICTURES = {"test_reconstructions": "test images, reconstructions below", "samples": "samples from the prior"}
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 1200px; padding: 0 1rem; color: #222 }
h2 { margin-top: 2.2rem } section h1 { margin-top: 3rem; font-size: 1.3rem; overflow-wrap: anywhere }
table { border-collapse: collapse; font-variant-numeric: tabular-nums } .scroll { overflow-x: auto }
th { cursor: pointer; text-align: right; border-bottom: 2px solid #888; padding: .3rem .8rem; white-space: nowrap }
td { text-align: right; padding: .2rem .8rem; border-bottom: 1px solid #ddd; white-space: nowrap }
td.reason { max-width: 20rem; overflow: hidden; text-overflow: ellipsis }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff }
@media (max-width: 700px) { td:first-child { min-width: 8rem; white-space: normal; overflow-wrap: anywhere } }
tr.best, tr.best td:first-child { background: #fff3c4 }
th[data-order="1"]::after { content: " \\25B2" } th[data-order="-1"]::after { content: " \\25BC" }
#filter { padding: .4rem; width: 22rem; max-width: 100%; box-sizing: border-box; margin-bottom: .8rem }
.curves { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 430px), 1fr)); gap: 1rem }
.curves > div { min-width: 0 } .wide > div { min-width: 600px }
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 270px), 1fr)); gap: 1.4rem }
figure { margin: 0 } figure img { width: 100%; image-rendering: pixelated }
figcaption { font-size: 13px; overflow-wrap: anywhere }
"""
# Sorting by a click on a column's head, and one box that filters the rows and the pictures.
SCRIPT = """
document.querySelectorAll("table.runs th").forEach(head => head.onclick = () => {
  const body = head.closest("table").tBodies[0], column = head.cellIndex;
  const order = head.dataset.order === "1" ? -1 : 1;
  head.parentElement.querySelectorAll("th").forEach(other => delete other.dataset.order);
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


def page(rows: list[Run], count: int, columns: list[str], metric: str) -> str:
    """The page of so many runs: what the tables' rows are, perhaps folded over seeds, all the figures show too.

    Runs that do not compare, of other data or under another likelihood, stand in sections of their own.
    """
    alike = comparable.groups(rows)
    folded = " Runs that differ in their seed alone are one: the mean, with a band of one standard deviation."
    why = comparable.why_several(rows)
    if len(alike) == 1:
        sections = _section(rows, columns, metric, with_plotly=True)
    else:
        sections = "".join(
            f"<section><h1>{escape(title)}</h1>"
            f"{_section(group, _columns(group, columns), comparable.metric_of(group), with_plotly=i == 0)}</section>"
            for i, (title, group) in enumerate(zip(comparable.titles(alike), alike, strict=True))
        )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{count} VAE runs</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style>'
        f"<h1>{count} runs</h1><p>Nats per image; lower is better. Click a column to sort by it."
        f"{folded if any(run.members for run in rows) else ''}</p>{f'<p>{escape(why)}</p>' if why else ''}"
        '<input id="filter" placeholder="filter, such as z_dim=10 finished">'
        f"{sections}<script>{SCRIPT}</script></html>"
    )


def _section(rows: list[Run], columns: list[str], metric: str, with_plotly: bool) -> str:
    """The table, the curves, the swept keys and the pictures of runs that compare."""
    keys, runs = differing(rows), sort_runs(rows, metric)
    measured = [run for run in runs if metric in run.metrics]
    drawn = [curves.over_epochs(runs, keys, name) for name in (metric, "train_epoch/neg_elbo")]
    has_swept = len(measured) > 1 and bool(keys)
    drawn += [curves.parallel(measured, keys, metric)] if has_swept else []
    parts = [
        figure.to_html(full_html=False, include_plotlyjs=with_plotly and i == 0, config={"responsive": True})
        for i, figure in enumerate(drawn)
    ]
    swept = f'<h2>Swept keys and results</h2><div class="scroll wide">{parts[2]}</div>' if has_swept else ""
    return (
        f"{_table(rows, columns, keys, metric)}"
        f'<h2>Training</h2><div class="curves">{"".join(f"<div>{part}</div>" for part in parts[:2])}</div>{swept}'
        f"<h2>Pictures</h2><p>Test images above their reconstructions by the best epoch; "
        f"samples of the last epoch.</p>{_sheet(runs, keys, metric)}"
    )


def _columns(group: list[Run], columns: list[str]) -> list[str]:
    """Of the columns of all runs those that tell something of these: results, and what differs among them."""

    def tells(column: str) -> bool:
        values = [run.value(column) for run in group]
        return any(value is not None for value in values) and (
            column in (*RESULTS, STATE, REASON) or any(value != values[0] for value in values)
        )

    return [column for column in columns if tells(column)]


def _name(run: Run) -> str:
    return f"{run.name} ({run.seeds} seeds)" if run.seeds > 1 else run.name


def _table(rows: list[Run], columns: list[str], keys: list[str], metric: str) -> str:
    """What runs are compared by before settings, so that a narrow window shows it; the other results after them."""
    bests = comparable.bests(rows) if len(rows) > 1 else []
    settings = [column for column in columns if column not in (*RESULTS, "run", STATE, REASON)]
    told = [column for column in columns if column in (*RESULTS, STATE, REASON) and column != metric]
    columns = [*([metric] if metric in columns else []), *settings, *told]
    head = "".join(f"<th>{escape(name)}</th>" for name in ["run", *columns])
    lines = []
    for run, short in zip(rows, short_names([_name(run) for run in rows], LONGEST_NAME), strict=True):
        name = _name(run)
        cells = [f'<td title="{escape(name)}" data-value="{escape(name)}">{escape(short)}</td>']
        for column in columns:
            value = run.value(column)
            shown = "" if value is None else cell(run, column) if column in RESULTS else text(value)
            plain, kind = (
                escape(text(value) if value is not None else ""),
                ' class="reason"' if column == "reason" else "",
            )
            cells.append(f'<td{kind} title="{plain}" data-value="{plain}">{escape(shown)}</td>')
        mark = ' class="best"' if any(run is best for best in bests) else ""
        search = escape(" ".join([name, run.state, *(f"{k}={text(run.value(k))}" for k in keys)]))
        lines.append(f'<tr{mark} data-run="{search}">{"".join(cells)}</tr>')
    return (
        '<div class="scroll">'
        f'<table class="runs"><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
    )


def _sheet(runs: list[Run], keys: list[str], metric: str) -> str:
    figures = []
    for run in runs:
        shown = comparable.best(run.members, comparable.metric_of(run.members)) or run  # of several seeds the best
        pictures = []
        for name, caption in PICTURES.items():
            drawn = sorted((shown.folder / IMAGES).glob(f"{name}_*.png"))
            if drawn:
                data = base64.b64encode(drawn[-1].read_bytes()).decode()
                pictures.append(f'<img alt="{escape(caption)}" title="{caption}" src="data:image/png;base64,{data}">')
        if not pictures:
            continue
        says = f"{label(run, keys)}: " + (f"{run.metrics[metric]:.2f}" if metric in run.metrics else run.state)
        says += f", of {shown.folder.name}" if run.seeds > 1 else ""
        search = escape(" ".join([_name(run), *(f"{k}={text(run.value(k))}" for k in keys), run.state]))
        says = f'<figcaption title="{escape(run.name)}">{escape(says)}</figcaption>'
        figures.append(f'<figure data-run="{search}">{says}{"".join(pictures)}</figure>')
    return f'<div class="sheet">{"".join(figures)}</div>'
