"""Read finished runs and the names of what they measure."""

import csv
import io
import json
import os
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vae_exp.config.checks import data_name, flatten, given_name, path_of
from vae_exp.config.schema import MEASURED, is_number, is_on_path, judged_by, result_of
from vae_exp.errors import UserError
from vae_exp.files import read_json_lines
from vae_exp.training.run_dir import (
    CONFIG,
    LATEST,
    METRICS,
    OUTPUTS,
    PRUNED,
    SUMMARY,
    read_config,
    read_summary,
    runs_below,
)

# Of data with known factors, where a run was asked for them. More of each is better.
SCORES = tuple(
    f"test/{name}" for name in ("mig", "dci_disentanglement", "infom", "infoc", "infom_published", "infoc_published")
)
UDR = "udr"  # no run has it by itself: vae-compare --udr measures it of several
PATH_EPOCHS = "path_epochs"  # of a run that began with trained weights: its epochs, and those before that led to it
# Results as columns; result_of says where summary.json has them.
RESULTS = ("val/neg_elbo", *(f"test/{name}" for name in MEASURED), *SCORES, UDR, PATH_EPOCHS, "seconds")
# Of a run's configuration these say how it was logged, not what it was.
NOT_COMPARED = ("wandb.", "sweep.", "resume", "rerun", "replace", "trust", "dataset.cache")
CONFIRM = "confirm"  # the folder, in a sweep that starts warm, and the key of its best jobs, trained from nothing
ALONG_A_PATH = ("init_from", "epochs", "objective.warmup_epochs", "objective.warmup_steps", "objective.warmup_fraction")
SEEDS = ("seed", "dataset.seed")
FIRST = (
    *("model", "model.name", "dataset", "dataset.name", "model.z_dim", "model.beta", "optimizer.lr", "network"),
    *("network.hidden_dims", "posterior", "prior", "likelihood", "likelihood.sigma", "likelihood.scale"),
    *("objective", "epochs"),
)
# Nobody looks for these in a table: where a run was, how often it wrote, what it ran on.
BOOKKEEPING = {
    *("trust", "log_every_steps", "figures", "figure_every_epochs", "device", "devices", "threads", "compile"),
    *(f"checkpoint_every_{clock}" for clock in ("epochs", "steps", "minutes")),
    *(f"dataset.{key}" for key in ("root", "cache", "device_memory", "on_error")),
}
NAME, STATE, REASON, FOLDER = "run", "state", "reason", "folder"
Z_DIM = "model.z_dim"
TRADING = ("model.beta", "objective.", "likelihood.")  # keys that begin so trade the KL for the reconstruction


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
    name: str = ""  # unique among the runs that are shown together
    given: str | None = None  # the name that the user gave it, with what its sweep added
    swept: list[str] = field(default_factory=list)  # the keys of config that its sweep gave several values
    day: str = ""  # on which it was made, such as 2026-11-30; nothing of an older version
    data: str | None = None  # a digest of its images; None of an older version, and of a run that failed early
    judged_by: tuple[str, int] = ("val/neg_elbo", 1)  # as the jobs of its sweep: a column, and -1 if more is better

    def __post_init__(self) -> None:
        self.name = self.name or self.given or self.folder.name

    @property
    def finished(self) -> bool:
        return self.state == "finished"

    def value(self, column: str) -> Any:
        """Return this run's value in a column: a key of its configuration, a metric, or what else it is known by."""
        fields = {NAME: self.name, STATE: self.state, REASON: self.reason, FOLDER: str(self.folder)}
        return fields[column] if column in fields else self.metrics.get(column, self.config.get(column))

    def logged(self) -> Iterator[dict[str, Any]]:
        """Yield the lines of metrics.jsonl that have an epoch; none for a run that failed before it logged any."""
        return (row for row in read_json_lines(self.folder / METRICS) if is_number(row.get("epoch")))


