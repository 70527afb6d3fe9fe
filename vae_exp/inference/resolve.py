"""The checkpoints that a path means: a file, a run, a folder of runs, the newest, or what W&B keeps."""

import os
import re
from pathlib import Path

from vae_exp.errors import UserError
from vae_exp.tracking import wandb_server
from vae_exp.training.folder import BEST, OUTPUTS, newest

ARTIFACT = re.compile(r"(wandb:)?(?P<name>([\w.-]+/){1,2}[\w.-]+:[\w.-]+)")


def find(checkpoint: str, only_one: bool = False) -> list[Path]:
    """Return the checkpoints that a path means.

    It may be a file, a run (its best.pt), a folder of runs (the best.pt of each), the newest run (latest), or a W&B
    artifact such as ENTITY/PROJECT/NAME:best, which is downloaded.

    Raises UserError if there is none, or if there are several and only_one is set.
    """
    path = Path(checkpoint).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        where, found = path, [path / BEST] if (path / BEST).exists() else _below(path)
    elif checkpoint == "latest":
        run = newest(BEST)
        where, found = OUTPUTS, [run / BEST] if run else []
    elif artifact := ARTIFACT.fullmatch(checkpoint):
        where = wandb_server.download(artifact["name"])
        found = sorted(where.glob("*.pt"))
    else:
        raise UserError(f"checkpoint={checkpoint}: there is no such file or folder.")
    if not found:
        raise UserError(f"checkpoint={checkpoint}: no {BEST} in {where}; a run writes it after its first epoch.")
    if only_one and len(found) > 1:
        raise UserError(f"checkpoint={checkpoint}: holds {len(found)} runs; name one, such as {found[0]}")
    return found


def _below(folder: Path) -> list[Path]:
    """Return the best.pt of every run in a folder. Raises UserError for a whole disk and for the user's home."""
    if folder.resolve() in (Path(folder.resolve().anchor), Path(os.path.expanduser("~")).resolve()):  # noqa: PTH111
        raise UserError(f"checkpoint={folder}: is a whole disk or your home. Name a folder of runs, such as {OUTPUTS}.")
    return sorted(folder.rglob(BEST))
