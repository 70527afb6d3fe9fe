"""Read finished runs and the names of what they measure."""

import csv
import io
import json
import math
import os
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vae_exp.config.checks import flatten, path_of
from vae_exp.errors import UserError
from vae_exp.files import read_json_lines
from vae_exp.training.run_dir import CONFIG, METRICS, OUTPUTS, SUMMARY, read_config, read_summary, runs_below


def common_start(texts: list[str]) -> str:
    """Return the longest beginning that all texts share."""
    first, last = min(texts), max(texts)
    alike = next((i for i, pair in enumerate(zip(first, last, strict=False)) if len(set(pair)) > 1), len(first))
    return first[:alike]


def short(text: str, longest: int) -> str:
    """Return the text, or its beginning and its end if it is longer than `longest` characters."""
    if len(text) <= longest:
        return text
    head = (longest - 1) // 2
    return f"{text[:head]}…{text[len(text) - (longest - 1 - head) :]}"


def short_names(names: list[str], longest: int) -> list[str]:
    """Shorten names such as SWEEP/JOB to at most `longest` characters; those that become the same are numbered: …~2."""
    if max(map(len, names), default=0) <= longest:
        return names
    above, last = zip(*(name.rpartition("/")[::2] for name in names), strict=True)
    start = common_start([*set(above)])  # of several sweeps the day
    above = [f"…{folder[len(start) :]}" if len(start) > 3 and len(set(above)) > 1 else folder for folder in above]
    above = _apart(above, longest // 4, longest // 2)
    room = longest - max(len(folder) + 1 if folder else 0 for folder in above)
    last = _apart([*last], room // 2, room)
    shortened = [f"{folder}/{name}" if folder else name for folder, name in zip(above, last, strict=True)]
    count, of_name = Counter(shortened), Counter[str]()
    for i, name in enumerate(shortened):
        of_name[name] += 1
        if count[name] > 1:
            suffix = f"~{of_name[name]}"
            shortened[i] = short(name, longest - len(suffix)) + suffix
    return shortened


def _apart(names: list[str], shortest: int, longest: int) -> list[str]:
    """Shorten names to one length: as short as keeps different ones different, and at most `longest` characters."""
    for length in range(max(4, shortest), longest):
        shortened = [short(name, length) for name in names]
        if len(set(shortened)) == len(set(names)):
            return shortened
    return [short(name, longest) for name in names]


# Of data with known factors, where a run was asked for them: the only results of which more is better.
SCORES = tuple(
    f"test/{name}" for name in ("mig", "dci_disentanglement", "infom", "infoc", "infom_published", "infoc_published")
)
UDR = "udr"  # no run has it by itself: vae-compare --udr measures it of several
# Results as columns: their names, and where summary.json has them.
RESULTS = {
    "val/neg_elbo": "best/val_neg_elbo",
    "test/neg_elbo": "test/neg_elbo",
    "test/reconstruction": "test/reconstruction",
    "test/kl": "test/kl",
    "test/active_units": "test/active_units",
    **{name: name for name in SCORES},
    UDR: UDR,
    "seconds": "seconds",
}
# Of a run's configuration these say how it was logged, not what it was.
NOT_COMPARED = ("wandb.", "sweep.", "resume", "replace", "trust", "dataset.cache")
SEEDS = ("seed", "dataset.seed")
# Nobody looks for these in a table: where a run was, how often it wrote, what it ran on.
BOOKKEEPING = {
    *(
        "trust",
        "log_every_steps",
        "figures",
        "figure_every_epochs",
        "device",
        "devices",
        "threads",
        "compile",
    ),
    *(f"checkpoint_every_{clock}" for clock in ("epochs", "steps", "minutes")),
    *(f"dataset.{key}" for key in ("root", "name", "cache", "device_memory", "on_error")),
}
NAME, STATE, REASON = "run", "state", "reason"
PRUNED = "pruned"  # the state of a run that its sweep ended early: its numbers are of fewer epochs
LATEST = "latest"


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
    name: str = ""  # no other run that is shown beside it has the same
    swept: list[str] = field(default_factory=list)  # the keys of config that its sweep gave several values
    data: str | None = None  # a digest of its images; None of an older version, and of a run that failed early

    def __post_init__(self) -> None:
        self.name = self.name or self.folder.name

    @property
    def finished(self) -> bool:
        return self.state == "finished"

    def value(self, column: str) -> Any:
        """Return this run's value in a column: a key of its configuration, a metric, its name, state or reason."""
        if column in (NAME, STATE, REASON):
            return {NAME: self.name, STATE: self.state, REASON: self.reason}[column]
        return self.metrics.get(column) if column in RESULTS else self.config.get(column)

    def logged(self) -> Iterator[dict[str, Any]]:
        """Yield the lines of metrics.jsonl that have an epoch; none for a run that failed before it logged any."""
        return (row for row in read_json_lines(self.folder / METRICS) if is_finite(row.get("epoch")))

    def history(self, name: str) -> list[tuple[float, float]]:
        """Return (epoch, value) of a logged number, over the run."""
        return [(row["epoch"], row[name]) for row in self.logged() if is_finite(row.get(name))]


def read_runs(paths: Iterable[str | Path]) -> tuple[list[Run], list[str]]:
    """Read every run in the folders and the folders below; return them, and a line for each that is damaged.

    Raise UserError if no run can be read.
    """
    runs, damaged = {}, {}
    for path in map(Path, paths):
        path = newest() if str(path) == LATEST else path_of("PATH", str(path))
        if not path.exists():
            raise UserError(f"{path}: there is no such file or folder.")
        folder = path if path.is_dir() else path.parent
        found = runs_below(folder)
        if not found:
            raise UserError(f"{path}: no run in it (a run's folder has a {SUMMARY}).")
        for run in found:
            try:
                runs[run.resolve()] = read_run(run)
            except UserError as error:  # the others are compared all the same
                damaged[run.resolve()] = str(error)
    if not runs:
        raise UserError("\n".join(damaged.values()))
    _name(list(runs.values()))
    return sorted(runs.values(), key=lambda run: str(run.folder)), list(damaged.values())


def read_run(folder: Path) -> Run:
    """Read the run in one folder. Raise UserError if its files are damaged."""
    summary, config = read_summary(folder), read_config(folder)
    wrong = None
    if summary is None or not isinstance(config, dict):
        wrong = f"{SUMMARY if summary is None else CONFIG} cannot be read"
    else:
        numbers = summary.results | {"seconds": summary.seconds}
        metrics = {name: numbers[key] for name, key in RESULTS.items() if key in numbers}
        # As vae_exp wrote InfoC of one active latent once: the run has no such score.
        metrics = {name: value for name, value in metrics.items() if not (name in SCORES and _is_nan(value))}
        not_numbers = [f"{name} is {value}" for name, value in metrics.items() if not is_finite(value)]
        if not_numbers or not isinstance(summary.state, str):
            wrong = f"in its {SUMMARY} {', '.join(not_numbers) or f'state is {summary.state}'}"
    if wrong or summary is None or config is None:
        raise UserError(f"{folder}: not a run of vae_exp, or a damaged one: {wrong}.")
    short = _short(flatten(config))
    swept = _swept(config.get("sweep"), short)
    digest = summary.results.get("data_digest")
    data = digest if isinstance(digest, str) else None
    return Run(folder, short, summary.state, summary.reason, metrics, swept=swept, data=data)


def _swept(sweep: Any, config: dict[str, Any]) -> list[str]:
    """Return the swept keys by their names in a run's flat configuration, and add to it those that it lacks.

    A swept group, such as model, is model.name; of experiment=demo nothing else says which one it was.
    """
    over = sweep.get("over") if isinstance(sweep, dict) else None
    names: list[str] = []
    for word in over if isinstance(over, list) else ():
        key, sign, value = str(word).partition("=")
        key = key.lstrip("+")
        found = [name for name in (f"{key}.name", key) if name in config][:1]
        found = found or [name for name in config if name.startswith(f"{key}.")]  # a dictionary's
        if not found and sign:
            config[key], found = value, [key]
        names += found
    return list(dict.fromkeys(names))


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def newest() -> Path:
    """Return the folder that `latest` means: the newest run's with results, or its sweep's. Raise UserError if none."""
    for folder in runs_below(OUTPUTS):
        summary, config = read_summary(folder), read_config(folder)
        if summary is not None and isinstance(config, dict) and is_finite(summary.score):
            sweep = config.get("sweep")
            return folder.parent if isinstance(sweep, dict) and sweep.get("jobs") else folder
    raise UserError(f"{LATEST}: no run in {OUTPUTS} has results.")


def _name(runs: list[Run]) -> None:
    """Name runs by their folders, below the folder that holds them all."""
    folders = [run.folder.resolve() for run in runs]
    above = os.path.commonpath([folder.parent for folder in folders])
    for run, folder in zip(runs, folders, strict=True):
        run.name = folder.relative_to(above).as_posix()


def _short(config: dict[str, Any]) -> dict[str, Any]:
    """Shorten the keys of targets: optimizer._target_: torch.optim.Adam becomes optimizer: Adam."""
    short: dict[str, Any] = {}
    for key, value in config.items():
        group, _, name = key.rpartition(".")
        if not key.startswith(NOT_COMPARED):
            short |= {group: str(value).rsplit(".", 1)[-1]} if name == "_target_" else {key: value}
    return short


def differing(runs: list[Run]) -> list[str]:
    """Return the keys of the configuration that are not the same in all runs.

    Of keys that differ in the same way only the first one counts, except for those that were swept.
    """
    keys, swept = dict.fromkeys(key for run in runs for key in run.config), swept_keys(runs)
    columns: dict[str, list] = {}
    for key in [*swept, *keys]:
        values = [run.config.get(key) for run in runs]
        if any(value != values[0] for value in values) and (key in swept or values not in columns.values()):
            columns[key] = values
    return [key for key in keys if key in columns]


def swept_keys(runs: list[Run]) -> list[str]:
    """Return the keys that a sweep of these runs gave several values, in its order, whether they differ here or not."""
    keys = dict.fromkeys(key for run in runs for key in run.swept)
    return [key for key in keys if any(key in run.config for run in runs)]


def setting_columns(runs: list[Run]) -> list[str]:
    """Return the keys that say which setting a run is: those that were swept, and whatever else differs."""
    return list(dict.fromkeys([*swept_keys(runs), *differing(runs)]))


def usual_columns(runs: list[Run]) -> list[str]:
    """Return the columns of a table of runs: their settings, the results, and how they ended if not all finished."""
    results = [name for name in RESULTS if any(name in run.metrics for run in runs)]
    return [*setting_columns(runs), *results, *([STATE, REASON] if any(not run.finished for run in runs) else [])]


def fold_seeds(runs: list[Run]) -> list[Run]:
    """Fold runs that differ in their seed alone into one, with means and sample standard deviations.

    If some of them failed or were pruned, the rest are folded, and state counts them.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        config = {key: value for key, value in run.config.items() if key not in SEEDS}
        if run.data is not None and "dataset.root" in config:  # the same data may lie elsewhere, and other data there
            config["dataset.root"] = run.data
        groups.setdefault(json.dumps(config, sort_keys=True, default=str), []).append(run)
    folded = [_fold(group) for group in groups.values()]
    known = Counter(run.name for run in folded)
    for run, group in zip(folded, groups.values(), strict=True):
        if not run.name or known[run.name] > 1:
            run.name = f"{group[0].name} and {len(group) - 1} more" if len(group) > 1 else group[0].name
    return folded


def _fold(group: list[Run]) -> Run:
    done = [run for run in group if run.finished] or [run for run in group if run.state == PRUNED]
    config = {key: value for key, value in group[0].config.items() if key not in SEEDS}
    state = (done or group)[0].state
    if 0 < len(done) < len(group):
        state = f"{len(done)} of {len(group)} {state}"
    reason = next((run.reason for run in group if not run.finished), None)
    metrics, spread = {}, {}
    for name in RESULTS:
        values = [run.metrics[name] for run in done if name in run.metrics]
        if values:
            metrics[name] = statistics.fmean(values)
        if len(values) > 1:
            spread[name] = statistics.stdev(values)
    folded = Run(group[0].folder, config, state, reason, metrics, spread, len(done), done)
    folded.swept, folded.data = swept_keys(group), group[0].data
    # z_dim-2_seed-0 and z_dim-2_seed-1 become z_dim-2
    alike = common_start([run.name for run in group])
    folded.name = re.sub(r"[_/-]*(dataset\.)?seed-?\d*$", "", alike) if len(group) > 1 else group[0].name
    return folded


def sort_runs(runs: list[Run], column: str, descending: bool = False) -> list[Run]:
    """Sort runs by a column; runs that have no value there come last."""
    having = [run for run in runs if run.value(column) is not None]
    lacking = [run for run in runs if run.value(column) is None]
    return [*sorted(having, key=lambda run: order(run.value(column)), reverse=descending), *lacking]


def order(value: Any) -> tuple:
    """Return a sort key for any value: numbers by size, then the rest by name, so that mixed columns can be sorted."""
    return (0, value, "") if is_number(value) else (1, 0, str(value))


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_finite(value: Any) -> bool:
    try:
        return is_number(value) and math.isfinite(value)
    except OverflowError:  # a whole number beyond every float
        return False


def as_csv(runs: list[Run], columns: list[str], base: Path | None = None) -> str:
    """Return one row a run, with full precision; folders relative to base. Folded runs get their spread too."""
    columns = [column for column in columns if column != NAME]  # the first one names the folder
    spread = [column for column in columns if any(column in run.spread for run in runs)]
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["run", *columns, *(f"{column} std" for column in spread), *(["seeds"] if spread else [])])
    for run in runs:
        folder = run.folder.relative_to(base) if base else run.folder
        values = [run.value(column) for column in columns] + [run.spread.get(column) for column in spread]
        values += [run.seeds] if spread else []
        writer.writerow([folder, *("" if value is None else value for value in values)])
    return text.getvalue()
