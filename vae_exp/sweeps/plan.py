"""Plan a sweep: what may be swept, its name and folder, and whether it goes on with an earlier one."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, cast

from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from vae_exp.config.checks import as_typed, check_metric, flatten, options, path_of, quoted
from vae_exp.config.compose import compose as compose_config
from vae_exp.config.compose import parse
from vae_exp.config.schema import TEXT, judged_by
from vae_exp.errors import UserError
from vae_exp.files import expand, read_json, require_no_links, write_json, writing
from vae_exp.sweeps.study import JOURNAL
from vae_exp.sweeps.values import MAX_NAME, distinct, has_same_data, line, require_same, values_of
from vae_exp.training.run_dir import LATEST, OUTPUTS, UNREADABLE, runs_below

SWEEPS = OUTPUTS / "sweeps"
SWEEP = "sweep.json"
SEARCH = "hydra_plugins.vae_exp.Search"  # a sweeper of ours, under the only package that Hydra 1.3 takes one from
DIR, SUBDIR = "hydra.sweep.dir", "hydra.sweep.subdir"
OF_A_SWEEP = ("sweep.", "hydra.sweep.")
SHARED = ("sweeper", "launcher", "sweep", "callbacks")  # what Hydra takes from the first job for all of them
KEPT = ("warm_start", "warm_epochs", "metric")  # of sweep.*: with others a path or a study would be another
HANDED_ON = ("zip", "prune", "prune_after", "prune_factor", *KEPT)  # of sweep.*, to every job

Compose = Callable[[list[str]], DictConfig]  # from the overrides of a job to its configuration
# A swept group, one of its options, and the configuration of a job that has it.
Option = tuple[Override, str, DictConfig]


@dataclass
class Plan:
    """The jobs and the folder of a sweep that is to run."""

    name: str
    swept: list[Override]
    jobs: int
    is_search: bool  # Optuna chooses the values; a trial that fails is part of it
    has_study: bool  # a search, or a grid that ends losing jobs early
    settings: list[str]  # the overrides that every job has, without those of W&B
    folder: Path
    overrides: list[str]  # of every job, and what the sweep tells it
    single: list[str]  # what turns the same command into one run
    epochs: int
    warm_start: bool
    warm_epochs: int | None
    metric: str  # what jobs are judged by; more of it is better if sign is -1
    sign: int
    names: list[str] = field(default_factory=list)  # of the jobs' folders, where they are known beforehand
    data: str | None = None  # a digest of the images of all jobs; None where they differ, or lie on other machines

    @property
    def keys(self) -> list[str]:
        return [override.get_key_element() for override in self.swept]

    @property
    def values(self) -> list[str]:
        return [line(override) for override in self.swept]

    @property
    def searched(self) -> dict[str, bool]:
        """Return the keys that are searched in an interval, and whether on a logarithmic scale."""
        values = ((override.get_key_element(), override.value()) for override in self.swept)
        return {key: "log" in value.tags for key, value in values if isinstance(value, IntervalSweep)}

    def add_jobs(self, n: int) -> None:
        """Count jobs that are not of the grid."""
        self.overrides = [word for word in self.overrides if not word.startswith("sweep.jobs=")]
        self.jobs += n
        self.overrides.append(f"sweep.jobs={self.jobs}")

    def write(self) -> None:
        """Write sweep.json in the sweep's folder. Raises Unwritable if the system refuses."""
        with writing(self.folder, DIR):
            self.folder.mkdir(parents=True, exist_ok=True)
        record = {name: getattr(self, name) for name in ("name", "keys", "jobs", "settings", "values", "data", *KEPT)}
        # Where it was typed: relative paths in settings and values begin there.
        write_json(self.folder / SWEEP, record | {"cwd": str(Path.cwd())})


def overrides_of(cfg: DictConfig, part: str) -> list[str]:
    """Return the overrides of a configuration as typed: those of Hydra's own part, `hydra`, or the others, `task`."""
    return cast("list[str]", OmegaConf.to_container(cfg.hydra.overrides[part], resolve=False))


def first_job(overrides: list[str]) -> list[str]:
    """Return the overrides with each sweep's first value only: a job that can be checked before any starts."""
    return [
        f"{override.get_key_element()}={values_of(override)[0]}" if override.is_sweep_override() else line(override)
        for override in parse(overrides)
    ]


