"""Score how codes tell factors, for one model or (UDR) between models."""

import functools
import math
import sys
from typing import Any

import numpy as np
from tqdm import tqdm

from vae_exp import scores
from vae_exp.compare import table
from vae_exp.compare.runs import UDR, Run, fold_seeds
from vae_exp.config.schema import EvaluateOptions
from vae_exp.datasets import Data
from vae_exp.datasets.splits import Split
from vae_exp.errors import UserError, first_line, printable
from vae_exp.evaluation import metrics, results, sample_scores
from vae_exp.evaluation.metrics import Evaluation
from vae_exp.figures import latent_walks as figures
from vae_exp.inference import TrainedVAE, load
from vae_exp.scores.mig import above_chance
from vae_exp.scores.repeats import DEFAULT, usual_size
from vae_exp.training import dry_run
from vae_exp.training.console import echo, say
from vae_exp.training.run_dir import BEST

IMAGES = 2000  # of the test split, whose codes udr compares


def choose(model: TrainedVAE, data: Data, split: Split, options: EvaluateOptions) -> tuple[list[str], int]:
    """Return the scores to measure, requested or usual ones that the split suits, and the images for each repeat."""
    requested, part, repeats, seed = options["scores"], options["split"], options["score_repeats"], options["seed"]
    if requested == [] or (requested is None and split.factors is None):
        return [], 0
    names = list(requested or DEFAULT)
    request = f"scores=[{','.join(names)}]"
    dry_run.require_factors(request, data.name, part, split)
    if (options["score_rows"] or 0) > len(split):
        raise UserError(f"score_rows={options['score_rows']}: the {part} split has {len(split):,} images.")
    rows = options["score_rows"] or usual_size(len(split), repeats)
    conditional = model.config["model"]["conditional"]
    errors = dry_run.find_unsuited(split, names, rows, repeats, seed, conditional=conditional)
    if conditional and errors.keys() != set(names) and (given := split.given_factors()):
        print_once(f"left out  {dry_run.given_as_label(given)}.")
    if not errors:
        return names, rows
    problem, remedy = dry_run.explain_unsuited(errors, part, split, model.config["dataset"])
    all_rows = usual_size(len(split), 1)
    if rows < all_rows and not dry_run.find_unsuited(split, list(errors), all_rows, 1, seed, conditional=conditional):
        without = "score_repeats=1" + (" without score_rows" if options["score_rows"] else "")
        remedy = f"{without}, which takes {all_rows:,} images at once; or at training, {remedy}"
    else:
        remedy = f"training with {remedy}"
    if requested is not None:
        raise UserError(f"{request}: {problem}. What helps: {remedy}.")
    print_once(f"left out  scores: {problem}. What helps: {remedy}. scores=[] asks for none.")
    return [name for name in names if name not in errors], rows


@functools.cache  # for all runs of a sweep the notes are the same
def print_once(note: str) -> None:
    echo(f"{note}\n")


def score(
    model: TrainedVAE, evaluation: Evaluation, split: Split, names: list[str], rows: int, options: EvaluateOptions
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return each score with its spread, and by name the information matrix and the traversals that it orders."""
    factors = split.unknown_factors(model.config["model"]["conditional"])
    repeats, seed = options["score_repeats"], options["seed"]
    known = above_chance(evaluation.q.mean, factors.table, seed=seed)
    result: dict[str, Any] = {"rows": rows, "repeats": repeats, "seed": seed, "factors": factors.names}
    result[results.WARNING] = metrics.scores_warning(evaluation, factors, known)
    cautions = {key: caution for name in names for key, caution in scores.SCORES[name].cautions.items()}
    for name, spread in scores.spread(evaluation.q.mean, factors.table, names, rows, repeats, seed).items():
        if math.isnan(spread.mean):
            print_once(f"left out  {name}: it is no number here, as infoc is none where one latent is active.")
            continue
        std = spread.std if repeats > 1 else None
        result[name] = {"mean": spread.mean, "std": std, "caution": cautions[name]}
    bound = metrics.max_information(evaluation)
    shown = (np.minimum(known, bound[:, None]), factors.names, bool(np.isfinite(bound).all()))
    pictures = {"factors": figures.matrix(*shown)}
    if model.model.stochastic:
        pictures["factors_traversals"] = figures.traversals(model.model, *shown)
    return result, pictures


def rank(runs: list[Run]) -> None:
    """Give each run that can be loaded its UDR among runs of other seeds, or in its group if each has one seed."""
    runs = [run for run in runs if (run.folder / BEST).is_file()]
    if len(runs) < 2:
        raise UserError(f"--udr: compares models with each other, and needs two runs or more that have a {BEST}.")
    groups: list[list[Run]] = []
    for group in table.groups(runs):
        settings = [run.members for run in fold_seeds(group)]
        groups += settings if max(map(len, settings)) > 1 else [group]
    groups = [group for group in groups if len(group) > 1]
    if not groups:
        raise UserError(
            f"--udr: each of the {len(runs)} runs with a {BEST} is of other data or another likelihood "
            f"({table.distinguishing_keys(runs)}), so that no two compare."
        )
    if not sum([_rank(group) for group in groups]):
        raise UserError("--udr: fewer than two runs of each kind could be loaded; the reasons stand above.")


def _rank(runs: list[Run]) -> int:
    """Give runs their UDR and return how many got it: none if fewer than two of them can be loaded."""
    loaded: list[Run] = []
    codes, kl, images = [], [], None
    for run in tqdm(runs, desc="codes", unit="run", disable=None, leave=False):
        try:
            model = load(run.folder)
            if images is None:  # of the first run's data, for all
                split = model.read_data().split("test")
                images = split[sample_scores.random_rows(len(split), IMAGES)]
            codes.append(metrics.posterior(model.model, images.to(model.device)).mean.cpu())
        except UserError as error:
            say(f"left out of {UDR}: {printable(run.name)}: {first_line(error)}", sys.stderr)
            continue
        loaded.append(run)
        kl.append(model.kl_per_dim)
    if len(loaded) < 2:
        return 0
    stochastic = all(map(any, kl))  # an autoencoder has no KL by which a latent could be left out
    for run, value in zip(loaded, scores.udr(codes, kl if stochastic else None).tolist(), strict=True):
        run.metrics[UDR] = value
    return len(loaded)
