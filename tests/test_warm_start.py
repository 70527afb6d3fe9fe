"""Sweeps whose jobs begin with their neighbours' weights: the order of the path, its jobs, growth, kills, the price."""

import csv
import os
import re
import shlex
import signal
import time
from pathlib import Path

import pytest
import torch
import yaml

from tests import hooks
from tests.conftest import command, compose, metrics, quick_run, recorded, stored, written
from vae_exp.config import build
from vae_exp.config.compose import parse
from vae_exp.errors import UserError
from vae_exp.sweeps import warm_start
from vae_exp.sweeps.values import values_of
from vae_exp.training.run_dir import read_summary

SMALL = ("dataset=digits", "dataset.train_size=128", "network.hidden_dims=[16]", "device=cpu", "figure_every_epochs=99")
SWEEP = ("-m", "sweep.warm_start=true", "model=beta", "wandb.mode=disabled", *SMALL, "hydra.sweep.dir=sweep")
TIMES = ("seconds", "time/epoch_seconds", "time/images_per_second")


def jobs_of(*words, **settings):
    """The path of a grid, by its jobs' values: the epochs and the parent of each, in the order in which they run."""
    swept = parse(list(words))
    values = [[]]
    for override in swept:
        key = override.get_key_element()
        values = [[*job, f"{key}={value}"] for job in values for value in values_of(override)]
    changes = [f"{key.replace('__', '.')}={value}" for key, value in settings.items()]
    config = compose("model=beta", "sweep.warm_start=true", *changes)
    configs = [compose("model=beta", *changes, *job) for job in values]
    path = warm_start.plan_path(values, configs, swept, build.check(config))
    names = [" ".join(re.sub(r"^[a-z.]+\.(?=\w+=)", "", word) for word in job.values) for job in path]
    return {
        name: (job.epochs, None if job.parent is None else names[job.parent], job.depth)
        for name, job in zip(names, path, strict=True)
    }


def without_times(rows):
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def test_z_dim_falls_along_the_lowest_beta_and_beta_rises_from_each():
    path = jobs_of("model.z_dim=4,16,8", "model.beta=1,0.2,5", epochs=16)  # typed in any order
    assert path == {
        "z_dim=16 beta=0.2": (16, None, 0),
        "z_dim=16 beta=1": (1, "z_dim=16 beta=0.2", 1),
        "z_dim=8 beta=0.2": (6, "z_dim=16 beta=0.2", 1),
        "z_dim=16 beta=5": (3, "z_dim=16 beta=1", 2),
        "z_dim=8 beta=1": (1, "z_dim=8 beta=0.2", 2),
        "z_dim=4 beta=0.2": (6, "z_dim=8 beta=0.2", 2),
        "z_dim=8 beta=5": (3, "z_dim=8 beta=1", 3),
        "z_dim=4 beta=1": (1, "z_dim=4 beta=0.2", 3),
        "z_dim=4 beta=5": (3, "z_dim=4 beta=1", 4),
    }
    assert [*path] == sorted(path, key=lambda name: path[name][2]), "parents come first"
    assert jobs_of("model.beta=2,1", epochs=5, sweep__warm_epochs=3) == {
        "beta=1": (5, None, 0), "beta=2": (3, "beta=1", 1),
    }  # fmt: skip
    assert jobs_of("model.z_dim=2,4", epochs=3) == {"z_dim=4": (3, None, 0), "z_dim=2": (1, "z_dim=4", 1)}


