"""The results of an evaluation: files beside the checkpoint, and all that was measured of the same weights in W&B."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vae_exp.errors import printable
from vae_exp.files import atomic_write, open_regular, read_json, require_no_links, write_json, writing
from vae_exp.training import stored_evaluation
from vae_exp.training.folder import BEST, GENERATED, RESULT

if TYPE_CHECKING:
    import numpy as np

SPLITS = ("test", "val", "train")
WEIGHTS = "weights"  # in a picture: those that it is of


def file_of(path: Path, split: str) -> Path:
    """Return the path of the results, such as best.test.json beside best.pt."""
    return path.with_name(f"{path.stem}.{split}.json")


def write(path: Path, split: str, weights: str, result: dict[str, Any], drawn: "dict[str, np.ndarray]") -> list[str]:
    """Write the numbers and the pictures of an evaluation, and return a line to print for each file.

    Raises UserError if that is refused.
    """
    written = file_of(path, split)
    write_json(written, result)
    return [f"written   {printable(written)}", *_write_pictures(path, split, weights, drawn)]


def in_wandb(path: Path, weights: str, mode: str, config: Any) -> list[str]:
    """Log all that was measured of these weights, now and before, so that a W&B run that is written anew has all of it.

    Returns the line to print, if W&B took it.
    """
    from vae_exp.tracking import wandb_afterwards

    numbers, pictures = _numbers(path, weights), _pictures(path, weights)
    where = wandb_afterwards.record_evaluation(mode, path.parent, config, numbers, pictures)
    return [f"W&B       {where}"] if where else []


def _write_pictures(path: Path, split: str, weights: str, drawn: "dict[str, np.ndarray]") -> list[str]:
    """Write the pictures to generated/ beside the checkpoint, each marked with its weights; return the lines to print.

    Raises UserError if that is refused.
    """
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    of = "" if (path.name, split) == (BEST, "test") else f"{path.stem}_{split}_"
    if drawn:
        require_no_links(path.parent, [GENERATED])
    lines = []
    for name, pixels in drawn.items():
        target, says = path.with_name(GENERATED) / f"{of}{name}.png", PngInfo()
        says.add_text(WEIGHTS, weights)
        with writing(target):
            target.parent.mkdir(exist_ok=True)
        with atomic_write(target) as file:
            Image.fromarray(pixels).save(file, "PNG", pnginfo=says)
        lines.append(f"picture   {printable(target)}")
    return lines


def _pictures(path: Path, weights: str) -> dict[str, Path]:
    """Return the pictures that were drawn of these weights, by the names that W&B has for them."""
    from PIL import Image

    found = {}
    for picture in sorted(path.with_name(GENERATED).glob("*.png")):
        refusals = contextlib.suppress(OSError, ValueError, SyntaxError)
        with refusals, open_regular(picture) as file, Image.open(file) as opened:
            if opened.info.get(WEIGHTS) == weights:
                found[f"evaluate/{picture.stem}"] = picture
    return found


def _numbers(path: Path, weights: str) -> dict[str, Any]:
    """Return the numbers of all splits that were measured of these weights."""
    prefixed: dict[str, Any] = {}
    for split in SPLITS:
        written = stored_evaluation.read(file_of(path, split))
        if written.get("weights") == weights:
            prefixed |= {
                f"evaluate/{split}/{name}": value for name, value in stored_evaluation.numbers(written).items()
            }
    return prefixed | _claims(path.with_name(RESULT), weights)


def _claims(path: Path, weights: str) -> dict[str, float]:
    """Return the published figures, and what vae-reproduce found for them with these weights."""
    found: dict[str, float] = {}
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        kept = read_json(path)
        for claim in kept["claims"] if kept["weights"] == weights else ():
            epoch = "" if claim["after_epoch"] is None else f"/epoch_{int(claim['after_epoch'])}"
            if claim["here"] is not None:
                name = f"published/{claim['what']}{epoch}"
                found |= {name: float(claim["value"]), f"{name}/here": float(claim["here"])}
    return found
