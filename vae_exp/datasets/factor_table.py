"""A table of factors beside a folder of images: a CSV with a row for each image, whose values are numbered."""

import csv
import logging
import posixpath
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import torch

from vae_exp.datasets.factors import Factors
from vae_exp.errors import UserError, printable

log = logging.getLogger(__name__)

FILE = "file"  # the name of the first column
MISSING = frozenset(("", "nan", "NaN"))  # cells
SHOWN = 5  # files named in a message
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d{1,4})?", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True)
class FactorTable:
    """The factors of a table's files."""

    typed: str  # where it comes from, for messages
    root: Path  # what the files are relative to
    row: dict[str, int]  # of each file
    factors: Factors  # of all rows, in their order
    values: dict[str, list[str]]  # what the values 0, 1, ... of each factor are called

    def of(self, files: Sequence[str]) -> Factors:
        """Return the factors of these files, in their order."""
        return self.factors[torch.tensor([self.row[file] for file in files])]

    def require(self, files: Sequence[str]) -> None:
        """Raise UserError if files have no row; warn of rows that belong to none of the files."""
        if bare := [file for file in files if file not in self.row]:
            raise UserError(
                f"{self.typed}: it has no row for {len(bare):,} of the {len(files):,} images: {_first(bare)}. Its "
                f"column {FILE} holds their paths relative to {self.root}."
            )
        there = set(files)
        if others := [file for file in self.row if file not in there]:
            log.warning(
                f"{self.typed}: left out {len(others):,} of {len(self.row):,} rows, which are of no image in "
                f"{self.root}: {_first(others)}"
            )


def read_factors(root: Path, typed: str) -> FactorTable:
    """Read the table of factors that dataset.factors names; a relative path begins at root, the folder of the images.

    Its first column is the path of each image relative to root, every further column a factor, and its first row their
    names. Raises UserError for a file that cannot be read as such a table, naming the line.
    """
    told = f"dataset.factors={printable(str(typed))}"
    if not isinstance(typed, str):
        raise UserError(f"{told}: dataset=image_folder takes the path of a CSV file, or null.")
    rows = _rows(told, root / Path(typed).expanduser())
    _, header = next(rows, (0, []))
    names = _names(told, header)
    row: dict[str, int] = {}
    cells: list[list[str]] = []
    for line, found in rows:
        file, *texts = posixpath.normpath(found[0]), *found[1:]  # ./a.png is a.png
        if len(texts) != len(names):
            raise UserError(f"{told}: line {line:,} has {len(found):,} cells, and the first line {len(header):,}.")
        if not MISSING.isdisjoint(found):
            column = next(column for column, text in zip([FILE, *names], found, strict=True) if text in MISSING)
            raise UserError(f"{told}: line {line:,} has no value of {column}.")
        if file in row:
            raise UserError(f"{told}: line {line:,} is a second row of {printable(file)}; each image has one.")
        row[file] = len(cells)
        cells.append(texts)
    if not cells:
        raise UserError(f"{told}: it has no rows below its first line.")
    numbered = [_numbered(column) for column in zip(*cells, strict=True)]
    table = torch.tensor([numbers for numbers, _ in numbered]).T.contiguous()
    values = {name: called for name, (_, called) in zip(names, numbered, strict=True)}
    return FactorTable(told, root, row, Factors(table, names, [len(called) for called in values.values()]), values)


def _rows(told: str, path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows of a CSV with their line numbers. All cells but the first are stripped of spaces around them."""
    try:
        if not path.is_file():  # a named pipe would keep its reader waiting for ever
            raise UserError(f"{told}: there is no such file: {path}. A relative path begins at dataset.root.")
        with path.open(encoding="utf-8-sig", newline="") as file:  # a spreadsheet writes the mark of UTF-8
            reader = csv.reader(file, strict=True)
            for first, *others in filter(None, reader):
                yield reader.line_num, [first, *(cell.strip() for cell in others)]
    except (OSError, ValueError, csv.Error) as error:  # text of another encoding is a ValueError
        raise UserError(f"{told}: {path} cannot be read as a CSV file in UTF-8 ({error}).") from error


def _names(told: str, header: list[str]) -> list[str]:
    """Return the names of the factors. Raises UserError if the first line does not name file and then each factor."""
    first, *names = [printable(name) for name in header] or [""]
    if first.strip() != FILE:
        raise UserError(
            f"{told}: its first column must be {FILE}, the path of each image, and is {first!r}. A comma separates "
            "the columns, and the first line names them."
        )
    if not names:
        raise UserError(f"{told}: it has no column of a factor beside {FILE}.")
    if "" in names:
        raise UserError(f"{told}: column {names.index('') + 2} has no name.")
    if twice := [name for name in dict.fromkeys(names) if [FILE, *names].count(name) > 1]:
        raise UserError(f"{told}: there are two columns {twice[0]}; each factor needs a name of its own.")
    return names


def _numbered(texts: Sequence[str]) -> tuple[list[int], list[str]]:
    """Return the number of each cell's value, and the values' names: in order, by size if all are numbers."""
    different = list(dict.fromkeys(texts))
    are_numbers = all(map(NUMBER.fullmatch, different))
    value = {text: Decimal(text) if are_numbers else text for text in different}
    called = {value[text]: text for text in reversed(different)}  # 1 and 1.0 are one value, called as it first is
    order = sorted(called)  # all are numbers, or all are text
    number = {known: at for at, known in enumerate(order)}
    return [number[value[text]] for text in texts], [called[known] for known in order]


def _first(files: Sequence[str]) -> str:
    return ", ".join(map(printable, files[:SHOWN])) + (", ..." if len(files) > SHOWN else "")
