"""Likelihoods: each is a density or a probability, per image, and learns what it says it learns."""

import itertools
import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import distributions as oracle

import vae_exp
from tests.conftest import compose, quick_run
from vae_exp.config import build
from vae_exp.config.checks import check, options
from vae_exp.config.migrations import renamed
from vae_exp.errors import UserError
from vae_exp.likelihoods import (
    Bernoulli,
    ContinuousBernoulli,
    DiscretizedLogistic,
    Gaussian,
    Laplace,
    continuous_bernoulli,
    discretized_logistic,
    gaussian,
    laplace,
)
from vae_exp.networks.convolutional import conv
from vae_exp.networks.mlp import glorot_init, mlp
from vae_exp.training import console

LOGITS = [0.0, 1e-6, -1e-3, 0.1, 0.59999, 0.60001, -0.6, 2.0, -7.0, 30.0, -90.0]
BYTES = torch.arange(256) / 255


def each(values):
    """Pixels as images of one pixel, [N, 1, 1, 1]."""
    return torch.as_tensor(values)[:, None, None, None]


def at(family, parameter, x, *scale):
    """log_prob of each of the one-pixel images x under one parameter."""
    return family(torch.full((len(x), 1, 1, 1), parameter, dtype=x.dtype), *scale).log_prob(each(x))


@pytest.mark.parametrize("name", options("likelihood"))
def test_every_likelihood_is_per_image_and_says_over_what(name):
    likelihood = build.partial(check(compose(f"likelihood={name}")), "likelihood")()
    outputs, x = torch.randn(5, 3, 4, 4), torch.randint(0, 2, (5, 3, 4, 4)).float()
    p = likelihood(outputs)
    assert p.mean.shape == x.shape
    assert p.log_prob(x).shape == (5,)
    torch.testing.assert_close(p.log_prob(x)[:1], likelihood(outputs[:1]).log_prob(x[:1]))
    assert p.support in ("binary", "unit interval", "real", "bytes")


def test_a_bernoulli_sums_to_one_and_is_that_of_torch():
    assert at(Bernoulli, 0.7, torch.tensor([0.0, 1.0])).exp().sum().item() == pytest.approx(1)
    logits, x = torch.randn(7, 1, 4, 4), torch.rand(7, 1, 4, 4).round()
    expected = oracle.Bernoulli(logits=logits).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(Bernoulli(logits).log_prob(x), expected)
    torch.testing.assert_close(Bernoulli(logits).mean, torch.sigmoid(logits))


def bernoulli_in_float64(logits, x):
    """-log p(x|z) by its definition: the softplus of the logit that is against each pixel, [B] nats."""
    logits, x = logits.double(), x.double()
    return (x * F.softplus(-logits, threshold=800) + (1 - x) * F.softplus(logits, threshold=800)).flatten(1).sum(1)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 9, 7), (1, 28, 28), (3, 128, 128), (3, 256, 256)])
@pytest.mark.parametrize("trains", [False, True])
def test_a_bernoulli_is_exact_however_sure_the_decoder_is(shape, trains):
    noise = torch.Generator().manual_seed(0)
    random = torch.randn(shape, generator=noise)
    sure = [torch.full(shape, t) for t in (-300.0, -50.0, -16.0, -10.0, -2.0, 0.0, 2.0, 10.0, 16.0, 50.0, 300.0)]
    pixels = [torch.full(shape, byte / 255) for byte in (0, 1, 17, 128, 254, 255)]
    pixels += [torch.rand(shape, generator=noise), torch.rand(shape, generator=noise).round()]
    for logits in torch.stack([*sure, random, 10 * random, (100 * random).clamp(-300, 300)]).split(5):
        for x in pixels:
            x = x.expand_as(logits)
            exact = bernoulli_in_float64(logits, x)
            nats = -Bernoulli(logits.clone().requires_grad_(trains)).log_prob(x).detach()
            assert ((nats.double() - exact).abs() <= 1e-6 * exact.clamp(min=1)).all()
            assert (nats >= 0).all(), "no probability is above 1"


