"""`vae-evaluate`: measure trained models."""

import contextlib
import functools
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tqdm import tqdm

from vae_exp.cli import common
from vae_exp.config.checks import data_name
from vae_exp.config.schema import EVALUATE_RULES, EvaluateOptions
from vae_exp.errors import UserError, printable
from vae_exp.evaluation import results
from vae_exp.files import atomic_write, open_regular, read_json, require_no_links, write_json
from vae_exp.training.console import echo, say
from vae_exp.training.run_dir import BEST, GENERATED, LATEST, RESULT

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from vae_exp.inference import TrainedVAE

WEIGHTS = "weights"  # in a picture: those that it is of
ABOUT = """vae-evaluate: held-out numbers of a trained model, in nats per image.

usage: vae-evaluate checkpoint=PATH [KEY=VALUE ...]

  vae-evaluate checkpoint=latest                                  the newest run's best.pt on the test split
  vae-evaluate checkpoint=outputs/.../best.pt importance_samples=100
  vae-evaluate checkpoint=outputs/.../best.pt scores=[mig,dci,infomec]   where the factors behind the images are known
  vae-evaluate checkpoint=latest samples=[frechet,precision,recall,nearest] sampler=gmm
  vae-evaluate checkpoint=outputs/sweeps/... split=val            every run of a sweep, a table at the end"""


# What an evaluation measures only where that is asked for: of a model that has it already it is kept.
LONG = (("nll", "importance_"), ("label_accuracy", "number_error"))  # as the names begin


def log_to_wandb(path: Path, weights: str, mode: str, config: Any) -> list[str]:
    """Log all results of these weights, new and old, and return the line to print, if W&B took it."""
    from vae_exp.tracking import wandb_run

    pictures = _pictures(path, weights)
    numbers = results.stored_numbers(path, weights) | _claims(path.with_name(RESULT), weights)
    where = wandb_run.record_evaluation(mode, path.parent, config, numbers, pictures)
    return [f"W&B       {where}"] if where else []


def _write_pictures(path: Path, split: str, weights: str, pictures: "dict[str, np.ndarray]") -> list[str]:
    """Write pictures to generated/ beside the checkpoint, each marked with its weights; return the lines to print."""
    prefix = "" if (path.name, split) == (BEST, "test") else f"{path.stem}_{split}_"
    if pictures:
        require_no_links(path.parent, [GENERATED])
    lines = []
    for name, pixels in pictures.items():
        target, info = path.with_name(GENERATED) / f"{prefix}{name}.png", PngInfo()
        info.add_text(WEIGHTS, weights)
        with atomic_write(target) as file:
            Image.fromarray(pixels).save(file, "PNG", pnginfo=info)
        lines.append(f"picture   {target}")
    return lines


def _pictures(path: Path, weights: str) -> dict[str, Path]:
    """Return the pictures of these weights, by the names that W&B has for them."""
    pictures = {}
    for picture in sorted(path.with_name(GENERATED).glob("*.png")):
        refusals = contextlib.suppress(OSError, ValueError, SyntaxError)
        with refusals, open_regular(picture) as file, Image.open(file) as opened:
            if opened.info.get(WEIGHTS) == weights:
                pictures[f"evaluate/{picture.stem}"] = picture
    return pictures


def _claims(path: Path, weights: str) -> dict[str, float]:
    """Return the published figures, and what vae-reproduce found for them with these weights."""
    figures: dict[str, float] = {}
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        stored = read_json(path)
        for claim in stored["claims"] if stored["weights"] == weights else ():
            epoch = "" if claim["after_epoch"] is None else f"/epoch_{int(claim['after_epoch'])}"
            if claim["here"] is not None:
                name = f"published/{claim['what']}{epoch}"
                figures |= {name: float(claim["value"]), f"{name}/here": float(claim["here"])}
    return figures


def evaluate_model(model: "TrainedVAE", options: EvaluateOptions) -> "tuple[dict[str, Any], dict[str, np.ndarray]]":
    """Return the numbers of a split, in nats per image, each with its standard error, and pictures by name."""
    from vae_exp.config import build
    from vae_exp.evaluation import factor_scores, metrics, reference_classifier, sample_scores
    from vae_exp.priors import Standard

    vae = model.model
    data = model.read_data(options["dataset"]["root"])
    split = data.split(options["split"]).to(model.device)
    # First what may be refused, before minutes of samples and of importance samples.
    names, rows = factor_scores.choose(model, data, split, options)
    if (samples := options["importance_samples"]) and not vae.stochastic:
        raise UserError(f"importance_samples={samples}: an autoencoder gives images no likelihood to bound.")
    classifier = functools.cache(lambda: reference_classifier.reference_classifier(data, model.device))
    sample_results, pictures = sample_scores.evaluate_samples(model, data, split, classifier, options)
    noise = functools.partial(build.generator, options["seed"])
    evaluation = metrics.evaluate(vae, split, noise("evaluation"), options["repeats"], batch_size=options["batch_size"])
    likelihood = str(model.config["likelihood"]["_target_"]).rpartition(".")[2]
    result: dict[str, Any] = {"model": model.name, "of": f"{data_name(model.config['dataset'])}, {likelihood}"}
    result |= {"split": options["split"], "images": len(split)}
    result |= {"repeats": options["repeats"], "seed": options["seed"]}
    for name, per_image in evaluation.per_image.items():
        result |= {name: per_image.mean().item(), f"{name}_error": metrics.standard_error(per_image)}
        result[f"{name}_noise_error"] = evaluation.noise_error(name)
    if samples:
        with tqdm(total=samples, desc="importance samples", disable=None, leave=False) as bar:
            draws = noise("importance")
            bound = metrics.importance_bound(vae, split, samples, draws, options["batch_size"], bar.update)
        result |= {"nll": -bound.mean().item(), "nll_error": metrics.standard_error(bound)}
        result |= {"importance_samples": samples, "importance_seed": options["seed"]}
    # Of each possible image a probability, not a density:
    if vae.support == "bytes" or (vae.support == "binary" and not split.is_grey()):
        nats = result.get("nll", result["neg_elbo"])
        result["bits_per_dim"] = nats / math.log(2) / math.prod(model.x_shape)
    if metrics.has_information(vae, evaluation.q):

        def log_p(z: "Tensor", rows: "Tensor") -> "Tensor":  # the codes and the labels may be on other devices
            y = split.y[rows.to(split.y.device)].to(vae.device)
            return vae.prior.log_prob(z.float().to(vae.device), y).to(z.device)

        its_own = None if isinstance(vae.prior, Standard) else log_p
        result |= metrics.information(evaluation, noise("part"), noise("information"), its_own)
    result |= {"active_units": evaluation.active_units, "kl_per_dim": evaluation.kl_per_dim}
    result |= {name: value.item() for name, value in vae.scale().items()}
    if vae.n_classes and vae.stochastic and options["label_accuracy"]:
        result |= reference_classifier.label_accuracy(vae, classifier()[0], data, split, noise("labels"))
    if names:
        result["scores"], figures = factor_scores.score(model, evaluation, split, names, rows, options)
        pictures = pictures | figures
    return result | ({"samples": sample_results} if sample_results else {}), pictures


