"""Finished runs, read from their folders and laid side by side. No torch and no W&B: only the files."""

import contextlib
import csv
import json
import statistics
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vae_exp.config.check import flatten
from vae_exp.errors import UserError
from vae_exp.run.folder import CONFIG, METRICS, SUMMARY, read_config, read_summary, runs_below

# Results as columns: their names, and where summary.json has them.
RESULTS = {
    "val/neg_elbo": "best/val_neg_elbo",
    "test/neg_elbo": "test/neg_elbo",
    "test/reconstruction": "test/reconstruction",
    "test/kl": "test/kl",
    "test/active_units": "test/active_units",
    "seconds": "seconds",
}
# Of a run's configuration these say how it was logged, not what it was.
NOT_COMPARED = ("wandb.", "sweep.", "resume")
SEEDS = ("seed", "dataset.seed")


@dataclass
class Run:
    """One run, or several that differ in their seed alone."""

    folder: Path
    config: dict[str, Any]  # flat: {"model.z_dim": 20}
    state: str
    reason: str | None
    metrics: dict[str, float]
    spread: dict[str, float] = field(default_factory=dict)  # standard deviations over seeds
    seeds: int = 1
    members: list["Run"] = field(default_factory=list)  # the runs that were folded into this one

    @property
    def finished(self) -> bool:
        return self.state == "finished"

    def value(self, column: str) -> Any:
        """What a column shows of this run: a key of its configuration, a metric, or state."""
        if column in ("state", "reason"):
            return getattr(self, column)
        return self.metrics.get(column) if column in RESULTS else self.config.get(column)

    def history(self, name: str) -> list[tuple[float, float]]:
        """(epoch, value) of a logged number, over the run; nothing for a run that failed before it logged any."""
        path = self.folder / METRICS
        points = []
        for line in path.read_text().splitlines() if path.exists() else ():
            with contextlib.suppress(ValueError):  # the last line of a killed run may not be whole
                row = json.loads(line)
                points += [(row["epoch"], row[name])] if name in row else []
        return points


def read_runs(paths: Iterable[str | Path]) -> list[Run]:
    """Every run in the folders and the folders below. Raises UserError where there is none."""
    runs = []
    for path in map(Path, paths):
        if not path.exists():
            raise UserError(f"{path}: there is no such file or folder.")
        folder = path if path.is_dir() else path.parent
        found = runs_below(folder)
        if not found:
            raise UserError(f"{path}: no run in it (a run's folder has a {SUMMARY}).")
        runs += [read_run(run) for run in found]
    return sorted({run.folder.resolve(): run for run in runs}.values(), key=lambda run: str(run.folder))


def read_run(folder: Path) -> Run:
    """One run's folder. Raises UserError where its files are damaged."""
    summary, config = read_summary(folder), read_config(folder)
    if summary is None or config is None:
        raise UserError(f"{folder}: not a run of vae_exp, or a damaged one: {SUMMARY} or {CONFIG} cannot be read.")
    numbers = summary.results | {"seconds": summary.seconds}
    metrics = {name: numbers[key] for name, key in RESULTS.items() if key in numbers}
    return Run(folder, _short(flatten(config)), summary.state, summary.reason, metrics)


def _short(config: dict[str, Any]) -> dict[str, Any]:
    """optimizer._target_: torch.optim.Adam becomes optimizer: Adam."""
    short: dict[str, Any] = {}
    for key, value in config.items():
        group, _, name = key.rpartition(".")
        if not key.startswith(NOT_COMPARED):
            short |= {group: str(value).rsplit(".", 1)[-1]} if name == "_target_" else {key: value}
    return short


def differing(runs: list[Run]) -> list[str]:
    """The keys of the configuration that are not the same in all runs, and none twice under two names."""
    keys = dict.fromkeys(key for run in runs for key in run.config)
    columns: dict[str, list] = {}
    for key in keys:
        values = [run.config.get(key) for run in runs]
        if any(value != values[0] for value in values) and values not in columns.values():
            columns[key] = values
    return list(columns)


