"""Datasets that torchvision downloads, CelebA, and Larochelle's binarised MNIST."""

import contextlib
import functools
import hashlib
import io
import pickle
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from vae_exp.datasets.image_files import Decoding
from vae_exp.datasets.image_folder import decoded, image_shape
from vae_exp.datasets.splits import Source, Split
from vae_exp.errors import Unwritable, UserError
from vae_exp.files import announce, atomic_write, cache_folder, content_key, of_files


def larochelle(name: str, folder: Path) -> Source:
    """Return MNIST as Larochelle & Murray (2011) split and binarised it: 50,000, 10,000, 10,000 images, no labels.

    Raises UserError if binarized_mnist_{train,valid,test}.amat are not in the folder, or damaged.
    """
    parts = {part: folder / f"binarized_mnist_{part}.amat" for part in ("train", "valid", "test")}
    if missing := [path.name for path in parts.values() if not path.is_file()]:
        raise UserError(
            f"dataset.binarize=larochelle: not found in {folder}: {', '.join(missing)}. Put the three files there, or "
            "say where they are with dataset.root=PATH. dataset.binarize=static is a fixed draw that needs no files."
        )
    train, val = _read_larochelle(parts["train"]), _read_larochelle(parts["valid"])
    files = of_files({path.name: path for path in parts.values()})
    return Source(name, train, lambda: _read_larochelle(parts["test"]), [], val, files=files)


def _read_larochelle(path: Path) -> Split:
    return _read_amat(path, content_key({path.name: path}))


@functools.lru_cache(maxsize=4)  # the jobs of a sweep read their data once; key: until the file has changed
def _read_amat(path: Path, key: str) -> Split:
    pixels = np.frombuffer(path.read_bytes(), np.uint8)
    pixels = pixels[(pixels != ord(" ")) & (pixels != ord("\n")) & (pixels != ord("\r"))] - ord("0")
    if pixels.size == 0 or pixels.size % 784 or pixels.max() > 1:
        raise UserError(f"dataset.binarize=larochelle: {path} is damaged: it must hold 784 zeros and ones a line.")
    x = torch.from_numpy(pixels * np.uint8(255)).view(-1, 1, 28, 28)
    return Split(x, torch.zeros(len(x), dtype=torch.long))


DOWNLOAD_SECONDS = 15  # a mirror that hangs must not hang the run
COPY_FORMAT = 2  # part of a copy's name: a copy of another format is not found


class Files(NamedTuple):
    """The place where torchvision keeps a dataset, and the arguments that choose a split."""

    class_name: str  # in torchvision.datasets
    folder: str
    names: tuple[str, ...]
    home: str = ""  # where people find the files; torchvision's mirrors where this is empty
    key: str = "train"

    def part(self, train: bool) -> dict[str, Any]:
        return {"train": train} if self.key == "train" else {"split": "train" if train else "test"}