def main() -> None:
    """Run `vae-evaluate`: exit with code 0, or with 1 and one message."""
    common.run("vae-evaluate", "evaluate", EVALUATE_RULES, ABOUT, _evaluate_all)


def _evaluate_all(options: EvaluateOptions) -> None:
    """Evaluate every checkpoint that the path means; one that fails, or a closed pipe, does not stop the others."""
    from vae_exp import inference
    from vae_exp.evaluation import factor_scores, sample_scores
    from vae_exp.tracking import wandb_run

    sample_scores.check(options)
    factor_scores.print_once.cache_clear()
    if options["wandb"]["mode"] == "online":  # before anything is measured
        wandb_run.api_key("online")
    paths = inference.find(options["checkpoint"])
    if options["checkpoint"] == LATEST:
        common.say_latest("vae-evaluate", paths[0].parent)
    if len(paths) > 1:
        say(f"{len(paths)} checkpoints in {options['checkpoint']}")
    rows, failed = {}, 0
    refused = list[OSError]()  # whoever reads what is printed may have gone
    for number, path in enumerate(paths, 1):
        if len(paths) > 1:
            say(f"{number}/{len(paths)}")
        try:
            rows[path], show = evaluate_checkpoint(path, options)
            show()
        except OSError as error:
            refused.append(error)
        except UserError as error:
            if len(paths) == 1:
                raise
            failed += 1
            say(f"{printable(path)}: failed: {error}\n")
    if refused:
        raise refused[0]
    if len(rows) > 1:
        results.show_side_by_side(rows, options)
    if failed:
        raise UserError(f"{failed} of {len(paths)} checkpoints could not be evaluated; the reasons stand above.")


def evaluate_checkpoint(path: Path, options: EvaluateOptions) -> tuple[dict[str, Any], Callable[[], None]]:
    """Measure a checkpoint, write NAME.SPLIT.json beside it, and return the numbers and a function that prints them."""
    from vae_exp import inference

    model, split = inference.load(path, options["device"], options["trust"]), options["split"]
    evaluation, pictures = evaluate_model(model, options)
    result = {"checkpoint": str(path), "step": model.step, "weights": model.weights, **evaluation}
    if wrong := results.not_finite(result):
        raise UserError(f"{path}: {', '.join(wrong)}; the model's weights or its data are not sound.")
    target = results.path_of(path, split)
    result = _with_stored(result, results.read(target))
    write_json(target, result)
    lines = [f"written   {target}", *_write_pictures(path, split, model.weights, pictures)]
    lines += log_to_wandb(path, model.weights, options["wandb"]["mode"], model.config)

    def show() -> None:
        results.show(result, model)
        echo("\n".join(["", *map(printable, lines), ""]))

    return result, show


def _with_stored(result: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """Return the result, with slow numbers that were not requested from an earlier one of the same model and images."""
    if any(before.get(name) != result[name] for name in ("weights", "split", "images")):
        return result

    def merged(new: dict[str, Any], old: dict[str, Any], settings: Iterable[str]) -> dict[str, Any]:
        return (old if all(old.get(name) == new[name] for name in settings) else {}) | new

    if scores := before.get("scores"):
        result = result | {"scores": merged(result.get("scores", scores), scores, results.SETTINGS)}
    samples = dict(before.get("samples", {}))
    for source, scores in result.get("samples", {}).items():
        samples[source] = merged(scores, samples.get(source, {}), results.SAMPLE_SETTINGS)
    result = result | ({"samples": samples} if samples else {})
    lacking = [heads for heads in LONG if not any(name.startswith(heads) for name in result)]
    slow = {name: value for name, value in before.items() if any(name.startswith(heads) for heads in lacking)}
    if "nll" in slow and "bits_per_dim" in result:  # they come from the nll where there is one
        slow["bits_per_dim"] = before["bits_per_dim"]
    return result | slow


if __name__ == "__main__":
    main()
