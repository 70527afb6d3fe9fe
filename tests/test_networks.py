"""Networks: every one on every kind of image, with and without labels, or refused in a sentence."""

import math

import pytest
import torch
from torch import nn

from tests.conftest import compose
from vae_exp.config import build
from vae_exp.config.checks import check, options
from vae_exp.datasets import Split
from vae_exp.errors import UserError

SHAPES = [(1, 8, 8), (3, 9, 7), (1, 28, 28), (3, 32, 32), (3, 64, 64)]
SIDES = {"burgess": (32, 64), "locatello": (64,)}  # of the networks that take square images of some sizes only
SMALL = {
    "mlp": ("network.hidden_dims=[16]",),
    "gated_mlp": ("network.hidden_dims=[16]",),
    "conv": ("network.channels=8",),
    "resnet": ("network.channels=8",),
}
MODELS = ("vanilla", "conditional")


def make_model(network, shape, *overrides):
    torch.manual_seed(0)
    return build.model(check(compose(f"network={network}", *SMALL.get(network, ()), *overrides)), shape, 10)


def taken(network, shape):
    return network not in SIDES or (shape[1] == shape[2] and shape[1] in SIDES[network])


TAKEN = [(network, shape) for network in options("network") for shape in SHAPES if taken(network, shape)]
REFUSED = [(network, shape) for network in options("network") for shape in SHAPES if not taken(network, shape)]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("network", "shape"), TAKEN)
def test_images_come_back_in_their_shape_and_every_parameter_learns(network, shape, model):
    vae = make_model(network, shape, f"model={model}", "model.z_dim=3")
    for n in (1, 3):
        x, y = torch.rand(n, *shape), torch.arange(n)
        q = vae.encode(x, y)
        p = vae.decode(q.rsample(), y)
        assert q.mean.shape == q.log_var.shape == (n, 3)
        assert p.mean.shape == x.shape
    (q.kl_to_prior().sum() - p.log_prob(x).sum()).backward()
    assert [name for name, weights in vae.named_parameters() if not weights.grad.any()] == []


@pytest.mark.parametrize(("network", "shape"), REFUSED)
def test_a_size_that_a_network_cannot_take_is_one_sentence(network, shape):
    with pytest.raises(UserError, match=f"^network={network}: .*not {shape[1]}x{shape[2]}. Use network=conv") as error:
        make_model(network, shape)
    assert "\n" not in str(error.value)


def test_a_refusal_ends_a_run_with_one_message(vae_train):
    code, said = vae_train("network=burgess", "dataset=digits")
    assert code == 1
    assert said.splitlines()[0].startswith("vae-train: network=burgess: ")
    assert "Traceback" not in said


@pytest.mark.parametrize("network", ["conv", "resnet"])
def test_images_too_small_to_be_halved_are_refused(network):
    with pytest.raises(UserError, match=f"network={network}: images of 40x5 are too small .* Use network=mlp"):
        make_model(network, (1, 40, 5))
    assert make_model(network, (1, 40, 6))


@pytest.mark.parametrize("network", options("network"))
def test_the_label_reaches_the_encoder_and_the_decoder(network):
    x, z, y = torch.rand(1, 3, 64, 64).repeat(2, 1, 1, 1), torch.zeros(2, 20), torch.tensor([3, 7])
    for model, same in (("conditional", False), ("vanilla", True)):
        vae = make_model(network, (3, 64, 64), f"model={model}")
        assert torch.equal(*vae.encode(x, y).mean) is same
        assert torch.equal(*vae.decode(z, y).mean) is same


@pytest.mark.parametrize("network", options("network"))
def test_an_image_does_not_see_its_batch(network):
    vae = make_model(network, (3, 64, 64))
    x, z, y = torch.rand(4, 3, 64, 64), torch.randn(4, 20), torch.zeros(4, dtype=torch.long)
    torch.testing.assert_close(vae.encode(x, y).mean[:1], vae.encode(x[:1], y[:1]).mean)
    torch.testing.assert_close(vae.decode(z, y).mean[:1], vae.decode(z[:1], y[:1]).mean)


