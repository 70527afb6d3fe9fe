"""Plan a sweep: its jobs, folders and sweepers."""

import itertools
import math
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, cast

from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, RunMode, TaskFunction
from omegaconf import DictConfig, OmegaConf

from vae_exp.config.checks import as_typed, check_metric, flatten, options, path_of, quoted
from vae_exp.config.compose import compose, parse
from vae_exp.config.schema import TEXT
from vae_exp.errors import UserError
from vae_exp.files import read_json, require_no_links, write, write_json, writing
from vae_exp.sweeps.study import JOURNAL
from vae_exp.sweeps.values import LONGEST, NUMBER, distinct, has_grown, has_same_data, job_folder, rename, values_of
from vae_exp.training.run_dir import MULTIRUN, OUTPUTS, UNREADABLE, runs_below

Batch = tuple[int, list[list[str]]]  # the number of its first job, and what is swept in each


class SweepsJobs(Sweeper):
    """A sweeper that hands jobs to the launcher, batch after batch."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config
        self.asked, self.folder = config, Path(config.hydra.sweep.dir)
        self.launcher: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run all jobs. Raises what a job or the launcher raised; a run that fails does not raise."""
        overrides = parse(arguments)
        fixed = [str(override.input_line) for override in overrides if not override.is_sweep_override()]
        write(self.folder / MULTIRUN, OmegaConf.to_yaml(self.config))
        for first, jobs in self.batches([override for override in overrides if override.is_sweep_override()]):
            for job in self.launcher.launch([[*fixed, *job] for job in jobs], initial_job_idx=first):
                _ = job.return_value

    def batches(self, swept: list[Override]) -> Iterator[Batch]:
        """Yield the batches of jobs that run together."""
        raise NotImplementedError


class Grid(SweepsJobs):
    """Every combination of the swept values; keys of sweep.zip take their first values together, then their second.

    If losing jobs end early, they run in a random order by seed: in the order of the grid, the first jobs to be judged
    would all have the same value, and teach nothing about the others.
    """

    def __init__(self, max_batch_size: int | None = None, params: DictConfig | None = None) -> None:
        self.max_batch_size = max_batch_size

    def batches(self, swept: list[Override]) -> Iterator[Batch]:
        keys, together = self.asked.sweep, self.asked.sweep.zip
        values = [[f"{o.get_key_element()}={value}" for value in values_of(o)] for o in swept]
        is_zipped = [override.get_key_element() in together for override in swept]
        places = itertools.product(*(range(len(each)) for each in values))
        jobs = [
            [each[i] for each, i in zip(values, at, strict=True)]
            for at in places
            if len({i for i, zipped in zip(at, is_zipped, strict=True) if zipped}) < 2
        ]
        if keys.prune:
            random.Random(self.asked.seed).shuffle(jobs)
        size = self.max_batch_size or len(jobs)
        for first in range(0, len(jobs), size):
            yield first, jobs[first : first + size]


def require_together(zipped: list[str], swept: list[Override]) -> None:
    """Raise UserError if a key of sweep.zip is not swept, or if its keys differ in their number of values."""
    lengths = {override.get_key_element(): len(values_of(override)) for override in swept}
    typed = f"sweep.zip=[{','.join(zipped)}]"
    if not_swept := [key for key in zipped if key not in lengths]:
        raise UserError(f"{typed}: {not_swept[0]} is not swept. Swept are {', '.join(lengths) or 'none'}.")
    if len({lengths[key] for key in zipped}) > 1:
        told = ", ".join(f"{key} {lengths[key]}" for key in zipped)
        raise UserError(f"{typed}: these keys take their values together, so each has as many ({told}).")


SWEEPS = OUTPUTS / "sweeps"
SWEEP = "sweep.json"
RECORDED = ("name", "keys", "jobs", "settings", "values", "cwd", "data")  # in it
OF_A_SWEEP = ("sweep.", "hydra.sweep.")
HYDRAS_GRID = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
# Sweepers of ours, under the only package that Hydra takes one from.
GRID, SEARCH = "hydra_plugins.vae_exp.Grid", "hydra_plugins.vae_exp.Search"
DIR, SUBDIR = "hydra.sweep.dir", "hydra.sweep.subdir"
OF_THE_WHOLE = ("sweeper", "launcher", "sweep", "callbacks")  # what Hydra takes from the first job for all of them
HYDRAS_OWN_DIR = "multirun/"  # and the time: nobody has chosen it


