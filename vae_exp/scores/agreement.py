"""Unsupervised disentanglement ranking: models that found the factors agree with each other (Duan et al. 2020)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from vae_exp.errors import UserError
from vae_exp.scores.codes import Known, fitting, table

LEAST_KL = 0.01  # nats: a latent below tells nothing
LASSO_ALPHA = 0.1


def udr(codes: Sequence[Any], kl: Sequence[Any] | None = None, by: str = "spearman") -> np.ndarray:
    """Return the UDR [M] of M models from their codes [N, Z] of the same N images; 1 is best.

    The UDR of a model is the median over the other models. Two models agree as far as each informative latent of one is
    similar to one of the other alone: the mean over both models' latents of (largest similarity)^2 / (sum of
    similarities). Similarity is the size of Spearman's correlation, or with by=lasso that of the weights of a Lasso
    (alpha 0.1) that predicts the latents of the model at hand from those of the other. The two directions differ; this
    is the one of the authors' code, udr.py of https://github.com/google-research/disentanglement_lib, which takes the
    median over the models that predict (and, of models with different numbers of latents, the mean of both models'
    means). Give each model's mean KL of its latents, [Z] in nats, and those below 0.01 are left out; a latent that
    never changes always is. No factors are needed. Duan et al. (2020), https://arxiv.org/abs/1905.12614. It ranks
    models with each other: codes that all are wrong in the same way agree.

    Raises UserError for fewer than two models, codes of different images, KL of other models, and another `by`.
    """
    if by not in ("spearman", "lasso"):
        raise UserError(f"by={by}: it takes spearman or lasso.")
    for name, given in (("codes", codes), ("kl", [] if kl is None else kl)):
        if not isinstance(given, Sequence | np.ndarray | Tensor) or isinstance(given, str):
            raise UserError(f"{name}={given}: udr takes a list of arrays, one of each model.")
    if len(codes) < 2:
        raise UserError(f"udr compares models with each other: give codes of two or more, not of {len(codes)}.")
    if kl is not None and len(kl) != len(codes):
        raise UserError(f"kl: of {len(kl)} models, and there are codes of {len(codes)}; udr needs one of each model.")
    tables = [table(f"codes[{model}]", z) for model, z in enumerate(codes)]
    if len({len(z) for z in tables}) > 1:
        raise UserError(f"codes: all models need the same images; these have {[len(z) for z in tables]} rows.")
    kept = [_informative(z, None if kl is None else kl[model], model) for model, z in enumerate(tables)]
    similarity = _lasso if by == "lasso" else _spearman
    agreed = np.full((len(kept), len(kept)), np.nan)
    for i, z in enumerate(kept):
        for j, other in enumerate(kept):
            if i != j:
                agreed[i, j] = _agreement(similarity(other, z)) if other.size and z.size else 0
    return np.nanmedian(agreed, axis=1)


def _informative(z: np.ndarray, kl: Any | None, model: int) -> np.ndarray:
    """Return the informative latents, standardised."""
    z = Known(z, np.empty((0, 0)), np.empty(0)).standardised()
    kept = np.any(z, axis=0)
    if kl is not None:
        measured = table(f"kl[{model}]", [kl])[0]
        if len(measured) != z.shape[1]:
            raise UserError(f"kl[{model}]: {len(measured)} numbers, and the codes have {z.shape[1]} latents.")
        kept = kept & (measured > LEAST_KL)
    return z[:, kept]


def _spearman(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the absolute Spearman correlations of two models' latents, [Z, Z'], from 0 to 1."""
    from scipy.stats import rankdata

    a, b = (rankdata(z, axis=0) for z in (first, second))
    a, b = ((ranks - ranks.mean(0)) / ranks.std(0) for ranks in (a, b))
    return np.abs(a.T @ b) / len(a)


def _lasso(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the sizes [Z, Z'] of the weights that predict each latent of the second model from the first's."""
    from sklearn.linear_model import Lasso

    with fitting():
        return np.abs(Lasso(alpha=LASSO_ALPHA).fit(first, second).coef_).reshape(second.shape[1], first.shape[1]).T


def _agreement(similarity: np.ndarray) -> float:
    parts = []
    for matrix in (similarity, similarity.T):
        largest, total = matrix.max(0), matrix.sum(0)
        parts.append(np.divide(largest**2, total, out=np.zeros_like(total), where=total > 0))
    return float(np.concatenate(parts).mean())
