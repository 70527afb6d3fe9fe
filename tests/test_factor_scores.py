"""Scores of disentanglement where users meet them: in a run, in vae-evaluate, in a sweep, in vae-compare."""

import csv
import dataclasses
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import vae_exp
from tests.conftest import QUICK, compose, metrics, quick_run, recorded
from tests.test_report import CHROMIUM, FLAGS, needs_browser
from vae_exp import scores
from vae_exp.commands import evaluation_table, factor_scores
from vae_exp.comparing.runs import SCORES, read_run
from vae_exp.config.rules import FACTOR_SCORES
from vae_exp.datasets import Data, Factors, Split
from vae_exp.errors import UserError
from vae_exp.figures import factors as figures
from vae_exp.run import checkpoint, evaluated, suiting
from vae_exp.scores import repeats
from vae_exp.scores.mutual_information import above_chance
from vae_exp.tracking import wandb_logged

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


def test_evaluate_measures_prints_writes_draws_and_keeps_them(vae_command, monkeypatch):
    seen, matrix, traversals = [], figures.matrix, figures.traversals
    monkeypatch.setattr(figures, "matrix", lambda found, *rest: (seen.append(found), matrix(found, *rest))[1])
    monkeypatch.setattr(
        figures, "traversals", lambda model, found, *rest: (seen.append(found), traversals(model, found, *rest))[1]
    )
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
    assert len(seen) == 2, "the matrix, and the traversals in its order"
    for information in seen:
        np.testing.assert_allclose(information, above_chance(codes, factors.table), atol=1e-6)
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
        (
            "vae-train",
            ("dataset=digits", "scores=[mig]"),
            "scores=[mig]: the test split of dataset=digits has no known factors; sprites, dsprites, shapes3d and "
            "mpi3d have them",
        ),
        (
            "vae-train",
            (*SMALL, "scores=[mig,dci]", "scores_every_epochs=1", "dataset.val_size=12"),
            "scores=[mig,dci] scores_every_epochs=1: the val split, 12 images, does not suit mig, dci (x has 7 values "
            "in 12 rows, and these scores need values that are met often). It needs a larger dataset.val_size.",
        ),
        (
            "vae-train",
            (*SMALL, "scores=[mig]", "dataset.test_size=12"),
            "scores=[mig]: the test split, 12 images, does not suit mig (x has 8 values in 12 rows, and these scores "
            "need values that are met often). It needs a larger dataset.test_size.",
        ),
        ("vae-train", ("dataset=digits", "scores=[mgi]"), "scores=[mgi]: it takes a list of mig, dci, infomec"),
        (
            "vae-evaluate",
            ("checkpoint=run", "scores=[mig]"),
            "scores=[mig]: the test split of dataset=digits has no known factors; sprites",
        ),
        ("vae-evaluate", ("checkpoint=factors", "score_rows=99"), "score_rows=99: the test split has 72 images"),
        (
            "vae-evaluate",
            ("checkpoint=factors", "scores=[mig]", "score_rows=20"),
            "scores=[mig]: the test split, 72 images, does not suit mig (x has 11 values in 20 rows, and these scores "
            "need values that are met often). What helps: score_repeats=1 without score_rows, which takes 72 images at "
            "once; or at training, a larger dataset.test_size.",
        ),
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


def known_of(changes):
    """Twenty images of one factor that has four values, or one."""
    factors = Factors(torch.arange(20)[:, None] % 4 * changes, ["a"], [4])
    return Split(torch.zeros(20, 1, 8, 8, dtype=torch.uint8), torch.zeros(20, dtype=torch.long), factors=factors)


FEW = (*SMALL, "dataset.test_size=36", "dataset.val_size=12")  # of a test split of 36 images half is too few


