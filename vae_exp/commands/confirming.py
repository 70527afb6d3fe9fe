"""How far the map of a run for many settings is off: its best settings, each trained for itself alone."""

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from vae_exp.comparing import places
from vae_exp.run import resume
from vae_exp.run.folder import MAP, read_summary
from vae_exp.run.writing import write_json

if TYPE_CHECKING:
    from vae_exp.comparing.places import Place

log = logging.getLogger(__name__)
CONFIRMED = "confirmed"  # in the run's folder: a run's folder for each setting


def missing(config: Any, run_dir: Path) -> bool:
    """Whether a run has settings left to confirm."""
    done = [read_summary(path.parent) for path in (run_dir / CONFIRMED).glob("*/summary.json")]
    return sum(summary is not None and summary.finished for summary in done) < config["amortize"]["confirm"]


def confirm(cfg: DictConfig, run_dir: Path) -> str:
    """Train the best settings of the run's map as runs of their own, and return the comparison, as lines of text.

    The best are those with the lowest neg_elbo on the validation images, or the test images where there are none. A
    run that is there and finished is not trained again, an unfinished one goes on. The comparison is kept in map.json.
    """
    from vae_exp.train import train

    maps = json.loads((run_dir / MAP).read_text())
    split = "val" if "val" in maps else "test"
    best: list[Place] = sorted(maps[split], key=lambda place: place["neg_elbo"])[: cfg.amortize.confirm]
    confirmed = []
    for number, place in enumerate(best, 1):
        name = places.named(place)
        folder = run_dir / CONFIRMED / name
        summary = read_summary(folder)
        log.info(
            f"\nconfirm {number}/{len(best)}  {name}" + ("  already finished" if summary and summary.finished else "")
        )
        if not (summary and summary.finished):
            train(_alone(cfg, place, folder), folder)
        confirmed.append({"setting": name, "map": place, "alone": _measure(folder, place, split)})
    write_json(run_dir / MAP, maps | {"confirmed": {"split": split, "settings": confirmed}})
    return _table(confirmed, split)


def _alone(cfg: DictConfig, place: "Place", folder: Path) -> DictConfig:
    """The configuration of the run of one setting."""
    from vae_exp import amortized

    goes_on = resume.can_go_on(folder)
    changes: dict[str, Any] = {
        "amortize": amortized.OFF,
        "model": {"beta": place["beta"], "z_dim": place["z_dim"]},
        "resume": str(folder) if goes_on else None,
        "replace": not goes_on,
    }
    merged = OmegaConf.merge(cfg, changes)
    assert isinstance(merged, DictConfig)
    return merged


def _measure(folder: Path, place: "Place", split: str) -> "Place":
    """The run's own model on the images of the map, with the map's noise."""
    from vae_exp import mapping, trained

    model = trained.load(folder, "cpu", trust=True)
    return mapping.measure_one(model.model, model.read_data().split(split), place["beta"], place["z_dim"])


def _table(confirmed: list[dict[str, Any]], split: str) -> str:
    lines = [f"\nneg_elbo, {split} images    the map     alone       off"]
    for row in confirmed:
        read, alone = row["map"]["neg_elbo"], row["alone"]["neg_elbo"]
        lines.append(f"{row['setting']:22}{read:10.2f}{alone:10.2f}{read / alone - 1:10.1%}")
    return "\n".join(lines)
