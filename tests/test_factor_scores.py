"""Scores of disentanglement where users meet them: in a run, in vae-evaluate, in a sweep, in vae-compare."""

import csv
import dataclasses
import json
import math
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import vae_exp
from tests.conftest import CHROMIUM, FLAGS, QUICK, compose, metrics, needs_browser, quick_run, recorded
from vae_exp import scores
from vae_exp.compare.runs import SCORES, read_run
from vae_exp.config.schema import FACTOR_SCORES
from vae_exp.datasets import Data, Factors, Split
from vae_exp.distributions import DiagonalGaussian, Point
from vae_exp.errors import UserError
from vae_exp.evaluation import factor_scores, results
from vae_exp.evaluation import metrics as metrics_of
from vae_exp.figures import latent_walks as figures
from vae_exp.scores import repeats
from vae_exp.scores.mig import above_chance
from vae_exp.training import checkpoints, dry_run

# 12 x 12 places of a square: 144 images, of which half are the test split.
PLACES = ("dataset=sprites", "dataset.factors={shape:[0],scale:1,orientation:1,x:12,y:12}", "dataset.test_size=0.5")
SMALL = (*PLACES, "dataset.val_size=24", "network.hidden_dims=[16]", "model.z_dim=3", "batch_size=16")


def codes_and_factors(folder, split="test"):
    model = vae_exp.load(folder)
    split = model.read_data().split(split)
    return model.encode(split.x).mean.numpy(), split.factors.varying()


def kl_of_latents(folder, split="test"):
    """The mean KL of each latent, [Z] nats, in float64."""
    model = vae_exp.load(folder)
    q = model.encode(model.read_data().split(split).x)
    mean, log_var = q.mean.double(), q.log_var.double()
    return (0.5 * (mean.square() + log_var.expm1() - log_var)).mean(0).numpy()


def test_the_words_of_the_rules_are_the_scores_that_there_are():
    assert set(FACTOR_SCORES) == set(scores.SCORES)
    keys = {key for score in scores.SCORES.values() for key in score.cautions}
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


@pytest.mark.slow
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
    told = np.minimum(above_chance(codes, factors.table), kl_of_latents("run")[:, None])  # a latent tells no more
    for information in seen:
        np.testing.assert_allclose(information, told, atol=1e-6)
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


@pytest.mark.slow
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
    monkeypatch.setattr("vae_exp.evaluation.metrics.evaluate", lambda *_, **__: pytest.fail("it was measured"))
    code, said = vae_command("vae-evaluate", "checkpoint=run", "scores=[mig]", "samples=[frechet]")
    assert code == 1
    assert "scores=[mig]: the test split, 36 images, does not suit mig (x has 1" in said


def test_of_one_factor_the_scores_that_suit_are_measured(capsys):
    config = compose("dataset=sprites", "scores=[mig,sap,explicitness,factor_vae,beta_vae]")
    known = known_of(1)
    data = Data("sprites", known, known, lambda: known, 0, [], lambda: known)
    dry_run.check_data(config, data, "val", known)
    model = SimpleNamespace(config=config)
    options = {"scores": None, "split": "test", "score_repeats": 5, "score_rows": None, "seed": 0}
    assert factor_scores.choose(model, data, known, options) == (["mig"], 10)
    reason = "this score needs 2 factors or more, and there is 1, a"
    assert f"does not suit dci, infomec ({reason})" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"and there is 1, a.*training with more factors that vary .dataset.factors"):
        factor_scores.choose(model, data, known, options | {"scores": ["dci"]})
    config["scores"] = ["mig", "modularity"]
    with pytest.raises(UserError, match=r"does not suit modularity .* It needs more factors that vary"):
        dry_run.check_data(config, data, "val", known)
    still = known_of(0)
    with pytest.raises(UserError, match=r"does not suit mig, modularity .no factor varies"):
        dry_run.check_data(config, dataclasses.replace(data, read_test=lambda: still), "val", known)


