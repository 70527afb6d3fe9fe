"""Datasets: each is a function that returns a `Source`; `prepare` then applies the options that all of them share."""

import contextlib
import functools
import hashlib
import io
import socket
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from vae_exp.config import UserError
from vae_exp.prepare import Data, Source, prepare
from vae_exp.prepared_copy import prepared
from vae_exp.splits import Split, batches

__all__ = ["Data", "Source", "Split", "batches", "digits", "prepare", "torchvision_images"]

DIGITS_TEST_SIZE = 300
DOWNLOAD_SECONDS = 15  # a mirror that hangs must not hang the run


class Torchvision(NamedTuple):
    """Where torchvision keeps a dataset, and how its class is told which split is meant."""

    source: str
    folder: str
    files: tuple[str, ...]
    home: str = ""  # where people find the files; torchvision's mirrors where this is empty
    key: str = "train"

    def part(self, train: bool) -> dict[str, Any]:
        return {"train": train} if self.key == "train" else {"split": "train" if train else "test"}


IDX = tuple(f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
MNIST_MD5 = dict(
    zip(
        IDX,
        (
            "6bbc9ace898e44ae57da46a324031adb",
            "a25bea736e30d166cdddb491f175f624",
            "2646ac647ad5339dbf082846283269ea",
            "27ae3e4e09519cfbb04c329615203637",
        ),
        strict=True,
    )
)
QIDX = tuple(f"qmnist-{part}-{kind}" for part in ("train", "test") for kind in ("images-idx3-ubyte", "labels-idx2-int"))
BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")
LISTS = ("attr_celeba", "eval_partition", "bbox_celeba", "landmarks_align_celeba")
CELEBA = ("img_align_celeba", "identity_CelebA.txt", *(f"list_{name}.txt" for name in LISTS))
TORCHVISION = {
    "mnist": Torchvision("MNIST", "MNIST/raw", IDX),
    "fashion_mnist": Torchvision("FashionMNIST", "FashionMNIST/raw", IDX),
    "kmnist": Torchvision("KMNIST", "KMNIST/raw", IDX),
    "emnist": Torchvision("EMNIST", "EMNIST/raw", (), "https://www.nist.gov/itl/products-and-services/emnist-dataset"),
    "qmnist": Torchvision("QMNIST", "QMNIST/raw", QIDX, "https://github.com/facebookresearch/qmnist"),
    "cifar10": Torchvision("CIFAR10", "cifar-10-batches-py", BATCHES, "https://www.cs.toronto.edu/~kriz/cifar.html"),
    "svhn": Torchvision(
        "SVHN", ".", ("train_32x32.mat", "test_32x32.mat"), "http://ufldl.stanford.edu/housenumbers", "split"
    ),
    "celeba": Torchvision("CelebA", "celeba", CELEBA, "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html", "split"),
}


def torchvision_images(name: str, root: str, binarize: str = "none", split: str | None = None) -> Source:
    """A dataset that torchvision reads whole, downloaded by it on first use. split is one of EMNIST's.

    Raises UserError where the files can neither be read nor downloaded.
    """
    folder = Path(root).expanduser()
    if binarize == "larochelle":
        return larochelle(folder)
    train, class_names = _kept(name, folder, True, split)
    return Source(name, train, lambda: _kept(name, folder, False, split)[0], class_names)


@functools.lru_cache(maxsize=4)  # the jobs of a sweep read their data once
def _kept(name: str, folder: Path, train: bool, split: str | None) -> tuple[Split, list[str]]:
    known = _where(name, split)
    files = [folder / known.folder / file for file in known.files]
    part = f"{name}{split or ''}-{'train' if train else 'test'}"
    return prepared(part, files, lambda: _read(name, folder, train, split))


def _where(name: str, split: str | None) -> Torchvision:
    """Where torchvision keeps a dataset; EMNIST's files are named by their split."""
    if split is None:
        return TORCHVISION[name]
    files = (f"{part}-{kind}-ubyte" for part in ("train", "test") for kind in ("images-idx3", "labels-idx1"))
    return TORCHVISION[name]._replace(files=tuple(f"emnist-{split}-{file}" for file in files))


def _read(name: str, folder: Path, train: bool, split: str | None) -> tuple[Split, list[str]]:
    raw = open_torchvision(name, folder, train, split)
    x = torch.as_tensor(raw.data)
    if x.ndim == 3:  # grey
        x = x[:, None]
    elif x.shape[-1] == 3:  # CIFAR-10; SVHN's channels come first as they are
        x = x.permute(0, 3, 1, 2)
    y = torch.as_tensor(raw.labels if name == "svhn" else raw.targets).long()
    if name == "qmnist":  # the class, before the writer and the rest
        y = y[:, 0]
    if name == "emnist":  # its files hold each image transposed
        x = x.transpose(2, 3)
    class_names = list(getattr(raw, "classes", "0123456789"))
    if class_names[0] == "N/A":  # EMNIST's letters count from 1
        class_names, y = class_names[1:], y - 1
    _check_sound(name, folder / TORCHVISION[name].folder, x, y, len(class_names))
    return Split(x.contiguous(), y), [label.split(" - ")[0] for label in class_names]  # 7, not "7 - seven"


def _check_sound(name: str, folder: Path, x: torch.Tensor, y: torch.Tensor, n_classes: int) -> None:
    """Raises UserError for files that can be read and do not go together, or are not as they were published."""
    wrong = None
    if x.dtype != torch.uint8 or x.ndim != 4 or 0 in x.shape or y.ndim != 1:
        wrong = f"the images have the shape {list(x.shape)} and the type {x.dtype}"
    elif len(x) != len(y):
        wrong = f"{len(x):,} images and {len(y):,} labels"
    elif y.min() < 0 or y.max() >= n_classes:
        wrong = f"labels from {y.min()} to {y.max()}"
    elif name == "mnist" and len(x) in (60_000, 10_000):  # other sizes are somebody's own
        for file in IDX[:2] if len(x) == 60_000 else IDX[2:]:
            if hashlib.md5((folder / file).read_bytes(), usedforsecurity=False).hexdigest() != MNIST_MD5[file]:
                wrong = f"{file} has not the checksum that it was published with"
    if wrong:
        raise UserError(
            f"dataset={name}: the files in {folder} are damaged: {wrong}. Delete them to download them anew."
        )


def open_torchvision(name: str, folder: Path, train: bool | str, split: str | None = None) -> Any:
    """torchvision's own dataset object, downloaded if need be. Raises UserError."""
    from torchvision import datasets  # here, because importing it takes seconds

    known = _where(name, split)
    source = getattr(datasets, known.source)
    more = {} if split is None else {"split": split}
    _download(source, known, folder, name, more)
    part = {"split": train} if isinstance(train, str) else known.part(train)
    try:
        return source(folder, **part, **more)
    except (AssertionError, RuntimeError, ValueError, OSError, KeyError, TypeError, EOFError) as error:
        raise UserError(
            f"dataset={name}: the files in {folder / known.folder} cannot be read "
            f"({_last_line(error)}). Delete them to have them downloaded again."
        ) from error


def larochelle(folder: Path) -> Source:
    """MNIST as Larochelle & Murray (2011) binarised and split it: 50,000, 10,000 and 10,000 images, no labels.

    Raises UserError where binarized_mnist_{train,valid,test}.amat are not in the folder, or damaged.
    """
    parts = {part: folder / f"binarized_mnist_{part}.amat" for part in ("train", "valid", "test")}
    if missing := [path.name for path in parts.values() if not path.is_file()]:
        raise UserError(
            f"dataset.binarize=larochelle: not found in {folder}: {', '.join(missing)}. Put the three files there, or "
            "say where they are with dataset.root=PATH. dataset.binarize=static is a fixed draw that needs no files."
        )
    train, val = _read_amat(parts["train"]), _read_amat(parts["valid"])
    return Source("mnist", train, lambda: _read_amat(parts["test"]), [], val)


@functools.lru_cache(maxsize=4)
def _read_amat(path: Path) -> Split:
    pixels = np.frombuffer(path.read_bytes(), np.uint8)
    pixels = pixels[(pixels != ord(" ")) & (pixels != ord("\n")) & (pixels != ord("\r"))] - ord("0")
    if pixels.size == 0 or pixels.size % 784 or pixels.max() > 1:
        raise UserError(f"dataset.binarize=larochelle: {path} is damaged: it must hold 784 zeros and ones a line.")
    x = torch.from_numpy(pixels * np.uint8(255)).view(-1, 1, 28, 28)
    return Split(x, torch.zeros(len(x), dtype=torch.long))


def digits(name: str) -> Source:
    """The 1,797 8x8 digits inside scikit-learn (Alpaydin & Kaynak 1998), scaled from 0..16 to 0..255."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    x = torch.from_numpy(raw.images * 255 / 16).round().to(torch.uint8)[:, None]
    y = torch.from_numpy(raw.target).long()
    # The test split is the same for every seed, or runs of different seeds could not be compared.
    rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    test, train = Split(x, y)[rows[:DIGITS_TEST_SIZE]], Split(x, y)[rows[DIGITS_TEST_SIZE:]]
    return Source(name, train, lambda: test, [str(digit) for digit in range(10)])


def _download(source: type, known: Torchvision, folder: Path, name: str, more: dict) -> None:
    """Let torchvision fetch what is missing, from its mirrors and with its checksums; say it well where it cannot."""
    raw = folder / known.folder
    if all((raw / file).exists() for file in known.files):
        return
    said = io.StringIO()
    patience = socket.getdefaulttimeout()
    try:
        socket.setdefaulttimeout(DOWNLOAD_SECONDS)
        with contextlib.redirect_stdout(said):
            for train in (True, False):
                source(folder, download=True, **known.part(train), **more)
    except (RuntimeError, OSError, ImportError) as error:  # CelebA's lies on Google Drive, which needs a package
        tried = [known.home] if known.home else source.mirrors
        tried = "\n".join(f"  tried  {mirror}" for mirror in tried)
        raise UserError(
            f"dataset={name}: not found in {raw}, and it could not be downloaded.\n{tried}\n"
            f"  error  {_last_line(error)}\n"
            f"Put these files into {raw} by hand (unpacked):\n  {'  '.join(known.files)}\n"
            f"or say where they are with dataset.root=PATH or VAE_EXP_DATA (the folder that holds {known.folder}), "
            "or train on what needs no download: dataset=digits"
        ) from error
    finally:
        socket.setdefaulttimeout(patience)


def _last_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