@dataclass
class Plan:
    """The jobs and the folder of a sweep that is to run."""

    name: str
    keys: list[str]
    jobs: int
    search: bool  # Optuna chooses the values; a trial that fails is part of it
    has_study: bool  # a search, or a grid that ends losing jobs early
    settings: list[str]  # the overrides that every job has
    values: list[str]  # the overrides that are swept
    folder: Path
    overrides: list[str]  # all that Hydra is to be given
    single: list[str]  # what turns the same command into one run
    cwd: str  # where it was typed: relative paths in settings and values begin there
    has_one_dataset: bool  # no key of the data is swept
    data: str | None = None  # a digest of the images of all jobs; None where they differ, or lie on other machines

    def write(self) -> None:
        """Write sweep.json in the sweep's folder. Raises Unwritable if the system refuses."""
        with writing(self.folder, DIR):
            self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / SWEEP, {name: getattr(self, name) for name in RECORDED})


def line(override: Override) -> str:
    """Return an override as it was typed."""
    return str(override.input_line)


def first_job(overrides: list[str]) -> list[str]:
    """Return the overrides with each sweep's first value only: a job that can be checked before any starts."""
    return [
        f"{override.get_key_element()}={values_of(override)[0]}" if override.is_sweep_override() else line(override)
        for override in parse(overrides)
    ]


def require_no_sweep(typed: list[str]) -> None:
    """Raise UserError if one run is given a setting that only a sweep has."""
    for override in parse(typed):
        if override.key_or_group.startswith(OF_A_SWEEP) and override.value() is not None:
            raise UserError(f"{line(override)}: is of a sweep; add -m.")


