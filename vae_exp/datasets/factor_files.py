"""Published data with known factors: dSprites, Shapes3D and MPI3D, unpacked once from the files of their authors."""

import hashlib
import math
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from vae_exp.datasets.factors import chosen_values
from vae_exp.datasets.splits import Source, Streamed
from vae_exp.datasets.sprites import SHAPES, SIZES, grid_source
from vae_exp.datasets.torchvision import downloading
from vae_exp.errors import Unwritable, UserError, printable
from vae_exp.files import atomic_write, cache_folder, digests, expand, log_once

ROWS_AT_ONCE = 2048  # images in memory while a file is unpacked


@dataclass(frozen=True)
class Published:
    """A file as its authors publish it."""

    url: str
    md5: str
    images: str  # the name of the array in the file: every combination of the factors, the last factor fastest
    x_shape: tuple[int, int, int]
    sizes: dict[str, int]
    is_binary: bool = False  # 0 and 1 stand for black and white
    periodic: tuple[str, ...] = ()
    names: Mapping[str, Sequence[str]] = field(default_factory=dict)  # of the values of some factors

    @property
    def file(self) -> str:
        return self.url.rpartition("/")[2]

    @property
    def shape(self) -> tuple[int, ...]:
        """Return [N, C, H, W]."""
        return (math.prod(self.sizes.values()), *self.x_shape)


Parts = dict[str, int | list[int]] | None
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
MPI3D_MD5 = {
    "toy": "55889cb7c7dfc655d6e0277beee88868",
    "realistic": "59a6225b88b635365f70c91b3e52f70f",
    "real": "0f33f609918fb5c97996692f91129802",
}
MPI3D_URL = "https://storage.googleapis.com/disentanglement_dataset/Final_Dataset"
SHAPES3D = {"floor_hue": 10, "wall_hue": 10, "object_hue": 10, "scale": 8, "shape": 4, "orientation": 15}
KNOWN = {
    "dsprites": Published(
        "https://github.com/google-deepmind/dsprites-dataset/raw/master/dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz",
        "7da33b31b13a06f4b04a70402ce90c2e",
        "imgs",
        (1, 64, 64),
        SIZES,  # its colour has one value
        is_binary=True,
        periodic=("orientation",),
        names={"shape": SHAPES},
    ),
    "shapes3d": Published(
        "https://storage.googleapis.com/3d-shapes/3dshapes.h5",
        "099a2078d58cec4daad0702c55d06868",
        "images",
        COLOUR,
        SHAPES3D,
    ),
    **{
        f"mpi3d_{version}": Published(f"{MPI3D_URL}/mpi3d_{version}.npz", md5, "images", COLOUR, MPI3D)
        for version, md5 in MPI3D_MD5.items()
    },
}


def dsprites(
    name: str,
    root: str,
    factors: Parts = None,
    label: str | list[str] | None = "shape",
    test_size: int | float = 0.02,
    cache: str | None = None,
    condition: list[str] | None = None,
) -> Source:
    """Return dSprites (Matthey et al. 2017): black-and-white images [1, 64, 64], as published.

    The file lies in root or is downloaded there, and is unpacked once into cache, by default the user's cache folder.
    factors, label and condition are those of `sprites`. Raises UserError if the file cannot be had or unpacked, or is
    damaged.
    """
    return _source("dsprites", name, root, factors, (label, condition), test_size, cache)


def shapes3d(
    name: str,
    root: str,
    factors: Parts = None,
    label: str | list[str] | None = "shape",
    test_size: int | float = 0.02,
    cache: str | None = None,
    condition: list[str] | None = None,
) -> Source:
    """Return Shapes3D (Burgess & Kim 2018): colour images [3, 64, 64] of a solid in a room. As dsprites; needs h5py."""
    return _source("shapes3d", name, root, factors, (label, condition), test_size, cache)