def test_every_further_key_has_a_tree_of_its_own_and_other_numbers_go_in_the_order_typed():
    path = jobs_of("seed=0,1", "model.beta=1,2", "optimizer.lr=1e-3,1e-4", epochs=8)
    assert [parent for _, parent, depth in path.values() if depth == 0] == [None] * 4
    assert all(parent == name.replace("beta=2", "beta=1") for name, (_, parent, depth) in path.items() if depth)
    sigmas = jobs_of("likelihood.sigma=0.2,0.05,0.1", epochs=8, likelihood="gaussian")
    assert {name: parent for name, (_, parent, _) in sigmas.items()} == {
        "sigma=0.2": None, "sigma=0.05": "sigma=0.2", "sigma=0.1": "sigma=0.05",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "settings", "why"),
    [
        (["optimizer.lr=1e-3,1e-4"], {}, "none of these is swept"),
        (["model.beta=1,2", "epochs=2,4"], {}, "epochs=2,4: this is of the first job"),
        (["model.z_dim=2,4"], {"model__stochastic": "false"}, "model.stochastic=false"),
        (["model.beta=1,2"], {"epochs": 0}, "nothing to start from"),
        (["model.beta=1,2"], {"early_stopping__patience": 2}, "end after their few epochs"),
        (["model.beta=1,2"], {"sweep__prune": "asha"}, "cannot be judged by each other"),
        (["model.beta=1,2", "objective.warmup_epochs=0,1"], {}, "of the first job of each path"),
        (["model.beta=interval(0.1,1)"], {}, "a list of numbers"),
        (["model.z_dim=4,2", "model.stochastic=true,false"], {}, "model.stochastic=false has none"),
        (["model.z_dim=4,2", "prior=standard,mixture"], {}, "posterior=diagonal prior=mixture has none"),
        (
            ["model.z_dim=2,4", "network.hidden_dims=[8],[9]"],
            {"sweep__zip": "[model.z_dim,network.hidden_dims]"},
            "zip",
        ),
    ],
)
def test_what_cannot_start_warm_is_refused_with_the_reason(words, settings, why):
    with pytest.raises(UserError, match=re.escape(why)):
        jobs_of(*words, **settings)


@pytest.mark.slow
def test_the_command_refuses_before_any_job_starts(vae_train):
    for words, why in {
        ("hydra/sweeper=optuna", "model.beta=1,2"): "is of a grid",
        ("optimizer.lr=1e-3,1e-4",): "none of these is swept",
        ("model.beta=1,2", "sweep.confirm=1", "sweep.warm_start=false"): "add sweep.warm_start=true",
    }.items():
        code, said = vae_train(*SWEEP, "epochs=1", *words)
        assert code == 1 and why in said and not Path("sweep").exists()
    code, said = vae_train("sweep.warm_start=true", *SMALL)
    assert code == 1 and "only works with -m" in said


def rows_of(folder):
    with Path(folder, "results.csv").open() as file:
        return {row["run"]: row for row in csv.DictReader(file)}


@pytest.mark.slow
def test_every_job_is_a_run_like_any_other_and_the_end_has_map_price_and_commands(vae_train):
    swept = ("model.z_dim=2,4", "model.beta=0.5,1,2", "epochs=8", "sweep.confirm=2", "sweep.name=path")
    offline = [word if not word.startswith("wandb.") else "wandb.mode=offline" for word in SWEEP]
    code, said = vae_train(*offline, *swept)
    assert code == 0, said
    rows = rows_of("sweep")
    path = {name: int(row["path_epochs"]) for name, row in rows.items() if not name.startswith("confirm/")}
    assert path == {
        "z_dim-4_beta-0.5": 8, "z_dim-4_beta-1": 9, "z_dim-4_beta-2": 10,
        "z_dim-2_beta-0.5": 11, "z_dim-2_beta-1": 12, "z_dim-2_beta-2": 13,
    }  # fmt: skip
    assert "price      6 settings for 15 epochs: 1.9 runs of 8" in said
    assert {path.name for path in Path("sweep").glob("*.png")} == {"heat_map.png", "map.png", "rate_distortion.png"}

    # The two best that did not begin from nothing are trained so too, with their distance from the path.
    scores = {name: float(rows[name]["val/neg_elbo"]) for name in path if name != "z_dim-4_beta-0.5"}
    best = sorted(scores, key=scores.get)[:2]
    assert {name for name in rows if name.startswith("confirm/")} == {f"confirm/{name}" for name in best}
    for name in best:
        beta = float(rows[name]["model.beta"])
        warm, alone = (
            float(row["test/reconstruction"]) + beta * float(row["test/kl"])
            for row in (rows[name], rows[f"confirm/{name}"])
        )
        off = 100 * (warm - alone) / alone
        assert f"confirm    {name}: {warm:.3f} on the path, {alone:.3f} in a separate run ({off:+.1f} %)" in said
        assert yaml.safe_load(Path("sweep/confirm", name, "config.yaml").read_text())["init_from"] is None

    # A job is what the same run is by itself, to the last digit.
    job = Path("sweep/z_dim-2_beta-1")
    parent = "sweep/z_dim-2_beta-0.5/last.pt"
    by_itself = ("model=beta", "model.z_dim=2", "model.beta=1", "epochs=1", f"init_from={parent}", *SMALL)
    quick_run(*by_itself, folder="alone")
    assert without_times(metrics(job)) == without_times(metrics("alone"))
    fallen = read_summary(Path("sweep/z_dim-2_beta-0.5")).results["start"]
    kl = stored("sweep/z_dim-4_beta-0.5/last.pt")["kl_per_dim"]
    assert fallen["latents"] == sorted(sorted(range(4), key=lambda i: -kl[i])[:2])

    # It is in W&B as itself, in the sweep's group, and says where it began.
    runs = [recorded(folder)["run"][0] for folder in Path("outputs/wandb").glob("offline-run-*")]
    assert {run["run_group"] for run in runs} == {"path"}
    (run,) = [
        config
        for config in (run.get("config", {}).get("update", {}) for run in runs)
        if (config.get("model"), config.get("epochs"))
        == ({"name": "beta", "z_dim": 2, "beta": 1.0, "conditional": False, "stochastic": True}, 1)
    ]
    assert run["start"]["path"].endswith(parent) and run["start"]["epochs"] == 11

    (again,) = [line.removeprefix("separate ") for line in said.splitlines() if line.startswith("separate ")]
    words = shlex.split(again)[1:]
    assert "epochs=8" in words and not [word for word in words if word.startswith(("init_from", "sweep."))]
    assert vae_train(*words, "hydra.run.dir=again", "epochs=1", "wandb.mode=disabled")[0] == 0


