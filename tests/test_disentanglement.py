"""Disentanglement of codes whose score is known: by a closed form, a second computation, or what must not matter."""

import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from tests import cautions
from vae_exp import scores
from vae_exp.errors import UserError
from vae_exp.scores import repeats
from vae_exp.scores.common import LabelledCodes
from vae_exp.scores.infomec import nearest_information
from vae_exp.scores.mig import above_chance

DSPRITES = (3, 6, 40, 32, 32)
N = 1000


def drawn(*sizes, n=N, seed=0):
    """Factors drawn at random, [n, F]."""
    return np.random.default_rng(seed).integers(0, sizes, (n, len(sizes)))


def grid(*sizes):
    """Every combination of factors once: what the factors share is nothing, to the last digit."""
    return np.indices(sizes).reshape(len(sizes), -1).T


def noise(z_dim, n=N, seed=1):
    return np.random.default_rng(seed).standard_normal((n, z_dim))


def scaled(factors):
    """A perfect code: each factor in a latent of its own."""
    return (factors - factors.mean(0)) / factors.std(0)


V = drawn(3, 4, 8, 8)
# How much the order and the signs of latents may change a score: forests and support vectors are fitted with draws of
# their own, all others are exact.
SLACK = dict.fromkeys(scores.SCORES, 1e-6) | {"dci": 0.02, "sap": 0.02}
AT_CHANCE = {
    "factor_vae": 1 / 4,
    "beta_vae": 1 / 4,
    "explicitness": 1 / 2,
    "dci_informativeness": np.mean([1 / 3, 1 / 4, 1 / 8, 1 / 8]),
}


def measured(name, codes, factors):
    """The numbers of a score, by their names."""
    return dict(zip(scores.SCORES[name].cautions, scores.SCORES[name].measure(codes, factors, 0), strict=True))


@pytest.mark.parametrize("name", scores.SCORES)
def test_neither_order_nor_sign_of_latents_matters(name):
    mixed = scaled(V) @ np.linalg.qr(noise(4, 4))[0] + 0.3 * noise(4)
    before = measured(name, mixed, V)
    after = measured(name, mixed[:, [2, 0, 3, 1]] * [1, -1, -1, 1], V)
    assert before == pytest.approx(after, abs=SLACK[name])
    assert min(before.values()) > 0, "a code that the score has something to say about"


@pytest.mark.parametrize("name", scores.SCORES)
def test_a_perfect_code_has_the_best_score(name):
    found = measured(name, scaled(V) + 0.001 * noise(4), V)
    if name == "sap":  # one line separates few of eight values
        found = {"sap": scores.sap(scaled(V), V, by="r2")}
    expected = 0.95 if name == "explicitness" else 0.97
    assert all(expected < value <= 1 for value in found.values()), found


def test_mig_of_the_perfect_code_of_dsprites_is_capped_by_the_bins():
    """Pairs of factors suffice: MIG is a mean over factors, and the whole grid shares nothing either."""
    by_factor = {3: 1, 6: 1, 40: np.log(20) / np.log(40), 32: 0.85}
    for sizes in ((3, 6), (6, 40), (40, 32)):
        found = scores.mig(scaled(grid(*sizes)), grid(*sizes))
        assert found == pytest.approx(np.mean([by_factor[size] for size in sizes]))
        assert scores.mig(scaled(grid(*sizes)), grid(*sizes), bins=40) == pytest.approx(1)
    assert np.mean([by_factor[size] for size in DSPRITES]) == pytest.approx(0.9024, abs=5e-5)


@pytest.mark.slow
def test_mig_of_the_whole_grid_of_dsprites():
    assert scores.mig(grid(*DSPRITES), grid(*DSPRITES)) == pytest.approx(0.9024, abs=5e-5)
    assert scores.mig(grid(*DSPRITES), grid(*DSPRITES), bins=40) == pytest.approx(1)


def test_the_matrix_of_mutual_information_is_that_of_its_definition():
    factors, codes = drawn(3, 5, n=400), noise(3, 400) + drawn(3, 5, n=400)[:, [0]]
    found = scores.mutual_information(codes, factors, bins=7)
    for i, z in enumerate(codes.T):
        counts = np.histogram(z, 7)[0] / 400
        for j, v in enumerate(factors.T):
            joint = np.histogram2d(z, v, (7, factors[:, j].max() + 1))[0] / 400
            even = np.outer(counts, np.bincount(v) / 400)
            expected = (joint[joint > 0] * np.log(joint[joint > 0] / even[joint > 0])).sum()
            assert found[i, j] == pytest.approx(expected)


