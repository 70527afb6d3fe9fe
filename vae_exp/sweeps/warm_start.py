"""Plan a sweep whose jobs begin with their neighbours' weights, as the fits of a regularisation path do.

z_dim falls along the lowest beta, and from each of its values beta rises (Friedman et al. 2010 go from strong to weak
penalties; here a latent that has collapsed comes back late, so the path goes the other way). Every job is a run like
any other, but for `init_from` and its few epochs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.override_parser.types import ChoiceSweep, Override, RangeSweep
from omegaconf import DictConfig, OmegaConf

from vae_exp.compare.runs import TRADING, Z_DIM
from vae_exp.config.checks import families, literal
from vae_exp.config.schema import Config, is_number
from vae_exp.errors import UserError
from vae_exp.sweeps.values import line
from vae_exp.training.run_dir import LAST, read_config

RISING = ("model.beta", "objective.beta")
WARMUPS = ("warmup_epochs", "warmup_steps", "warmup_fraction")  # of an objective: of a first job alone
NOT_SWEPT = ("epochs", "experiment", "init_from", *(f"objective.{key}" for key in WARMUPS))
SETTING = "sweep.warm_start=true"
SHARE, FALL = 8, 3


@dataclass(frozen=True)
class Job:
    """A job of a path: its swept values, the job that it starts from, and its epochs."""

    values: list[str]
    tree: tuple[str, ...]  # the values of all other swept keys
    depth: int  # in its tree: jobs of one depth do not depend on each other
    parent: int | None  # its number among the jobs; None: the first of its tree
    epochs: int
    has_warmup: list[str]  # of its objective

    def words(self, start: str | None) -> list[str]:
        """Return the overrides of the job, started from a checkpoint if it is given."""
        if start is None:
            return self.values
        return [*self.values, f"epochs={self.epochs}", f"init_from={literal(start)}", *self.has_warmup]


def plan_path(
    jobs: Sequence[list[str]], configs: Sequence[DictConfig], swept: Sequence[Override], config: Config
) -> list[Job]:
    """Return the jobs of a sweep as paths, parents first. configs are theirs, config is checked, of the first.

    Raises UserError if a sweep cannot be run so.
    """
    along = _key_along(swept, config)
    if any(Z_DIM in _keys(swept) and not cfg.model.stochastic for cfg in configs):
        raise UserError(f"{SETTING}: z_dim falls by the KL of each latent, and model.stochastic=false has none.")
    for posterior, prior in (families(cfg) for cfg in configs if Z_DIM in _keys(swept)):
        if posterior in ("full", "iaf") or prior in ("mixture", "vamp", "flow"):
            both = f"posterior={posterior} prior={prior}"
            raise UserError(f"{SETTING}: z_dim falls by the KL of each latent, and {both} has none. Sweep beta alone.")
    at: list[tuple[int, float]] = [(-cfg.model.z_dim, OmegaConf.select(cfg, along) if along else 0) for cfg in configs]
    z_dims, steps = sorted({z_dim for z_dim, _ in at}), list(dict.fromkeys(step for _, step in at))
    steps = sorted(steps) if along in RISING else steps
    cells: dict[tuple[int, int, tuple[str, ...]], int] = {}  # row, column, tree -> number of the job as it was given
    for i, (values, (z_dim, step)) in enumerate(zip(jobs, at, strict=True)):
        words = (word for word in values if word.partition("=")[0].lstrip("+") not in (Z_DIM, along))
        cells[z_dims.index(z_dim), steps.index(step), tuple(words)] = i
    order = sorted(cells, key=lambda cell: (cell[0] + cell[1], cells[cell[0], cell[1], cell[2]]))
    result = []
    for row, column, tree in order:
        i = cells[row, column, tree]
        parent = (row, column - 1, tree) if column else (row - 1, 0, tree) if row else None
        length = _epochs(config, column, len(steps) - 1) if parent is not None else config["epochs"]
        warmups = [f"objective.{key}=0" for key in WARMUPS if configs[i].objective.get(key)]
        number = None if parent is None else order.index(parent)
        result.append(Job(jobs[i], tree, row + column, number, length, warmups))
    return result


def _epochs(config: Config, step: int, n_steps: int) -> int:
    """Return the epochs of a job at a step along its path, counted from 1, or at 0, where z_dim falls.

    By default a step has an eighth of the first job's on average: half of that at first, where little changes, and half
    as much again at the end, where latents must go.
    """
    epochs, typed = config["epochs"], config["sweep"]["warm_epochs"]
    weight = (0.5 + (step - 1) / (n_steps - 1) if n_steps > 1 and typed is None else 1) if step else FALL
    return min(epochs, max(1, math.ceil((typed or epochs / SHARE) * weight - 0.5)))


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
            start = Path(str(config.get("init_from")))
            before = start.parent.name if start.name == LAST and start.parent.name in names else None
        elif before is None and job.tree in begun:
            way = "z_dim falls and beta rises from where the path began"
            raise UserError(f"{' '.join(job.values)}: {way}, and this lies before it. It takes a sweep of its own.")
        result.append(None if before is None else str(folder / before / LAST))
    return result


def _keys(swept: Sequence[Override]) -> list[str]:
    return [override.key_or_group for override in swept]


def _key_along(swept: Sequence[Override], config: Config) -> str:
    """Return the swept key whose values follow each other beside Z_DIM, or an empty text. Raises UserError."""
    keys, zipped = _keys(swept), config["sweep"]["zip"]
    numeric = [override.key_or_group for override in swept if _has_numbers(override)]
    rising = next((key for key in keys if key in RISING), "")
    along = rising or next((key for key in numeric if key.startswith(TRADING) and key not in NOT_SWEPT), "")
    if not along and Z_DIM not in keys:
        can = f"{Z_DIM}, model.beta, or a number of the objective or the likelihood"
        raise UserError(f"{SETTING}: jobs follow each other over {can}, and none of these is swept.")
    if bad := [line(override) for override in swept if override.key_or_group in NOT_SWEPT]:
        raise UserError(f"{SETTING} and {bad[0]}: this is of the first job of each path, and takes one value.")
    if bad := [line(o) for o in swept if o.key_or_group in (Z_DIM, along) and o.key_or_group not in numeric]:
        raise UserError(f"{SETTING} and {bad[0]}: jobs follow each other over a list of numbers.")
    if bad := [key for key in (Z_DIM, along) if key in zipped]:
        raise UserError(f"{SETTING} and sweep.zip=[{','.join(zipped)}]: {bad[0]} needs every combination.")
    if config["epochs"] == 0:
        raise UserError(f"{SETTING} and epochs=0: there is nothing to start from.")
    if (patience := config["early_stopping"]["patience"]) is not None:
        raise UserError(f"{SETTING} and early_stopping.patience={patience}: jobs of a path end after their few epochs.")
    if (prune := config["sweep"]["prune"]) is not None:
        why = "jobs of a path have unlike betas and few epochs, and cannot be judged by each other"
        raise UserError(f"{SETTING} and sweep.prune={prune}: {why}.")
    return along


def _has_numbers(override: Override) -> bool:
    """Return whether a swept key is given a list of numbers, or a range of them."""
    value = override.value()
    return isinstance(value, RangeSweep) or (isinstance(value, ChoiceSweep) and all(map(is_number, value.list)))
