"""Disentanglement without known factors: how far a run agrees with others of its setting (UDR)."""

import sys
from typing import TYPE_CHECKING

from vae_exp.compare import comparable
from vae_exp.compare.runs import UDR, Run, fold_seeds
from vae_exp.errors import UserError, printable
from vae_exp.training.folder import BEST

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
    for group in comparable.groups(having):
        settings = [run.members for run in fold_seeds(group)]
        alone = max(map(len, settings)) < 2
        together += [found for found in ([group] if alone else settings) if len(found) > 1]
    if not together:
        raise UserError(
            f"--udr: each of the {len(having)} runs with a {BEST} is of other data or another likelihood "
            f"({comparable.distinguishing_keys(having)}), so that no two compare."
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
    from vae_exp import inference, metrics
    from vae_exp.cli import feature_stats

    model = inference.load(run.folder)
    if images is None:
        split = model.read_data().split("test")
        images = split[feature_stats.random_rows(len(split), IMAGES)]
    return images, metrics.posterior(model.model, images.to(model.device)).mean.cpu(), model.kl_per_dim


def _one_line(error: UserError) -> str:
    return str(error).splitlines()[0]


def _clear_line() -> None:
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)
