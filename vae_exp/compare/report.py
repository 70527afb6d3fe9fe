"""Write the report page: one HTML file with the runs' table, curves and pictures, drawn by the scripts in static/."""

import base64
import json
import math
import re
import statistics
import struct
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from vae_exp import webpage
from vae_exp.compare import runs as results
from vae_exp.compare import table
from vae_exp.compare.runs import BOOKKEEPING, NAME, REASON, SCORES, SEEDS, STATE, Run
from vae_exp.compare.table import cell, is_logarithmic, is_numeric, setting, short_names, swept
from vae_exp.config.schema import MEASURED, is_number
from vae_exp.errors import printable
from vae_exp.training.run_dir import BEST, IMAGES, LAST, on_checkpoint, on_resume

# test/* is logged over epochs where nothing is held out for validation
CURVES = [f"{part}/{term}" for part in ("val", "test", "train_epoch") for term in MEASURED]
MAX_POINTS = 150  # of a curve: a page has fewer pixels for more, and 200 runs of 1000 epochs would be 10 MB
MAX_LATENTS = 1000  # numbers of a run: of wide codes there are fewer epochs
MAX_LABEL = 60  # characters
MAX_NAME = 34  # the whole name is shown where the mouse points
MAX_BYTES = 19_000_000  # of a page, which is to stay below 20 MB
MAX_PICTURE_BYTES = 14_000_000
T = TypeVar("T")


def page(views: list[list[Run]], count: int, columns: list[str] | None = None) -> str:
    """Return the page of `count` runs. Views are the same runs one by one and folded over seeds: the first is shown."""
    content = [_view(rows, columns) for rows in views]
    folders: dict[str, dict[int, float]] = {}  # the best first; of each the epochs of its steps
    for view in content:
        for record in (view["runs"][number] for section in view["sections"] for number in section["ranked"]):
            folders[record["folder"]] = record.pop("epochs")
    room = MAX_BYTES - sum(len(json.dumps(view)) for view in content)
    pictures, sizes, by_folder = gather_pictures(folders, min(MAX_PICTURE_BYTES, room))
    for record in (record for view in content for record in view["runs"]):
        record |= by_folder[record["folder"]]
    data: dict[str, Any] = {"count": count, "groups": table.describe_groups(views[0]), "views": content}
    data |= {"scores": SCORES, "sizes": sizes, "about": _about(views[0])}
    data |= {"trading": results.TRADING, "z_dim": results.Z_DIM}
    title = f"{count} VAE run{'s' if count != 1 else ''}: {data['about']}"
    scripts = [STATIC / f"{name}.js" for name in SCRIPTS]
    # The pictures come last, because they are nearly all of the file: tables and curves are there before they are read.
    return webpage.compose(title, [STATIC / "page.css"], scripts, {"runs": data}, {"pictures": pictures})


def _about(runs: list[Run]) -> str:
    """Return what runs have in common, for the heading: models, datasets, epochs, and the days they were made on."""
    parts = []
    for key in ("model.name", "dataset.name", "epochs"):
        values = sorted({run.config[key] for run in runs if key in run.config}, key=results.order)
        many = f"{len(values)} {key.split('.')[0]}s" if len(values) > 3 else ""
        parts.append(many or " and ".join(filter(None, [", ".join(map(str, values[:-1])), *map(str, values[-1:])])))
    models, datasets, epochs = parts
    days = sorted({run.day for run in runs if run.day})
    dates = list(dict.fromkeys([*days[:1], *days[-1:]]))
    more = [f"{epochs} epochs"] if epochs and "epochs" not in epochs else []
    return printable(", ".join([f"{models} on {datasets}", *more, *([" to ".join(dates)] if dates else [])]))


