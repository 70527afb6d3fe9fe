"""Going on with a run: which one, whether the configuration agrees, and its state put back to the bit."""

import json
import logging
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from omegaconf import OmegaConf

from vae_exp import files
from vae_exp.config import UserError, flatten

if TYPE_CHECKING:
    from torch import Generator, nn
    from torch.optim import Optimizer

    from vae_exp.running_means import RunningMeans

log = logging.getLogger(__name__)
LAST, PREVIOUS = "last.pt", "last.previous.pt"
OUTPUTS = Path("outputs")
PATIENCE = "early_stopping.patience"
# What a run may change on its way; a key that ends in a dot stands for its whole group.
MAY_CHANGE = (
    "epochs", "max_minutes", "early_stopping.", "resume", "device", "precision", "compile", "wandb.", "sweep.",
    "log_every_steps", "figures", "figure_every_epochs",
    "checkpoint_every_epochs", "checkpoint_every_steps", "checkpoint_every_minutes",
    "dataset.root", "dataset.cache", "dataset.device_memory",
)  # fmt: skip


def contradictions(before: dict, now: dict) -> list[str]:
    """The keys whose values differ and may not, with both values."""
    before, now = flatten(before), flatten(now)
    keys = [key for key in dict.fromkeys([*before, *now]) if not _may_change(key)]
    missing = "not there"
    return [
        f"{key}={now.get(key, missing)}: the run has {key}={before.get(key, missing)}"
        for key in keys
        if before.get(key, missing) != now.get(key, missing)
    ]


def _may_change(key: str) -> bool:
    return any(key == name or (name.endswith(".") and key.startswith(name)) for name in MAY_CHANGE)


def find(asked: str) -> Path:
    """The run folder that resume=PATH or resume=latest means. Raises UserError where there is none to go on with."""
    if asked == "latest":
        runs = _newest_first(OUTPUTS.rglob("summary.json"))
        if not runs:
            raise UserError(f"resume=latest: there is no run in {OUTPUTS}.")
        return runs[0]
    path = Path(asked).expanduser()
    folder = path.parent if path.is_file() else path
    if not any((folder / name).is_file() for name in (LAST, PREVIOUS)):
        raise UserError(f"resume={asked}: no {LAST} there. Give a run's folder, its {LAST}, latest or auto.")
    return folder


def find_unfinished(config: dict, run_dir: Path) -> Path | None:
    """resume=auto: run_dir where it holds a run, else the newest unfinished run of this configuration, or None.

    Raises UserError where run_dir holds a run of another configuration, or a finished one.
    """
    if (run_dir / "summary.json").is_file() or (run_dir / LAST).is_file():
        before, state = _config_of(run_dir), _state_of(run_dir)
        if before is not None and (wrong := contradictions(before, config)):
            raise UserError(_refusal(run_dir, wrong))
        if state == "finished":
            raise UserError(f"resume=auto: the run in {run_dir} is finished. resume={run_dir} epochs=... trains on.")
        return run_dir if newest_checkpoint(run_dir) else None
    for folder in _newest_first(OUTPUTS.rglob("summary.json")):
        before = _config_of(folder)
        if before is None or _state_of(folder) == "finished" or before.get("sweep", {}).get("jobs"):
            continue
        if not contradictions(before, config) and newest_checkpoint(folder):
            return folder
    return None


def overrides_of(folder: Path) -> list[str]:
    """What was typed for the run in a folder, as Hydra kept it."""
    typed = folder / ".hydra" / "overrides.yaml"
    return [str(word) for word in OmegaConf.load(typed)] if typed.is_file() else []


def check_unfinished(folder: Path, config: dict) -> None:
    """Raises UserError where a run is finished and nothing in config gives it more to do, or contradicts it."""
    if (before := _config_of(folder)) and (wrong := contradictions(before, config)):
        raise UserError(_refusal(folder, wrong))
    if _state_of(folder) != "finished":
        return
    if before and all(
        flatten(before).get(key) == flatten(config).get(key) for key in ("epochs", "max_minutes", PATIENCE)
    ):
        done = f"after epoch {before.get('epochs')}" if not _reason_of(folder) else f"({_reason_of(folder)})"
        raise UserError(f"resume={folder}: the run is finished {done}. epochs=... with a larger number trains on.")


