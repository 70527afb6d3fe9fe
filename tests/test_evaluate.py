"""vae-evaluate and vae_exp.load: numbers against closed forms, and what they leave behind."""

import functools
import json
import logging
import math
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hydra.core.hydra_config import HydraConfig
from safetensors import safe_open
from torch import nn
from torch.distributions import MultivariateNormal

import vae_exp
from tests import hooks
from tests.conftest import MNIST, compose, full_disk, needs_mnist, quick_run, readme_python, recorded
from tests.conftest import metrics as logged
from vae_exp import inference
from vae_exp.config import build
from vae_exp.config.checks import CONF_DIR, check
from vae_exp.datasets.splits import Split
from vae_exp.distributions import DiagonalGaussian
from vae_exp.errors import UserError
from vae_exp.evaluation import metrics
from vae_exp.evaluation import reference_classifier as readback
from vae_exp.evaluation.reference_classifier import train_classifier
from vae_exp.evaluation.results import show_side_by_side
from vae_exp.likelihoods import Gaussian
from vae_exp.priors import Standard
from vae_exp.train import train
from vae_exp.training import checkpoints
from vae_exp.vae import VAE

SIGMA = 0.3


class Linear(nn.Module):
    """Encoder or decoder: an affine map of what it is given, and for the encoder a fixed log variance beside it."""

    def __init__(self, weight, bias, log_var=None, shape=None):
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), bias
        self.log_var, self.shape = log_var, shape

    def forward(self, x, context):
        out = x.flatten(1) @ self.weight.T + self.bias
        return out.view(-1, *self.shape) if self.shape else torch.cat([out, self.log_var.expand_as(out)], dim=1)


@pytest.fixture(scope="module")
def linear_gaussian():
    """p(z) = N(0, I), p(x|z) = N(Wz + b, sigma^2 I): log p(x) is that of N(b, WW' + sigma^2 I).

    The posterior is known too; q is a little beside it and wider, so that the bound has something to gain.
    """
    noise = torch.Generator().manual_seed(0)
    weight, bias = 0.3 * torch.randn(6, 2, generator=noise), torch.rand(6, generator=noise)
    covariance = torch.linalg.inv(torch.eye(2) + weight.T @ weight / SIGMA**2)
    to_mean = covariance @ weight.T / SIGMA**2
    encoder = Linear(to_mean, 0.3 - to_mean @ bias, (1.5 * covariance.diagonal()).log())
    decoder = Linear(weight, bias, shape=(1, 2, 3))
    model = VAE(encoder, decoder, lambda mean: Gaussian(mean, SIGMA), z_dim=2, n_classes=0)
    x = torch.randint(0, 256, (200, 1, 2, 3), dtype=torch.uint8, generator=noise)
    marginal = MultivariateNormal(bias, weight @ weight.T + SIGMA**2 * torch.eye(6))
    exact = marginal.log_prob((x.float() / 255).flatten(1)).double().mean().item()
    return model, Split(x, torch.zeros(200, dtype=torch.long)), exact


def bound(model, split, k, seed=0, batch_size=1000):
    noise = torch.Generator().manual_seed(seed)
    return metrics.importance_bound(model, split, k, noise, batch_size)


def test_the_bound_rises_to_the_known_log_likelihood(linear_gaussian):
    model, split, exact = linear_gaussian
    means = [bound(model, split, k).mean().item() for k in (1, 10, 1000)]
    assert means[0] < means[1] < exact - 0.05
    assert means[2] == pytest.approx(exact, abs=0.02)


@pytest.mark.parametrize("k", [1, 5])
def test_the_bound_is_never_above_the_log_likelihood_in_expectation(linear_gaussian, k):
    model, split, exact = linear_gaussian
    means = torch.stack([bound(model, split, k, seed).mean() for seed in range(30)])
    assert means.mean().item() < exact - 3 * means.std().item() / math.sqrt(30)


def test_one_importance_sample_is_the_negative_elbo(linear_gaussian):
    model, split, _ = linear_gaussian
    means = torch.stack([-bound(model, split, 1, seed).mean() for seed in range(200)])
    error = means.std().item() / math.sqrt(200)
    neg_elbo = metrics.evaluate(model, split, torch.Generator(), repeats=200).per_image["neg_elbo"].mean().item()
    assert means.mean().item() == pytest.approx(neg_elbo, abs=5 * error)
    assert error < 0.1


