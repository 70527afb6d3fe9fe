"""Read a sweep's values, and match them with those of an earlier sweep."""

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Glob, IntervalSweep, Override, QuotedString

from vae_exp.config.checks import DATA_PATHS, absolute, as_typed, flatten, options
from vae_exp.config.compose import parse, quoted
from vae_exp.errors import UserError
from vae_exp.training.run_dir import read_choices, read_config, runs_below

NUMBER = "${hydra.job.num}"
LONGEST = 120  # characters of a folder's name; file systems allow 255


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
    """Return the arguments with each value of a sweep once: two would be the same job.

    Raises UserError if a swept key is typed twice.
    """
    typed = Counter(override.key_or_group for override in arguments)
    kept = []
    for override in arguments:
        if override.is_sweep_override() and typed[override.key_or_group] > 1:
            lines = " and ".join(str(o.input_line) for o in arguments if o.key_or_group == override.key_or_group)
            raise UserError(f"{override.key_or_group}: is there twice, as {lines}. A sweep takes each key once.")
        kept.append(override)
        if override.is_sweep_override() and not isinstance(override.value(), IntervalSweep | Glob):
            once = texts(override)
            if len(once) < len(values_of(override)):
                kept[-1] = parse([f"{override.get_key_element()}={','.join(once.values())}"])[0]
    return kept


def texts(override: Override) -> dict[str, str]:
    """Return the values of a sweep as first typed, keyed by a text that is the same for the same value."""
    found: dict[str, str] = {}
    for value, text in zip(override.sweep_iterator(), override.sweep_string_iterator(), strict=True):
        found.setdefault(_as_one(value), text)
    return found


def _as_one(value: Any) -> str:
    """Return one text per value, however it was typed: 1, 1.0 and '1'; 1e-3 and 0.001; true and True."""
    if isinstance(value, QuotedString):  # text, such as a class +1 beside a class 1
        return value.text.lower() if value.text.lower() in ("null", "true", "false") else value.text
    if isinstance(value, list):
        return f"[{','.join(map(_as_one, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(sorted(f'{key}:{_as_one(inner)}' for key, inner in value.items()))}}}"
    if value is None or isinstance(value, bool) or str(value).lower() in ("null", "true", "false"):
        return "null" if value is None else str(value).lower()
    for number in (int, float):
        try:
            read = number(str(value))
        except ValueError:
            continue
        return str(int(read) if read == read and abs(read) < 1e15 and int(read) == read else read)
    return str(value)


def job_folder(swept: list[Override], groups: Collection[str]) -> str:
    """Return a job's folder name, such as z_dim-10_lr-0.001: only characters that can be typed back on a command line.

    groups are the config groups whose options Hydra knows, those of --config-dir too.
    It is the job's number if names would be too long, or could be the same for two jobs.
    """
    last = [override.key_or_group.rsplit(".", 1)[-1] for override in swept]
    parts, longest = [], 0
    for name, override in zip(last, swept, strict=True):
        key, values = override.key_or_group, values_of(override)
        name = key if Counter(last)[name] > 1 else name
        if isinstance(override.value(), IntervalSweep) or not all(re.fullmatch(r"[\w.+-]+", v) for v in values):
            return NUMBER
        # Some file systems take A and a for one name, and null becomes None in it.
        named = {"none" if value == "null" else value.lower() for value in values}
        if len(named) < len(values) or any(f"_{other}-" in value for other in last for value in values):
            return NUMBER
        is_group = key in groups
        parts.append(f"{name}-${{{f'hydra.runtime.choices.{key}' if is_group else key}}}")
        longest += len(name) + max(map(len, values)) + 2
    return "_".join(parts) if parts and longest <= LONGEST else NUMBER


PATHS = [f"dataset.{key}" for key in DATA_PATHS]
KEYS = re.compile(r"\$\{(.*?)\}")  # in the name of a job's folder


def has_same_data(before: Mapping[str, Any], data_digest: Callable[[], str | None]) -> bool:
    """Return whether the data are known to be the sweep's, wherever they are; raise UserError for other data.

    It is not known for a sweep of an older version, nor where the jobs run on other machines.
    """
    if before["data"] is None or (now := data_digest()) is None:
        return False
    if now != before["data"]:
        raise UserError(
            "the data have changed since the sweep began, so its jobs would not compare. Bring them back as they were, "
            "say where they are with dataset.root=PATH, or start a new sweep."
        )
    return True