def newest_checkpoint(folder: Path) -> Path | None:
    """last.pt, or the one before where that is damaged, which is then said; None where neither can be read."""
    from vae_exp import checkpoint

    for path in (folder / LAST, folder / PREVIOUS):
        if not path.is_file():
            continue
        try:
            state = checkpoint.load(path)
            if "resume" not in state:
                raise UserError(f"checkpoint={path}: holds a model, and not the state of a run.")
            return path
        except UserError as error:
            log.warning(f"{error} It cannot be resumed from.")
    return None


def load(folder: Path, config: dict) -> dict[str, Any]:
    """The state to go on from. Raises UserError where there is none, or where the configuration contradicts it."""
    from vae_exp import checkpoint

    path = newest_checkpoint(folder)
    if path is None:
        raise UserError(
            f"resume={folder}: no {LAST} that can be read is there, nor {PREVIOUS}. resume=null starts anew."
        )
    state = checkpoint.load(path)
    if wrong := contradictions(state["config"], config):
        raise UserError(_refusal(folder, wrong))
    log.info(f"goes on from {path}: step {state['step']:,}, {state['epoch']} epochs done")
    return state


def states(streams: dict[str, "Generator"]) -> dict[str, Any]:
    """The states of the generators, and of torch's own, which layers such as dropout draw from."""
    import torch

    state = {name: each.get_state() for name, each in streams.items()}
    state["torch"] = torch.get_rng_state()
    return state | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


def restore(
    before: dict[str, Any],
    facts: dict[str, Any],
    model: "nn.Module",
    optimizer: "Optimizer",
    streams: dict[str, "Generator"],
    means: "RunningMeans",
) -> None:
    """Set weights, optimizer, random numbers and running means as they were. Raises UserError for other data.

    On another kind of device than before, its random numbers are a new stream.
    """
    import torch

    was = before["resume"]["facts"]
    same = ("train_size", "val_size", "x_shape", "parameters")
    if wrong := [f"{name} is {facts[name]}, and was {was[name]}" for name in same if facts[name] != was[name]]:
        raise UserError(f"resume: the data or the model have changed since the run began: {'; '.join(wrong)}.")
    model.load_state_dict(before["model"])
    optimizer.load_state_dict(before["optimizer"])
    means.restore(before["resume"]["means"])
    states = before["resume"]["streams"]
    for name, each in streams.items():
        if states[name].shape == each.get_state().shape:
            each.set_state(states[name])
        else:
            each.manual_seed(each.initial_seed() + before["step"])
            log.warning(f"resumed on another kind of device: the random numbers for {name} are a new stream")
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def cut_back(folder: Path, step: int, metrics_bytes: int) -> None:
    """Take away what a run wrote down after its checkpoint; it will be written again, the same."""
    metrics = folder / "metrics.jsonl"
    with files.writing(metrics):
        whole = metrics.read_bytes()[:metrics_bytes] if metrics.exists() else b""
        files.write(metrics, whole[: whole.rfind(b"\n") + 1])
        for picture in (folder / "images").glob("*_*.png"):
            drawn = picture.stem.rpartition("_")[2]
            if drawn.isdigit() and (int(drawn) > step or picture.name.startswith("test_")):
                picture.unlink()


def clear(folder: Path) -> None:
    """Take away what an earlier run left in the folder of a new one."""
    for stale in ("images", "metrics.jsonl", LAST, PREVIOUS, "best.pt", "summary.json"):
        path = folder / stale
        with files.writing(path):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _refusal(folder: Path, wrong: list[str]) -> str:
    return f"resume={folder}: the configuration contradicts the run.\n" + "\n".join(wrong)


def _newest_first(summaries: Iterable[Path]) -> list[Path]:
    return [path.parent for path in sorted(summaries, key=lambda path: path.stat().st_mtime, reverse=True)]


def _config_of(folder: Path) -> dict | None:
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text())
        return config if isinstance(config, dict) else None
    except (OSError, ValueError, yaml.YAMLError):
        return None


def _summary(folder: Path) -> dict:
    try:
        summary = json.loads((folder / "summary.json").read_text())
        return summary if isinstance(summary, dict) else {}
    except (OSError, ValueError):
        return {}


def _state_of(folder: Path) -> str | None:
    return _summary(folder).get("state")


def _reason_of(folder: Path) -> str | None:
    return _summary(folder).get("reason")