def test_no_number_depends_on_the_batch_size(linear_gaussian):
    model, split, _ = linear_gaussian
    close = functools.partial(torch.testing.assert_close, rtol=1e-5, atol=1e-5)  # sums are float32, in another order
    bounds = [bound(model, split, 3, batch_size=size) for size in (1, 7, 1000)]
    close(bounds[0], bounds[2])
    close(bounds[1], bounds[2])
    both = [metrics.evaluate(model, split, torch.Generator(), batch_size=size).per_image for size in (7, 1000)]
    close(both[0], both[1])


class OfFew(Standard):
    """N(0, I) of a module's weights: float32, and for no more codes at once than a batch has."""

    def log_prob(self, z, y):
        assert z.dtype == torch.float32 and len(z) == len(y) <= self.most
        return super().log_prob(z, y)


def test_a_prior_meets_no_more_codes_at_once_than_a_batch_has(linear_gaussian, monkeypatch):
    """A VampPrior under posterior=full took 260 kB an image: for all of them at once more than there is."""
    model, split, _ = linear_gaussian
    expected, prior = bound(model, split, 3, batch_size=7), OfFew(2)
    prior.most = 7
    monkeypatch.setattr(model, "prior", prior)
    assert torch.equal(bound(model, split, 3, batch_size=7), expected)


def test_information_asks_a_prior_for_no_more_codes_at_once_than_a_batch_has():
    q = DiagonalGaussian(torch.randn(1200, 2), torch.zeros(1200, 2))
    evaluation = metrics.Evaluation(q, torch.zeros(1, 1200), q.kl_to_prior().double())
    y, prior = torch.zeros(1200), OfFew(2)
    prior.most = metrics.EVAL_BATCH_SIZE
    log_ps = (None, lambda z, rows: prior.log_prob(z.float(), y[rows]))
    noises = ([torch.Generator().manual_seed(seed) for seed in (0, 1)] for _ in log_ps)
    known, asked = (metrics.information(evaluation, *noise, log_p) for noise, log_p in zip(noises, log_ps, strict=True))
    assert asked == pytest.approx(known, abs=1e-5)


def test_a_kl_of_the_code_alone_is_that_of_each_batch():
    model = build.model(check(compose("dataset=digits", "posterior=full", "model.z_dim=3")), (1, 8, 8), 0)
    split = Split(torch.randint(0, 256, (20, 1, 8, 8), dtype=torch.uint8), torch.zeros(20, dtype=torch.long))
    found = metrics.evaluate(model, split, torch.Generator().manual_seed(0), repeats=2, batch_size=7)
    expected = metrics.posterior(model, split).kl_to_prior()
    torch.testing.assert_close(found.per_image["kl"].float(), expected, rtol=0, atol=1e-6)
    assert found.noise_error("kl") is None, "it is in closed form"


def test_weights_written_down_by_hand_give_the_same_negative_elbo():
    """The tutorial's formula on plain layers with a checkpoint's weights, and the same noise."""
    _, folder = quick_run("epochs=2", "network.hidden_dims=[32]", "model.z_dim=3")
    state = checkpoints.load(folder / "best.pt")
    encoder = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 6))
    decoder = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 64), nn.Sigmoid())
    for plain, side in ((encoder, "encoder"), (decoder, "decoder")):
        prefix = f"{side}.layers."
        weights = {name.removeprefix(prefix): w for name, w in state.model.items() if name.startswith(prefix)}
        plain.load_state_dict(weights)
    split = build.dataset(state.config).read_test()
    with torch.no_grad():
        x = split.x.flatten(1) / 255
        mu, logvar = encoder(x).chunk(2, dim=1)
        eps = torch.randn(len(x), 3, generator=build.generator(0, "evaluation"))
        bce = F.binary_cross_entropy(decoder(mu + eps * torch.exp(0.5 * logvar)), x, reduction="sum")
        kld = -0.5 * torch.sum(1 + logvar - mu**2 - logvar.exp())
    measured = metrics.evaluate(inference.rebuild(state), split, build.generator(0, "evaluation"))
    assert measured.per_image["neg_elbo"].mean().item() == pytest.approx(((bce + kld) / len(x)).item(), rel=1e-5)


