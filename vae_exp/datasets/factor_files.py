"""Published data with known factors: dSprites, Shapes3D and MPI3D, unpacked once from the files of their authors.

Each file holds every combination of its factors, the last factor fastest. Nothing pickled is read.
"""

import contextlib
import hashlib
import io
import math
import socket
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vae_exp.datasets.factors import Factors, chosen_values, grid
from vae_exp.datasets.splits import Source, Streamed
from vae_exp.datasets.sprites import SHAPES, SIZES, source_of
from vae_exp.datasets.torchvision import DOWNLOAD_SECONDS, folder_for_a_while, last_line
from vae_exp.errors import Unwritable, UserError
from vae_exp.files import announce, atomic_write, cache_folder, of_files

ROWS_AT_ONCE = 2048  # images in memory while a file is unpacked


@dataclass(frozen=True)
class Published:
    """A file as its authors publish it."""

    url: str
    md5: str
    images: str  # the name of the array in the file
    x_shape: tuple[int, int, int]
    sizes: dict[str, int]
    is_binary: bool = False  # 0 and 1 stand for black and white
    round_about: tuple[str, ...] = ()

    @property
    def file(self) -> str:
        return self.url.rpartition("/")[2]


Parts = dict[str, int | list[int]] | None
Size = int | float
COLOUR = (3, 64, 64)
MPI3D = {
    "object_color": 6,
    "object_shape": 6,
    "object_size": 2,
    "camera_height": 3,
    "background_color": 3,
    "horizontal_axis": 40,
    "vertical_axis": 40,
}
SHAPES3D = {"floor_hue": 10, "wall_hue": 10, "object_hue": 10, "scale": 8, "shape": 4, "orientation": 15}
OF_MPI3D = "https://storage.googleapis.com/disentanglement_dataset/Final_Dataset"
KNOWN = {
    "dsprites": Published(
        "https://github.com/google-deepmind/dsprites-dataset/raw/master/dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz",
        "7da33b31b13a06f4b04a70402ce90c2e",
        "imgs",
        (1, 64, 64),
        SIZES,  # its colour has one value
        is_binary=True,
        round_about=("orientation",),
    ),
    "shapes3d": Published(
        "https://storage.googleapis.com/3d-shapes/3dshapes.h5",
        "099a2078d58cec4daad0702c55d06868",
        "images",
        COLOUR,
        SHAPES3D,
    ),
    "mpi3d_toy": Published(f"{OF_MPI3D}/mpi3d_toy.npz", "55889cb7c7dfc655d6e0277beee88868", "images", COLOUR, MPI3D),
    "mpi3d_realistic": Published(
        f"{OF_MPI3D}/mpi3d_realistic.npz", "59a6225b88b635365f70c91b3e52f70f", "images", COLOUR, MPI3D
    ),
    "mpi3d_real": Published(f"{OF_MPI3D}/mpi3d_real.npz", "0f33f609918fb5c97996692f91129802", "images", COLOUR, MPI3D),
}


def dsprites(
    name: str,
    root: str,
    factors: Parts = None,
    label: str | None = "shape",
    test_size: Size = 0.02,
    cache: str | None = None,
) -> Source:
    """Return dSprites (Matthey et al. 2017): black-and-white images [1, 64, 64], as published.

    The file lies in root or is downloaded there, and is unpacked once into cache; if cache is None, into the user's
    cache folder. factors says how many values of each to use, or which, numbered from 0; label is the factor that y
    holds, and None is no label. Raises UserError if the file can be neither read nor downloaded, is damaged or cannot
    be unpacked, and in the cases of `sprites`.
    """
    return _source(name, "dsprites", root, factors, label, test_size, cache)


def shapes3d(
    name: str,
    root: str,
    factors: Parts = None,
    label: str | None = "shape",
    test_size: Size = 0.02,
    cache: str | None = None,
) -> Source:
    """Return Shapes3D (Burgess & Kim 2018): colour images [3, 64, 64] of a solid in a room. As dsprites; needs h5py."""
    return _source(name, "shapes3d", root, factors, label, test_size, cache)


def mpi3d(
    name: str,
    root: str,
    version: str = "toy",
    factors: Parts = None,
    label: str | None = "object_shape",
    test_size: Size = 0.02,
    cache: str | None = None,
) -> Source:
    """Return MPI3D (Gondal et al. 2019): colour images [3, 64, 64] of a robot arm, toy, realistic or real.

    As dsprites.
    """
    if f"mpi3d_{version}" not in KNOWN:
        raise UserError(f"dataset.version={version}: it takes toy, realistic or real.")
    return _source(name, f"mpi3d_{version}", root, factors, label, test_size, cache)