def test_every_factor_twice():
    v = grid(3, 4, 5, 6)
    codes = np.concatenate([scaled(v), scaled(v)], axis=1)
    assert scores.mig(codes, v) == 0
    assert scores.sap(codes, v) == 0
    assert scores.modularity(codes, v) == pytest.approx(1)
    found = scores.dci(codes, v)
    assert found.disentanglement == pytest.approx(1)
    # Which of two equal latents a tree takes is drawn anew at each split.
    assert found.completeness == pytest.approx(1 - np.log(2) / np.log(8), abs=0.05)
    even = np.tile(np.eye(5), (2, 1)) / 2
    assert scores.disentanglement(even) == pytest.approx(1)
    assert scores.completeness(even) == pytest.approx(1 - np.log(2) / np.log(10))
    found = scores.infomec(codes, v)
    assert found.modularity == pytest.approx(1, abs=0.01)
    assert found.compactness == pytest.approx((1 / 2 - 1 / 8) / (1 - 1 / 8), abs=0.01)


def test_two_of_ten_factors_in_each_latent():
    v = drawn(*[2] * 10)
    codes = 2 * v[:, ::2] + v[:, 1::2]
    found = scores.dci(codes, v)
    expected = 1 - np.log(2) / np.log(10)
    assert found.disentanglement == pytest.approx(expected, abs=0.01)
    assert found.completeness == pytest.approx(1, abs=0.01)
    assert found.informativeness == 1
    assert scores.disentanglement(np.repeat(np.eye(5), 2, axis=1)) == pytest.approx(expected)
    assert scores.modularity(codes, v) == pytest.approx(1 - 1 / 9, abs=1e-3)
    found = scores.infomec(codes, v)
    assert found.modularity == pytest.approx((1 / 2 - 1 / 10) / (1 - 1 / 10), abs=0.02)


def test_two_factors_mixed_by_45_degrees():
    v = grid(32, 32)
    codes = np.stack([v[:, 0] + v[:, 1], v[:, 0] - v[:, 1]], axis=1)
    assert scores.mig(codes, v) == pytest.approx(0, abs=1e-9)
    assert scores.modularity(codes, v) == pytest.approx(0, abs=1e-9)
    found = scores.infomec(codes, v)
    assert (found.modularity, found.compactness) == pytest.approx((0, 0), abs=0.02)
    assert found.explicitness > 0.99, "all of it can be read off both together"
    assert scores.dci(codes, v).disentanglement < 0.05


def test_a_code_that_never_changes():
    constant = np.full((N, 6), 0.3)
    for name in scores.SCORES:
        for key, value in measured(name, constant, V).items():
            assert value == pytest.approx(0 if key == "factor_vae" else AT_CHANCE.get(key, 0), abs=0.03), key


@pytest.mark.slow
def test_noise():
    traps = {"modularity", "infom_published", "infoc_published"}  # they are high for a code that tells nothing
    for name in scores.SCORES:
        for key, value in measured(name, noise(6), V).items():
            if key in traps:
                assert value > 0.3, key
            else:
                assert value == pytest.approx(AT_CHANCE.get(key, 0), abs=0.04), key


@pytest.mark.slow
def test_latents_that_never_change_change_nothing():
    """Dead latents stand first: whoever stops at the first of them sees nothing else."""
    codes = scaled(V) + 0.001 * noise(4)
    dead = np.concatenate([np.zeros((N, 2)), codes, np.ones((N, 1))], axis=1)
    for name in ("mig", "dci", "infomec"):
        before, after = measured(name, codes, V), measured(name, dead, V)
        assert before == pytest.approx(after, abs=0.02)
    assert scores.dci(dead, V).importance[[0, 1, 6]].max() == 0
    assert scores.infomec(dead, V).active.tolist() == [False, False, True, True, True, True, False]
    assert scores.modularity(dead, V) == pytest.approx(4 / 7, abs=0.02), "a latent that tells nothing counts as 0"


