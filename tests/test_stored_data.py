"""The data of a run that is over: found from wherever one stands, and refused where they are not those of training."""

import contextlib
import json
import logging
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import vae_exp
from tests.conftest import compose, metrics, stored
from tests.test_compare import finished
from tests.test_data import write_idx
from tests.test_images import flat
from vae_exp.compare.runs import fold_seeds
from vae_exp.compare.table import best_per_group, groups
from vae_exp.errors import UserError
from vae_exp.train import train

QUIET = ("wandb.mode=disabled", "device=cpu")
TINY = ("epochs=1", "likelihood=gaussian", "network.hidden_dims=[8]", "model.z_dim=3", "batch_size=16", *QUIET)
SMALL = ("dataset=image_folder", "dataset.image_size=8", "dataset.cache=cache", *TINY)
SWEPT = [word for word in SMALL if not word.startswith("model.z_dim")]


def draw(root, n=40, shade=0):
    """n different images of two classes."""
    for i in range(n):
        flat(Path(root, ("cat", "dog")[i % 2], f"{i:03}.png"), (6 * i % 256, shade, 3 * i))


def seen(data):
    return [split.x for split in (data.train, data.val, data.read_test())]


def are_equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def say_neg_elbo(run="run"):
    return json.loads(Path(run, "best.test.json").read_text())["neg_elbo"]