@pytest.mark.slow
def test_white_images_have_the_reconstruction_of_float64_in_every_number():
    """Where a decoder is sure, float32 loses digits by cancelling: an error of nats, and values below 0."""
    np.savez("white.npz", images=np.full((60, 48, 48, 3), 255, np.uint8))
    data = ("dataset=arrays", "dataset.root=white.npz", "dataset.val_size=20", "dataset.test_size=20")
    small = (
        "network.hidden_dims=[16]",
        "model.z_dim=2",
        "optimizer.lr=1e-2",
        "batch_size=20",
        "epochs=150",
        "checkpoint_every_epochs=150",
        "figure_every_epochs=150",
    )
    summary, folder = quick_run(*data, *small)
    model = vae_exp.load(folder, device="cpu")
    test = model.read_data().read_test()
    with torch.no_grad():
        q = model.model.encode(test.x / 255, test.y)
        z = q.rsample(metrics.sample_eps(test, 2, build.generator(0, "evaluation")))
        exact = F.softplus(-model.model.decode(z, test.y).logits.double()).flatten(1).sum(1)
    assert summary["test/reconstruction"] == pytest.approx(exact.mean().item(), rel=1e-6)
    assert exact.min() < 1, "a hard case: a decoder that is sure"
    assert all(row["val/reconstruction"] >= 0 for row in logged(folder) if "val/reconstruction" in row)


def divided(q, seed=0):
    """The information of posteriors, as vae-evaluate takes it, by a seed."""
    kl = q.kl_to_prior().double()
    part, noise = (torch.Generator().manual_seed(100 * seed + i) for i in (0, 1))
    numbers = metrics.information(metrics.Evaluation(q, torch.zeros(1, len(kl)), kl), part, noise)
    names = {"images": "mutual_information_images", "kl": "mutual_information_kl", "mutual": "mutual_information"}
    names |= {"mutual_error": "mutual_information_error"}
    names |= {"aggregate": "kl_aggregate", "aggregate_error": "kl_aggregate_error"}
    found = SimpleNamespace(**{short: numbers[name] for short, name in names.items()})
    assert found.mutual + found.aggregate == pytest.approx(found.kl, abs=1e-12)
    return found


def plain_information(q, seed):
    """E log q(z|x) / q(z) by its definition, one pair at a time, with the noise that `divided` has for it."""
    z = q.rsample(torch.Generator().manual_seed(100 * seed + 1)).double()
    pairs = torch.stack([q.log_prob(code).sum(1) for code in z])
    return pairs.diagonal() - pairs.logsumexp(1) + math.log(len(z))


def test_information_is_none_where_posteriors_are_alike_all_where_they_are_the_prior_and_log_n_where_they_are_apart():
    alike = divided(DiagonalGaussian(torch.ones(50, 2), torch.zeros(50, 2)))
    assert (alike.mutual, alike.aggregate) == (pytest.approx(0, abs=1e-9), pytest.approx(1))
    apart = divided(DiagonalGaussian(100 * torch.arange(50.0)[:, None].repeat(1, 2), torch.zeros(50, 2)))
    assert apart.mutual == pytest.approx(math.log(50))
    assert (apart.images, apart.kl) == (50, pytest.approx(100**2 * (49 * 50 * 99 / 6) / 50))


@pytest.mark.slow
@pytest.mark.parametrize("scale", [0.02, 0.3, 3.0])
def test_information_is_that_of_the_definition_with_less_noise_and_never_below_nothing(scale):
    """0.02 is a collapsed model, whose KL(q(z) || p(z)) was printed as -0.006: the noise of the plain estimate."""
    draws = torch.Generator().manual_seed(1)
    mean, log_var = (factor * torch.randn(100, 4, generator=draws) for factor in (scale, 0.3 * scale))
    q = DiagonalGaussian(mean, log_var)
    found = [divided(q, seed) for seed in range(60)]
    plain = torch.stack([plain_information(q, seed).mean() for seed in range(100)])
    error = plain.std().item() * math.sqrt(1 / 60 + 1 / 100)
    assert np.mean([each.mutual for each in found]) == pytest.approx(plain.mean().item(), abs=4 * error)
    assert all(0 <= each.mutual <= math.log(100) and each.aggregate >= 0 for each in found)
    assert np.std([each.mutual for each in found]) < (0.5 if scale < 1 else 2) * plain.std().item()
    assert np.std([each.aggregate for each in found]) < 1.5 * np.mean([each.aggregate_error for each in found])
    if scale < 0.1:
        assert plain.min() < 0, "else this tests nothing"
        assert plain.max() > found[0].kl


