"""Priors and posteriors: against closed forms, torch.distributions and computations written another way."""

import contextlib
import copy
import functools
import itertools
import json
import math
import re
from pathlib import Path

import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal, kl_divergence

import vae_exp
from tests.conftest import compose, metrics, quick_run, readme_section
from vae_exp.config import build
from vae_exp.config.checks import check, made_name, options
from vae_exp.distributed import Share
from vae_exp.distributions import DiagonalGaussian, FullGaussian, draw, map_parameters, total
from vae_exp.errors import UserError
from vae_exp.evaluation.metrics import has_information
from vae_exp.evaluation.samplers import aggregate
from vae_exp.objectives import beta_tc, decompose, dip_vae
from vae_exp.posteriors import FlowPosterior, iaf
from vae_exp.priors import ByLabel, Flow, Mixture
from vae_exp.terms import Progress, compute_loss, elbo_terms

NOW = Progress(step=3, steps_per_epoch=10, epochs=2, train_size=100)
PRIORS, POSTERIORS = options("prior"), options("posterior")
PAIRS = list(itertools.product(PRIORS, POSTERIORS))
SMALL = {
    "mixture": ["prior.components=3"],
    "vamp": ["prior.components=4", "prior.init_std=0.2"],
    "flow": ["prior.layers=3", "prior.hidden_dim=8"],
    "iaf": ["posterior.layers=2", "posterior.hidden_dims=[8,8]", "posterior.context_dim=4"],
}
OBJECTIVES = r"`objective=(\w+)`|, `(\w+)`"  # in a row of the table
N, Z = 4, 3
Y = torch.arange(N)


def noise(seed=0):
    return torch.Generator().manual_seed(seed)


def stirred(module, by=0.3):
    """Return the module in float64, with weights that are not those it begins with."""
    with torch.no_grad():
        for weights in module.double().parameters():
            weights.add_(by * torch.randn(weights.shape, generator=noise(7), dtype=torch.float64))
    return module


def small_model(prior="standard", posterior="diagonal", *more):
    """Return a small conditional model in float64, whose weights are not those it begins with."""
    torch.manual_seed(0)
    typed = ["model=conditional", f"model.z_dim={Z}", "network.hidden_dims=[6]", "network.activation=tanh"]
    typed += [f"prior={prior}", f"posterior={posterior}", *SMALL.get(prior, []), *SMALL.get(posterior, []), *more]
    model = stirred(build.model(check(compose(*typed)), (1, 2, 3), 4), 0.1)
    model.context = lambda y: torch.nn.functional.one_hot(y, 4).double()
    return model


def batch():
    return torch.rand(N, 1, 2, 3, generator=noise(5), dtype=torch.float64), Y


def some_noise(*shape, seed=2):
    return torch.randn(*shape, generator=noise(seed), dtype=torch.float64)


def gaussian(kind, n=N, z_dim=Z):
    mean, log_var, lower = some_noise(n, z_dim), some_noise(n, z_dim, seed=3), some_noise(n, z_dim * 2, seed=4)
    n_lower = z_dim * (z_dim - 1) // 2
    return DiagonalGaussian(mean, log_var) if kind == "diagonal" else FullGaussian(mean, log_var, lower[:, :n_lower])


def theirs(q):
    """Return a Gaussian of ours as one of torch.distributions."""
    if isinstance(q, FullGaussian):
        return MultivariateNormal(q.mean, scale_tril=q.scale_tril)
    return MultivariateNormal(q.mean, torch.diag_embed(q.log_var.exp()))


def standard_normal():
    return MultivariateNormal(torch.zeros(Z).double(), torch.eye(Z).double())