@pytest.mark.parametrize("network", ["conv", "resnet"])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 11, 37)])
def test_every_pixel_is_seen_and_drawn(network, shape):
    vae = make_model(network, shape)
    x, y = torch.rand(1, *shape, requires_grad=True), torch.zeros(1, dtype=torch.long)
    (seen,) = torch.autograd.grad(vae.encode(x, y).mean.square().sum(), x)
    assert seen.all()
    drawn = vae.decode(torch.randn(50, 20), torch.zeros(50, dtype=torch.long)).mean
    assert (drawn.std(0) > 0).all()


def layers(network):
    """(inputs, outputs) of linear layers, and with the kernel and the stride of convolutions, in order."""
    found = []
    for layer in network.modules():
        if isinstance(layer, nn.Linear):
            found.append((layer.in_features, layer.out_features))
        elif isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            found.append((layer.in_channels, layer.out_channels, *layer.kernel_size[:1], *layer.stride[:1]))
    return found


def test_burgess_is_the_papers_network():
    vae = make_model("burgess", (1, 64, 64), "model.z_dim=10")
    convolutions = [(1, 32, 4, 2), (32, 32, 4, 2), (32, 32, 4, 2), (32, 32, 4, 2)]
    assert layers(vae.encoder) == [*convolutions, (512, 256), (256, 256), (256, 20)]
    mirrored = [(32, 32, 4, 2), (32, 32, 4, 2), (32, 32, 4, 2), (32, 1, 4, 2)]
    assert layers(vae.decoder) == [(10, 256), (256, 256), (256, 512), *mirrored]
    assert sum(p.numel() for p in vae.parameters()) == 252_052 + 249_953
    small = make_model("burgess", (3, 32, 32), "model.z_dim=10")
    assert layers(small.encoder)[:4] == [(3, 32, 4, 2), (32, 32, 4, 2), (32, 32, 4, 2), (512, 256)]
    assert layers(small.decoder)[2:] == [(256, 512), (32, 32, 4, 2), (32, 32, 4, 2), (32, 3, 4, 2)]


def test_locatello_is_the_papers_network():
    vae = make_model("locatello", (3, 64, 64), "model.z_dim=10")
    convolutions = [(3, 32, 4, 2), (32, 32, 4, 2), (32, 64, 2, 2), (64, 64, 2, 2)]
    assert layers(vae.encoder) == [*convolutions, (1024, 256), (256, 20)]
    mirrored = [(64, 64, 4, 2), (64, 32, 4, 2), (32, 32, 4, 2), (32, 3, 4, 2)]
    assert layers(vae.decoder) == [(10, 256), (256, 1024), *mirrored]