def test_what_the_interventions_are_known_to_miss():
    """FactorVAE's threshold is absolute; the beta-VAE's classifier names the factor that no latent holds too."""
    codes = scaled(V)
    assert scores.factor_vae(0.01 * codes, V) == 0
    assert scores.factor_vae(0.01 * codes, V, least_deviation=0) == 1
    three_of_four = np.concatenate([codes[:, :3], noise(1)], axis=1)
    assert scores.beta_vae(three_of_four, V) > 0.99
    assert 0.7 < scores.factor_vae(three_of_four, V) < 0.9


def test_batches_share_one_value_of_the_factor_that_is_fixed():
    from vae_exp.scores.factor_vae import _SameValue

    v, rng = drawn(2, 3, 7, n=50), np.random.default_rng(0)
    fixed, rows = rng.integers(3, size=200), rng.integers(50, size=(200, 16))
    others = _SameValue(LabelledCodes.of(noise(1, 50), v)).draw(fixed, rows, rng)
    same = v[rows] == v[others]
    assert np.take_along_axis(same, fixed[:, None, None], axis=2).all()
    assert not same.all()
    assert set(others[fixed == 0][v[rows[fixed == 0], 0] == 1]) == set(np.flatnonzero(v[:, 0] == 1)), "every such row"


def test_information_by_neighbours_is_that_of_scikit_learn():
    from sklearn.feature_selection import mutual_info_classif

    factors = drawn(3, 20, n=600)
    codes = noise(3, 600) + factors[:, [0]] * [0, 0.5, 5]
    codes[:, 1] *= factors[:, 1] + 1
    found = nearest_information(LabelledCodes.of(codes, factors), seed=0, k=4)
    for j, v in enumerate(factors.T):
        theirs = mutual_info_classif(codes, v, discrete_features=False, n_neighbors=4, random_state=0)
        np.testing.assert_allclose(np.maximum(found[:, j], 0), theirs, atol=1e-6)
    assert found[0].min() < 0 < found[2, 0], "without information the estimate is on either side of 0"


@pytest.mark.slow
def test_the_published_infom_is_that_of_its_formula():
    """A perfect code and five latents of noise, by scikit-learn's estimate, which the authors take too."""
    from sklearn.feature_selection import mutual_info_classif
    from sklearn.metrics import mutual_info_score

    v = drawn(3, 4, 5, 6, 7)
    codes = scaled(np.concatenate([scaled(v), noise(5)], axis=1))
    nmi = np.stack(
        [
            mutual_info_classif(codes, factor, discrete_features=False, n_neighbors=10, random_state=0)
            / mutual_info_score(factor, factor)
            for factor in v.T
        ]
    )
    infom, infoc = (
        ((nmi.max(axis) / nmi.sum(axis)).mean() - 1 / nmi.shape[axis]) / (1 - 1 / nmi.shape[axis]) for axis in (0, 1)
    )
    found = measured("infomec", codes, v)
    assert infom > 0.7
    assert found["infom"] == pytest.approx(1 / 2, abs=0.03), "ours: half of the latents tell nothing"
    assert found["infom_published"] == pytest.approx(infom, abs=0.02)
    assert found["infoc_published"] == pytest.approx(infoc, abs=0.02) == found["infoc"]
    only_noise = scores.infomec(noise(6), v)
    assert only_noise.modularity == 0 < 0.3 < only_noise.modularity_published


def test_explicitness_is_read_by_all_latents_together():
    """InfoE of a code with one of two independent factors of as many values is one half."""
    v = drawn(5, 5)
    assert scores.infomec(scaled(v)[:, :1], v).explicitness == pytest.approx(0.5, abs=0.02)
    assert np.isnan(scores.infomec(scaled(v)[:, :1], v).compactness), "one latent is neither compact nor not"
    assert scores.explicitness(scaled(v)[:, :1], v) == pytest.approx(0.75, abs=0.03)


def test_the_logistic_regression_of_infomec_is_that_of_scikit_learn():
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss

    v = drawn(3, 7)
    codes = scaled(scaled(v) + noise(2))
    explained = []
    for labels in v.T:
        model = LogisticRegression(C=np.inf, max_iter=1000, tol=1e-8).fit(codes, labels)
        null = np.bincount(labels) / N
        explained.append(1 + log_loss(labels, model.predict_proba(codes)) / (null * np.log(null)).sum())
    assert scores.infomec(codes, v).explicitness == pytest.approx(np.mean(explained), abs=1e-4)


