"""Scores of disentanglement where users meet them: in a run, in vae-evaluate, in a sweep, in vae-compare."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import vae_exp
from tests.conftest import metrics, quick_run, recorded
from tests.test_report import CHROMIUM, FLAGS, needs_browser
from vae_exp import scores
from vae_exp.commands import factor_scores
from vae_exp.comparing.runs import SCORES
from vae_exp.config.rules import FACTOR_SCORES
from vae_exp.figures import factors as figures
from vae_exp.run import checkpoint
from vae_exp.scores import repeats

# 12 x 12 places of a square: 144 images, of which half are the test split.
PLACES = ("dataset=sprites", "dataset.factors={shape:[0],scale:1,orientation:1,x:12,y:12}", "dataset.test_size=0.5")
SMALL = (*PLACES, "dataset.val_size=24", "network.hidden_dims=[16]", "model.z_dim=3", "batch_size=16")


def codes_and_factors(folder, split="test"):
    model = vae_exp.load(folder)
    split = model.read_data().split(split)
    return model.encode(split.x).mean.numpy(), split.factors.varying()


def test_the_words_of_the_rules_are_the_scores_that_there_are():
    assert set(FACTOR_SCORES) == set(scores.SCORES)
    assert factor_scores.DEFAULT == repeats.DEFAULT
    keys = {key for score in scores.SCORES.values() for key in score.keys}
    assert {name.removeprefix("test/") for name in SCORES} <= keys


def test_a_run_measures_them_every_so_many_epochs_and_at_its_end():
    asked = ("scores=[mig,modularity]", "scores_every_epochs=2", "epochs=4")
    summary, folder = quick_run(*SMALL, *asked)
    rows = [row for row in metrics(folder) if "val/neg_elbo" in row]
    assert [row["epoch"] for row in rows if "val/mig" in row] == [2, 4]
    codes, factors = codes_and_factors(folder)
    assert factors.names == ["x", "y"]
    assert summary["test/mig"] == pytest.approx(scores.mig(codes, factors.table), abs=1e-6)
    assert summary["test/modularity"] == pytest.approx(scores.modularity(codes, factors.table), abs=1e-6)
    assert not [key for key in summary if "dci" in key]


def test_evaluate_measures_prints_writes_draws_and_keeps_them(vae_command):
    quick_run(*SMALL, wandb="offline")
    code, said = vae_command("vae-evaluate", "checkpoint=run")
    assert code == 0, said
    written = json.loads(Path("run/best.test.json").read_text())["scores"]
    assert written["factors"] == ["x", "y"]
    codes, factors = codes_and_factors("run")
    expected = scores.spread(codes, factors.table, repeats.DEFAULT, 36, 5, 0)
    for name, score in expected.items():
        assert written[name]["mean"] == pytest.approx(score.mean, abs=1e-3), name
        assert written[name]["std"] == pytest.approx(score.std, abs=1e-3), name
        assert f"\n{name} " in said
    assert "a factor of more than 20 values cannot reach 1" in said
    drawn = [Path("run/generated/factors.png"), Path("run/generated/factors_traversals.png")]
    assert all(path.stat().st_size > 1000 for path in drawn)
    assert vae_command("vae-evaluate", "checkpoint=run", "scores=[]")[0] == 0
    assert json.loads(Path("run/best.test.json").read_text())["scores"] == written
    assert vae_command("vae-evaluate", "checkpoint=run", "scores=[mig]", "score_repeats=1", "score_rows=72")[0] == 0
    again = json.loads(Path("run/best.test.json").read_text())["scores"]
    assert again["mig"]["mean"] == pytest.approx(scores.mig(codes, factors.table), abs=1e-6)
    assert again["mig"]["std"] is None
    assert "infom" not in again, "those of other rows do not stand beside it"

    (folder,) = Path("outputs/wandb").glob("offline-run-*-evaluate-*")
    final = {key: value for update in recorded(folder)["summary"] for key, value in update["update"].items()}
    assert final["evaluate/test/mig"] == pytest.approx(again["mig"]["mean"])
    assert list(folder.rglob("*factors_traversals*.png"))


@pytest.mark.parametrize(
    ("program", "typed", "says"),
    [
        ("vae-train", ("dataset=digits", "scores=[mig]"), "scores=[mig]: dataset=digits has no known factors; sprites"),
        ("vae-train", (*SMALL, "scores=[mig]", "dataset.val_size=12"), "the 12 held-out images do not suit them"),
        ("vae-train", ("dataset=digits", "scores=[mgi]"), "scores=[mgi]: it takes a list of mig, dci, infomec"),
        ("vae-evaluate", ("checkpoint=run", "scores=[mig]"), "scores=[mig]: this data set has no known factors"),
        ("vae-evaluate", ("checkpoint=factors", "score_rows=99"), "score_rows=99: the test split has 72 images"),
        ("vae-compare", ("run", "--udr"), "--udr: compares models with each other, and needs two runs or more"),
    ],
)
def test_a_mistake_is_one_message(program, typed, says, vae_command):
    if program != "vae-train":
        quick_run()
        quick_run(*SMALL, folder="factors")
    code, said = vae_command(program, *typed, *(["wandb.mode=disabled"] if program != "vae-compare" else []))
    assert code == 1
    assert says in said
    assert "Traceback" not in said
    assert not Path("outputs/wandb").exists()
    assert not Path("run/best.test.json").exists()


def test_the_matrix_and_the_traversals_are_of_the_latents_that_tell_most():
    _, folder = quick_run(*SMALL)
    information = np.array([[0.1, 2.0], [0.3, 0.2], [0.9, 0.1]])
    pixels = figures.matrix(information, ["x", "y $"])
    assert pixels.ndim == 3
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20
    model = vae_exp.load(folder).model
    by_x, by_y = (figures.traversals(model, information[:, chosen], ["a", "b"]) for chosen in ([0, 1], [1, 0]))
    half = len(by_x) // 2
    assert not np.array_equal(by_x, by_y), "the rows are those of other latents"
    assert np.ptp(by_x[half // 2 : half, -300:].astype(int)) > 0


def test_max_steps_ends_a_run_in_the_middle_of_an_epoch_and_more_of_them_go_on():
    settings = (*SMALL, "epochs=6")  # of 3 steps each
    quick_run(*settings, folder="whole")
    summary, folder = quick_run(*settings, "max_steps=7")
    assert (summary["state"], summary["reason"]) == ("finished", "max_steps=7 are taken")
    assert checkpoint.load(folder / "last.pt").step == 7
    assert summary["best/epoch"] <= 2
    quick_run(*settings, "max_steps=18", "resume=run")
    whole, resumed = (metrics(name) for name in ("whole", "run"))
    assert [row for row in resumed if "val/neg_elbo" in row][-1]["val/neg_elbo"] == whole[-1]["val/neg_elbo"]


def test_udr_is_a_column_of_the_runs_that_differ_in_their_seed(vae_command):
    codes, kl = [], []
    for seed in (0, 1, 2):
        _, folder = quick_run(*SMALL, f"seed={seed}", "epochs=2", folder=f"runs/s{seed}")
        model = vae_exp.load(folder)
        codes.append(model.encode(model.read_data().split("test").x).mean.numpy())
        kl.append(model.kl_per_dim)
    code, said = vae_command("vae-compare", "runs", "--udr", "--csv", "t.csv", "--columns", "run,udr")
    assert code == 0, said
    with Path("t.csv").open() as file:
        told = {row["run"]: float(row["udr"]) for row in csv.DictReader(file)}
    expected = scores.udr(codes, kl)
    assert [told[f"runs/s{seed}"] for seed in (0, 1, 2)] == pytest.approx(expected.tolist(), abs=1e-3)
    assert len(set(told.values())) > 1
    shutil.rmtree("runs/s2")
    code, said = vae_command("vae-compare", "runs", "--udr", "--fold-seeds")
    assert code == 0
    assert "udr" in said


@needs_browser
@pytest.mark.slow
def test_a_sweep_shows_what_the_scores_cost(vae_command):
    typed = ("-m", *SMALL, "epochs=2", "model=beta", "model.beta=1,8", "seed=0,1", "scores=[mig,infomec]", "device=cpu")
    code, said = vae_command("vae-train", *typed, "wandb.mode=disabled", "hydra.sweep.dir=sweep")
    assert code == 0, said
    assert "test/mig" in said
    assert "figure  sweep/trade_off.png" in said
    assert Path("sweep/trade_off.png").stat().st_size > 5000
    with Path("sweep/results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert all(0 <= float(row["test/mig"]) <= 1 and row["test/infoc"] for row in rows)
    assert "test/dci_disentanglement" not in rows[0]
    assert vae_command("vae-compare", "sweep", "--html", "page.html")[0] == 0

    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        page = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS).new_page()
        wrong = []
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(Path("page.html").absolute().as_uri())
        drawn = page.locator(".trade-off svg")
        assert drawn.count() == 3, "mig, infom and infoc"
        assert page.locator(".trade-off .point").count() == 12
        page.locator("table.runs tbody tr").first.hover()
        assert page.locator(".trade-off .point.marked").count() == 3
        assert not wrong
