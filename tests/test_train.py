"""Runs: what they leave behind, that they repeat, and how they fail."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from tests import hooks
from tests.conftest import MNIST, QUICK, compose, metrics, needs_mnist, quick_run
from vae_exp import inference
from vae_exp.config import build
from vae_exp.datasets.splits import Split
from vae_exp.errors import Diverged, UserError
from vae_exp.evaluation.metrics import evaluate
from vae_exp.figures import training
from vae_exp.train import train
from vae_exp.training import checkpoints
from vae_exp.training.state import Meters

TRAIN = {f"train/{name}" for name in ("loss", "neg_elbo", "reconstruction", "kl", "kl_weight", "lr", "grad_norm")}


def test_a_run_leaves_every_promised_file():
    summary, folder = quick_run("epochs=2", "log_every_steps=4")
    assert summary == json.loads((folder / "summary.json").read_text())
    assert (summary["state"], summary["reason"]) == ("finished", None)
    assert yaml.safe_load((folder / "config.yaml").read_text())["dataset"]["name"] == "digits"

    rows = metrics(folder)
    points = [row for row in rows if "train/loss" in row]
    assert [row["step"] for row in points] == [4, 8, 11, 12, 16, 20, 22]
    assert points[2].keys() == TRAIN | {"step", "epoch", "images_seen"}
    assert [row["images_seen"] for row in points if row["step"] in (11, 22)] == [1297, 2594]
    epochs = [row for row in rows if "val/neg_elbo" in row]
    assert [row["epoch"] for row in epochs] == [1, 2]
    assert {"val/reconstruction", "val/kl", "val/active_units", "time/images_per_second"} <= epochs[0].keys()
    assert sum(epochs[1]["val/kl_per_dim"]) == pytest.approx(epochs[1]["val/kl"], rel=1e-5)

    best = min(epochs, key=lambda row: row["val/neg_elbo"])
    assert summary["best/val_neg_elbo"] == best["val/neg_elbo"]
    assert summary["best/epoch"] == best["epoch"]
    assert summary["test/neg_elbo"] == pytest.approx(summary["test/reconstruction"] + summary["test/kl"])

    pictures = sorted(path.name for path in (folder / "images").iterdir())
    drawn = [f"{name}_{step:07d}.png" for name in ("reconstructions", "samples") for step in (11, 22)]
    assert pictures == [*drawn, "test_reconstructions_0000022.png"]


def test_a_checkpoint_rebuilds_its_model():
    summary, folder = quick_run("epochs=3", "model=conditional", "network.hidden_dims=[32,16]")
    state = checkpoints.load(folder / "best.pt")
    model = inference.rebuild(state)
    data = build.dataset(state.config)
    measured = evaluate(model, data.read_test(), build.generator(0, "evaluation"))
    assert measured.per_image["neg_elbo"].mean().item() == summary["test/neg_elbo"]
    assert checkpoints.load(folder / "last.pt").epoch == 3


def test_the_loss_falls():
    _, folder = quick_run("epochs=8")
    epochs = [row["val/neg_elbo"] for row in metrics(folder) if "val/neg_elbo" in row]
    assert epochs[-1] < epochs[0] - 3


def without_time(rows):
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


def test_the_same_seed_gives_the_same_numbers_to_the_bit_and_another_seed_others():
    runs = [quick_run("epochs=2", f"seed={seed}", folder=name)[1] for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    a, b, c = (without_time(metrics(run)) for run in runs)
    assert a == b
    assert a != c
    weights = [checkpoints.load(run / "last.pt").model for run in runs]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    pictures = [(run / "images" / "samples_0000022.png").read_bytes() for run in runs]
    assert pictures[0] == pictures[1] != pictures[2]


def test_the_weights_depend_on_the_seed_alone():
    _, a = quick_run("epochs=0", "dataset.val_size=100", folder="a")
    _, b = quick_run("epochs=0", "model=beta", "objective.warmup_epochs=3", folder="b")
    first, second = (checkpoints.load(run / "last.pt").model for run in (a, b))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_no_epochs_measures_the_model_as_it_is_built():
    summary, folder = quick_run("epochs=0")
    assert summary["best/epoch"] == 0
    assert summary["test/neg_elbo"] == pytest.approx(64 * np.log(2), rel=0.1)
    assert len(list((folder / "images").iterdir())) == 3


@pytest.mark.slow
def test_without_validation_the_test_split_is_watched_and_the_last_epoch_kept():
    summary, folder = quick_run("epochs=2", "dataset.val_size=0")
    assert not list((folder / "images").glob("test_*")), "the last epoch's picture is of it"
    rows = [row for row in metrics(folder) if "test/neg_elbo" in row]
    assert [row["epoch"] for row in rows] == [1, 2]
    assert not any(key.startswith(("val/", "best/val")) for row in [*metrics(folder), summary] for key in row)
    assert summary["test/neg_elbo"] == rows[-1]["test/neg_elbo"]
    assert checkpoints.load(folder / "best.pt").epoch == 2
    for words, prune in ((["max_steps=15"], None), ([], lambda epoch, row: "it loses")):
        typed = (*QUICK, "wandb.mode=disabled", "epochs=3", "dataset.val_size=0", "figure_every_epochs=2", *words)
        train(compose(*typed), Path("short"), prune, quiet=True)
        assert [path.name[:5] for path in Path("short/images").iterdir()] == ["test_"]
        shutil.rmtree("short")


def test_the_test_split_is_read_only_at_the_end():
    order = []

    def drawn(event, arguments):
        if event == "open" and Path(str(arguments[0])).name.startswith("samples_"):
            order.append("epoch over")

    with (
        hooks.in_step(lambda step, terms: order.append(step)),
        hooks.at_call(drawn),
        hooks.when_test_is_read(lambda: order.append("test read")),
    ):
        quick_run("epochs=2", hooks.OWN_OBJECTIVE, hooks.OWN_DATASET)
    assert order == [*range(1, 12), "epoch over", *range(12, 23), "epoch over", "test read"]


@pytest.mark.parametrize(("lr", "when"), [("1e10", "between steps 1 and 11"), ("1e36", "between steps 1 and 11")])
def test_divergence_is_explained_and_the_run_marked_failed(lr, when):
    with pytest.raises(Diverged, match=f"{when}: train/loss, train/reconstruction, .* not finite") as error:
        quick_run(f"optimizer.lr={lr}")
    summary = json.loads(Path("run/summary.json").read_text())
    assert summary["state"] == "failed"
    assert str(error.value) in summary["reason"]


def test_divergence_keeps_the_last_good_checkpoint():
    """A learning rate that is good for two epochs and absurd in the third."""
    with (
        hooks.learning_rate(lambda epoch: 1.0 if epoch < 2 else 1e30),
        pytest.raises(Diverged, match=r"The last good checkpoint is run/last.pt"),
    ):
        quick_run("epochs=4", "checkpoint_every_epochs=1", hooks.OWN_SCHEDULE)
    state = checkpoints.load(Path("run/last.pt"))
    assert state.epoch == 2
    assert all(weights.isfinite().all() for weights in state.model.values())


def test_epoch_means_do_not_depend_on_how_the_images_are_batched():
    rec, kl, loss = torch.rand(10), torch.rand(10, 3), torch.rand(10)
    means = []
    for sizes in ([10], [4, 4, 2], [1, 9]):
        running = Meters()
        for rows in torch.arange(10).split(sizes):
            kl_mean = kl[rows].sum(1).mean()
            terms = {"loss": loss[rows].mean(), "reconstruction": rec[rows].mean(), "kl": kl_mean}
            running.add([(len(rows), terms)], lr=0.1)
            if len(sizes) == 3:
                running.read("train")
        if len(sizes) != 3:
            running.read("train")
        means.append(running.read_epoch("train"))
    assert means[1] == pytest.approx(means[0])
    assert means[2] == pytest.approx(means[0])
    assert means[0]["train/neg_elbo"] == pytest.approx((rec + kl.sum(1)).mean().item())
    assert means[0]["train/loss"] == pytest.approx(loss.mean().item())


def test_active_units_are_those_whose_mean_moves():
    model = inference.rebuild(checkpoints.load(quick_run("model.z_dim=6", "epochs=0")[1] / "last.pt"))
    head = model.encoder.layers[-1]
    with torch.no_grad():
        head.weight[:6] *= 100
        head.weight[:4] = 0  # four means that are the same for every image
    split = Split(torch.randint(0, 256, (300, 1, 8, 8), dtype=torch.uint8), torch.zeros(300, dtype=torch.long))
    assert evaluate(model, split, torch.Generator()).active_units == 2


def test_reconstructions_stand_beside_their_images():
    model = inference.rebuild(checkpoints.load(quick_run("epochs=0")[1] / "last.pt"))
    model.decode = lambda z, y: type("Black", (), {"mean": torch.zeros(len(z), 1, 8, 8)})
    for n, rows, pairs in ((16, 4, 4), (22, 5, 4), (3, 1, 3)):  # an incomplete row is left out
        x = torch.full((n, 1, 8, 8), 255, dtype=torch.uint8)
        sheet = training.reconstructions(model, Split(x, torch.zeros(n, dtype=torch.long)), torch.Generator())
        side, gaps = sheet.shape[0] // rows, (sheet == 255).all(0)
        assert gaps.sum() == 8 * (pairs - 1), "white between pairs"
        centres = sheet[:, ~gaps][side // 2 :: side, side // 2 :: side]
        assert centres.tolist() == [[255, 0] * pairs] * rows


@pytest.mark.slow
def test_a_conditional_models_samples_are_a_row_per_class():
    _, folder = quick_run("model=conditional", "epochs=15", "batch_size=32")
    with Image.open(sorted((folder / "images").glob("samples*"))[-1]) as picture:
        sheet = np.asarray(picture, dtype=float)
    assert sheet.shape[0] / sheet.shape[1] == 10 / 8
    cells = sheet.reshape(10, 28, 8, 28).transpose(0, 2, 1, 3)
    rows = cells.mean(1)
    within, between = (cells - rows[:, None]).std(), (rows - rows.mean(0)).std()
    assert between > 0.5 * within, "the label decides what is drawn"


@pytest.mark.parametrize("damage", ["truncated", "foreign", "pickle", "text", "missing", "newer"])
def test_a_bad_checkpoint_is_named_and_nothing_in_it_is_run(tmp_path, damage):
    path = tmp_path / "x.pt"
    if damage == "truncated":
        whole = (quick_run("epochs=0")[1] / "last.pt").read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "foreign":
        torch.save({"state_dict": {}}, path)
    elif damage == "pickle":

        class Evil:
            def __reduce__(self):
                return (open, (str(tmp_path / "ran"), "w"))

        path.write_bytes(pickle.dumps(Evil(), protocol=2))
    elif damage == "text":
        path.write_text("hello")
    elif damage == "newer":
        torch.save({"model": {}, "format": 99}, path)
    with pytest.raises(UserError, match=r"x\.pt"):
        checkpoints.load(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("group", ["network", "posterior", "prior", "likelihood"])
@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "vae_exp.train.train",
        "vae_exp.datasets.prepare",
        "vae_exp.networks.ACTIVATIONS",
        "vae_exp.networks.torch.load",
        "vae_exp.networks.nn.Linear",
        "vae_exp.networks.mlp.torch.load",
        "vae_exp.conv_networks.torch.load",
        "vae_exp.conv_networks.UserError",
        "vae_exp.likelihoods.torch.load",
        "vae_exp.likelihoods.Tensor",
    ],
)
def test_a_checkpoint_may_name_only_what_is_ours(trained, group, target):
    state = checkpoints.load(trained("epochs=0")[1] / "last.pt")
    state.config[group]["_target_"] = target
    with pytest.raises(UserError, match=f"{group}._target_={target}"):
        inference.rebuild(state)


@pytest.mark.slow
@pytest.mark.parametrize("network", ["conv", "resnet"])
@pytest.mark.parametrize(
    "likelihood", ["gaussian likelihood.sigma=learned", "gaussian likelihood.sigma=optimal", "discretized_logistic"]
)
def test_a_checkpoint_holds_what_a_likelihood_has_learned(network, likelihood):
    small = (f"network={network}", "network.channels=4", "model=conditional")
    summary, folder = quick_run(*small, *f"likelihood={likelihood}".split(), "epochs=2")
    state = checkpoints.load(folder / "best.pt")
    model = inference.rebuild(state)
    fresh = build.model(state.config, (1, 8, 8), 10).likelihood.state_dict()
    assert all(not torch.equal(value, fresh[name]) for name, value in model.likelihood.state_dict().items())
    measured = evaluate(model, build.dataset(state.config).read_test(), build.generator(0, "evaluation"))
    assert measured.per_image["neg_elbo"].mean().item() == summary["test/neg_elbo"]


@pytest.mark.slow
@pytest.mark.parametrize("network", ["conv", "resnet"])
def test_convolutions_learn(network):
    _, folder = quick_run(f"network={network}", "optimizer.lr=3e-3", "batch_size=32", "log_every_steps=1")
    losses = [row["train/loss"] for row in metrics(folder) if "train/loss" in row]
    assert losses[-1] < losses[0] - 10


@pytest.mark.slow
def test_an_autoencoder_is_told_apart_and_draws_no_samples(vae_train):
    code, said = vae_train("model=autoencoder", *QUICK, "wandb.mode=disabled", "hydra.run.dir=run")
    assert code == 0
    assert "autoencoder on digits" in said
    assert said.count("no prior to sample from") == 1
    pictures = sorted(path.name for path in Path("run/images").iterdir())
    assert pictures == ["reconstructions_0000011.png", "test_reconstructions_0000011.png"]
    summary = json.loads(Path("run/summary.json").read_text())
    assert summary["test/neg_elbo"] == summary["test/reconstruction"]
    assert summary["test/kl"] == 0


def test_a_call_hidden_deeper_in_a_checkpoint_is_not_made(tmp_path):
    state = checkpoints.load(quick_run("epochs=0")[1] / "last.pt")
    hidden = {"_target_": "builtins.open", "file": str(tmp_path / "ran"), "mode": "w"}
    state.config["network"]["hidden_dims"] = [hidden]
    for recursive in ({}, {"_recursive_": True}):  # which Hydra would obey
        state.config["network"] |= recursive
        with pytest.raises(UserError, match="its network is not a _target_ with plain values"):
            inference.rebuild(state)
    assert not (tmp_path / "ran").exists()


@needs_mnist
@pytest.mark.slow
def test_one_epoch_of_the_tutorial_reaches_the_tutorials_numbers():
    arguments = ("experiment=tutorial", "dataset=mnist", f"dataset.root={MNIST}", "epochs=1")
    summary, folder = quick_run(*arguments)
    epoch = next(row for row in metrics(folder) if "train_epoch/neg_elbo" in row)
    assert epoch["train_epoch/neg_elbo"] == pytest.approx(164.6, abs=1.5)
    assert summary["test/neg_elbo"] == pytest.approx(126.6, abs=2.5)
    assert (summary["parameters"], summary["train_size"]) == (652_824, 60_000)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("monitor", "mode"), [("val/kl", "max"), ("val/kl", "min"), ("train_epoch/reconstruction", "max")]
)
def test_any_number_of_an_epoch_can_choose_the_best(monitor, mode):
    words = (f"monitor={monitor}", f"monitor_mode={mode}", "early_stopping.patience=2", "model.z_dim=2")
    summary, folder = quick_run("epochs=6", *words)
    rows = [row for row in metrics(folder) if "val/kl" in row]
    choose = {"min": min, "max": max}[mode]
    best = choose(rows, key=lambda row: row[monitor])
    assert summary["best/epoch"] == best["epoch"] and summary["best/val_kl"] == best["val/kl"]
    assert summary[f"best/{monitor.replace('/', '_')}"] == best[monitor]
    ended_early = rows[-1]["epoch"] < 6
    assert ended_early == (rows[-1]["epoch"] - best["epoch"] == 2)
    assert (
        not ended_early
        or summary["reason"] == f"early_stopping.patience=2: no better {monitor} since epoch {best['epoch']}"
    )
    quick_run("epochs=2", *words, folder="part")
    again, _ = quick_run("epochs=6", *words, "resume=part", folder="part")
    assert {key: again[key] for key in again if key.startswith("best/")} == {
        key: summary[key] for key in summary if key.startswith("best/")
    }


def test_what_no_epoch_has_cannot_choose():
    with pytest.raises(UserError, match=r"monitor=val/mig: no such number is logged each epoch. There are .*val/kl"):
        quick_run("monitor=val/mig")
