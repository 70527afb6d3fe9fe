"""Which runs are disentangled, without known factors: how far a run agrees with others of its setting (UDR)."""

import sys

from vae_exp.comparing import comparable
from vae_exp.comparing.runs import UDR, Run, fold_seeds
from vae_exp.errors import UserError
from vae_exp.run.folder import BEST

IMAGES = 2000  # of the test split, whose codes are compared


def rank(runs: list[Run]) -> None:
    """Give each run that can be loaded its UDR, among the runs that differ from it in their seed alone; where a group
    of comparable runs has one seed for each setting, among all of these.

    Raises UserError where nothing can be compared.
    """
    ranked = 0
    for group in comparable.groups(runs):
        settings = [run.members for run in fold_seeds(group)]
        alone = max(map(len, settings)) < 2
        for together in [group] if alone else settings:
            ranked += _rank([run for run in together if (run.folder / BEST).is_file()])
    if not ranked:
        raise UserError(f"--udr: compares models with each other, and needs two runs or more that have a {BEST}.")


def _rank(runs: list[Run]) -> int:
    if len(runs) < 2:
        return 0
    from vae_exp import metrics, scores, trained
    from vae_exp.commands import seen

    codes, kl, images = [], [], None
    for number, run in enumerate(runs, 1):
        if sys.stderr.isatty():
            print(f"\rcodes of run {number} of {len(runs)}", end="", file=sys.stderr)
        model = trained.load(run.folder)
        if images is None:
            split = model.read_data().split("test")
            images = split[seen.by_chance(len(split), IMAGES)]
        codes.append(metrics.posterior(model.model, images.to(model.device)).mean.cpu())
        kl.append(model.kl_per_dim)
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)
    stochastic = all(any(each) for each in kl)  # an autoencoder has no KL by which a latent could be left out
    for run, value in zip(runs, scores.udr(codes, kl if stochastic else None).tolist(), strict=True):
        run.metrics[UDR] = value
    return len(runs)
