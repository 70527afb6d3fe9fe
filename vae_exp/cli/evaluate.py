"""`vae-evaluate`: held-out numbers of a trained model, printed, written beside its checkpoint, added to its W&B run."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vae_exp.cli import evaluation, evaluation_table, save_results, shared
from vae_exp.config.keys import EvaluateOptions
from vae_exp.config.rules import EVALUATE_RULES
from vae_exp.errors import UserError, printable
from vae_exp.training import stored_evaluation
from vae_exp.training.console import say

if TYPE_CHECKING:
    from vae_exp.inference import TrainedVAE

ABOUT = """vae-evaluate: held-out numbers of a trained model, in nats per image.

usage: vae-evaluate checkpoint=PATH [KEY=VALUE ...]

  vae-evaluate checkpoint=latest                                  the newest run's best.pt on the test split
  vae-evaluate checkpoint=outputs/.../best.pt importance_samples=100
  vae-evaluate checkpoint=outputs/.../best.pt scores=[mig,dci,infomec]   where the factors behind the images are known
  vae-evaluate checkpoint=latest samples=[frechet,precision,recall,nearest] sampler=gmm
  vae-evaluate checkpoint=outputs/sweeps/... split=val            every run of a sweep, a table at the end"""


# What an evaluation measures only where that is asked for: of a model that has it already it is kept.
LONG = (
    ("nll", "nll_error", "importance_samples", "importance_seed"),
    ("label_accuracy", "label_accuracy_real", "label_accuracy_shuffled"),
)


def main() -> None:
    """Run `vae-evaluate`: exit with code 0, or with 1 and one message."""
    shared.run("vae-evaluate", "evaluate", EVALUATE_RULES, ABOUT, _evaluate_all)


def _evaluate_all(options: EvaluateOptions) -> None:
    """Evaluate every checkpoint that the path means.

    A checkpoint that fails, or a closed output pipe, does not stop the others.
    """
    from vae_exp import inference
    from vae_exp.cli import factor_scores, sample_scores
    from vae_exp.tracking import wandb_server

    sample_scores.check(options)
    factor_scores.SAID.clear()
    if options["wandb"]["mode"] == "online":  # before anything is measured
        wandb_server.api_key("online")
    paths = inference.find(options["checkpoint"])
    if len(paths) > 1:
        say(f"{len(paths)} checkpoints in {printable(options['checkpoint'])}")
    rows, failed = {}, 0
    refused: OSError | None = None  # where what was printed has no reader any more
    for number, path in enumerate(paths, 1):
        if len(paths) > 1:
            say(f"{number}/{len(paths)}")
        try:
            rows[path], show = evaluate_checkpoint(path, options)
            show()
        except OSError as error:
            refused = refused or error
        except UserError as error:
            if len(paths) == 1:
                raise
            failed += 1
            say(f"{printable(path)}: failed: {error}\n")
    if refused is not None:
        raise refused
    if len(rows) > 1:
        evaluation_table.show_side_by_side(rows, options)
    if failed:
        raise UserError(f"{failed} of {len(paths)} checkpoints could not be evaluated; the reasons stand above.")


def evaluate_checkpoint(path: Path, options: EvaluateOptions) -> tuple[dict[str, Any], Callable[[], None]]:
    """Measure all numbers of one checkpoint, write them beside it as NAME.SPLIT.json, and add them to W&B.

    Returns the numbers and a function that prints them: if the output pipe is closed by then, nothing is lost.
    """
    from vae_exp import inference
    from vae_exp.config import devices
    from vae_exp.training import checkpoint

    kept = checkpoint.load(path)
    model = inference.TrainedVAE(kept, devices.device(options["device"]), options["trust"], path)
    measured, drawn = evaluation.evaluate_model(model, options)
    result = {"checkpoint": str(path), "step": kept.step, "weights": model.weights, **measured}
    if wrong := stored_evaluation.not_finite(result):
        raise UserError(f"{path}: {', '.join(wrong)}; the model's weights or its data are not sound.")
    result = _with_what_was_kept(result, stored_evaluation.read(save_results.file_of(path, options["split"])))
    lines = save_results.write(path, options["split"], model.weights, result, drawn)
    lines += save_results.in_wandb(path, model.weights, options["wandb"]["mode"], model.config)
    return result, functools.partial(_show, result, model, lines)


def _show(result: dict[str, Any], model: "TrainedVAE", lines: list[str]) -> None:
    evaluation_table.show(result, model)
    print("", *lines, "", sep="\n")


def _with_what_was_kept(result: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """Return the result, with slow numbers that were not asked for taken from an earlier one.

    The earlier one must be of the same model and images.
    """
    if any(before.get(name) != result[name] for name in ("weights", "split", "images")):
        return result
    if scores := before.get("scores"):
        is_same = all(result.get("scores", scores)[name] == scores[name] for name in stored_evaluation.SETTINGS)
        result = result | {"scores": (scores if is_same else {}) | result.get("scores", {})}
    samples = dict(before.get("samples", {}))
    for drawn, scores in result.get("samples", {}).items():
        earlier = samples.get(drawn, {})
        is_same = all(earlier.get(name) == scores[name] for name in stored_evaluation.DRAWN_BY)
        samples[drawn] = (earlier if is_same else {}) | scores
    result = result | ({"samples": samples} if samples else {})
    kept = {name: before[name] for names in LONG if not set(names) & set(result) for name in names if name in before}
    if "nll" in kept and "bits_per_dim" in result:  # they come from the nll where there is one
        kept["bits_per_dim"] = before["bits_per_dim"]
    return result | kept
