"""Sample quality of feature arrays: known values, the formulas written out, and an order that must be so."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from vae_exp import scores
from vae_exp.errors import UserError
from vae_exp.scores.frechet import Moments, frechet_of
from vae_exp.scores.neighbours import squared_distances

NEIGHBOURS = [scores.precision, scores.recall, scores.density, scores.coverage]


def drawn(n, d, seed=0, mean=0.0, scale=1.0):
    return mean + scale * torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def test_the_same_set_is_at_no_distance_and_covers_itself():
    x = drawn(500, 8)
    assert scores.frechet(x, x) == pytest.approx(0, abs=1e-6)
    assert [score(x, x) for score in (scores.precision, scores.recall, scores.coverage)] == [1, 1, 1]
    distances, rows = scores.nearest(x, x)
    assert torch.equal(rows[:, 0], torch.arange(500))
    assert distances.max() == 0


def test_sets_that_are_far_apart_share_nothing():
    x, y = drawn(200, 4), drawn(200, 4, seed=1, mean=100)
    assert [score(x, y) for score in NEIGHBOURS] == [0, 0, 0, 0]


def test_the_distance_of_two_gaussians_is_that_of_their_moments():
    """|m1 - m2|^2 + sum (s1 - s2)^2 where both have the same axes; of many draws within their spread."""
    first, second = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([2.0, 1.0, 0.5])
    expected = 9 + 4 + 1 + (first - second).square().sum().item()
    apart = torch.tensor([3.0, -2.0, 1.0])
    exact = frechet_of(
        Moments(2, torch.zeros(3).double(), first.square().diag().double()),
        Moments(2, apart.double(), second.square().diag().double()),
    )
    assert exact == pytest.approx(expected, abs=1e-9)
    x, y = drawn(50_000, 3) * first, drawn(50_000, 3, seed=1) * second + apart
    assert scores.frechet(x, y) == pytest.approx(expected, rel=0.02)


def test_moments_of_batches_are_those_of_all_images():
    x = drawn(1000, 6, mean=50)
    joined = Moments.of(x[:7])
    for part in x[7:].split(100):
        joined = joined.joined(Moments.of(part))
    assert joined.n == 1000
    torch.testing.assert_close(joined.mean, x.double().mean(0))
    torch.testing.assert_close(joined.covariance, x.double().T.cov())


def test_kid_is_the_unbiased_estimate_of_its_formula():
    x, y = drawn(30, 5).double(), drawn(30, 5, seed=1, mean=0.3).double()

    def kernel(a, b):
        return (a @ b / 5 + 1) ** 3

    within = sum(kernel(a[i], a[j]) for a in (x, y) for i in range(30) for j in range(30) if i != j) / (30 * 29)
    across = sum(kernel(a, b) for a in x for b in y) / 900
    assert scores.kid(x, y, subsets=1) == pytest.approx((within - 2 * across).item(), rel=1e-4)
    spread = [scores.kid(drawn(300, 5, seed=s), drawn(300, 5, seed=s + 50), subsets=1) for s in range(30)]
    assert abs(np.mean(spread)) < 3 * np.std(spread) / 30**0.5, "without a bias"


def test_neighbour_scores_are_those_of_their_definitions():
    real, fake = drawn(60, 2).double(), drawn(40, 2, seed=1, mean=0.5).double()

    def radii(x, k):
        return torch.cdist(x, x).sort(1).values[:, k]  # the 0th is itself

    distance = torch.cdist(fake, real)
    inside = distance <= radii(real, 5)
    expected = {
        scores.precision: (distance <= radii(real, 3)).any(1).double().mean(),
        scores.recall: (distance <= radii(fake, 3)[:, None]).any(0).double().mean(),
        scores.density: inside.double().sum() / (5 * 40),
        scores.coverage: inside.any(0).double().mean(),
    }
    for score, value in expected.items():
        assert 0 < value != 1
        assert score(real, fake) == pytest.approx(value.item())


def test_distances_that_are_small_beside_the_rows_lengths_are_kept():
    """Two tight clusters far apart, against differences taken before they are squared: nothing cancels there."""
    far = 10_000 * (torch.arange(200) % 2)[:, None]
    real, fake = drawn(200, 2).double() + far, drawn(200, 2, seed=1).double() + far

    def distances(x, y):
        return (x[:, None] - y).square().sum(2).sqrt()

    distance = distances(fake, real)
    balls = distances(real, real).sort(1).values
    inside = distance <= balls[:, 5]
    assert scores.density(real, fake) == pytest.approx(inside.sum().item() / (5 * 200))
    assert scores.coverage(real, fake) == inside.any(0).double().mean().item() < 1
    assert scores.precision(real, fake) == (distance <= balls[:, 3]).any(1).double().mean().item() < 1
    own = distances(fake, fake).sort(1).values[:, 3]
    assert scores.recall(real, fake) == (distance <= own[:, None]).any(0).double().mean().item() < 1
    torch.testing.assert_close(scores.nearest(fake, real, k=3)[0], distance.sort(1).values[:, :3], atol=1e-4, rtol=0)
    uncentred = squared_distances(fake.float() + 3, real.float() + 3)  # as of training images, batch by batch
    expected = distances(fake.float().double(), real.float().double()).square()
    torch.testing.assert_close(uncentred, expected, atol=1e-4, rtol=1e-4)


def test_kid_of_features_that_lie_far_from_0_is_that_of_its_formula():
    """The three sums nearly cancel: they are near a million each, and what is left of them is a tenth."""
    x, y = drawn(40, 4, mean=10, scale=0.01), drawn(40, 4, seed=1, mean=10, scale=0.01)
    others = 1 - np.eye(40)
    k = [((a.numpy().astype(float) @ b.numpy().astype(float).T) / 4 + 1) ** 3 for a, b in ((x, x), (y, y), (x, y))]
    expected = ((k[0] + k[1]) * others).sum() / (40 * 39) - 2 * k[2].mean()
    assert scores.kid(x, y, subsets=1) == pytest.approx(expected, abs=1e-7)


@pytest.mark.slow
def test_noise_is_worse_than_blurred_digits_and_these_are_worse_than_other_digits():
    x = torch.tensor(load_digits().data / 16).float()
    real, held_out = x[0:1600:2], x[1:1600:2]  # of the same writers
    blurred, noise = 0.7 * held_out + 0.3 * held_out.mean(0), torch.rand(800, 64, generator=torch.manual_seed(0))
    for distance in (scores.frechet, scores.kid):
        assert distance(real, held_out) < distance(real, blurred) < distance(real, noise)
    assert scores.recall(real, held_out) > scores.recall(real, blurred) > scores.recall(real, noise)
    assert scores.coverage(real, held_out) > 0.6 > 0.1 > scores.coverage(real, noise), "blur does not lower it"
    assert scores.precision(real, held_out) > 0.7 > 0.1 > scores.precision(real, noise)


@pytest.mark.parametrize("score", [scores.frechet, scores.kid, *NEIGHBOURS])
def test_arrays_that_cannot_be_compared_are_refused_in_words(score):
    x = drawn(20, 3)
    for wrong, says in [
        (x[0], "an array [N, D] is needed"),
        (x * np.nan, "not finite"),
        (drawn(20, 4), "both need the same"),
    ]:
        with pytest.raises(UserError) as error:
            score(x, wrong)
        assert says in str(error.value)
    with pytest.raises(UserError):
        score(x, x[:1])
    assert isinstance(score(x.numpy(), x.numpy()), float), "NumPy's arrays too"


@pytest.mark.slow
def test_memory_does_not_grow_with_the_product_of_both_sets():
    """12,000 by 12,000 distances would take 576 MB; a process of its own, because a peak stays."""
    code = """
import resource, torch
from vae_exp import scores
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
x, y = torch.randn(12_000, 16), torch.randn(12_000, 16)
scores.coverage(x[:2000], y[:2000])
before = peak()
scores.coverage(x, y)
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 300
