"""`vae-generate`: pictures from a trained model, as grids, single images, arrays or animations."""

import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from vae_exp.commands import shared
from vae_exp.config.check import CONF_DIR, flatten
from vae_exp.config.keys import GenerateOptions
from vae_exp.config.rules import GENERATE_RULES
from vae_exp.errors import UserError, printable

if TYPE_CHECKING:
    from torch import Tensor

    from vae_exp.figures.on_request import Drawing
    from vae_exp.trained import TrainedVAE

ABOUT = """vae-generate: pictures from a trained model.

usage: vae-generate checkpoint=PATH [KEY=VALUE ...]

  vae-generate checkpoint=latest                                        64 samples from the prior
  vae-generate checkpoint=latest what=samples label=7 temperature=0.8   of a conditional model
  vae-generate checkpoint=latest n=100000 format=npz
  vae-generate checkpoint=latest what=traversals animate=true
  vae-generate checkpoint=latest what=reconstructions inputs=FOLDER     your own images"""

ANIMATED = ("interpolations", "traversals")
LARGEST_GRID = 10_000
FRAME_MILLISECONDS = 120
IN_THE_NAME = ("label", "temperature", "inputs", "steps", "path", "around", "range", "dims", "split", "seed")


def main() -> None:
    """Exit code 0, or 1 with one message."""
    shared.run("vae-generate", "generate", GENERATE_RULES, ABOUT, generate)


def generate(options: GenerateOptions) -> Path:
    """Draw a picture and return where it was written.

    Raises UserError for options that do not go together, and for a model, images or a folder that cannot be used.
    """
    _check(options)
    from vae_exp import trained
    from vae_exp.figures import on_request, sheets

    (source,) = trained.find(options["checkpoint"], only_one=True)
    model = trained.load(source, options["device"], options["trust"])
    if options["label"] is not None:
        if not model.model.n_classes:
            raise UserError(f"label={options['label']}: {source} is not conditional; leave label away.")
        model.labels(options["label"], 1)
    n = options["n"] or sheets.SIZES.get(options["what"], 1)
    folder = Path(options["output"] or source.parent / "generated")
    target = folder / _name(options)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if options["what"] == "weights":
            written = folder / f"{source.stem}.safetensors"
            model.export(written)
        elif options["what"] == "latents":
            written = _write_latents(model, options, n, target)
        else:
            written = _write(on_request.DRAW[options["what"]](model, options, n), options, target)
    except OSError as error:
        raise UserError(f"output={folder}: cannot be written ({error.strerror or error}).") from error
    print(f"{printable(model.name)}: {options['what']} written to {printable(written)}")
    return written


def _check(options: GenerateOptions) -> None:
    """Refuse what does not go together, before torch is imported."""
    what = options["what"]
    if options["animate"] and (what not in ANIMATED or options["format"] != "grid"):
        raise UserError(f"animate=true: films are made of what={' and what='.join(ANIMATED)}, with format=grid.")
    if options["format"] == "grid" and what == "samples" and (options["n"] or 0) > LARGEST_GRID:
        raise UserError(
            f"n={options['n']}: a grid holds up to {LARGEST_GRID:,} images; use format=files or format=npz."
        )
    if what == "latents" and options["format"] == "files":
        raise UserError("format=files: what=latents is one picture (format=grid) or arrays (format=npz).")
    if what in ("latents", "manifold") and options["dims"] is not None and len(options["dims"]) != 2:
        raise UserError(f"dims={options['dims']}: what={what} takes two latents, such as dims=[3,7].")


def _name(options: GenerateOptions) -> str:
    """The name of the file: what it shows, and the settings that are not the usual ones. With a larger n it shows
    the same and more.
    """
    usual = flatten(yaml.safe_load((CONF_DIR / "generate.yaml").read_text()))
    chosen = flatten(options)
    parts = [options["what"]]
    for key in IN_THE_NAME:
        if chosen[key] != usual[key]:
            shown = str(chosen[key])
            if key == "dims":
                shown = "-".join(map(str, chosen[key]))
            elif key == "inputs":  # a file's name has no room for all of a path
                shown = Path(shown).name
            parts.append(f"{key}-{re.sub(r'[^A-Za-z0-9_.+-]', '-', shown)}")  # a label may be any text
    return "_".join(parts)


def _write_latents(model: "TrainedVAE", options: GenerateOptions, n: int, target: Path) -> Path:
    """The posterior means of a split: as a scatter, or with their variances as arrays."""
    from PIL import Image

    from vae_exp import metrics
    from vae_exp.figures import on_request, sheets

    on_request.check_dims(options["dims"] or [], model)
    data = model.read_data(options["dataset"]["root"])
    split = data.split(options["split"])[:n].to(model.device)
    q = metrics.posterior(model.model, split)
    if options["format"] == "npz":
        written = target.with_name(f"{target.name}.npz")
        codes = {name: values.cpu().numpy() for name, values in vars(q).items()}  # an autoencoder's have no log_var
        np.savez(written, **codes, y=split.y.cpu().numpy())
        return written
    written = target.with_name(f"{target.name}.png")
    Image.fromarray(sheets.latents(q.mean, split.y, data.class_names, options["dims"])).save(written)
    return written


def _write(drawing: "Drawing", options: GenerateOptions, target: Path) -> Path:
    """One PNG or GIF, a PNG each, or arrays; the latter two chunk by chunk, so that memory does not grow with n."""
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
    first.save(written, save_all=True, append_images=others, duration=FRAME_MILLISECONDS, loop=0)
    return written


def _write_sheet(drawing: "Drawing", target: Path) -> Path:
    import torch
    from PIL import Image

    written = target.with_name(f"{target.name}.png")
    Image.fromarray(drawing.sheet(torch.cat([x.cpu() for x, _ in drawing.chunks]))).save(written)
    return written


def _write_files(drawing: "Drawing", folder: Path, bar: Any) -> Path:
    """A folder with a PNG for each image."""
    from PIL import Image

    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.png"):  # those of a larger n
        old.unlink()
    digits, number = len(str(drawing.n - 1)), 0
    for x, _ in drawing.chunks:
        for pixels in _bytes(x).transpose(0, 2, 3, 1):
            image = Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)
            image.save(folder / f"{number:0{digits}}.png")
            number += 1
        bar.update(len(x))
    return folder


def _write_npz(drawing: "Drawing", target: Path, bar: Any) -> Path:
    """Arrays x [n, C, H, W] (uint8) and y [n] (int64), the former written as it is drawn."""
    path = target.with_name(f"{target.name}.npz")
    partial = path.with_name(path.name + ".partial")
    labels: list[np.ndarray] = []
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
        with archive.open("x.npy", "w", force_zip64=True) as x_file:
            for x, y in drawing.chunks:
                pixels = _bytes(x)
                if not labels:
                    header = {"descr": "|u1", "fortran_order": False, "shape": (drawing.n, *pixels.shape[1:])}
                    np.lib.format.write_array_header_1_0(x_file, header)
                x_file.write(pixels.tobytes())
                labels.append(y.cpu().numpy())
                bar.update(len(x))
        with archive.open("y.npy", "w") as y_file:
            np.lib.format.write_array(y_file, np.concatenate(labels))
    partial.replace(path)
    return path


def _bytes(x: "Tensor") -> np.ndarray:
    import torch

    return x.clamp(0, 1).mul(255).round().to(torch.uint8).cpu().numpy()
