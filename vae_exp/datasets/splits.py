"""Images with their labels, in memory or streamed, and batches of them. Images are uint8 until they are used."""

import math
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vae_exp.datasets.conditions import Conditions
from vae_exp.datasets.factors import Factors

UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
PREFETCH = 4  # batches


@dataclass
class Streamed:
    """Images too large for the device, uint8 [N, C, H, W], of which indexing reads nothing."""

    source: Tensor | Path | Callable[[Tensor], Tensor]  # in memory, a file of raw bytes, or what makes given rows
    shape: tuple[int, ...]  # of all rows of the source
    rows: Tensor  # int64 [N], of the source
    is_binary: bool = False  # known to be black or white

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: slice | Tensor) -> "Streamed":
        return replace(self, rows=self.rows[rows])

    def read(self) -> Tensor:
        if isinstance(self.source, Tensor):
            return self.source[self.rows]
        if not isinstance(self.source, Path):
            return self.source(self.rows)
        # Mapped anew for every read: the pages never add up in the memory of this process.
        mapped = np.memmap(self.source, np.uint8, "r", shape=self.shape)
        return torch.from_numpy(np.take(mapped, self.rows.numpy(), axis=0).view(np.ndarray))


@dataclass
class Split:
    """Images, uint8 [N, C, H, W], and their labels y, int64 [N], on the device that batches go to."""

    images: Tensor | Streamed
    y: Tensor
    flip: bool = False  # in training, half of the images are mirrored, left to right
    dynamic: bool = False  # every pixel is drawn from Bernoulli(pixel) each time it is used
    factors: Factors | None = None
    files: Sequence[str] | None = None  # of all the data that these images are chosen from, where each is a file
    chosen: Tensor | None = None  # int64 [N], which of them these are, in the order of the data; None: all
    given: Sequence[str] = ()  # the conditions that y combines, of which some may be factors

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, rows: slice | Tensor) -> "Split":
        factors = None if self.factors is None else self.factors[rows]
        return replace(self, images=self.images[rows], y=self.y[rows], factors=factors, chosen=self.index[rows])

    @property
    def index(self) -> Tensor:
        """Return where each image stands in the data as they were read, int64 [N]."""
        return torch.arange(len(self), device=self.y.device) if self.chosen is None else self.chosen

    @property
    def x(self) -> Tensor:
        """Return all images at once, on the labels' device."""
        return (self.images.read() if isinstance(self.images, Streamed) else self.images).to(self.y.device)

    @property
    def x_shape(self) -> tuple[int, int, int]:
        _, channels, height, width = self.images.shape
        return channels, height, width

    def is_grey(self) -> bool:
        """Return whether pixels between black and white reach the model, judging by the first 256 images."""
        x = self[:256].x
        return not self.dynamic and bool(((x > 0) & (x < 255)).any())

    def saturated_share(self) -> float:
        """Return the share of pixels that reach the model as pure black or white, judging by 256 images."""
        x = self[:: max(1, len(self) // 256)].x
        return 1.0 if self.dynamic else ((x == 0) | (x == 255)).float().mean().item()

    def given_factors(self) -> list[str]:
        """Return the names of the varying factors that a conditional model is given, or that its label determines."""
        if self.factors is None:
            return []
        varying, n_labels = self.factors.varying(), len(self.y.unique())
        if 2 * n_labels > len(self):  # so rare labels go with one value by chance
            return [name for name in varying.names if name in self.given]
        pairs = [torch.stack([self.y, column]).unique(dim=1).shape[1] for column in varying.table.T]
        return [name for name, n in zip(varying.names, pairs, strict=True) if n == n_labels]

    def unknown_factors(self, conditional: bool) -> Factors:
        """Return the factors to score: those that vary, except those that a conditional model is given."""
        assert self.factors is not None, "whoever scores has seen to it"
        return self.factors.varying(without=self.given_factors() if conditional else ())

    def to(self, device: torch.device) -> "Split":
        """Move the split to a device. Streamed images stay where they are until their batch comes."""
        images = self.images if isinstance(self.images, Streamed) else self.images.to(device)
        factors = None if self.factors is None else self.factors.to(device)
        chosen = None if self.chosen is None else self.chosen.to(device)
        return replace(self, images=images, y=self.y.to(device), factors=factors, chosen=chosen)

    def stream_above(self, limit: int) -> "Split":
        """Return the same images in memory, or streamed if they take more bytes than limit."""
        images = self.images
        if len(self) * math.prod(self.x_shape) <= limit:
            return replace(self, images=images.read()) if isinstance(images, Streamed) else self
        if isinstance(images, Tensor):
            images = Streamed(images, tuple(images.shape), torch.arange(len(self)))
        return replace(self, images=images)


@dataclass
class Source:
    """A dataset's splits, class names and files, as the dataset's own function returns them."""

    name: str
    train: Split
    read_test: Callable[[], Split]  # called once, at the end of a run
    class_names: list[str]  # of the labels 0, 1, ...; empty where there are none
    val: Split | None = None  # where the data comes with one
    test_is_at_hand: bool = False  # its labels cost nothing to read before the end
    files: dict[str, str] | None = None  # digests of what the images are read from, by names below the root
    conditions: Conditions | None = None  # what each label combines, where it is more than one thing


def batches(
    split: Split,
    batch_size: int,
    order: torch.Generator | None = None,
    draws: torch.Generator | None = None,
    skip: int = 0,
    stop: int | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield x [B, C, H, W] in [0, 1] and y [B], the last partial batch included.

    With `order`, on the CPU so that every device gets the same one, images come in a new random order. With `draws`, on
    the labels' device, they are flipped and binarised anew if the split says so; without it they are not flipped, and
    binarised the same every time. The first `skip` batches are not read, nor, without an order, those from `stop` on.
    """
    device = split.y.device
    binary = draws or torch.Generator(device).manual_seed(0)
    rows: Any  # a slice or a tensor of row numbers for each batch
    on_device: Any
    if order is None:
        slices = [slice(at, at + batch_size) for at in range(0, len(split), batch_size)]
        rows = on_device = slices[skip:stop]
        for skipped in slices[:skip] if split.dynamic and draws is None else ():
            torch.bernoulli(torch.zeros(len(split.y[skipped]), *split.x_shape, device=device), generator=binary)
    else:
        shuffled = torch.randperm(len(split), generator=order)[skip * batch_size :]
        if not len(shuffled):  # split would make one empty batch of nothing
            return
        rows, on_device = shuffled.split(batch_size), shuffled.to(device).split(batch_size)
    if isinstance(split.images, Streamed):
        read = _prefetch(split.images, rows, device)
    elif order is None:
        read = (split.images[batch] for batch in on_device)
    else:  # seven times as fast as indexing
        read = (split.images.index_select(0, batch) for batch in on_device)
    labels = (split.y[batch] if order is None else split.y.index_select(0, batch) for batch in on_device)
    for x, y in zip(read, labels, strict=True):
        if split.flip and draws is not None:
            mirrored = torch.rand(len(x), 1, 1, 1, generator=draws, device=device) < 0.5
            x = torch.where(mirrored, x.flip(-1), x)
        x = x.float().div_(255)
        yield torch.bernoulli(x, generator=binary) if split.dynamic else x, y


def _prefetch(images: Streamed, rows: Iterable[slice | Tensor], device: torch.device) -> Iterator[Tensor]:
    """Yield uint8 batches on the device, read ahead of the steps by one thread; copies to a GPU do not wait."""
    cuda = device.type == "cuda"

    def read(batch: slice | Tensor) -> Tensor:
        x = images[batch].read()
        return x.pin_memory() if cuda else x

    with ThreadPoolExecutor(1) as reader:
        waiting: deque = deque()
        for batch in rows:
            waiting.append(reader.submit(read, batch))
            if len(waiting) > PREFETCH:
                yield waiting.popleft().result().to(device, non_blocking=cuda)
        while waiting:
            yield waiting.popleft().result().to(device, non_blocking=cuda)


def size_in_bytes(size: int | str) -> int:
    """Return a size in bytes: 2GB is 2,000,000,000, a plain number is bytes."""
    number, unit = re.findall(r"([\d.]+)\s*(\w*)", str(size))[0]
    return int(float(number) * UNITS[unit.upper() or "B"])