@pytest.mark.slow
def test_another_predictor_of_dci():
    from sklearn.tree import DecisionTreeClassifier

    v, codes = V[:150, :2], (scaled(V) + 0.1 * noise(4))[:150]
    for predictor in ("gradient_boosting", lambda seed: DecisionTreeClassifier(random_state=seed)):
        found = scores.dci(codes, v, predictor)
        assert found.importance.shape == (4, 2)
        assert (found.disentanglement > 0.9, found.completeness > 0.9, found.informativeness > 0.95) == (True,) * 3
    with pytest.raises(UserError, match=r"predictor=trees: it takes one of random_forest, gradient_boosting"):
        scores.dci(codes, v, "trees")


def test_models_that_agree_rank_first():
    """Two models found the factors, in another order and with other signs; one turned them, and one found nothing."""
    found = scaled(drawn(9, 9, 9, 9))
    turn = np.kron(np.eye(2), [[1, -1], [1, 1]]) / 2**0.5
    codes = [found, -found[:, [2, 0, 3, 1]], found[:, ::-1], found @ turn, noise(4)]
    for by in ("spearman", "lasso"):
        ranks = scores.udr(codes, by=by)
        assert ranks.shape == (5,)
        assert ranks[:3].min() > ranks[3] > ranks[4]
    assert scores.udr(codes[:3]) == pytest.approx(1, abs=0.15)
    # Each of the turned latents is as similar to two: r^2 / (r + r) = r / 2, and Spearman's r is near 0.7.
    assert scores.udr([found, found @ turn]) == pytest.approx(0.7 / 2, abs=0.05)
    assert scores.udr([grid(5, 5), grid(5, 5)[:, ::-1]]) == pytest.approx(1)


def test_udr_by_lasso_predicts_the_model_that_it_is_of():
    """Two models of three latents, by the definition: the weights W of min |z - z' W|^2 / 2N + 0.1 |W|_1, where z is of
    the model at hand and z' of the other. Latents of z' that are orthogonal have soft-thresholded products as weights.
    """
    first = np.linalg.qr(scaled(noise(3)))[0] * N**0.5
    second = scaled(first @ np.array([[1, 1, 0], [0, 1, 1], [0, 0, 1]]))
    predicted = np.maximum(np.abs(first.T @ second) / N - 0.1, 0)  # those of second from first, [Z', Z]

    def agreement(w):
        return np.mean([np.mean(w.max(axis) ** 2 / w.sum(axis)) for axis in (0, 1)])

    found = scores.udr([first, second], by="lasso")
    assert found[1] == pytest.approx(agreement(predicted), abs=1e-4)
    weights = np.zeros((3, 3))  # those of first from second: one weight at a time until none moves
    gram, products = second.T @ second / N, second.T @ first / N
    for _ in range(500):
        for i in range(3):
            left = products[i] - gram[i] @ weights + gram[i, i] * weights[i]
            weights[i] = np.sign(left) * np.maximum(np.abs(left) - 0.1, 0) / gram[i, i]
    assert found[0] == pytest.approx(agreement(np.abs(weights)), abs=1e-3)
    assert abs(found[0] - found[1]) > 0.03, "the direction matters"


def test_latents_that_tell_nothing_do_not_count_for_udr():
    v = grid(5, 5)
    dead = np.concatenate([v, np.ones((25, 1))], axis=1)
    quiet = np.concatenate([v, noise(1, 25)], axis=1)
    assert scores.udr([v, dead]) == pytest.approx(1)
    assert scores.udr([v, quiet]).max() < 0.95
    assert scores.udr([v, quiet], kl=[[1, 1], [1, 1, 0.001]]) == pytest.approx(1)
    assert scores.udr([v, np.ones((25, 2))]).tolist() == [0, 0]
    for arguments, says in [
        (([v],), "one of each of two or more models"),
        (([v, v[1:]],), "all models need the same images"),
        (([v, v], [[1], [1, 1]]), r"kl\[0\]: 1 numbers, and the codes have 2 latents"),
        (([v, v], None, "pearson"), "by=pearson: it takes spearman or lasso"),
        ((3,), "codes: udr takes a list of arrays"),
        (([v, v], [[1, 1]]), "kl: of 1 models, and there are codes of 2"),
    ]:
        with pytest.raises(UserError, match=says):
            scores.udr(*arguments)


