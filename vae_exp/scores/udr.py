"""Unsupervised disentanglement ranking: models that found the factors agree with each other (Duan et al. 2020)."""

from collections.abc import Sequence
from itertools import permutations
from typing import Any

import numpy as np
from torch import Tensor

from vae_exp.errors import UserError
from vae_exp.scores.common import quiet_fit, standardise, table

MIN_KL = 0.01  # nats: a latent below tells nothing
LASSO_ALPHA = 0.1


def udr(codes: Sequence[Any], kl: Sequence[Any] | None = None, by: str = "spearman") -> np.ndarray:
    """Return the UDR [M] of M models from their codes [N, Z] of the same N images; 1 is best.

    Two models agree as far as each informative latent of one is similar to one of the other alone: the mean over both
    models' latents of (largest similarity)^2 / (sum of similarities). UDR is the median over the other models.
    Similarity is the size of Spearman's correlation, or with by=lasso that of the weights of a Lasso (alpha 0.1) that
    predicts the latents of the model at hand from those of the other: the direction of the authors' code, udr.py of
    https://github.com/google-research/disentanglement_lib. Give each model's mean KL of its latents, [Z] in nats, and
    those below 0.01 are left out; a latent that never changes always is. Duan et al. (2020),
    https://arxiv.org/abs/1905.12614. It ranks models with each other: codes that all are wrong in the same way agree.
    """
    if by not in ("spearman", "lasso"):
        raise UserError(f"by={by}: it takes spearman or lasso.")
    if not isinstance(codes, Sequence | np.ndarray | Tensor) or len(codes) < 2:
        raise UserError("codes: udr takes a list of arrays, one of each of two or more models.")
    if kl is not None and len(kl) != len(codes):
        raise UserError(f"kl: of {len(kl)} models, and there are codes of {len(codes)}; udr needs one of each model.")
    tables = [table(f"codes[{model}]", z) for model, z in enumerate(codes)]
    if len({len(z) for z in tables}) > 1:
        raise UserError(f"codes: all models need the same images; these have {[len(z) for z in tables]} rows.")
    latents = [_informative(z, None if kl is None else kl[model], model) for model, z in enumerate(tables)]
    similarity = _lasso if by == "lasso" else _spearman
    agreement = np.full((len(latents), len(latents)), np.nan)
    for i, j in permutations(range(len(latents)), 2):
        z, other = latents[i], latents[j]
        agreement[i, j] = _agreement(similarity(other, z)) if other.size and z.size else 0
    return np.nanmedian(agreement, axis=1)


def _informative(z: np.ndarray, kl: Any | None, model: int) -> np.ndarray:
    z = standardise(z)
    informative = np.any(z, axis=0)
    if kl is not None:
        kl = table(f"kl[{model}]", [kl])[0]
        if len(kl) != z.shape[1]:
            raise UserError(f"kl[{model}]: {len(kl)} numbers, and the codes have {z.shape[1]} latents.")
        informative = informative & (kl > MIN_KL)
    return z[:, informative]


def _spearman(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the absolute Spearman correlations of two models' latents, [Z, Z'], from 0 to 1."""
    from scipy.stats import rankdata

    a, b = (rankdata(z, axis=0) for z in (first, second))
    a, b = ((ranks - ranks.mean(0)) / ranks.std(0) for ranks in (a, b))
    return np.abs(a.T @ b) / len(a)


def _lasso(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the sizes [Z, Z'] of the weights that predict each latent of the second model from the first's."""
    from sklearn.linear_model import Lasso

    with quiet_fit():
        return np.abs(Lasso(alpha=LASSO_ALPHA).fit(first, second).coef_).reshape(second.shape[1], first.shape[1]).T


def _agreement(similarity: np.ndarray) -> float:
    parts = []
    for matrix in (similarity, similarity.T):
        largest, total = matrix.max(0), matrix.sum(0)
        parts.append(np.divide(largest**2, total, out=np.zeros_like(total), where=total > 0))
    return float(np.concatenate(parts).mean())