def is_preset(overrides: list[str]) -> bool:
    """Return whether an experiment says that it is a sweep: Hydra 1.4 asks only what is typed, and types -m itself."""
    words = [word for word in first_job(overrides) if not word.startswith("hydra.mode=")]
    is_chosen = any(word.startswith("experiment=") for word in words)
    return is_chosen and compose_config("config", words).hydra.mode == RunMode.MULTIRUN


def require_no_sweep(overrides: list[str]) -> None:
    """Raise UserError if one run is given a setting that only a sweep has."""
    for override in parse(overrides):
        if override.key_or_group.startswith(OF_A_SWEEP) and override.value() is not None:
            raise UserError(f"{line(override)}: only works with -m.")


def plan(overrides: list[Override], cfg: DictConfig, compose: Compose, data_digest: Callable[[], str | None]) -> Plan:
    """Lay out the sweep that the command line and an experiment's hydra.sweeper.params ask for.

    cfg is the configuration of its first job. Raises UserError for a sweep that cannot be, or is not what it resumes.
    """
    _require_of_a_sweep(overrides)
    task = [override for override in overrides if not override.key_or_group.startswith((*OF_A_SWEEP, "hydra"))]
    # Hydra alone would combine a swept key of the experiment with the same key typed again, not replace it.
    replaced = {override.key_or_group for override in task}
    preset = cfg.hydra.sweeper.get("params") or {}
    params = [f"{key}={value}" for key, value in preset.items() if str(key).lstrip("+~") not in replaced]
    arguments = distinct([*task, *parse(params)])
    swept = [override for override in arguments if override.is_sweep_override()]
    chosen_options = _options(arguments, swept, cfg, overrides, compose)
    _require_one_sweep(chosen_options, cfg, overrides)
    is_search = cfg.hydra.sweeper["_target_"] == SEARCH
    if cfg.sweep.prune or is_search:
        sweeper = f"hydra/sweeper={cfg.hydra.runtime.choices['hydra/sweeper']}"
        _require_metric(f"sweep.prune={cfg.sweep.prune}" if cfg.sweep.prune else sweeper, cfg, chosen_options, swept)
    _require_warm(cfg, is_search)
    lengths = {override.get_key_element(): len(values_of(override)) for override in swept}
    _require_zipped(list(cfg.sweep.zip), lengths, is_search)
    grid = math.prod(length for key, length in lengths.items() if key not in cfg.sweep.zip[1:])
    jobs = cfg.hydra.sweeper.n_trials if is_search else grid
    fixed = [override for override in arguments if override not in swept]
    settings = sorted(line(override) for override in fixed if not override.key_or_group.startswith("wandb."))

    name, folder = _name_and_folder(cfg, list(lengths))
    if cfg.sweep.resume is not None:
        name, folder = _resume(cfg, settings, swept, data_digest)
    job_overrides = [
        *map(line, fixed),
        *(f"sweep.{key}={as_typed(cfg.sweep[key])}" for key in HANDED_ON),
        f"sweep.name={quoted(name)}",
        f"sweep.over=[{','.join(lengths)}]",
        f"sweep.jobs={jobs}",
        f"sweep.resume={'null' if cfg.sweep.resume is None else quoted(folder)}",
        f"{DIR}={quoted(folder)}",
    ]
    is_mode_typed = any(override.key_or_group == "hydra.mode" for override in overrides)
    single = ["hydra.mode=RUN"] if not is_mode_typed or is_preset(list(map(line, overrides))) else []
    has_study = is_search or bool(cfg.sweep.prune)
    rest = cfg.epochs, cfg.sweep.warm_start, cfg.sweep.warm_epochs, *judged_by(cfg)
    return Plan(name, swept, jobs, is_search, has_study, settings, folder, job_overrides, single, *rest)


def _require_warm(cfg: DictConfig, is_search: bool) -> None:
    """Raise UserError for what only a warm start has, or a search that begins with one."""
    if cfg.init_from == LATEST:
        raise UserError(f"init_from={LATEST}: is another run for each job. Name the run.")
    if cfg.sweep.warm_start and is_search:
        raise UserError("sweep.warm_start=true: is of a grid; the trials of a search do not follow each other.")
    for key in ("warm_epochs", "confirm"):
        if cfg.sweep[key] and not cfg.sweep.warm_start:
            raise UserError(f"sweep.{key}={cfg.sweep[key]}: is of a sweep that starts warm; add sweep.warm_start=true.")


def has_one_dataset(swept: list[Override]) -> bool:
    return not any(override.key_or_group.split(".")[0] in ("dataset", "experiment") for override in swept)