@pytest.mark.parametrize("network", ["burgess", "locatello"])
def test_the_papers_activations_are_relu_between_layers_and_none_at_the_ends(network):
    vae = make_model(network, (3, 64, 64))
    for half in (vae.encoder, vae.decoder):
        kinds = [type(m) for m in half.modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.ConvTranspose2d | nn.ReLU)]
        assert kinds[1::2] == [nn.ReLU] * (len(kinds) // 2)
        assert kinds[-1] is not nn.ReLU


def test_he_keeps_the_size_of_what_passes_through_each_layer():
    """He et al. 2015: the outputs of a layer are as large as the inputs of its ReLU, of a transposed one too."""
    vae = make_model("conv", (3, 32, 32), "network.init=he", "network.channels=64")
    kinds = [nn.Linear, nn.Conv2d, nn.ConvTranspose2d]
    for kind in kinds:
        layer = next(part for part in vae.modules() if isinstance(part, kind) and part.weight.shape[1] >= 64)
        shape = (64, layer.in_features) if kind is nn.Linear else (4, layer.in_channels, 16, 16)
        with torch.no_grad():
            inside = layer(torch.randn(shape).relu()) - layer.bias.view(-1, *[1] * (len(shape) - 2))
        inside = inside if kind is nn.Linear else inside[..., 2:-2, 2:-2]
        assert inside.square().mean().item() == pytest.approx(1, rel=0.1), kind


@pytest.mark.parametrize("network", options("network"))
def test_a_network_gives_each_posterior_as_many_numbers_as_it_takes(network):
    x, y = torch.rand(2, 3, 64, 64), torch.zeros(2, dtype=torch.long)
    for posterior, outputs in (("diagonal", 6), ("full", 9), ("iaf", 70)):
        vae = make_model(network, (3, 64, 64), f"posterior={posterior}", "model.z_dim=3")
        assert vae.encoder(x, vae.context(y)).shape == (2, outputs)
        assert vae.encode(x, y).rsample().shape == (2, 3)


@pytest.mark.parametrize("network", options("network"))
def test_a_network_gives_each_likelihood_as_many_numbers_as_it_takes(network):
    z, y = torch.rand(2, 3), torch.zeros(2, dtype=torch.long)
    for scale, channels in (("learned", 3), ("by_pixel", 6)):
        typed = ("likelihood=laplace", f"likelihood.scale={scale}", "model.z_dim=3")
        vae = make_model(network, (3, 64, 64), *typed)
        assert vae.decoder(z, vae.context(y)).shape == (2, channels, 64, 64)
        assert vae.decode(z, y).mean.shape == (2, 3, 64, 64)


def test_gated_layers_are_those_of_their_paper():
    """a * sigmoid(b), of one linear layer each, and weights of N(0, 2 / inputs) with init=he."""
    vae = make_model("gated_mlp", (1, 28, 28), "network.hidden_dims=[300,200]", "network.init=he")
    assert layers(vae.encoder) == [(784, 600), (300, 400), (200, 40)]
    assert layers(vae.decoder) == [(20, 400), (200, 600), (300, 784)]
    for layer in (part for part in vae.modules() if isinstance(part, nn.Linear)):
        assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / layer.in_features), rel=0.05)
    first, gate = vae.encoder.layers[:2]
    x = torch.rand(3, 784)
    a, b = (x @ first.weight.T + first.bias).chunk(2, dim=1)
    torch.testing.assert_close(gate(first(x)), a * b.sigmoid())


def test_a_network_may_change_its_lists_and_the_configuration_stays():
    config = check(compose("dataset=digits", "network.hidden_dims=[32,16]"))
    build.partial(config, "network").keywords["hidden_dims"].reverse()  # as published code likes to
    assert config["network"]["hidden_dims"] == [32, 16]


@pytest.mark.slow
def test_glorot_begins_at_the_mean_image_and_with_the_spread_of_its_paper():
    config = check(compose("network.init=glorot"))
    images = torch.randint(0, 256, (50, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images[:, :, 0] = 0
    torch.manual_seed(0)
    model = build.model(config, (1, 8, 8), 0, Split(images, torch.zeros(50, dtype=torch.long)))
    for layer in (part for part in model.modules() if isinstance(part, torch.nn.Linear)):
        widest = math.sqrt(6 / sum(layer.weight.shape))
        assert 0.95 * widest < layer.weight.abs().max() <= widest
    drawn = model.decode(torch.zeros(1, 20), torch.zeros(1, dtype=torch.long)).mean[0]
    expected = (images.float().mean(0) / 255).clamp(0.001, 0.999)
    torch.testing.assert_close(drawn, expected, atol=1e-5, rtol=0)
    for likelihood in ("gaussian", "continuous_bernoulli", "laplace", "discretized_logistic"):
        typed = ("network.init=glorot", f"likelihood={likelihood}")
        other = build.model(check(compose(*typed)), (1, 8, 8), 0, Split(images, torch.zeros(50)))
        drawn = other.decode(torch.zeros(1, 20), torch.zeros(1, dtype=torch.long)).mean[0]
        least = 0.0626 if likelihood == "continuous_bernoulli" else 0  # its logits are limited
        torch.testing.assert_close(drawn, expected.clamp(least, 1 - least), atol=1e-3, rtol=0)


def test_glorot_gives_each_channel_its_mean_where_the_last_layer_is_a_convolution():
    images = torch.randint(0, 256, (50, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images[:, 1] //= 4
    model = build.model(
        check(compose("network=conv", "network.init=glorot")), (3, 8, 8), 0, Split(images, torch.zeros(50))
    )
    bias = [part for part in model.decoder.modules() if isinstance(part, torch.nn.ConvTranspose2d | torch.nn.Conv2d)][
        -1
    ].bias
    torch.testing.assert_close(bias.sigmoid(), images.float().mean((0, 2, 3)) / 255)
