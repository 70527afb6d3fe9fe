"""Kinds of values: how each is recognised, and the words in which another is refused."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass
class Rule:
    allows: Callable[[Any], bool]
    words: str


LARGEST = 1e38  # about as much as a 32-bit float holds


def is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond every float
        return False


def whole(low: int, high: int = 2**31 - 1) -> Rule:
    words = f"a whole number, {low:,} or more" if high == 2**31 - 1 else f"a whole number from {low:,} to {high:,}"
    return Rule(lambda v: is_number(v) and isinstance(v, int) and low <= v <= high, words)


def number(low: float, high: float = LARGEST, *, above: bool = False) -> Rule:
    words = f"a number above {low:g}" if above else f"a number, {low:g} or more"
    words += f" and at most {high:g}"
    return Rule(lambda v: is_number(v) and (v > low if above else v >= low) and v <= high, words)


def one_of(*options: str) -> Rule:
    return Rule(lambda v: v in options, "one of " + ", ".join(options))


def different(*options: str) -> Rule:
    """Return the rule of a list of these options, each at most once."""
    return Rule(
        lambda v: isinstance(v, list) and all(word in options for word in v) and len(set(v)) == len(v),
        f"a list of {', '.join(options)}, each once at most",
    )


def list_of(rule: Rule, words: str, at_least: int = 0) -> Rule:
    return Rule(lambda v: isinstance(v, list) and len(v) >= at_least and all(map(rule.allows, v)), words)


def either(rule: Rule, other: Rule) -> Rule:
    return Rule(lambda v: rule.allows(v) or other.allows(v), f"{rule.words}, or {other.words}")


def or_null(rule: Rule) -> Rule:
    return Rule(lambda v: v is None or rule.allows(v), f"{rule.words}, or null")


def or_word(rule: Rule, *words: str) -> Rule:
    return Rule(lambda v: v in words or rule.allows(v), f"{rule.words}, or {' or '.join(words)}")


def is_text(value: Any) -> bool:
    return isinstance(value, str) and value.strip() != "" and value.isprintable()


def is_size(value: Any) -> bool:
    is_text = isinstance(value, int | float | str) and not isinstance(value, bool)
    return is_text and re.fullmatch(r"\d+(\.\d+)?\s*([KMGT]?B)?", str(value).strip(), re.IGNORECASE) is not None


NAME_BYTES, PATH_BYTES = 255, 3900  # systems allow 255 and 4096; a run's own files lie below
AS_LONG = f"(names up to {NAME_BYTES} bytes, {PATH_BYTES:,} in all)"


def is_path(value: Any) -> bool:
    if not isinstance(value, str) or value.strip(" ") == "" or "\0" in value:
        return False
    path = value.encode(errors="replace")
    return len(path) <= PATH_BYTES and all(len(name) <= NAME_BYTES for name in path.split(b"/"))


# What becomes part of a folder's name must not be able to lead out of it.
NAME = Rule(
    lambda v: is_text(v) and v.replace("_", "").replace("-", "").isalnum() and len(v) <= 200,
    "letters, digits, - and _, up to 200 of them",
)
TEXT = Rule(lambda v: is_text(v) or is_number(v), "text on one line")
PROJECT = Rule(
    lambda v: TEXT.allows(v) and len(str(v)) <= 128 and not set(str(v)) & set("/\\#?%:"),
    "up to 128 characters without / \\ # ? % :",
)
PATH = Rule(is_path, f"the path of a folder {AS_LONG}")
ANY_PATH = Rule(PATH.allows, f"the path of a file or a folder {AS_LONG}")
# A folder may be named by a number.
RUN_PATH = Rule(lambda v: PATH.allows(v) or is_number(v), PATH.words)
LABEL = Rule(RUN_PATH.allows, "the name or the number of a class")  # a folder's name
FLAG = Rule(lambda v: isinstance(v, bool), "true or false")
SIDES = Rule(
    lambda v: isinstance(v, list) and len(v) == 2 and all(whole(1, 4096).allows(side) for side in v),
    "a height and a width such as [48,64]",
)
FRACTION = Rule(lambda v: isinstance(v, float) and 0 < v < 1, "a fraction such as 0.1")
