"""Read the results of evaluations that are stored beside a checkpoint, and print them."""

import contextlib
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vae_exp.config.schema import SAMPLE_SCORES, TERMS, EvaluateOptions, is_number
from vae_exp.errors import printable
from vae_exp.files import read_json
from vae_exp.training.console import echo

if TYPE_CHECKING:  # which imports torch
    from vae_exp.inference import TrainedVAE

TEXTS = ("checkpoint", "weights", "model", "of", "split")
SETTINGS = ("rows", "repeats", "seed", "factors")  # of scores of disentanglement: those of others do not compare
WARNING = "warning"  # beside them: what a reader of all the scores should know, if anything
SPREAD = "_std"  # behind the name of a score: over its repeats
SAMPLE_SETTINGS = ("n", "seed")  # scores of other numbers of samples do not compare
NO_RESULTS = ("step", "seed", "importance_seed", "repeats", "images", "mutual_information_images", "n")
TABLE_SCORES = ("mig", "dci_disentanglement", "infom", "infom_published")  # of several checkpoints side by side
MEANINGS = {
    "frechet": "0 is best; the fewer images, the higher",
    "kid": "0 is best",
    "precision": "part of the samples that look real",
    "recall": "part of the real images that samples look like",
    "density": "1 as of real images: samples lie where real ones are dense",
    "coverage": "part of the real images that have a sample near",
    "nearest": "median distance to the nearest training image",
}


def path_of(checkpoint: Path, split: str) -> Path:
    """Return the path of an evaluation, such as best.test.json beside best.pt."""
    return checkpoint.with_name(f"{checkpoint.stem}.{split}.json")


def stored_numbers(checkpoint: Path, weights: str | None = None) -> dict[str, float]:
    """Return the numbers of all evaluations beside a checkpoint, or those of these weights, by their names in W&B."""
    found: dict[str, float] = {}
    for split in ("test", "train", "val"):
        stored = read(path_of(checkpoint, split))
        if weights in (None, stored.get("weights")):
            found |= {f"evaluate/{split}/{name}": value for name, value in numbers(stored).items()}
    return found


def read(path: Path) -> dict[str, Any]:
    """Read an evaluation; empty if there is no file, or one that is not as vae-evaluate writes it."""
    with contextlib.suppress(OSError, AttributeError, KeyError, TypeError):
        content = read_json(path)
        samples = content.get("samples", {})
        values = [*_values(content).values(), *content.get("kl_per_dim", [])]
        values += [content["scores"][name] for name in SETTINGS if name != "factors" and "scores" in content]
        values += [score[name] for score in samples.values() for name in SAMPLE_SETTINGS]
        if all(value is None or is_number(value) for value in values) and all(name.count("/") == 1 for name in samples):
            return content
    return {}


