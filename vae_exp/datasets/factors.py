"""Ground-truth factors of images, and their tables in files."""

import csv
import logging
import posixpath
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vae_exp.config.checks import as_typed, closest
from vae_exp.errors import UserError, composed, printable, shortened
from vae_exp.files import expand

log = logging.getLogger(__name__)
EXAMPLE = "{shape:[0],x:8}"


@dataclass
class Factors:
    """Values of the factors behind each image, int64 [N, F], numbered from 0 to below sizes [F]; with names [F]."""

    table: Tensor
    names: list[str]
    sizes: list[int]

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, rows: slice | Tensor) -> "Factors":
        return replace(self, table=self.table[rows])

    def to(self, device: torch.device) -> "Factors":
        return replace(self, table=self.table.to(device))

    def without(self, names: Collection[str]) -> "Factors":
        """Return the factors, except those with these names."""
        columns = [i for i, name in enumerate(self.names) if name not in names]
        return Factors(self.table[:, columns], [self.names[i] for i in columns], [self.sizes[i] for i in columns])

    def varying(self, without: Collection[str] = ()) -> "Factors":
        """Return the factors, except those with one value in all of the images and those with these names."""
        varies = (self.table != self.table[:1]).any(0).tolist()
        return self.without(
            [name for name, does in zip(self.names, varies, strict=True) if not does or name in without]
        )

    def column(self, name: str) -> Tensor:
        """Return one factor of every image, int64 [N]."""
        return self.table[:, self.names.index(name)]


def chosen_values(
    sizes: Mapping[str, int], requested: Mapping[str, int | Sequence[int]] | None, periodic: Sequence[str] = ()
) -> dict[str, list[int]]:
    """Return, for each factor, the numbers of the values to use, of a grid with `sizes` values of each.

    A list names them; a number n takes n values, evenly spread from the first to the last, which is left out of a
    periodic factor as it is the first once more. Raises UserError for factors and values that do not exist.
    """
    requested = {} if requested is None else requested
    if not isinstance(requested, Mapping):
        raise UserError(f"dataset.factors={printable(requested)}: it takes values by factor names, such as {EXAMPLE}.")
    if unknown := [str(name) for name in requested if name not in sizes]:
        raise UserError(f"dataset.factors: there is no {printable(', '.join(unknown))}. There are {', '.join(sizes)}.")
    return {name: _values_of(name, requested.get(name, size), size, name in periodic) for name, size in sizes.items()}


def _values_of(name: str, requested: Any, size: int, periodic: bool) -> list[int]:
    if type(requested) is int and 0 < requested <= size:
        steps = requested if periodic and requested < size else max(1, requested - 1)
        return [round(i * (size - 1) / steps) for i in range(requested)]
    values = list(requested) if isinstance(requested, list | tuple) else []
    if values and all(type(value) is int and 0 <= value < size for value in values) and len({*values}) == len(values):
        return values
    raise UserError(
        f"dataset.factors.{name}={printable(str(requested).replace(' ', ''))}: it takes so many values, from 1 to "
        f"{size}, or a list of different ones, numbered from 0 to {size - 1}."
    )


def grid(names: Sequence[str], sizes: Sequence[int]) -> Factors:
    """Return every combination of `sizes` values of each factor, the last factor fastest."""
    table = torch.cartesian_prod(*[torch.arange(size) for size in sizes]).reshape(-1, len(sizes))
    return Factors(table, list(names), list(sizes))


FILE = "file"  # the name of the first column
MAX_VALUES, ROWS = 0.9, 20  # a column with more values than this share of the rows, at least so many, is an identifier
MISSING = frozenset(("", "nan", "NaN"))  # cells
MAX_FILES = 5  # named in a message
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d{1,4})?", re.ASCII | re.IGNORECASE)


def columns_of(names: Sequence[str], requested: Sequence[str] | None, where: str, key: str = "") -> list[int]:
    """Return the columns that dataset.factor_columns, or another key, names; all for None. Raises UserError."""
    wanted = names if requested is None else [*map(str, requested)]
    if unknown := [name for name in wanted if name not in names]:
        key = key or f"dataset.factor_columns={shortened(printable(as_typed(wanted)))}"
        there = f"{where} has no {printable(unknown[0])}.{closest(unknown[0], names)} It has {_first(names)}"
        raise UserError(f"{key}: {there}.")
    return [at for at, name in enumerate(names) if name in wanted]


