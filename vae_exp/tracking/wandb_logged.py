"""The names under which W&B has what runs logged, read from the runs' own files, so that no account is needed."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from vae_exp.compare.runs import RESULTS, SEEDS, Run, differing, is_finite
from vae_exp.config.checks import flatten
from vae_exp.errors import UserError
from vae_exp.evaluation import results
from vae_exp.files import read_json_lines
from vae_exp.training.run_dir import IMAGES, METRICS, Summary, read_config, read_summary

MOST_KEYS = 8  # of runs that were not swept: more levels of groups, or axes side by side, tell nothing
OVER = "sweep.over"
NO_SCORES = ("step", "seed", "importance_seed", "importance_samples", "repeats", "images", "active_units")
NO_PANEL = ("_error", "_real", results.SPREAD)  # how far a number may be off, and what it is read beside
EVALUATED = re.compile(r"(best|last)\.(test|val|train)\.json")


@dataclass(frozen=True)
class Logged:
    """The names that W&B has for a set of runs. A panel of any other name would be empty."""

    ids: list[str]  # of the runs
    groups: list[str]  # the sweeps that the runs are of, and other groups that the user made
    keys: list[str]  # of the configuration: what was swept, or where nothing was what differs; no seeds
    columns: list[str]  # the same, and swept seeds; sweep.over where something swept has no key of its own
    values: dict[str, list[Any]]  # of these keys, each value once
    config: frozenset[str]
    history: frozenset[str]  # numbers and histograms over steps
    pictures: frozenset[str]
    summary: frozenset[str]
    scores: list[str]  # evaluate/SPLIT/NAME
    metric: str  # in the summary: what runs are compared by


@dataclass(frozen=True)
class _Files:
    """One run's files."""

    config: dict[str, Any]  # flat, in W&B's names
    summary: Summary
    history: set[str] = field(default_factory=set)


def read(runs: list[Run]) -> Logged:
    """Read what the runs logged. Raise UserError if W&B was disabled for all of them."""
    files = [_read(run.folder) for run in runs]
    known = [(run, each) for run, each in zip(runs, files, strict=True) if each is not None and each.summary.wandb.id]
    if not known:
        raise UserError(
            f"none of the {len(runs)} runs was logged to W&B (wandb.mode=disabled): there is nothing to show there."
        )
    logged = [each for _, each in known]
    swept = _swept(logged)
    keys = [key for key in swept if key not in (*SEEDS, OVER)] or _differing([run for run, _ in known], logged)
    summary = {name for each in logged for name, value in each.summary.results.items() if is_finite(value)}
    return Logged(
        ids=[str(each.summary.wandb.id) for each in logged],
        groups=list(dict.fromkeys(name for each in logged if (name := _group(each)))),
        keys=keys,
        columns=list(dict.fromkeys([*keys, *swept])),
        values={key: _distinct(each.config.get(key) for each in logged) for key in keys},
        config=frozenset(key for each in logged for key in each.config),
        history=frozenset(name for each in logged for name in each.history),
        pictures=frozenset(name for run, _ in known for name in _pictures(run.folder)),
        summary=frozenset(summary),
        scores=list(dict.fromkeys(name for run, _ in known for name in _scores(run.folder))),
        metric=next((name for name in RESULTS.values() if name in summary), "test/neg_elbo"),
    )


def _read(folder: Path) -> _Files | None:
    config, summary = read_config(folder), read_summary(folder)
    if config is None or summary is None:
        return None
    return _Files(flatten(config), summary, _history(folder))


def _group(files: _Files) -> str | None:
    """Return the W&B group that a run shares with other runs, or None if it shares one with its evaluations alone."""
    summary, config = files.summary, files.config
    name = config.get("wandb.group") or config.get("sweep.name") or summary.wandb.group
    return None if name is None or name == summary.name else str(name)


def place(folders: Iterable[Path]) -> str | None:
    """Return ENTITY/PROJECT of the runs in these folders if they were logged online and all to the same, else None."""
    places = set()
    for folder in folders:
        summary = read_summary(folder)
        if summary is not None and summary.wandb.url:
            words = [unquote(word) for word in urlparse(str(summary.wandb.url)).path.strip("/").split("/")]
            places.add("/".join(words[:2]) if len(words) == 4 and words[2] == "runs" else None)
    return places.pop() if len(places) == 1 else None


def _swept(logged: list[_Files]) -> list[str]:
    """Return the swept keys by W&B's names for them.

    A swept group, such as network, has the key that names its option; if there is none, as for experiment, the list of
    all that was swept.
    """
    keys: dict[str, None] = {}
    for each in logged:
        over = each.config.get(OVER)
        for word in over if isinstance(over, list) else ():
            key = str(word).partition("=")[0].lstrip("+")
            named = [name for name in (key, f"{key}.name", f"{key}._target_") if name in each.config]
            keys |= dict.fromkeys(named[:1] or [OVER])
    return list(keys)


def _differing(runs: list[Run], logged: list[_Files]) -> list[str]:
    """Return the keys that differ between runs that were not swept, if their values are single numbers or words."""
    known = {key for each in logged for key in each.config}
    keys = [key for key in differing(runs) if key not in SEEDS]
    named = [name for key in keys for name in (key, f"{key}._target_") if name in known]
    plain = [key for key in named if all(_is_plain(each.config.get(key)) for each in logged)]
    return plain[:MOST_KEYS]


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, str | bool | int | float)


def _distinct(values: Iterable[Any]) -> list[Any]:
    found: list[Any] = []
    for value in values:
        if value is not None and value not in found:
            found.append(value)
    return found


def _history(folder: Path) -> set[str]:
    """Return the names in metrics.jsonl of numbers, and of lists, which are histograms in W&B."""
    names: set[str] = set()
    for row in read_json_lines(folder / METRICS):
        names |= {name for name, value in row.items() if is_finite(value) or isinstance(value, list)}
    return names - {"step"}


def _pictures(folder: Path) -> list[str]:
    """Return the W&B names of a run's pictures, such as images/samples for images/samples_0000022.png."""
    found = [re.fullmatch(r"(.+)_\d{7,}", path.stem) for path in sorted((folder / IMAGES).glob("*.png"))]
    return [f"{IMAGES}/{each[1]}" for each in found if each]


def _scores(folder: Path) -> list[str]:
    """Return the names of the scores that vae-evaluate added to a run's summary in W&B, without how far they vary."""
    names = []
    for path in sorted(folder.glob("*.json")):
        if found := EVALUATED.fullmatch(path.name):
            kept = [name for name in results.numbers(results.read(path)) if name not in NO_SCORES]
            names += [f"evaluate/{found[2]}/{name}" for name in kept if not name.endswith(NO_PANEL)]
    return names
