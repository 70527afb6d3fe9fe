"""Read a sweep's values, and match them with those of an earlier sweep."""

import contextlib
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Glob, IntervalSweep, Override, QuotedString
from omegaconf import DictConfig

from vae_exp.config import checks
from vae_exp.config.checks import as_typed, options, quoted, resolve
from vae_exp.config.compose import parse, without_hydra
from vae_exp.errors import UserError
from vae_exp.training.run_dir import read_choices, read_config, runs_below


def line(override: Override) -> str:
    return str(override.input_line)


def values_of(override: Override) -> list[str]:
    """Return the values of a sweep, as they would be typed; of an interval only its start."""
    value = override.value()
    if isinstance(value, IntervalSweep):
        return [str(value.start)]
    if isinstance(value, Glob):
        values = value.filter(options(override.key_or_group))
    else:
        try:
            values = list(override.sweep_string_iterator())
        except (ValueError, TypeError) as error:  # such as a range with a step of 0
            raise UserError(f"{override.input_line}: {error}.") from error
    if not values:
        raise UserError(f"{override.input_line}: there is no value in it to run.")
    return values


def distinct(arguments: list[Override]) -> list[Override]:
    """Return the arguments with each value of a sweep once. Raises UserError if a swept key is typed twice."""
    counts = Counter(override.key_or_group for override in arguments)
    result = []
    for override in arguments:
        if override.is_sweep_override() and counts[override.key_or_group] > 1:
            lines = " and ".join(line(o) for o in arguments if o.key_or_group == override.key_or_group)
            raise UserError(f"{override.key_or_group}: is there twice, as {lines}. A sweep takes each key once.")
        if override.is_sweep_override() and not isinstance(override.value(), IntervalSweep | Glob):
            once = texts(override)
            if len(once) < len(values_of(override)):
                override = parse([f"{override.get_key_element()}={','.join(once.values())}"])[0]
        result.append(override)
    return result


def texts(override: Override) -> dict[str, str]:
    """Return the values of a sweep as first typed, keyed by a text that is the same for the same value."""
    result: dict[str, str] = {}
    for value, text in zip(override.sweep_iterator(), override.sweep_string_iterator(), strict=True):
        result.setdefault(_canonical(value), text)
    return result


def _canonical(value: Any) -> str:
    """Return one text per value, however it was typed: 1, 1.0 and '1'; 1e-3 and 0.001; true and True."""
    if isinstance(value, list):
        return f"[{','.join(map(_canonical, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(sorted(f'{key}:{_canonical(inner)}' for key, inner in value.items()))}}}"
    is_quoted = isinstance(value, QuotedString)  # text, such as a class +1 beside a class 1
    text = value.text if is_quoted else "null" if value is None else str(value)
    if text.lower() in ("null", "true", "false"):
        return text.lower()
    with contextlib.suppress(ValueError):
        if not is_quoted and abs(number := float(text)) < 1e15:
            return str(int(number) if number.is_integer() else number)
    return text


PATHS = [f"dataset.{key}" for key in checks.DATA_PATHS]
MAX_NAME = 120  # characters of a folder's name; file systems allow 255


def check_each(swept: list[Override], config: Mapping[str, Any]) -> None:
    """Raise UserError if a swept value is not allowed by itself, whatever the others are. config is of one job."""
    rules, problems = checks.rules_for(checks.flatten(config, checks.LEAVES)), []
    for override in swept:
        key, values = override.key_or_group, override.value()
        if key in rules:
            ends = [str(values.end)] if isinstance(values, IntervalSweep) else []
            read = [parse([f"x={text}"])[0].value() for text in [*values_of(override), *ends]]
            known = [value for value in read if not (isinstance(value, str) and "${" in value)]
            problems += [line for value in known for line in checks.check_values({key: value}, {key: rules[key]})]
    if problems:
        raise UserError("\n".join(problems))


def job_names(jobs: list[list[str]]) -> list[str]:
    """Return a folder name for each job, such as z_dim-10_lr-0.001, or numbers where those are long or not distinct."""
    words = [parse(job) for job in jobs]
    last = Counter(word.key_or_group.rsplit(".", 1)[-1] for word in words[0])

    def name_of(word: Override) -> str:
        key = word.key_or_group.rsplit(".", 1)[-1]
        return f"{key if last[key] == 1 else word.key_or_group}-{word.value()}"

    names = ["_".join(map(name_of, job)) for job in words]
    are_plain = all(re.fullmatch(r"[\w.+-]+", name) and len(name) <= MAX_NAME for name in names)
    are_distinct = len({name.lower() for name in names}) == len(names)  # some file systems take A and a for one name
    return names if are_plain and are_distinct else [str(number) for number in range(len(jobs))]