@pytest.mark.slow
def test_a_path_that_grows_adds_leaves_and_leaves_the_rest_alone(vae_train):
    code, said = vae_train(*SWEEP, "epochs=1", "model.z_dim=4,3", "model.beta=0.5,2")
    assert code == 0, said
    before = {path: path.read_bytes() for path in Path("sweep").rglob("last.pt")}
    grown = [word for word in SWEEP if not word.startswith("hydra.")]
    code, said = vae_train(*grown, "epochs=1", "model.z_dim=4,3,2", "model.beta=0.5,2,1,4", "sweep.resume=sweep")
    assert code == 0, said
    assert {path: path.read_bytes() for path in before} == before
    starts = {
        folder.name: Path(config["init_from"]).parent.name if config["init_from"] else None
        for folder in Path("sweep").iterdir()
        if (folder / "config.yaml").exists()
        for config in [yaml.safe_load((folder / "config.yaml").read_text())]
    }
    assert starts["z_dim-4_beta-0.5"] is None
    assert starts["z_dim-4_beta-2"] == "z_dim-4_beta-0.5", "as it was"
    assert starts["z_dim-4_beta-1"] == "z_dim-4_beta-0.5"
    assert starts["z_dim-4_beta-4"] == "z_dim-4_beta-2"
    assert starts["z_dim-2_beta-0.5"] == "z_dim-3_beta-0.5"
    for words in (["model.z_dim=4,3,2", "model.beta=0.1,0.5,2,1,4"], ["model.z_dim=8,4,3,2", "model.beta=0.5,2,1,4"]):
        code, said = vae_train(*grown, "epochs=1", *words, "sweep.resume=sweep")
        assert code == 1 and "lies before it" in said
    cold = [word for word in grown if not word.startswith("sweep.")]
    code, said = vae_train(*cold, "epochs=1", "model.z_dim=4,3,2", "model.beta=0.5,2,1,4", "sweep.resume=sweep")
    assert code == 1 and "it was started with sweep.warm_start=true, and not with false" in said


@pytest.mark.slow
def test_what_follows_a_job_that_failed_is_marked_and_runs_when_that_is_mended(vae_train):
    def fails_at_two(_, terms):
        if broken and terms.kl.shape[1] == 2:
            raise MemoryError("out of memory")

    broken = [True]
    typed = (*SWEEP, "epochs=1", "model.z_dim=3,2", "model.beta=0.5,1", hooks.OWN_OBJECTIVE, "objective.beta=1")
    with hooks.in_step(fails_at_two):
        code, said = vae_train(*typed)
        assert code == 1
        assert read_summary(Path("sweep/z_dim-2_beta-0.5")).state == "failed"
        marked = read_summary(Path("sweep/z_dim-2_beta-1"))
        assert (marked.state, marked.reason) == ("failed", "it starts from z_dim-2_beta-0.5, which is failed")
        assert read_summary(Path("sweep/z_dim-3_beta-1")).state == "finished"
        broken.clear()
        code, said = vae_train(*(word for word in typed if not word.startswith("hydra.")), "sweep.resume=sweep")
    assert code == 0, said
    assert read_summary(Path("sweep/z_dim-2_beta-1")).state == "finished"


