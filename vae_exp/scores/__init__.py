"""Scores as plain functions of arrays: no model, no files, no run. Tensors or NumPy arrays, a row per image.

How good samples are, of features [N, D]:

    from vae_exp import scores
    scores.frechet(real, fake)    # the lower the better

Whatever turns images into features is vae_exp.scores.features, or the user's own.

How well codes [N, Z] are disentangled, where the factors [N, F] behind the images are known:

    scores.mig(codes, factors)                 # 1 is best
    scores.dci(codes, factors).importance      # [Z, F]
    scores.spread(codes, factors, ["mig"])     # with its spread over random parts of the rows

Codes are the means of q(z|x); factors are whole numbers or any values that occur often. `udr` needs no factors.
All raise UserError for arrays that do not go together, numbers that are not finite, and a factor that never changes.
"""

from vae_exp.scores.dci import DCI, completeness, dci, disentanglement
from vae_exp.scores.factor_vae import beta_vae, factor_vae
from vae_exp.scores.frechet import frechet, kid
from vae_exp.scores.infomec import InfoMEC, infomec
from vae_exp.scores.mig import mig, modularity, mutual_information
from vae_exp.scores.neighbours import coverage, density, nearest, precision, recall
from vae_exp.scores.repeats import SCORES, Spread, spread
from vae_exp.scores.sap import explicitness, sap
from vae_exp.scores.udr import udr

__all__ = [
    "DCI",
    "SCORES",
    "InfoMEC",
    "Spread",
    "beta_vae",
    "completeness",
    "coverage",
    "dci",
    "density",
    "disentanglement",
    "explicitness",
    "factor_vae",
    "frechet",
    "infomec",
    "kid",
    "mig",
    "modularity",
    "mutual_information",
    "nearest",
    "precision",
    "recall",
    "sap",
    "spread",
    "udr",
]
