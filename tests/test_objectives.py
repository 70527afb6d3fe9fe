"""Objectives: against the formulas of their papers, and in runs."""

import math
from itertools import combinations

import pytest
import torch
from torch.distributions import Normal

import vae_exp
from tests.conftest import compose, metrics, quick_run
from vae_exp.config import build
from vae_exp.config.checks import check
from vae_exp.distributed import Share
from vae_exp.distributions import DiagonalGaussian
from vae_exp.objectives import beta_tc, capacity, decompose, dip_vae, elbo, free_bits, iwae, log_shares
from vae_exp.terms import Progress, Terms, elbo_terms

TERMS = Terms(torch.tensor([90.0, 110.0]), torch.tensor([[0.0, 1.0, 5.0], [0.2, 0.0, 7.0]]))
START = Progress(step=0, steps_per_epoch=10, epochs=20, train_size=100)


def weight(step, **warmup):
    return elbo(TERMS, START._replace(step=step), beta=4.0, **warmup)[1]["kl_weight"]


@pytest.mark.parametrize("length", [{"warmup_epochs": 4}, {"warmup_steps": 40}, {"warmup_fraction": 0.2}])
def test_a_warm_up_rises_to_beta_over_its_length_in_any_unit(length):
    linear = [weight(step, **length) for step in (0, 10, 39, 40, 200)]
    assert linear == pytest.approx([0, 1, 3.9, 4, 4])
    cosine = [weight(step, warmup="cosine", **length) for step in (0, 10, 20, 30, 40, 200)]
    quarter = 2 * (1 - math.sqrt(0.5))
    assert cosine == pytest.approx([0, quarter, 2, 4 - quarter, 4, 4])


def test_a_cyclical_warm_up_rises_and_stays_several_times():
    weights = [weight(step, warmup="cyclical", cycles=2, warmup_steps=80) for step in range(0, 90, 10)]
    assert weights == pytest.approx([0, 2, 4, 4, 0, 2, 4, 4, 4])


def test_the_loss_of_each_step_has_that_steps_weight():
    loss, logged = elbo(TERMS, START._replace(step=10), beta=4.0, warmup_epochs=4)
    assert loss.item() == pytest.approx(100 + 1 * (6 + 7.2) / 2)
    assert logged == {"kl_weight": 1}


def test_free_bits_counts_a_latent_whose_mean_kl_is_less_as_that():
    kl = TERMS.kl.clone().requires_grad_()
    loss, _ = free_bits(TERMS._replace(kl=kl), START, beta=2.0, free_nats=0.5)
    assert loss.item() == pytest.approx(100 + 2 * (0.5 + 0.5 + 6))  # means 0.1, 0.5 and 6
    loss.backward()
    assert kl.grad[:, 0].tolist() == [0, 0], "below its share a latent is under no pressure"
    assert kl.grad[:, 2].tolist() == [1, 1]


def test_capacity_pulls_the_kl_to_a_value_that_rises():
    settings = {"gamma": 10.0, "capacity_nats": 8.0, "warmup_fraction": 0.5}
    for step, target in ((0, 0), (50, 4), (100, 8), (150, 8)):
        loss, logged = capacity(TERMS, START._replace(step=step), **settings)
        assert loss.item() == pytest.approx(100 + 10 * abs(6.6 - target), rel=1e-5)
        assert logged == {"capacity": target}


def some_batch(*overrides, n=5):
    """A small conditional model in float64, a batch, and the terms of one draw, whose noise is `noise_of` the batch."""
    torch.manual_seed(0)
    model = build.model(check(compose("model=conditional", "model.z_dim=3", *overrides)), (1, 8, 8), 10).double()
    model.context = lambda y: torch.nn.functional.one_hot(y, 10).double()
    x, y = torch.rand(n, 1, 8, 8, dtype=torch.float64), torch.arange(n) % 10
    eps, noise = noise_of(n)
    return model, x, y, elbo_terms(model, x, y, eps, Share((n,)), noise)


def noise_of(n):
    noise = torch.Generator().manual_seed(1)
    return torch.randn(n, 3, dtype=torch.float64, generator=noise), noise


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return torch.cat([weights.grad.flatten() for weights in model.parameters()])


@pytest.mark.parametrize("samples", [1, 2, 7])
def test_iwae_is_the_papers_bound_and_chunks_change_neither_it_nor_its_gradient(samples):
    model, x, y, terms = some_batch()
    loss, _ = iwae(terms, START, beta=1.0, samples=samples, samples_at_once=3)
    chunked = gradients(model, loss)

    model, x, y, terms = some_batch()  # the same weights and the same noise
    eps, noise = noise_of(5)
    eps = torch.cat([eps[None], torch.randn(samples - 1, 5, 3, dtype=torch.float64, generator=noise)])
    draws = terms.q.mean + (0.5 * terms.q.log_var).exp() * eps
    q, prior = Normal(terms.q.mean, (0.5 * terms.q.log_var).exp()), Normal(0.0, 1.0)
    log_weights = [model.decode(z, y).log_prob(x) + prior.log_prob(z).sum(1) - q.log_prob(z).sum(1) for z in draws]
    bound = (torch.stack(log_weights).exp().mean(0)).log().mean()
    torch.testing.assert_close(loss, -bound)
    torch.testing.assert_close(chunked, gradients(model, -bound))


