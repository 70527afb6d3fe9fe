"""Ground-truth factors of images, and their tables in files."""

import csv
import logging
import posixpath
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path

import torch
from torch import Tensor

from vae_exp.errors import UserError, printable

EXAMPLE = "{shape:[0],x:8}"


@dataclass
class Factors:
    """The values of the factors behind each image, int64 [N, F], numbered from 0 to below sizes [F]; with names [F]."""

    table: Tensor
    names: list[str]
    sizes: list[int]

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, rows: slice | Tensor) -> "Factors":
        return replace(self, table=self.table[rows])

    def to(self, device: torch.device) -> "Factors":
        return replace(self, table=self.table.to(device))

    def varying(self, without: Collection[str] = ()) -> "Factors":
        """Return the factors, except those with one value in all of the images and those with these names."""
        varies = (self.table != self.table[:1]).any(0).tolist()
        kept = [i for i, name in enumerate(self.names) if varies[i] and name not in without]
        return Factors(self.table[:, kept], [self.names[i] for i in kept], [self.sizes[i] for i in kept])

    def column(self, name: str) -> Tensor:
        """Return one factor of every image, int64 [N]. Raises UserError for a name that does not exist."""
        if name not in self.names:
            raise UserError(f"dataset.label={printable(name)}: it takes null or one of {', '.join(self.names)}.")
        return self.table[:, self.names.index(name)]


def chosen_values(
    sizes: Mapping[str, int], wanted: Mapping[str, int | Sequence[int]] | None, round_about: Sequence[str] = ()
) -> dict[str, list[int]]:
    """Return, for each factor, the numbers of the values to use, of a grid with `sizes` values of each.

    A list names them. A number n takes n values, evenly spread from the first to the last; for the factors in
    `round_about`, whose last value is the first once more, it leaves the last one out. A factor that is not named is
    used with all of its values, and None is the whole grid. Raises UserError for factors and values that do not exist.
    """
    wanted = {} if wanted is None else wanted
    if not isinstance(wanted, Mapping):
        raise UserError(f"dataset.factors={printable(wanted)}: it takes values by factor names, such as {EXAMPLE}.")
    if unknown := [str(name) for name in wanted if name not in sizes]:
        raise UserError(f"dataset.factors: there is no {printable(', '.join(unknown))}. There are {', '.join(sizes)}.")
    chosen = {}
    for name, size in sizes.items():
        asked = wanted.get(name, size)
        if isinstance(asked, bool) or not isinstance(asked, int | Sequence) or isinstance(asked, str):
            raise UserError(f"dataset.factors.{name}={printable(asked)}: it takes so many values, or a list of them.")
        if isinstance(asked, int):
            if not 0 < asked <= size:
                raise UserError(f"dataset.factors.{name}={asked}: it has from 1 to {size} values.")
            steps = asked if name in round_about and asked < size else max(1, asked - 1)
            chosen[name] = [round(i * (size - 1) / steps) for i in range(asked)]
            continue
        chosen[name] = list(asked)
        are_whole = all(isinstance(value, int) and not isinstance(value, bool) for value in asked)
        if not asked or not are_whole or not all(0 <= value < size for value in asked) or len(set(asked)) < len(asked):
            shown = ",".join(map(str, asked))
            raise UserError(f"dataset.factors.{name}=[{shown}]: it takes different numbers from 0 to {size - 1}.")
    return chosen


def grid(names: Sequence[str], sizes: Sequence[int]) -> Factors:
    """Return every combination of `sizes` values of each factor, the last factor fastest."""
    table = torch.cartesian_prod(*[torch.arange(size) for size in sizes]).reshape(-1, len(sizes))
    return Factors(table, list(names), list(sizes))


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