def test_the_gradient_of_a_bernoulli_is_the_mean_minus_the_pixel():
    logits, x = 5 * torch.randn(3, 1, 9, 8), torch.rand(3, 1, 9, 8)
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(-Bernoulli(logits).log_prob(x).sum(), logits)
    torch.testing.assert_close(gradient, torch.sigmoid(logits.double()).sub(x).float(), atol=1e-6, rtol=0)
    logits, x = (each.detach().double()[:1, :, :2, :3].clone().requires_grad_() for each in (logits, x))
    for agrees in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert agrees(lambda t, x: Bernoulli(t).log_prob(x), (logits, x))


def test_bernoulli_stays_finite_where_a_sigmoid_would_saturate():
    assert Bernoulli(torch.full((1, 1, 1, 1), -200.0)).log_prob(torch.ones(1, 1, 1, 1)).item() == -200


@pytest.mark.parametrize("logit", LOGITS)
def test_a_continuous_bernoulli_integrates_to_one_and_knows_its_mean(logit):
    x = torch.linspace(0, 1, 200_001, dtype=torch.float64)
    density = at(ContinuousBernoulli, logit, x).exp()
    assert torch.trapezoid(density, x).item() == pytest.approx(1, abs=1e-6)
    mean = ContinuousBernoulli(torch.tensor(logit)).mean.item()
    assert torch.trapezoid(density * x, x).item() == pytest.approx(mean, abs=1e-6)


@pytest.mark.parametrize("logit", LOGITS)
def test_a_continuous_bernoullis_gradient_is_what_it_saw_minus_its_mean(logit):
    """As in every exponential family; float32, where a careless 0/0 would show."""
    t = torch.full((1, 1, 1, 1), logit, requires_grad=True)
    ContinuousBernoulli(t).log_prob(torch.full_like(t, 0.3)).backward()
    assert t.grad.item() == pytest.approx(0.3 - ContinuousBernoulli(t).mean.item(), abs=2e-6)


def test_blacker_than_black_does_not_pay_in_a_continuous_bernoulli():
    likelihood, outputs = continuous_bernoulli(), torch.tensor([-1.0, -40.0, -4e4]).view(3, 1, 1, 1).requires_grad_()
    assert (likelihood(outputs).log_prob(torch.zeros(3, 1, 1, 1)) <= math.log(16) + 1e-5).all()
    white = likelihood(outputs).log_prob(torch.ones(3, 1, 1, 1))
    (gradient,) = torch.autograd.grad(white.sum(), outputs)
    assert (gradient.flatten()[:2] > 0.01).all(), "the bound leaves a way back"


def test_a_continuous_bernoulli_is_that_of_torch():
    logits, x = 3 * torch.randn(7, 1, 4, 4).double(), torch.rand(7, 1, 4, 4).double()
    theirs = oracle.ContinuousBernoulli(logits=logits, validate_args=False)
    torch.testing.assert_close(ContinuousBernoulli(logits).log_prob(x), theirs.log_prob(x).flatten(1).sum(1))
    torch.testing.assert_close(ContinuousBernoulli(logits).mean, theirs.mean, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("family", "theirs"), [(Gaussian, oracle.Normal), (Laplace, oracle.Laplace)])
@pytest.mark.parametrize("scale", [0.2, torch.tensor(0.2)])
def test_gaussian_and_laplace_integrate_to_one_and_are_those_of_torch(family, theirs, scale):
    x = torch.linspace(-4, 5, 50_001)
    assert torch.trapezoid(at(family, 0.4, x, scale).exp(), x).item() == pytest.approx(1, abs=1e-4)
    mean, x = torch.randn(7, 3, 4, 4), torch.rand(7, 3, 4, 4)
    torch.testing.assert_close(family(mean, scale).log_prob(x), theirs(mean, 0.2).log_prob(x).flatten(1).sum(1))


@pytest.mark.parametrize("scale", [1e-4, 0.003, 0.05, 1.0, torch.tensor(0.05)])
@pytest.mark.parametrize("mean", [-0.3, 0.0, 0.2, 0.5, 1.0, 2.0])
def test_a_discretized_logistic_sums_to_one_over_the_256_values(mean, scale):
    assert at(DiscretizedLogistic, mean, BYTES, scale).exp().sum().item() == pytest.approx(1, abs=1e-4)


