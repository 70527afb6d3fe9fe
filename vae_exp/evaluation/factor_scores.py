"""Score how codes tell factors, for one model or (UDR) between models."""

import math
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from vae_exp.compare import table
from vae_exp.compare.runs import UDR, Run, fold_seeds
from vae_exp.config.schema import EvaluateOptions
from vae_exp.datasets import Data
from vae_exp.datasets.splits import Split
from vae_exp.errors import UserError, printable
from vae_exp.evaluation import metrics, results
from vae_exp.figures import latent_walks as figures
from vae_exp.inference import TrainedVAE
from vae_exp.scores import SCORES
from vae_exp.scores.repeats import DEFAULT, usual_size
from vae_exp.training import dry_run
from vae_exp.training.run_dir import BEST

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
    dry_run.require_factors(typed, data.name, part, split)
    rows, wanted = options["score_rows"], list(names or DEFAULT)
    if rows is not None and rows > len(split):
        raise UserError(f"score_rows={rows}: the {part} split has {len(split):,} images.")
    rows = rows or usual_size(len(split), repeats)
    conditional = model.config["model"]["conditional"]
    found = dry_run.find_unsuited(split, wanted, rows, repeats, seed, conditional=conditional)
    if conditional and found.keys() != set(wanted) and (given := split.given_factors()):
        say_once(f"left out  {dry_run.given_as_label(given)}.")
    if not found:
        return wanted, rows
    why = f"the {part} split, {len(split):,} images, does not suit {dry_run.describe(found)}"
    helps = dry_run.what_helps(found, part, model.config["dataset"])
    whole = usual_size(len(split), 1)
    if rows < whole and not dry_run.find_unsuited(split, list(found), whole, 1, seed, conditional=conditional):
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
    result[results.WARNING] = metrics.scores_warning(measured, told, factors)
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


if TYPE_CHECKING:
    from torch import Tensor

    from vae_exp.datasets import Split

IMAGES = 2000  # of the test split, whose codes are compared


def rank(runs: list[Run]) -> None:
    """Give each run that can be loaded its UDR, among the runs that differ from it only in their seed.

    If a group of comparable runs has one seed for each setting, the UDR is among all of these. A run that cannot be
    loaded is left out, with a note.

    Raises UserError if nothing can be compared.
    """
    having = [run for run in runs if (run.folder / BEST).is_file()]
    if len(having) < 2:
        raise UserError(f"--udr: compares models with each other, and needs two runs or more that have a {BEST}.")
    together: list[list[Run]] = []
    for group in table.groups(having):
        settings = [run.members for run in fold_seeds(group)]
        alone = max(map(len, settings)) < 2
        together += [found for found in ([group] if alone else settings) if len(found) > 1]
    if not together:
        raise UserError(
            f"--udr: each of the {len(having)} runs with a {BEST} is of other data or another likelihood "
            f"({table.distinguishing_keys(having)}), so that no two compare."
        )
    if not sum([_rank(group) for group in together]):
        raise UserError("--udr: fewer than two runs of each kind could be loaded; the reasons stand above.")


def _rank(runs: list[Run]) -> int:
    """Give runs their UDR and return how many got it: none if fewer than two of them can be loaded."""
    from vae_exp import scores

    loaded, codes, kl, images = [], [], [], None
    for number, run in enumerate(runs, 1):
        if sys.stderr.isatty():
            print(f"\rcodes of run {number} of {len(runs)}", end="", file=sys.stderr)
        try:
            images, of_run, kl_per_dim = _encoded(run, images)
        except UserError as error:
            _clear_line()
            print(f"left out of {UDR}: {printable(run.name)}: {_one_line(error)}", file=sys.stderr)
            continue
        loaded.append(run)
        codes.append(of_run)
        kl.append(kl_per_dim)
    _clear_line()
    if len(loaded) < 2:
        return 0
    stochastic = all(any(each) for each in kl)  # an autoencoder has no KL by which a latent could be left out
    for run, value in zip(loaded, scores.udr(codes, kl if stochastic else None).tolist(), strict=True):
        run.metrics[UDR] = value
    return len(loaded)


def _encoded(run: Run, images: "Split | None") -> "tuple[Split, Tensor, list[float]]":
    """Return the images, at first from the run's own data; its codes [N, Z] of them; and the KL of each latent."""
    from vae_exp import inference
    from vae_exp.evaluation import metrics, sample_scores

    model = inference.load(run.folder)
    if images is None:
        split = model.read_data().split("test")
        images = split[sample_scores.random_rows(len(split), IMAGES)]
    return images, metrics.posterior(model.model, images.to(model.device)).mean.cpu(), model.kl_per_dim


def _one_line(error: UserError) -> str:
    return str(error).splitlines()[0]


def _clear_line() -> None:
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)
