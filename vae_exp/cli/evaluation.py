"""The measurements of one model that `vae-evaluate` makes: the ELBO and its terms, bounds, information, scores."""

import functools
import math
from typing import TYPE_CHECKING, Any

from vae_exp.config.keys import EvaluateOptions
from vae_exp.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from vae_exp.datasets.splits import Split
    from vae_exp.inference import TrainedVAE


def evaluate_model(model: "TrainedVAE", options: EvaluateOptions) -> "tuple[dict[str, Any], dict[str, np.ndarray]]":
    """Return the numbers of a split, in nats per image, each with its standard error, and pictures by name.

    Raises UserError if the data cannot be read, for importance samples of a deterministic autoencoder, and for
    scores of samples or of factors that do not suit the data.
    """
    from tqdm import tqdm

    from vae_exp import metrics
    from vae_exp.cli import factor_scores, label_accuracy, reference_classifier, sample_scores
    from vae_exp.config import build

    vae = model.model
    data = model.read_data(options["dataset"]["root"])
    split = data.split(options["split"]).to(model.device)
    # First what may be refused, before minutes of samples and of importance samples.
    names, rows = factor_scores.chosen(model, data, split, options)
    if (samples := options["importance_samples"]) and not vae.stochastic:
        raise UserError(f"importance_samples={samples}: an autoencoder gives images no likelihood to bound.")
    judged = functools.cache(lambda: reference_classifier.reference_classifier(data, model.device))
    of_samples, drawn = sample_scores.scored(model, data, split, judged, options) if options["samples"] else ({}, {})
    seed, batch_size = options["seed"], options["batch_size"]
    noise = functools.partial(build.generator, seed)
    measured = metrics.evaluate(vae, split, noise("evaluation"), options["repeats"], batch_size=batch_size)
    result: dict[str, Any] = {"model": model.name, "split": options["split"]}
    result |= {"images": len(split), "repeats": options["repeats"], "seed": seed}
    for name, per_image in measured.per_image.items():
        result |= {name: per_image.mean().item(), f"{name}_error": metrics.standard_error(per_image)}
        result[f"{name}_noise_error"] = None if name == "kl" else measured.noise_error()
    if samples:
        with tqdm(total=samples, desc="importance samples", disable=None, leave=False) as bar:
            bound = metrics.importance_bound(vae, split, samples, noise("importance"), batch_size, bar.update)
        result |= {"nll": -bound.mean().item(), "nll_error": metrics.standard_error(bound)}
        result |= {"importance_samples": samples, "importance_seed": seed}
    if _gives_probabilities(model, split):
        nats = result.get("nll", result["neg_elbo"])
        result["bits_per_dim"] = nats / math.log(2) / math.prod(model.x_shape)
    if vae.stochastic:
        found = metrics.information(measured, noise("part"), noise("information"))
        result |= {
            "mutual_information": found.mutual,
            "mutual_information_error": found.mutual_error,
            "mutual_information_at_most": math.log(found.images),
            "mutual_information_images": found.images,
            "mutual_information_kl": found.kl,
            "kl_aggregate": found.aggregate,
            "kl_aggregate_error": found.aggregate_error,
        }
    result |= {"active_units": measured.active_units, "kl_per_dim": measured.kl_per_dim}
    result |= {name: value.item() for name, value in vae.scale().items()}
    if vae.n_classes and vae.stochastic and options["label_accuracy"]:
        result |= label_accuracy.label_accuracy(vae, judged()[0], data, split, noise("labels"))
    if names:
        scores, of_factors = factor_scores.scored(model, measured, split, names, rows, options)
        result, drawn = result | {"scores": scores}, drawn | of_factors
    return result | ({"samples": of_samples} if of_samples else {}), drawn


def _gives_probabilities(model: "TrainedVAE", split: "Split") -> bool:
    """Return whether the likelihood gives each possible image a probability, so that bits per dimension are defined."""
    return model.model.support == "bytes" or (model.model.support == "binary" and not split.is_grey())