def scores_of(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the scores of disentanglement of an evaluation by name: mean, std and caution."""
    return {name: score for name, score in result.get("scores", {}).items() if name not in (*SETTINGS, WARNING)}


def _values(result: dict[str, Any]) -> dict[str, Any]:
    """Return what an evaluation measured, by its names in W&B: mig, mig_std and samples/prior/classifier/frechet."""
    flat = {name: value for name, value in result.items() if name not in (*TEXTS, "kl_per_dim", "scores", "samples")}
    for name, score in scores_of(result).items():
        flat |= {name: score["mean"], f"{name}{SPREAD}": score["std"]}
    for source, scores in result.get("samples", {}).items():
        flat |= {f"samples/{source}/{name}": value for name, value in scores.items()}
    return flat


def numbers(result: dict[str, Any]) -> dict[str, float]:
    """Return all results of an evaluation by their names in W&B, without its settings."""
    values = _values(result).items()
    return {name: value for name, value in values if is_number(value) and name.split("/")[-1] not in NO_RESULTS}


def not_finite(result: dict[str, Any]) -> list[str]:
    """Return the numbers of a new evaluation that are not finite, such as `nll is nan`: it has bad weights or data."""
    flat = _values(result)
    return [f"{n} is {value}" for n, value in flat.items() if isinstance(value, float) and not math.isfinite(value)]


def show(result: dict[str, Any], model: "TrainedVAE") -> None:
    """Print an evaluation."""
    draws = "one draw" if result["repeats"] == 1 else f"{result['repeats']} draws"
    echo(f"{printable(model.name)}\n{result['split']} split, {result['images']:,} images, {draws} of z for each\n")
    echo(f"{'nats per image':28}{'':>12}{'SE over images':>17}{'SE over draws':>16}")
    words = dict(zip(TERMS, TERMS, strict=True)) | {"nll": f"nll, K = {result.get('importance_samples')}"}
    if (images := result.get("mutual_information_images", result["images"])) < result["images"]:
        words["mutual_information_kl"] = f"kl of {images:,} random images"
    words |= {"mutual_information": "mutual information I(x; z)", "kl_aggregate": "KL(q(z) || p(z))"}
    notes = {"kl_aggregate": f"   {'that' if images < result['images'] else 'the'} KL minus mutual information"}
    for name in [name for name in words if name in result]:
        errors = [result.get(f"{name}_{kind}") for kind in ("error", "noise_error")]
        first, second = ("-" if error is None else f"{error:.3f}" for error in errors)
        cells = f"{first:>17}{second:>16}"
        echo(f"{words[name]:28}{result[name]:12.3f}{cells}{notes.get(name, '')}")
        if name == "mutual_information":
            echo(f"{'   of at most log N':28}{result['mutual_information_at_most']:12.3f}")
    if "bits_per_dim" in result:
        echo(f"{'bits per dimension':28}{result['bits_per_dim']:12.4f}")
    echo(f"{'active units':28}{result['active_units']:12d}   of {model.model.z_dim}")
    for name, value in model.model.scale().items():
        echo(f"{name:28}{value:12.4f}   of pixels from 0 to 1, fitted with the weights")
    for key in [key for key in result if key.partition("/")[0] in ("label_accuracy", "number_error")]:
        kind, _, name = key.partition("/")
        read, real, chance = (result[f"{kind}{end}" + f"/{name}" * bool(name)] for end in ("", "_real", "_shuffled"))
        if kind == "label_accuracy":
            what = f"{printable(name)} read as intended" if name else "classified as intended"
            echo(f"{what:28}{read:12.1%}   real images {real:.1%}, shuffled labels {chance:.1%}")
        else:
            what = f"{printable(name)} read, RMS error"
            echo(f"{what:28}{read:12.4g}   real images {real:.4g}, shuffled {chance:.4g}")
    per_dim = sorted(((kl, i) for i, kl in enumerate(result["kl_per_dim"])), reverse=True)
    largest = "  ".join(f"z{i} {kl:.2f}" for kl, i in per_dim[:10]) or "-   the prior or the posterior gives none"
    echo(f"{'KL of each latent':28}{largest}" + ("  ..." if len(per_dim) > 10 else ""))
    if scores := scores_of(result):
        _show_scores(scores, result)
    for source, scores in result.get("samples", {}).items():
        _show_samples(source, scores, result)


def show_side_by_side(rows: dict[Path, dict[str, Any]], options: EvaluateOptions) -> None:
    """Print the runs of a folder side by side, the best first, in a table for each data set and likelihood."""
    source = f"{options['sampler']}/{options['features']}"
    rows = {
        path: row | row.get("samples", {}).get(source, {}) | {name: s["mean"] for name, s in scores_of(row).items()}
        for path, row in rows.items()
    }
    always = ("nll", *TERMS, "active_units", "label_accuracy")
    columns = (*always, *options["samples"], *TABLE_SCORES)
    groups = sorted({row["of"] for row in rows.values()})
    for of in groups:
        if len(groups) > 1:
            echo(f"{printable(of)}:")
        same = [(path, row) for path, row in rows.items() if row["of"] == of]
        names = [name for name in columns if any(name in row for _, row in same)]
        echo("  ".join(f"{name:>14}" for name in names) + "  checkpoint")
        for path, row in sorted(same, key=lambda item: item[1].get(names[0], math.inf)):
            cells = (f"{row[n]:14.3f}" if isinstance(row.get(n), float) else f"{row.get(n, '-')!s:>14}" for n in names)
            given = f"  {row['model'].rpartition(': ')[0]}"
            echo("  ".join(cells) + printable(f"  {path}{given}").rstrip())
        if of != groups[-1]:
            echo("")


def _show_scores(scores: dict[str, Any], result: dict[str, Any]) -> None:
    """Print the scores of disentanglement, each with what a reader should know about it."""
    settings, split = result["scores"], result["split"]
    echo(f"\n{'disentanglement':28}{'':>12}{'± rows':>12}   of {', '.join(settings['factors'])}")
    echo(f"   {settings['repeats']} times {settings['rows']:,} of the {split} images, means of q(z|x)")
    if warning := settings.get(WARNING):
        echo(f"   warning: {warning}")
    for name, score in scores.items():
        std = "-" if score["std"] is None else f"{score['std']:.4f}"
        echo(f"{name:28}{score['mean']:12.4f}{std:>12}   {score['caution']}".rstrip())


def _show_samples(source: str, scores: dict[str, Any], result: dict[str, Any]) -> None:
    """Print the scores of one sampler and one kind of features, beside those of real images in place of samples."""
    sampler, features = source.split("/")
    others = "test" if result["split"] == "train" else "training"
    echo(f"\n{scores['n']:,} samples of {sampler}, {features} features, against the {result['split']} images")
    echo(f"{'':28}{'samples':>12}{'real images':>12}   (real: {others} images in their place)")
    for name in SAMPLE_SCORES:
        if name in scores:
            echo(f"{name:28}{scores[name]:12.4f}{scores[f'{name}_real']:12.4f}   {MEANINGS[name]}")
