"""Groups of runs that compare: their numbers are of the same images under the same likelihood. Each has one best."""

import json
from pathlib import Path
from typing import Any

from vae_exp.compare.runs import Run

# Keys of a dataset that change nothing about the images that are measured.
OTHER_THAN_IMAGES = {
    f"dataset.{key}"
    for key in ("name", "cache", "device_memory", "seed", "flip", "n_classes", "attribute", "label", "on_error")
}
LABELLED_BY = ("dataset.attribute", "dataset.label")  # but where dataset.labels chooses images by their labels
FITTED = ("learned", "optimal")  # a sigma or scale that is no setting: those runs compare

OWN_IMAGES = ("image_folder", "arrays")  # datasets that are whatever lies at dataset.root
ROOT, DATA = "dataset.root", "data"  # and a digest of what lay there, which no key of a configuration is


def _measured(run: Run) -> dict[str, Any]:
    """Return what the numbers of a run are of: the images, their splits, the likelihood, and whether there is a KL."""
    kept: dict[str, Any] = {} if run.data is None else {DATA: run.data}
    by_label = LABELLED_BY if run.config.get("dataset.labels") is not None else ()
    for key, value in run.config.items():
        group = key.split(".")[0]
        if key == ROOT:  # the same data in another place, but for one's own images
            is_own = run.config.get("dataset") in OWN_IMAGES
            value = str(Path(str(value)).expanduser().resolve()) if is_own else None
        if group == "likelihood" and value in FITTED:
            value = "fitted"
        is_setting = group in ("dataset", "likelihood") and (key not in OTHER_THAN_IMAGES or key in by_label)
        is_of_it = is_setting or key == "model.stochastic"
        if is_of_it and value is not None:
            kept[key] = value
    return kept


def groups(runs: list[Run]) -> list[list[Run]]:
    """Return the runs in groups, each of runs that compare with each other."""
    alike: dict[str, list[Run]] = {}
    measured = [_measured(run) for run in runs]
    for run, of_run in zip(runs, measured, strict=True):
        if DATA not in of_run:  # of an older version: its data are taken to be those of the other runs from there
            known = {other[DATA] for other in measured if other == of_run | {DATA: other.get(DATA)}} - {None}
            of_run = of_run | ({DATA: known.pop()} if len(known) == 1 else {})
        if DATA in of_run:  # the same data may lie elsewhere
            of_run = {key: value for key, value in of_run.items() if key != ROOT}
        alike.setdefault(json.dumps(of_run, sort_keys=True, default=str), []).append(run)
    # First in a group is a run whose data are known: it tells groups apart.
    return [sorted(group, key=lambda run: run.data is None) for group in alike.values()]


def titles(alike: list[list[Run]]) -> list[str]:
    """Return a title for each of several groups: the settings in which they differ."""
    settings = [_measured(group[0]) for group in alike]
    keys = sorted(_differing(settings), key=len)  # dataset before dataset.val_size
    return [_listed([f"{key}={each[key]}" for key in keys if key in each]) or "the other runs" for each in settings]


def best_per_group(runs: list[Run]) -> list[Run]:
    """Return the best run of each group of runs that compare."""
    found = [best(group, metric_of(group)) for group in groups(runs)]
    return [run for run in found if run is not None]


def largest(runs: list[Run], column: str) -> tuple[list[Run], str | None]:
    """Return the largest group of runs that compare and have the column, and how many runs are left out and why.

    The numbers of other data or another likelihood are no better or worse: they measure something else.
    """
    having = [run for run in runs if run.value(column) is not None] or runs
    alike = sorted(groups(having), key=len, reverse=True)
    kept, settings = alike[0], [_measured(group[0]) for group in alike]
    told = []
    if others := len(having) - len(kept):
        named = _listed([f"{key}={settings[0].get(key)}" for key in _differing(settings)])
        told.append(f"{others} do not compare with the {len(kept)} that have {named}")
    if lacking := len(runs) - len(having):
        told.append(f"{lacking} have no {column}")
    return kept, f"left out: {'; '.join(told)}." if told else None


def describe_groups(runs: list[Run]) -> str | None:
    """Return a sentence, with the keys, on why more than one run is the best, or None if all compare."""
    keys = distinguishing_keys(runs)
    return f"runs of different data or likelihood do not compare: a best of each ({keys})" if keys else None


def distinguishing_keys(runs: list[Run]) -> str:
    """Return the keys in which runs that do not compare differ, or an empty text if all compare."""
    return _listed(_differing([_measured(group[0]) for group in groups(runs)]))


def _differing(settings: list[dict[str, Any]]) -> list[str]:
    """Return the keys whose values are not the same in all settings."""
    keys = dict.fromkeys(key for each in settings for key in each)
    found = [key for key in keys if any(each.get(key) != settings[0].get(key) for each in settings)]
    # A digest tells people less than a key that says why the data are others.
    return [key for key in found if key != DATA or not any(key.startswith("dataset") for key in found)]


def _listed(words: list[str]) -> str:
    return ", ".join(words[:4]) + (", ..." if len(words) > 4 else "")


def best(runs: list[Run], column: str = "val/neg_elbo") -> Run | None:
    """Return the finished run with the lowest number; of folded runs those whose seeds all finished come first."""
    having = [run for run in runs if run.metrics.get(column) is not None and (run.finished or run.members)]
    having = [run for run in having if run.finished] or having
    return min(having, key=lambda run: run.metrics[column], default=None)


def metric_of(runs: list[Run]) -> str:
    """Return the metric to compare runs by: the validation neg_elbo, or the test's if no images were held out."""
    return "val/neg_elbo" if any("val/neg_elbo" in run.metrics for run in runs) else "test/neg_elbo"