def test_a_discretized_logistic_is_the_difference_of_two_cdfs():
    logistic = oracle.TransformedDistribution(
        oracle.Uniform(torch.tensor(0.0).double(), 1.0),
        [oracle.SigmoidTransform().inv, oracle.AffineTransform(0.4, 0.05)],
        validate_args=False,
    )
    edges = logistic.cdf((torch.arange(257).double() - 0.5) / 255)
    edges[0], edges[-1] = 0, 1
    expected = edges.diff().log()
    torch.testing.assert_close(at(DiscretizedLogistic, 0.4, BYTES.double(), 0.05), expected, atol=1e-8, rtol=1e-6)


def test_a_discretized_logistic_stays_finite_far_away():
    far = torch.tensor([50.0, -50.0]).view(2, 1, 1, 1).requires_grad_()
    log_prob = DiscretizedLogistic(far, 1e-3).log_prob(torch.full((2, 1, 1, 1), 100 / 255))
    log_prob.sum().backward()
    assert log_prob.isfinite().all()
    assert (far.grad.flatten() * torch.tensor([-1, 1]) > 0).all(), "it is drawn towards the pixel"


@pytest.mark.parametrize(
    ("make", "scale"),
    [(gaussian, "optimal"), *itertools.product((gaussian, laplace, discretized_logistic), (0.2, "learned"))],
)
def test_a_sigmoid_mean_is_the_linear_one_at_the_sigmoid_of_the_outputs(make, scale):
    outputs, x = torch.randn(5, 3, 4, 4), torch.randint(0, 256, (5, 3, 4, 4)) / 255
    bounded, linear = make(scale, "sigmoid"), make(scale)
    p = bounded(outputs)
    assert p.mean.min() > 0 and p.mean.max() < 1
    torch.testing.assert_close(p.log_prob(x), linear(torch.sigmoid(outputs)).log_prob(x))
    assert linear(outputs).mean is outputs, "linear is the default"
    if scale != 0.2:
        assert bounded.state_dict() == linear.state_dict(), "a checkpoint of one is one of the other"


def test_glorot_begins_at_the_mean_image_under_a_sigmoid_mean_too():
    mean = torch.rand(1, 4, 4).clamp(0.01, 0.99)
    for scale in (0.1, "optimal", "learned", "by_pixel"):
        likelihood = gaussian(scale, "sigmoid")
        encoder, decoder = mlp((1, 4, 4), 2, 0, [8], "relu", outputs_per_pixel=1 + (scale == "by_pixel"))
        glorot_init(encoder, decoder, likelihood, mean)
        first = likelihood(decoder(torch.zeros(1, 2), torch.zeros(1, 0))).mean[0]
        torch.testing.assert_close(first, mean, atol=1e-3, rtol=0)


def saturated_images(n, seed):
    """White discs with soft edges on black, [n, 1, 16, 16]: nine pixels of ten are saturated."""
    at = torch.rand(n, 2, 1, 1, generator=torch.Generator().manual_seed(seed)) * 8 + 4
    rows, columns = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    far = ((rows - at[:, 0]).square() + (columns - at[:, 1]).square()).sqrt()
    return ((4.5 - far).clamp(0, 1) * 255).round().to(torch.uint8)[:, None].numpy()


@pytest.mark.slow
def test_a_sigmoid_mean_pays_on_saturated_images_and_a_note_says_so(monkeypatch, caplog):
    """Where black is the end of the density's mean; the discretized logistic's tails take in what lies beyond."""
    caplog.set_level("INFO")
    monkeypatch.setattr(console, "noted", set())
    np.savez("discs.npz", images=saturated_images(1000, 0), test_images=saturated_images(300, 1))
    small = ("dataset=arrays", "dataset.root=discs.npz", "network.hidden_dims=[64]", "model.z_dim=4", "batch_size=64")
    for likelihood, sigmoid_pays in (("laplace", True), ("discretized_logistic", False)):
        nats = {}
        for mean in ("sigmoid", "linear"):
            choice = (f"likelihood={likelihood}", f"likelihood.mean={mean}", "epochs=60", "replace=true")
            nats[mean] = quick_run(*small, *choice)[0]["test/neg_elbo"]
        assert (nats["sigmoid"] < nats["linear"] - 100) == sigmoid_pays
        assert caplog.text.count("pure black or white") == sigmoid_pays
        caplog.clear()


