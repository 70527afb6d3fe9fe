"""A search in place of a grid: Optuna chooses the values of each job from those of the jobs before it."""

import itertools
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import IntervalSweep, Override
from omegaconf import DictConfig

from vae_exp.config.checks import closest
from vae_exp.config.compose import parse
from vae_exp.errors import UserError
from vae_exp.sweeps import jobs
from vae_exp.sweeps import study as studies
from vae_exp.sweeps.plan import Batch, SweepsJobs
from vae_exp.sweeps.values import values_of

if TYPE_CHECKING:
    import optuna

SAMPLERS = ("tpe", "gp", "cmaes", "qmc", "random")


def check(cfg: DictConfig, values: list[str]) -> None:
    """Raise UserError for what a search cannot do. cfg has hydra.sweeper, and values are the swept overrides."""
    studies.require_optuna("hydra/sweeper=optuna")
    keys = cfg.hydra.sweeper
    for name in ("n_trials", "n_jobs"):
        value = keys[name]
        is_count = isinstance(value, int) and not isinstance(value, bool) and value > 0
        if not is_count and not (value is None and name == "n_jobs"):
            raise UserError(f"hydra.sweeper.{name}={value}: it takes a whole number, 1 or more.")
    if keys.sampler not in SAMPLERS:
        hint = closest(str(keys.sampler), SAMPLERS)
        raise UserError(f"hydra.sweeper.sampler={keys.sampler}: it takes one of {', '.join(SAMPLERS)}.{hint}")
    for override in parse(values):
        distribution(override)


class Search(SweepsJobs):
    """Hydra's sweeper: asks Optuna for values, hands the jobs to the launcher, and goes on until there are n_trials.

    The jobs themselves tell the study how they ended, so that whatever is killed, the study knows what is done. A
    trial that was running then is run again under its number: its job goes on from its checkpoint.
    """

    def __init__(
        self, sampler: str, n_trials: int, n_jobs: int | None, seed: int, params: DictConfig | None = None
    ) -> None:
        self.sampler, self.n_trials, self.n_jobs, self.seed = sampler, n_trials, n_jobs, seed

    def batches(self, swept: list[Override]) -> Iterator[Batch]:
        from optuna.trial import TrialState

        space = {override.get_key_element(): distribution(override) for override in swept}
        at_once = self.n_jobs or jobs.places(self.asked.hydra)
        study = studies.load(self.folder)
        running = [trial for trial in study.get_trials(deepcopy=False) if not trial.state.is_finished()]
        for trial in [trial for trial in running if not _is_in(space, trial.params)]:  # killed while it was chosen
            study.tell(trial.number, state=TrialState.FAIL)
            running.remove(trial)
        # The launcher counts jobs from the first: only neighbours can be handed to it together.
        for _, alike in itertools.groupby(enumerate(running), lambda each: each[1].number - each[0]):
            trials = [trial for _, trial in alike]
            for i in range(0, len(trials), at_once):
                yield trials[i].number, [_typed(trial.params) for trial in trials[i : i + at_once]]
        while (begun := len(study.get_trials(deepcopy=False))) < self.n_trials:
            chosen = []
            for number in range(begun, min(begun + at_once, self.n_trials)):
                study.sampler = sampler(self.sampler, self.seed, number)
                chosen.append(_typed(study.ask(space).params))
            yield begun, chosen


def _is_in(space: dict[str, Any], params: dict[str, Any]) -> bool:
    """Return whether these are the swept keys, each with one of its values: a journal may be another sweep's."""

    def has(key: str, value: Any) -> bool:
        if choices := getattr(space[key], "choices", None):
            return value in choices
        return isinstance(value, int | float) and space[key].low <= value <= space[key].high

    return params.keys() == space.keys() and all(has(key, value) for key, value in params.items())


def _typed(values: dict[str, Any]) -> list[str]:
    return [f"{key}={value}" for key, value in values.items()]


def sampler(name: str, seed: int, number: int) -> "optuna.samplers.BaseSampler":
    """Return Optuna's sampler for a trial's number. It is not stored: its state follows from the trials before."""
    from optuna import exceptions, samplers

    warnings.simplefilter("ignore", exceptions.ExperimentalWarning)
    if name == "qmc":  # one sequence, of which each trial takes the next point
        return samplers.QMCSampler(seed=seed, scramble=True, warn_asynchronous_seeding=False)
    made = {
        "tpe": samplers.TPESampler,
        "gp": samplers.GPSampler,
        "cmaes": samplers.CmaEsSampler,
        "random": samplers.RandomSampler,
    }[name]
    return made(seed=(seed + 1_000_003 * number) % 2**32)


def distribution(override: Override) -> "optuna.distributions.BaseDistribution":
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