def test_validation_images_are_no_matter_where_scores_are_of_the_test_split_alone():
    summary, _ = quick_run(*SMALL, "scores=[mig]", "dataset.val_size=12")
    assert "test/mig" in summary


def test_a_source_of_ones_own_needs_factors_in_its_test_split():
    known = known_of(1)
    held_out = dataclasses.replace(known, factors=None)
    config = compose("dataset=sprites", "scores=[mig]")
    data = Data("own", known, known, lambda: held_out, 0, [], lambda: known)
    with pytest.raises(UserError, match=r"scores=\[mig\]: the test split of dataset=own has no known factors"):
        dry_run.check_data(config, data, "val", known)
    dry_run.check_data(config, dataclasses.replace(data, read_test=lambda: known), "val", held_out)


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_last_lines_of_a_run_have_its_scores(vae_train):
    code, said = vae_train(*SMALL, *QUICK[1:], "scores=[mig,infomec]", "wandb.mode=disabled")
    assert code == 0, said
    number = r"-?\d\.\d{3}"
    of_infoc = f"(infoc {number}  infoc_published {number}  )?"
    infom = f"infom {number}  infom_published {number}  "
    assert re.search(f"\nscores    mig {number}  {infom}{of_infoc}infoe {number}\n", said)
    assert "\nscores " not in vae_train(*QUICK, "wandb.mode=disabled")[1]


@pytest.mark.slow
def test_scores_of_a_collapsed_model_carry_a_warning(vae_command, vae_train, monkeypatch):
    """Its means still tell how large a square is, by differences that the noise of q(z|x) covers."""
    drawn, matrix = [], figures.matrix
    monkeypatch.setattr(figures, "matrix", lambda found, *rest: (drawn.append(found), matrix(found, *rest))[1])
    larger = "dataset.factors={shape:[0],scale:6,orientation:4,x:4,y:4}"
    collapse = ("model=beta", "model.beta=1000", "epochs=3", "scores=[mig]", "scores_every_epochs=1", *QUICK[2:])
    code, said = vae_train(*SMALL, larger, *collapse, "hydra.run.dir=run", "wandb.mode=disabled")
    assert code == 0, said
    assert said.count("scores: the means of q(z|x), which they read, tell more than z with its noise carries") == 1
    assert "no latent is active" in said
    code, said = vae_command("vae-evaluate", "checkpoint=run", "wandb.mode=disabled")
    assert code == 0, said
    found = json.loads(Path("run/best.test.json").read_text())
    assert f"warning: {found['scores']['warning']}\n" in said
    kl, (codes, factors) = kl_of_latents("run"), codes_and_factors("run")
    told = above_chance(codes, factors.table)
    worst = (told.max(1) - kl).argmax()
    name = factors.names[told[worst].argmax()]
    assert told[worst].max() > 5 * kl.sum(), "else this tests nothing"
    assert f"z{worst} {told[worst].max():.2f} about {name}, KL {kl[worst]:.2f}" in found["scores"]["warning"]
    assert (drawn[-1].max(1) <= kl * (1 + 1e-5)).all(), "the picture shows what latents carry"
    before = found["scores"]
    assert vae_command("vae-evaluate", "checkpoint=run", "scores=[]", "wandb.mode=disabled")[0] == 0
    assert json.loads(Path("run/best.test.json").read_text())["scores"] == before
    assert "warning" not in results.scores_of({"scores": before})
    assert results.read(Path("run/best.test.json"))["scores"] == before


def test_what_chance_finds_of_few_images_is_no_warning():
    rng = np.random.default_rng(0)
    for images in (30, 60, 200):
        for _ in range(5):
            table = np.stack([rng.integers(0, n, images) for n in (3, 4, 5)], axis=1)
            factors = Factors(torch.tensor(table), ["shape", "scale", "x"], [3, 4, 5])
            inactive = 0.01 * rng.standard_normal((images, 5))  # of a KL of 0.00, beside latents that carry all
            mean = torch.tensor(np.concatenate([table - table.mean(0), inactive], axis=1))
            q = DiagonalGaussian(mean, torch.tensor([-6.0] * 3 + [0.0] * 5).expand(images, -1))
            measured = metrics_of.Evaluation(q, torch.zeros(1, images), q.kl_to_prior())
            told = above_chance(measured.q.mean, factors.table)
            assert metrics_of.scores_warning(measured, factors, told) is None