@pytest.mark.slow
def test_information_of_a_part_is_that_of_a_random_one_and_its_rows_add_up(vae_command, monkeypatch):
    """Of 600 images 200 near the prior come first in a split that is sorted by class; the part is of 300."""
    monkeypatch.setattr(metrics, "MIXTURE", 300)
    draws = torch.Generator().manual_seed(0)
    mean = torch.cat([0.1 * torch.randn(200, 2, generator=draws), 4 * torch.randn(400, 2, generator=draws)])
    shuffled = mean[torch.randperm(600, generator=draws)]
    found = [divided(DiagonalGaussian(means, torch.full_like(means, -4.0))) for means in (mean, shuffled)]
    assert found[0].images == found[1].images == 300
    assert found[0].kl == pytest.approx(found[1].kl, abs=5 * 15 / math.sqrt(300))
    assert found[0].mutual == pytest.approx(found[1].mutual, abs=4 * 2**0.5 * found[0].mutual_error)
    first = DiagonalGaussian(mean[:300], torch.full_like(mean[:300], -4.0))
    assert abs(divided(first).mutual - found[1].mutual) > 6 * found[0].mutual_error, "those of the first images"

    monkeypatch.setattr(metrics, "MIXTURE", 100)
    _, folder = quick_run("epochs=10", "network.hidden_dims=[32]")
    code, said = vae_command("vae-evaluate", f"checkpoint={folder}", "repeats=1", "wandb.mode=disabled")
    assert code == 0, said
    shown = {name: float(re.search(rf"\n{re.escape(name)} +(-?[\d.]+)", said)[1]) for name in PARTS}
    of_part, mutual, aggregate = shown.values()
    assert mutual + aggregate == pytest.approx(of_part, abs=0.0011)
    result = json.loads((folder / "best.test.json").read_text())
    assert result["mutual_information"] + result["kl_aggregate"] == pytest.approx(result["mutual_information_kl"])
    assert result["mutual_information_kl"] != result["kl"]
    assert (result["mutual_information_images"], result["images"]) == (100, 300)
    assert result["mutual_information_at_most"] == pytest.approx(math.log(100))


PARTS = ("kl of 100 random images", "mutual information I(x; z)", "KL(q(z) || p(z))")


def test_a_kl_that_rounding_leaves_below_nothing_is_nothing():
    q = DiagonalGaussian(torch.zeros(50, 2), torch.full((50, 2), 3e-7))
    measured = metrics.Evaluation(q, torch.zeros(1, 50), torch.full((50, 2), -3e-8).double())
    assert measured.per_image["kl"].tolist() == [0.0] * 50
    assert measured.kl_per_dim == [0.0, 0.0]
    assert math.copysign(1, measured.kl_per_dim[0]) == 1


def test_standard_errors_are_those_of_repeated_measurement(linear_gaussian):
    model, split, _ = linear_gaussian
    measured = metrics.evaluate(model, split, torch.Generator().manual_seed(0), repeats=20)
    again = [metrics.evaluate(model, split, torch.Generator().manual_seed(s), repeats=20) for s in range(40)]
    means = [each.per_image["neg_elbo"].mean().item() for each in again]
    assert measured.noise_error("neg_elbo") == pytest.approx(np.std(means), rel=0.5)
    assert metrics.standard_error(torch.tensor([1.0, 2.0, 3.0])) == pytest.approx(1 / math.sqrt(3))


def test_evaluate_prints_writes_and_tells_wandb(vae_command):
    summary, folder = quick_run(
        "model=conditional", "epochs=20", "figure_every_epochs=20", "wandb.group=g", wandb="offline"
    )
    code, said = vae_command("vae-evaluate", f"checkpoint={folder}", "importance_samples=5", "repeats=1")
    assert code == 0, said
    result = json.loads((folder / "best.test.json").read_text())
    assert result["neg_elbo"] == summary["test/neg_elbo"], "the noise is that of the run's own end"
    assert result["nll"] < result["neg_elbo"]
    assert result["neg_elbo"] == pytest.approx(result["reconstruction"] + result["kl"])
    assert result["kl"] == pytest.approx(result["mutual_information"] + result["kl_aggregate"])
    assert result["kl"] == result["mutual_information_kl"], "of so few images the part is all of them"
    assert result["label_accuracy"] > 0.9
    assert result["label_accuracy_real"] > 0.9
    assert result["label_accuracy_shuffled"] == pytest.approx(0.1, abs=0.03)
    assert "bits_per_dim" not in result, "grey pixels under a Bernoulli likelihood"
    for shown in (f"{result['nll']:.3f}", "nll, K = 5", "classified as intended", str(folder / "best.test.json")):
        assert shown in said
    (logged,) = Path("outputs/wandb").glob("*run-*evaluate*")
    records = recorded(logged)
    assert (records["run"][0]["run_group"], records["run"][0]["job_type"]) == ("g", "evaluate")
    final = {key: value for update in records["summary"] for key, value in update["update"].items()}
    assert final["evaluate/test/nll"] == pytest.approx(result["nll"])

    again = vae_command("vae-evaluate", f"checkpoint={folder}/best.pt", "importance_samples=5", "repeats=1")[1]
    assert again[again.index("test split") : again.index("written")] in said