def objective(run: Run) -> float | None:
    """Return what a run minimises, reconstruction + beta KL of the test split in nats, or None of other objectives."""
    beta = run.config.get("objective.beta")
    reconstruction, kl = run.metrics.get("test/reconstruction"), run.metrics.get("test/kl")
    if run.config.get("objective") != "elbo" or beta is None or reconstruction is None or kl is None:
        return None
    return reconstruction + beta * kl


def order(value: Any) -> tuple[int, Any, str]:
    """Return a sort key for any value: numbers by size, then the rest by name, so that mixed columns can be sorted."""
    return (0, value, "") if is_number(value) else (1, 0, str(value))


def read_runs(paths: Iterable[str | Path]) -> tuple[list[Run], list[str]]:
    """Read every run in and below the folders, or raise UserError; return a line for each that is damaged, too."""
    runs: dict[Path, Run] = {}
    damaged: dict[Path, str] = {}
    for path in map(Path, paths):
        path = newest() if str(path) == LATEST else path_of("PATH", str(path))
        if not path.exists():
            raise UserError(f"{path}: there is no such file or folder.")
        folders = runs_below(path if path.is_dir() else path.parent)
        if not folders:
            raise UserError(f"{path}: no run in it (a run's folder has a {SUMMARY}).")
        for folder in folders:
            try:
                runs[folder.resolve()] = read_run(folder)
            except UserError as error:  # the others are compared all the same
                damaged[folder.resolve()] = str(error)
    if not runs:
        raise UserError("\n".join(damaged.values()))
    parent, count = os.path.commonpath([folder.parent for folder in runs]), Counter(run.given for run in runs.values())
    for folder, run in runs.items():
        name = folder.relative_to(parent).as_posix()
        run.name = name if run.given is None else run.given if count[run.given] == 1 else f"{run.given} ({name})"
    return sorted(runs.values(), key=lambda run: str(run.folder)), list(damaged.values())


def read_run(folder: Path) -> Run:
    """Read the run in one folder. Raise UserError if its files are damaged."""
    summary, config = read_summary(folder), read_config(folder)
    damaged = f"{folder}: not a run of vae_exp, or a damaged one"
    if summary is None or not isinstance(summary.state, str):
        raise UserError(f"{damaged}: {SUMMARY} cannot be read.")
    if not isinstance(config, dict):
        raise UserError(f"{damaged}: {CONFIG} cannot be read.")
    numbers = summary.results | {"seconds": summary.seconds}
    judge = judged_by(config)
    metrics = {name: numbers[key] for name in (judge[0], *RESULTS) if (key := result_of(name)) in numbers}
    # An older version wrote NaN (unequal to itself) for the InfoC of one active latent: the run has no such score.
    metrics = {name: value for name, value in metrics.items() if value == value or name not in SCORES}
    if wrong := [f"{name} is {value}" for name, value in metrics.items() if not is_number(value)]:
        raise UserError(f"{damaged}: in its {SUMMARY} {', '.join(wrong)}.")
    flat: dict[str, Any] = {}
    for key, value in flatten(config).items():
        if not key.startswith(NOT_COMPARED):  # optimizer._target_: torch.optim.Adam becomes optimizer: Adam
            group, _, name = key.rpartition(".")
            flat |= {group: str(value).rsplit(".", 1)[-1]} if name == "_target_" else {key: value}
    if is_on_path(config.get("sweep")):
        flat = {key: value for key, value in flat.items() if key not in ALONG_A_PATH}
        flat |= {CONFIRM: True} if config["sweep"].get("confirm") else {}
    if "dataset.name" in flat:
        flat["dataset.name"] = data_name(config["dataset"])
    digest = summary.results.get("data_digest")
    run = Run(folder, flat, summary.state, summary.reason, metrics, judged_by=judge)
    run.data = digest if isinstance(digest, str) else None
    if (given := given_name(config)) is not None:
        run.name = run.given = summary.name or str(given)
    run.swept = _swept(config.get("sweep"), flat)
    run.day = str((summary.results.get("environment") or {}).get("date", ""))[:10]
    return run


