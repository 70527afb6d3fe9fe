"""The names under which W&B has what runs logged, read from the runs' own files, so that no account is needed."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from vae_exp.compare.runs import RESULTS, SEEDS, Run, differing, swept_keys
from vae_exp.config.checks import flatten
from vae_exp.config.schema import is_number
from vae_exp.errors import UserError
from vae_exp.evaluation import results
from vae_exp.files import read_json_lines
from vae_exp.training.run_dir import IMAGES, METRICS, read_config, read_summary

MAX_KEYS = 8  # of runs that were not swept: more levels of groups, or axes side by side, tell nothing
OVER = "sweep.over"
NO_SCORES = ("step", "seed", "importance_seed", "importance_samples", "repeats", "images", "active_units")
NO_PANEL = ("_error", "_real", results.SPREAD)  # how far a number may be off, and what it is read beside
EVALUATED = re.compile(r"(best|last)\.(test|val|train)\.json")


@dataclass
class Logged:
    """The names that W&B has for a set of runs. A panel of any other name would be empty."""

    ids: list[str] = field(default_factory=list)  # of the runs
    groups: list[str] = field(default_factory=list)  # the sweeps of the runs, and other groups that the user made
    keys: list[str] = field(default_factory=list)  # of config: what was swept, or else what differs; no seeds
    columns: list[str] = field(default_factory=list)  # keys, swept seeds, and OVER where something has no key
    values: dict[str, list[Any]] = field(default_factory=dict)  # of these keys, each value once
    config: set[str] = field(default_factory=set)
    history: set[str] = field(default_factory=set)  # numbers and histograms over steps
    pictures: set[str] = field(default_factory=set)
    summary: set[str] = field(default_factory=set)
    scores: list[str] = field(default_factory=list)  # evaluate/SPLIT/NAME
    metric: str = "test/neg_elbo"  # in the summary: what runs are compared by


def read(runs: list[Run]) -> Logged:
    """Read what the runs logged. Raise UserError if W&B was disabled for all of them."""
    logged, known, configs = Logged(), [], []
    for run in runs:
        config, summary = flatten(read_config(run.folder) or {}), read_summary(run.folder)
        if not config or summary is None or not summary.wandb.id:
            continue
        known.append(run)
        configs.append(config)
        logged.ids.append(summary.wandb.id)
        logged.config |= config.keys()
        logged.summary |= {name for name, value in summary.results.items() if is_number(value)}
        logged.history |= _history(run.folder)
        logged.pictures |= _pictures(run.folder)
        logged.scores += [name for name in _scores(run.folder) if name not in logged.scores]
        group = config.get("wandb.group") or config.get("sweep.name") or summary.wandb.group
        if group not in (None, summary.name, *logged.groups):  # a run alone shares its name with its evaluations
            logged.groups.append(str(group))
    if not known:
        raise UserError(f"none of the {len(runs)} runs was logged to W&B (wandb.mode=disabled).")
    logged.metric = next((name for name in RESULTS.values() if name in logged.summary), logged.metric)
    swept = [_name_of(key, logged.config) for key in swept_keys(known)]
    logged.keys = [key for key in swept if key not in (*SEEDS, OVER)]
    if not logged.keys:
        names = [_name_of(key, logged.config) for key in differing(known) if key not in SEEDS]
        plain = [name for name in names if not any(isinstance(config.get(name), list | dict) for config in configs)]
        logged.keys = [name for name in plain if name != OVER][:MAX_KEYS]
    logged.columns = list(dict.fromkeys([*logged.keys, *swept]))
    for key in logged.keys:
        values = [config[key] for config in configs if config.get(key) is not None]
        logged.values[key] = [value for i, value in enumerate(values) if value not in values[:i]]
    return logged


def _name_of(key: str, config: set[str]) -> str:
    """Return W&B's name for a key; a swept option that no key has, as for experiment, is in the list of all."""
    return next((name for name in (key, f"{key}._target_") if name in config), OVER)


def project_of(folders: Iterable[Path]) -> str | None:
    """Return ENTITY/PROJECT of the runs in these folders if they were logged online and all to the same, else None."""
    projects = set()
    for folder in folders:
        summary = read_summary(folder)
        if summary is not None and summary.wandb.url:
            words = [unquote(word) for word in urlparse(summary.wandb.url).path.strip("/").split("/")]
            projects.add("/".join(words[:2]) if len(words) == 4 and words[2] == "runs" else None)
    return projects.pop() if len(projects) == 1 else None


def _history(folder: Path) -> set[str]:
    items = (item for row in read_json_lines(folder / METRICS) for item in row.items())
    return {name for name, value in items if is_number(value) or isinstance(value, list)} - {"step"}


def _pictures(folder: Path) -> set[str]:
    matches = [re.fullmatch(r"(.+)_\d{7,}", path.stem) for path in (folder / IMAGES).glob("*.png")]
    return {f"{IMAGES}/{match[1]}" for match in matches if match}


def _scores(folder: Path) -> list[str]:
    """Return the names of the scores that vae-evaluate added to a run's summary in W&B, without how far they vary."""
    names = []
    for path in sorted(folder.glob("*.json")):
        if match := EVALUATED.fullmatch(path.name):
            scores = [name for name in results.numbers(results.read(path)) if name not in NO_SCORES]
            names += [f"evaluate/{match[2]}/{name}" for name in scores if not name.endswith(NO_PANEL)]
    return names