@pytest.mark.slow
def test_evaluate_reads_every_run_of_a_sweep_and_names_those_that_fail(vae_command):
    for z_dim in (2, 5):
        quick_run(f"model.z_dim={z_dim}", "dataset.binarize=static", folder=f"sweep/z{z_dim}")
    code, said = vae_command("vae-evaluate", "checkpoint=sweep", "split=val")
    assert code == 0, said
    assert said.startswith("2 checkpoints in sweep\n")
    lines = said[said.index("checkpoint\n") :].splitlines()[1:]
    results = {z: json.loads(Path(f"sweep/z{z}/best.val.json").read_text()) for z in (2, 5)}
    assert [line.split()[-1] for line in lines] == [
        f"sweep/z{z}/best.pt" for z in sorted(results, key=lambda z: results[z]["neg_elbo"])
    ]
    assert results[2]["bits_per_dim"] == pytest.approx(results[2]["neg_elbo"] / math.log(2) / 64)

    Path("sweep/z2/best.pt").write_bytes(b"cut off")
    code, said = vae_command("vae-evaluate", "checkpoint=sweep", "split=val")
    assert code == 1
    assert "1 of 2 checkpoints could not be evaluated" in said
    assert "sweep/z2/best.pt: damaged" in said


def test_evaluations_of_other_data_stand_in_a_table_of_their_own(capsys):
    def row(of, value, name=""):
        return {"of": of, "neg_elbo": value, "model": f"{name}vanilla VAE on digits, epoch 1"}

    rows = {"a": row("digits, bernoulli", 3.0), "b": row("cats, gaussian", 1.0)}
    rows["c"] = row("digits, bernoulli", 2.0, "c3: ")
    show_side_by_side(rows, {"sampler": "prior", "features": "pixels", "samples": []})
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    head = "neg_elbo checkpoint"
    assert lines == ["cats, gaussian:", head, "1.000 b", "", "digits, bernoulli:", head, "2.000 c c3", "3.000 a"]