def _options(
    arguments: list[Override], swept: list[Override], cfg: DictConfig, overrides: list[Override], compose: Compose
) -> list[Option]:
    """Return each option of each swept group. Raises what Hydra raises if there is no such option."""
    first = first_job([line(override) for override in arguments])
    sweep = [line(override) for override in overrides if override.key_or_group.startswith("sweep.")]
    result = []
    for i, override in enumerate(arguments):
        if override in swept and (override.key_or_group in cfg.hydra.runtime.choices or options(override.key_or_group)):
            for option in values_of(override):
                word = f"{override.get_key_element()}={option}"
                result.append((override, option, compose([*sweep, *first[:i], word, *first[i + 1 :]])))
    return result


def _require_one_sweep(chosen: list[Option], cfg: DictConfig, overrides: list[Override]) -> None:
    """Raise UserError if jobs would differ in their ranges, sweeper, launcher, folder or sweep.*."""
    first = _shared(cfg, overrides)
    for override, option, other_cfg in chosen:
        other = _shared(other_cfg, overrides)
        if keys := [key for key in dict.fromkeys([*first, *other]) if first.get(key) != other.get(key)]:
            key, named = override.key_or_group, ", ".join(keys[:4]) + (", ..." if len(keys) > 4 else "")
            raise UserError(
                f"{line(override)}: all jobs of a sweep share its ranges and how it is run, and {key}={option} has "
                f"others than the first option ({named}). Start a sweep for each, such as: vae-train -m {key}={option}"
            )


def _shared(cfg: DictConfig, overrides: list[Override]) -> dict[str, Any]:
    """Return the settings all jobs share, flat, without the ranges of typed keys, which replace them."""
    shared = {f"hydra.{name}": OmegaConf.to_container(cfg.hydra[name]) for name in SHARED if cfg.hydra[name]}
    shared["sweep"] = OmegaConf.to_container(cfg.sweep)
    ranges = {f"hydra.sweeper.params.{override.key_or_group}" for override in overrides}
    return {
        key: value
        for key, value in flatten(shared).items()
        if value not in (None, {}) and key.replace("params.+", "params.") not in ranges
    }


def _require_metric(by: str, cfg: DictConfig, chosen: list[Option], swept: list[Override]) -> None:
    """Raise UserError if some job of the sweep has no sweep.metric to be judged by, or another one."""
    key = "sweep.metric" if cfg.sweep.metric else "monitor"
    sizes = [("", cfg.dataset.val_size)]
    for override, option, other in chosen:
        size = other.dataset.val_size
        sizes.append((f"{override.key_or_group}={option} has dataset.val_size={size}", size))
    for override in swept:
        if override.key_or_group == "dataset.val_size":
            sizes += [(line(override), parse([f"x={value}"])[0].value()) for value in values_of(override)]
    differing = [override for override, _, other in chosen if judged_by(other) != judged_by(cfg)]
    if differing := differing or [override for override in swept if override.key_or_group.startswith(key)]:
        reason = f"{by} judges all jobs by one number. Say which, such as sweep.metric=val/neg_elbo"
        raise UserError(f"{line(differing[0])}: {reason}.")
    flat = flatten(cast("dict[str, Any]", OmegaConf.to_container(cfg)))
    for why, size in sizes:
        if problems := check_metric(key, flat | {"dataset.val_size": size}, by, why):
            raise UserError(problems[0])


def _require_zipped(zipped: list[str], lengths: dict[str, int], is_search: bool) -> None:
    """Raise UserError if a key of sweep.zip is not swept, or if its keys differ in their number of values."""
    setting = f"sweep.zip=[{','.join(zipped)}]"
    if zipped and is_search:
        raise UserError(f"{setting}: is of a grid; a search chooses every value by itself.")
    if not_swept := [key for key in zipped if key not in lengths]:
        raise UserError(f"{setting}: {not_swept[0]} is not swept. Swept are {', '.join(lengths) or 'none'}.")
    if len({lengths[key] for key in zipped}) > 1:
        counts = ", ".join(f"{key} {lengths[key]}" for key in zipped)
        raise UserError(f"{setting}: these keys take their values together, so each has as many ({counts}).")


def _require_of_a_sweep(overrides: list[Override]) -> None:
    """Raise UserError if what all jobs share is swept, or if the folder of a job is set: a sweep names those itself."""
    for override in overrides:
        if override.is_sweep_override() and override.key_or_group.startswith((*OF_A_SWEEP, "hydra")):
            raise UserError(f"{line(override)}: is of the whole sweep, and takes one value.")
        if override.key_or_group == SUBDIR:
            advice = f"{DIR}=FOLDER is the sweep's folder"
            raise UserError(f"{line(override)}: the folders of jobs are named by their values. {advice}.")
        if override.key_or_group == "hydra.run.dir":
            raise UserError(f"{line(override)}: is of one run. The folder of a sweep is {DIR}=FOLDER.")