class Noisy(torch.nn.Module):
    """A decoder as a user may write it: it draws random numbers of its own, and no layer of PyTorch's says so."""

    def __init__(self, decoder):
        super().__init__()
        self.decoder = decoder

    def forward(self, z, context):
        return torch.nn.functional.dropout(self.decoder(z, context), 0.5, training=True)


def test_a_decoder_that_draws_itself_is_decoded_again_with_the_same_numbers():
    found = []
    for at_once in (6, 1):  # all at once keeps everything; one at a time decodes anew in the backward pass
        model, _, _, terms = some_batch()
        model.decoder = Noisy(model.decoder)
        torch.manual_seed(3)
        loss, _ = iwae(terms, START, beta=1.0, samples=7, samples_at_once=at_once)
        found.append((loss.detach(), gradients(model, loss)))
    torch.testing.assert_close(found[0], found[1])


def test_iwae_keeps_no_more_for_the_backward_pass_with_more_samples():
    def kept(samples, at_once):
        _, _, _, terms = some_batch("network.hidden_dims=[200]", n=20)
        sizes = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: sizes.update({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()}) or t, lambda t: t
        ):
            loss, _ = iwae(terms, START, beta=1.0, samples=samples, samples_at_once=at_once)
            held = sum(sizes.values())
            loss.backward()
        return held

    assert kept(50, 50) > 5 * kept(5, 5)
    assert kept(50, 5) < 2 * kept(5, 5)


def codes(mean, log_var=-2.0, seed=0):
    q = DiagonalGaussian(mean.double(), torch.full_like(mean, log_var).double())
    return q, q.rsample(torch.Generator().manual_seed(seed))


def grid(side=6):
    places = torch.linspace(-2, 2, side)
    return torch.cartesian_prod(places, places)


@pytest.mark.parametrize("sampling", ["stratified", "weighted"])
def test_the_three_terms_sum_to_the_sampled_kl(sampling):
    q, z = codes(torch.randn(9, 4))
    parts = decompose(q, z, 1000, sampling)
    posterior = Normal(q.mean, (0.5 * q.log_var).exp())
    kl = (posterior.log_prob(z) - Normal(0.0, 1.0).log_prob(z)).sum(1)
    torch.testing.assert_close(sum(parts.values()), kl)
    assert parts.keys() == {"mutual_information", "total_correlation", "dimension_wise_kl"}


def test_independent_codes_have_no_total_correlation_and_equal_ones_have():
    """With all the data in the batch q(z) is exact, and on a grid of means it is the product of its sides."""
    q, z = codes(grid())
    parts = decompose(q, z, len(z), "stratified")
    torch.testing.assert_close(parts["total_correlation"], torch.zeros(36).double(), atol=1e-6, rtol=0)
    q, z = codes(torch.linspace(-2, 2, 36)[:, None].repeat(1, 2))
    assert decompose(q, z, 36, "stratified")["total_correlation"].mean() > 0.5


def test_mutual_information_is_at_most_log_n_and_reaches_it_where_codes_are_apart():
    for n, spread in ((8, 0.1), (8, 3.0), (8, 1000.0)):
        q, z = codes(spread * torch.randn(n, 3), seed=n)
        for train_size in (8, 500):
            gained = decompose(q, z, train_size, "stratified")["mutual_information"]
            assert gained.max() <= math.log(train_size) + 1e-6
    torch.testing.assert_close(gained, torch.full((8,), math.log(500)).double())
    q, z = codes(torch.zeros(8, 3))
    torch.testing.assert_close(decompose(q, z, 8, "stratified")["mutual_information"], torch.zeros(8).double())


def test_stratified_batches_give_q_of_z_without_bias():
    """Over every batch of 3 out of 6 that holds image i the estimates of q(z_i) average to the mixture of all 6."""
    q, z = codes(torch.randn(6, 2), log_var=0.0)
    pairs = torch.stack([q.log_prob(code).sum(1) for code in z])
    exact = pairs.exp().mean(1)
    for i in range(6):
        estimates = []
        for others in combinations([j for j in range(6) if j != i], 2):
            rows = torch.tensor([*others, i])  # not at the first place: the weight of one's own is on the diagonal
            estimates.append((pairs[rows][:, rows] + log_shares(3, 6, "stratified")).exp().sum(1)[2])
        torch.testing.assert_close(torch.stack(estimates).mean(), exact[i])