def _view(rows: list[Run], columns: list[str] | None) -> dict[str, Any]:
    groups = table.groups(rows)
    titles: list[str | None] = [*table.titles(groups)] if len(groups) > 1 else [None]
    keys = [*dict.fromkeys(key for run in rows for key in run.config), *results.result_columns(rows), STATE, REASON]
    sections: list[dict[str, Any]] = []
    records: list[dict[str, Any]] = []
    for title, group in zip(titles, groups, strict=True):
        metric = table.metric_of(group)
        names = _usual_columns(group, metric) if columns is None else [name for name in columns if name != NAME]
        # A run that failed would make an axis of what it alone has.
        with_result = [run for run in group if metric in run.metrics and results.CONFIRM not in run.config]
        axes, differ = swept(with_result), results.differing(group)
        label_keys = [*(axes if len(with_result) > 1 else swept(group)), *(key for key in differ if key in SEEDS)]
        number = {id(run): len(records) + i for i, run in enumerate(group)}
        section = {
            "title": title,
            "metric": metric,
            "sign": results.sign(group, metric),
            "verdict": verdict(group, metric),
            "columns": [
                {"name": name, "is_number": is_numeric(group, name)}
                | {"is_folded": name in BOOKKEEPING and columns is None}  # shown on request: nobody looks for it
                for name in names
            ],
            "not_shown": [key for key in results.swept_keys(group) if key not in names],
            "axes": [_axis(key, with_result) for key in axes],
            "differing": differ,
            "runs": [*number.values()],
            "ranked": [number[id(run)] for run in results.sort_runs(group, metric)],
        }
        sections.append(section)
        records += _records(group, section, label_keys, keys)
    return {"is_folded": any(run.seeds > 1 for run in rows), "sections": sections, "runs": records}


def _usual_columns(group: list[Run], metric: str) -> list[str]:
    """Return the usual columns: first the metric, which a narrow window shows too, then settings; bookkeeping last."""
    kinds: list[Collection[str]] = [[metric], [], SEEDS, [*results.result_columns(group), STATE, REASON], BOOKKEEPING]
    ranks = {column: rank for rank, kind in reversed([*enumerate(kinds)]) for column in kind}
    return sorted(results.usual_columns(group), key=lambda column: ranks.get(column, 1))  # 1 is a setting's


def _axis(key: str, runs: list[Run]) -> dict[str, Any]:
    """Return a swept key's values as texts: none, then numbers, then names; and where they lie if all are numbers."""
    values = [run.config.get(key) for run in runs]
    values = [value for i, value in enumerate(values) if value not in values[:i]]  # lists have no hash
    values.sort(key=lambda value: (value is not None, results.order(value)))
    texts = list(dict.fromkeys(map(setting, values)))
    are_numbers = all(map(is_number, values)) and len(texts) == len(values)  # none is written like another
    numbers = [*map(float, values)] if are_numbers else None  # type: ignore[arg-type]
    return {"key": key, "texts": texts, "numbers": numbers, "is_logarithmic": bool(numbers) and is_logarithmic(values)}


def _records(group: list[Run], section: dict[str, Any], label_keys: list[str], keys: list[str]) -> list[dict[str, Any]]:
    """Return what the page has of each run of a section, or of several folded ones; `keys` are those to filter by."""
    metric, columns = section["metric"], [column["name"] for column in section["columns"]]
    best = table.best(group, metric) if len(group) > 1 else None
    names = [f"{run.name} ({run.seeds} seeds)" if run.seeds > 1 else run.name for run in group]
    records = []
    for run, name, short_name in zip(group, names, short_names(names, MAX_NAME), strict=True):
        one = table.best(run.members, table.metric_of(run.members)) or run  # of several seeds the best
        curves, latents, epochs = _history(run, one, metric)
        values = {key: value for key in keys if (value := run.value(key)) is not None}
        values |= {"objective": value} if (value := results.objective(run)) is not None else {}
        records.append(
            {
                "name": name,
                "short": short_name,
                "label": label(run, label_keys, short_name),
                "state": run.state,
                "reason": run.reason,
                "seeds": run.seeds,
                "is_best": run is best,
                "score": run.metrics.get(metric),
                "spread": run.spread.get(metric),
                "cells": [cell(run, column) for column in columns],
                "known": {key: v if is_number(v) else " ".join(str(v).split()) for key, v in values.items()},
                "results": {column: cell(run, column) for column in run.metrics},
                "config": {key: setting(value) for key, value in run.config.items()},
                "members": [{"name": seed.name, "score": cell(seed, metric)} for seed in run.members if run.seeds > 1],
                "shown": one.name,  # the run that pictures, latents, folder and commands are of
                "curves": curves,
                "latents": latents,
                "epochs": epochs,
                "folder": str(one.folder),
                "commands": _commands(one),
            }
        )
    return records


def label(run: Run, keys: list[str], name: str | None = None) -> str:
    """Return the label of a run in a figure: its values of the keys that differ if they are few, or its name."""
    present = [key for key in keys if run.value(key) is not None]
    settings = {key.removesuffix(".name").rpartition(".")[2]: cell(run, key) for key in present}
    text = " ".join(f"{key}={value}" for key, value in settings.items())
    is_named = run.given is not None and not run.swept
    return text if text and not is_named and len(text) <= MAX_LABEL else name or run.name