def plan(typed: list[str], cfg: DictConfig, data_digest: Callable[[], str | None]) -> Plan:
    """Lay out the sweep that the command line and an experiment's hydra.sweeper.params ask for.

    data_digest reads the data of the first job, which are those of all where no key of the dataset is swept.

    Raises UserError if a swept key is given twice, if a setting of the whole sweep would differ between its jobs, if
    jobs have nothing to be judged by, if the chosen folder is taken, and if sweep.resume names no sweep, or one that
    was started with other settings or with values that are gone; and what Hydra raises if a swept group has no such
    option.
    """
    _require_folders_of_ours(typed)
    arguments = [override for override in parse(typed) if not override.key_or_group.startswith(OF_A_SWEEP)]
    # Hydra alone would combine a swept key of the experiment with the same key typed again, not replace it.
    replaced = {override.key_or_group for override in arguments}
    preset = cfg.hydra.sweeper.get("params") or {}
    arguments += parse([f"{key}={value}" for key, value in preset.items() if str(key).lstrip("+~") not in replaced])
    arguments = distinct(arguments)
    swept = [override for override in arguments if override.is_sweep_override()]
    chosen_options = _require_options(arguments, swept, cfg, typed)
    _require_one_sweep(chosen_options, cfg, typed)
    settings = sorted(
        line(override)
        for override in arguments
        if override not in swept and not override.key_or_group.startswith(("hydra", "wandb."))
    )
    keys = [override.get_key_element() for override in swept]
    is_search = cfg.hydra.sweeper.get("_target_") == SEARCH
    is_grid = cfg.hydra.sweeper.get("_target_") in (HYDRAS_GRID, GRID)
    if cfg.sweep.prune or not is_grid:
        sweeper = f"hydra/sweeper={cfg.hydra.runtime.choices['hydra/sweeper']}"
        judge = f"sweep.prune={cfg.sweep.prune}" if cfg.sweep.prune else sweeper
        _require_metric(judge, cfg, chosen_options, swept)
    together = list(cfg.sweep.zip)
    if together and is_search:
        raise UserError(f"sweep.zip=[{','.join(together)}]: is of a grid; a search chooses every value by itself.")
    require_together(together, swept)
    counts = [len(values_of(override)) for override in swept if override.get_key_element() not in together[1:]]
    jobs = cfg.hydra.sweeper.n_trials if is_search else math.prod(counts)
    subdir = NUMBER if is_search else job_folder(swept, cfg.hydra.runtime.choices)  # a search may try a value again

    of_keys = "-".join(key.rsplit(".", 1)[-1] for key in keys)
    label = re.sub(r"[^\w.-]", "-", str(cfg.sweep.name or of_keys or "sweep"))
    label = label.encode()[:LONGEST].decode(errors="ignore")  # file systems count bytes
    of_data = any(override.key_or_group.split(".")[0] in ("dataset", "experiment") for override in swept)
    chosen = _chosen_folder(cfg)
    folder = chosen or SWEEPS / f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}_{label}"
    name = str(cfg.sweep.name or folder.name)
    if cfg.sweep.resume is not None:
        folder, before = _to_resume(str(cfg.sweep.resume))
        name = before["name"]
        _require_no_links(folder)
        if chosen and chosen.resolve() != folder.resolve():
            raise UserError(f"{DIR}={chosen}: a sweep goes on in its own folder, {folder}; leave {DIR} out.")
        try:
            # What is no path of the data is compared first: other settings may mean other data, which are not read.
            grown = has_grown(before, settings, swept, together, same_data=True)
            if of_data or not has_same_data(before, data_digest):
                grown = has_grown(before, settings, swept, together, same_data=False)
            if grown:
                rename(folder, subdir, swept)
        except UserError as error:
            raise UserError(f"sweep.resume={cfg.sweep.resume}: {error}") from error
    elif chosen and (runs_below(chosen, SWEEP) or runs_below(chosen)):
        raise UserError(
            f"{DIR}={chosen}: a sweep or runs are there already. Choose a new folder, or go on with a sweep: "
            "sweep.resume=FOLDER"
        )
    elif chosen:
        _require_no_links(chosen)
    resume = "null" if cfg.sweep.resume is None else quoted(folder)
    kept = {key: cfg.sweep[key] for key in ("zip", "prune", "prune_after", "prune_factor", "metric")}
    overrides = [
        *(line(override) for override in arguments),
        *(f"sweep.{key}={as_typed(value)}" for key, value in kept.items()),
        f"sweep.name={quoted(name)}",
        f"sweep.over=[{','.join(keys)}]",
        f"sweep.jobs={jobs}",
        f"sweep.resume={resume}",
        f"{DIR}={quoted(folder)}",
        f"{SUBDIR}={quoted(subdir)}",
    ]
    overrides += ["hydra.sweeper.params=null"] if preset else []
    if cfg.hydra.sweeper.get("_target_") == HYDRAS_GRID:
        overrides.append(f"hydra.sweeper._target_={GRID}")
    single = ["hydra.mode=RUN"] if cfg.hydra.mode == RunMode.MULTIRUN else []
    values = [line(override) for override in swept]
    has_study = is_search or bool(cfg.sweep.prune)
    return Plan(
        name,
        keys,
        jobs,
        is_search,
        has_study,
        settings,
        values,
        folder,
        overrides,
        single,
        str(Path.cwd()),
        not of_data,
    )


def _require_options(
    arguments: list[Override], swept: list[Override], cfg: DictConfig, typed: list[str]
) -> list[tuple[Override, str, DictConfig]]:
    """Return each option of each swept group, with the configuration of a job that has it.

    Raises what Hydra raises if there is no such option: before the first job, not when its job starts.
    """
    first = first_job([line(override) for override in arguments])
    of_a_sweep = [line(override) for override in parse(typed) if override.key_or_group.startswith(OF_A_SWEEP)]
    found = []
    for i, override in enumerate(arguments):
        if override in swept and (override.key_or_group in cfg.hydra.runtime.choices or options(override.key_or_group)):
            for option in values_of(override):
                word = f"{override.get_key_element()}={option}"
                found.append((override, option, compose("config", [*of_a_sweep, *first[:i], word, *first[i + 1 :]])))
    return found


def _require_one_sweep(chosen: list[tuple[Override, str, DictConfig]], cfg: DictConfig, typed: list[str]) -> None:
    """Raise UserError if jobs would differ in their ranges, sweeper, launcher, folder or sweep.*."""
    for override in parse(typed):
        if override.is_sweep_override() and override.key_or_group.startswith((*OF_A_SWEEP, "hydra")):
            raise UserError(f"{line(override)}: is of the whole sweep, and takes one value.")
    of_first = _of_the_whole(cfg, typed)
    for override, option, other in chosen:
        now = _of_the_whole(other, typed)
        if keys := [key for key in dict.fromkeys([*of_first, *now]) if of_first.get(key) != now.get(key)]:
            key, named = override.key_or_group, ", ".join(keys[:4]) + (", ..." if len(keys) > 4 else "")
            raise UserError(
                f"{line(override)}: all jobs of a sweep share its ranges and how it is run, and {key}={option} has "
                f"others than the first option ({named}). Start a sweep for each, such as: vae-train -m {key}={option}"
            )


