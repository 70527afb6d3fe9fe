"""How far the map of a run for many settings is off: its best settings, each trained for itself alone."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from vae_exp.config.check import resolve
from vae_exp.files import read_json, write_json
from vae_exp.run import confirmed, resume
from vae_exp.run.folder import MAP, read_summary

if TYPE_CHECKING:
    from vae_exp.run.places import Place

log = logging.getLogger(__name__)


def confirm(cfg: DictConfig, run_dir: Path) -> str:
    """Train the best settings of the run's map as runs of their own, and return the comparison, as lines of text.

    A run that is there and finished is not trained again, an unfinished or shorter one goes on. The comparison is kept
    in map.json.
    """
    from vae_exp.train import train

    split, best = confirmed.best(cfg, run_dir)
    rows = []
    for number, (place, folder) in enumerate(best, 1):
        is_done = confirmed.is_done(resolve(cfg), folder)
        log.info(f"\nconfirm {number}/{len(best)}  {folder.name}" + ("  already finished" if is_done else ""))
        if not is_done:
            train(_alone(cfg, place, folder), folder)
        rows.append({"setting": folder.name, "map": place, "alone": _measure(cfg, folder, place, split)})
    maps = read_json(run_dir / MAP)
    write_json(run_dir / MAP, maps | {"confirmed": {"split": split, "settings": rows}})
    return _table(rows, split)


def _alone(cfg: DictConfig, place: "Place", folder: Path) -> DictConfig:
    """The configuration of the run of one setting."""
    from vae_exp import amortized

    goes_on = resume.can_go_on(folder)
    name, whole = cfg.wandb.name, read_summary(folder.parents[1])
    group = cfg.wandb.group or (whole.wandb.group if whole else None)
    changes: dict[str, Any] = {
        "amortize": amortized.OFF,
        "model": {"beta": place["beta"], "z_dim": place["z_dim"]},
        "wandb": {"name": f"{name} {folder.name}" if name else None, "group": group},  # each is a run of its own there
        "resume": str(folder) if goes_on else None,
        "replace": not goes_on,
    }
    merged = OmegaConf.merge(cfg, changes)
    assert isinstance(merged, DictConfig)
    return merged


def _measure(cfg: DictConfig, folder: Path, place: "Place", split: str) -> "Place":
    """The run's own model on the images of the map, with the map's noise."""
    from vae_exp import mapping, trained

    # What lies there may be finished already, and a stranger's: it may name what the run with the map names.
    model = trained.load(folder, "cpu", trust=cfg.trust or resolve(cfg))
    return mapping.measure_one(model.model, model.read_data().split(split), place["beta"], place["z_dim"])


def _table(confirmed: list[dict[str, Any]], split: str) -> str:
    lines = [f"\nneg_elbo, {split} images    the map     alone       off (nats)"]
    for row in confirmed:
        read, alone = row["map"]["neg_elbo"], row["alone"]["neg_elbo"]
        lines.append(f"{row['setting']:22}{read:10.2f}{alone:10.2f}{read - alone:+10.2f}")
    return "\n".join(lines)
