"""The factors that images were made from: a table that travels with the images, and parts of a grid of factors."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

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