def job_folders(folder: Path, swept: list[Override], jobs: list[list[str]], configs: Iterable[DictConfig]) -> list[str]:
    """Return the name of each job's folder in a sweep that goes on: where its run lies by its values, or a new one.

    Raises UserError if a run there is none of the jobs, whose configurations are configs.
    """
    keys = [override.key_or_group for override in swept]
    runs = {}
    for run in runs_below(folder):
        config = read_config(run)
        if config is not None and run.parent == folder:  # a run inside a job's folder is a part of it
            runs[_values(config, read_choices(run), keys)] = run.name
    values = [_values_of_job(cfg, keys) for cfg in configs]
    names: list[str | None] = [runs.pop(job, None) for job in values]
    unmatched, numbers = {name: job for job, name in runs.items()}, map(str, itertools.count(len(jobs)))
    for i, name in enumerate(job_names(jobs)):
        if names[i] is None:
            unmatched.pop(name, None)  # its values could not be read
            names[i] = name if name not in names else next(n for n in numbers if not (folder / n).exists())
    for name, job in unmatched.items():
        for override, value, others in zip(swept, job, zip(*values, strict=True), strict=True):
            if value not in others:
                raise UserError(f"its jobs have {override.key_or_group}={value}, which is not among {line(override)}.")
        raise UserError(f"its job {name} is none of the jobs of {' '.join(map(line, swept))}.")
    return [str(name) for name in names]


def _values(config: Mapping[str, Any], choices: Mapping[str, str], keys: list[str]) -> tuple[str, ...]:
    """Return the values of a run's keys as they would be typed, paths of data absolute."""
    values = []
    for key in keys:
        value: Any = config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        text = checks.absolute(value) if key in PATHS and isinstance(value, str) else as_typed(value)
        values.append(str(choices[key]) if key in choices else text)
    return tuple(values)


def _values_of_job(cfg: DictConfig, keys: list[str]) -> tuple[str, ...]:
    try:
        return _values(resolve(without_hydra(cfg)), cfg.hydra.runtime.choices, keys)
    except UserError:  # an interpolation that leads nowhere: the job's own checks complain of that
        return ("?",) * len(keys)


def has_same_data(before: Mapping[str, Any], data_digest: Callable[[], str | None]) -> bool:
    """Return whether the data are known to be the sweep's, wherever they are; raise UserError for other data."""
    if before["data"] is None or (now := data_digest()) is None:
        return False
    if now != before["data"]:
        advice = "Bring them back as they were, say where they are with dataset.root=PATH, or start a new sweep"
        raise UserError(f"the data have changed since the sweep began, so its jobs would not compare. {advice}.")
    return True


def require_same(before: Mapping[str, Any], settings: list[str], swept: list[Override], same_data: bool) -> None:
    """Raise UserError if the settings of a sweep recorded as `before` differ, or if a value is gone.

    Paths of data are compared from where they were typed, unless the data are known to be the same.
    """
    values = [line(override) for override in swept]
    old_settings, old_values = (_normalise(before[kind], before["cwd"], same_data) for kind in ("settings", "values"))
    new_settings, new_values = (_normalise(words, None, same_data) for words in (settings, values))
    old, new = ({word.key_or_group: word for word in parse(words)} for words in (old_values, new_values))
    # A key that is swept from now on was a setting, or stood at its default.
    old_settings = [word for word in old_settings if parse([word])[0].key_or_group not in new.keys() - old]
    if old_settings != new_settings or not all(key in new and _includes(new[key], word) for key, word in old.items()):
        started, now = [*before["settings"], *before["values"]], [*settings, *values]
        gone, added = [word for word in started if word not in now], [word for word in now if word not in started]
        text = f"with {' '.join(gone or started)}" + (f", and not with {' '.join(added)}" if gone and added else "")
        text = f"without {' '.join(added)}" if added and not gone else text
        advice = (
            "keeps its settings and its values, which are typed again; it may have more values, and more swept keys"
        )
        raise UserError(f"the sweep was started {text}. A resumed sweep {advice}.")


def _normalise(words: list[str], cwd: str | None, same_data: bool) -> list[str]:
    """Return overrides in their order, with absolute paths of data, or without those if the data are known."""
    result = []
    for word in parse(words):
        if word.key_or_group not in PATHS:
            result.append(line(word))
        elif not same_data:
            values = texts(word) if word.is_sweep_override() else [word.value()]
            paths = [quoted(checks.absolute(str(value), Path(cwd) if cwd else None)) for value in values]
            result.append(f"{word.get_key_element()}={','.join(paths)}")
    return result


def _includes(new: Override, old: Override) -> bool:
    if not new.is_sweep_override() or isinstance(new.value(), IntervalSweep) or isinstance(old.value(), IntervalSweep):
        return new.input_line == old.input_line
    return set(texts(old)) <= set(texts(new))
