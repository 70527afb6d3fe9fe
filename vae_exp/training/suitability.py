"""The test of whether the data suit what is asked of them: known once they are read, and made before a run opens."""

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from vae_exp.config.keys import Config
from vae_exp.datasets import Data, Split
from vae_exp.errors import UserError, printable
from vae_exp.scores import repeats as scores
from vae_exp.scores.codes import TooFewFactors, Unsuited

log = logging.getLogger(__name__)

HAVE_FACTORS = "sprites, dsprites, shapes3d and mpi3d have them"


def check(config: Config, data: Data, held_out: str, held_out_split: Split) -> None:
    """Raise UserError for a conditional model of data without labels, or for scores of data that do not suit them.

    Scores need known factors and enough images: of the test split, which is measured at the end, and of the held-out
    one if it is measured while the run trains.
    """
    if config["scores"]:
        if held_out == "test" or config["scores_every_epochs"]:
            _require_suited(config, data.name, held_out, held_out_split)
        if held_out != "test":
            _require_suited(config, data.name, "test", data.read_test())
        if config["model"]["conditional"] and (given := held_out_split.given_factors()):
            log.info(f"left out  {given_as_label(given)}")
    if config["model"]["conditional"] and not data.n_classes:
        raise UserError(
            f"model.conditional=true: dataset={data.name} has no labels here. An image folder has them where every "
            "image lies in a folder of its class, CelebA with dataset.attribute=Smiling. Or use model=vanilla."
        )


def _require_suited(config: Config, name: str, part: str, split: Split) -> None:
    typed = f"scores=[{','.join(config['scores'])}]"
    typed += f" scores_every_epochs={config['scores_every_epochs']}" if part == "val" else ""
    require_factors(typed, name, part, split)
    conditional = config["model"]["conditional"]
    if found := find_unsuited(split, config["scores"], scores.usual_size(len(split), 1), conditional=conditional):
        raise UserError(
            f"{typed}: the {part} split, {len(split):,} images, does not suit {describe(found)}. It needs "
            f"{what_helps(found, part, config['dataset'])}."
        )


def require_factors(typed: str, name: str, part: str, split: Split) -> None:
    """Raise UserError if it is not known what the images of a split were made from."""
    if split.factors is None:
        raise UserError(f"{typed}: the {part} split of dataset={name} has no known factors; {HAVE_FACTORS}.")


def given_as_label(names: Sequence[str]) -> str:
    """Return why scores of a conditional model are not of these factors."""
    return f"{printable(', '.join(names))} of the scores: the model is given it as its label (model.conditional=true)"


def find_unsuited(
    split: Split, names: Collection[str], rows: int, repeats: int = 1, seed: int = 0, *, conditional: bool
) -> dict[str, Unsuited]:
    """Return the scores that cannot be measured of so many of a split's images at a time, each with what is wrong."""
    varying = split.unknown_factors(conditional)
    if not varying.names:
        given = split.given_factors() if conditional else []
        but = f" but {', '.join(given)}, which the model is given as its label" if given else ""
        return dict.fromkeys(names, TooFewFactors(f"no factor varies{but}"))
    return scores.unsuited(varying.table.cpu().numpy(), names, rows, repeats, seed, varying.names)


def describe(found: Mapping[str, Unsuited]) -> str:
    """Return the scores that something is wrong with, and what, as in `mig, dci (x has 12 values in 18 rows, ...)`."""
    by_reason: dict[str, list[str]] = {}
    for name, error in found.items():
        by_reason.setdefault(error.reason, []).append(name)
    return "; ".join(f"{', '.join(names)} ({reason})" for reason, names in by_reason.items())


def what_helps(found: Mapping[str, Unsuited], part: str, dataset: Mapping[str, Any]) -> str:
    """Return what must change in training for a split to suit the scores."""
    key = f"{part}_size"
    few_factors = {isinstance(error, TooFewFactors) for error in found.values()}
    images = f"a larger dataset.{key}" if key in dataset else f"more images in the {part} split"
    factors = "more factors that vary" + (" (dataset.factors)" if "factors" in dataset else "")
    return " and ".join([images] * (False in few_factors) + [factors] * (True in few_factors))