def test_weighted_batches_are_those_of_the_paper():
    q, z = codes(torch.randn(4, 2))
    pairs = torch.stack([q.log_prob(code).sum(1) for code in z]).exp()
    log_q = (pairs.sum(1) / (4 * 100)).log()
    parts = decompose(q, z, 100, "weighted")
    torch.testing.assert_close(parts["mutual_information"], q.log_prob(z).sum(1) - log_q)


def test_beta_tc_is_the_negative_elbo_until_a_term_is_weighed_otherwise():
    model, _, _, terms = some_batch()
    ones = {"alpha": 1.0, "beta": 1.0, "gamma": 1.0, "sampling": "stratified"}
    loss, logged = beta_tc(terms, START, **ones)
    torch.testing.assert_close(loss, terms.neg_elbo.mean())
    for key, name in (("alpha", "mutual_information"), ("beta", "total_correlation"), ("gamma", "dimension_wise_kl")):
        heavier, _ = beta_tc(terms, START, **ones | {key: 3.0})
        torch.testing.assert_close(heavier - loss, 2 * logged[name])
    assert (gradients(model, heavier) != 0).any()


@pytest.mark.slow
def test_beta_tc_takes_the_size_of_the_data_from_the_data():
    """Before the first step all codes are alike, and the weighted estimate is then off by the log of that size."""
    for train_size in (100, 1000):
        settings = ("objective=beta_tc", "objective.sampling=weighted", f"dataset.train_size={train_size}")
        _, folder = quick_run(*settings, "log_every_steps=1", folder=f"n{train_size}")
        assert metrics(folder)[0]["train/mutual_information"] == pytest.approx(math.log(train_size), abs=0.3)


LOGGED = {
    "free_bits": {"kl_weight"},
    "capacity": {"capacity"},
    "iwae": {"kl_weight"},
    "beta_tc": {"mutual_information", "total_correlation", "dimension_wise_kl"},
}


def test_every_objective_trains_and_logs_the_same_unweighted_terms_beside_its_own():
    settings = ("model=beta_conditional", "model.z_dim=2", "log_every_steps=1")
    first = metrics(quick_run(*settings, folder="elbo")[1])[0]
    for name, own in LOGGED.items():
        rows = metrics(quick_run(*settings, f"objective={name}", folder=name)[1])
        points = [row for row in rows if "train/loss" in row]
        assert points[0].keys() - own_keys(own) == first.keys() - {"train/kl_weight"}
        assert all(own_keys(own) <= row.keys() for row in points)
        # The weights, the images and the noise of the first step are those of every other objective.
        for key in ("train/reconstruction", "train/kl", "train/neg_elbo"):
            assert points[0][key] == pytest.approx(first[key])
        epoch = next(row for row in rows if "train_epoch/loss" in row)
        assert {f"train_epoch/{key}" for key in own} <= epoch.keys()


def own_keys(names):
    return {f"train/{name}" for name in names}


@pytest.mark.parametrize("variant", ["I", "II"])
def test_dip_vae_penalises_what_the_covariance_of_the_codes_lacks_to_the_identity(variant):
    noise = torch.Generator().manual_seed(0)
    q = DiagonalGaussian(torch.randn(500, 3, generator=noise) @ torch.randn(3, 3, generator=noise), torch.zeros(500, 3))
    q.log_var[:, 1] = math.log(0.5)
    kl = q.kl_to_prior()
    terms = Terms(torch.full((500,), 90.0), kl, q, q.mean)
    covariance = torch.cov(q.mean.T, correction=0)
    if variant == "II":  # the law of total variance: q(z) is the mixture of the q(z|x)
        covariance += torch.diag(torch.tensor([1.0, 0.5, 1.0]))
    on, off = 0.0, 0.0
    for i in range(3):
        for j in range(3):
            if i == j:
                on += (covariance[i, j].item() - 1) ** 2
            else:
                off += covariance[i, j].item() ** 2
    loss, logged = dip_vae(terms, START, beta=2.0, variant=variant, off_diagonal=3.0, diagonal=0.5)
    assert logged["covariance_penalty"].item() == pytest.approx(3 * off + 0.5 * on, rel=1e-4)
    assert loss.item() == pytest.approx(90 + 2 * kl.sum(1).mean().item() + 3 * off + 0.5 * on, rel=1e-5)


@pytest.mark.slow
def test_dip_vae_leaves_latents_less_correlated():
    """The same run with and without the penalty: the squared correlations of q's means."""
    left = {}
    for weight in (0, 100):
        typed = ("objective=dip_vae", "objective.variant=I", "objective.diagonal=0", f"objective.off_diagonal={weight}")
        _, folder = quick_run(*typed, "model.z_dim=6", "epochs=8", "optimizer.lr=3e-3", folder=f"w{weight}")
        model = vae_exp.load(folder)
        mean = model.encode(model.read_data().train.x).mean
        left[weight] = (torch.corrcoef(mean.T).square().sum() - 6).item()
    assert left[100] < 0.5 * left[0]