@pytest.mark.slow
def test_beta_rises_along_a_path_with_a_prior_and_a_posterior_whose_kl_does_not_divide(vae_train):
    code, said = vae_train(*SWEEP, "model.beta=0.5,1", "prior=vamp", "prior.components=5", "posterior=iaf", "epochs=2")
    assert code == 0, said
    start = stored("sweep/beta-0.5/last.pt")["model"]
    assert (start["prior.inputs"] != stored("sweep/beta-1/last.pt")["model"]["prior.inputs"]).any()
    assert stored("sweep/beta-1/last.pt")["config"]["init_from"].endswith("beta-0.5/last.pt")


@pytest.mark.slow
def test_a_warm_up_is_of_the_first_job_alone(vae_train):
    warmed = ("objective=capacity", "objective.capacity_nats=1,4", "objective.warmup_fraction=0.5", "epochs=2")
    code, said = vae_train(*SWEEP, *warmed)
    assert code == 0, said
    fractions = {
        path.parent.name: yaml.safe_load(path.read_text())["objective"]["warmup_fraction"]
        for path in Path("sweep").glob("*/config.yaml")
    }
    assert fractions == {"capacity_nats-1": 0.5, "capacity_nats-4": 0}


PATH = ("model.z_dim=4,2", "model.beta=0.5,1,2", "epochs=6", "sweep.warm_epochs=2")


def state_of(folder):
    """What the jobs of a sweep are: their weights, optimizers and rows."""
    return {
        path.parent.name: (
            stored(path)["model"],
            stored(path)["optimizer"]["state"],
            without_times(metrics(path.parent)),
        )
        for path in Path(folder).glob("*/last.pt")
    }


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name, (weights, optimizer, rows) in one.items():
        assert all(torch.equal(values, other[name][0][key]) for key, values in weights.items())
        for number, state in optimizer.items():
            assert all(torch.equal(values, other[name][1][number][key]) for key, values in state.items())
        assert rows == other[name][2]


@pytest.mark.slow
def test_jobs_that_failed_count_beside_those_that_confirm(vae_train, vae_command):
    assert vae_train(*SWEEP, "model.z_dim=2", "model.beta=0.5,1", "epochs=1", "sweep.confirm=1")[0] == 0
    code, said = vae_command("vae-compare", "sweep")
    assert code == 0 and "confirm" in said
    grown = [word for word in SWEEP if not word.startswith("hydra.")]
    code, said = vae_train(*grown, "model.z_dim=2", "model.beta=0.5,1,1e38", "epochs=1", "sweep.resume=sweep")
    assert code == 1 and "2 of 3 jobs finished" in said and "resume  " in said


@pytest.mark.slow
def test_a_killed_path_goes_on_and_equals_one_that_was_not_to_the_bit(vae_train):
    assert vae_train(*SWEEP, *PATH)[0] == 0
    whole = state_of("sweep")
    typed = [word for word in (*SWEEP, *PATH, "checkpoint_every_steps=1") if not word.startswith("hydra.")]
    for jobs in (1, 3, 5):  # killed while so many jobs have a checkpoint
        folder = f"killed{jobs}"
        process = command(*typed, f"hydra.sweep.dir={folder}")
        end = time.monotonic() + 120
        while len(written("last.pt", folder)) < jobs:
            assert process.poll() is None and time.monotonic() < end
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        code, said = vae_train(*typed, f"sweep.resume={folder}")
        assert code == 0, said
        assert_equal(whole, state_of(folder))


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_waves_run_side_by_side_with_the_same_numbers(vae_train, launcher):
    pytest.importorskip(f"hydra_plugins.hydra_{launcher.removesuffix('_local')}_launcher")
    assert vae_train(*SWEEP, *PATH)[0] == 0
    beside = [word for word in SWEEP if not word.startswith("hydra.")]
    more = ["hydra.launcher.n_jobs=2"] if launcher == "joblib" else []
    typed = (*beside, *PATH, f"hydra/launcher={launcher}", *more, "hydra.sweep.dir=beside", "sweep.confirm=1")
    process = command(*typed)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert "price      6 settings for 20 epochs" in said
    assert_equal(state_of("sweep"), state_of("beside"))