def test_scores_of_what_latents_carry_have_no_warning_and_an_autoencoder_no_bound():
    factors = Factors(torch.cartesian_prod(torch.arange(6), torch.arange(6)).repeat(10, 1), ["x", "y"], [6, 6])
    mean = factors.table.float() - 2.5

    def warning(q):
        measured = metrics_of.Evaluation(q, torch.zeros(1, 360), q.kl_to_prior().double())
        return metrics_of.scores_warning(measured, factors)

    assert warning(DiagonalGaussian(mean, torch.full_like(mean, -4.0))) is None
    assert warning(Point(0.001 * mean)) is None
    found = warning(DiagonalGaussian(torch.stack([0.001 * mean[:, 0], mean[:, 1]], 1), torch.tensor([0.0, -4.0])))
    # Of a perfect code the estimate has log 6, less the little that it finds of shuffled factors.
    told = float(re.search(r"z0 (\d\.\d\d) about x, KL 0.00 nats \(1 of 2 latents\)$", found)[1])
    assert math.log(6) - 0.1 < told < math.log(6)


def arrays_of_shapes(path="shapes.npz", **others):
    """64 images whose labels are their shape, under another numbering; the rest of their factors as given."""
    rng = np.random.default_rng(0)
    shape = np.arange(64) % 4
    table = np.stack([shape, *others.values()], 1)
    images = rng.integers(0, 256, (64, 8, 8), dtype=np.uint8)
    halves = {"test_images": images, "test_labels": 30 - 10 * shape, "test_factors": table}
    np.savez(path, images=images, labels=30 - 10 * shape, factors=table, factor_names=["shape", *others], **halves)


ARRAYS = ("dataset=arrays", "dataset.root=shapes.npz", "dataset.val_size=16", "network.hidden_dims=[16]")


@pytest.mark.slow
def test_the_factor_that_a_conditional_model_is_given_is_left_out(vae_command, vae_train, monkeypatch):
    drawn, matrix, traversals = [], figures.matrix, figures.traversals
    monkeypatch.setattr(
        figures, "matrix", lambda found, names, *rest: (drawn.append(names), matrix(found, names, *rest))[1]
    )
    monkeypatch.setattr(
        figures,
        "traversals",
        lambda model, found, names, *rest: (drawn.append(names), traversals(model, found, names, *rest))[1],
    )
    given = "left out  x of the scores: the model is given it as its label (model.conditional=true)"
    typed = (*SMALL, "dataset.label=x", "scores=[mig]", "scores_every_epochs=1", "epochs=1", "device=cpu")
    code, said = vae_train(*typed, "model=conditional", "model.z_dim=3", "hydra.run.dir=run", "wandb.mode=disabled")
    assert code == 0, said
    assert given in said
    model = vae_exp.load("run")
    split = model.read_data().split("test")
    codes = model.encode(split.x, split.y).mean.numpy()
    of_y = scores.mig(codes, split.factors.table[:, split.factors.names.index("y")][:, None])
    assert json.loads(Path("run/summary.json").read_text())["test/mig"] == pytest.approx(of_y, abs=1e-6)
    assert "val/mig" in metrics("run")[-1]
    for asked in ("scores=null", "scores=[mig]"):
        asked = (asked, "score_repeats=1", "label_accuracy=false")
        code, said = vae_command("vae-evaluate", "checkpoint=run", *asked, "wandb.mode=disabled")
        assert code == 0, said
        assert said.count(given) == 1
        assert "of y\n" in said
        found = json.loads(Path("run/best.test.json").read_text())["scores"]
        assert (found["factors"], drawn[-2:]) == (["y"], [["y"], ["y"]])
        assert found["mig"]["mean"] == pytest.approx(of_y, abs=1e-6)
    code, said = vae_train(*typed, "hydra.run.dir=other", "wandb.mode=disabled")
    assert "left out" not in said, "a model that is not conditional is given nothing"


