"""What the command line of a sweep becomes: its jobs, its folders and what Hydra is to be given."""

import json
import math
import re
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from hydra.core.override_parser.types import Glob, IntervalSweep, Override
from hydra.types import RunMode
from omegaconf import DictConfig

from vae_exp.config.check import options
from vae_exp.config.messages import parse, quoted
from vae_exp.errors import UserError
from vae_exp.run.folder import OUTPUTS, UNREADABLE, runs_below
from vae_exp.run.writing import write_json, writing

SWEEPS = OUTPUTS / "sweeps"
SWEEP = "sweep.json"
RECORDED = ("name", "keys", "jobs", "settings", "values")  # in it
NUMBER = "${hydra.job.num}"
LONGEST = 120  # characters of a folder's name; file systems allow 255


@dataclass
class Plan:
    """What a sweep will run."""

    name: str
    keys: list[str]
    jobs: int
    search: bool  # Optuna chooses the values; a trial that fails is part of it
    settings: list[str]  # the overrides that every job has
    values: list[str]  # the overrides that are swept
    folder: Path
    overrides: list[str]  # all that Hydra is to be given
    single: list[str]  # what turns the same command into one run

    def write(self) -> None:
        """sweep.json in the sweep's folder. Raises Unwritable where the system refuses."""
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / SWEEP, {name: getattr(self, name) for name in RECORDED})


def line(override: Override) -> str:
    """An override as it was typed."""
    return str(override.input_line)


def first_job(overrides: list[str]) -> list[str]:
    """The overrides with each sweep replaced by its first value: a job that can be checked before any starts."""
    return [
        f"{override.get_key_element()}={values_of(override)[0]}" if override.is_sweep_override() else line(override)
        for override in parse(overrides)
    ]


def plan(typed: list[str], cfg: DictConfig) -> Plan:
    """Lay out the sweep that the command line and an experiment's hydra.sweeper.params ask for.

    Raises UserError where sweep.resume names no sweep, or one that was started with other settings.
    """
    arguments = [override for override in parse(typed) if not override.key_or_group.startswith("sweep.")]
    # Hydra alone would combine a swept key of the experiment with the same key typed again, not replace it.
    replaced = {override.get_key_element() for override in arguments}
    preset = cfg.hydra.sweeper.get("params") or {}
    arguments += parse([f"{key}={value}" for key, value in preset.items() if key not in replaced])
    swept = [override for override in arguments if override.is_sweep_override()]
    settings = sorted(
        line(override)
        for override in arguments
        if override not in swept and not override.key_or_group.startswith(("hydra", "wandb."))
    )
    keys = [override.get_key_element() for override in swept]
    search = "n_trials" in cfg.hydra.sweeper
    jobs = cfg.hydra.sweeper.n_trials if search else math.prod(len(values_of(override)) for override in swept)
    if search and cfg.sweep.resume:
        raise UserError("sweep.resume: a search keeps its study in memory and cannot be resumed; start it anew.")

    of_keys = "-".join(key.rsplit(".", 1)[-1] for key in keys)
    label = re.sub(r"[^\w.-]", "-", str(cfg.sweep.name or of_keys or "sweep"))
    folder = SWEEPS / f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}_{label[:LONGEST]}"
    name = str(cfg.sweep.name or folder.name)
    values = [line(override) for override in swept]
    if cfg.sweep.resume:
        folder, before = _to_resume(cfg.sweep.resume)
        name = before["name"]
        if before["settings"] + before["values"] != settings + values:
            was, now = " ".join(before["settings"] + before["values"]), " ".join(settings + values)
            raise UserError(f"sweep.resume={cfg.sweep.resume}: the sweep was started with {was}, and not with {now}.")
    resume = quoted(folder) if cfg.sweep.resume else "null"
    overrides = [
        *(line(override) for override in arguments),
        f"sweep.name={quoted(name)}",
        f"sweep.over=[{','.join(keys)}]",
        f"sweep.jobs={jobs}",
        f"sweep.resume={resume}",
        f"hydra.sweep.dir={quoted(folder)}",
        f"hydra.sweep.subdir={quoted(_subfolder(swept))}",
    ]
    overrides += ["hydra.sweeper.params=null"] if preset else []
    single = ["hydra.mode=RUN"] if cfg.hydra.mode == RunMode.MULTIRUN else []
    single += [line(override) for override in arguments if override.key_or_group == "hydra.searchpath"]
    return Plan(name, keys, jobs, search, settings, values, folder, overrides, single)


def values_of(override: Override) -> list[str]:
    """The values of a sweep, as they would be typed; of an interval only its start."""
    value = override.value()
    if isinstance(value, IntervalSweep):
        return [str(value.start)]
    if isinstance(value, Glob):
        values = value.filter(options(override.key_or_group))
    else:
        values = list(override.sweep_string_iterator())
    if not values:
        raise UserError(f"{override.input_line}: there is no value in it to run.")
    return values


def _subfolder(swept: list[Override]) -> str:
    """A job's folder, such as z_dim-10_lr-0.001: only characters that can be typed back on a command line."""
    last = [override.key_or_group.rsplit(".", 1)[-1] for override in swept]
    parts, longest = [], 0
    for name, override in zip(last, swept, strict=True):
        key = override.key_or_group
        values = values_of(override)
        if isinstance(override.value(), IntervalSweep) or not all(re.fullmatch(r"[\w.+-]+", v) for v in values):
            return NUMBER
        name = key if Counter(last)[name] > 1 else name
        is_group = bool(options(key))
        parts.append(f"{name}-${{{f'hydra.runtime.choices.{key}' if is_group else key}}}")
        longest += len(name) + max(map(len, values)) + 2
    return "_".join(parts) if parts and longest <= LONGEST else NUMBER


def _to_resume(path_or_latest: str) -> tuple[Path, dict]:
    """The folder and the record of the sweep to go on with. Raises UserError where no sweep was started there."""
    if path_or_latest == "latest":
        found = runs_below(SWEEPS, SWEEP)
        if not found:
            raise UserError(f"sweep.resume=latest: there is no sweep in {SWEEPS}.")
        folder = found[0]
    else:
        folder = Path(path_or_latest)
    try:
        record = json.loads((folder / SWEEP).read_text())
        return folder, {key: record[key] for key in ("name", "settings", "values")}
    except UNREADABLE as error:
        raise UserError(f"sweep.resume={path_or_latest}: no sweep was started there (no readable {SWEEP}).") from error
