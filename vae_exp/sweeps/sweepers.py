"""Hydra sweepers for the jobs of a sweep: a grid, with two things more than Hydra's own, and a base for a search."""

import itertools
import random
from collections.abc import Iterator
from pathlib import Path

from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from vae_exp.config.messages import parse
from vae_exp.errors import UserError
from vae_exp.files import write
from vae_exp.sweeps.values import values_of
from vae_exp.training.folder import MULTIRUN

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
