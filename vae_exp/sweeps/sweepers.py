"""Hydra's sweepers of ours: a grid, and a search in which Optuna chooses the values of each job."""

import copy
import dataclasses
import functools
import itertools
import random
import traceback
import warnings
from abc import abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import IntervalSweep, Override, OverrideType
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, RunMode, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from vae_exp.compare.runs import CONFIRM, SEEDS
from vae_exp.config.checks import closest, quoted
from vae_exp.config.compose import IS_NEW, parse
from vae_exp.config.schema import Config
from vae_exp.errors import UserError
from vae_exp.files import write
from vae_exp.sweeps import jobs, study, summary, warm_start
from vae_exp.sweeps.plan import SEARCH, SUBDIR, Plan, first_job, has_one_dataset, overrides_of, plan
from vae_exp.sweeps.values import check_each, job_folders, job_names, line, values_of
from vae_exp.training.run_dir import MULTIRUN

if TYPE_CHECKING:
    import optuna

SAMPLERS = ("tpe", "gp", "cmaes", "qmc", "random")
MAX_COMPOSED = 20  # in a sweep over many options of groups, looking for one would take as long as composing
ON_THIS_MACHINE = ("basic", "joblib", "submitit_local")  # launchers
Batch = tuple[int, list[tuple[str, list[str]]]]  # the number of its first job, and each job's folder and values


def register() -> None:
    """Let Hydra know our sweepers: a grid under the name of its own, and a search."""
    plugins = Plugins.instance().class_name_to_class  # when Hydra has found them, it has the options they bring too
    plugins |= {ConfigStore.instance().load("hydra/sweeper/basic.yaml").node["_target_"]: Grid, SEARCH: Search}


def is_ours(target: str) -> bool:
    return Plugins.instance().class_name_to_class.get(target) in (Grid, Search)


@dataclasses.dataclass
class Composed:
    """A job's configuration as Hydra composed it, and the overrides that made it."""

    words: list[Override]
    cfg: DictConfig

    def with_values(self, words: list[Override]) -> DictConfig | None:
        """Return the configuration Hydra would make of other overrides, or None if more than values differ."""
        if [word.get_key_element() for word in words] != [word.get_key_element() for word in self.words]:
            return None
        changed = [new for new, old in zip(words, self.words, strict=True) if new.input_line != old.input_line]
        if not all(map(self._is_value, changed)):
            return None
        cfg = copy.deepcopy(self.cfg)
        for word in changed:
            OmegaConf.update(cfg, word.key_or_group, word.value())
        task = [word for word in words if not word.is_hydra_override()]
        hydras = [line(word) for word in words if word.is_hydra_override()]
        with read_write(cfg.hydra), open_dict(cfg.hydra):
            before = overrides_of(cfg, "hydra")
            cfg.hydra.overrides.hydra = [*before[: len(before) - len(hydras)], *hydras]
            cfg.hydra.overrides.task = list(map(line, task))
            if not IS_NEW:  # Hydra 1.4 looks it up when it is needed
                naming = cfg.hydra.job.config.override_dirname
                named = sorted(line(word) for word in task if word.key_or_group not in naming.exclude_keys)
                cfg.hydra.job.override_dirname = naming.item_sep.join(named).replace("=", naming.kv_sep)
        return cfg

    def _is_value(self, word: Override) -> bool:
        """Return whether a word sets one existing value: a group chooses files, and a dictionary is merged."""
        key = word.key_or_group
        if key == SUBDIR:
            return True
        is_group = key in self.cfg.hydra.runtime.choices
        if word.type != OverrideType.CHANGE or word.package or word.is_hydra_override() or is_group:
            return False
        before = OmegaConf.select(self.cfg, key, default=None, throw_on_resolution_failure=False)
        return not isinstance(before, DictConfig) and not isinstance(word.value(), dict)