def _source(
    name: str, source: str, root: str, factors: Parts, label: str | None, test_size: Size, cache: str | None
) -> Source:
    known = KNOWN[source]
    chosen = chosen_values(known.sizes, factors or {}, known.round_about)
    kept = grid(list(known.sizes), [len(values) for values in chosen.values()])
    folder = cache_folder("unpacked") if cache is None else Path(cache).expanduser() / "unpacked"
    announce(folder, "unpacked images", "dataset.cache")
    # By the checksum that is required of the file: whichever copy of it was unpacked, these are its images.
    raw = folder / f"{source}-{known.md5[:16]}.uint8"
    _unpack(name, known, Path(root).expanduser() / source.partition("_")[0] / known.file, raw)
    images = Streamed(raw, _shape(known), _rows(known, chosen, kept), is_binary=known.is_binary)
    named = chosen.get(label or "", [])
    class_names = [SHAPES[value] if source == "dsprites" and label == "shape" else str(value) for value in named]
    return source_of(name, images, kept, label, test_size, class_names, of_files({raw.name: raw}))


def _shape(known: Published) -> tuple[int, ...]:
    return (math.prod(known.sizes.values()), *known.x_shape)


def _rows(known: Published, chosen: dict[str, list[int]], kept: Factors) -> torch.Tensor:
    """Return the rows of the file that hold the combinations of the chosen values."""
    rows = torch.zeros(len(kept), dtype=torch.long)
    for at, (name, size) in enumerate(known.sizes.items()):
        rows = rows * size + torch.tensor(chosen[name])[kept.table[:, at]]
    return rows


def _unpack(name: str, known: Published, path: Path, raw: Path) -> None:
    """Write a file of raw bytes of all images, if it does not exist yet; it appears complete or not at all."""
    shape = _shape(known)
    if raw.is_file() and raw.stat().st_size == math.prod(shape):
        return
    _fetch(name, known, path)
    try:
        if _md5(path) != known.md5:
            raise UserError(
                f"dataset={name}: {path} is damaged: it has not the checksum that it was published with. Delete it "
                "to have it downloaded again."
            )
        n = 0
        raw.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(raw) as out:
            for images in _parts(name, known, path):
                if images.dtype != np.uint8 or images.shape[1:] != shape[1:]:
                    raise ValueError(f"images of {images.dtype} {list(images.shape[1:])}")
                out.write(np.ascontiguousarray(images * np.uint8(255) if known.is_binary else images).data)
                n += len(images)
            if n != shape[0]:
                raise ValueError(f"{n:,} images, not {shape[0]:,}")
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"dataset={name}: {path} cannot be read ({last_line(error)}).") from error
    except (OSError, Unwritable) as error:
        size = math.prod(shape) / 1e9
        raise UserError(
            f"dataset={name}: {path} cannot be unpacked to {size:,.1f} GB in {raw.parent} ({error})."
        ) from error


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def _parts(name: str, known: Published, path: Path) -> Iterator[np.ndarray]:
    """Yield the images, uint8 [n, C, H, W], in parts: all of them at once would not fit into many memories."""
    read = _parts_of_h5(name, path, known.images) if path.suffix == ".h5" else _parts_of_npz(path, known.images)
    for images in read:
        yield images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)


def _parts_of_npz(path: Path, array: str) -> Iterator[np.ndarray]:
    """Yield parts of one array of an npz file as it is unpacked. Other arrays, some pickled, are not touched."""
    with zipfile.ZipFile(path) as archive, archive.open(f"{array}.npy") as member:
        version = np.lib.format.read_magic(member)
        header: Any = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, is_fortran, dtype = header(member)
        if is_fortran or dtype != np.uint8 or len(shape) < 3:
            raise ValueError(f"an array of {dtype} {list(shape)}")
        row = math.prod(shape[1:])
        for at in range(0, shape[0], ROWS_AT_ONCE):
            n = min(ROWS_AT_ONCE, shape[0] - at)
            held = member.read(n * row)
            yield np.frombuffer(held, np.uint8).reshape(n, *shape[1:])


def _parts_of_h5(name: str, path: Path, array: str) -> Iterator[np.ndarray]:
    try:
        import h5py
    except ImportError as error:
        raise UserError(f"dataset={name}: it needs h5py to read {path.name}: pip install 'vae_exp[hdf5]'") from error
    with h5py.File(path) as file:
        images = file[array]
        for at in range(0, len(images), ROWS_AT_ONCE):
            yield images[at : at + ROWS_AT_ONCE]


def _fetch(name: str, known: Published, path: Path) -> None:
    """Download the file if it is missing. Raises UserError, with what to do by hand, if that fails."""
    if path.is_file():
        return
    from torchvision.datasets.utils import download_url  # here, because importing it takes seconds

    timeout = socket.getdefaulttimeout()
    try:
        socket.setdefaulttimeout(DOWNLOAD_SECONDS)
        with folder_for_a_while(path.parent), contextlib.redirect_stdout(io.StringIO()):
            try:
                download_url(known.url, str(path.parent), known.file, known.md5)
            except BaseException:
                path.unlink(missing_ok=True)  # half of it, or another file
                raise
    except (RuntimeError, OSError) as error:
        raise UserError(
            f"dataset={name}: not found in {path.parent}, and it could not be downloaded.\n  tried  {known.url}\n"
            f"  error  {last_line(error)}\n"
            f"Put {known.file} into {path.parent} by hand, or say where it is with dataset.root=PATH or VAE_EXP_DATA "
            f"(the folder that holds {path.parent.name}/), or train on what needs no download: dataset=sprites"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)