def _of_the_whole(cfg: DictConfig, typed: list[str]) -> dict[str, Any]:
    """Return the settings all jobs share, flat, without the ranges of typed keys, which replace them."""
    shared = {f"hydra.{name}": OmegaConf.to_container(cfg.hydra[name]) for name in OF_THE_WHOLE if cfg.hydra[name]}
    shared["sweep"] = OmegaConf.to_container(cfg.sweep)
    ranges = {f"hydra.sweeper.params.{override.key_or_group}" for override in parse(typed)}
    return {
        key: value
        for key, value in flatten(shared).items()
        if value not in (None, {}) and key.replace("params.+", "params.") not in ranges
    }


def _require_metric(
    by: str, cfg: DictConfig, chosen: list[tuple[Override, str, DictConfig]], swept: list[Override]
) -> None:
    """Raise UserError if some job of the sweep has no sweep.metric to be judged by."""
    sizes = [(f"dataset.val_size={cfg.dataset.val_size}", cfg.dataset.val_size)]
    for override, option, other in chosen:
        size = other.dataset.val_size
        sizes.append((f"{override.key_or_group}={option} has dataset.val_size={size}", size))
    for override in swept:
        if override.key_or_group == "dataset.val_size":
            sizes += [(line(override), parse([f"x={value}"])[0].value()) for value in values_of(override)]
    for why, size in sizes:
        if problems := check_metric(by, str(cfg.sweep.metric), size != 0, why):
            raise UserError(problems[0])


def _require_folders_of_ours(typed: list[str]) -> None:
    """Raise UserError if the folder of a job is set, since a sweep names those itself."""
    for override in parse(typed):
        if override.key_or_group == SUBDIR:
            raise UserError(
                f"{line(override)}: the folders of jobs are named by their values. {DIR}=FOLDER is the sweep's folder."
            )
        if override.key_or_group == "hydra.run.dir":
            raise UserError(f"{line(override)}: is of one run. The folder of a sweep is {DIR}=FOLDER.")


def _require_no_links(folder: Path) -> None:
    """Raise UserError if something below a sweep's folder is a link: Hydra itself opens the log of each job.

    W&B, which may be set to write there, makes links of its own, and Optuna's lock is one.
    """
    if folder.is_dir():
        theirs = ("wandb", f"{JOURNAL}.lock")
        require_no_links(folder, [each.name for each in folder.iterdir() if not each.name.startswith(theirs)])


def _chosen_folder(cfg: DictConfig) -> Path | None:
    """Return the folder that hydra.sweep.dir sets, on the command line or in a preset, or None if unset."""
    written = cast("dict[str, Any]", OmegaConf.to_container(cfg.hydra.sweep, resolve=False))
    if str(written["dir"]).startswith(HYDRAS_OWN_DIR + "${now"):
        return None
    return path_of(DIR, cfg.hydra.sweep.dir)


def _to_resume(path_or_latest: str) -> tuple[Path, dict]:
    """Return the folder and the record of the sweep to resume. Raises UserError if no sweep was started there."""
    if path_or_latest == "latest":
        found = runs_below(SWEEPS, SWEEP)
        if not found:
            raise UserError(f"sweep.resume=latest: there is no sweep in {SWEEPS}.")
        folder = found[0]
    else:
        folder = Path(path_or_latest)
    try:
        record = read_json(folder / SWEEP)
        if not TEXT.allows(record["name"]) or "${" in record["name"]:  # a name is no interpolation any more
            raise ValueError(record["name"])
        if "${" in str(folder):  # Hydra would look for what it refers to
            raise UserError(f"sweep.resume={path_or_latest}: a sweep's folder may have no ${{ in its name.")
        parse([*record["settings"], *record["values"]])
        before = {key: record[key] for key in ("name", "settings", "values")}
        of_place = {key: record.get(key) for key in ("cwd", "data")}
        if not all(isinstance(value, str | None) for value in of_place.values()):
            raise TypeError(of_place)
        return folder, before | of_place
    except (HydraException, *UNREADABLE) as error:
        raise UserError(f"sweep.resume={path_or_latest}: no sweep was started there (no readable {SWEEP}).") from error
