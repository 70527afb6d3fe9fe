"""Distributions, objectives and networks against the formulas and torch.distributions."""

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Normal, kl_divergence

from tests.conftest import compose
from vae_exp.config import build
from vae_exp.config.checks import check
from vae_exp.distributed import Share
from vae_exp.distributions import DiagonalGaussian, Point
from vae_exp.errors import UserError
from vae_exp.objectives import elbo
from vae_exp.schedules import cosine, milestones, step
from vae_exp.terms import Progress, Terms, elbo_terms


def at(epoch):
    return Progress(step=round(10 * epoch), steps_per_epoch=10, epochs=20, train_size=100)


def make_model(*overrides, x_shape=(1, 28, 28), n_classes=10, seed=0):
    torch.manual_seed(seed)
    return build.model(check(compose(*overrides)), x_shape, n_classes)


def one_draw(model, x, y, eps):
    return elbo_terms(model, x, y, eps, Share((len(x),)), torch.Generator())


def test_kl_is_that_of_torch_distributions():
    q = DiagonalGaussian(torch.randn(7, 5), torch.randn(7, 5))
    expected = kl_divergence(Normal(q.mean, (0.5 * q.log_var).exp()), Normal(0.0, 1.0))
    torch.testing.assert_close(q.kl_to_prior(), expected)
    assert DiagonalGaussian(torch.zeros(1, 5), torch.zeros(1, 5)).kl_to_prior().sum() == 0


def test_rsample_has_the_mean_and_the_variance_of_q():
    q = DiagonalGaussian(torch.full((200_000, 1), 3.0), torch.full((200_000, 1), 2.0).log() * 2)
    z = q.rsample(torch.Generator().manual_seed(0))
    assert z.mean().item() == pytest.approx(3, abs=0.02)
    assert z.std().item() == pytest.approx(2, abs=0.02)


def test_rsample_is_differentiable_in_both_parameters():
    mean, log_var = torch.zeros(1, 1, requires_grad=True), torch.zeros(1, 1, requires_grad=True)
    noise = torch.randn(1, 1, generator=torch.Generator().manual_seed(3))
    DiagonalGaussian(mean, log_var).rsample(torch.Generator().manual_seed(3)).backward()
    assert mean.grad.item() == 1
    assert log_var.grad.item() == pytest.approx(0.5 * noise.item())


def test_an_autoencoder_has_a_point_for_a_code_and_no_prior():
    model = make_model("model=autoencoder")
    x, y = torch.rand(2, 1, 28, 28), torch.zeros(2, dtype=torch.long)
    q = model.encode(x, y)
    assert isinstance(q, Point)
    assert torch.equal(q.rsample(torch.Generator().manual_seed(1)), q.rsample(torch.Generator().manual_seed(2)))
    terms = one_draw(model, x, y, torch.zeros(2, 20))
    assert torch.equal(terms.neg_elbo, terms.reconstruction)
    torch.testing.assert_close(q.mean, make_model().encode(x, y).mean)
    with pytest.raises(UserError, match="no prior"):
        model.prior_sample(3)


def test_beta_one_is_the_negative_elbo_and_beta_weighs_only_the_kl():
    terms = Terms(torch.rand(6), torch.rand(6, 3))
    loss, logged = elbo(terms, at(0), beta=1.0)
    assert logged == {"kl_weight": 1}
    torch.testing.assert_close(loss, terms.neg_elbo.mean())
    loss, _ = elbo(terms, at(9), beta=4.0, warmup_epochs=2)
    torch.testing.assert_close(loss, (terms.reconstruction + 4 * terms.kl.sum(1)).mean())


@pytest.mark.parametrize(("epoch", "expected"), [(0, 0), (0.5, 1), (1.5, 3), (2, 4), (7, 4)])
def test_the_kl_weight_rises_linearly_to_beta(epoch, expected):
    _, logged = elbo(Terms(torch.rand(2), torch.rand(2, 3)), at(epoch), beta=4.0, warmup_epochs=2)
    assert logged == {"kl_weight": expected}


def test_cosine_rises_and_falls():
    def lr(epoch):
        return cosine(epoch, 10, warmup_epochs=2, final_factor=0.1)

    assert [lr(0), lr(1), lr(2), lr(10)] == pytest.approx([0, 0.5, 1, 0.1])
    assert lr(6) == pytest.approx(0.55)


def test_step_decays_after_each_span():
    assert [step(e, 9, every_epochs=2, gamma=0.1) for e in (0, 1.9, 2, 4.5)] == pytest.approx([1, 1, 0.1, 0.01])


def test_milestones_decay_once_each():
    assert [milestones(e, 9, at_epochs=[2, 5], gamma=0.1) for e in (1.9, 2, 4.9, 8)] == pytest.approx(
        [1, 0.1, 0.1, 0.01]
    )


def test_the_loss_is_the_tutorials_divided_by_the_batch():
    """The tutorial's model written down with its own layers, on the same weights and the same noise."""
    model = make_model()
    first, head = model.encoder.layers[0], model.encoder.layers[2]
    x, y = torch.rand(5, 1, 28, 28), torch.zeros(5, dtype=torch.long)
    hidden = F.relu(F.linear(x.view(-1, 784), first.weight, first.bias))
    mu = F.linear(hidden, head.weight[:20], head.bias[:20])
    logvar = F.linear(hidden, head.weight[20:], head.bias[20:])
    eps = torch.randn(5, 20, generator=torch.Generator().manual_seed(1))
    recon = torch.sigmoid(model.decoder.layers(mu + eps * torch.exp(0.5 * logvar)))
    bce = F.binary_cross_entropy(recon, x.view(-1, 784), reduction="sum")
    kld = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())

    terms = one_draw(model, x, y, eps)
    loss, _ = elbo(terms, at(0), beta=1.0)
    torch.testing.assert_close(terms.reconstruction.sum(), bce)
    torch.testing.assert_close(terms.kl.sum(), kld)
    torch.testing.assert_close(loss, (bce + kld) / 5)


def test_the_unconditional_model_has_the_tutorials_parameters():
    assert sum(p.numel() for p in make_model().parameters()) == 652_824


def test_labels_of_width_zero_are_the_vanilla_model_parameter_by_parameter():
    vanilla, widthless = make_model(), make_model("model=conditional", n_classes=0)
    for (name, a), (other, b) in zip(vanilla.named_parameters(), widthless.named_parameters(), strict=True):
        assert name == other
        assert torch.equal(a, b)


def test_a_conditional_model_sees_the_label_on_both_sides():
    model = make_model("model=conditional")
    x, z = torch.rand(2, 1, 28, 28)[:1].repeat(2, 1, 1, 1), torch.zeros(2, 20)
    y = torch.tensor([3, 7])
    assert not torch.equal(*model.encode(x, y).mean)
    assert not torch.equal(*model.decode(z, y).mean)
    vanilla = make_model()
    assert torch.equal(*vanilla.encode(x, y).mean)
    assert torch.equal(*vanilla.decode(z, y).mean)


@pytest.mark.parametrize("hidden", ["[]", "[30]", "[64,32,16]"])
def test_an_mlp_is_mirrored_at_any_depth(hidden):
    model = make_model(f"network.hidden_dims={hidden}", x_shape=(3, 9, 7))
    x, y = torch.rand(2, 3, 9, 7), torch.zeros(2, dtype=torch.long)
    assert model.decode(model.encode(x, y).mean, y).mean.shape == x.shape
