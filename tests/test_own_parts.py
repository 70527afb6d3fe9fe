"""Parts of a user's own that return something else than they must: one message, before anything is opened."""

import sys
from pathlib import Path

import pytest

from tests.conftest import quick_run
from vae_exp.errors import UserError

QUICKLY = ("dataset=digits", "epochs=1", "wandb.mode=disabled", "device=cpu", "hydra.run.dir=run")
CODE = """
import torch
from torch import nn
from vae_exp import datasets, likelihoods, networks, objectives, posteriors
from vae_exp.datasets import Source, Split

def sizes(x_shape, z_dim, context_dim, **_):
    return networks.mlp(x_shape, z_dim, context_dim, [8], "relu")

def half(x_shape, z_dim, context_dim, **_):
    return networks.mlp(x_shape, z_dim // 2, context_dim, [8], "relu")[0], sizes(x_shape, z_dim, context_dim)[1]

def blind(x_shape, z_dim, context_dim, **_):
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(x_shape[1] * x_shape[2], 2 * z_dim))
    return encoder, sizes(x_shape, z_dim, context_dim)[1]

def narrow(x_shape, z_dim, context_dim, **_):
    return sizes(x_shape, z_dim, context_dim)[0], sizes((1, 4, 4), z_dim, context_dim)[1]

class Two(nn.Module):
    def forward(self, x, context):
        return x.flatten(1)[:, :3], x.flatten(1)[:, :3]

def pair(x_shape, z_dim, context_dim, **_):
    return Two(), sizes(x_shape, z_dim, context_dim)[1]

def one(x_shape, z_dim, context_dim, **_):
    return sizes(x_shape, z_dim, context_dim)[0]

def none(x_shape, z_dim, context_dim, **_):
    pass

class Nothing:
    def __init__(self, outputs):
        self.outputs = outputs

class Unsummed(Nothing):
    mean = property(lambda self: self.outputs)
    def log_prob(self, x):
        return -(x - self.outputs).square()

def bare():
    return Nothing

def unsummed():
    return Unsummed

def no_function():
    return 3

class Prior:
    def __init__(self, z_dim):
        self.z_dim = z_dim

    def log_prob(self, z, y):
        return -z.square()

    def sample(self, y, noise, temperature):
        return torch.zeros(len(y), self.z_dim)

class Pairs(Prior):
    def log_prob(self, z, y):
        return -z.square().sum()

class Few(Prior):
    def sample(self, y, noise, temperature):
        return torch.zeros(self.z_dim)

def prior(z_dim, **_):
    return Prior(z_dim)

def pairs(z_dim, **_):
    return Pairs(z_dim)

def few(z_dim, **_):
    return Few(z_dim)

class Divergent(Prior):
    def kl(self, q, y):
        return q.mean.mean()

def divergent(z_dim, **_):
    return Divergent(z_dim)

def family(**_):
    return Nothing

def plain(**_):
    return Unsummed

def half_codes(z_dim, **_):
    return posteriors.diagonal(z_dim // 2)

def numbers(**_):
    return 3

def halves(**_):
    def likelihood(outputs): ...
    likelihood.outputs_per_pixel = 2.0
    return likelihood

def two_outputs(x_shape, z_dim, context_dim, **_):
    return sizes(x_shape, z_dim, context_dim)

def each_kl(terms, now, **_):
    return (terms.reconstruction + terms.kl.sum(1)).mean(), {}

def loss_alone(terms, now, **_):
    return terms.neg_elbo.mean()

def a_loss_each(terms, now, **_):
    return terms.neg_elbo, {}

def no_tensor(terms, now, **_):
    return terms.neg_elbo.mean().item(), {}

def detached(terms, now, **_):
    return terms.neg_elbo.mean().detach(), {}

def logs_all(terms, now, **_):
    return terms.neg_elbo.mean(), {"kl_each": terms.kl}

def nan_loss(terms, now, **_):
    return terms.neg_elbo.mean() * float("nan"), {}

def nan(x_shape, z_dim, context_dim, **_):
    encoder, decoder = sizes(x_shape, z_dim, context_dim)
    nn.init.constant_(encoder.layers[-1].bias, float("nan"))
    return encoder, decoder

def late(x_shape, z_dim, context_dim, **_):
    encoder, decoder = sizes(x_shape, z_dim, context_dim)
    encoder.register_forward_hook(lambda layer, inputs, output: output.nothing if layer.training else None)
    return encoder, decoder

def wide(x_shape, z_dim, context_dim, **_):
    encoder, decoder = sizes(x_shape, z_dim, context_dim)
    nn.init.constant_(encoder.layers[-1].bias, 1000.0)
    return encoder, decoder

def buggy(terms, now, **_):
    return terms.neg_elbo.mean() / 0 + 1 / (now.step - now.step), {}

def deep(terms, now, depth=12, **_):
    return deeper(terms, now, depth)

def deeper(terms, now, depth):
    return deep(terms, now, depth - 1) if depth else 1 / 0

def ours(terms, now, **_):
    from vae_exp.objectives import elbo
    return elbo(None, now, beta=1.0)

X, Y = torch.zeros(20, 1, 8, 8, dtype=torch.uint8), torch.arange(20) % 2

def made(x=X, y=Y, names=("a", "b"), val=None, test=None):
    return Source("own", Split(x, y), lambda: test or Split(X, Y), list(names), val)

DATA = {
    "nothing": lambda: None,
    "arrays": lambda: (X, Y),
    "floats": lambda: made(X.float()),
    "short": lambda: made(y=Y[:7]),
    "beyond": lambda: made(y=Y + 1),
    "below": lambda: made(y=Y - 1),
    "flat": lambda: made(X.flatten(1)),
    "empty": lambda: made(X[:0], Y[:0]),
    "halves": lambda: made(y=Y.float()),
    "no_val": lambda: made(val=Split(X[:0], Y[:0])),
    "other_val": lambda: made(val=Split(X[:, :, 1:], Y)),
    "numbers": lambda: made(names=(0, 1)),
    "unlabelled": lambda: Split(X),
    "bad_test": lambda: made(test=Split(X, Y + 9)),
}

def dataset(name, **_):
    return DATA[name]()
"""
SOURCE = "dataset._target_=mine.dataset: of the Source that it returned, "
WRONG = [
    ("network", "half", "network._target_=mine.half: its encoder must return [B, 2 model.z_dim]"),
    ("network", "blind", "network._target_=mine.blind: its encoder must have forward(images or codes, context)"),
    ("network", "half", "[2, 20] here, not torch.Tensor of float32 [2, 10]"),
    ("network", "narrow", "network._target_=mine.narrow: its decoder must return a number for each pixel"),
    ("network", "narrow", "[2, 1, 8, 8] here, not torch.Tensor of float32 [2, 1, 4, 4]"),
    ("network", "pair", "not (torch.Tensor of float32 [2, 3], torch.Tensor of float32 [2, 3])"),
    ("network", "one", "network._target_=mine.one: it must return two modules, an encoder and a decoder"),
    ("network", "none", "and returned NoneType"),
    ("likelihood", "bare", "likelihood._target_=mine.bare: it must return"),
    ("likelihood", "bare", "has no log_prob and no mean"),
    (
        "likelihood",
        "unsummed",
        "log_prob(x) must be summed over pixels, [B]: [2] here, not torch.Tensor of float32 [2, 1, 8, 8]",
    ),
    (
        "likelihood",
        "halves",
        "likelihood._target_=mine.halves: its outputs_per_pixel must be a whole number, 1 or more, not 2.0",
    ),
    ("likelihood", "no_function", "likelihood._target_=mine.no_function: it must return a function"),
    ("prior", "numbers", "prior._target_=mine.numbers: what it returns has no log_prob"),
    ("prior", "pairs", "log_prob must be [B], or [B, Z] where it is of each latent: [2] or [2, 20] here"),
    ("prior", "divergent", "kl must be [B], or [B, Z] where it is of each latent"),
    ("prior", "few", "prior._target_=mine.few: sample(y, noise, temperature) must return codes [B, Z]: [2, 20] here"),
    ("posterior", "numbers", "posterior._target_=mine.numbers: it must return a function of the encoder's outputs"),
    ("posterior", "family", "posterior._target_=mine.family: it must make of the encoder's outputs a dataclass"),
    ("posterior", "plain", "a dataclass with mean, rsample(noise) and log_prob(z), not mine.Unsummed"),
    ("posterior", "half_codes", "mean must be codes, [B, Z]: [2, 20] here, not torch.Tensor of float32 [2, 10]"),
    (
        "objective",
        "each_kl prior=mixture",
        "objective._target_=mine.each_kl: terms.kl is None, because this prior or posterior gives no KL of each latent",
    ),
    (
        "network",
        "two_outputs posterior=full",
        "vae_exp.posteriors.full takes 65 numbers of an image, and an encoder gives 2 model.z_dim",
    ),
    (
        "network",
        "two_outputs likelihood=laplace likelihood.scale=by_pixel",
        "vae_exp.likelihoods.laplace takes 2 numbers of a pixel, and a decoder gives one",
    ),
    ("objective", "loss_alone", "objective._target_=mine.loss_alone: it must return the loss and a dict"),
    (
        "objective",
        "a_loss_each",
        "the loss must be one number, a tensor of shape [] such as a mean, not torch.Tensor of float32 [2]",
    ),
    (
        "objective",
        "no_tensor",
        "the loss must be one number, a tensor of shape [] such as a mean, not float",
    ),
    ("objective", "detached", "no gradient leads from the loss to the weights"),
    ("objective", "logs_all", "what it logs as kl_each must be one number"),
    ("objective", "nan_loss", "objective._target_=mine.nan_loss: the loss must be one number"),
    ("objective", "nan_loss", "NaN or infinity for the first two training images, before any step"),
    ("network", "nan", "network._target_=mine.nan: its encoder must return [B, 2 model.z_dim]"),
    ("network", "nan", "it holds NaN or infinity for the first two training images, before any step"),
    (
        "network",
        "wide",
        "network._target_=mine.wide: the variances of its posterior must be [B, Z], and it holds NaN or infinity",
    ),
    (
        "dataset",
        "nothing",
        "dataset._target_=mine.dataset: it must return a vae_exp.datasets.Source, and returned NoneType",
    ),
    ("dataset", "arrays", "and returned (torch.Tensor of uint8 "),
    (
        "dataset",
        "floats",
        SOURCE + "the images of train must be a tensor of uint8, 0 to 255, not torch.Tensor of float32",
    ),
    ("dataset", "short", SOURCE + "the labels of train must be a tensor of int64 [N], one for each of 20"),
    ("dataset", "beyond", SOURCE + "the labels of train go from 1 to 2, and there are 2 class_names"),
    ("dataset", "below", SOURCE + "the labels of train go from -1 to 0"),
    ("dataset", "flat", SOURCE + "the images of train must have the shape [N, C, H, W], not [20, 64]"),
    ("dataset", "empty", SOURCE + "train is empty"),
    (
        "dataset",
        "halves",
        SOURCE
        + "the labels of train must be a tensor of int64 [N], one for each of 20, not torch.Tensor of float32 [20]",
    ),
    ("dataset", "no_val", SOURCE + "val is empty; val=None"),
    ("dataset", "other_val", SOURCE + "the images of val are (1, 7, 8), and those of train (1, 8, 8)"),
    ("dataset", "numbers", SOURCE + "class_names must be a list of text"),
]


