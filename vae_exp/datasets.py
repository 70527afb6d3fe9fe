"""Datasets: each is a function that returns one record, `Data`. The images are uint8 until they are used."""

import contextlib
import functools
import io
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vae_exp.config import UserError

TORCHVISION = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}
DIGITS_TEST_SIZE = 300
DOWNLOAD_SECONDS = 15  # a mirror that hangs must not hang the run


@dataclass
class Split:
    """Images x, uint8 [N, C, H, W], and their labels y, int64 [N]."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: slice | Tensor) -> "Split":
        return Split(self.x[rows], self.y[rows])

    def to(self, device: torch.device) -> "Split":
        return Split(self.x.to(device), self.y.to(device))


@dataclass
class Data:
    """A dataset. Its shapes decide the model's, so that nobody types 784."""

    name: str
    train: Split
    val: Split  # taken from the training images; may be empty
    read_test: Callable[[], Split]  # a function, because the test split is read only when it is measured
    n_classes: int  # 0 where there are no labels

    def split(self, name: str) -> Split:
        """train, val or test. Raises UserError for a validation split that is empty."""
        chosen = self.read_test() if name == "test" else getattr(self, name)
        if not len(chosen):
            raise UserError(f"split={name}: the model was trained with dataset.val_size=0, on all; use split=test.")
        return chosen

    @property
    def x_shape(self) -> tuple[int, int, int]:
        return tuple(self.train.x.shape[1:])


def batches(split: Split, batch_size: int, order: torch.Generator | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """x [B, C, H, W] in [0, 1] and y [B], over all of the split, the last partial batch included.

    With a generator the images come in a new random order; it lives on the CPU, so that every device
    sees the same one.
    """
    device = split.x.device
    rows = torch.arange(len(split)) if order is None else torch.randperm(len(split), generator=order)
    for chosen in rows.to(device).split(batch_size):
        yield split.x[chosen].float().div_(255), split.y[chosen]


def torchvision_images(name: str, root: str, val_size: int, n_classes: int, seed: int, binarize: str = "none") -> Data:
    """MNIST and its drop-ins, read by torchvision and downloaded by it on first use.

    Raises UserError where the files can neither be read nor downloaded.
    """
    folder = Path(root).expanduser()
    train = _binarized(_read(name, folder, train=True), binarize)
    return _split(
        name, train, lambda: _binarized(_read(name, folder, train=False), binarize), val_size, n_classes, seed
    )


@functools.lru_cache(maxsize=4)  # the jobs of a sweep read their data once
def _read(name: str, folder: Path, train: bool) -> Split:
    from torchvision import datasets  # here, because importing it takes seconds

    source = getattr(datasets, TORCHVISION[name])
    _download(source, folder, name)
    try:
        raw = source(folder, train=train)
    except (AssertionError, RuntimeError, ValueError, OSError, KeyError, TypeError) as error:
        raise UserError(
            f"dataset={name}: the files in {folder / source.__name__ / 'raw'} cannot be read "
            f"({_last_line(error)}). Delete that folder to have them downloaded again."
        ) from error
    return Split(raw.data[:, None], raw.targets.long())


def digits(name: str, val_size: int, n_classes: int, seed: int, binarize: str = "none") -> Data:
    """The 1,797 8x8 digits inside scikit-learn (Alpaydin & Kaynak 1998), scaled from 0..16 to 0..255."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    x = torch.from_numpy(raw.images * 255 / 16).round().to(torch.uint8)[:, None]
    y = torch.from_numpy(raw.target).long()
    x = _binarized(Split(x, y), binarize).x
    # The test split is the same for every seed, or runs of different seeds could not be compared.
    rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    test, train = Split(x, y)[rows[:DIGITS_TEST_SIZE]], Split(x, y)[rows[DIGITS_TEST_SIZE:]]
    return _split(name, train, lambda: test, val_size, n_classes, seed)


def _binarized(split: Split, how: str) -> Split:
    """Every pixel black or white: by a threshold at one half, or by one draw of Bernoulli(pixel) for good.

    That draw is the same for every seed, as a binarised dataset on disk would be: else runs of different seeds
    would be measured on different test images.
    """
    if how == "none":
        return split
    if how == "threshold":
        white = split.x >= 128
    else:
        fixed = torch.Generator().manual_seed(0)
        white = torch.rand(split.x.shape, generator=fixed) < split.x.float() / 255
    return Split(white.to(torch.uint8) * 255, split.y)


def _split(name: str, train: Split, read_test: Callable[[], Split], val_size: int, n_classes: int, seed: int) -> Data:
    """Take val_size images, chosen by seed, out of the training split."""
    if val_size >= len(train):
        raise UserError(
            f"dataset.val_size={val_size}: {name} has {len(train):,} training images; leave at least one of them."
        )
    if n_classes and int(train.y.max()) >= n_classes:
        raise UserError(f"dataset.n_classes={n_classes}: {name} has labels up to {int(train.y.max())}.")
    rows = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    kept, held_out = rows[val_size:].sort().values, rows[:val_size].sort().values
    return Data(name, train[kept], train[held_out], read_test, n_classes)


def _download(source: type, folder: Path, name: str) -> None:
    """Let torchvision fetch what is missing, from its mirrors and with its checksums; say it well where it cannot."""
    raw = folder / source.__name__ / "raw"
    files = [filename.removesuffix(".gz") for filename, _ in source.resources]
    if all((raw / file).is_file() for file in files):
        return
    said = io.StringIO()
    patience = socket.getdefaulttimeout()
    try:
        socket.setdefaulttimeout(DOWNLOAD_SECONDS)
        with contextlib.redirect_stdout(said):
            source(folder, download=True)
    except (RuntimeError, OSError) as error:
        tried = "\n".join(f"  tried  {mirror}" for mirror in source.mirrors)
        raise UserError(
            f"dataset={name}: not found in {raw}, and it could not be downloaded.\n{tried}\n"
            f"  error  {_last_line(error)}\n"
            f"Put these four files into {raw} by hand (unpacked):\n  {'  '.join(files)}\n"
            "or say where they are with dataset.root=PATH or VAE_EXP_DATA (the folder that holds "
            f"{source.__name__}/raw), or train on what needs no download: dataset=digits"
        ) from error
    finally:
        socket.setdefaulttimeout(patience)


def _last_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
