"""`vae-generate`: draw with trained models."""

import contextlib
import math
import re
import shutil
import tempfile
import unicodedata
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
from PIL import Image
from tqdm import tqdm

from vae_exp.cli import common
from vae_exp.config.checks import CONF_DIR, as_typed, flatten
from vae_exp.config.schema import GENERATE_RULES, PICTURES, GenerateOptions
from vae_exp.errors import UserError, printable, require_extra
from vae_exp.files import atomic_write, expand, making, partial_of, read_yaml, require_no_links, writing
from vae_exp.training.console import echo
from vae_exp.training.run_dir import GENERATED, LATEST

if TYPE_CHECKING:
    from torch import Tensor

    from vae_exp.evaluation.codes import Columns
    from vae_exp.figures.grids import Sheet
    from vae_exp.figures.requested import Drawing
    from vae_exp.inference import TrainedVAE

FRAME_MILLISECONDS = 120
T = TypeVar("T")


def write(drawing: "Drawing", options: GenerateOptions, target: Path) -> Path:
    """Write one picture or GIF, a PNG for each image, or arrays; return the path."""
    import torch

    def titled(sheet: "Sheet") -> "Sheet":
        return replace(sheet, title=_title(options, sheet.title))

    if options["animate"] and drawing.frames is not None:
        path = target.with_name(f"{target.name}.gif")
        first, *others = (Image.fromarray(titled(frame).pixels(options["scale"])) for frame in drawing.frames())
        with atomic_write(path) as file:
            first.save(file, "GIF", save_all=True, append_images=others, duration=FRAME_MILLISECONDS, loop=0)
        return path
    if (kind := options["format"]) in PICTURES:
        path = target.with_name(f"{target.name}.{kind}")
        sheet = titled(drawing.sheet(torch.cat([x.cpu() for x, _ in drawing.chunks])))
        with atomic_write(path) as file:
            sheet.save(file, kind, options["scale"], options["dpi"])
        return path
    if options["format"] == "files":
        return _write_files(drawing, target)
    chunks = ({"x": _bytes(x), "y": y.cpu().numpy()} for x, y in _counted(drawing.chunks, drawing.n))  # uint8 and int64
    return write_arrays(target, drawing.n, chunks)


def _counted(chunks: Iterable[tuple["Tensor", T]], n: int) -> Iterator[tuple["Tensor", T]]:
    """Yield the chunks of n images in all, with a progress bar."""
    with tqdm(total=n, unit="image", disable=None, leave=False) as bar:
        for x, more in chunks:
            yield x, more
            bar.update(len(x))


def _title(options: GenerateOptions, usual: str) -> str:
    title = unicodedata.normalize("NFC", str(options["title"] or "none"))
    return {"auto": usual, "none": ""}.get(title, title)


