"""The record vae-evaluate wrote of a checkpoint, NAME.SPLIT.json: read again, as far as it is what it writes."""

import math
from pathlib import Path
from typing import Any

from vae_exp.files import read_json

TEXTS = ("checkpoint", "weights", "model", "split")
SETTINGS = ("rows", "repeats", "seed", "factors")  # of scores of disentanglement: those of others do not compare
WARNING = "warning"  # beside them: what a reader of all the scores should know, if anything
SPREAD = "_std"  # behind the name of a score: over its repeats
DRAWN_BY = ("n", "seed")  # samples: scores of other numbers of them do not compare
NO_RESULTS = ("step", "seed", "importance_seed", "repeats", "images", "mutual_information_images", "n")


def read(path: Path) -> dict[str, Any]:
    """Read an evaluation, without entries that are not as written; empty if there is no file or it cannot be read."""
    try:
        content = read_json(path)
    except OSError:
        return {}
    return _sound(content) if isinstance(content, dict) else {}


def scores(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the scores of disentanglement of an evaluation by name: mean, std and caution."""
    return {name: score for name, score in result.get("scores", {}).items() if name not in (*SETTINGS, WARNING)}


def numbers(result: dict[str, Any]) -> dict[str, float]:
    """Return all results of an evaluation as in W&B, such as mig, mig_std and samples/prior/classifier/frechet."""
    found = {name: value for name, value in result.items() if _is_finite(value) and name not in NO_RESULTS}
    found |= {name: score["mean"] for name, score in scores(result).items()}
    found |= {f"{name}{SPREAD}": score["std"] for name, score in scores(result).items() if score["std"] is not None}
    for drawn, of_samples in result.get("samples", {}).items():
        found |= {f"samples/{drawn}/{name}": value for name, value in of_samples.items() if name not in NO_RESULTS}
    return found


def not_finite(result: dict[str, Any]) -> list[str]:
    """Return the numbers of a new evaluation that are not finite, such as `nll is nan`.

    They mean that its weights or its data are not sound.
    """
    flat = dict(result)
    flat |= {name: score["mean"] for name, score in scores(result).items()}
    for drawn, of_samples in result.get("samples", {}).items():
        flat |= {f"{name} of {drawn}": value for name, value in of_samples.items()}
    return [f"{n} is {value}" for n, value in flat.items() if isinstance(value, float) and not math.isfinite(value)]


def _sound(content: dict[str, Any]) -> dict[str, Any]:
    """Return the content without what is not as it was written."""
    plain = {name: value for name, value in content.items() if name not in ("scores", "samples")}
    kept = {name: value for name, value in plain.items() if _is_plain(name, value)}
    if _are_scores(content.get("scores")):
        kept["scores"] = content["scores"]
    if isinstance(content.get("samples"), dict):
        kept["samples"] = {drawn: found for drawn, found in content["samples"].items() if _are_of_samples(drawn, found)}
    return kept


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


def _is_plain(name: str, value: Any) -> bool:
    if name in TEXTS:
        return isinstance(value, str)
    is_list = isinstance(value, list) and all(map(_is_finite, value))
    return value is None or _is_finite(value) or (name == "kl_per_dim" and is_list)


def _are_scores(content: Any) -> bool:
    if not isinstance(content, dict) or not set(SETTINGS) <= content.keys():
        return False
    parts = [score for name, score in content.items() if name not in (*SETTINGS, WARNING)]
    can_be_read = isinstance(content["factors"], list) and isinstance(content.get(WARNING), str | None)
    return can_be_read and all(
        isinstance(score, dict)
        and _is_finite(score.get("mean"))
        and "std" in score
        and (score["std"] is None or _is_finite(score["std"]))
        and isinstance(score.get("caution"), str)
        for score in parts
    )


def _are_of_samples(drawn: str, content: Any) -> bool:
    if drawn.count("/") != 1 or not isinstance(content, dict) or not set(DRAWN_BY) <= content.keys():
        return False
    names = [name for name in content if name not in DRAWN_BY and not name.endswith("_real")]
    return all(map(_is_finite, content.values())) and all(f"{name}_real" in content for name in names)
