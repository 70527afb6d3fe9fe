"""Runs, sweeps, an export and evaluations of 0.2.0 as it was before the house was rebuilt: all are read and go on.

Made on the digits with network.hidden_dims=[8] model.z_dim=2 epochs=2 (3 in `killed` and `pruned`, 1 in `search`);
`killed` and the second job of `grid` ended by kill -9, and whole.jsonl is what `killed` logs where nobody kills it.
Pictures were deleted, and vae_exp's place in Hydra's records was replaced.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch

import vae_exp
from tests.conftest import metrics
from tests.test_old_runs import ROUNDING

OLD = Path(__file__).parent / "data" / "runs_of_0_2_0"


@pytest.fixture(autouse=True)
def old_runs(alone):
    """Copies to work in."""
    shutil.copytree(OLD, Path(), dirs_exist_ok=True)


def state(folder):
    return json.loads(Path(folder, "summary.json").read_text())["state"]


def test_an_evaluation_gives_what_it_gave(vae_command):
    for split, typed in (("test", ["importance_samples=5"]), ("val", ["label_accuracy=false"])):
        path = Path(f"finished/best.{split}.json")
        then = json.loads(path.read_text())
        path.unlink()
        typed += [f"split={split}", f"repeats={then['repeats']}", "device=cpu", "wandb.mode=disabled"]
        code, said = vae_command("vae-evaluate", "checkpoint=finished", *typed)
        assert code == 0, said
        now = json.loads(path.read_text())
        assert then.keys() <= now.keys()
        for name in {"neg_elbo", "reconstruction", "kl", "mutual_information", "kl_aggregate", "nll"} & then.keys():
            assert now[name] == pytest.approx(then[name], rel=ROUNDING, abs=1e-5), name
        assert now["weights"] == then["weights"]


def test_an_export_and_a_fitted_sampler_are_read():
    model, export = vae_exp.load("finished"), vae_exp.load("finished/generated/best.safetensors")
    assert model.weights == export.weights
    assert torch.equal(model.sample(4, seed=0), export.sample(4, seed=0))
    fitted = Path("finished/best.gmm.npz").read_bytes()
    assert model.sample(4, seed=0, sampler="gmm").isfinite().all()
    assert Path("finished/best.gmm.npz").read_bytes() == fitted, "not fitted anew"


def test_a_run_that_was_killed_goes_on_as_if_it_had_not_been(vae_train):
    code, said = vae_train("resume=killed")
    assert code == 0, said
    whole = [json.loads(line) for line in Path("killed/whole.jsonl").read_text().splitlines()]
    rows = metrics("killed")
    assert [row.keys() for row in rows] == [row.keys() for row in whole]
    for row, straight in zip(rows, whole, strict=True):
        for key in [key for key in row if not key.startswith("time/")]:
            assert row[key] == pytest.approx(straight[key], rel=ROUNDING, abs=1e-6), (row["step"], key)
    assert state("killed") == "finished"


def typed_for(sweep):
    """What the sweep was started with: its settings and its values."""
    record = json.loads(Path(sweep, "sweep.json").read_text())
    return ["-m", "wandb.mode=disabled", *record["settings"], *record["values"], f"sweep.resume={sweep}"]


@pytest.mark.slow
def test_a_grid_that_was_killed_goes_on_and_grows(vae_train):
    assert [state(f"grid/lr-{lr}") for lr in ("0.01", "0.001")] == ["finished", "running"]
    done = Path("grid/lr-0.01/best.pt").read_bytes()
    more = [f"{word},0.003" if word.startswith("optimizer.lr=") else word for word in typed_for("grid")]
    for typed, jobs in ((typed_for("grid"), 2), (more, 3)):
        code, said = vae_train(*typed)
        assert code == 0, said
        assert f"{jobs} of {jobs} jobs finished" in said
    assert all(state(f"grid/lr-{lr}") == "finished" for lr in ("0.01", "0.001", "0.003"))
    assert Path("grid/lr-0.01/best.pt").read_bytes() == done


@pytest.mark.slow
def test_a_search_goes_on_with_more_trials(vae_train):
    typed = [*typed_for("search"), "hydra/sweeper=optuna", "hydra.sweeper.n_trials=3"]
    code, said = vae_train(*typed)
    assert code == 0, said
    assert [state(f"search/{trial}") for trial in range(3)] == ["finished"] * 3


@pytest.mark.slow
def test_pruned_jobs_are_shown_and_train_on(vae_train, vae_command):
    states = {path.parent.name: state(path.parent) for path in Path("pruned").glob("*/summary.json")}
    assert sorted(states.values()) == ["finished", "pruned", "pruned"]
    code, said = vae_command("vae-compare", "pruned")
    assert code == 0, said
    assert said.count("pruned") >= 2
    pruned = next(name for name, ended in states.items() if ended == "pruned")
    code, said = vae_train(f"resume=pruned/{pruned}")
    assert code == 0, said
    assert state(f"pruned/{pruned}") == "finished"


def test_all_of_them_are_compared(vae_command):
    code, said = vae_command("vae-compare", ".", "--html", "page.html")
    assert code == 0, said
    assert "left out" not in said
    assert Path("page.html").stat().st_size > 50_000