WRONG = [
    ("", "checkpoint: say which"),
    ("checkpoint=nowhere.pt", "checkpoint=nowhere.pt: there is no such file"),
    ("checkpoint=.", "checkpoint=.: no best.pt"),
    ("checkpoint=latest", "checkpoint=latest: no best.pt in outputs"),
    ("checkpoint=a/b:best", "no W&B API key is configured"),
    ("checkpoint=x split=tests", "split=tests: it takes one of test, val, train"),
    ("checkpoint=x importance_samples=-1", "importance_samples=-1: it takes a whole number, 0 or more"),
    ("checkpont=x", "checkpont: no such key. Did you mean checkpoint?"),
    ("--multirun checkpoint=x", "--multirun: no such flag"),
    ("checkpoint=x seed=1,2", "seed=1,2: vae-evaluate takes one value of it."),
    ("checkpoint=x seed=range(3)", "seed=range(3): vae-evaluate takes one value of it."),
    ("checkpoint=x ~split", "~split: every key has a value; leave split out for its default."),
    ("checkpoint=a/b/c:best", "`wandb login`, or give the path of a file or of a run's folder."),
    (f"checkpoint={'x' * 5000}", "... (5,000 characters): it takes the path of a file or a folder"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_a_mistake_is_one_message(vae_command, tmp_path, arguments, message):
    code, said = vae_command("vae-evaluate", *arguments.split())
    assert code == 1
    assert message in said
    assert len(said.splitlines()) == 1
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize("place", ["/", "~", "."])
def test_a_whole_disk_and_the_home_are_no_folder_of_runs(tmp_path, monkeypatch, place):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match="is a whole disk or your home"):
        inference.find(place)


@pytest.mark.parametrize("command", ["vae-evaluate", "vae-generate what=latents"])
def test_a_place_for_data_that_lie_nowhere_is_refused(vae_command, command):
    _, folder = quick_run("epochs=0")
    code, said = vae_command(*command.split(), f"checkpoint={folder}", "dataset.root=nope")
    assert code == 1
    assert "dataset.root=nope: the model was trained on digits, which has no root. Leave it out." in said


@pytest.mark.parametrize("program", ["vae-evaluate", "vae-generate"])
def test_help_shows_every_key(vae_command, program):
    code, said = vae_command(program, "--help")
    assert code == 0
    name = program.removeprefix("vae-")
    assert all(line in said for line in (CONF_DIR / f"{name}.yaml").read_text().splitlines())
    assert vae_command(program, "--cfg", "job", "seed=7")[1].count("seed: 7") == 1


def test_a_model_is_two_lines_from_any_folder_without_its_data(tmp_path, monkeypatch):
    _, folder = quick_run("model=conditional", "epochs=2")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(folder / "best.pt", elsewhere / "mine.pt")
    monkeypatch.chdir(elsewhere)
    read = []
    with hooks.at_call(lambda event, arguments: read.append(arguments) if "digits.csv" in str(arguments) else None):
        use_without_data("mine.pt")
        assert not read
        vae_exp.load("mine.pt").read_data()
        assert read, "it would have been noticed"


def use_without_data(path):
    """Everything that a model is for, with or without images of one's own."""
    model = vae_exp.load(path)
    images = model.sample(16, label=3, seed=1)
    assert images.shape == (16, 1, 8, 8)
    assert 0 <= images.min() <= images.max() <= 1
    assert torch.equal(images, model.sample(16, label=3, seed=1))
    assert not torch.equal(images, model.sample(16, label=3))
    assert not torch.equal(images, model.sample(16, label=4, seed=1))
    assert torch.equal(model.sample(3, label=3, temperature=0)[0], model.sample(3, label=3, temperature=0)[2])

    x = np.random.default_rng(0).integers(0, 256, (5, 1, 8, 8), dtype=np.uint8)
    assert model.encode(x, label=3).mean.shape == (5, 20)
    again = model.reconstruct(torch.from_numpy(x) / 255, label=[3, 3, 3, 3, 3])
    torch.testing.assert_close(again, model.reconstruct(x, label=3))
    few, many = (model.log_prob_bound(x, label=3, k=k).mean().item() for k in (1, 200))
    assert few < many < 0
    assert not model.model.training, "measuring leaves it as it was"

    for wrong in ({"x": x}, {"x": x, "label": 10}, {"x": x[..., :5], "label": 3}, {"x": x * 1.0, "label": 3}):
        with pytest.raises(UserError, match=r"conditional|label=10|this model takes|floats from 0 to 1"):
            model.encode(**wrong)


def test_an_autoencoder_reconstructs_and_has_nothing_to_sample_from():
    model = vae_exp.load(quick_run("model=autoencoder")[1])
    assert model.reconstruct(torch.zeros(3, 1, 8, 8)).shape == (3, 1, 8, 8)
    with pytest.raises(UserError, match="an autoencoder has no prior"):
        model.sample(2)


def test_an_evaluation_that_cannot_be_written_leaves_the_one_before(vae_command):
    quick_run(folder="run")
    typed = ("vae-evaluate", "checkpoint=run", "device=cpu", "wandb.mode=disabled")
    assert vae_command(*typed, "repeats=1")[0] == 0
    before = Path("run/best.test.json").read_bytes()
    with full_disk(500):
        code, said = vae_command(*typed, "repeats=2")
    assert code == 1
    assert "run/best.test.json: cannot be written (File too large)" in said
    assert Path("run/best.test.json").read_bytes() == before
    assert not list(Path("run").glob("*.partial"))


def test_weights_leave_as_safetensors_and_come_back():
    _, folder = quick_run("epochs=1")
    model = vae_exp.load(folder)
    model.export("model.safetensors")
    with safe_open("model.safetensors", "pt") as file:
        assert torch.equal(file.get_tensor("decoder.layers.0.weight"), model.model.decoder.layers[0].weight)
    again = vae_exp.load("model.safetensors", device="cpu")
    assert torch.equal(again.sample(4, seed=0), model.sample(4, seed=0))
    Path("cut.safetensors").write_bytes(Path("model.safetensors").read_bytes()[:1000])
    for path, message in (("cut.safetensors", "damaged"), ("none.safetensors", "no such file")):
        with pytest.raises(UserError, match=message):
            vae_exp.load(path)


@pytest.mark.slow
def test_what_takes_long_is_kept_of_the_same_model_and_only_of_it(vae_command):
    conditional = ("model=conditional", "likelihood=discretized_logistic", "epochs=2", "network.hidden_dims=[32]")
    quick_run(*conditional)
    typed, written = ("checkpoint=run", "device=cpu", "repeats=1"), Path("run/best.test.json")
    for more in (("importance_samples=4",), ("label_accuracy=false",)):
        code, said = vae_command("vae-evaluate", *typed, *more)
        assert code == 0, said
        assert "nll, K = 4" in said
    first = json.loads(written.read_text())
    assert {"nll", "nll_error", "importance_samples", "label_accuracy"} <= first.keys()
    assert first["bits_per_dim"] == pytest.approx(first["nll"] / math.log(2) / 64)
    assert vae_command("vae-evaluate", *typed, "split=val")[0] == 0
    assert "nll" not in json.loads(Path("run/best.val.json").read_text())
    written.write_text(json.dumps(first))
    quick_run(*conditional, "seed=1", folder="other")
    shutil.copy("other/best.pt", "run/best.pt")  # as many steps, and other weights
    assert vae_command("vae-evaluate", *typed)[0] == 0
    assert "nll" not in json.loads(written.read_text())


@pytest.mark.slow
def test_evaluations_without_a_network_are_one_run_of_wandb_with_all_numbers(vae_command):
    quick_run("epochs=1", wandb="offline")
    for more in (("importance_samples=2",), ("split=val",), ()):
        assert vae_command("vae-evaluate", "checkpoint=run", "device=cpu", "repeats=1", *more)[0] == 0
    (folder,) = Path("outputs/wandb").glob("offline-run-*-evaluate-*")
    final = {}
    for update in recorded(folder)["summary"]:
        final |= update["update"]
    for split in ("test", "val"):
        written = json.loads(Path(f"run/best.{split}.json").read_text())
        assert final[f"evaluate/{split}/neg_elbo"] == pytest.approx(written["neg_elbo"])
    assert "evaluate/test/nll" in final
    assert len(list(Path("outputs/wandb").glob("offline-run-*"))) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("likelihood", "name"),
    [
        (("likelihood=gaussian", "likelihood.sigma=optimal"), "sigma"),
        (("likelihood=gaussian", "likelihood.sigma=learned"), "sigma"),
        (("likelihood=laplace",), "scale"),
        (("likelihood=discretized_logistic",), "scale"),
        (("likelihood=gaussian", "likelihood.sigma=0.2"), None),
        ((), None),
    ],
)
def test_a_learned_scale_is_told_everywhere(vae_command, likelihood, name):
    mode = "offline" if likelihood == ("likelihood=laplace",) else "disabled"
    typed = ("dataset=digits", "device=cpu", f"wandb.mode={mode}", "hydra.run.dir=run", "epochs=2", *likelihood)
    code, said = vae_command("vae-train", *typed)
    assert code == 0, said
    rows, summary = logged("run"), json.loads(Path("run/summary.json").read_text())
    told = [key for key in {key for row in rows for key in row} | summary.keys() if key.endswith(("sigma", "scale"))]
    if name is None:
        assert told == []
        return
    assert set(told) == {f"train/{name}", f"best/{name}"}
    model = vae_exp.load("run").model
    value = (model.likelihood.log_scale.exp() if hasattr(model.likelihood, "log_scale") else
             model.likelihood.mean_square.sqrt()).item()  # fmt: skip
    assert summary["best/epoch"] == 2
    assert [row[f"train/{name}"] for row in rows if "train/kl" in row][-1] == value == summary[f"best/{name}"]
    assert f"{name} {value:.4f}" in said
    for folder in Path("outputs/wandb").glob("offline-run-*"):
        assert recorded(folder)["history"][-1]["item"][f"train/{name}"] == pytest.approx(value)
    code, said = vae_command("vae-evaluate", "checkpoint=run", "device=cpu", "wandb.mode=disabled")
    assert json.loads(Path("run/best.test.json").read_text())[name] == value
    assert f"{value:.4f}" in said


