"""Several labels, and numbers, as what a conditional model is given: y counts the combinations that the data have."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vae_exp.config.checks import as_typed, closest, names_in
from vae_exp.config.schema import MAX_DISTANCE
from vae_exp.datasets.factors import NUMBER, Factors
from vae_exp.errors import UserError, composed, printable, shortened
from vae_exp.files import log_once

CLASS = "class"  # the name of the labels that data have of themselves, such as their folders
JOINT = ", "  # between the values in the name of a combination
MAX_CELLS = 2**28  # of all combinations' contexts: a gigabyte
LARGEST = 1e300  # number: the distance of two of them is finite
GOLDEN = (math.sqrt(5) - 1) / 2


def is_number(text: str) -> bool:
    """Return whether text is a finite number, as a condition must be."""
    return bool(NUMBER.fullmatch(text)) and abs(float(text)) <= LARGEST


def spread(n: int, of: int) -> Tensor:
    """Return n of so many numbers, [n], spread over them however they are arranged: steps of the golden ratio."""
    step = max(1, round(GOLDEN * of))
    while math.gcd(step, of) > 1:  # each comes once before the first comes again
        step += 1
    return torch.arange(n) * step % of


class Labels(NamedTuple):
    """Hold the label of each image, what the labels are called, and what they combine if it is more than one thing."""

    y: Tensor  # int64 [N]
    class_names: list[str]
    conditions: "Conditions | None" = None


@dataclass(frozen=True)
class Conditions:
    """What each label y stands for where it is a combination of values: labels, then numbers.

    A model is given their one-hot blocks side by side, then the numbers, scaled so that training goes from -1 to 1.
    """

    names: list[str]  # [C]
    values: list[list[str]]  # of each name, as the data call them; of a number in its order
    n_labels: int  # the first so many are labels, the others numbers
    rows: list[int]  # of each combination in turn, C numbers of values
    ranges: list[tuple[float, float]] = field(default_factory=list)  # of each number in training

    def __post_init__(self) -> None:
        sizes, rows = torch.tensor([*map(len, self.values)]), torch.tensor(self.rows)
        fits = len(self.names) == len(self.values) > 0 and len(self.rows) % len(self.names) == 0
        if not (fits and 0 <= self.n_labels <= len(self.names)):
            raise ValueError("names, values and rows are not of as many conditions")
        if self.n * sum(self.sizes) > MAX_CELLS:
            raise ValueError("there are too many values")
        if not ((rows >= 0) & (rows < sizes.repeat(self.n))).all():
            raise ValueError("a combination has values that there are not")
        if len(set(self.names)) < len(self.names):
            raise ValueError("a name is there twice")
        if not all(abs(end) <= LARGEST for ends in self.ranges for end in ends):
            raise ValueError("the range of a number is not of finite numbers")
        if not all(is_number(text) for texts in self.values[self.n_labels :] for text in texts):
            raise ValueError("the values of a number are not numbers")

    @property
    def n(self) -> int:
        """Return how many combinations there are."""
        return len(self.rows) // len(self.names)

    @property
    def sizes(self) -> list[int]:
        """Return how many columns of the context each condition has."""
        return [len(values) if i < self.n_labels else 1 for i, values in enumerate(self.values)]

    @property
    def columns(self) -> dict[str, slice]:
        """Return where the columns of each condition are in a context."""
        ends = accumulate(self.sizes, initial=0)
        return {name: slice(*part) for name, part in zip(self.names, pairwise(ends), strict=True)}

    @property
    def numbers(self) -> list[str]:
        return self.names[self.n_labels :]

    def class_names(self) -> list[str]:
        columns = torch.tensor(self.rows).view(-1, len(self.names)).T.tolist()
        texts = [[_named(name, text) for text in values] for name, values in zip(self.names, self.values, strict=True)]
        parts = [[words[i] for i in column] for words, column in zip(texts, columns, strict=True)]
        return [JOINT.join(row) for row in zip(*parts, strict=True)]

    def chosen(self, numbers: Sequence[int]) -> "Conditions":
        """Return those combinations alone."""
        return replace(self, rows=torch.tensor(self.rows).view(-1, len(self.names))[list(numbers)].flatten().tolist())

    def fitted(self, y: Tensor) -> "Conditions":
        """Return the conditions with the range of each number in the labels y [N] of training."""
        rows = torch.tensor(self.rows).view(-1, len(self.names))[y.unique().cpu()]
        ranges = []
        for i, name in enumerate(self.numbers, start=self.n_labels):
            low, high = (float(self.values[i][row]) for row in rows[:, i].aminmax())  # values are in their order
            ranges.append((low, high))
            if low == high:
                same = f"{printable(name)}: it is {low:g} in all training images, and tells a model nothing"
                log_once(f"dataset.condition={same}", logging.WARNING)
        return replace(self, ranges=ranges)

    def table(self) -> Tensor:
        """Return the context of each combination, [K, W], on the CPU, also where models are made without numbers."""
        columns, parts = torch.tensor(self.rows, device="cpu").view(-1, len(self.names)).T, []
        for i, (values, column) in enumerate(zip(self.values, columns, strict=True)):
            if i < self.n_labels:
                parts.append((column[:, None] == torch.arange(len(values), device="cpu")).float())
            else:
                scaled = [self._scaled(i, float(text)) for text in values]
                parts.append(torch.tensor(scaled, dtype=torch.float32, device="cpu")[column, None])
        return torch.cat(parts, 1)

    def join(self, values: Sequence[Tensor]) -> Tensor:
        """Return the contexts [N, W] of values in the order of names: of labels their numbers, int64 [N]."""
        labels = zip(values[: self.n_labels], self.sizes, strict=False)
        parts = [(label[:, None] == torch.arange(size)).float() for label, size in labels]
        for number, (low, high) in zip(values[self.n_labels :], self.ranges, strict=True):
            parts.append((number.float()[:, None] - (low + high) / 2) * (2 / (high - low) if high > low else 0.0))
        return torch.cat(parts, 1)

    def given(self, y: Tensor) -> dict[str, Tensor]:
        """Return what labels y [N] stand for, each [N] by its name: of labels their numbers, int64, others float64."""
        columns = torch.tensor(self.rows).view(-1, len(self.names))[y.cpu()].T
        texts, double = self.values[self.n_labels :], torch.float64
        numbers = [torch.tensor([float(text) for text in values], dtype=double) for values in texts]
        parts = [*columns[: self.n_labels], *map(torch.take, numbers, columns[self.n_labels :])]
        return dict(zip(self.names, parts, strict=True))

    def about(self) -> dict[str, list[Any]]:
        """Return the values of each label, and the range of each number in training, by their names."""
        return dict(zip(self.names, [*self.values[: self.n_labels], *map(list, self.ranges)], strict=True))

    def _scaled(self, i: int, value: float) -> float:
        low, high = self.ranges[i - self.n_labels]
        return 2 * (value - low) / (high - low) - 1 if high > low else 0.0

    def context(self, label: Any) -> tuple[Tensor, str]:
        """Return the context [W] of given values, and its name as a label. Raises UserError for those it does not know.

        They are by name, {shape: circle, angle: 0.3}, or one for each in the order of the names.
        """
        typed = f"label={shortened(printable(as_typed(label)))}"
        takes = f"this model takes {', '.join(self._words())}"
        example = ",".join(values[0] for values in self.values)
        if isinstance(label, Mapping):
            if unknown := [str(name) for name in label if name not in self.names]:
                raise UserError(f"{typed}: {takes}, and no {printable(unknown[0])}.{closest(unknown[0], self.names)}")
            given = [label[name] for name in self.names if name in label]
        else:
            given = list(label) if isinstance(label, list | tuple) else [label]
        if len(given) != len(self.names):
            raise UserError(f"{typed}: {takes}; give each, by name or in this order, such as label=[{example}].")
        parts, words = [], []
        for i, (name, value) in enumerate(zip(self.names, given, strict=True)):
            text = printable(composed(value))
            if i < self.n_labels:
                if text not in self.values[i]:
                    hint = closest(text, self.values[i])
                    raise UserError(f"{typed}: {printable(name)} is {shortened(', '.join(self.values[i]))}.{hint}")
                parts.append(torch.tensor([float(text == known) for known in self.values[i]]))
            else:
                if not is_number(text):
                    raise UserError(f"{typed}: {printable(name)} is a number, and not {text}.")
                if abs(scaled := self._scaled(i, float(text))) > MAX_DISTANCE:
                    raise UserError(f"{typed}: {printable(name)} is too far from those of training; {takes}.")
                parts.append(torch.tensor([scaled]))
            words.append(_named(name, text))
        return torch.cat(parts), JOINT.join(words)

    def _words(self) -> list[str]:
        numbers = [f"from {low:g} to {high:g} in training" for low, high in self.ranges]
        words = [*(["|".join(values)] for values in self.values[: self.n_labels]), *([text] for text in numbers)]
        return [f"{printable(name)} ({shortened(word)})" for name, (word,) in zip(self.names, words, strict=True)]


def _named(name: str, text: str) -> str:
    return f"{name}={text}" if NUMBER.fullmatch(text) else text  # a word says what it is of


def choose_labels(
    factors: Factors | None,
    values: Sequence[Sequence[str]],
    label: str | Sequence[str] | None,
    condition: Sequence[str] | None,
    given: Labels,
) -> Labels:
    """Return the labels that dataset.label and dataset.condition ask for, of factors [N, F] and their values' names.

    Where dataset.label is null they are those that are given. Raises UserError for what is no factor, or no number.
    """
    if label is None and not condition:
        return given
    names, numbers = names_in(label), names_in(condition)
    if twice := [name for i, name in enumerate(names + numbers) if name in (names + numbers)[:i]]:
        raise UserError(f"dataset.label and dataset.condition: {printable(twice[0])} is named twice.")
    columns = dict[str, tuple[Tensor, list[str]]]()
    if label is None and given.class_names:
        columns[CLASS if factors is None or CLASS not in factors.names else f"own {CLASS}"] = given.y, given.class_names
    for key, name in [*(("label", name) for name in names), *(("condition", name) for name in numbers)]:
        if factors is None:
            raise UserError(f"dataset.{key}={printable(name)}: it takes null, as there are no factors.")
        if name not in factors.names:
            there = f"null or one of {', '.join(map(printable, factors.names))}.{closest(name, factors.names)}"
            raise UserError(f"dataset.{key}={printable(name)}: it takes {there}")
        texts = list(values[factors.names.index(name)])
        if wrong := [text for text in texts if key == "condition" and not is_number(text)]:
            use = f"Use it as a label: dataset.label=[{','.join(map(printable, [*names, name]))}]"
            raise UserError(
                f"dataset.condition={printable(name)}: its value {printable(wrong[0])} is no number. {use}."
            )
        columns[name] = factors.column(name), texts
    if len(columns) == 1 and not numbers:
        return Labels(*next(iter(columns.values())))
    rows, y = torch.stack([column for column, _ in columns.values()], 1).unique(dim=0, return_inverse=True)
    texts_of, n_labels = [[*map(printable, texts)] for _, texts in columns.values()], len(columns) - len(numbers)
    if len(rows) * sum(map(len, texts_of[:n_labels])) > MAX_CELLS:
        most, name = max((len(texts), name) for texts, name in zip(texts_of[:n_labels], columns, strict=False))
        bins = f"Sort them into bins, or if they are numbers, use dataset.condition=[{printable(name)}]"
        raise UserError(f"dataset.label={printable(name)}: {most:,} values are too many for a label. {bins}.")
    conditions = Conditions(list(columns), texts_of, n_labels, rows.flatten().tolist())
    return Labels(y, conditions.class_names(), conditions)
