"""Scores from linear classifiers that predict a factor: SAP from one latent each, explicitness from all of them."""

from dataclasses import replace
from typing import Any

import numpy as np

from vae_exp.errors import UserError
from vae_exp.scores.codes import Known, Unsuited, fitting

SVC_C = 0.01  # as in Locatello et al. (2019)


def sap(codes: Any, factors: Any, by: str = "svc", seed: int = 0) -> float:
    """Return SAP, the mean over factors of the gap between the two best latents; 1 is best.

    Separated attribute predictability of codes [N, Z] and factors [N, F]. by=svc compares accuracies of a linear
    support vector classifier of one latent on held-out rows, as Locatello et al. (2019) do. A perfect code of dSprites'
    factors, standardised, has 0.17 to 0.22 (mean 0.19; over 24 draws of 5,000 rows, by tests/cautions.py), because one
    line separates few of 40 values. C and the penalty on the intercept are on an absolute scale, theirs too: a
    hundredth of that code has 0.05 to 0.20 (mean 0.12). by=r2 compares squared correlations and gives it 1: for factors
    whose values have an order. Kumar et al. (2018), https://arxiv.org/abs/1711.00848. seed chooses the rows to fit and
    is the classifier's.

    Raises UserError for arrays that do not go together, a factor that never changes, and another `by`.
    """
    known = Known.of(codes, factors)
    if by not in ("svc", "r2"):
        raise UserError(f"by={by}: it takes svc or r2.")
    predicted = _squared_correlations(known) if by == "r2" else _accuracies(known, seed)
    ranked = np.sort(predicted, axis=0)[::-1]
    return float((ranked[0] - (ranked[1] if len(ranked) > 1 else 0)).mean())


def explicitness(codes: Any, factors: Any, seed: int = 0) -> float:
    """Return the mean AUC of logistic regressions of all latents that tell each value of a factor from the others.

    From codes [N, Z] and factors [N, F]; 1 is best and chance is 0.5. Ridgeway & Mozer (2018),
    https://arxiv.org/abs/1802.05312; on held-out rows, which seed chooses. The regression has a penalty, so it sees
    codes with mean 0 and standard deviation 1, as that of Locatello et al. (2019) does: neither their scale nor an
    offset matters. Raises UserError as sap.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    known = Known.of(codes, factors)
    fit, test = fit_and_test_each_value(replace(known, codes=known.standardised()), seed)
    means = []
    for labels, held_out in zip(fit.factors.T, test.factors.T, strict=True):
        with fitting():
            model = LogisticRegression().fit(fit.codes, labels)
        p = model.predict_proba(test.codes)
        of = [(held_out == value, p[:, at]) for at, value in enumerate(model.classes_)]
        means.append(np.mean([roc_auc_score(true, score) for true, score in of if 0 < true.sum() < len(true)]))
    return float(np.mean(means))


def fit_and_test_each_value(known: Known, seed: int) -> tuple[Known, Known]:
    """Return two parts as Known.fit_and_test does, with one more check.

    Raises Unsuited also if no value of a factor can be distinguished from others in the rest.
    """
    fit, test = known.fit_and_test(seed)
    for factor, (labels, held_out) in enumerate(zip(fit.factors.T, test.factors.T, strict=True)):
        n_of_known = np.isin(held_out, labels).sum()
        if not n_of_known or (held_out == held_out[0]).all():
            raise Unsuited(
                f"{known.name(factor)} has no value to tell from others in the {len(held_out):,} rows to test on",
                "; a value must be met several times",
            )
    return fit, test


def _squared_correlations(known: Known) -> np.ndarray:
    """Return the squared correlation of each latent and factor, [Z, F]."""
    v = known.factors - known.factors.mean(0)
    return np.square(known.standardised().T @ (v / v.std(0)) / len(v))


def _accuracies(known: Known, seed: int) -> np.ndarray:
    """Return the accuracy of each latent for each factor, [Z, F]; a latent that never changes has 0."""
    from sklearn.svm import LinearSVC

    fit, test = known.fit_and_test(seed)
    found = np.zeros((known.codes.shape[1], known.factors.shape[1]))
    with fitting():
        for latent in np.flatnonzero(fit.standardised().any(0)):
            for factor, labels in enumerate(fit.factors.T):
                model = LinearSVC(C=SVC_C, class_weight="balanced", dual="auto", random_state=seed)
                model.fit(fit.codes[:, [latent]], labels)
                found[latent, factor] = (model.predict(test.codes[:, [latent]]) == test.factors[:, factor]).mean()
    return found