def _swept(sweep: Any, config: dict[str, Any]) -> list[str]:
    """Return the swept keys by their names in a run's flat configuration; add those it lacks, such as experiment."""
    over = sweep.get("over") if isinstance(sweep, dict) else None
    result: list[str] = []
    for word in over if isinstance(over, list) else ():
        key, sign, value = str(word).lstrip("+").partition("=")
        names = [name for name in (f"{key}.name", key) if name in config][:1]  # a swept group, such as model
        names = names or [name for name in config if name.startswith(f"{key}.")]  # a dictionary's
        if not names and sign:
            config[key], names = value, [key]
        result += names
    return list(dict.fromkeys(result))


def newest() -> Path:
    """Return the folder that `latest` means: the newest run's with results, or its sweep's. Raise UserError if none."""
    for folder in runs_below(OUTPUTS):
        summary, config = read_summary(folder), read_config(folder)
        if summary is not None and isinstance(config, dict) and is_number(summary.score):
            return sweep_of(folder) or folder
    raise UserError(f"{LATEST}: no run in {OUTPUTS} has results.")


def sweep_of(folder: Path) -> Path | None:
    """Return the folder of the sweep that a run is a job of, or None."""
    sweep = (read_config(folder) or {}).get("sweep")
    if not isinstance(sweep, dict) or not sweep.get("jobs"):
        return None
    return folder.parent.parent if sweep.get("confirm") else folder.parent


def differing(runs: list[Run]) -> list[str]:
    """Return the keys that differ among runs; of those that differ alike the first, and all that were swept."""
    keys, swept = dict.fromkeys(key for run in runs for key in run.config), swept_keys(runs)
    columns: dict[str, list[Any]] = {}
    for key in [*swept, *keys]:
        values = [run.config.get(key) for run in runs]
        is_new = key in swept or (values not in columns.values() and not _is_implied(key, runs))
        if is_new and any(value != values[0] for value in values):
            columns[key] = values
    return [key for key in keys if key in columns]


def _is_implied(key: str, runs: list[Run]) -> bool:
    """Return whether a key that some options of its group lack, or model.conditional, says no more than the option."""
    group = key.split(".")[0]
    if group == key or key in FIRST or (group != "model" and all(key in run.config for run in runs)):
        return False
    options = [str(run.config.get(f"{group}.name", run.config.get(group))) for run in runs]
    pairs = {(option, str(run.config.get(key, "absent"))) for option, run in zip(options, runs, strict=True)}
    return len(pairs) == len(set(options)) > 1


def swept_keys(runs: list[Run]) -> list[str]:
    """Return the keys that a sweep of these runs gave several values, in its order, whether they differ here or not."""
    keys = dict.fromkeys(key for run in runs for key in run.swept)
    return [key for key in keys if any(key in run.config for run in runs)]


def setting_columns(runs: list[Run]) -> list[str]:
    """Return the keys that say which setting a run is: those that were swept, and whatever else differs."""
    swept = swept_keys(runs)
    own_order = swept if all(run.swept == runs[0].swept for run in runs) else []  # of several sweeps there is none
    return list(dict.fromkeys([*own_order, *sorted([*swept, *differing(runs)], key=rank)]))


def rank(key: str) -> int:
    """Return the rank of a key in a table: what people look for first, seeds and bookkeeping last."""
    return FIRST.index(key) if key in FIRST else len(FIRST) + (key in SEEDS) + 2 * (key in BOOKKEEPING)


def usual_columns(runs: list[Run]) -> list[str]:
    """Return the columns of a table of runs: their settings, the results, and how they ended if not all finished."""
    ending = [] if all(run.finished for run in runs) else [STATE, REASON]
    return [*setting_columns(runs), *result_columns(runs), *ending]


