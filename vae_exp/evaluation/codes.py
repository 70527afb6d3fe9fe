"""The codes of whole splits, each row with what identifies its image, as columns for arrays, CSV and Parquet."""

import csv
import functools
import io
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vae_exp.datasets import Conditions, Data, Split, batches
from vae_exp.distributions import Posterior, parameters
from vae_exp.errors import printable
from vae_exp.evaluation.metrics import EVAL_BATCH_SIZE

Columns = dict[str, np.ndarray]  # by name, each [B, ...]
MAX_BOUNDED = 1000  # images of which all importance samples are drawn before the next are read
LOGGED = ("index", "split", "file", "label", "factors", "mean")  # columns of the table in W&B
GROUP = 100  # batches in one row group of a Parquet file
THUMBNAIL = 64  # pixels, at most


@dataclass(frozen=True)
class Rows:
    """The images of splits, one split after the other, and what identifies them."""

    splits: Mapping[str, Split]  # by their names
    class_names: Sequence[str]  # empty where there are no labels
    conditions: Conditions | None = None

    def __len__(self) -> int:
        return sum(map(len, self.splits.values()))

    @functools.cached_property
    def names(self) -> Columns:
        """Return what the numbers in the columns label and factors mean: class_names [K] and factor_names [F]."""
        factors = [split.factors.names for split in self.splits.values() if split.factors is not None]
        names = {"class_names": self.class_names, "factor_names": factors[0] if factors else ()}
        return {name: np.array([*map(printable, texts)], "U") for name, texts in names.items() if texts}

    def batches(self, batch_size: int = EVAL_BATCH_SIZE) -> Iterator[tuple[Tensor, Tensor, Columns]]:
        """Yield images [B, C, H, W] in [0, 1], their labels [B], and the columns that identify them.

        These are index, split, and, where the data have them, file, label [B], condition_NAME [B] of each number that
        a label stands for, and factors [B, F].
        """
        files = [split.files for split in self.splits.values()]
        width = max((len(printable(file)) for each in files for file in each or ()), default=0)
        for name, split in self.splits.items():
            index, start = split.index, 0
            for x, y in batches(split, batch_size):
                rows = slice(start, start := start + len(y))
                numbers = index[rows].cpu().numpy()
                columns = {"index": numbers, "split": np.full(len(y), name, "U5")}
                if width:
                    texts = [printable(split.files[i]) if split.files else "" for i in numbers]
                    columns["file"] = np.array(texts, f"U{width}")
                if self.class_names:
                    columns["label"] = y.cpu().numpy()
                if self.conditions is not None:
                    given = self.conditions.given(y)
                    columns |= {f"condition_{of}": given[of].numpy() for of in self.conditions.numbers}
                if split.factors is not None:
                    columns["factors"] = split.factors.table[rows].cpu().numpy()
                yield x, y, columns

    def images(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return the uint8 images [N, C, H, W] and the labels [N] of some rows."""
        ends = np.cumsum([len(split) for split in self.splits.values()])
        parts = [int(np.searchsorted(ends, row, side="right")) for row in rows]
        splits, starts = list(self.splits.values()), [0, *ends]
        single = [splits[part][torch.tensor([row - starts[part]])] for row, part in zip(rows, parts, strict=True)]
        return torch.cat([split.x for split in single]), torch.cat([split.y for split in single])


def rows_of(data: Data, split: str, device: torch.device) -> Rows:
    """Return the images of a split, or of train, val and test for all. Raises UserError for one that is empty."""
    names = [name for name in ("train", "val", "test") if split in (name, "all") and (name != "val" or len(data.val))]
    return Rows({name: data.split(name).to(device) for name in names or [split]}, data.class_names, data.conditions)


def codes(encode: Callable[[Tensor, Tensor], Posterior], rows: Rows) -> Iterator[tuple[Tensor, Columns]]:
    """Yield images [B, C, H, W] with the columns that identify them and what q(z|x) has of each."""
    for x, y, columns in rows.batches():
        yield x, columns | posterior_columns(encode(x, y))


def posterior_tensors(q: Posterior) -> dict[str, Tensor]:
    """Return what q(z|x) has of each image: its mean, and what else; of a flow the Gaussian that it starts from."""
    base = {f"base_{name}": values for name, values in parameters(q.base).items()} if hasattr(q, "base") else None
    tensors = {"mean": q.mean} | (parameters(q) if base is None else base)
    return {name: values for name, values in tensors.items() if isinstance(values, Tensor)}


def posterior_columns(q: Posterior) -> Columns:
    """Return the tensors of q(z|x) as columns."""
    return {name: values.cpu().numpy() for name, values in posterior_tensors(q).items()}


class Sample:
    """At most so many of n rows, drawn evenly as they pass: columns of one value a row, and thumbnails."""

    def __init__(self, n: int, most: int) -> None:
        self.rows, self.passed = np.arange(min(n, most)) * n // max(min(n, most), 1), 0
        self.thumbnails, self.columns = list[Image.Image](), dict[str, list]()

    def add(self, x: Tensor, columns: Columns) -> None:
        """Keep those that are drawn of the next images [B, C, H, W] in [0, 1], with their columns [B]."""
        first, self.passed = self.passed, self.passed + len(x)
        chosen = self.rows[np.searchsorted(self.rows, first) : np.searchsorted(self.rows, self.passed)] - first
        for pixels in x[chosen].mul(255).round().byte().permute(0, 2, 3, 1).cpu().numpy():
            self.thumbnails.append(Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels))
            self.thumbnails[-1].thumbnail((THUMBNAIL, THUMBNAIL))
        for name, values in columns.items():
            # Only codes as numbers: W&B projects all that are.
            kept = values[chosen] if values.dtype.kind == "f" else values[chosen].astype(str)
            self.columns.setdefault(name, []).extend(kept.tolist())


def flat(columns: Columns, names: Columns) -> Columns:
    """Return columns of one value a row: mean_0, mean_1, ..., factor_NAME, and class_name after label."""
    result = Columns()
    for name, values in columns.items():
        if name == "factors":
            result |= {f"factor_{of}": value for of, value in zip(names["factor_names"], values.T, strict=True)}
        elif values.ndim == 2:
            result |= {f"{name}_{i}": value for i, value in enumerate(values.T)}
        else:
            result[name] = values
            result |= {"class_name": names["class_names"][values]} if name == "label" else {}
    return result


def write_csv(file: IO[bytes], chunks: Iterable[Columns]) -> None:
    """Write columns of one value a row as CSV in UTF-8, with their names in the first line."""
    text = io.TextIOWrapper(file, "utf-8", newline="")
    writer = csv.writer(text, lineterminator="\n")
    for i, columns in enumerate(chunks):
        if i == 0:
            writer.writerow(columns)
        writer.writerows(zip(*(values.astype(str).tolist() for values in columns.values()), strict=True))
    text.detach()  # the file stays open


def write_parquet(file: IO[bytes], chunks: Iterable[Columns]) -> None:
    """Write columns of one value a row as Parquet."""
    import pyarrow
    from pyarrow import parquet

    chunks, writer = iter(chunks), None
    while tables := [pyarrow.table(columns) for columns in itertools.islice(chunks, GROUP)]:
        writer = writer or parquet.ParquetWriter(file, tables[0].schema)
        writer.write_table(pyarrow.concat_tables(tables))
    if writer is not None:
        writer.close()