class JobConfigs:
    """Stand in for Hydra's loader, but compose jobs that differ only in values once: it takes 80 to 100 ms."""

    def __init__(self, loader: ConfigLoader) -> None:
        self.loader, self.composed = loader, list[Composed]()

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        words = parse(sweep_overrides)
        for composed in self.composed:
            if (cfg := composed.with_values(words)) is not None:
                return cfg
        # Hydra 1.4's own refuses an option that has another sweeper, also where what is typed replaces its values.
        name, overrides = master_config.hydra.job.config_name, overrides_of(master_config, "hydra")
        cfg = self.loader.load_configuration(name, [*overrides, *sweep_overrides], RunMode.RUN)
        OmegaConf.copy_cache(master_config, cfg)
        if len(self.composed) < MAX_COMPOSED:
            self.composed.append(Composed(words, copy.deepcopy(cfg)))
        return cfg


class PlannedSweeper(Sweeper):
    """Plan and check a sweep, hand its jobs to the launcher, and print its table."""

    plan: Plan

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.configs = JobConfigs(hydra_context.config_loader)
        self.context = dataclasses.replace(hydra_context, config_loader=cast("ConfigLoader", self.configs))
        self.task_function, self.master = task_function, config

    def sweep(self, arguments: list[str]) -> None:
        """Run all jobs, or those that are missing. Raises UserError before a job starts, or SystemExit at the end."""
        config = self._plan(arguments)
        launcher, n_jobs = self._launcher_name(), self.master.hydra.launcher.get("n_jobs")
        jobs.start(self.plan)
        with read_write(self.master.hydra):
            self.master.hydra.sweep.dir = str(self.plan.folder)
        write(self.plan.folder / MULTIRUN, OmegaConf.to_yaml(self.master))
        stopped, error = 0, None
        try:
            with jobs.report_jobs(self.plan, launcher, n_jobs):
                self._launch()
        except KeyboardInterrupt:
            stopped = 130
        except SystemExit as stop:
            stopped = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except Exception as raised:  # a launcher's: what was done until then is still printed
            error = raised
        code = summary.finish(self.plan, config["wandb"], stopped=bool(stopped))
        if error is not None and code:
            log = self.plan.folder / "error.log"
            write(log, "".join(traceback.format_exception(error)))
            raise UserError(f"the sweep ended early: {error}\nThe traceback is in {log}") from error
        if code and not stopped and not IS_NEW:  # Hydra 1.3 calls them only after a sweep that returns
            self.context.callbacks.on_multirun_end(config=self.master, config_name=self.master.hydra.job.config_name)
        if stopped or code:
            raise SystemExit(stopped or code)

    def _plan(self, arguments: list[str]) -> Config:
        """Plan and check the sweep, and return the configuration of its first job."""
        overrides = parse([*overrides_of(self.master, "hydra"), *arguments])
        cfg = self._compose(first_job(arguments))
        jobs.require_one_process(cfg, overrides)
        if cfg.resume is not None:
            raise UserError(f"resume={cfg.resume}: is of one run. A sweep resumes with sweep.resume={cfg.resume}.")
        config = jobs.check(cfg, several_runs=True)

        @functools.cache  # so that jobs side by side do not all download it; kept for those of this process
        def data_digest() -> str | None:
            if self._launcher_name() not in ON_THIS_MACHINE:
                return None
            from vae_exp.config import build

            fingerprint = build.dataset(config).fingerprint
            return None if fingerprint is None else fingerprint.digest()

        self.plan = plan(overrides, cfg, self._compose, data_digest)
        check_each(self.plan.swept, config)
        self.prepare(cfg, config)
        jobs.check_init_from(config)
        # Read last: what else may be refused needs no data.
        self.plan.data = data_digest() if has_one_dataset(self.plan.swept) else None
        return config

    def _compose(self, overrides: list[str]) -> DictConfig:
        return self.configs.load_sweep_config(self.master, overrides)

    def _words(self, name: str, values: list[str]) -> list[str]:
        return [*self.plan.overrides, *values, f"{SUBDIR}={quoted(name)}"]

    def _launcher_name(self) -> str:
        return self.master.hydra.runtime.choices["hydra/launcher"]

    def _launch(self) -> None:
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=self.context, task_function=self.task_function, config=self.master
        )
        for first, batch in self.batches():
            for job in launcher.launch(list(itertools.starmap(self._words, batch)), initial_job_idx=first):
                _ = job.return_value  # a run that fails does not raise

    @abstractmethod
    def prepare(self, cfg: DictConfig, config: Config) -> None:
        """Check what is this sweeper's own, of the first job's configuration. Raises UserError."""

    @abstractmethod
    def batches(self) -> Iterator[Batch]:
        """Yield the batches of jobs that run at the same time."""