@pytest.mark.parametrize("kind", ["diagonal", "full"])
def test_a_gaussian_is_that_of_torch_distributions(kind):
    q = gaussian(kind)
    z, log_q = draw(q, some_noise(5, N, Z))
    expected = theirs(q).log_prob(z)
    torch.testing.assert_close(total(q.log_prob(z), z), expected)
    if log_q is not None:
        torch.testing.assert_close(log_q, expected)
    torch.testing.assert_close(total(q.kl_to_prior(), q.mean), kl_divergence(theirs(q), standard_normal()))
    torch.testing.assert_close(q.log_prob_pairs(z[0]), theirs(q).log_prob(z[0][:, None]))
    torch.testing.assert_close(q.log_prob_pairs(z)[0], q.log_prob_pairs(z[0]), msg="with a dimension of draws before")
    torch.testing.assert_close(q.mean_covariance(), theirs(q).covariance_matrix.mean(0))
    torch.testing.assert_close(q.marginals.log_var.exp(), theirs(q).variance)
    many = map_parameters(lambda values: values[:1].expand(50_000, *values.shape[1:]), q).rsample(noise())
    torch.testing.assert_close(torch.cov(many.T), theirs(q).covariance_matrix[0], rtol=0.1, atol=0.05)


@pytest.mark.parametrize("kind", ["diagonal", "full"])
def test_the_kl_to_the_prior_of_a_label_is_that_of_torch_distributions(kind):
    q, prior = gaussian(kind), stirred(ByLabel(Z, 4))
    p = theirs(prior.of(Y))
    torch.testing.assert_close(total(prior.kl(q, Y), q.mean), kl_divergence(theirs(q), p))
    assert prior.kl(q, Y).ndim == (2 if kind == "diagonal" else 1)
    torch.testing.assert_close(total(prior.log_prob(q.mean, Y), q.mean), p.log_prob(q.mean))
    mean, spread = prior.moments(Y)
    torch.testing.assert_close((mean, spread), (p.mean, p.stddev))


def test_a_mixture_of_one_component_is_a_gaussian_whose_kl_by_sampling_meets_the_closed_form():
    prior, q = stirred(Mixture(Z, 1)), gaussian("full")
    p = MultivariateNormal(prior.mean[0], torch.diag(prior.log_var[0].exp()))
    z, log_q = q.draw(some_noise(20_000, N, Z))
    torch.testing.assert_close(prior.log_prob(z, Y), p.log_prob(z))
    ratio, exact = log_q - prior.log_prob(z, Y), kl_divergence(theirs(q), p)
    assert ((ratio.mean(0) - exact).abs() < 4 * ratio.std(0) / math.sqrt(len(z))).all()


def test_a_mixture_is_that_of_torch_distributions_and_its_draws_are_too():
    prior = stirred(Mixture(2, 5), 1.0)
    parts = Independent(Normal(prior.mean, (0.5 * prior.log_var).exp()), 1)
    expected, z = MixtureSameFamily(Categorical(logits=prior.logits), parts), some_noise(6, 2)
    torch.testing.assert_close(prior.log_prob(z, Y), expected.log_prob(z))
    drawn = prior.sample(torch.zeros(100_000, dtype=torch.long), noise(), 1.0)
    torch.testing.assert_close(drawn.mean(0), expected.mean, rtol=0.02, atol=0.05)
    torch.testing.assert_close(drawn.var(0), expected.variance, rtol=0.05, atol=0)
    torch.manual_seed(0)
    at_first = Mixture(2, 1000)
    drawn = at_first.sample(torch.zeros(50_000, dtype=torch.long), noise(), 1.0)
    torch.testing.assert_close((drawn.mean(0), drawn.var(0)), (torch.zeros(2), torch.ones(2)), rtol=0.1, atol=0.1)