def test_spread_over_random_parts_of_the_rows():
    codes = scaled(V) + noise(4)
    found = scores.spread(codes, V, ["mig", "factor_vae"], size=500, repeats=3, seed=7)
    assert found.keys() == {"mig", "factor_vae"}
    mig = found["mig"]
    assert (len(set(mig.values)), mig.mean) == (3, pytest.approx(np.mean(mig.values)))
    assert mig.std == pytest.approx(np.std(mig.values, ddof=1))
    again = scores.spread(codes, V, ["mig"], size=500, repeats=3, seed=8)["mig"]
    assert again.values[:2] == mig.values[1:], "repeat 1 of seed 7 is repeat 0 of seed 8"
    assert np.isnan(scores.spread(codes, V, ["mig"], repeats=1)["mig"].std)
    for wrong, says in [
        ({"names": ["mic"]}, "there is no mic. There are mig, dci, infomec"),
        ({"names": "mig"}, r"names=mig: it takes a list of names, such as \['mig'\]"),
        ({"size": N + 1}, r"size=1001: there are 1,000 rows"),
        ({"size": 10.5}, r"size=10.5: it takes a whole number, 1 or more"),
        ({"repeats": 1.5}, "repeats=1.5: it takes a whole number, 1 or more"),
        ({"seed": -1}, "seed=-1: it takes a whole number from 0 to 4,294,967,295"),
        ({"seed": 0.5}, "seed=0.5: it takes a whole number"),
        ({"repeats": 0}, "repeats=0: it takes a whole number, 1 or more"),
    ]:
        with pytest.raises(UserError, match=says):
            scores.spread(codes, V, **({"names": ["mig"]} | wrong))


@pytest.mark.parametrize("name", scores.SCORES)
def test_arrays_that_no_score_can_use_are_refused_in_words(name):
    z, v = noise(3, 60), drawn(2, 3, n=60)
    for codes, factors, says in [
        (z[0], v, "codes: an array [N, D] is needed, a row per image; this is [3]"),
        (z, v[:-1], "codes has 60 rows and factors 59"),
        (z * np.nan, v, "codes: some of the numbers are not finite"),
        (z, [["a", "b"]] * 60, "factors: these are not real numbers"),
        (z, v * [1, 0], "factors: column 1 has one value only in 60 rows; leave it out"),
        (z + 1j, v, "codes: these are not real numbers"),
        (torch.tensor(z + 1j), v, "codes: these are not real numbers"),
        (np.ma.masked_array(z, z > 1), v, "codes: some of the numbers are masked"),
        (z * 1e151, v, "codes: some of the numbers are not finite, or too large, beyond 1e+150"),
        (z, np.c_[v, z], "factors: column 2 has 60 values in 60 rows"),
    ]:
        with pytest.raises(UserError) as error:
            measured(name, codes, factors)
        assert says in str(error.value)


def test_tensors_and_factors_that_are_no_whole_numbers():
    z, v = noise(3, 60), drawn(2, 3, n=60)
    assert scores.mig(torch.tensor(z, requires_grad=True), torch.tensor(v * 0.5 - 1)) == scores.mig(z, v)
    for kind in (torch.bfloat16, torch.half):
        rounded = torch.tensor(z).to(kind)
        assert scores.mig(rounded, v) == scores.mig(rounded.double(), v)