def mpi3d(
    name: str,
    root: str,
    version: str = "toy",
    factors: Parts = None,
    label: str | list[str] | None = "object_shape",
    test_size: int | float = 0.02,
    cache: str | None = None,
    condition: list[str] | None = None,
) -> Source:
    """Return MPI3D (Gondal et al. 2019): colour images [3, 64, 64] of a robot arm, toy, realistic or real."""
    return _source(f"mpi3d_{version}", name, root, factors, (label, condition), test_size, cache)


def _source(
    source: str,
    name: str,
    root: str,
    factors: Parts,
    labels: tuple[str | list[str] | None, list[str] | None],
    test_size: int | float,
    cache: str | None,
) -> Source:
    known = KNOWN[source]
    values = chosen_values(known.sizes, factors, known.periodic)
    folder = cache_folder("unpacked") if cache is None else expand(cache) / "unpacked"
    log_once(f"unpacked images are cached in {printable(folder)} (dataset.cache=FOLDER: elsewhere)")
    # By the checksum that is required of the file: whichever copy of it was unpacked, these are its images.
    raw = folder / f"{source}-{known.md5[:16]}.uint8"
    if not raw.is_file() or raw.stat().st_size != math.prod(known.shape):
        _unpack(name, known, _download(name, known, expand(root), source.partition("_")[0]), raw)
    images = Streamed(raw, known.shape, torch.arange(known.shape[0]), is_binary=known.is_binary)
    return grid_source(name, images, known.sizes, values, labels, test_size, known.names, digests({raw.name: raw}))


def _download(name: str, known: Published, root: Path, folder: str) -> Path:
    """Return the path of the file, downloaded if it is missing. Raises UserError if that fails."""
    path = root / folder / known.file
    if path.is_file():
        return path
    with downloading(name, root, folder, [known.url], [known.file], instead="sprites"):
        from torchvision.datasets.utils import download_url  # here, because importing it takes seconds

        try:
            download_url(known.url, str(path.parent), known.file, known.md5)
        except BaseException:
            path.unlink(missing_ok=True)  # half of it, or another file
            raise
    return path


def _unpack(name: str, known: Published, path: Path, raw: Path) -> None:
    """Write a file of raw bytes of all images; it appears complete or not at all."""
    digest = hashlib.md5(usedforsecurity=False)
    try:
        with path.open("rb") as file:
            while part := file.read(1 << 20):
                digest.update(part)
        if digest.hexdigest() != known.md5:
            raise UserError(f"dataset={name}: {path} is damaged: of another checksum. Delete it to download it again.")
        with atomic_write(raw) as out:
            for images in _read_h5(name, path, known.images) if path.suffix == ".h5" else _read_npz(path, known.images):
                images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
                out.write(np.ascontiguousarray(images * np.uint8(255) if known.is_binary else images).data)
    except (OSError, Unwritable) as error:
        size = f"{math.prod(known.shape) / 1e9:,.1f} GB"
        raise UserError(f"dataset={name}: {path} cannot be unpacked to {size} in {raw.parent} ({error}).") from error


def _read_npz(path: Path, array: str) -> Iterator[np.ndarray]:
    """Yield parts of one array of an npz file as it is unpacked. Other arrays, some pickled, are not touched."""
    with zipfile.ZipFile(path) as archive, archive.open(f"{array}.npy") as member:
        np.lib.format.read_magic(member)
        shape, *_ = np.lib.format.read_array_header_1_0(member)
        for at in range(0, shape[0], ROWS_AT_ONCE):
            n = min(ROWS_AT_ONCE, shape[0] - at)
            yield np.frombuffer(member.read(n * math.prod(shape[1:])), np.uint8).reshape(n, *shape[1:])


def _read_h5(name: str, path: Path, array: str) -> Iterator[np.ndarray]:
    try:
        import h5py
    except ImportError as error:
        raise UserError(f"dataset={name}: it needs h5py to read {path.name}: pip install 'vae_exp[hdf5]'") from error
    with h5py.File(path) as file:
        for at in range(0, len(file[array]), ROWS_AT_ONCE):
            yield file[array][at : at + ROWS_AT_ONCE]