def test_default_scores_that_do_not_suit_are_left_out_with_a_note(vae_command, monkeypatch):
    quick_run(*FEW)
    code, said = vae_command("vae-evaluate", "checkpoint=run")
    assert code == 0, said
    (note,) = [line for line in said.splitlines() if line.startswith("left out")]
    assert "scores: the test split, 36 images, does not suit mig, dci, infomec (x has 1" in note
    assert "values in 18 rows" in note
    assert "score_repeats=1, which takes 36 images at once; or at training, a larger dataset.test_size" in note
    assert "scores=[] asks for none" in note
    assert "neg_elbo" in said
    assert "scores" not in json.loads(Path("run/best.test.json").read_text())
    assert "left out" not in vae_command("vae-evaluate", "checkpoint=run", "scores=[]")[1]
    assert vae_command("vae-evaluate", "checkpoint=run", "score_repeats=1")[0] == 0
    assert json.loads(Path("run/best.test.json").read_text())["scores"]["rows"] == 36
    monkeypatch.setattr("vae_exp.metrics.evaluate", lambda *_, **__: pytest.fail("it was measured"))
    code, said = vae_command("vae-evaluate", "checkpoint=run", "scores=[mig]", "samples=[frechet]")
    assert code == 1
    assert "scores=[mig]: the test split, 36 images, does not suit mig (x has 1" in said


def test_of_one_factor_the_scores_that_suit_are_measured(capsys):
    config = compose("dataset=sprites", "scores=[mig,sap,explicitness,factor_vae,beta_vae]")
    known = known_of(1)
    data = Data("sprites", known, known, lambda: known, 0, [], lambda: known)
    suiting.check(config, data, "val", known)
    model = SimpleNamespace(config=config)
    options = {"scores": None, "split": "test", "score_repeats": 5, "score_rows": None, "seed": 0}
    assert factor_scores.chosen(model, data, known, options) == (["mig"], 10)
    reason = "this score needs 2 factors or more, and there is 1, a"
    assert f"does not suit dci, infomec ({reason})" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"and there is 1, a.*training with more factors that vary .dataset.factors"):
        factor_scores.chosen(model, data, known, options | {"scores": ["dci"]})
    config["scores"] = ["mig", "modularity"]
    with pytest.raises(UserError, match=r"does not suit modularity .* It needs more factors that vary"):
        suiting.check(config, data, "val", known)
    still = known_of(0)
    with pytest.raises(UserError, match=r"does not suit mig, modularity .no factor varies"):
        suiting.check(config, dataclasses.replace(data, read_test=lambda: still), "val", known)


def test_validation_images_are_no_matter_where_scores_are_of_the_test_split_alone():
    summary, _ = quick_run(*SMALL, "scores=[mig]", "dataset.val_size=12")
    assert "test/mig" in summary


def test_a_source_of_ones_own_needs_factors_in_its_test_split():
    known = known_of(1)
    held_out = dataclasses.replace(known, factors=None)
    config = compose("dataset=sprites", "scores=[mig]")
    data = Data("own", known, known, lambda: held_out, 0, [], lambda: known)
    with pytest.raises(UserError, match=r"scores=\[mig\]: the test split of dataset=own has no known factors"):
        suiting.check(config, data, "val", known)
    suiting.check(config, dataclasses.replace(data, read_test=lambda: known), "val", held_out)


def test_a_score_that_is_no_number_is_written_nowhere(vae_command, monkeypatch):
    infomec = scores.InfoMEC(0.5, float("nan"), 0.25, np.zeros((3, 2)), np.zeros(3, bool))
    monkeypatch.setattr(repeats, "infomec", lambda *_, **__: infomec)
    summary, folder = quick_run(*SMALL, "scores=[infomec]", "scores_every_epochs=1")
    assert (summary["test/infom"], "test/infoc" in summary) == (0.5, False)
    assert "NaN" not in (folder / "summary.json").read_text() + (folder / "metrics.jsonl").read_text()
    code, said = vae_command("vae-evaluate", "checkpoint=run", "scores=[infomec]")
    assert code == 0, said
    assert said.count("left out  infoc: it is no number here") == 1
    written = json.loads(Path("run/best.test.json").read_text())["scores"]
    assert (written["infoe"]["mean"], "infoc" in written) == (0.25, False)