@pytest.mark.slow
def test_a_flow_integrates_to_one_and_inverts():
    torch.manual_seed(0)
    prior = stirred(Flow(2, 4, 8), 0.15)
    side = torch.linspace(-30, 30, 1201, dtype=torch.float64)
    plane = torch.cartesian_prod(side, side)
    with torch.no_grad():
        mass = prior.log_prob(plane, Y).exp().sum() * (side[1] - side[0]) ** 2
    assert mass.item() == pytest.approx(1, abs=1e-3)
    for z_dim in (2, 3, 5):
        flow = stirred(Flow(z_dim, 5, 8)).float()
        eps = torch.randn(6, z_dim, generator=noise(3))
        drawn = flow.sample(torch.zeros(6, dtype=torch.long), noise(3), 1.0)
        torch.testing.assert_close(_of_noise(flow, eps), drawn, rtol=1e-5, atol=1e-5)
        flow, eps = flow.double(), eps.double()
        z, jacobian = _of_noise(flow, eps), torch.stack([_jacobian(lambda e, f=flow: _of_noise(f, e), e) for e in eps])
        expected = Normal(0.0, 1.0).log_prob(eps).sum(1) - jacobian.slogdet().logabsdet
        torch.testing.assert_close(flow.log_prob(z, Y), expected, rtol=1e-8, atol=1e-8)
    assert (flow.log_prob(z, Y) - Normal(0.0, 1.0).log_prob(z).sum(1)).abs().max() > 0.1, "it is not N(0, I)"


def _jacobian(function, at):
    return torch.autograd.functional.jacobian(lambda value: function(value[None])[0], at)