def _name_and_folder(cfg: DictConfig, keys: list[str]) -> tuple[str, Path]:
    """Return the name and the folder of a new sweep. Raises UserError if the chosen folder holds runs."""
    label = re.sub(r"[^\w.-]", "-", str(cfg.sweep.name or "-".join(key.rsplit(".", 1)[-1] for key in keys) or "sweep"))
    label = label.encode()[:MAX_NAME].decode(errors="ignore")  # file systems count bytes
    chosen = _chosen_folder(cfg)
    if chosen and cfg.sweep.resume is None:
        if runs_below(chosen, SWEEP) or runs_below(chosen):
            advice = "Choose a new folder, or resume a sweep: sweep.resume=FOLDER"
            raise UserError(f"{DIR}={chosen}: a sweep or runs are there already. {advice}")
        _require_no_links(chosen)
    folder = chosen or SWEEPS / f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}_{label}"
    return str(cfg.sweep.name or folder.name), folder


def _chosen_folder(cfg: DictConfig) -> Path | None:
    """Return the folder that hydra.sweep.dir sets, on the command line or in a preset, or None if unset."""
    stored = cast("dict[str, Any]", OmegaConf.to_container(cfg.hydra.sweep, resolve=False))
    if str(stored["dir"]).startswith("multirun/${now"):  # Hydra's own
        return None
    return path_of(DIR, cfg.hydra.sweep.dir)


def _resume(
    cfg: DictConfig, settings: list[str], swept: list[Override], data_digest: Callable[[], str | None]
) -> tuple[str, Path]:
    """Return the name and the folder of the sweep that sweep.resume names. Raises UserError if this one is another."""
    folder, before = find(str(cfg.sweep.resume))
    _require_no_links(folder)
    if (chosen := _chosen_folder(cfg)) and chosen.resolve() != folder.resolve():
        raise UserError(f"{DIR}={chosen}: a sweep resumes in its own folder, {folder}; leave {DIR} out.")
    for key, now in {**{key: cfg.sweep[key] for key in KEPT}, "metric": judged_by(cfg)[0]}.items():
        if (was := before.get(key, now)) != now:
            name = "monitor" if key == "metric" and cfg.sweep.metric is None else f"sweep.{key}"
            reason = f"it was started with {name}={as_typed(was)}, and not with {as_typed(now)}; type it again"
            raise UserError(f"sweep.resume={cfg.sweep.resume}: {reason}.")
    try:
        require_same(before, settings, swept, same_data=True)  # first: other settings may mean other data
        if not (has_one_dataset(swept) and has_same_data(before, data_digest)):
            require_same(before, settings, swept, same_data=False)
    except UserError as error:
        raise UserError(f"sweep.resume={cfg.sweep.resume}: {error}") from error
    return before["name"], folder


def _require_no_links(folder: Path) -> None:
    """Raise UserError if something below a sweep's folder is a link, but what W&B and Optuna make."""
    if folder.is_dir():
        theirs = ("wandb", f"{JOURNAL}.lock")
        require_no_links(folder, [entry.name for entry in folder.iterdir() if not entry.name.startswith(theirs)])


def find(path_or_latest: str) -> tuple[Path, dict[str, Any]]:
    """Return the folder and the record of the sweep to resume. Raises UserError if no sweep was started there."""
    folder = expand(path_or_latest)
    if path_or_latest == LATEST:
        if not (sweeps := runs_below(SWEEPS, SWEEP)):
            raise UserError(f"sweep.resume=latest: there is no sweep in {SWEEPS}.")
        folder = sweeps[0]
    try:
        record = read_json(folder / SWEEP)
        before = {"cwd": None, "data": None, "warm_start": False, "warm_epochs": None} | record
        parse([*before["settings"], *before["values"]])
        is_valid = TEXT.allows(before["name"]) and all(isinstance(before[key], str | None) for key in ("cwd", "data"))
        if not is_valid or "${" in f"{before['name']}{folder}":  # Hydra would look for what it refers to
            raise ValueError(folder)
        return folder, before
    except (HydraException, *UNREADABLE) as error:
        raise UserError(f"sweep.resume={path_or_latest}: no sweep was started there (no readable {SWEEP}).") from error
