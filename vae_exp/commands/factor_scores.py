"""How well a model's codes are disentangled, where the factors behind the images are known: scores and pictures."""

from typing import Any

import numpy as np

from vae_exp import metrics
from vae_exp.config.keys import EvaluateOptions
from vae_exp.datasets.splits import Split
from vae_exp.errors import UserError
from vae_exp.figures import factors as figures
from vae_exp.scores import SCORES, mutual_information
from vae_exp.scores.repeats import DEFAULT
from vae_exp.trained import TrainedVAE


def chosen(split: Split, options: EvaluateOptions) -> list[str]:
    """The scores to measure: those that are typed, or where there are factors the usual ones.

    Raises UserError where scores are asked for of data without known factors.
    """
    if split.factors is None:
        if options["scores"]:
            raise UserError(f"scores=[{','.join(options['scores'])}]: this data set has no known factors.")
        return []
    return list(DEFAULT) if options["scores"] is None else options["scores"]


def scored(
    model: TrainedVAE, measured: metrics.Evaluation, split: Split, names: list[str], options: EvaluateOptions
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Each score with its spread; the matrix of information, and the traversals that it orders, by their names.

    Raises UserError where the split has too few images for the values of its factors.
    """
    assert split.factors is not None, "chosen has seen to it"
    factors, repeats, rows = split.factors.varying(), options["score_repeats"], options["score_rows"]
    if rows is None:
        rows = metrics.score_rows(len(factors), repeats)
    elif rows > len(factors):
        raise UserError(f"score_rows={rows}: the {options['split']} split has {len(factors):,} images.")
    found = metrics.disentanglement(measured.q, factors, names, rows, repeats, options["seed"])
    cautions = {key: SCORES[name].caution for name in names for key in SCORES[name].keys}
    result: dict[str, Any] = {"rows": rows, "repeats": repeats, "seed": options["seed"], "factors": factors.names}
    for name, score in found.items():
        std = score.std if repeats > 1 else None
        result[name] = {"mean": score.mean, "std": std, "caution": cautions[name]}
    information = mutual_information(measured.q.mean.cpu(), factors.table.cpu())
    drawn = {"factors": figures.matrix(information, factors.names)}
    if model.model.stochastic:
        drawn["factors_traversals"] = figures.traversals(model.model, information, factors.names)
    return result, drawn
