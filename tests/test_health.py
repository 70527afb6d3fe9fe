"""Trainings that go wrong without stopping: what is said of them, once, and of healthy ones nothing."""

import pytest

from tests.conftest import QUICK
from vae_exp.training.console import Health

CONFIG = {
    "model": {"z_dim": 10, "beta": 1.0, "stochastic": True},
    "objective": {"warmup_epochs": 0},
    "likelihood": {"sigma": 0.1},
    "optimizer": {"lr": 1e-3},
}
COLLAPSED, GROWS = "the posterior has collapsed", "the KL grows without bound"


def said(kls, active=0, weights=None, **config):
    """The epochs with warnings, and these, for a run of 1,000 images with this KL after each epoch."""
    health = Health(CONFIG | config, train_size=1000)
    found = {}
    for epoch, kl in enumerate(kls, 1):
        row = {
            "val/kl": kl,
            "val/active_units": active,
            "train_epoch/kl_weight": (weights or [1] * len(kls))[epoch - 1],
        }
        if new := health.warnings(epoch, row, "val"):
            found[epoch] = new
    return found


def test_a_posterior_that_stays_silent_has_collapsed_and_that_is_said_once():
    found = said([0.01] * 20)
    assert list(found) == [6]
    assert found[6][0].startswith(COLLAPSED)
    for key in ("objective.warmup_epochs", "objective=free_bits", "model.beta below 1", "smaller likelihood.sigma"):
        assert key in found[6][0]
    by_pixel = said([0.01] * 20, likelihood={"sigma": "by_pixel"})
    assert "a fixed likelihood.sigma (it is by_pixel)" in by_pixel[6][0], "by_pixel cannot be smaller"


def test_a_posterior_that_speaks_late_or_little_has_not_collapsed():
    assert said([0.01] * 4 + [0.03, 0.1, 1.0] + [3.0] * 9) == {}
    assert said([0.01] * 20, active=1) == {}
    assert said([0.0] * 20, model=CONFIG["model"] | {"stochastic": False}) == {}


def test_a_kl_that_rises_beyond_use_grows_without_bound_and_that_is_said_once():
    found = said([50, 55, 57, 60, 65, 70, 80, 90], active=10)
    assert list(found) == [4]
    assert found[4][0].startswith(GROWS)
    for key in ("model.beta above 1", "larger likelihood.sigma", "optimizer.lr below 0.001"):
        assert key in found[4][0]


def test_a_kl_that_is_large_but_stands_or_rises_but_is_small_is_healthy():
    assert said([90, 91, 90, 92, 90, 91, 90, 91], active=10) == {}
    assert said([90, 90.1, 90.2, 90.3, 90.4, 90.5], active=10) == {}
    assert said(range(5, 40), active=10) == {}


def test_while_the_kl_weight_moves_nothing_is_said():
    rising = [0.1 * epoch for epoch in range(20)]
    assert said(range(100, 120), active=10, weights=rising) == {}
    assert said([0.01] * 20, weights=rising) == {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("likelihood=gaussian likelihood.sigma=3 epochs=7", COLLAPSED),
        ("model.beta=0 optimizer.lr=3e-3 epochs=9", GROWS),
        ("experiment=demo epochs=15", None),
        ("model=autoencoder epochs=7", None),
        ("objective=capacity epochs=10", None),
    ],
)
def test_a_run_says_what_it_suffers_from(vae_train, arguments, expected):
    code, output = vae_train(*QUICK, "wandb.mode=disabled", *arguments.split())
    assert code == 0
    for warning in (COLLAPSED, GROWS):
        assert output.count(warning) == (warning == expected)