def read_factors(
    root: Path, path: str, files: Sequence[str], requested: Sequence[str] | None, numbers: Sequence[str]
) -> tuple[Factors, list[list[str]], list[str]]:
    """Return the factors of files from the table that dataset.factors names, and what each factor's values are called.

    Last come the names of those that are no factors, but measurements that are kept as they are among the numbers.
    The first column of the table is the path of each file relative to root, every further column a factor, and its
    first row their names, of which only those that are requested are read. Identifiers are left out with a warning.
    Raises UserError for files without a row, and if this is no such table, naming the line.
    """
    key = f"dataset.factors={printable(path)}"
    if not isinstance(path, str):
        raise UserError(f"{key}: dataset=image_folder takes the path of a CSV file, or null.")
    names, cells = _read_table(key, root, root / expand(path), files, requested)
    row = {file: number for number, file in enumerate(cells)}
    present = set(files)
    if others := [file for file in row if file not in present]:
        n = f"{len(others):,} of {len(row):,} rows"
        log.warning(f"{key}: left out {n}, which are of no image in {root}: {_first(others)}")
    columns = {name: _number(texts) for name, texts in zip(names, zip(*cells.values(), strict=True), strict=True)}
    many = [name for name, (_, values) in columns.items() if len(values) > MAX_VALUES * max(len(row), ROWS)]
    measured = [name for name in many if name in numbers]
    if identifiers := [name for name in many if name not in numbers]:
        why = (
            f"with nearly as many values as rows ({len(row):,}). Measurements become factors by sorting them into bins"
        )
        if len(identifiers) == len(columns):
            raise UserError(f"{key}: no factor in it, but {_first(identifiers)}, {why}.")
        log.warning(f"{key}: left out {_first(identifiers)}, {why}")
    kept = {name: column for name, column in columns.items() if name not in identifiers}
    columns_of_kept, values = zip(*kept.values(), strict=True)
    factors = Factors(torch.tensor(columns_of_kept).T.contiguous(), list(kept), list(map(len, values)))
    return factors[torch.tensor([row[file] for file in files])], list(values), measured


def read_column(key: str, root: Path, path: str, files: Sequence[str], column: str) -> list[str]:
    """Return the cell of each file in one column of such a table. Raises UserError as read_factors does, naming key."""
    _, cells = _read_table(key, root, root / path, files, [column], key)
    return [cells[file][0] for file in files]


def _read_table(
    key: str, root: Path, path: Path, files: Sequence[str], requested: Sequence[str] | None, names_key: str = ""
) -> tuple[list[str], dict[str, list[str]]]:
    """Return the names of the factors, and by file their cells, stripped of spaces around them."""
    table: dict[str, list[str]] = {}
    try:
        if not path.is_file():  # a named pipe would keep its reader waiting for ever
            raise UserError(f"{key}: there is no such file: {path}. A relative path begins at dataset.root.")
        with path.open(encoding="utf-8-sig", newline="") as file:  # a spreadsheet writes the mark of UTF-8
            reader = csv.reader(file, strict=True)
            rows = ([first, *(composed(cell.strip()) for cell in others)] for first, *others in filter(None, reader))
            columns = [printable(name) for name in next(rows, [""])]
            columns[0] = columns[0].strip()
            if columns[0] != FILE or len(columns) < 2 or "" in columns or len({*columns}) < len(columns):
                raise UserError(
                    f"{key}: its first line must be {FILE}, for the path of each image, and then a name of its own for "
                    f"each factor, with commas between them, and is {','.join(columns)!r}."
                )
            n_columns = len(columns)
            kept = [0, *(1 + at for at in columns_of(columns[1:], requested, path.name, names_key))]
            columns = [columns[at] for at in kept]
            for cells in rows:
                name, line = composed(posixpath.normpath(cells[0])), f"line {reader.line_num:,}"  # ./a.png is a.png
                if len(cells) != n_columns:
                    raise UserError(f"{key}: {line} has {len(cells):,} cells, and the first line {n_columns:,}.")
                cells = [cells[at] for at in kept]
                if missing := [column for column, cell in zip(columns, cells, strict=True) if cell in MISSING]:
                    raise UserError(f"{key}: {line} has no value of {missing[0]}.")
                if name in table:
                    raise UserError(f"{key}: {line} is a second row of {printable(name)}; each image has one.")
                table[name] = cells[1:]
    except (OSError, ValueError, csv.Error) as error:  # text of another encoding is a ValueError
        raise UserError(f"{key}: {path} cannot be read as a CSV file in UTF-8 ({error}).") from error
    if not table:
        raise UserError(f"{key}: it has no rows below its first line.")
    if missing := [file for file in files if composed(file) not in table]:
        raise UserError(
            f"{key}: it has no row for {len(missing):,} of the {len(files):,} images: {_first(missing)}. Its "
            f"column {FILE} holds their paths relative to {root}."
        )
    as_listed = {composed(file): file for file in files}
    return columns[1:], {as_listed.get(name, name): cells for name, cells in table.items()}


def _number(texts: Sequence[str]) -> tuple[list[int], list[str]]:
    """Return the number of each cell's value, and the values' names: in order, by size if all are numbers."""
    different = list(dict.fromkeys(texts))
    parse = Decimal if all(map(NUMBER.fullmatch, different)) else str
    value = {text: parse(text) for text in different}
    name = {value[text]: text for text in reversed(different)}  # 1 and 1.0 are one value, named as it comes first
    number = {known: at for at, known in enumerate(sorted(name))}
    return [number[value[text]] for text in texts], [name[known] for known in number]


def _first(files: Sequence[str]) -> str:
    return ", ".join(map(printable, files[:MAX_FILES])) + (", ..." if len(files) > MAX_FILES else "")
