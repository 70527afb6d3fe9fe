"""MNIST as Hugo Larochelle binarised it: the files that published likelihoods are measured on."""

import functools
from pathlib import Path

import numpy as np
import torch

from vae_exp.datasets.splits import Source, Split
from vae_exp.errors import UserError
from vae_exp.files import content_key, of_files


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
    train, val = _read_part(parts["train"]), _read_part(parts["valid"])
    files = of_files({path.name: path for path in parts.values()})
    return Source(name, train, lambda: _read_part(parts["test"]), [], val, files=files)


def _read_part(path: Path) -> Split:
    return _read_amat(path, content_key({path.name: path}))


@functools.lru_cache(maxsize=4)  # the jobs of a sweep read their data once; key: until the file has changed
def _read_amat(path: Path, key: str) -> Split:
    pixels = np.frombuffer(path.read_bytes(), np.uint8)
    pixels = pixels[(pixels != ord(" ")) & (pixels != ord("\n")) & (pixels != ord("\r"))] - ord("0")
    if pixels.size == 0 or pixels.size % 784 or pixels.max() > 1:
        raise UserError(f"dataset.binarize=larochelle: {path} is damaged: it must hold 784 zeros and ones a line.")
    x = torch.from_numpy(pixels * np.uint8(255)).view(-1, 1, 28, 28)
    return Split(x, torch.zeros(len(x), dtype=torch.long))