IDX = tuple(f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
MNIST_MD5 = {
    IDX[0]: "6bbc9ace898e44ae57da46a324031adb",
    IDX[1]: "a25bea736e30d166cdddb491f175f624",
    IDX[2]: "2646ac647ad5339dbf082846283269ea",
    IDX[3]: "27ae3e4e09519cfbb04c329615203637",
}
QIDX = tuple(f"qmnist-{part}-{kind}" for part in ("train", "test") for kind in ("images-idx3-ubyte", "labels-idx2-int"))
BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")
LISTS = ("attr_celeba", "eval_partition", "bbox_celeba", "landmarks_align_celeba")
CELEBA = ("img_align_celeba", "identity_CelebA.txt", *(f"list_{name}.txt" for name in LISTS))
KNOWN = {
    "mnist": Files("MNIST", "MNIST/raw", IDX),
    "fashion_mnist": Files("FashionMNIST", "FashionMNIST/raw", IDX),
    "kmnist": Files("KMNIST", "KMNIST/raw", IDX),
    "emnist": Files("EMNIST", "EMNIST/raw", (), "https://www.nist.gov/itl/products-and-services/emnist-dataset"),
    "qmnist": Files("QMNIST", "QMNIST/raw", QIDX, "https://github.com/facebookresearch/qmnist"),
    "cifar10": Files("CIFAR10", "cifar-10-batches-py", BATCHES, "https://www.cs.toronto.edu/~kriz/cifar.html"),
    "svhn": Files(
        "SVHN", ".", ("train_32x32.mat", "test_32x32.mat"), "http://ufldl.stanford.edu/housenumbers", "split"
    ),
    "celeba": Files("CelebA", "celeba", CELEBA, "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html", "split"),
}
READ_WHOLE = tuple(source for source in KNOWN if source != "celeba")  # into memory


def torchvision_images(name: str, source: str, root: str, binarize: str = "none", split: str | None = None) -> Source:
    """Return a dataset that torchvision reads whole, such as source=mnist; name is its label in names and tables.

    split is one of EMNIST's. Raises UserError if the files can be neither read nor downloaded.
    """
    if source not in READ_WHOLE:
        raise UserError(f"dataset.source={source}: it takes one of {', '.join(READ_WHOLE)}.")
    folder = Path(root).expanduser()
    if binarize == "larochelle":
        return larochelle(name, folder)
    train, class_names = _read_part(source, folder, True, split)
    known = _files_of(source, split)
    files = of_files({file: folder / known.folder / file for file in known.names})
    return Source(name, train, lambda: _read_part(source, folder, False, split)[0], class_names, files=files)


def _read_part(source: str, folder: Path, train: bool, split: str | None) -> tuple[Split, list[str]]:
    """Return a split and its class names: read, copied, or still in memory if the files have not changed since."""
    known = _files_of(source, split)
    files = {file: folder / known.folder / file for file in known.names}
    if not all(file.is_file() for file in files.values()):  # not all there yet
        return _read(source, folder, train, split)
    return _read_once(source, folder, train, split, content_key(files))


@functools.lru_cache(maxsize=4)  # the jobs of a sweep read their data once
def _read_once(source: str, folder: Path, train: bool, split: str | None, key: str) -> tuple[Split, list[str]]:
    """Return the content of the files, or a copy of it from when they had the content that key identifies.

    A copy needs no torchvision, whose import takes seconds. If it cannot be read or written, the files are read.
    """
    cache = cache_folder("prepared")
    announce(cache, "copies of what torchvision read")
    copy = cache / f"{source}{split or ''}-{'train' if train else 'test'}-{COPY_FORMAT}-{key}.pt"
    with contextlib.suppress(OSError, RuntimeError, EOFError, KeyError, TypeError, ValueError, pickle.UnpicklingError):
        held = torch.load(copy, weights_only=True)
        return Split(held["x"], held["y"]), held["class_names"]
    images, class_names = _read(source, folder, train, split)
    with contextlib.suppress(OSError, RuntimeError, Unwritable):
        cache.mkdir(parents=True, exist_ok=True)
        with atomic_write(copy, sync=False) as file:
            torch.save({"x": images.images, "y": images.y, "class_names": class_names}, file)
    return images, class_names


def _files_of(source: str, split: str | None) -> Files:
    """Return where torchvision keeps a dataset; EMNIST's files are named by their split."""
    if split is None:
        return KNOWN[source]
    names = (f"{part}-{kind}-ubyte" for part in ("train", "test") for kind in ("images-idx3", "labels-idx1"))
    return KNOWN[source]._replace(names=tuple(f"emnist-{split}-{name}" for name in names))


def _read(source: str, folder: Path, train: bool, split: str | None) -> tuple[Split, list[str]]:
    raw = open_torchvision(source, folder, train, split)
    x = torch.as_tensor(raw.data)
    if x.ndim == 3:  # grey
        x = x[:, None]
    elif x.shape[-1] == 3:  # CIFAR-10; SVHN's channels come first as they are
        x = x.permute(0, 3, 1, 2)
    y = torch.as_tensor(raw.labels if source == "svhn" else raw.targets).long()
    if source == "qmnist":  # the class, before the writer and the rest
        y = y[:, 0]
    if source == "emnist":  # its files hold each image transposed
        x = x.transpose(2, 3)
    class_names = list(getattr(raw, "classes", "0123456789"))
    if class_names[0] == "N/A":  # EMNIST's letters count from 1
        class_names, y = class_names[1:], y - 1
    _require_sound(source, folder / KNOWN[source].folder, x, y, len(class_names))
    return Split(x.contiguous(), y), [label.split(" - ")[0] for label in class_names]  # 7, not "7 - seven"


def _require_sound(source: str, folder: Path, x: torch.Tensor, y: torch.Tensor, n_classes: int) -> None:
    """Raise UserError if readable files do not go together, or are not as they were published."""
    wrong = None
    if x.dtype != torch.uint8 or x.ndim != 4 or 0 in x.shape or y.ndim != 1:
        wrong = f"the images have the shape {list(x.shape)} and the type {x.dtype}"
    elif len(x) != len(y):
        wrong = f"{len(x):,} images and {len(y):,} labels"
    elif y.min() < 0 or y.max() >= n_classes:
        wrong = f"labels from {y.min()} to {y.max()}"
    elif source == "mnist" and len(x) in (60_000, 10_000):  # other sizes are somebody's own
        for file in IDX[:2] if len(x) == 60_000 else IDX[2:]:
            if hashlib.md5((folder / file).read_bytes(), usedforsecurity=False).hexdigest() != MNIST_MD5[file]:
                wrong = f"{file} has not the checksum that it was published with"
    if wrong:
        raise UserError(
            f"dataset={source}: the files in {folder} are damaged: {wrong}. Delete them to download them anew."
        )


def open_torchvision(source: str, folder: Path, train: bool | str, split: str | None = None) -> Any:
    """Return torchvision's own dataset object, downloaded if need be; train is True, False or the name of a part.

    Raises UserError if the files can be neither read nor downloaded.
    """
    from torchvision import datasets  # here, because importing it takes seconds

    known = _files_of(source, split)
    make = getattr(datasets, known.class_name)
    which = {} if split is None else {"split": split}
    _download(make, known, folder, source, which)
    part = {"split": train} if isinstance(train, str) else known.part(train)
    try:
        return make(folder, **part, **which)
    except (AssertionError, RuntimeError, ValueError, OSError, KeyError, TypeError, EOFError) as error:
        raise UserError(
            f"dataset={source}: the files in {folder / known.folder} cannot be read "
            f"({last_line(error)}). Delete them to have them downloaded again."
        ) from error


def _download(make: Any, known: Files, folder: Path, source: str, which: dict[str, str]) -> None:
    """Let torchvision fetch what is missing, from its mirrors and with its checksums.

    Raises UserError, with what to do by hand, if it cannot; folders that were made for it are then removed.
    """
    raw = folder / known.folder
    if all((raw / file).exists() for file in known.names):
        return
    printed = io.StringIO()
    timeout = socket.getdefaulttimeout()
    try:
        socket.setdefaulttimeout(DOWNLOAD_SECONDS)
        with folder_for_a_while(raw), contextlib.redirect_stdout(printed):
            for train in (True, False):
                make(folder, download=True, **known.part(train), **which)
    except (RuntimeError, OSError, ImportError) as error:  # CelebA's lies on Google Drive, which needs a package
        tried = [known.home] if known.home else make.mirrors
        tried = "\n".join(f"  tried  {mirror}" for mirror in tried)
        raise UserError(
            f"dataset={source}: not found in {raw}, and it could not be downloaded.\n{tried}\n"
            f"  error  {last_line(error)}\n"
            f"Put these files into {raw} by hand (unpacked):\n  {'  '.join(known.names)}\n"
            f"or say where they are with dataset.root=PATH or VAE_EXP_DATA (the folder that holds {known.folder}), "
            "or train on what needs no download: dataset=digits"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)


@contextlib.contextmanager
def folder_for_a_while(folder: Path) -> Iterator[None]:
    """Run the block with a folder and its parents made for it; if the block fails, remove those that are empty.

    Others may use the folders above at the same time: only what mkdir made here is removed.
    """
    made: list[Path] = []
    try:
        for path in (*reversed(folder.parents), folder):
            if not path.exists():
                with contextlib.suppress(FileExistsError):  # another process was faster
                    path.mkdir()
                    made.append(path)
        yield
    except BaseException:
        for path in reversed(made):
            with contextlib.suppress(OSError):  # not empty
                path.rmdir()
        raise


def last_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


EVERY = 200  # images of which one is looked at, to know the data again: 202,599 files take long


def celeba(
    name: str,
    root: str,
    image_size: int | list[int],
    crop: int | None,
    attribute: str | None,
    on_error: str,
    cache: str | None = None,
) -> Source:
    """Return CelebA (Liu et al. 2015) with its own three splits. The label is one of 40 attributes, 0 or 1, or none."""
    folder = Path(root).expanduser()

    def read(part: str) -> Split:
        raw = open_torchvision("celeba", folder, part)
        labels = [0] * len(raw.filename)
        if attribute is not None:
            known = [attribute_name for attribute_name in raw.attr_names if attribute_name]
            if attribute not in known:
                raise UserError(f"dataset.attribute={attribute}: it takes null or one of {', '.join(known)}.")
            labels = raw.attr[:, known.index(attribute)].tolist()
        images = folder / raw.base_folder / "img_align_celeba"
        how = Decoding(image_shape(image_size, 3), crop, on_error=on_error, cache=cache)
        return decoded(images, raw.filename, labels, how)

    class_names = [] if attribute is None else [f"not {attribute}", attribute]
    train, val = read("train"), read("valid")
    names = (*CELEBA[1:], *(f"{CELEBA[0]}/{number:06}.jpg" for number in range(1, 202_600, EVERY)))
    digests = of_files({path: folder / "celeba" / path for path in names})
    return Source(name, train, lambda: read("test"), class_names, val, files=digests)