@pytest.mark.slow
def test_a_factor_is_given_by_labels_of_any_name_and_without_another_there_is_nothing_to_score(vae_command, vae_train):
    arrays_of_shapes(size=np.arange(64) // 4 % 4)
    code, said = vae_train(*ARRAYS, "model=conditional", "scores=[mig]", "hydra.run.dir=run", *QUICK[1:])
    assert code == 0, said
    assert "left out  shape of the scores" in said
    arrays_of_shapes(still=np.zeros(64, int))
    code, said = vae_train(*ARRAYS, "model=conditional", "scores=[mig]", "hydra.run.dir=no", *QUICK[1:])
    assert code == 1
    assert "does not suit mig (no factor varies but shape, which the model is given as its label)" in said
    assert vae_train(*ARRAYS, "model=conditional", "hydra.run.dir=run2", *QUICK[1:])[0] == 0
    code, said = vae_command("vae-evaluate", "checkpoint=run2", "label_accuracy=false", "wandb.mode=disabled")
    assert code == 0, said
    assert "left out  scores: the test split, 64 images, does not suit mig, dci, infomec (no factor varies but" in said
    assert "scores" not in json.loads(Path("run2/best.test.json").read_text())


def test_names_of_factors_reach_the_terminal_escaped(capsys):
    settings = {"rows": 4, "repeats": 2, "seed": 0, "factors": ["a\x1b[31m"]}
    results._show_scores({}, {"scores": settings, "split": "test"})
    assert "of a\\x1b[31m" in capsys.readouterr().out


def test_the_spread_of_a_score_is_in_wandb_and_no_panel_of_its_own(tmp_path):
    pytest.importorskip("wandb_workspaces")
    from vae_exp.tracking import wandb_views

    score = {"mean": 0.5, "std": 0.1, "caution": ""}
    once = {"mean": 0.4, "std": None, "caution": ""}
    result = {"scores": {"rows": 4, "repeats": 2, "seed": 0, "factors": ["x"], "mig": score, "sap": once}}
    assert results.numbers(result) == {"mig": 0.5, "mig_std": 0.1, "sap": 0.4}
    (tmp_path / "best.test.json").write_text(json.dumps(result))
    assert wandb_views._evaluated(tmp_path) == ["evaluate/test/mig", "evaluate/test/sap"]


@pytest.mark.slow
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


@pytest.mark.slow
def test_max_steps_ends_a_run_in_the_middle_of_an_epoch_and_more_of_them_go_on():
    settings = (*SMALL, "epochs=6")  # of 3 steps each
    quick_run(*settings, folder="whole")
    summary, folder = quick_run(*settings, "max_steps=7")
    assert (summary["state"], summary["reason"]) == ("finished", "max_steps=7 are taken")
    assert checkpoints.load(folder / "last.pt").step == 7
    assert summary["best/epoch"] <= 2
    quick_run(*settings, "max_steps=18", "resume=run")
    whole, resumed = (metrics(name) for name in ("whole", "run"))
    assert [row for row in resumed if "val/neg_elbo" in row][-1]["val/neg_elbo"] == whole[-1]["val/neg_elbo"]


@pytest.mark.slow
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


@pytest.mark.slow
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
    assert "trade_off.png" in said
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
        assert drawn.count() == 5, "mig; infom and infoc, ours and as published"
        assert page.locator(".trade-off .point").count() == 20
        page.locator("table.runs tbody tr").first.hover()
        assert page.locator(".trade-off .point.marked").count() == 5
        assert not wrong