def fold_seeds(runs: list[Run]) -> list[Run]:
    """Runs that differ in their seed alone as one, with means and sample standard deviations.

    Where some of them failed the rest are folded, and state counts them.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        config = {key: value for key, value in run.config.items() if key not in SEEDS}
        groups.setdefault(json.dumps(config, sort_keys=True, default=str), []).append(run)
    return [_fold(group) for group in groups.values()]


def _fold(group: list[Run]) -> Run:
    done = [run for run in group if run.finished]
    config = {key: value for key, value in group[0].config.items() if key not in SEEDS}
    state = "finished" if len(done) == len(group) else f"{len(done)} of {len(group)} finished"
    reason = next((run.reason for run in group if not run.finished), None)
    metrics, spread = {}, {}
    for name in RESULTS:
        values = [run.metrics[name] for run in done if name in run.metrics]
        if values:
            metrics[name] = statistics.fmean(values)
        if len(values) > 1:
            spread[name] = statistics.stdev(values)
    return Run(group[0].folder, config, state if done else group[0].state, reason, metrics, spread, len(done), done)


def sort_runs(runs: list[Run], column: str, descending: bool = False) -> list[Run]:
    """By a column; runs that have nothing there come last."""
    having = [run for run in runs if run.value(column) is not None]
    lacking = [run for run in runs if run.value(column) is None]
    return [*sorted(having, key=lambda run: order(run.value(column)), reverse=descending), *lacking]


def order(value: Any) -> tuple:
    """A place for any value: numbers by size, then the rest by name, so that mixed columns can be sorted."""
    return (0, value, "") if _is_number(value) else (1, 0, str(value))


def best(runs: list[Run], column: str = "val/neg_elbo") -> Run | None:
    """The finished run with the lowest number; of folded runs those whose seeds all finished come first."""
    having = [run for run in runs if run.metrics.get(column) is not None and (run.finished or run.members)]
    having = [run for run in having if run.finished] or having
    return min(having, key=lambda run: run.metrics[column], default=None)


def metric_of(runs: list[Run]) -> str:
    """What runs are compared by: the validation neg_elbo, or the test's where nothing was held out for validation."""
    return "val/neg_elbo" if any("val/neg_elbo" in run.metrics for run in runs) else "test/neg_elbo"


def table(runs: list[Run], columns: list[str], marked: Run | None = None) -> str:
    """A table for people; the marked run's row begins with best."""
    rows = [["best" if run is marked else "", *(_cell(run, column) for column in columns)] for run in runs]
    lines = [["", *columns], *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns) + 1)]
    right = [True, *(all(_is_number(run.value(c)) or run.value(c) is None for run in runs) for c in columns)]
    padded = (
        [cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(line, widths, right, strict=True)]
        for line in lines
    )
    return "\n".join("  ".join(line).rstrip() for line in padded)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cell(run: Run, column: str) -> str:
    value = run.value(column)
    if value is None:
        return "-"
    if column == "reason":
        return textwrap.shorten(str(value), 70, placeholder=" …")
    if not isinstance(value, float):
        return str(value)
    if column not in RESULTS:
        return f"{value:g}"
    digits = 1 if column in ("seconds", "test/active_units") else 3
    spread = f" ± {run.spread[column]:.{digits}f}" if column in run.spread and digits == 3 else ""
    return f"{value:.{digits}f}{spread}"


def write_csv(path: Path, runs: list[Run], columns: list[str], base: Path | None = None) -> None:
    """One row a run, with full precision; folders relative to base. Runs folded over seeds get their spread too."""
    spread = [column for column in columns if any(column in run.spread for run in runs)]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["run", *columns, *(f"{column} std" for column in spread), *(["seeds"] if spread else [])])
        for run in runs:
            folder = run.folder.relative_to(base) if base else run.folder
            values = [run.value(column) for column in columns] + [run.spread.get(column) for column in spread]
            values += [run.seeds] if spread else []
            writer.writerow([folder, *("" if value is None else value for value in values)])