def test_a_configuration_without_a_mean_is_one_with_a_linear_mean():
    for name, scale in (("gaussian", "sigma"), ("laplace", "scale"), ("discretized_logistic", "scale")):
        old = {"likelihood": {"_target_": f"vae_exp.likelihoods.{name}", scale: "learned"}}
        assert renamed(old)["likelihood"]["mean"] == "linear"


NOISE = [
    (gaussian("learned"), oracle.Normal(0.5, 0.03), 0.03),
    (laplace("learned"), oracle.Laplace(0.5, 0.3), 0.3),
    (discretized_logistic("learned"), oracle.Normal(0.5, 0.03 * math.pi / math.sqrt(3)), 0.03),
]


@pytest.mark.parametrize(("likelihood", "noise", "scale"), NOISE)
def test_a_learned_scale_finds_the_scale_of_the_noise(likelihood, noise, scale):
    torch.manual_seed(0)
    x = noise.sample((50, 1, 16, 16))
    optimizer = torch.optim.Adam(likelihood.parameters(), lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        (-likelihood(torch.full_like(x, 0.5)).log_prob(x).mean()).backward()
        optimizer.step()
    assert likelihood.log_scale.exp().item() == pytest.approx(scale, rel=0.08)


FAMILIES = {gaussian: "sigma", laplace: "scale", discretized_logistic: "scale"}


@pytest.mark.parametrize("make", FAMILIES)
def test_a_scale_by_pixel_is_a_likelihood_of_each_pixel_alone(make):
    outputs, x = torch.randn(5, 6, 4, 4), torch.randint(0, 256, (5, 3, 4, 4)) / 255
    p = make("by_pixel", "sigmoid")(outputs)
    scales = getattr(p, FAMILIES[make])
    assert p.mean.shape == scales.shape == x.shape
    torch.testing.assert_close(p.mean, outputs[:, :3].sigmoid())
    alone = [
        type(p)(mean.view(1, 1, 1, 1), scale.item()).log_prob(pixel.view(1, 1, 1, 1))
        for mean, scale, pixel in zip(p.mean.flatten(), scales.flatten(), x.flatten(), strict=True)
    ]
    torch.testing.assert_close(p.log_prob(x), torch.cat(alone).view(5, -1).sum(1))


@pytest.mark.parametrize("make", FAMILIES)
def test_a_scale_by_pixel_stays_between_its_bounds_and_rises_with_the_output(make):
    raw = torch.tensor([-1e4, -3.0, 0.0, 1.0, 1e4])[:, None, None, None].requires_grad_()
    p = make("by_pixel")(torch.cat([torch.zeros_like(raw), raw], 1))
    scales = getattr(p, FAMILIES[make]).flatten()
    assert (scales.diff() > 0).all()
    assert [scales[0].item(), scales[-1].item()] == pytest.approx([math.exp(-4.5), 1])
    assert scales[2].item() == pytest.approx(0.1, rel=0.1), "it begins about where a learned one does"
    log_prob = p.log_prob(torch.zeros(5, 1, 1, 1))
    log_prob.sum().backward()
    assert log_prob.isfinite().all() and raw.grad.isfinite().all()


@pytest.mark.slow
def test_by_pixel_the_decoder_finds_the_noise_of_each_pixel():
    """Two halves of an image with noise of their own, which one sigma for all pixels can not tell apart."""
    noise = torch.full((1, 1, 8, 8), 0.03)
    noise[..., 4:] = 0.2
    draws = torch.Generator().manual_seed(0)
    images = (0.5 + noise * torch.randn(600, 1, 8, 8, generator=draws)).clamp(0, 1)
    np.savez("noisy.npz", images=(255 * images).round().to(torch.uint8).numpy())
    typed = (
        "dataset=arrays",
        "dataset.root=noisy.npz",
        "network.hidden_dims=[16]",
        "model.z_dim=1",
        "optimizer.lr=0.01",
        "epochs=40",
    )
    model = vae_exp.load(quick_run(*typed, "likelihood=gaussian", "likelihood.sigma=by_pixel", "batch_size=16")[1])
    with torch.no_grad():
        found = model.model.decode(torch.zeros(1, 1), torch.zeros(1, dtype=torch.long)).sigma
    torch.testing.assert_close(found, noise, rtol=0.25, atol=0)


def test_the_optimal_sigma_is_the_root_mean_square_error():
    likelihood = gaussian("optimal")
    mean, x = torch.rand(6, 3, 5, 5, requires_grad=True), torch.rand(6, 3, 5, 5)
    rms = (x - mean).square().mean().sqrt().item()
    log_prob = likelihood(mean).log_prob(x)
    torch.testing.assert_close(log_prob, Gaussian(mean, rms).log_prob(x))
    for other in (0.9 * rms, 1.1 * rms):
        assert log_prob.sum() > Gaussian(mean, other).log_prob(x).sum()
    # The loss of the paper: D/2 log MSE, sigma differentiated as well.
    (gradient,) = torch.autograd.grad(-log_prob.sum(), mean)
    (expected,) = torch.autograd.grad(x.numel() / 2 * (x - mean).square().mean().log(), mean)
    torch.testing.assert_close(gradient, expected)


def test_in_evaluation_the_optimal_sigma_is_that_of_training_and_no_batchs():
    torch.manual_seed(0)
    likelihood = gaussian("optimal")
    for step in range(300):  # the error falls and then stays at 0.2
        x = (0.2 + 0.5 * max(0, 50 - step) / 50) * torch.randn(8, 1, 16, 16)
        likelihood(torch.zeros_like(x)).log_prob(x)
    likelihood.eval()
    before = {name: value.clone() for name, value in likelihood.state_dict().items()}
    mean, x = torch.zeros(4, 1, 16, 16), torch.randn(4, 1, 16, 16) * torch.tensor([0.1, 0.2, 1, 9]).view(4, 1, 1, 1)
    together = likelihood(mean).log_prob(x)
    alone = torch.cat([likelihood(mean[i : i + 1]).log_prob(x[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(together, alone)
    assert likelihood(mean).sigma.item() == pytest.approx(0.2, rel=0.05)
    assert before == likelihood.state_dict()


def test_a_perfect_batch_does_not_blow_up_the_optimal_sigma():
    assert gaussian("optimal")(torch.zeros(2, 1, 4, 4)).log_prob(torch.zeros(2, 1, 4, 4)).isfinite().all()


class OfTwoOutputs:
    """A likelihood of users with two outputs per pixel, of which a function of both is the mean."""

    outputs_per_pixel = 2

    def __init__(self, mean):
        self.mean = mean

    def __call__(self, outputs):
        return Gaussian(self.mean(*outputs.split(1, dim=1)).sigmoid(), 0.1)


@pytest.mark.parametrize("network", [partial(mlp, hidden_dims=[8]), partial(conv, channels=4)])
def test_glorot_moves_the_first_output_of_a_pixel_or_says_that_it_cannot(network):
    mean = torch.rand(1, 8, 8).clamp(0.01, 0.99)
    encoder, decoder = network((1, 8, 8), z_dim=2, context_dim=0, activation="relu", outputs_per_pixel=2)
    likelihood = OfTwoOutputs(lambda first, second: first - second)
    glorot_init(encoder, decoder, likelihood, mean)
    start = likelihood(decoder(torch.zeros(1, 2), torch.zeros(1, 0))).mean[0]
    is_of_each_pixel = network.func is mlp
    torch.testing.assert_close(start, mean if is_of_each_pixel else mean.mean().expand_as(mean), atol=1e-3, rtol=0)
    with pytest.raises(UserError, match=r"network\.init=glorot: of the 2 outputs per pixel"):
        glorot_init(encoder, decoder, OfTwoOutputs(lambda first, second: second), mean)
