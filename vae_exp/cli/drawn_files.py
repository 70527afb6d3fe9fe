"""The files of the images that vae-generate draws: each is complete or absent, and a failed write leaves nothing."""

import contextlib
import shutil
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from vae_exp.config.keys import GenerateOptions
from vae_exp.errors import UserError
from vae_exp.files import atomic_write, partial_of, require_no_links

if TYPE_CHECKING:
    from torch import Tensor

    from vae_exp.figures.requested import Drawing

FRAME_MILLISECONDS = 120


def write(drawing: "Drawing", options: GenerateOptions, target: Path) -> Path:
    """Write one PNG or GIF, a PNG for each image, or arrays; return the path.

    The latter two are written chunk by chunk, so that memory does not grow with n.
    """
    from tqdm import tqdm

    if options["format"] == "grid":
        return _write_film(drawing, target) if options["animate"] else _write_sheet(drawing, target)
    with tqdm(total=drawing.n, unit="image", disable=None, leave=False) as bar:
        return (_write_files if options["format"] == "files" else _write_npz)(drawing, target, bar)


def _write_film(drawing: "Drawing", target: Path) -> Path:
    from PIL import Image

    written = target.with_name(f"{target.name}.gif")
    assert drawing.frames is not None, "_check lets only walks be animated"
    first, *others = map(Image.fromarray, drawing.frames())
    with atomic_write(written) as file:
        first.save(file, "GIF", save_all=True, append_images=others, duration=FRAME_MILLISECONDS, loop=0)
    return written


def _write_sheet(drawing: "Drawing", target: Path) -> Path:
    import torch
    from PIL import Image

    written = target.with_name(f"{target.name}.png")
    picture = Image.fromarray(drawing.sheet(torch.cat([x.cpu() for x, _ in drawing.chunks])))
    with atomic_write(written) as file:
        picture.save(file, "PNG")
    return written


def _write_files(drawing: "Drawing", folder: Path, bar: Any) -> Path:
    """Write a folder with a PNG for each image, and return it."""
    from PIL import Image

    digits, number = len(str(drawing.n - 1)), 0
    require_no_links(folder.parent, [folder.name])
    partial = partial_of(folder)
    try:
        partial.mkdir()
        for x, _ in drawing.chunks:
            for pixels in _bytes(x).transpose(0, 2, 3, 1):
                image = Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)
                image.save(partial / f"{number:0{digits}}.png")
                number += 1
            bar.update(len(x))
        folder.mkdir(exist_ok=True)
        for old in folder.glob("*.png"):  # those of a larger n
            old.unlink()
        for new in partial.iterdir():
            new.replace(folder / new.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _write_npz(drawing: "Drawing", target: Path, bar: Any) -> Path:
    """Write arrays x [n, C, H, W] (uint8) and y [n] (int64), and return the path."""
    return write_arrays(target, drawing.n, ({"x": _bytes(x), "y": y.cpu().numpy()} for x, y in drawing.chunks), bar)


def write_arrays(target: Path, n: int, chunks: Iterable[dict[str, np.ndarray]], bar: Any) -> Path:
    """Write arrays of n rows to target.npz, chunk by chunk, so that memory does not grow with n; return its path.

    An archive takes one array at a time: the first is written directly, the others through unnamed temporary files.
    """
    path = target.with_name(f"{target.name}.npz")
    with atomic_write(path) as file, zipfile.ZipFile(file, "w") as archive, contextlib.ExitStack() as opened:

        def member(name: str) -> IO[bytes]:
            return archive.open(f"{name}.npy", "w", force_zip64=True)

        def beside() -> IO[bytes]:
            return tempfile.TemporaryFile(dir=path.parent)

        files: dict[str, IO[bytes]] = {}
        for chunk in chunks:
            for name, rows in chunk.items():
                if name not in files:
                    files[name] = opened.enter_context(beside() if files else member(name))
                    header = {"descr": rows.dtype.str, "fortran_order": False, "shape": (n, *rows.shape[1:])}
                    np.lib.format.write_array_header_1_0(files[name], header)
                files[name].write(rows.tobytes())
            bar.update(len(rows))
        first, *others = files
        files[first].close()
        for name in others:
            files[name].seek(0)
            with member(name) as whole_array:
                shutil.copyfileobj(files[name], whole_array)
    return path


@contextlib.contextmanager
def in_folder(folder: Path) -> Iterator[None]:
    """Make the output folder and run the block; if that fails, remove the folder again if it is new and empty.

    Raises UserError if the system refuses, such as for a full disk.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException as error:
        for path in made:
            with contextlib.suppress(OSError):  # not empty
                path.rmdir()
        if isinstance(error, OSError):
            raise UserError(f"output={folder}: cannot be written ({error.strerror or error}).") from error
        raise


def _bytes(x: "Tensor") -> np.ndarray:
    import torch

    return x.clamp(0, 1).mul(255).round().to(torch.uint8).cpu().numpy()