def result_columns(runs: list[Run]) -> list[str]:
    """Return the results that any of the runs has: first what it was judged by, the others in their order."""
    names = dict.fromkeys(name for run in runs for name in run.metrics)
    return sorted(names, key=lambda name: RESULTS.index(name) if name in RESULTS else -1)


def sign(runs: list[Run], column: str) -> int:
    """Return 1 if the lowest number of a column is the best, or -1 if the highest is."""
    return -1 if column in SCORES or any(run.judged_by == (column, -1) for run in runs) else 1


def fold_seeds(runs: list[Run]) -> list[Run]:
    """Fold runs that differ in their seed alone into one, with means and standard deviations of those that finished."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        config = _without_seeds(run)
        if run.data is not None and "dataset.root" in config:  # the same data may lie elsewhere, and other data there
            config["dataset.root"] = config["dataset.name"] = run.data
        groups.setdefault(json.dumps(config, sort_keys=True, default=str), []).append(run)
    folded = [_fold(group) for group in groups.values()]
    count = Counter(run.name for run in folded)
    for run, group in zip(folded, groups.values(), strict=True):
        if not run.name or count[run.name] > 1:
            run.name = f"{group[0].name} and {len(group) - 1} more" if len(group) > 1 else group[0].name
    return folded


def _without_seeds(run: Run) -> dict[str, Any]:
    return {key: value for key, value in run.config.items() if key not in SEEDS}


def _fold(group: list[Run]) -> Run:
    first = group[0]
    done = [run for run in group if run.finished] or [run for run in group if run.state == PRUNED]
    state = (done or group)[0].state
    if 0 < len(done) < len(group):
        state = f"{len(done)} of {len(group)} {state}"
    values = {name: [run.metrics[name] for run in done if name in run.metrics] for name in result_columns(done)}
    common = os.path.commonprefix([run.name for run in group])  # noqa: RUF071 - of any texts
    folded = Run(
        folder=first.folder,
        config=_without_seeds(first),
        state=state,
        reason=next((run.reason for run in group if not run.finished), None),
        metrics={name: statistics.fmean(numbers) for name, numbers in values.items() if numbers},
        spread={name: statistics.stdev(numbers) for name, numbers in values.items() if len(numbers) > 1},
        seeds=len(done),
        members=done,
        swept=swept_keys(group),
        given=first.given if len(group) == 1 else None,
        day=first.day,
        data=first.data,
        judged_by=first.judged_by,
    )
    # z_dim-2_seed-0 and z_dim-2_seed-1 become z_dim-2
    folded.name = re.sub(r"[_/-]*(dataset\.)?seed-?\d*$", "", common) if len(group) > 1 else first.name
    if len({run.given for run in group}) == 1 and first.given:
        folded.name = first.given
    return folded


def sort_runs(runs: list[Run], column: str, descending: bool = False) -> list[Run]:
    """Sort runs by a column, where more is better from the highest; runs that have no value there come last."""
    ordered = sorted(runs, key=lambda run: order(run.value(column)), reverse=descending or sign(runs, column) < 0)
    return sorted(ordered, key=lambda run: run.value(column) is None)


def as_csv(runs: list[Run], columns: list[str], base: Path | None = None) -> str:
    """Return one row a run, with full precision; folders relative to base. Folded runs get their spread too."""
    columns = [column for column in columns if column != NAME]  # the first one names the folder
    spread = [column for column in columns if any(column in run.spread for run in runs)]
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["run", *columns, *(f"{column} std" for column in spread), *(["seeds"] if spread else [])])
    for run in runs:
        folder = run.folder.relative_to(base) if base else run.folder
        values = [*map(run.value, columns), *map(run.spread.get, spread), *([run.seeds] if spread else [])]
        writer.writerow([folder, *values])  # None is written as nothing
    return text.getvalue()
