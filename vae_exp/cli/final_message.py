"""The last lines of a run: its numbers, where everything is, and what to type next."""

import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from vae_exp.training.folder import BEST, IMAGES, LAST, METRICS, SUMMARY, on_checkpoint, on_resume

TERMS = ("neg_elbo", "reconstruction", "kl")


def resume_hint(run_dir: Path) -> str:
    """Return the command that resumes a run, on a line of its own, or nothing if there is no checkpoint."""
    return f"\ngo on     {on_resume(run_dir)}" if (run_dir / LAST).exists() else ""


def final_message(summary: dict[str, Any], run_dir: Path, dataset: str) -> str:
    """Return the message that says where everything is, and what to type next."""

    def program(name: str) -> str:
        return name if shutil.which(name) else shlex.quote(os.path.relpath(Path(sys.executable).with_name(name)))

    of_test = {key.removeprefix("test/"): value for key, value in summary.items() if key.startswith("test/")}
    scores = {name: value for name, value in of_test.items() if name not in (*TERMS, "active_units")}
    test = "   ".join(f"{name} {of_test[name]:.3f}" for name in TERMS)
    run = summary["wandb"]
    beside = shlex.quote(str(Path(run["dir"] or "").parent))
    lines = {
        "test": f"{test}   ({of_test['active_units']} active units)",
        "scores": "  ".join(f"{name} {value:.3f}" for name, value in scores.items()),
        "pictures": f"{run_dir}/{IMAGES}",
        "numbers": f"{run_dir}/{METRICS}, {SUMMARY}",
        "weights": f"{run_dir}/{BEST}",
        "W&B": run["url"],
        "look": run["dir"] and f"{program('wandb')} leet {beside}    (all runs, here, without an account)",
        "upload": run["mode"] == "offline" and f"{program('wandb')} sync {_parts(Path(run['dir']), run['id'])}",
        "evaluate": on_checkpoint(program("vae-evaluate"), run_dir),
        "generate": on_checkpoint(program("vae-generate"), run_dir),
        "compare": f"{program('vae-compare')} {shlex.quote(str(run_dir.parent))}",
        "MNIST": dataset == "vae_exp.datasets.digits"
        and f"{program('vae-train')} experiment=tutorial    (downloads it once)",
    }
    return "\n".join(f"{name:<9} {text}" for name, text in lines.items() if text)


def _parts(folder: Path, run_id: str) -> str:
    """Return the folder of an offline run, or a pattern for the folders of its parts: each resume leaves one."""
    parts = f"offline-run-*-{run_id}"
    several = len(list(folder.parent.glob(parts))) > 1
    return f"{shlex.quote(str(folder.parent))}/{parts}" if several else shlex.quote(str(folder))
