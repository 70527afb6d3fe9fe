"""DCI: how important each latent is to predict each factor, and what follows from it (Eastwood & Williams 2018)."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from vae_exp.errors import UserError
from vae_exp.scores.common import LabelledCodes, quiet_fit, standardise


@dataclass(frozen=True)
class DCI:
    disentanglement: float
    completeness: float
    informativeness: float  # accuracy on the rows that were held out
    importance: np.ndarray  # [Z, F], each column sums to 1, or to 0 where no latent helps


def dci(codes: Any, factors: Any, predictor: str | Callable[[int], Any] = "random_forest", seed: int = 0) -> DCI:
    """Return disentanglement, completeness and informativeness, of which 1 is best.

    From codes [N, Z], standardised, and two factors [N, F] or more, by how important z_i is for the prediction of v_j.
    Eastwood & Williams (2018), https://openreview.net/forum?id=By-7dz-AZ, with a random forest, one of their two
    predictors. predictor=gradient_boosting is that of Locatello et al. (2019), which takes a minute a factor; scores of
    different predictors do not compare. It may also be a function from a seed to a classifier of scikit-learn's kind
    that has feature_importances_. Two thirds of the rows are for fitting; seed chooses them and is the predictor's.
    """
    data = LabelledCodes.of(codes, factors, min_factors=2)
    make = PREDICTORS.get(predictor) if isinstance(predictor, str) else predictor
    if not callable(make):
        raise UserError(f"predictor={predictor}: it takes one of {', '.join(PREDICTORS)}, or a function of a seed.")
    fit, test = replace(data, codes=standardise(data.codes)).split(seed)
    with quiet_fit():
        models = [make(seed).fit(fit.codes, labels) for labels in fit.factors.T]
    importance = np.stack([np.abs(model.feature_importances_) for model in models], axis=1)
    right = [(model.predict(test.codes) == labels).mean() for model, labels in zip(models, test.factors.T, strict=True)]
    return DCI(disentanglement(importance), completeness(importance), float(np.mean(right)), importance)


def completeness(importance: np.ndarray) -> float:
    """Return 1 - the entropy, to base Z (dead latents included), of latent shares in a column of [Z, F]."""
    return disentanglement(importance.T)


def disentanglement(importance: np.ndarray) -> float:
    """Return 1 - the entropy, to base F, of factor shares in a row of importances [Z, F], weighted by the row."""
    weight, n = importance.sum(1), importance.shape[1]
    if not weight.any():
        return 0.0
    if n == 1:
        return 1.0
    p = np.divide(importance, weight[:, None], out=np.zeros_like(importance), where=weight[:, None] > 0)
    entropy = -(p * np.log(p, out=np.zeros_like(p), where=p > 0)).sum(1) / np.log(n)
    return float(((1 - entropy) * weight).sum() / weight.sum())


def _random_forest(seed: int) -> Any:
    from sklearn.ensemble import RandomForestClassifier  # here, because importing scikit-learn takes a second

    # Each split sees every latent: with a part of them, a factor that one latent holds would look spread over all.
    # The leaves end a tree before it tells rows apart by noise.
    settings = {"max_features": None, "min_samples_leaf": 0.003}
    return RandomForestClassifier(10, **settings, n_jobs=torch.get_num_threads(), random_state=seed)


def _gradient_boosting(seed: int) -> Any:
    from sklearn.ensemble import GradientBoostingClassifier

    return GradientBoostingClassifier(random_state=seed)


PREDICTORS: dict[str, Callable[[int], Any]] = {"random_forest": _random_forest, "gradient_boosting": _gradient_boosting}
