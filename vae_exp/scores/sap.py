"""Scores of linear classifiers that predict a factor: SAP from one latent each, explicitness from all of them."""

from dataclasses import replace
from typing import Any

import numpy as np

from vae_exp.errors import UserError
from vae_exp.scores.common import LabelledCodes, quiet_fit, standardise

SVC_C = 0.01  # as in Locatello et al. (2019)


def sap(codes: Any, factors: Any, by: str = "svc", seed: int = 0) -> float:
    """Return SAP, the mean over factors of the gap between the two best latents; 1 is best.

    Separated attribute predictability of codes [N, Z] and factors [N, F], Kumar et al. (2018),
    https://arxiv.org/abs/1711.00848. by=svc compares accuracies of a linear support vector classifier of one latent on
    held-out rows, as Locatello et al. (2019) do: a perfect code of dSprites' factors has near 0.2, because one line
    separates few of 40 values, and a hundredth of that code less, because C is on an absolute scale. by=r2 compares
    squared correlations and gives it 1: for factors whose values have an order.
    """
    data = LabelledCodes.of(codes, factors)
    if by not in ("svc", "r2"):
        raise UserError(f"by={by}: it takes svc or r2.")
    predicted = _squared_correlations(data) if by == "r2" else _accuracies(data, seed)
    ranked = np.sort(predicted, axis=0)[::-1]
    return float((ranked[0] - (ranked[1] if len(ranked) > 1 else 0)).mean())


def explicitness(codes: Any, factors: Any, seed: int = 0) -> float:
    """Return the mean AUC of logistic regressions of all latents that tell each value of a factor from the others.

    From codes [N, Z] and factors [N, F], on held-out rows, which seed chooses; 1 is best and chance is 0.5. Ridgeway &
    Mozer (2018); codes are standardised, as in Locatello et al. (2019).
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    data = LabelledCodes.of(codes, factors)
    fit, test = replace(data, codes=standardise(data.codes)).split(seed, in_both=True)
    means = []
    for labels, held_out in zip(fit.factors.T, test.factors.T, strict=True):
        with quiet_fit():
            model = LogisticRegression().fit(fit.codes, labels)
        probabilities = model.predict_proba(test.codes).T
        cases = [(held_out == value, p) for value, p in zip(model.classes_, probabilities, strict=True)]
        means.append(np.mean([roc_auc_score(true, p) for true, p in cases if 0 < true.sum() < len(true)]))
    return float(np.mean(means))


def _squared_correlations(data: LabelledCodes) -> np.ndarray:
    v = data.factors - data.factors.mean(0)
    return np.square(standardise(data.codes).T @ (v / v.std(0)) / len(v))


def _accuracies(data: LabelledCodes, seed: int) -> np.ndarray:
    """Return the accuracy of each latent for each factor, [Z, F]; a latent that never changes has 0."""
    from sklearn.svm import LinearSVC

    fit, test = data.split(seed)
    accuracies = np.zeros((data.codes.shape[1], data.factors.shape[1]))
    with quiet_fit():
        for latent in np.flatnonzero(standardise(fit.codes).any(0)):
            for factor, labels in enumerate(fit.factors.T):
                model = LinearSVC(C=SVC_C, class_weight="balanced", dual="auto", random_state=seed)
                model.fit(fit.codes[:, [latent]], labels)
                predicted = model.predict(test.codes[:, [latent]])
                accuracies[latent, factor] = (predicted == test.factors[:, factor]).mean()
    return accuracies