@pytest.fixture(autouse=True)
def as_in_a_new_process(monkeypatch):
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    sys.modules.pop("mine", None)  # another test's
    Path("mine.py").write_text(CODE)
    yield
    sys.modules.pop("mine", None)


def own(group, name):
    if group == "dataset":
        return ["dataset._target_=mine.dataset", f"dataset.name={name}", "dataset.val_size=4"]
    name, *more = name.split()
    return [f"{group}._target_=mine.{name}", *more, *(["model.z_dim=10"] if group == "network" else [])]


@pytest.mark.parametrize(("group", "name", "message"), WRONG)
def test_what_a_part_must_return_is_one_message_before_the_run_is_opened(group, name, message):
    with pytest.raises(UserError) as error:
        quick_run(*own(group, name))
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert list(Path("run").glob("*")) == []


def test_a_test_split_is_looked_at_when_it_is_read(vae_train):
    code, said = vae_train(*QUICKLY, *own("dataset", "bad_test"))
    assert code == 1
    assert SOURCE + "the labels of test go from 9 to 10, and there are 2 class_names" in said
    assert (Path("run") / "best.pt").exists()


BUGS = [
    ("objective", "buggy", "in buggy", "ZeroDivisionError: division by zero"),
    ("objective", "deep", "in deeper", "ZeroDivisionError: division by zero"),
    ("objective", "ours", "in elbo", "AttributeError: 'NoneType' object has no attribute 'reconstruction'"),
    ("network", "late", "in <lambda>", "AttributeError: 'Tensor' object has no attribute 'nothing'"),
    ("dataset", "unlabelled", "in <lambda>", "TypeError: Split.__init__() missing 1 required positional argument: 'y'"),
]


@pytest.mark.parametrize(("group", "name", "frame", "error"), BUGS)
def test_a_bug_inside_a_part_shows_its_own_frames_and_what_they_called_of_ours(vae_train, group, name, frame, error):
    code, said = vae_train(*QUICKLY, *own(group, name))
    assert code == 1
    problem = said[said.index("vae-train: code of your own failed:") :]
    assert frame in problem
    assert problem.rstrip().endswith(error)
    files = [line for line in problem.splitlines() if line.startswith("  File ")]
    assert "mine.py" in files[0]
    assert (len(files), "(22 more calls)" in problem) == (4, True) if name == "deep" else len(files) <= 4
    assert ["mine.py" in line for line in files] == [True] * (len(files) - (name == "ours")) + [False] * (
        name == "ours"
    )


def test_parts_that_return_what_they_must_train(vae_train):
    for part in (own("network", "sizes"), own("prior", "prior")):
        summary, _ = quick_run(*part, "replace=true")
        assert summary["state"] == "finished"


def test_more_classes_than_labels_leave_no_label_out(vae_train):
    code, said = vae_train(*QUICKLY, *own("dataset", "beyond"), "dataset.n_classes=2", "model=conditional")
    assert code == 1
    assert "labels of train go from 1 to 2" in said