def has_grown(
    before: Mapping[str, Any], settings: list[str], swept: list[Override], together: list[str], same_data: bool
) -> bool:
    """Return whether a sweep recorded as `before` has grown: by more values of a key, or by another key.

    Keys that go together, those of sweep.zip, must have the values that they had. Paths of data are compared relative
    to the folders in which they were typed, unless the data are known to be the same.

    Raises UserError if the settings differ, or if a value is gone.
    """
    values = [str(override.input_line) for override in swept]
    old_settings, old_values = (_as_meant(before[kind], before["cwd"], same_data) for kind in ("settings", "values"))
    new_settings, new_values = (_as_meant(words, None, same_data) for words in (settings, values))
    if (old_settings, old_values) == (new_settings, new_values):
        return False
    old, new = ({word.key_or_group: word for word in parse(words)} for words in (old_values, new_values))
    # A key that is swept from now on was a setting, or stood at its default.
    old_settings = [word for word in old_settings if parse([word])[0].key_or_group not in new.keys() - old]
    kept = all(
        key in new and _has_all(new[key], was) and (key not in together or new[key].input_line == was.input_line)
        for key, was in old.items()
    )
    if old_settings != new_settings or not kept:
        was, typed = (
            " ".join(before["settings"] + before["values"]),
            " ".join(settings + values),
        )
        raise UserError(
            f"the sweep was started with {was}, and not with {typed}. A sweep that goes on keeps its settings and its "
            "values; it may have more values, and more swept keys."
        )
    return True


def _as_meant(words: list[str], cwd: str | None, same_data: bool) -> list[str]:
    """Return overrides in their order, with absolute paths of data, or without those if the data are known."""
    found = []
    for word in parse(words):
        if word.key_or_group not in PATHS:
            found.append(str(word.input_line))
        elif not same_data:
            values = texts(word) if word.is_sweep_override() else [word.value()]
            paths = [quoted(absolute(str(value), Path(cwd) if cwd else None)) for value in values]
            found.append(f"{word.get_key_element()}={','.join(paths)}")
    return found


def _has_all(now: Override, old: Override) -> bool:
    if not now.is_sweep_override() or isinstance(now.value(), IntervalSweep) or isinstance(old.value(), IntervalSweep):
        return now.input_line == old.input_line
    return set(texts(old)) <= set(texts(now))


def rename(folder: Path, template: str, swept: list[Override]) -> None:
    """Give the jobs of a sweep the names that they have in the larger one. A kill in between does no harm.

    Raises UserError if jobs have numbers for names, which would then belong to other jobs, or if the old value of a
    newly swept key is not among its values: the old jobs would not be among the new ones.
    """
    moves = {old: new for old, new in _moves(folder, template, swept) if old != new}
    if template == NUMBER or any(new.exists() for new in moves.values()):
        raise UserError("its jobs are told apart by numbers, so more values would mix them up: start a new sweep.")
    for old, new in moves.items():
        old.rename(new)


def _moves(folder: Path, template: str, swept: list[Override]) -> Iterator[tuple[Path, Path]]:
    for job in runs_below(folder):
        config = read_config(job)
        if config is None or job.parent != folder:  # a run inside a job's folder is a part of it
            continue
        flat = flatten(config)
        for override in swept:
            key = override.key_or_group
            if key in PATHS:  # by the text that names the folder
                typed = {absolute(text): text for text in texts(override)}
                flat[key] = typed.get(absolute(str(flat[key])), flat[key])
            if not options(key) and key in flat and as_typed(flat[key]) not in _values(override):
                raise UserError(f"its jobs have {key}={as_typed(flat[key])}, which is not among {override.input_line}.")
        known = flat | {f"hydra.runtime.choices.{group}": option for group, option in read_choices(job).items()}
        name = "".join(part if i % 2 == 0 else str(known.get(part, "/")) for i, part in enumerate(KEYS.split(template)))
        yield job, folder / name if re.fullmatch(r"[\w.+-]+", name) and name.strip(".") else job


def _values(override: Override) -> set[str]:
    return {as_typed(value) for value in (parse([f"x={text}"])[0].value() for text in texts(override).values())}