@pytest.mark.parametrize(
    ("score", "wrong", "says"),
    [
        (scores.factor_vae, {"batch_size": 1}, "batch_size=1: it takes a whole number, 2 or more"),
        (scores.beta_vae, {"batch_size": 0}, "batch_size=0: it takes a whole number, 1 or more"),
        (scores.dci, {"predictor": 3}, "predictor=3: it takes one of random_forest, gradient_boosting, or a function"),
        (scores.dci, {"seed": 0.5}, "seed=0.5: it takes a whole number"),
        (scores.sap, {"seed": -1}, "seed=-1: it takes a whole number"),
        (scores.explicitness, {"seed": -1}, "seed=-1: it takes a whole number"),
        (scores.infomec, {"seed": 2**32}, "seed=4294967296: it takes a whole number from 0 to 4,294,967,295"),
        (scores.factor_vae, {"seed": True}, "seed=True: it takes a whole number"),
        (scores.beta_vae, {"seed": 1.5}, "seed=1.5: it takes a whole number"),
        (scores.mig, {"bins": 1.5}, "bins=1.5: it takes a whole number, 2 or more"),
    ],
)
def test_arguments_of_another_kind_are_refused_in_words(score, wrong, says):
    with pytest.raises(UserError, match=says):
        score(noise(3, 60), drawn(2, 3, n=60), **wrong)


@pytest.mark.slow
def test_neither_scale_nor_offset_of_codes_matters_for_dci():
    codes = scaled(V) + 0.5 * noise(4)
    before = scores.dci(codes, V)
    for other in (codes + 1e8, codes * 1e-40, codes * [1e-6, 1, 1e6, -1] + [0, 1e6, 3, 0]):
        after = scores.dci(other, V)
        assert after.importance == pytest.approx(before.importance, abs=0.02)
        assert after.informativeness == pytest.approx(before.informativeness, abs=0.02)


