"""A sweep that goes on with more values than before: what it has must stay, and its jobs keep their folders."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vae_exp.config.check import as_typed, flatten, options
from vae_exp.config.messages import parse
from vae_exp.errors import UserError
from vae_exp.run.folder import UNREADABLE, read_config, runs_below
from vae_exp.sweep.values import NUMBER, texts


def require_grown(before: Mapping[str, Any], settings: list[str], swept: list[Override], together: list[str]) -> bool:
    """Whether a sweep that was recorded as `before` is now asked for more: more values of a key, or a key more.

    Keys that go together, those of sweep.zip, must have the values that they had.

    Raises UserError where the settings are others, or where a value is gone.
    """
    values = [str(override.input_line) for override in swept]
    if before["settings"] == settings and before["values"] == values:
        return False
    now = {override.key_or_group: override for override in swept}
    old_values = {override.key_or_group: override for override in parse(before["values"])}
    # A key that is swept from now on was a setting, or stood at its default.
    old_settings = [word for word in before["settings"] if parse([word])[0].key_or_group not in now.keys() - old_values]
    kept = all(
        key in now and _has_all(now[key], old) and (key not in together or now[key].input_line == old.input_line)
        for key, old in old_values.items()
    )
    if old_settings != settings or not kept:
        was, typed = (
            " ".join(before["settings"] + before["values"]),
            " ".join(settings + values),
        )
        raise UserError(
            f"the sweep was started with {was}, and not with {typed}. A sweep that goes on keeps its settings and its "
            "values; it may have more values, and more swept keys."
        )
    return True


def _has_all(now: Override, old: Override) -> bool:
    if not now.is_sweep_override() or isinstance(now.value(), IntervalSweep) or isinstance(old.value(), IntervalSweep):
        return now.input_line == old.input_line
    return set(texts(old)) <= set(texts(now))


def rename(folder: Path, template: str, swept: list[Override]) -> None:
    """Give the jobs of a sweep the names that they have in the larger one. A kill in between does no harm.

    Raises UserError where jobs have numbers for names, which would be others' then, or where the value of a key that
    is swept from now on is not among its values: the old jobs would be none of the new ones.
    """
    moves = {old: new for old, new in _moves(folder, template, swept) if old != new}
    if template == NUMBER or any(new.exists() for new in moves.values()):
        raise UserError("its jobs are told apart by numbers, so more values would mix them up: start a new sweep.")
    for old, new in moves.items():
        old.rename(new)


def _moves(folder: Path, template: str, swept: list[Override]) -> Iterator[tuple[Path, Path]]:
    for job in runs_below(folder):
        config = read_config(job)
        if config is None:
            continue
        flat = flatten(config)
        for override in swept:
            key = override.key_or_group
            if not options(key) and key in flat and as_typed(flat[key]) not in _values(override):
                raise UserError(f"its jobs have {key}={as_typed(flat[key])}, which is not among {override.input_line}.")
        try:
            of_hydra = OmegaConf.load(job / ".hydra" / "hydra.yaml")
            named = OmegaConf.merge(of_hydra, config, {"name_of_the_job": template})
            yield job, folder / str(OmegaConf.select(named, "name_of_the_job"))
        except (OmegaConfBaseException, *UNREADABLE):
            yield job, job


def _values(override: Override) -> set[str]:
    return {as_typed(value) for value in (parse([f"x={text}"])[0].value() for text in texts(override).values())}
