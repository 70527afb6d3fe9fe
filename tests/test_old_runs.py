"""Runs and options of version 0.1.0, before the code moved into wings: they load, measure, draw, compare and go on."""

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image, ImageDraw

import vae_exp
from tests.conftest import QUICK, metrics
from tests.test_data import write_idx
from vae_exp.config import build, migrations

OLD = Path(__file__).parent / "data" / "runs_of_0_1_0"
FINISHED = {"mlp": 2, "conv": 1, "image_folder": 1}  # and after how many epochs
SHAPE = (1, 8, 8)
ROUNDING = 1e-4  # float32's 6e-8, over some thousand sums of another processor's order and a few dozen steps


def draw_photos():
    """The images that the run of image_folder was trained on."""
    random.seed(0)
    for i in range(24):
        im = Image.new("L", (12, 10), 20 * (i % 5))
        ImageDraw.Draw(im).rectangle([i % 7, 2, i % 7 + 3, 6], fill=255)
        path = Path("photos", ["cat", "dog"][i % 2], f"{i:02}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        im.save(path)


@pytest.fixture(autouse=True)
def old_runs(alone, monkeypatch):
    """Copies to work in. Where a run's own cache is gone, images are decoded into the user's."""
    monkeypatch.delenv("VAE_EXP_DATA", raising=False)
    shutil.copytree(OLD, Path(), dirs_exist_ok=True)
    draw_photos()


def kept(folder):
    return json.loads(Path(folder, "summary.json").read_text())


@pytest.mark.parametrize("name", [*FINISHED, "interrupted"])
def test_an_old_model_loads_and_samples(name):
    model = vae_exp.load(name)
    images = model.sample(12, seed=0)
    assert images.shape == (12, *SHAPE)
    assert images.isfinite().all()
    assert torch.equal(images, vae_exp.load(f"{name}/best.pt").sample(12, seed=0))
    assert len(model.read_data().train) == kept(name)["train_size"]


@pytest.mark.parametrize("name", [*FINISHED, "interrupted"])
def test_an_old_model_measures_as_it_did(vae_command, name):
    split = "test" if name in FINISHED else "val"  # what its run measured last
    typed = ("repeats=1", f"split={split}", "label_accuracy=false", "device=cpu")
    code, said = vae_command("vae-evaluate", f"checkpoint={name}", *typed)
    assert code == 0, said
    now, then = json.loads(Path(name, f"best.{split}.json").read_text()), kept(name)
    prefix = "test/" if split == "test" else "best/val_"
    for number in ("neg_elbo", "reconstruction", "kl"):
        assert now[number] == pytest.approx(then[f"{prefix}{number}"], rel=ROUNDING)


@pytest.mark.parametrize("name", [*FINISHED, "interrupted"])
def test_an_old_model_draws(vae_command, name):
    for what in ("samples", "reconstructions"):
        code, said = vae_command("vae-generate", f"checkpoint={name}", f"what={what}", "n=4", "device=cpu")
        assert code == 0, said
    assert len(list(Path(name, "generated").glob("*.png"))) == 2


def test_old_runs_are_compared(vae_command):
    code, said = vae_command("vae-compare", *FINISHED, "interrupted")
    assert code == 0, said
    for name in FINISHED:
        assert f"{kept(name)['test/neg_elbo']:.3f}" in said
    assert all(f" {network} " in said for network in ("conv", "mlp"))
    code, said = vae_command("vae-compare", "conv", "--columns", "network,dataset")
    assert said.split() == ["run", "network", "dataset.name", "conv", "conv", "digits"]


@pytest.mark.slow
@pytest.mark.parametrize("name", FINISHED)
def test_an_old_run_trains_on(vae_train, name):
    before, epochs = metrics(name), FINISHED[name]
    code, said = vae_train(f"resume={name}", f"epochs={epochs + 1}")
    assert code == 0, said
    rows = metrics(name)
    assert rows[: len(before)] == before
    assert [row["epoch"] for row in rows if "val/kl" in row] == list(range(1, epochs + 2))
    code, said = vae_train(f"resume={name}", f"epochs={epochs + 2}", "batch_size=7")
    assert code == 1
    assert said.splitlines()[1:] == [f"batch_size=7: the run has batch_size={kept_config(name)['batch_size']}"]


def kept_config(folder):
    return yaml.safe_load(Path(folder, "config.yaml").read_text())


@pytest.mark.slow
def test_an_old_run_that_was_interrupted_goes_on_as_if_it_had_not_been(vae_train):
    code, said = vae_train("resume=interrupted")
    assert code == 0, said
    whole = [json.loads(line) for line in Path("interrupted/whole.jsonl").read_text().splitlines()]
    rows = metrics("interrupted")
    assert [row.keys() for row in rows] == [row.keys() for row in whole]
    for row, straight in zip(rows, whole, strict=True):
        for key in [key for key in row if not key.startswith("time/")]:
            assert row[key] == pytest.approx(straight[key], rel=ROUNDING), (row["step"], key)
    assert kept("interrupted")["state"] == "finished"


SHARED = "defaults:\n  - options@_here_: common\n  - _self_\n"
OWN = {
    "network/mine": "_target_: vae_exp.conv_networks.resnet\nchannels: 4\nblocks: 1\nactivation: relu\n",
    "dataset/mine": SHARED + "_target_: vae_exp.image_folder.image_folder\nname: mine\nroot: photos\nimage_size: 8\n"
    "channels: 1\ncrop: null\ntest_size: 0.1\non_error: skip\ncache: cache\nval_size: 0.1\n",
    # When the name was also what is read.
    "dataset/digits_of_mnist": SHARED + "_target_: vae_exp.datasets.torchvision_images\nname: mnist\nroot: data\n"
    "val_size: 5\n",
}


@pytest.fixture
def own_options():
    for name, content in OWN.items():
        path = Path("conf", f"{name}.yaml")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return ("--config-dir", "conf", *QUICK, "wandb.mode=disabled", "hydra.run.dir=run")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "today"),
    [
        ("network=mine", "vae_exp.networks.resnet"),
        ("dataset=mine", "vae_exp.datasets.image_folder"),
        ("dataset=digits_of_mnist", "vae_exp.datasets.torchvision_images"),
    ],
)
def test_an_option_of_ones_own_may_have_an_old_name(vae_train, own_options, option, today):
    write_idx(Path("data/MNIST/raw"))
    code, said = vae_train(*own_options, option)
    assert code == 0, said
    assert kept_config("run")[option.partition("=")[0]]["_target_"] == today
    assert vae_exp.load("run").sample(2).isfinite().all()


def test_every_old_name_leads_to_a_function_of_today():
    for target in migrations.MOVED.values():
        assert callable(build.resolve("dataset", target))


@pytest.mark.slow
def test_an_old_name_keeps_the_rules_of_what_it_means(vae_train, own_options):
    code, said = vae_train(*own_options, "network=mine", "network.channels=0")
    assert (code, "network.channels=0: it takes a whole number, 1 or more" in said) == (1, True)
    code, said = vae_train(*own_options, "dataset=mine", "dataset.channels=4")
    assert (code, "dataset.channels=4: it takes 1 (grey) or 3 (colour)" in said) == (1, True)