class Grid(PlannedSweeper):
    """Run every combination of the swept values, where keys of sweep.zip take theirs together.

    If losing jobs end early, the order is random, by seed: the first to be judged should not all have one value. Jobs
    that start from others' weights run when those are done; at the end the best are trained from nothing too.
    """

    def __init__(self, max_batch_size: int | None = None, params: DictConfig | None = None) -> None:
        self.max_batch_size = max_batch_size

    def prepare(self, cfg: DictConfig, config: Config) -> None:
        if cfg.sweep.prune:
            study.require_optuna(f"sweep.prune={cfg.sweep.prune}")
        values = self._combinations(list(cfg.sweep.zip))
        self.warm: dict[str, list[str]] = {}  # jobs that start from others, by their folders: the swept values
        self.confirm = 0
        try:
            if cfg.sweep.warm_start:
                self._prepare_path(cfg, config, values)
                return
            if cfg.sweep.prune:
                random.Random(cfg.seed).shuffle(values)
            self.waves = [list(zip(self._folders(cfg, values), values, strict=True))]
        except UserError as error:
            if cfg.sweep.resume is None:
                raise
            raise UserError(f"sweep.resume={cfg.sweep.resume}: {error}") from error

    def _prepare_path(self, cfg: DictConfig, config: Config, values: list[list[str]]) -> None:
        """Let jobs start from others. Raises UserError if they cannot."""
        configs = [self._compose(self._words("0", job)) for job in values]
        path = warm_start.plan_path(values, configs, self.plan.swept, config)
        names = self._folders(cfg, [job.values for job in path])
        waves: dict[int, list[tuple[str, list[str]]]] = {}
        for job, name, start in zip(path, names, warm_start.starts(path, names, self.plan.folder), strict=True):
            waves.setdefault(job.depth, []).append((name, job.words(start)))
            if start is not None:
                self.warm[name] = job.values
        self.waves = [*waves.values()]
        self.confirm = config["sweep"]["confirm"]
        if self.confirm and self.warm:
            settings = {tuple(word for word in job if not word.startswith(SEEDS)) for job in self.warm.values()}
            self.plan.add_jobs(min(self.confirm, len(settings)) * len(self.warm) // len(settings))

    def _folders(self, cfg: DictConfig, values: list[list[str]]) -> list[str]:
        """Return the name of each job's folder. Raises UserError if the sweep that goes on has other jobs."""
        names = job_names(values)
        if cfg.sweep.resume is not None:
            configs = (self._compose(self._words(*job)) for job in zip(names, values, strict=True))
            names = job_folders(self.plan.folder, self.plan.swept, values, configs)
        self.plan.names = [*names]
        return names

    def _combinations(self, zipped: list[str]) -> list[list[str]]:
        values = [[f"{key.get_key_element()}={value}" for value in values_of(key)] for key in self.plan.swept]
        is_zipped = [key in zipped for key in self.plan.keys]
        return [
            [options[i] for options, i in zip(values, indices, strict=True)]
            for indices in itertools.product(*(range(len(options)) for options in values))
            if len({i for i, zipped_too in zip(indices, is_zipped, strict=True) if zipped_too}) < 2
        ]

    def batches(self) -> Iterator[Batch]:
        first = 0
        for wave in self.waves:
            size = self.max_batch_size or len(wave)
            for start in range(0, len(wave), size):
                yield first + start, wave[start : start + size]
            first += len(wave)
        if best := summary.best_of(self.plan.folder, self.warm, self.confirm):
            confirmed = [
                (f"{CONFIRM}/{name}", [*self.warm[name], "sweep.confirm=1", "init_from=null"]) for name in best
            ]
            self.plan.names += [name for name, _ in confirmed]
            yield first, confirmed


class Search(PlannedSweeper):
    """Ask Optuna for values, hand the jobs to the launcher, and go on until there are n_trials.

    The jobs tell the study how they ended. A trial that was running at a kill is run again under its number.
    """

    def __init__(
        self, sampler: str, n_trials: int, n_jobs: int | None, seed: int, params: DictConfig | None = None
    ) -> None:
        self.sampler, self.n_trials, self.n_jobs, self.seed = sampler, n_trials, n_jobs, seed

    def prepare(self, cfg: DictConfig, config: Config) -> None:
        study.require_optuna("hydra/sweeper=optuna")
        for name, value in (("n_trials", self.n_trials), ("n_jobs", 1 if self.n_jobs is None else self.n_jobs)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UserError(f"hydra.sweeper.{name}={value}: it takes a whole number, 1 or more.")
        if self.sampler not in SAMPLERS:
            hint = closest(str(self.sampler), SAMPLERS)
            raise UserError(f"hydra.sweeper.sampler={self.sampler}: it takes one of {', '.join(SAMPLERS)}.{hint}")
        self.space = {override.get_key_element(): _distribution(override) for override in self.plan.swept}

    def batches(self) -> Iterator[Batch]:
        from optuna.trial import TrialState

        at_once = self.n_jobs or jobs.parallel_jobs(self.master.hydra)
        trials = study.load(self.plan.folder)
        running = [trial for trial in trials.get_trials(deepcopy=False) if not trial.state.is_finished()]
        for trial in [trial for trial in running if not _is_in(self.space, trial.params)]:  # killed while it was chosen
            trials.tell(trial.number, state=TrialState.FAIL)
            running.remove(trial)
        # The launcher counts jobs from the first: only neighbours can be handed to it together.
        for _, numbered in itertools.groupby(enumerate(running), lambda pair: pair[1].number - pair[0]):
            neighbours = [trial for _, trial in numbered]
            for i in range(0, len(neighbours), at_once):
                yield _batch(neighbours[i].number, [trial.params for trial in neighbours[i : i + at_once]])
        while (count := len(trials.get_trials(deepcopy=False))) < self.n_trials:
            params = []
            for number in range(count, min(count + at_once, self.n_trials)):
                trials.sampler = _sampler(self.sampler, self.seed, number)
                params.append(trials.ask(self.space).params)
            yield _batch(count, params)


def _batch(first: int, params: list[dict[str, Any]]) -> Batch:
    """Return the jobs of a batch in folders called by their numbers: a search may try a value again."""
    values = [[f"{key}={value}" for key, value in job.items()] for job in params]
    return first, [(str(first + i), job) for i, job in enumerate(values)]


def _is_in(space: dict[str, Any], params: dict[str, Any]) -> bool:
    """Return whether these are the swept keys, each with one of its values: a journal may be another sweep's."""

    def allows(key: str, value: Any) -> bool:
        if choices := getattr(space[key], "choices", None):
            return value in choices
        return isinstance(value, int | float) and space[key].low <= value <= space[key].high

    return params.keys() == space.keys() and all(allows(key, value) for key, value in params.items())


def _sampler(name: str, seed: int, number: int) -> "optuna.samplers.BaseSampler":
    """Return Optuna's sampler for a trial's number. It is not stored: its state follows from the trials before."""
    from optuna import exceptions, samplers

    warnings.simplefilter("ignore", exceptions.ExperimentalWarning)
    if name == "qmc":  # one sequence, of which each trial takes the next point
        return samplers.QMCSampler(seed=seed, scramble=True, warn_asynchronous_seeding=False)
    by_name = {"tpe": "TPESampler", "gp": "GPSampler", "cmaes": "CmaEsSampler", "random": "RandomSampler"}
    return getattr(samplers, by_name[name])(seed=(seed + 1_000_003 * number) % 2**32)


def _distribution(override: Override) -> "optuna.distributions.BaseDistribution":
    """Return a swept key's values as an Optuna distribution: an interval, or a choice among words as typed."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value = override.value()
    if not isinstance(value, IntervalSweep):
        return CategoricalDistribution(values_of(override))
    start, end, is_log = value.start, value.end, "log" in value.tags
    try:
        if isinstance(start, int) and isinstance(end, int):
            return IntDistribution(start, end, log=is_log)
        return FloatDistribution(float(start or 0.0), float(end or 0.0), log=is_log)
    except (ValueError, TypeError) as error:
        raise UserError(f"{override.input_line}: no interval to search in ({error})") from error