@pytest.mark.slow
def test_checkpoints_are_uploaded_as_an_artifact_where_it_is_asked_for():
    quick_run("epochs=1", "wandb.log_checkpoints=true", folder="one", wandb="offline")
    worse = ("epochs=2", "scheduler=milestones", "scheduler.at_epochs=[1]", "scheduler.gamma=100")
    quick_run(*worse, "seed=1", "wandb.log_checkpoints=true", folder="four", wandb="offline")
    one, four = (recorded(next(Path("outputs/wandb").glob(f"*run-*-s{seed}-*")))["artifact"] for seed in (0, 1))
    assert [{"best", "last"} <= set(artifact["aliases"]) for artifact in one] == [True], "the same file goes up once"
    assert [set(artifact["aliases"]) - {"latest"} for artifact in four] == [{"best"}, {"last"}]
    assert {artifact["type"] for artifact in (*one, *four)} == {"model"}


@needs_mnist
@pytest.mark.slow
def test_a_conditional_model_of_mnist_draws_what_its_label_says():
    mnist = ("dataset=mnist", f"dataset.root={MNIST}")
    _, folder = quick_run(*mnist, "model=conditional", "model.z_dim=4", "optimizer.lr=3e-3", "epochs=3")
    model = vae_exp.load(folder)
    data = model.read_data()
    classifier = train_classifier(data.train, readback.Targets(data.n_classes), seed=0)
    noise = torch.Generator().manual_seed(0)
    read = readback.label_accuracy(model.model, classifier, data, data.read_test(), noise)
    assert read["label_accuracy_real"] > 0.97
    assert read["label_accuracy"] >= 0.9
    assert read["label_accuracy_shuffled"] == pytest.approx(0.1, abs=0.02)