@pytest.fixture(autouse=True)
def own_cache(monkeypatch):
    """Where a run's own cache is gone, images are decoded into the user's."""
    monkeypatch.delenv("VAE_EXP_DATA", raising=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with images, factors of them, and a run on them; none of it lies where it lay in training any more."""
    here, base = Path.cwd(), tmp_path_factory.mktemp("stored")
    (base / "there").mkdir()
    os.chdir(base / "there")
    draw("imgs")
    files = [path.relative_to("imgs").as_posix() for path in sorted(Path("imgs").glob("*/*.png"))]
    Path("imgs/factors.csv").write_text("\n".join(["file,size", *(f"{f},{i % 3}" for i, f in enumerate(files)), ""]))
    train(compose(*SMALL, "dataset.root=imgs", "dataset.factors=factors.csv"), Path("outputs/run"))
    os.chdir(here)
    (base / "there").rename(base / "kept")
    return base / "kept"


@pytest.fixture
def copied(trained):
    """That folder in the current one, as it would be on another machine."""
    shutil.copytree(trained, Path("A"))
    return Path("A/outputs/run")


@pytest.mark.slow
def test_a_relative_path_means_the_same_from_another_folder(vae_train, vae_command, monkeypatch):
    for folder, shade in (("A", 0), ("B", 255)):
        draw(f"{folder}/imgs", shade=shade)
    monkeypatch.chdir("A")
    typed = (*SMALL, "dataset.root=imgs")
    for run, epochs in (("run", 1), ("whole", 2)):
        assert vae_train(*typed, f"epochs={epochs}", f"hydra.run.dir={run}")[0] == 0
    assert vae_command("vae-evaluate", "checkpoint=run", *QUIET)[0] == 0
    before, images = say_neg_elbo(), seen(vae_exp.load("run").read_data())
    monkeypatch.chdir("../B")
    assert vae_command("vae-evaluate", "checkpoint=../A/run", *QUIET)[0] == 0
    assert say_neg_elbo("../A/run") == before
    assert are_equal(images, seen(vae_exp.load("../A/run").read_data()))
    code, said = vae_train("resume=../A/run", "epochs=2")
    assert code == 0, said
    rows, whole = (
        [row["val/neg_elbo"] for row in metrics(f"../A/{run}") if "val/kl" in row] for run in ("run", "whole")
    )
    assert rows == whole, "trained on with the images of A"
    assert not Path("cache").exists()
    code, said = vae_train(*typed, "epochs=3", "hydra.run.dir=../A/run", "resume=../A/run")
    assert code == 1, "typed here, it means the images that lie here"
    assert "B/imgs: these are not the data of training any more: changed cat/000.png" in said
    code, said = vae_train(*typed, "epochs=3", "resume=../A/run", "dataset.root=../A/imgs")
    assert code == 0, said


def test_a_run_that_was_moved_with_its_data_finds_them(copied, vae_train, vae_command, monkeypatch):
    data = vae_exp.load(copied).read_data()
    assert are_equal(seen(data), seen(vae_exp.load(copied).read_data("A/imgs")))
    assert vae_exp.load(copied).sample(3, sampler="gmm", seed=0).shape == (3, 3, 8, 8)
    vae_exp.load(copied).export("A/weights.safetensors")
    assert are_equal(seen(data), seen(vae_exp.load("A/weights.safetensors").read_data()))
    code, said = vae_command("vae-generate", f"checkpoint={copied}", "what=reconstructions", "n=4", "device=cpu")
    assert code == 0, said
    Path("A").rename("C")
    draw("imgs", shade=99)  # in the way of whoever looks in the current folder
    assert are_equal(seen(data), seen(vae_exp.load("C/outputs/run").read_data()))
    Path("C").rename("D")
    Path("D/imgs/cat").rename("D/imgs/elsewhere")
    shutil.rmtree("D/imgs")
    code, said = vae_command("vae-evaluate", "checkpoint=D/outputs/run", *QUIET)
    assert code == 1
    assert f"there/imgs: the data of the run are not there, nor at {Path.cwd()}/D/imgs" in said
    assert "Say where they lie now: dataset.root=PATH" in said


@pytest.mark.slow
def test_a_moved_run_goes_on_with_the_data_beside_it(vae_train, monkeypatch):
    draw("A/imgs")
    monkeypatch.chdir("A")
    assert vae_train(*SMALL, "dataset.root=imgs", "hydra.run.dir=outputs/run")[0] == 0
    monkeypatch.chdir("..")
    Path("A").rename("B")
    code, said = vae_train("resume=B/outputs/run", "epochs=2")
    assert code == 0, said
    config = yaml.safe_load(Path("B/outputs/run/config.yaml").read_text())
    assert config["dataset"]["root"] == str(Path("B/imgs").absolute())
    shutil.rmtree("B/imgs")
    code, said = vae_train("resume=B/outputs/run", "epochs=3")
    assert code == 1
    assert "B/imgs: the data of the run are not there" in said


@pytest.mark.slow
def test_a_run_below_a_home_goes_on_below_another(vae_train, monkeypatch):
    monkeypatch.setenv("HOME", str(Path("one").absolute()))
    draw("one/imgs")
    assert vae_train(*SMALL, "dataset.root=~/imgs", "hydra.run.dir=run")[0] == 0
    monkeypatch.setenv("HOME", str(Path("other").absolute()))
    code, said = vae_train("resume=run", "epochs=2")
    assert code == 0, said


def edit(table, old, new):
    text = table.read_text()
    assert old in text
    table.write_text(text.replace(old, new))


def add(root):
    flat(root / "cat" / "040.png", (1, 2, 3))
    edit(root / "factors.csv", "cat/000.png", "cat/040.png,0\ncat/000.png")


def take(root):
    (root / "cat" / "002.png").unlink()


def change(root):
    flat(root / "dog" / "001.png", (9, 9, 9))


def rename_class(root):
    (root / "cat").rename(root / "kitten")
    edit(root / "factors.csv", "cat/", "kitten/")


def change_factors(root):
    edit(root / "factors.csv", "cat/000.png,0", "cat/000.png,1")


CHANGES = {
    add: "42 files, and were 41; new cat/040.png; changed dataset.factors",
    take: "40 files, and were 41; gone cat/002.png",
    change: "changed dog/001.png",
    rename_class: "the classes are dog, kitten, and were cat, dog",
    change_factors: "changed dataset.factors",
}


@pytest.mark.parametrize("how", CHANGES)
def test_data_that_have_changed_are_refused_and_the_change_is_named(copied, how):
    how(Path("A/imgs"))
    model = vae_exp.load(copied)
    for use in (model.read_data, lambda: model.sample(1, sampler="aggregate"), lambda: model.read_data("A/imgs")):
        with pytest.raises(UserError, match=CHANGES[how]) as error:
            use()
        assert "not the data of training any more" in str(error.value)
        assert "dataset.root=PATH" in str(error.value)


@pytest.mark.slow
def test_a_table_of_factors_elsewhere_moves_with_its_images(vae_train):
    draw("A/imgs")
    files = sorted(path.relative_to("A/imgs").as_posix() for path in Path("A/imgs").glob("*/*.png"))
    Path("A/tables").mkdir()
    Path("A/tables/sizes.csv").write_text("\n".join(["file,size", *(f"{f},{i % 3}" for i, f in enumerate(files)), ""]))
    typed = (*SMALL, "dataset.root=A/imgs", f"dataset.factors={Path.cwd()}/A/tables/sizes.csv")
    assert vae_train(*typed, "hydra.run.dir=A/run")[0] == 0
    before = vae_exp.load("A/run").read_data().train.factors.table
    shutil.copytree("A", "B")
    edit(Path("A/tables/sizes.csv"), "cat/000.png,0", "cat/000.png,1")
    assert torch.equal(before, vae_exp.load("B/run").read_data().train.factors.table)
    shutil.rmtree("A")
    assert torch.equal(before, vae_exp.load("B/run").read_data().train.factors.table)
    code, said = vae_train("resume=B/run", "epochs=2")
    assert code == 0, said


def test_a_touch_another_name_and_other_files_beside_change_nothing(copied):
    before = seen(vae_exp.load(copied).read_data())
    for path in Path("A/imgs").rglob("*"):
        os.utime(path, (0, 0))
    Path("A/imgs/notes.txt").write_text("no image")
    Path("A/imgs").rename("other name")
    assert are_equal(before, seen(vae_exp.load(copied).read_data("other name")))


@pytest.mark.slow
def test_commands_refuse_a_grown_folder_until_it_is_as_it_was(vae_train, vae_command):
    draw("imgs")
    assert vae_train(*SMALL, "dataset.root=imgs", "hydra.run.dir=run")[0] == 0
    draw("imgs", n=44)
    for typed in (
        ("vae-evaluate", "checkpoint=run", *QUIET),
        ("vae-evaluate", "checkpoint=run", "dataset.root=imgs", "split=val", *QUIET),
        ("vae-generate", "checkpoint=run", "what=reconstructions"),
        ("vae-generate", "checkpoint=run", "sampler=gmm"),
        ("vae-train", "resume=run", "epochs=2"),
    ):
        code, said = vae_command(*typed)
        assert code == 1
        assert "44 files, and were 40; new cat/040.png, cat/042.png, dog/041.png and 1 more" in said, typed
    assert not Path("run/best.test.json").exists()
    for i in range(40, 44):
        Path("imgs", ("cat", "dog")[i % 2], f"{i:03}.png").unlink()
    assert vae_command("vae-evaluate", "checkpoint=run", *QUIET)[0] == 0
    assert vae_train("resume=run", "epochs=2")[0] == 0


def test_a_test_folder_of_its_own_is_known_too():
    for part in ("train", "test"):
        draw(f"imgs/{part}", n=20)
    train(compose(*SMALL, "dataset.root=imgs"), Path("run"))
    flat(Path("imgs/test/cat/004.png"), (1, 1, 1))
    with pytest.raises(UserError, match=r"changed test/cat/004.png\."):
        vae_exp.load("run").read_data()


@pytest.mark.slow
def test_of_many_files_a_record_stays_small_and_names_the_place():
    draw("imgs", n=600)
    train(compose(*SMALL, "dataset.root=imgs"), Path("run"))
    assert len(stored(Path("run/best.pt"))["origin"]["data"]["files"]) <= 256
    flat(Path("imgs/cat/301.png"), (1, 1, 1))
    with pytest.raises(UserError, match=r"601 files, and were 600; among cat/\d+.png to cat/\d+.png \(4, and were 3\)"):
        vae_exp.load("run").read_data()


def arrays(**changes):
    held = {
        "images": np.arange(60 * 64, dtype=np.uint32).astype(np.uint8).reshape(60, 8, 8),
        "labels": np.arange(60) % 3,
    }
    return held | changes


def test_arrays_are_known_by_their_contents():
    np.savez("mine.npz", **arrays())
    train(compose("dataset=arrays", "dataset.root=mine.npz", *TINY), Path("run"))
    before = seen(vae_exp.load("run").read_data())
    np.savez_compressed("mine.npz", other=np.arange(3), **arrays())
    assert are_equal(before, seen(vae_exp.load("run").read_data())), "the same arrays"
    np.savez("mine.npz", **arrays(labels=(np.arange(60) + 1) % 3))
    with pytest.raises(UserError, match=r"changed labels\."):
        vae_exp.load("run").read_data()
    images = arrays()["images"]
    images[31, 4, 4] += 1
    np.savez("mine.npz", **arrays(images=images))
    with pytest.raises(UserError, match=r"changed images\."):
        vae_exp.load("run").read_data()


def test_files_of_torchvision_are_known_wherever_they_lie(monkeypatch):
    write_idx(Path("data/MNIST/raw"))
    train(compose("dataset=mnist", "dataset.root=data", "dataset.val_size=5", *TINY), Path("run"))
    before = seen(vae_exp.load("run").read_data())
    Path("data").rename("mine")
    monkeypatch.setenv("VAE_EXP_DATA", str(Path("mine").absolute()))
    assert are_equal(before, seen(vae_exp.load("run").read_data())), "where the data of this user lie"
    path = Path("mine/MNIST/raw/t10k-images-idx3-ubyte")
    path.write_bytes(path.read_bytes()[:-1] + b"\7")
    with pytest.raises(UserError, match="changed t10k-images-idx3-ubyte"):
        vae_exp.load("run").read_data()


OWN = """
import torch
from vae_exp.datasets import Source, Split

def mine(name, root):
    x = torch.arange(40 * 64).view(40, 1, 8, 8).mul({factor}).to(torch.uint8)
    split = Split(x, torch.arange(40) % {classes})
    return Source(name, split[10:], lambda: split[:10], [str(i) for i in range({classes})])
"""


@pytest.mark.parametrize(
    ("now", "says"),
    [
        ({"factor": 3}, "changed images of train"),
        ({"classes": 4}, "the classes are 0, 1, 2 and 1 more, and were 0, 1"),
    ],
)
def test_a_dataset_of_ones_own_is_known_by_some_of_its_rows(monkeypatch, now, says):
    then = {"factor": 1, "classes": 2}
    monkeypatch.syspath_prepend(Path.cwd())
    Path("mydata.py").write_text(OWN.format(**then))
    Path("here").mkdir()
    own = (
        "~dataset",
        "+dataset._target_=mydata.mine",
        "+dataset.name=mine",
        "+dataset.root=here",
        "+dataset.n_classes=null",
    )
    train(compose(*own, "+dataset.val_size=10", "+dataset.seed=0", *TINY), Path("run"))
    assert vae_exp.load("run").config["dataset"]["root"] == str(Path("here").absolute())
    before = seen(vae_exp.load("run", trust=True).read_data())
    assert are_equal(before, seen(vae_exp.load("run", trust=True).read_data()))
    Path("mydata.py").write_text(OWN.format(**then | now))
    with contextlib.suppress(KeyError):
        del sys.modules["mydata"]
    shutil.rmtree("__pycache__", ignore_errors=True)
    with pytest.raises(UserError, match=says):
        vae_exp.load("run", trust=True).read_data()
    sys.modules.pop("mydata", None)


def without_origin(run, files="*.pt"):
    """As an older version left it: what was typed, and no record of the data."""
    for path in Path(run).glob(files):
        state = stored(path)
        state.pop("origin", None)  # a second name of the same file has lost it
        state["config"]["dataset"]["root"] = "imgs"
        torch.save(state, path)
    if files != "*.pt":
        return
    path = Path(run, "config.yaml")
    config = yaml.safe_load(path.read_text())
    config["dataset"]["root"] = "imgs"
    path.write_text(yaml.safe_dump(config))


@pytest.mark.slow
def test_an_older_run_finds_its_data_by_hydras_record_and_says_that_it_cannot_know(vae_train, monkeypatch, caplog):
    draw("A/imgs")
    draw("B/imgs", shade=200)
    monkeypatch.chdir("A")
    assert vae_train(*SMALL, "dataset.root=imgs", "hydra.run.dir=run")[0] == 0
    before = seen(vae_exp.load("run").read_data())
    without_origin("run")
    monkeypatch.chdir("../B")
    logging.getLogger("vae_exp.files").addHandler(caplog.handler)  # Hydra has taken the others away
    assert are_equal(before, seen(vae_exp.load("../A/run").read_data()))
    shutil.copytree("../A/run", "../A/second")
    vae_exp.load("../A/second").read_data()
    assert caplog.text.count("whether they have changed since cannot be told") == 1
    code, said = vae_train("resume=../A/run", "epochs=2")
    assert code == 0, said
    root = yaml.safe_load(Path("../A/run/config.yaml").read_text())["dataset"]["root"]
    assert root == str(Path("../A/imgs").resolve())
    without_origin("../A/run", "best.pt")  # as where no later epoch is better
    assert are_equal(before, seen(vae_exp.load("../A/run").read_data()))
    draw("../A/imgs", n=44)
    with pytest.raises(UserError, match=r"\d+ training images, and were \d+"):
        vae_exp.load("../A/run").read_data()


@pytest.mark.parametrize(
    "wrong", [3, {}, {"root": 1, "from_run": None, "data": {}}, ["data", "files", [["a", "b", 1]]]]
)
def test_an_origin_that_is_none_is_damaged(copied, wrong):
    state = stored(copied / "best.pt")
    if isinstance(wrong, list):
        state["origin"][wrong[0]][wrong[1]] = wrong[2]
    else:
        state["origin"] = wrong
    torch.save(state, copied / "best.pt")
    with pytest.raises(UserError, match="not a checkpoint that this version reads"):
        vae_exp.load(copied)


@pytest.mark.slow
def test_a_sweep_grows_from_another_folder_on_the_same_data_alone(vae_train, monkeypatch):
    draw("A/imgs")
    draw("B/imgs", shade=99)
    monkeypatch.chdir("A")
    typed = ("-m", *SWEPT)
    code, said = vae_train(*typed, "dataset.root=imgs", "model.z_dim=3,4", "hydra.sweep.dir=sweep")
    assert code == 0, said
    kept = Path("sweep/z_dim-3/summary.json").read_bytes()
    monkeypatch.chdir("../B")
    for root in ("imgs", "../B/imgs"):
        code, said = vae_train(*typed, f"dataset.root={root}", "model.z_dim=3,4,5", "sweep.resume=../A/sweep")
        assert (code, "the data have changed since the sweep began" in said) == (1, True), said
    code, said = vae_train(*typed, "dataset.root=../A/imgs", "model.z_dim=3,4,5", "sweep.resume=../A/sweep")
    assert code == 0, said
    assert said.count("already finished") == 2
    assert Path("../A/sweep/z_dim-3/summary.json").read_bytes() == kept
    assert Path("../A/sweep/z_dim-5/summary.json").exists()


@pytest.mark.slow
def test_a_sweep_over_folders_keeps_its_jobs_when_it_grows(vae_train, monkeypatch):
    for name in ("cats", "dogs"):
        draw(f"A/{name}", shade=len(name))
    monkeypatch.chdir("A")
    typed = ("-m", *SWEPT, "dataset.root=cats,dogs")
    assert vae_train(*typed, "hydra.sweep.dir=sweep")[0] == 0
    assert {path.parent.name for path in Path("sweep").glob("*/summary.json")} == {"root-cats", "root-dogs"}
    code, said = vae_train(*typed, "model.z_dim=4,20", "sweep.resume=sweep")
    assert code == 0, said
    assert said.count("already finished") == 2
    names = {f"root-{root}{z_dim}" for root in ("cats", "dogs") for z_dim in ("", "_z_dim-4")}
    assert {path.parent.name for path in Path("sweep").glob("*/summary.json")} == names
    monkeypatch.chdir("..")
    code, said = vae_train(*typed, "model.z_dim=4,20", "sweep.resume=A/sweep")
    assert (code, "the sweep was started with" in said) == (1, True), "cats and dogs are not in this folder"


def test_runs_on_the_same_data_compare_wherever_these_lie(vae_command, monkeypatch):
    draw("A/imgs")
    for folder in ("B", "C"):
        shutil.copytree("A/imgs", f"{folder}/imgs")
    draw("C/imgs", n=44)
    for seed, folder in enumerate("ABC"):
        monkeypatch.chdir(folder)
        train(compose(*SMALL, "dataset.root=imgs", f"seed={seed}"), Path("../runs", folder))
        monkeypatch.chdir("..")
    _, said = vae_command("vae-compare", "runs/A", "runs/B")
    assert "do not compare" not in said
    _, said = vae_command("vae-compare", "runs/A", "runs/B", "--fold-seeds")
    assert " ± " in said, "one line of both"
    _, said = vae_command("vae-compare", "runs")
    unwrapped = " ".join(said.split())
    assert "runs of different data or likelihood do not compare: a best of each (dataset.root" in unwrapped


def own(root, data, number=1.0, **config):
    run = finished(root, number, dataset="image_folder", dataset__root=root, **config)
    run.data = data
    return run


def test_data_are_told_apart_by_their_digest_and_else_by_where_they_lie():
    here, moved, changed, older, elsewhere = (
        own("cats", "1a"), own("dogs", "1a"), own("cats", "2b"), own("cats", None), own("mice", None),
    )  # fmt: skip
    assert len(best_per_group([here, moved])) == 1
    assert len(best_per_group([here, changed])) == 2
    assert len(best_per_group([here, older])) == 1
    assert len(best_per_group([here, elsewhere])) == 2
    assert sorted(len(group) for group in groups([here, changed, older])) == [1, 1, 1], "which of them, nobody knows"
    seeds = [own("cats", "1a", seed=0), own("dogs", "1a", seed=1), own("cats", "2b", seed=2)]
    assert [run.seeds for run in fold_seeds(seeds)] == [2, 1]