@pytest.mark.slow
def test_explicitness_is_that_of_standardised_codes_whatever_their_scale():
    """Ridgeway & Mozer's, as Locatello et al. (2019) have it: the regression sees what the rows to fit standardise."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.preprocessing import StandardScaler

    v = drawn(4, 6, 8, 10, n=2000)
    fit, test = LabelledCodes.of(scaled(v), v).split(0)
    scaler = StandardScaler().fit(fit.codes)
    areas = []
    for labels, held_out in zip(fit.factors.T, test.factors.T, strict=True):
        p = LogisticRegression().fit(scaler.transform(fit.codes), labels).predict_proba(scaler.transform(test.codes))
        areas.append(np.mean([roc_auc_score(held_out == value, p[:, value]) for value in np.unique(labels)]))
    assert np.mean(areas) == pytest.approx(0.9999, abs=5e-5)
    for codes in (scaled(v), v, 0.01 * scaled(v), scaled(v) + 1e6, scaled(v) * [1e-6, 1, 1e6, -1]):
        assert scores.explicitness(codes, v) == pytest.approx(np.mean(areas), abs=1e-4)


@pytest.mark.filterwarnings("error")
def test_many_values_in_few_rows_print_no_warning():
    torch.set_num_threads(2)  # and none from the threads that fit the trees
    v = np.tile(np.arange(30), 2)[:, None].repeat(2, axis=1)
    assert scores.dci(noise(2, 60), v).importance.shape == (2, 2)


def test_rows_that_cannot_be_divided_into_two_parts_are_refused_in_words():
    rare = np.r_[np.zeros(19, int), 1][:, None]
    said = set()
    for seed in range(10):
        for score in (scores.sap, scores.explicitness):
            try:
                assert 0 <= score(noise(1, 20), rare, seed=seed) <= 1
            except UserError as error:
                said.add(str(error))
    assert said == {
        "factors: column 0 has one value only in the 13 of 20 rows to fit on; a value must be met several times.",
        "factors: column 0 has no value to tell from others in the 7 rows to test on; a value must be met several "
        "times.",
    }


def test_parts_of_the_rows_are_checked_before_anything_is_measured(monkeypatch):
    known = drawn(12, 12, n=36)
    monkeypatch.setattr("vae_exp.scores.repeats.mig", lambda *_: pytest.fail("it was measured"))
    with pytest.raises(UserError, match=r"column 0 has 1\d values in 18 rows"):
        scores.spread(noise(2, 36), known, ["mig"])
    found = repeats.unsuitable(known, ["mig", "dci"], 18, 5, 0, ["shape", "x"])
    assert found["mig"].reason.startswith("shape has 1")
    assert repeats.unsuitable(known, ["mig", "dci"], 36, 1, 0) == {}


def test_a_score_that_is_no_number_in_some_repeat_is_none_at_all():
    v = drawn(5, 5)
    found = scores.spread(scaled(v)[:, :1], v, ["infomec"], repeats=2)
    assert np.isnan(found["infoc"].mean)
    assert np.isfinite(found["infom"].mean)


def test_information_above_that_of_shuffled_factors():
    """Of few rows and many values the estimate finds most of a nat in pure noise."""
    factors = drawn(32, 4, n=369)
    codes = np.c_[noise(2, 369), scaled(factors)[:, 1]]
    assert scores.mutual_information(codes, factors)[:2, 0].min() > 0.5
    found = above_chance(codes, factors)
    assert found.min() >= 0
    assert found[:2].max() < 0.1
    assert found[2, 1] == pytest.approx(np.log(4), abs=0.1)


@pytest.mark.parametrize("name", scores.SCORES)
def test_scores_of_two_factors_or_more_say_so(name):
    v = drawn(4)
    if scores.SCORES[name].min_factors == 1:
        assert all(np.isfinite(value) for value in measured(name, scaled(v), v).values())
    else:
        with pytest.raises(UserError, match="this score needs 2 factors or more, and there is 1"):
            measured(name, scaled(v), v)


def test_a_second_implementation_agrees():
    reason = "disent 0.8, the second implementation, is not installed (it needs Python 3.11 or older)"
    theirs = {name: pytest.importorskip(f"disent.metrics._{name}", reason=reason) for name in ("mig", "sap", "dci")}
    v = drawn(3, 4, 6, n=1500)
    codes = scaled(v) @ np.linalg.qr(noise(3, 3))[0] + 0.5 * noise(3, 1500)
    assert scores.mig(codes, v) == pytest.approx(theirs["mig"]._compute_mig(codes.T, v.T)["mig.discrete_score"])
    fit, test = LabelledCodes.of(codes, v).split(0)
    parts = fit.codes.T, fit.factors.T, test.codes.T, test.factors.T
    assert scores.sap(codes, v) == pytest.approx(theirs["sap"]._compute_sap(*parts, False)["sap.score"])
    r2 = theirs["sap"]._compute_sap(codes.T, v.T, codes.T, v.T, True)["sap.score"]
    assert scores.sap(codes, v, by="r2") == pytest.approx(r2)
    importance = scores.dci(codes, v).importance
    assert scores.disentanglement(importance) == pytest.approx(theirs["dci"]._disentanglement(importance))
    assert scores.completeness(importance) == pytest.approx(theirs["dci"]._completeness(importance))
    boosted = scores.dci(codes, v, "gradient_boosting")
    of_theirs = theirs["dci"]._compute_dci(*parts)
    for ours, name in ((boosted.disentanglement, "disentanglement"), (boosted.completeness, "completeness"),
                       (boosted.informativeness, "informativeness_test")):  # fmt: skip
        assert ours == pytest.approx(of_theirs[f"dci.{name}"], abs=0.02), name


SLOW = pytest.mark.slow
RANGES = [  # a score, a number of it, the codes, and which range of its caution that is
    ("modularity", "modularity", "noise", 0),
    ("modularity", "modularity", "rotated", 1),
    pytest.param("factor_vae", "factor_vae", "rotated", 0, marks=SLOW),
    pytest.param("beta_vae", "beta_vae", "rotated", 0, marks=SLOW),
    pytest.param("sap", "sap", "perfect", 0, marks=SLOW),
    pytest.param("infomec", "infom", "rotated", 0, marks=SLOW),
    pytest.param("infomec", "infom_published", "noise", 0, marks=SLOW),
    pytest.param("infomec", "infoc", "rotated", 0, marks=SLOW),
    pytest.param("infomec", "infoc_published", "noise", 0, marks=SLOW),
]


@pytest.mark.parametrize(("name", "key", "case", "place"), RANGES)
def test_cautions_name_the_ranges_that_are_measured(name, key, case, place):
    said = re.findall(r"(\d\.\d\d) to (\d\.\d\d) \(mean (\d\.\d\d)\)", scores.SCORES[name].caution_of(key))[place]
    assert [float(number) for number in said] == pytest.approx(cautions.measured(name, case)[key], abs=0.011)


@pytest.mark.slow
def test_importing_scores_imports_no_scikit_learn():
    code = (
        "import sys; from vae_exp import scores; print([name for name in ('sklearn', 'scipy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