def _of_noise(flow, eps):
    """Return a flow's codes of this noise, layer by layer: every other latent moves by those between."""
    z = eps.clone()
    for i, coupling in enumerate(flow.couplings):
        shift, log_scale = coupling(z[..., i % 2 :: 2])
        moved = z[..., 1 - i % 2 :: 2] * log_scale.exp() + shift
        z = torch.stack([z[..., j] if j % 2 == i % 2 else moved[..., j // 2] for j in range(flow.z_dim)], -1)
    return z


def test_iaf_begins_as_the_diagonal_posterior():
    model, plain = (small_model("standard", name) for name in ("iaf", "diagonal"))
    for step in model.posterior.steps:
        for weights in step.layers[-1].parameters():
            torch.nn.init.zeros_(weights)
    q = model.encode(*batch())
    assert isinstance(q, FlowPosterior)
    z, log_q = q.draw(some_noise(N, Z))
    torch.testing.assert_close(z.flip(-1), q.base.rsample(some_noise(N, Z)), msg="an even number of steps reverses it")
    torch.testing.assert_close(log_q, q.base.log_prob(z.flip(-1)).sum(1))
    assert plain.encode(*batch()).mean.shape == q.mean.shape == (N, Z)


def test_a_gate_is_the_step_of_its_paper_and_begins_nearly_open():
    model = small_model("standard", "iaf", "posterior.gate=true", "posterior.layers=1")
    q, (step,) = model.encode(*batch()), model.posterior.steps
    before = q.base.rsample(some_noise(N, Z))
    m, s = step(before, q.context)
    gate = (s + 2).sigmoid()
    torch.testing.assert_close(q.draw(some_noise(N, Z))[0], gate * before + (1 - gate) * m)
    for weights in step.layers[-1].parameters():
        torch.nn.init.zeros_(weights)
    torch.testing.assert_close(q.draw(some_noise(N, Z))[0], before / (1 + math.exp(-2)))


@pytest.mark.parametrize("gate", ["true", "false"])
def test_iaf_has_the_density_of_a_change_of_variables(gate):
    q = small_model("standard", "iaf", f"posterior.gate={gate}").encode(*batch())
    eps = some_noise(N, Z)
    log_q = q.draw(eps)[1]
    for i in range(N):
        one = map_parameters(lambda values, i=i: values[i : i + 1], q)
        jacobian = _jacobian(lambda e, one=one: one.rsample(e), eps[i])
        expected = Normal(0.0, 1.0).log_prob(eps[i]).sum() - jacobian.slogdet().logabsdet
        torch.testing.assert_close(log_q[i], expected)
    torch.testing.assert_close(q.draw(eps.expand(2, N, Z))[1][1], log_q)
    torch.testing.assert_close(q.mean, q.rsample(torch.zeros(N, Z)))


@pytest.mark.parametrize("z_dim", [1, 2, 5])
def test_iaf_moves_a_latent_by_earlier_ones_and_by_the_image(z_dim):
    torch.manual_seed(0)
    (step,) = stirred(iaf(z_dim, layers=1, hidden_dims=[64, 64], context_dim=2)).steps
    z, context = some_noise(z_dim), some_noise(2, seed=3)
    for part in (0, 1):
        by_latents = _jacobian(lambda value, p=part: step(value, context[None])[p], z)
        assert by_latents.triu().abs().max() == 0
        assert (by_latents.tril(-1) != 0).sum() == z_dim * (z_dim - 1) / 2
        assert (_jacobian(lambda value, p=part: step(z[None], value)[p], context) != 0).all()


@pytest.mark.parametrize("posterior", ["diagonal", "full"])
def test_a_vamp_prior_with_the_data_as_pseudo_inputs_is_the_aggregate_posterior(posterior):
    model = small_model("vamp", posterior)
    x, y = batch()
    with torch.no_grad():
        model.prior.inputs.copy_(x)
    model.prior.labels.copy_(y)
    z = some_noise(5, N, Z)
    each = theirs(model.encode(x, y)).log_prob(z[..., None, :])  # [5, N, N]
    torch.testing.assert_close(model.prior.log_prob(z, y), each.logsumexp(-1) - math.log(N))
    drawn = model.prior.sample(torch.zeros(40_000, dtype=torch.long), noise(), 1.0)
    torch.testing.assert_close(drawn.mean(0), model.encode(x, y).mean.mean(0), rtol=0.1, atol=0.05)


def test_a_copy_of_a_vamp_prior_encodes_with_the_weights_of_the_copy():
    """As the exponential moving average is one."""
    model = small_model("vamp")
    twin, z = copy.deepcopy(model), some_noise(N, Z)
    before = model.prior.log_prob(z, Y)
    stirred(twin.encoder)
    torch.testing.assert_close(model.prior.log_prob(z, Y), before)
    assert (twin.prior.log_prob(z, Y) - before).abs().min() > 1e-6


def test_pseudo_inputs_are_encoded_once_in_an_evaluation_and_anew_after_it():
    model = small_model("vamp")
    z, calls = some_noise(N, Z), []
    model.encoder.register_forward_hook(lambda *_: calls.append(None))
    with torch.no_grad(), model.evaluating():
        before = [model.prior.log_prob(z, Y) for _ in range(3)]
        with model.evaluating():
            model.prior.log_prob(z, Y)
    assert len(calls) == 1
    with torch.no_grad():
        model.prior.inputs.add_(0.3)
    with model.evaluating():  # with gradients nothing is kept
        after = [model.prior.log_prob(z, Y) for _ in range(2)]
    assert len(calls) == 3 and after[0].requires_grad
    assert torch.equal(before[0], before[2]) and not torch.equal(before[0], after[0])


def test_a_temperature_draws_nearer_to_the_middle():
    for prior in (Mixture(2, 1), ByLabel(2, 4), Flow(2, 2, 8)):
        y = torch.zeros(1000, dtype=torch.long)
        cold, usual = (prior.sample(y, noise(), t) for t in (0.5, 1.0))
        torch.testing.assert_close(cold, usual / 2, msg=type(prior).__name__)
        assert prior.sample(y, noise(), 0.0).std(0).max() == 0


class Linear(torch.nn.Module):
    """A decoder x = W z, or an encoder of constant outputs."""

    def __init__(self, outputs, shape):
        super().__init__()
        self.outputs, self.shape = outputs, shape

    def forward(self, z, context):
        return self.outputs(z.flatten(1)).unflatten(1, self.shape)


def linear_gaussian(posterior, exact):
    """Return p(x|z) = N(W z, sigma^2), p(z) = N(0, I), a posterior that is exact or near, an image, and log p(x)."""
    w, sigma = torch.tensor([[1.0, 0.3], [-0.5, 0.8], [0.2, 0.9]], dtype=torch.float64), 0.7
    typed = ["model.z_dim=2", "likelihood=gaussian", f"likelihood.sigma={sigma}", "network.hidden_dims=[]"]
    model = build.model(check(compose(*typed, f"posterior={posterior}", *SMALL.get(posterior, []))), (1, 1, 3), 0)
    model = model.double()
    precision = torch.eye(2).double() + w.T @ w / sigma**2
    root = torch.linalg.cholesky(precision.inverse())
    lower = root if exact else torch.diag(root.diagonal() * 1.1)
    scale = 2 * lower.diagonal().log()

    def outputs(x):
        mean = x @ (precision.inverse() @ w.T / sigma**2).T
        rest = {"full": [(lower[1, 0] / 1.0).expand(len(x), 1)], "iaf": [x.new_ones(len(x), 4)]}.get(posterior, [])
        return torch.cat([mean.flip(1) if posterior == "iaf" else mean, scale.expand(len(x), 2), *rest], 1)

    model.encoder = Linear(outputs, (-1,))
    model.decoder = Linear(lambda z: z @ w.T, (1, 1, 3))
    x = torch.tensor([[[[0.5, 0.2, 0.9]]], [[[0.1, 0.7, 0.3]]]], dtype=torch.float64)
    marginal = MultivariateNormal(torch.zeros(3).double(), w @ w.T + sigma**2 * torch.eye(3).double())
    return model, x, marginal.log_prob(x.flatten(1))


@pytest.mark.parametrize("posterior", POSTERIORS)
def test_the_bound_meets_the_likelihood_of_a_linear_gaussian_model(posterior):
    model, x, exact = linear_gaussian(posterior, exact=posterior == "full")
    y = torch.zeros(2)
    terms = elbo_terms(model, x, y, some_noise(2, 2), Share((2,)), noise())
    if posterior == "full":  # the exact posterior leaves no gap
        q = model.encode(x, y)
        z, log_q = q.draw(some_noise(7, 2, 2))
        log_p = torch.stack([model.decode(each, y).log_prob(x) for each in z])
        torch.testing.assert_close(log_p + model.log_ratio(q, z, y, log_q), exact.expand(7, 2))
    else:
        log_p, log_ratio = terms.draws(2000, 2000)
        assert ((log_p + log_ratio).mean(0) < exact - 0.01).all(), "the posterior is not exact"
    log_p, log_ratio = terms.draws(5000, 5000)
    torch.testing.assert_close((log_p + log_ratio).logsumexp(0) - math.log(5000), exact, rtol=0, atol=0.03)


@pytest.mark.parametrize(("prior", "posterior"), PAIRS)
def test_gradients_are_those_of_finite_differences(prior, posterior):
    model = small_model(prior, posterior)
    x, y = batch()
    objective = build.partial(check(compose("objective=iwae", "objective.samples=3")), "objective")

    def loss():
        return compute_loss(model, objective, noise(1), NOW, x, y, some_noise(N, Z))[0]

    loss().backward()
    for name, weights in model.named_parameters():
        way = some_noise(*weights.shape, seed=9)
        with torch.no_grad():
            weights.add_(way, alpha=1e-6)
            above = loss()
            weights.sub_(way, alpha=2e-6)
            slope = ((above - loss()) / 2e-6).item()
            weights.add_(way, alpha=1e-6)
        assert (weights.grad * way).sum().item() == pytest.approx(slope, rel=1e-5, abs=1e-7), name
        assert weights.grad.any(), name


@pytest.mark.parametrize(("prior", "posterior"), PAIRS)
def test_the_terms_and_iwae_equal_a_direct_computation(prior, posterior):
    model = small_model(prior, posterior)
    x, y = batch()
    eps, more = some_noise(N, Z), torch.randn(6, N, Z, generator=noise(1), dtype=torch.float64)
    terms = elbo_terms(model, x, y, eps, Share((N,)), noise(1))
    log_p, log_ratio = terms.draws(7, 2)
    q = model.encode(x, y)
    for k, e in enumerate([eps, *more]):
        z = q.rsample(e)
        torch.testing.assert_close(log_p[k], model.decode(z, y).log_prob(x))
        log_q = q.draw(e)[1] if posterior == "iaf" else theirs(q).log_prob(z)
        torch.testing.assert_close(log_ratio[k], total(model.prior.log_prob(z, y), z) - log_q)
    torch.testing.assert_close(terms.reconstruction, -log_p[0])
    is_closed = prior in ("standard", "by_label") and posterior != "iaf"
    assert (terms.kl is not None) == (is_closed and posterior == "diagonal")
    if is_closed:
        p = standard_normal() if prior == "standard" else theirs(model.prior.of(y))
        torch.testing.assert_close(terms.kl_total, kl_divergence(theirs(q), p))
    else:
        torch.testing.assert_close(terms.kl_total, -log_ratio[0])
    torch.testing.assert_close(terms.neg_elbo, terms.reconstruction + terms.kl_total)


@pytest.mark.parametrize("sampling", ["stratified", "weighted"])
def test_beta_tc_takes_the_kl_of_a_full_covariance_apart(sampling):
    q = gaussian("full")
    z, log_q = q.draw(some_noise(N, Z))
    parts = decompose(q, z, 100, sampling)
    torch.testing.assert_close(sum(parts.values()), log_q - standard_normal().log_prob(z))
    if sampling == "weighted":
        joint = theirs(q).log_prob(z[:, None]).logsumexp(1)
        torch.testing.assert_close(parts["mutual_information"], log_q - joint + math.log(N * 100))
    terms = elbo_terms(small_model("standard", "full"), *batch(), some_noise(N, Z), Share((N,)), noise())
    loss, _ = beta_tc(terms, NOW, alpha=1.0, beta=1.0, gamma=1.0, sampling=sampling)
    torch.testing.assert_close(loss, terms.neg_elbo.mean())


def test_dip_vae_reads_the_covariance_of_a_full_posterior():
    terms = elbo_terms(small_model("standard", "full"), *batch(), some_noise(N, Z), Share((N,)), noise())
    means = torch.cov(terms.q.mean.T, correction=0)
    away = (means + theirs(terms.q).covariance_matrix.mean(0) - torch.eye(Z)).square()
    _, logged = dip_vae(terms, NOW, beta=1.0, variant="II", off_diagonal=2.0, diagonal=2.0)
    torch.testing.assert_close(logged["covariance_penalty"], 2 * away.sum())


def test_scale_and_range_of_a_posterior():
    outputs = torch.tensor([[0.0, 1.0, -3.0, 30.0]])
    for scale, expected in (("exp", outputs[:, 2:]), ("softplus", 2 * outputs[:, 2:].exp().log1p().log())):
        for options_of_range, limits in ((["null"], (-99, 99)), (["[-2,1]"], (-2, 1))):
            typed = (f"posterior.scale={scale}", f"posterior.log_var_range={options_of_range[0]}", "model.z_dim=2")
            q = build.partial(check(compose(*typed)), "posterior")(z_dim=2)(outputs)
            torch.testing.assert_close(q.log_var, expected.clamp(*limits))


def table():
    """Return the rows of "What composes with what": pairs of words, and the priors and posteriors of each."""
    section = readme_section("conf/README.md", "What composes with what")
    for line in [line for line in section.splitlines() if line.startswith("|")][2:]:
        words, *cells = (cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1])
        named = []
        for cell, every in zip(cells, (PRIORS, POSTERIORS), strict=True):
            names = re.findall(r"`(\w+)`", cell)
            named.append([name for name in every if (name in names) != cell.startswith("all")])
        yield words, list(itertools.product(*named))


def choose(prior, posterior, **chosen):
    """Return a configuration with these options of groups and keys of the model; each option is composed once."""
    cfg = compose("model=conditional", "network.hidden_dims=[6]", f"model.z_dim={Z}", "dataset=digits")
    for group, option in {"prior": prior, "posterior": posterior, **chosen}.items():
        if group in ("stochastic", "conditional"):
            cfg.model[group] = option
        else:
            cfg[group] = _option(group, option)
    return cfg


@functools.cache
def _option(group, option):
    return compose(f"{group}={option}", *SMALL.get(option, []))[group]


def refuses(prior, posterior, **chosen):
    """Return whether a configuration is refused, in one sentence that names both keys."""
    try:
        build.check(choose(prior, posterior, **chosen))
    except UserError as error:
        for message in str(error).splitlines():
            keys = re.match(r"([\w.]+)=(\w+) and ([\w.]+)=(\w+): ", message).groups()
            assert {keys[0].removeprefix("model."), keys[2]} & {"prior", "posterior"}, message
        return True
    return False


def trains(prior, posterior, **chosen):
    """Return whether a configuration trains: it is taken, and a step has a finite loss and gradients."""
    if refuses(prior, posterior, **chosen):
        return False
    config = build.check(choose(prior, posterior, **chosen))
    model = build.model(config, (1, 2, 3), 4)
    x, y = batch()
    objective = build.partial(config, "objective")
    loss, logged = compute_loss(model, objective, noise(), NOW, x.float(), y, some_noise(N, Z).float())
    loss.backward()
    gradients = [weights.grad for weights in model.parameters() if weights.grad is not None]
    assert all(torch.as_tensor(value).isfinite() for value in (loss, *logged.values(), *(g.sum() for g in gradients)))
    return all(gradient.isfinite().all() for gradient in gradients)


def has(words, prior, posterior):
    """Return what really is of a row of the table for this pair."""
    if found := re.findall(OBJECTIVES, words):
        each = {trains(prior, posterior, objective=first or other) for first, other in found}
        assert len(each) == 1
        return each.pop()
    if found := re.match(r"`model.(\w+)=false`", words):
        return trains(prior, posterior, **{found[1]: False})
    model = small_model(prior, posterior)
    q = model.encode(*batch())
    if "I(x; z)" in words:
        return has_information(model, q)
    if "aggregate" in words:
        with contextlib.suppress(UserError):
            return bool(aggregate(map_parameters(torch.detach, q), Y))
        return False
    kl = model.kl(q, Y)
    is_of_latents = kl is not None and kl.ndim == 2
    return is_of_latents if "each latent" in words else kl is not None


@pytest.mark.slow
@pytest.mark.parametrize(("words", "pairs"), list(table()))
def test_the_table_says_what_composes_with_what(words, pairs):
    assert [pair for pair in PAIRS if has(words, *pair)] == pairs


def test_the_table_has_every_objective():
    rows = " ".join(words for words, _ in table())
    assert {first or other for first, other in re.findall(OBJECTIVES, rows)} == set(options("objective"))


@pytest.mark.parametrize("posterior", POSTERIORS)
def test_densities_are_of_32_bits_where_networks_compute_with_16(posterior):
    """Each draw has the density that is said of it: what rounding adds to z it adds to log q(z|x) too."""
    model = small_model("flow", posterior).float()
    x, eps = batch()[0].float(), some_noise(N, Z).float()
    model.context = lambda y: torch.nn.functional.one_hot(y, 4).float()
    with torch.autocast("cpu", torch.bfloat16):
        q = model.encode(x, Y)
        z, log_q = draw(q, eps)
        found = [z, q.mean, model.prior.log_prob(z, Y), log_q if posterior == "iaf" else q.log_prob(z)]
        if posterior != "iaf":
            found += [q.log_prob_pairs(z), q.mean_covariance()]
    assert {values.dtype for values in found} == {torch.float32}
    if posterior != "iaf":  # outside of it they are the same to the bit
        again, _ = draw(q, eps)
        expected = [again, q.mean, found[2], q.log_prob(again), q.log_prob_pairs(again), q.mean_covariance()]
        assert all(map(torch.equal, found, expected))


RUNS = {
    "mixture iaf": (),
    "vamp full": ("model=conditional", "prior.init=data", "prior.components=20"),
    "flow diagonal": ("prior.hidden_dim=16",),
    "by_label full": ("model=conditional",),
    "vamp iaf": ("prior.components=10",),
}
QUICK_RUNS = ("flow diagonal", "vamp iaf")


@pytest.mark.parametrize(
    "pair", [pytest.param(pair, marks=() if pair in QUICK_RUNS else pytest.mark.slow) for pair in RUNS]
)
def test_a_run_is_used_as_any_other(pair, vae_command):
    """In bfloat16, averaged, exported, sampled in every way and evaluated."""
    prior, posterior = pair.split()
    typed = (f"prior={prior}", f"posterior={posterior}", "network.hidden_dims=[32]", "model.z_dim=4", *RUNS[pair])
    summary, folder = quick_run(*typed, "precision=bf16", "ema=0.9", "optimizer.lr=0.01", "epochs=3")
    model = vae_exp.load(folder)
    label = 3 if model.model.n_classes else None
    twin = vae_exp.load(model.export(folder / "weights.safetensors") or folder / "weights.safetensors")
    x = model.read_data().read_test().x
    assert torch.equal(model.sample(4, label, seed=1), twin.sample(4, label, seed=1))
    assert torch.equal(model.encode(x, label).mean, twin.encode(x, label).mean)
    if prior == "vamp":
        assert model.model.prior.encode.__self__ is model.model
    assert model.sample(3, label, sampler="gmm").shape == (3, 1, 8, 8)
    with pytest.raises(UserError, match="sampler=gmm") if posterior == "iaf" else contextlib.nullcontext():
        assert model.sample(3, label, sampler="aggregate").shape == (3, 1, 8, 8)

    code, said = vae_command("vae-evaluate", "checkpoint=run", "importance_samples=20", "repeats=3")
    assert code == 0, said
    result = json.loads(Path("run/best.test.json").read_text())
    assert result["neg_elbo"] == pytest.approx(summary["test/neg_elbo"], abs=8 * result["neg_elbo_noise_error"])
    assert result["nll"] < result["neg_elbo"]
    assert result["kl_per_dim"] == []
    assert re.search(r"active units +\d+ +of 4\nclassified|active units +\d+ +of 4\nKL of each latent +-", said)
    assert ("mutual_information" in result) == (posterior != "iaf" and prior != "by_label")
    assert ("label_accuracy" in result) == (label is not None)
    assert (result["kl_noise_error"] is None) == (pair == "by_label full"), "in closed form it has no noise"


@pytest.mark.slow
def test_scores_of_factors_read_the_means_of_any_posterior():
    typed = ("dataset=sprites", "dataset.train_size=200", "dataset.val_size=200", "dataset.test_size=500")
    summary, _ = quick_run(*typed, "prior=mixture", "posterior=iaf", "scores=[mig]", "max_steps=2", "model.z_dim=3")
    assert 0 <= summary["test/mig"] <= 1
    assert summary["test/active_units"] >= 0


@pytest.mark.slow
def test_a_sweep_over_both_tells_its_runs_apart(vae_command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")  # a narrow table shortens its names
    typed = ("prior=standard,mixture", "posterior=diagonal,iaf", "dataset=digits", "network.hidden_dims=[8]")
    limits = ("epochs=1", "max_steps=3", "device=cpu", "wandb.mode=disabled", "sweep.name=both")
    code, said = vae_command("vae-train", "-m", *typed, *limits)
    assert code == 0, said
    assert "4 of 4 jobs finished" in said
    assert [line for line in said.splitlines() if line.split()[:3] == ["run", "prior", "posterior"]]
    (row,) = [line for line in said.splitlines() if "prior-mixture_posterior-iaf" in line and "best.pt" not in line]
    assert {"mixture", "iaf"} <= set(row.split())
    code, said = vae_command("vae-compare", "latest")
    assert code == 0, said
    assert said.count("mixture") >= 2, said
    assert {"posterior", "prior"} <= set(said.split())
    assert made_name(check(compose("prior=mixture", "posterior=iaf"))) == "vanilla-mnist-iaf-mixture-z20"


@pytest.mark.slow
@pytest.mark.parametrize(("prior", "posterior"), [("vamp", "full"), ("mixture", "iaf"), ("flow", "diagonal")])
def test_a_compiled_step_has_the_same_losses(prior, posterior):
    typed = (f"prior={prior}", f"posterior={posterior}", "log_every_steps=1", *SMALL.get(prior, []))
    losses = []
    for compiled in ("false", "true"):
        _, folder = quick_run(*typed, f"compile={compiled}", folder=f"compile-{compiled}")
        losses.append([row["train/loss"] for row in metrics(folder) if "train/loss" in row])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