def _commands(run: Run) -> dict[str, str]:
    commands = {}
    if (run.folder / LAST).is_file():
        epochs = run.config.get("epochs")
        more = [f"epochs={2 * epochs}"] if run.finished and isinstance(epochs, int) else []  # it is over without more
        commands["resume"] = on_resume(run.folder, *more)
    if (run.folder / BEST).is_file():
        commands |= {name: on_checkpoint(f"vae-{name}", run.folder) for name in ("evaluate", "generate")}
    return commands


def _history(run: Run, one: Run, metric: str) -> tuple[dict[str, Any], list[Any], dict[int, float]]:
    """Read a run's curves, and of one of its members the KL of each latent by epoch, and the epochs of its steps."""
    rows = list(one.logged())
    members = [rows if member is one else list(member.logged()) for member in run.members or [one]]
    curves = {name: curve for name in dict.fromkeys([*CURVES, metric]) if (curve := _curve(members, name))}
    latents = [
        (row["epoch"], [rounded(kl, digits=4) for kl in row[key]])
        for row in rows
        for key in ("val/kl_per_dim", "test/kl_per_dim")
        if isinstance(row.get(key), list) and row[key] and all(map(is_number, row[key]))
    ]
    width = max((len(kl) for _, kl in latents), default=1)
    epochs = {row["step"]: row["epoch"] for row in rows if is_number(row.get("step"))}
    return curves, thinned(latents, max(1, MAX_LATENTS // width)), epochs


def _curve(members: list[list[dict[str, Any]]], name: str) -> dict[str, list[float]] | None:
    """Return means and standard deviations over the epochs that all runs share which logged this number, or None."""
    histories = [{row["epoch"]: row[name] for row in rows if is_number(row.get(name))} for rows in members]
    histories = [history for history in histories if history]
    common = [epoch for epoch in (histories or [{}])[0] if all(epoch in history for history in histories)]
    epochs = thinned(common, MAX_POINTS)
    values = [[history[epoch] for history in histories] for epoch in epochs]
    try:
        spread = [rounded(statistics.stdev(numbers)) for numbers in values] if len(histories) > 1 else []
        means = [rounded(statistics.fmean(numbers)) for numbers in values]
    except OverflowError:  # runs that diverged: there is nothing to draw
        return None
    return {"epochs": epochs, "values": means, "spread": spread} if epochs else None


def thinned(items: Sequence[T], limit: int) -> list[T]:
    """Return at most `limit` of the items, evenly spaced, with the last and the first."""
    if len(items) <= limit:
        return list(items)
    if limit == 1:
        return [items[-1]]
    return [items[round(i * (len(items) - 1) / (limit - 1))] for i in range(limit)]


def rounded(number: float, digits: int = 6) -> float:
    """Round to the precision that a drawing needs: the page holds thousands of numbers."""
    return float(f"{number:.{digits}g}")


# Student's t at 97.5 %, by degrees of freedom from 1; of more than 10 the last one, which is a little strict.
T_975 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23)


def verdict(runs: list[Run], metric: str) -> str:
    """Say which setting is best, by how much, and what the seeds say about it. The runs compare, and may be folded."""
    settings = runs if any(run.members for run in runs) else results.fold_seeds(runs)
    keys, names = swept(settings), short_names([run.name for run in settings], MAX_NAME)
    labels = {id(run): label(run, keys, name) for run, name in zip(settings, names, strict=True)}
    best = table.best(settings, metric)
    if best is None:
        return f"No run that finished has a {metric}."
    what = f"{labels[id(best)]}: {metric} {cell(best, metric)}{f' over {best.seeds} seeds' if best.seeds > 1 else ''}"
    second = table.best([run for run in settings if run is not best], metric)
    if second is None:
        return f"{what}, {'the only run' if len(runs) == 1 else 'the only setting that finished'}."
    what = f"Best {'setting ' if any(run.seeds > 1 for run in settings) else ''}{what}"
    lead = results.sign(runs, metric) * (second.metrics[metric] - best.metrics[metric])
    if lead < 0:  # only a setting of which some seeds failed can be better than the best
        return f"{what}. {labels[id(second)]} is better by {_nats(-lead)}, but {second.state}."
    ahead = f"ahead of the next ({labels[id(second)]}) by {_nats(lead)}"
    text = f"{what}, {ahead if lead else f'level with {labels[id(second)]}'}. {_chance(best, second, metric, lead)}"
    single = table.best(runs, metric)
    if single is not None and all(single is not run for run in (best, *best.members)):
        text += f" The best single run, {single.name}, has another setting."
    return text


def _chance(best: Run, second: Run, metric: str, lead: float) -> str:
    """Say whether the lead is more than seeds differ by: a t-test of the two settings, with their pooled deviation."""
    if metric not in best.spread or metric not in second.spread:
        few = "One seed each" if best.seeds == second.seeds else "One of the two has a single seed"
        return f"{few}: how much of this is chance is not known."
    freedom = best.seeds + second.seeds - 2
    pooled = math.sqrt(sum((run.seeds - 1) * run.spread[metric] ** 2 for run in (best, second)) / freedom)
    needed = T_975[min(freedom, len(T_975)) - 1] * pooled * math.sqrt(1 / best.seeds + 1 / second.seeds)
    seeds = f"{best.seeds} seeds each" if best.seeds == second.seeds else f"{best.seeds} and {second.seeds} seeds"
    noise = f"The seeds' standard deviation is {_nats(pooled)} ({seeds})"
    if lead > needed:
        return f"{noise}: the lead is more than chance among these seeds."
    return f"{noise}: not settled, which would take a lead of {_nats(needed)} or more seeds."


def _nats(number: float) -> str:
    return f"{number:.2f}" if number >= 0.1 else f"{number:.2g}"


FIRST = ("test_reconstructions", "samples")  # what the sheet of all runs shows
PNG = b"\x89PNG\r\n\x1a\n"


def gather_pictures(
    folders: Mapping[str, Mapping[int, float]], max_bytes: int
) -> tuple[list[str], list[tuple[int, int]], dict[str, dict[str, Any]]]:
    """Return PNG files as base64, of at most `max_bytes`, their sizes, and which of them each run has.

    Folders come with the epochs of their steps, the best first: every run gets the pictures of a turn before any gets
    more. Of each run: (epoch, index) by name, and how many were left out.
    """
    index: dict[str, int] = {}  # by content: a run that was copied, or drew the same, costs nothing
    sizes: list[tuple[int, int]] = []
    pictures: dict[str, dict[str, list[tuple[float, int]]]] = {folder: {} for folder in folders}
    left_out, room = dict.fromkeys(folders, 0), max_bytes
    by_turn = sorted(
        (picture[0], i, picture, folder) for i, folder in enumerate(folders) for picture in _in_turn(folder)
    )
    for _, _, (_, name, step, path), folder in by_turn:
        if 4 * math.ceil(path.stat().st_size / 3) > room:
            left_out[folder] += 1
            continue
        content = path.read_bytes()
        if not content.startswith(PNG) or len(content) < 24:  # was cut off
            continue
        data = base64.b64encode(content).decode()
        if data not in index:
            index[data] = len(index)
            room -= len(data)
            sizes.append(struct.unpack(">II", content[16:24]))  # with them nothing in the page moves when it is drawn
        pictures[folder].setdefault(name, []).append((folders[folder].get(step, step), index[data]))
    result: dict[str, dict[str, Any]] = {}
    for folder, by_name in pictures.items():
        names = [*(name for name in FIRST if name in by_name), *sorted(by_name)]
        result[folder] = {"pictures": {name: sorted(by_name[name]) for name in names}, "left_out": left_out[folder]}
    return list(index), sizes, result


def _in_turn(folder: str) -> Iterator[tuple[int, str, int, Path]]:
    """Yield the pictures of a run: the turn in which each comes (the lowest first), its name, step and file."""
    by_name: dict[str, list[tuple[int, Path]]] = {}
    for path in Path(folder, IMAGES).glob("*.png"):
        if (match := re.fullmatch(r"(.+)_(\d+)", path.stem)) and path.is_file():
            by_name.setdefault(match[1], []).append((int(match[2]), path))
    for name, files in by_name.items():
        last = len(files) - 1
        turns = {last: 0 if name in FIRST else 1}
        for depth in range(len(files).bit_length() + 1):  # the first and the last, the middle one, the quarters
            for part in range(2**depth + 1):
                turns.setdefault(round(part * last / 2**depth), depth + 2)
        for i, (step, path) in enumerate(sorted(files)):
            yield turns[i], name, step, path


STATIC = Path(__file__).with_name("static")
# In the order in which they are read: each stands on those before it.
SCRIPTS = (
    *("elements", "scales", "marking", "filter", "table", "curves", "parallel", "heat_map", "points"),
    *("pictures", "run_page", "page"),
)
