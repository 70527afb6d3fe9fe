"""How well a model's codes are disentangled, where the factors behind the images are known: scores and pictures."""

import math
from typing import Any

import numpy as np

from vae_exp import metrics
from vae_exp.config.keys import EvaluateOptions
from vae_exp.datasets import Data
from vae_exp.datasets.splits import Split
from vae_exp.errors import UserError, printable
from vae_exp.figures import factors as figures
from vae_exp.inference import TrainedVAE
from vae_exp.scores import SCORES
from vae_exp.scores.repeats import DEFAULT, usual_size
from vae_exp.training import stored_evaluation, suitability

SAID: set[str] = set()  # the notes of this command: of a sweep they are the same


def chosen(model: TrainedVAE, data: Data, split: Split, options: EvaluateOptions) -> tuple[list[str], int]:
    """Return the scores to measure, and the number of images for each repeat.

    The scores are those that are typed or, if the factors are known, the usual ones; of the usual ones, those that the
    split does not suit are left out, with a note.

    Raises UserError if typed scores do not suit the data, or if more rows are asked for than there are.
    """
    names, part, repeats, seed = options["scores"], options["split"], options["score_repeats"], options["seed"]
    if names == [] or (names is None and split.factors is None):
        return [], 0
    typed = f"scores=[{','.join(names or DEFAULT)}]"
    suitability.require_factors(typed, data.name, part, split)
    rows, wanted = options["score_rows"], list(names or DEFAULT)
    if rows is not None and rows > len(split):
        raise UserError(f"score_rows={rows}: the {part} split has {len(split):,} images.")
    rows = rows or usual_size(len(split), repeats)
    conditional = model.config["model"]["conditional"]
    found = suitability.find_unsuited(split, wanted, rows, repeats, seed, conditional=conditional)
    if conditional and found.keys() != set(wanted) and (given := split.given_factors()):
        say_once(f"left out  {suitability.given_as_label(given)}.")
    if not found:
        return wanted, rows
    why = f"the {part} split, {len(split):,} images, does not suit {suitability.describe(found)}"
    helps = suitability.what_helps(found, part, model.config["dataset"])
    whole = usual_size(len(split), 1)
    if rows < whole and not suitability.find_unsuited(split, list(found), whole, 1, seed, conditional=conditional):
        without = "score_repeats=1" + (" without score_rows" if options["score_rows"] else "")
        helps = f"{without}, which takes {whole:,} images at once; or at training, {helps}"
    else:
        helps = f"training with {helps}"
    if names is not None:
        raise UserError(f"{typed}: {why}. What helps: {helps}.")
    say_once(f"left out  scores: {why}. What helps: {helps}. scores=[] asks for none.")
    return [name for name in wanted if name not in found], rows


def say_once(note: str) -> None:
    """Print a note unless this command has already printed it."""
    if note not in SAID:
        print(f"{printable(note)}\n")
    SAID.add(note)


def scored(
    model: TrainedVAE, measured: metrics.Evaluation, split: Split, names: list[str], rows: int, options: EvaluateOptions
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return each score with its spread, and by name the pictures: the information matrix and the traversals it orders.

    A score that is not a number here is left out, with a note.
    """
    factors, repeats = split.unknown_factors(model.config["model"]["conditional"]), options["score_repeats"]
    found = metrics.disentanglement(measured.q, factors, names, rows, repeats, options["seed"])
    cautions = {key: SCORES[name].caution_of(key) for name in names for key in SCORES[name].keys}
    told = metrics.told_by_means(measured, factors, options["seed"])
    result: dict[str, Any] = {"rows": rows, "repeats": repeats, "seed": options["seed"], "factors": factors.names}
    result[stored_evaluation.WARNING] = metrics.scores_warning(measured, told, factors)
    for name, score in found.items():
        if math.isnan(score.mean):
            say_once(f"left out  {name}: it is no number here, as infoc is none where one latent is active.")
            continue
        std = score.std if repeats > 1 else None
        result[name] = {"mean": score.mean, "std": std, "caution": cautions[name]}
    information = np.minimum(told, metrics.carried(measured)[:, None])
    drawn = {"factors": figures.matrix(information, factors.names)}
    if model.model.stochastic:
        drawn["factors_traversals"] = figures.traversals(model.model, information, factors.names)
    return result, drawn
