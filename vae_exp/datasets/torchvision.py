"""Datasets that torchvision downloads, CelebA, and Larochelle's binarised MNIST."""

import contextlib
import functools
import io
import pickle
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from vae_exp.datasets.image_folder import Decoding, image_shape, read_split
from vae_exp.datasets.splits import Source, Split
from vae_exp.errors import Unwritable, UserError, printable
from vae_exp.files import atomic_write, cache_folder, content_key, digests, expand, log_once, making

DOWNLOAD_SECONDS = 15  # a mirror that hangs must not hang the run
COPY_FORMAT = 2  # part of a copy's name: a copy of another format is not found


class Files(NamedTuple):
    """Files of one of torchvision's datasets, and the argument that chooses a split."""

    class_name: str  # in torchvision.datasets
    folder: str
    names: tuple[str, ...]
    home: str = ""  # where people find the files; torchvision's mirrors where this is empty
    key: str = "train"

    def arguments(self, part: str) -> dict[str, Any]:
        return {"train": part == "train"} if self.key == "train" else {"split": part}


IDX = tuple(f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
QIDX = tuple(f"qmnist-{part}-{kind}" for part in ("train", "test") for kind in ("images-idx3-ubyte", "labels-idx2-int"))
EIDX = tuple(f"emnist-{{}}-{name.replace('t10k', 'test')}" for name in IDX)  # with the name of its split
BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")
SVHN = ("train_32x32.mat", "test_32x32.mat")
LISTS = ("attr_celeba", "eval_partition", "bbox_celeba", "landmarks_align_celeba")
CELEBA = ("img_align_celeba", "identity_CelebA.txt", *(f"list_{name}.txt" for name in LISTS))
KNOWN = {
    "mnist": Files("MNIST", "MNIST/raw", IDX),
    "fashion_mnist": Files("FashionMNIST", "FashionMNIST/raw", IDX),
    "kmnist": Files("KMNIST", "KMNIST/raw", IDX),
    "emnist": Files("EMNIST", "EMNIST/raw", EIDX, "https://www.nist.gov/itl/products-and-services/emnist-dataset"),
    "qmnist": Files("QMNIST", "QMNIST/raw", QIDX, "https://github.com/facebookresearch/qmnist"),
    "cifar10": Files("CIFAR10", "cifar-10-batches-py", BATCHES, "https://www.cs.toronto.edu/~kriz/cifar.html"),
    "svhn": Files("SVHN", ".", SVHN, "http://ufldl.stanford.edu/housenumbers", "split"),
    "celeba": Files("CelebA", "celeba", CELEBA, "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html", "split"),
}


def torchvision_images(name: str, source: str, root: str, binarize: str = "none", split: str | None = None) -> Source:
    """Return a dataset that torchvision reads whole, such as source=mnist. Raises UserError if it cannot be had."""
    folder = expand(root)
    if binarize == "larochelle":
        return larochelle(name, folder)
    files = _files(source, folder, split)

    def read(part: str) -> tuple[Split, list[str]]:
        if not all(path.is_file() for path in files.values()):
            return _read(source, folder, part, split)
        return _read_cached(source, folder, part, split, content_key(files))

    train, class_names = read("train")
    return Source(name, train, lambda: read("test")[0], class_names, files=digests(files))


def _files(source: str, folder: Path, split: str | None) -> dict[str, Path]:
    return {name.format(split): folder / KNOWN[source].folder / name.format(split) for name in KNOWN[source].names}


@functools.lru_cache(maxsize=4)  # the jobs of a sweep read their data once
def _read_cached(source: str, folder: Path, part: str, split: str | None, key: str) -> tuple[Split, list[str]]:
    """Return the files' content, or a copy of that which key identifies: it needs no torchvision, slow to import."""
    cache = cache_folder("prepared")
    log_once(f"copies of what torchvision read are cached in {printable(cache)}")
    copy = cache / f"{source}{split or ''}-{part}-{COPY_FORMAT}-{key}.pt"
    with contextlib.suppress(OSError, RuntimeError, EOFError, KeyError, TypeError, ValueError, pickle.UnpicklingError):
        stored = torch.load(copy, weights_only=True)
        return Split(stored["x"], stored["y"]), stored["class_names"]
    images, class_names = _read(source, folder, part, split)
    with contextlib.suppress(OSError, RuntimeError, Unwritable), atomic_write(copy, sync=False) as file:
        torch.save({"x": images.images, "y": images.y, "class_names": class_names}, file)
    return images, class_names


def _read(source: str, folder: Path, part: str, split: str | None) -> tuple[Split, list[str]]:
    raw = open_torchvision(source, folder, part, split)
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
    n_classes, are_images = len(class_names), x.dtype == torch.uint8 and x.ndim == 4 and 0 not in x.shape
    if not are_images or y.shape != (len(x),) or y.min() < 0 or y.max() >= n_classes:
        read = f"images of {x.dtype} {list(x.shape)} and labels {list(y.shape)} of {n_classes} classes"
        where = f"files in {folder / KNOWN[source].folder} are damaged: {read} do not go together"
        raise UserError(f"dataset={source}: {where}. Delete them to download them anew.")
    return Split(x.contiguous(), y), [label.split(" - ")[0] for label in class_names]  # 7, not "7 - seven"


def open_torchvision(source: str, folder: Path, part: str, split: str | None = None) -> Any:
    """Return torchvision's own dataset object, downloaded if need be; part is train, test or CelebA's valid."""
    from torchvision import datasets  # here, because importing it takes seconds

    known, files = KNOWN[source], _files(source, folder, split)
    dataset = getattr(datasets, known.class_name)
    make = functools.partial(dataset, folder, **({} if split is None else {"split": split}))
    if not all(path.exists() for path in files.values()):
        tried = [known.home] if known.home else dataset.mirrors
        with downloading(source, folder, known.folder, tried, files, instead="digits"):
            for either in ("train", "test"):
                make(download=True, **known.arguments(either))
    try:
        return make(**known.arguments(part))
    except (AssertionError, RuntimeError, ValueError, OSError, KeyError, TypeError, EOFError) as error:
        raise UserError(
            f"dataset={source}: the files in {folder / known.folder} cannot be read ({last_line(error)}). Delete them "
            "to have them downloaded again."
        ) from error


@contextlib.contextmanager
def downloading(
    name: str, root: Path, folder: str, tried: Iterable[str], files: Iterable[str], instead: str
) -> Iterator[None]:
    """Download files in this block. Raises UserError, with what to do by hand, if that fails."""
    path, timeout = root / folder, socket.getdefaulttimeout()
    try:
        socket.setdefaulttimeout(DOWNLOAD_SECONDS)
        with making(path), contextlib.redirect_stdout(io.StringIO()):
            yield
    except (RuntimeError, OSError, ImportError) as error:  # a package for CelebA's Google Drive is missing
        addresses = "\n".join(f"  tried  {address}" for address in tried)
        raise UserError(
            f"dataset={name}: not found in {path}, and it could not be downloaded.\n{addresses}\n"
            f"  error  {last_line(error)}\n"
            f"Put these files into {path} by hand (unpacked):\n  {'  '.join(files)}\n"
            f"or say where they are with dataset.root=PATH or VAE_EXP_DATA (the folder that holds {folder}), "
            f"or train on what needs no download: dataset={instead}"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)


def last_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def larochelle(name: str, folder: Path) -> Source:
    """Return MNIST as Larochelle & Murray (2011) split and binarised it: 50,000, 10,000, 10,000 images, no labels."""
    paths = {part: folder / f"binarized_mnist_{part}.amat" for part in ("train", "valid", "test")}
    if missing := [path.name for path in paths.values() if not path.is_file()]:
        raise UserError(
            f"dataset.binarize=larochelle: not found in {folder}: {', '.join(missing)}. Put the three files there, or "
            "say where they are with dataset.root=PATH. dataset.binarize=static is a fixed draw that needs no files."
        )

    def read(part: str) -> Split:
        return _read_amat(paths[part], content_key({paths[part].name: paths[part]}))

    files = digests({path.name: path for path in paths.values()})
    return Source(name, read("train"), lambda: read("test"), [], read("valid"), files=files)


@functools.lru_cache(maxsize=4)  # the jobs of a sweep read their data once; key: until the file has changed
def _read_amat(path: Path, key: str) -> Split:
    pixels = np.frombuffer(path.read_bytes(), np.uint8)
    pixels = pixels[(pixels != ord(" ")) & (pixels != ord("\n")) & (pixels != ord("\r"))] - ord("0")
    if pixels.size == 0 or pixels.size % 784 or pixels.max() > 1:
        raise UserError(f"dataset.binarize=larochelle: {path} is damaged: it must hold 784 zeros and ones a line.")
    x = torch.from_numpy(pixels * np.uint8(255)).view(-1, 1, 28, 28)
    return Split(x, torch.zeros(len(x), dtype=torch.long))


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
    folder = expand(root)
    how = Decoding(image_shape(image_size, 3), crop, on_error=on_error, cache=cache)

    def read(part: str) -> Split:
        raw = open_torchvision("celeba", folder, part)
        labels = [0] * len(raw.filename)
        if attribute is not None:
            known = list(filter(None, raw.attr_names))
            if attribute not in known:
                raise UserError(f"dataset.attribute={attribute}: it takes null or one of {', '.join(known)}.")
            labels = raw.attr[:, known.index(attribute)].tolist()
        return read_split(folder / raw.base_folder / "img_align_celeba", raw.filename, labels, how)

    class_names = [] if attribute is None else [f"not {attribute}", attribute]
    train, val = read("train"), read("valid")
    # All 202,599 files take long.
    images = [f"{CELEBA[0]}/{number:06}.jpg" for number in range(1, 202_600, 200)]
    files = {path: folder / "celeba" / path for path in (*CELEBA[1:], *images)}
    return Source(name, train, lambda: read("test"), class_names, val, files=digests(files))
