"""The swept values of a command line: each once, and the folders of jobs that are named by them."""

import re
from collections import Counter
from collections.abc import Collection
from typing import Any

from hydra.core.override_parser.types import Glob, IntervalSweep, Override, QuotedString

from vae_exp.config.check import options
from vae_exp.config.messages import parse
from vae_exp.errors import UserError

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
