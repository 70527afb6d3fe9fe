"""Plan a sweep whose jobs begin with their neighbours' weights, as the fits of a regularisation path do.

z_dim falls along the lowest beta, and from each of its values beta rises (Friedman et al. 2010 go from strong to weak
penalties; here a latent that has collapsed comes back late, so the path goes the other way). Every job is a run like
any other, but for `init_from` and its few epochs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override

from vae_exp.config.checks import literal
from vae_exp.config.compose import parse
from vae_exp.config.schema import Config, is_number
from vae_exp.errors import UserError
from vae_exp.sweeps.values import line
from vae_exp.training.run_dir import LAST, read_config

Z_DIM = "model.z_dim"
RISING = ("model.beta", "objective.beta")
ALONG = ("objective.", "likelihood.")  # groups with numbers that change no shape
WARMUPS = ("warmup_epochs", "warmup_steps", "warmup_fraction")  # of an objective: of a first run alone
SHARE, FALL = 8, 3  # of the first job's epochs, a further one has an eighth, and thrice that where z_dim falls


@dataclass(frozen=True)
class Job:
    """A job of a path: its swept values, and the job that it starts from, with what is not of its settings."""

    values: list[str]
    tree: tuple[str, ...]  # the values of all other swept keys
    depth: int  # in its tree: jobs of one depth do not depend on each other
    parent: int | None  # its number among the jobs; None: it is trained from nothing
    epochs: int

    def words(self, start: str | None, objective: Mapping[str, Any]) -> list[str]:
        """Return the overrides of the job, started from a checkpoint if it is given."""
        if start is None:
            return self.values
        warmups = [f"objective.{key}=0" for key in WARMUPS if objective.get(key)]
        return [*self.values, f"epochs={self.epochs}", f"init_from={literal(start)}", *warmups]


def plan_path(jobs: list[list[str]], swept: Sequence[Override], config: Config) -> list[Job]:
    """Return the jobs of a sweep as paths, parents first. Raises UserError if a sweep cannot be run so."""
    along = _key_of_the_path(swept, config)
    epochs, further = config["epochs"], config["sweep"]["warm_epochs"]
    further = further or max(1, round(epochs / SHARE))
    trees: dict[tuple[str, ...], dict[tuple[int, int], list[str]]] = {}
    z_dims = sorted({_number(job, Z_DIM) for job in jobs}, reverse=True)
    typed = list(dict.fromkeys(_number(job, along) for job in jobs))
    steps = sorted(typed) if along in RISING else typed
    for job in jobs:
        others = tuple(word for word in job if word.partition("=")[0] not in (Z_DIM, along))
        position = z_dims.index(_number(job, Z_DIM)), steps.index(_number(job, along))
        trees.setdefault(others, {})[position] = job
    placed: list[tuple[int, tuple[str, ...], tuple[int, int]]] = [
        (sum(position), others, position) for others, tree in trees.items() for position in sorted(tree)
    ]
    placed.sort(key=lambda job: job[0])  # stable: trees and positions keep their order within a depth
    index = {(others, position): i for i, (_, others, position) in enumerate(placed)}
    result = []
    for depth, others, (row, column) in placed:
        parent = (row, column - 1) if column else (row - 1, 0) if row else None
        length = epochs if parent is None else further if column else FALL * further
        number = None if parent is None else index[others, parent]
        result.append(Job(trees[others][row, column], others, depth, number, length))
    return result


def starts(jobs: Sequence[Job], names: Sequence[str], folder: Path) -> list[str | None]:
    """Return the checkpoint that each job starts from, by the names of the jobs' folders.

    Jobs that are there already keep what they started from, so that a sweep that grows adds leaves. Raises UserError
    for a new job before the first one of its path.
    """
    stored = [read_config(folder / name) for name in names]
    begun = {job.tree for job, config in zip(jobs, stored, strict=True) if config is not None}
    result: list[str | None] = []
    for job, config in zip(jobs, stored, strict=True):
        before = names[job.parent] if job.parent is not None else None
        if config is not None:
            before = Path(str(config["init_from"])).parent.name if config.get("init_from") else None
        elif before is None and job.tree in begun:
            way = "z_dim falls and beta rises from where the path began"
            raise UserError(f"{' '.join(job.values)}: {way}, and this lies before it. It takes a sweep of its own.")
        result.append(None if before is None else str(folder / before / LAST))
    return result


def _key_of_the_path(swept: Sequence[Override], config: Config) -> str:
    """Return the swept key whose values follow each other beside Z_DIM, or an empty text. Raises UserError."""
    keys = [override.get_key_element() for override in swept]
    setting = "sweep.warm_start=true"
    zipped = config["sweep"]["zip"]
    values = {override.get_key_element(): [*override.sweep_iterator()] for override in swept}
    numeric = [key for key in keys if key.startswith(ALONG) and all(map(is_number, values[key]))]
    along = next((key for key in keys if key in RISING), None) or next(iter(numeric), None)
    if along is None and Z_DIM not in keys:
        can = f"{Z_DIM}, model.beta, or a number of the objective or the likelihood"
        raise UserError(f"{setting}: jobs follow each other over {can}, and none of these is swept.")
    if bad := [key for key in (Z_DIM, along) if key in zipped]:
        raise UserError(f"{setting} and sweep.zip=[{','.join(zipped)}]: {bad[0]} needs every combination.")
    if bad := [line(override) for override in swept if override.key_or_group in ("epochs", "experiment", "init_from")]:
        raise UserError(
            f"{setting}: all jobs share their epochs and where they begin; {bad[0]} cannot be swept with it."
        )
    if along in RISING and (bad := [str(value) for value in values[along] if not is_number(value)]):
        raise UserError(f"{setting}: {along} rises, and {bad[0]} is no number.")
    if Z_DIM in keys and not config["model"]["stochastic"]:
        raise UserError(f"{setting}: z_dim falls by the KL of each latent, and model.stochastic=false has none.")
    if config["epochs"] == 0:
        raise UserError(f"{setting} and epochs=0: there is nothing to start from.")
    return along or ""


def _number(job: list[str], key: str) -> Any:
    """Return the value of a key in a job, 0 if it is not swept."""
    for word in parse(job):
        if word.get_key_element() == key:
            return word.value()
    return 0