def _write_files(drawing: "Drawing", folder: Path) -> Path:
    digits, number = len(str(drawing.n - 1)), 0
    require_no_links(folder.parent, [folder.name])
    partial = partial_of(folder)
    partial.mkdir()
    try:
        for x, _ in _counted(drawing.chunks, drawing.n):
            for pixels in _bytes(x).transpose(0, 2, 3, 1):
                image = Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)
                image.save(partial / f"{number:0{digits}}.png")
                number += 1
        folder.mkdir(exist_ok=True)
        for old in folder.glob("*.png"):  # those of a larger n
            old.unlink()
        for new in partial.iterdir():
            new.replace(folder / new.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def write_arrays(target: Path, n: int, chunks: Iterable["Columns"], more: "Columns | None" = None) -> Path:
    """Write arrays of n rows to target.npz, chunk by chunk, so that memory does not grow with n; return its path.

    `more` are further arrays, of any length.
    """
    path, files = target.with_name(f"{target.name}.npz"), dict[str, IO[bytes]]()
    with atomic_write(path) as file, contextlib.ExitStack() as opened:
        for chunk in chunks:
            for name, rows in chunk.items():
                if name not in files:
                    files[name] = opened.enter_context(tempfile.TemporaryFile(dir=path.parent))
                    header = {"descr": rows.dtype.str, "fortran_order": False, "shape": (n, *rows.shape[1:])}
                    np.lib.format.write_array_header_1_0(files[name], header)
                files[name].write(rows.tobytes())
        with zipfile.ZipFile(file, "w") as archive:  # which takes one array at a time
            for name, array in files.items():
                array.seek(0)
                with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                    shutil.copyfileobj(array, entry)
            for name, rows in (more or {}).items():
                with archive.open(f"{name}.npy", "w") as entry:
                    np.lib.format.write_array(entry, rows, allow_pickle=False)
    return path


def _bytes(x: "Tensor") -> np.ndarray:
    return x.clamp(0, 1).mul(255).round().byte().cpu().numpy()


ABOUT = """vae-generate: pictures from a trained model.

usage: vae-generate checkpoint=PATH [KEY=VALUE ...]

  vae-generate checkpoint=latest                                        64 samples from the prior
  vae-generate checkpoint=latest what=samples label=7 temperature=0.8   of a conditional model
  vae-generate checkpoint=latest sampler=gmm                            from where the codes are
  vae-generate checkpoint=latest n=100000 format=npz
  vae-generate checkpoint=latest what=components                        of prior=mixture, vamp or by_label
  vae-generate checkpoint=latest what=traversals animate=true
  vae-generate checkpoint=latest format=pdf title=none                  for a paper; scale=4 for a slide
  vae-generate checkpoint=latest what=reconstructions inputs=FOLDER     your own images
  vae-generate checkpoint=latest what=codes split=all format=csv        the code of every image; log=true: to W&B too
  vae-generate checkpoint=latest what=explorer                          a page with sliders, which draws by itself
  vae-generate checkpoint=latest what=anomalies inputs=FOLDER n=20      the least likely of your own images
  vae-generate checkpoint=latest what=onnx                              encoder.onnx and decoder.onnx"""

ANIMATED = ("interpolations", "traversals")
MAX_SIDE = 100  # of the manifold in one picture: 10,000 images, as many as any picture has
OF_IMAGES = ("reconstructions", "interpolations", "traversals around=image")
OF_SPLITS = (*OF_IMAGES, "latents", "codes", "anomalies", "explorer")
WALKS = ("interpolations", "traversals", "manifold")
DRAWN = ("samples", "classes", "components", "reconstructions", *WALKS, "latents", "anomalies")
FORMATS = {"codes": ("npz", "csv", "parquet"), "latents": (*PICTURES, "npz"), "anomalies": PICTURES}
OF_PICTURES = ("scale", "title", "dpi")
# What each key is for. The others, such as output and device, are for all of them.
USED_BY = {
    "n": DRAWN,
    "label": ("samples", "reconstructions", "interpolations", "traversals", "manifold", "components", "anomalies"),
    "temperature": ("samples", "classes"),
    "sampler": ("samples",),
    "inputs": (*OF_IMAGES, "anomalies"),
    "steps": ("interpolations", "traversals"),
    "path": ("interpolations",),
    "around": ("traversals",),
    "range": ("traversals",),
    "dims": ("traversals", "manifold", "latents"),
    "animate": ANIMATED,
    "format": (*DRAWN, "codes"),
    "log": ("codes",),
    "scale": tuple(what for what in DRAWN if what != "latents"),
    "title": DRAWN,
    "dpi": DRAWN,
    "split": OF_SPLITS,
    "seed": ("samples", "classes", *OF_IMAGES, "anomalies"),
    "dataset.root": ("samples sampler=gmm", "samples sampler=aggregate", *OF_SPLITS),
}
IN_THE_NAME = [key for key in USED_BY if key not in ("n", "animate", "format", "log", *OF_PICTURES, "dataset.root")]


def main() -> None:
    """Run `vae-generate`: exit with code 0, or with 1 and one message."""
    common.run("vae-generate", "generate", GENERATE_RULES, ABOUT, generate)


def generate(options: GenerateOptions) -> Path:
    """Draw a picture and return where it was written. Raises UserError for what does not go together or exist."""
    if options["format"] == "grid":  # its older name
        options = cast("GenerateOptions", options | {"format": "png"})
    if (options["what"], options["format"]) == ("codes", "png"):  # the default
        options = cast("GenerateOptions", options | {"format": "npz"})
    _check(options)
    from vae_exp import inference
    from vae_exp.evaluation import codes
    from vae_exp.figures import grids, requested

    (source,) = inference.find(options["checkpoint"], only_one=True)
    if options["checkpoint"] == LATEST:
        common.say_latest("vae-generate", source.parent)
    model = inference.load(source, options["device"], options["trust"])
    if options["label"] == "null" and "null" not in model.class_names:  # a class may be called so
        options = cast("GenerateOptions", options | {"label": None})
    if options["label"] is not None:
        model.labels(options["label"], 1)
    n = options["n"] or grids.SIZES.get(options["what"], 1)
    folder = expand(options["output"] or source.parent / GENERATED)
    if not options["output"]:
        require_no_links(source.parent, [GENERATED])
    target = folder / _name(options)
    with writing(folder, "output"), making(folder):
        if options["what"] == "weights":
            written = folder / f"{_name(options).replace('weights', source.stem, 1)}.safetensors"
            model.export(written)
        elif options["what"] in ("onnx", "pt2"):
            written = _write_networks(model, options["what"], folder)
        elif options["what"] == "explorer":
            written = target.with_name(f"{target.name}.html")
            model.export(written, options["dataset"]["root"], options["split"])
        elif options["what"] == "latents":
            written = _write_latents(model, options, target)
        elif options["what"] == "codes":
            written = _write_codes(model, options, target)
        elif options["what"] == "anomalies":
            drawing, columns = requested.anomalies(model, options, n)
            written = write(drawing, options, target)
            with atomic_write(table := target.with_name(f"{target.name}.csv")) as file:
                codes.write_csv(file, [columns])
            echo(printable(f"{model.name}: the bounds of all {len(columns['split']):,} images are in {table}"))
        else:
            written = write(requested.DRAW[options["what"]](model, options, n), options, target)
    echo(printable(f"{model.name}: {options['what']} written to {written}"))
    return written


def _check(options: GenerateOptions) -> None:
    """Raise UserError for options that do not go together, before torch is imported."""
    what = options["what"]
    if options["animate"] and (what not in ANIMATED or options["format"] != "png"):
        raise UserError(f"animate=true: films are made of what={' and what='.join(ANIMATED)}, with format=png.")
    _check_used(options)
    largest = {"samples": MAX_SIDE**2, "manifold": MAX_SIDE}.get(what, math.inf)
    if options["format"] in PICTURES and (options["n"] or 0) > largest:
        unit = "images a side" if what == "manifold" else "images"
        more = "use format=files or format=npz for more"
        raise UserError(f"n={options['n']}: a picture holds up to {largest:,} {unit}; {more}.")
    formats = FORMATS.get(what, (*PICTURES, "files", "npz"))
    if options["format"] not in formats:
        raise UserError(f"format={options['format']}: what={what} is written as {', '.join(formats)}.")
    if options["format"] == "parquet":
        require_extra("parquet", "format=parquet", "format=csv needs nothing.")
    if what == "onnx":
        require_extra("onnx", "what=onnx", "what=pt2 needs nothing.")
    if options["split"] == "all" and what not in ("codes", "anomalies"):
        raise UserError(f"split=all: what={what} takes test, val or train; all is for what=codes and what=anomalies.")
    if what in ("latents", "manifold") and options["dims"] is not None and len(options["dims"]) != 2:
        raise UserError(f"dims={options['dims']}: what={what} takes two latents, such as dims=[3,7].")


def _check_used(options: GenerateOptions) -> None:
    """Raise UserError for a key that was set although the requested figure does not use it."""
    defaults, chosen = _defaults(), flatten(options, ["label"])
    what = {options["what"], *(f"{options['what']} {key}={options[key]}" for key in ("around", "sampler"))}
    for key, users in USED_BY.items():
        if chosen[key] not in (defaults[key], "null") and not what & set(users):
            used = f"what={options['what']} does not use it; it is for what={', what='.join(users)}"
            raise UserError(f"{key}={as_typed(chosen[key])}: {used}.")
        if key in OF_PICTURES and chosen[key] != defaults[key] and options["format"] not in PICTURES:
            raise UserError(
                f"{key}={as_typed(chosen[key])}: it is for pictures, and not for format={options['format']}."
            )


def _defaults() -> dict[str, Any]:
    return flatten(read_yaml(CONF_DIR / "generate.yaml"))


def _name(options: GenerateOptions) -> str:
    """Return the file's name: what it shows, and the settings that are not the default, but n: more shows the same."""
    defaults, chosen = _defaults(), flatten(options, ["label"])
    parts: list[str] = [options["what"]]
    for key in IN_THE_NAME:
        if (value := chosen[key]) != defaults[key]:
            text = "-".join(map(str, value)) if key == "dims" else as_typed(value)
            text = Path(text).name if key == "inputs" else text  # a file's name has no room for all of a path
            text = re.sub(r"[^\w.+-]", "-", text)  # a label may be any text
            parts.append(f"{key}-{text}")
    return "_".join(parts)


def _write_networks(model: "TrainedVAE", kind: str, folder: Path) -> Path:
    """Write the encoder and the decoder to run without vae_exp; say how far they are from PyTorch's."""
    for part in ("encoder", "decoder"):
        differences = model.export(path := folder / f"{part}.{kind}")
        said = ", ".join(f"{name} {difference:.1e}" for name, difference in differences.items())
        echo(f"{path.name}: {path.stat().st_size:,} bytes; largest difference from PyTorch: {said}")
    return folder


def _write_latents(model: "TrainedVAE", options: GenerateOptions, target: Path) -> Path:
    """Write the posterior means of a split: some as a scatter plot, or all with their variances as arrays."""
    from vae_exp.datasets.splits import batches
    from vae_exp.evaluation import codes, metrics
    from vae_exp.figures import grids, latent_walks, requested

    requested.check_dims(options["dims"] or [], model)
    data = model.read_data(options["dataset"]["root"])
    images = data.split(options["split"]).to(model.device)
    as_arrays = options["format"] == "npz"
    n = options["n"] or (len(images) if as_arrays else grids.SIZES["latents"])
    split = images[grids.rows(images.y, n)] if n < len(images) else images
    if as_arrays:
        parts = _counted(batches(split, metrics.EVAL_BATCH_SIZE), len(split))
        arrays = (codes.posterior_columns(model.encode(x, y)) | {"y": y.cpu().numpy()} for x, y in parts)
        return write_arrays(target, len(split), arrays)
    means = metrics.posterior(model.model, split).mean
    density = latent_walks.density(model.model, grids.class_rows(model.model.n_classes, data.class_names))
    figure = grids.latents(means, split.y, data.class_names, options["dims"], len(split), len(images), density)
    title = _title(options, figure.axes[0].get_title())
    figure.axes[0].set_title(title, family=grids.families([title]), parse_math=False)
    path = target.with_name(f"{target.name}.{options['format']}")
    with atomic_write(path) as file:
        grids.save_figure(figure, file, options["format"], options["dpi"])
    return path


def _write_codes(model: "TrainedVAE", options: GenerateOptions, target: Path) -> Path:
    """Write the codes of a split with what identifies each image, and log some with thumbnails to W&B if asked."""
    from vae_exp.evaluation import codes
    from vae_exp.tracking import wandb_run

    kind, split = options["format"], options["split"]
    rows = codes.rows_of(model.read_data(options["dataset"]["root"]), split, model.device)
    sample = codes.Sample(len(rows), wandb_run.MAX_ROWS)

    def chunks() -> "Iterator[Columns]":
        for x, columns in _counted(codes.codes(model.encode, rows), len(rows)):
            if options["log"]:
                sample.add(x, codes.flat({n: columns[n] for n in codes.LOGGED if n in columns}, rows.names))
            yield columns if kind == "npz" else codes.flat(columns, rows.names)

    if kind == "npz":
        written = write_arrays(target, len(rows), chunks(), rows.names)
    else:
        written = target.with_name(f"{target.name}.{kind}")
        with atomic_write(written) as file:
            (codes.write_csv if kind == "csv" else codes.write_parquet)(file, chunks())
    if options["log"]:
        named, tables = f"codes {split}", {f"codes/{split}": {"image": sample.thumbnails} | sample.columns}
        run_dir = cast("Path", model.path).parent
        where = wandb_run.record_evaluation("auto", run_dir, model.config, {}, {}, named, tables)
        echo(f"W&B       {printable(where or 'nothing was logged: disabled, or not the folder of the run')}")
    return written


if __name__ == "__main__":
    main()