@pytest.mark.slow
def test_the_readmes_training_from_python_is_the_command_lines(vae_train, capfd, monkeypatch):
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)  # which a command before may have left
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # so may these
    names: dict = {}
    exec(readme_python("from vae_exp import compose"), names)
    printed = capfd.readouterr().out
    assert [printed.count(line) for line in ("epoch 1/2", "epoch 2/2", "epoch 3/3")] == [1, 1, 0], "then it is quiet"
    assert printed.splitlines()[-1].endswith("are in outputs/from_python")
    assert names["summary"] == json.loads(Path("outputs/from_python/summary.json").read_text())

    typed = ("dataset=digits", "model=beta", "epochs=2", "wandb.mode=disabled", "hydra.run.dir=typed")
    code, said = vae_train(*typed)
    assert (code, said.count("epoch 1/2"), said.count("are in typed")) == (0, 1, 0)
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)
    train(vae_exp.compose("resume=typed", "epochs=4"))
    assert "epoch 4/4" in capfd.readouterr().out
    code, said = vae_train("resume=outputs/from_python", "epochs=4")
    assert code == 0, said
    assert vae_train("resume=outputs/from_python", "epochs=4")[1].count("the run is finished") == 1
    ended = [json.loads(Path(run, "summary.json").read_text()) for run in ("outputs/from_python", "typed")]
    assert ended[0]["test/neg_elbo"] == ended[1]["test/neg_elbo"]
    with pytest.raises(vae_exp.UserError, match="run_dir: say in which folder"):
        train(vae_exp.compose("dataset=digits"))
    for wrong, message in (("model.zdim=3", "Did you mean model.z_dim"), ("model=betta", "there is no such model")):
        with pytest.raises(vae_exp.UserError, match=message):
            vae_exp.compose(wrong)


def test_the_readmes_two_lines_run_as_they_stand():
    _, folder = quick_run("epochs=1", folder="outputs/2026-11-23/07-55-08-053614_vanilla-mnist-z20")
    lines = readme_python("import vae_exp")
    assert str(folder) in lines
    names: dict = {}
    exec(lines, names)
    assert names["images"].shape == names["again"].shape == (16, 1, 8, 8)
    assert names["q"].mean.shape == (16, 20)
    assert names["bound"].shape == (16,)


def test_the_scale_of_a_likelihood_of_ones_own_is_printed_by_its_name(vae_command, tmp_path, monkeypatch):
    Path(tmp_path, "own_scale.py").write_text(
        "from vae_exp import likelihoods\n\ndef wide(scale):\n    family = likelihoods.laplace(scale)\n"
        "    family.scale_name = 'width'\n    return family\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    quick_run("likelihood=laplace", "likelihood._target_=own_scale.wide")
    code, said = vae_command("vae-evaluate", "checkpoint=run", "device=cpu", "repeats=1", "trust=true")
    assert code == 0, said
    value = json.loads(Path("run/best.test.json").read_text())["width"]
    assert f"{'width':28}{value:12.4f}" in said