def test_a_run_that_holds_nan_for_a_score_is_read_without_it():
    _, folder = quick_run(*SMALL, "scores=[mig]")
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(summary | {"test/infoc": float("nan")}))
    run = read_run(folder)
    assert "test/mig" in run.metrics
    assert "test/infoc" not in run.metrics
    (folder / "summary.json").write_text(json.dumps(summary | {"test/kl": float("nan")}))
    with pytest.raises(UserError, match="test/kl is nan"):
        read_run(folder)


def test_the_last_lines_of_a_run_have_its_scores(vae_train):
    code, said = vae_train(*SMALL, *QUICK[1:], "scores=[mig,infomec]", "wandb.mode=disabled")
    assert code == 0, said
    number = r"-?\d\.\d{3}"
    of_infoc = f"(infoc {number}  infoc_published {number}  )?"
    infom = f"infom {number}  infom_published {number}  "
    assert re.search(f"\nscores    mig {number}  {infom}{of_infoc}infoe {number}\n", said)
    assert "\nscores " not in vae_train(*QUICK, "wandb.mode=disabled")[1]


def test_names_of_factors_reach_the_terminal_escaped(capsys):
    settings = {"rows": 4, "repeats": 2, "seed": 0, "factors": ["a\x1b[31m"]}
    evaluation_table._show_scores({}, {"scores": settings, "split": "test"})
    assert "of a\\x1b[31m" in capsys.readouterr().out


def test_the_spread_of_a_score_is_in_wandb_and_no_panel_of_its_own(tmp_path):
    score = {"mean": 0.5, "std": 0.1, "caution": ""}
    once = {"mean": 0.4, "std": None, "caution": ""}
    result = {"scores": {"rows": 4, "repeats": 2, "seed": 0, "factors": ["x"], "mig": score, "sap": once}}
    assert evaluated.numbers(result) == {"mig": 0.5, "mig_std": 0.1, "sap": 0.4}
    (tmp_path / "best.test.json").write_text(json.dumps(result))
    assert wandb_logged._scores(tmp_path) == ["evaluate/test/mig", "evaluate/test/sap"]


def test_the_matrix_and_the_traversals_are_of_the_latents_that_tell_most():
    _, folder = quick_run(*SMALL)
    information = np.array([[0.1, 2.0], [0.3, 0.2], [0.9, 0.1]])
    pixels = figures.matrix(information, ["x", "y $"])
    assert pixels.ndim == 3
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20
    nothing = figures.matrix(np.zeros((3, 2)), ["x", "y"])
    assert nothing[nothing.shape[0] // 2, nothing.shape[1] // 4].max() < 100, "dark where no latent tells anything"
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
    shutil.copytree("runs/s2", "runs/damaged")
    Path("runs/damaged/best.pt").write_bytes(b"no checkpoint")
    code, said = vae_command("vae-compare", "runs", "--udr", "--csv", "t.csv", "--columns", "run,udr")
    assert code == 0, said
    (note,) = [line for line in said.splitlines() if line.startswith("left out of udr")]
    assert "runs/damaged" in note
    shutil.rmtree("runs/damaged")
    with Path("t.csv").open() as file:
        told = {row["run"]: float(row["udr"]) for row in csv.DictReader(file) if row["udr"]}
    expected = scores.udr(codes, kl)
    assert [told[f"runs/s{seed}"] for seed in (0, 1, 2)] == pytest.approx(expected.tolist(), abs=1e-3)
    assert len(set(told.values())) > 1
    shutil.rmtree("runs/s2")
    code, said = vae_command("vae-compare", "runs", "--udr", "--fold-seeds")
    assert code == 0
    assert "udr" in said
    Path("runs/s1/best.pt").write_bytes(b"no checkpoint")
    code, said = vae_command("vae-compare", "runs", "--udr")
    assert code == 1
    assert "--udr: fewer than two runs of each kind could be loaded; the reasons stand above" in said


def test_udr_of_runs_that_do_not_compare_says_why(vae_command):
    for size in (24, 25):
        quick_run(*SMALL, f"dataset.val_size={size}", folder=f"runs/v{size}")
    code, said = vae_command("vae-compare", "runs", "--udr")
    assert code == 1
    assert "--udr: each of the 2 runs with a best.pt is of other data or another likelihood (dataset.val_size)" in said


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
