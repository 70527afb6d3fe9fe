"""Sweeps that end losing jobs early, searches that survive a kill, and sweeps that grow."""

import json
import os
import re
import signal
import time
from pathlib import Path

import optuna
import pytest
import torch
import yaml

from tests.conftest import command, quick_run, recorded, written
from tests.conftest import metrics as logged
from tests.test_sweep import only_sweep, table
from vae_exp.sweeps import study as studies
from vae_exp.training import checkpoints

TINY = ("dataset=digits", "device=cpu", "network.hidden_dims=[16]", "wandb.mode=disabled")
GRID = ("-m", *TINY, "epochs=9", "model.z_dim=3,4", "optimizer.lr=1e-5,1e-4,1e-3,1e-2")
FEW = ("-m", *TINY, "epochs=9", "optimizer.lr=1e-5,1e-4,1e-3,1e-2")
SEARCH = ("experiment=search", "device=cpu", "network.hidden_dims=[16]", "wandb.mode=disabled", "epochs=4")


def states(folder):
    return {path.parent.name: json.loads(path.read_text())["state"] for path in folder.glob("*/summary.json")}


def epochs_of(folder):
    return {path.name: sum("val/neg_elbo" in row for row in logged(path)) for path in folder.iterdir() if path.is_dir()}


def state_of(trial):
    return trial.state.name


@pytest.mark.parametrize(
    "pruner", ["asha", *(pytest.param(name, marks=pytest.mark.slow) for name in ("hyperband", "median", "trend"))]
)
def test_losing_jobs_end_early_and_the_others_are_as_they_are_alone(vae_train, pruner):
    code, said = vae_train(*GRID, f"sweep.prune={pruner}", "sweep.name=pruned")  # Optuna draws brackets by it
    assert code == 0, said
    folder = only_sweep()
    ended, epochs = states(folder), epochs_of(folder)
    pruned = [job for job, state in ended.items() if state == "pruned"]
    whole = [job for job, state in ended.items() if state == "finished"]
    assert pruned
    assert len(pruned) + len(whole) == 8
    assert all(epochs[job] < 9 for job in pruned)
    assert all(epochs[job] == 9 for job in whole)
    assert f"8 of 8 jobs finished, {len(pruned)} of them pruned" in said
    best = min((row for row in table(folder) if row["state"] == "finished"), key=lambda row: float(row["val/neg_elbo"]))
    assert f"best       {best['run']}/best.pt" in said
    assert best["optimizer.lr"] == "0.01"

    z_dim, lr = re.fullmatch(r"z_dim-(\d+)_lr-(.*)", best["run"]).groups()
    _, alone = quick_run(*TINY, "batch_size=128", "epochs=9", f"model.z_dim={z_dim}", f"optimizer.lr={lr}")
    here, there = (checkpoints.load(path / "last.pt").model for path in (alone, folder / best["run"]))
    assert all(torch.equal(there[name], weights) for name, weights in here.items()), "equal to the bit"

    trials = {trial.user_attrs[studies.JOB]: trial for trial in studies.load(folder).get_trials()}
    assert {job: state_of(trial) for job, trial in trials.items()} == {
        job: {"pruned": "PRUNED", "finished": "COMPLETE"}[state] for job, state in ended.items()
    }
    assert trials[best["run"]].value == float(best["val/neg_elbo"])
    assert {job: len(trial.intermediate_values) for job, trial in trials.items()} == epochs


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_a_trend_spares_who_starts_slowly_and_who_is_ahead(direction):
    study = optuna.create_study(direction=direction, pruner=studies.Trend(after=2, epochs=16))

    def epochs_of_job(limit, fall):
        trial, sign = study.ask(), 1 if direction == "minimize" else -1
        for epoch in range(1, 17):
            trial.report(sign * (limit + fall / epoch**0.5), epoch)
            if trial.should_prune():
                break
        return epoch

    first, slow, loser = epochs_of_job(100, 8), epochs_of_job(90, 40), epochs_of_job(105, 8)
    assert (first, slow, loser) == (16, 16, 2), "of the slow one it is known early that it will win"
    assert epochs_of_job(101, 0) == 14, "its 101 is the best until the slow one's epoch 14"


@pytest.mark.slow
def test_a_pruned_run_is_told_as_one_and_can_be_trained_on(vae_train, vae_command):
    assert vae_train(*FEW, "sweep.prune=asha", "wandb.mode=offline")[0] == 0
    folder = only_sweep()
    job = next(job for job, state in states(folder).items() if state == "pruned")
    summary = json.loads((folder / job / "summary.json").read_text())
    told = [trial.user_attrs for trial in studies.load(folder).get_trials()]
    assert (str(folder / job), summary["wandb"]["id"]) in [
        (attributes["folder"], attributes["wandb_id"]) for attributes in told
    ]
    assert re.fullmatch(r"sweep.prune=asha: val/neg_elbo \d+\.\d{3} after epoch [13]", summary["reason"])
    assert summary["test/neg_elbo"] > 0
    records = recorded(Path(summary["wandb"]["dir"]))
    assert not records["exit"][0].get("exit_code"), "closed cleanly"
    last = {}
    for update in records["summary"]:
        last |= update["update"]
    assert (last["state"], last["reason"]) == ("pruned", summary["reason"])

    code, said = vae_command("vae-compare", str(folder), "--html", "report.html")
    assert code == 0
    assert "pruned" in said
    assert "pruned" in Path("report.html").read_text()
    before = epochs_of(folder)[job]
    assert vae_train(*FEW, "sweep.prune=asha", "sweep.resume=latest", "wandb.mode=offline")[0] == 0
    assert epochs_of(folder)[job] == before, "a sweep that goes on leaves it alone"
    code, said = vae_train(f"resume={folder / job}")
    assert code == 0, said
    assert states(folder)[job] == "finished"
    assert epochs_of(folder)[job] == 9


@pytest.mark.slow
def test_a_sweep_that_was_finished_can_grow_with_pruning(vae_train):
    asked = ("-m", *TINY, "epochs=4")
    assert vae_train(*asked, "optimizer.lr=1e-2,3e-3")[0] == 0
    code, said = vae_train(*asked, "optimizer.lr=1e-2,3e-3,1e-5", "sweep.prune=asha", "sweep.resume=latest")
    assert code == 0, said
    assert said.count("already finished") == 2
    trials = {trial.user_attrs[studies.JOB]: state_of(trial) for trial in studies.load(only_sweep()).get_trials()}
    assert set(trials) == set(states(only_sweep()))
    assert {trials["lr-0.01"], trials["lr-0.003"]} == {"COMPLETE"}


@pytest.mark.slow
def test_what_cannot_be_judged_is_refused(vae_train, tmp_path):
    for typed, message in (
        (("dataset.val_size=0", "sweep.prune=asha"), "and sweep.prune=asha needs them"),
        (("dataset.val_size=100,0", "sweep.prune=asha"), "sweep.metric=val/neg_elbo: there are no validation images"),
        (("experiment=demo,tutorial", "sweep.prune=asha"), "(experiment=tutorial has dataset.val_size=0)"),
        (("sweep.prune=asha", "sweep.metric=test/kl"), "sweep.prune=asha takes one of val/neg_elbo"),
        (("sweep.prune=asha,median",), "sweep.prune=asha,median: is of the whole sweep, and takes one value"),
        (("sweep.prune=asa",), "sweep.prune=asa: it takes one of asha, hyperband, median, trend, or null"),
        (("sweep.prune_factor=1",), "sweep.prune_factor=1: it takes a whole number, 2 or more"),
        (
            ("sweep.metric=val/loss",),
            "sweep.metric=val/loss: no such number is logged each epoch. There are val/neg_elbo",
        ),
        (("monitor=val/mig",), "with scores=[mig] scores_every_epochs=1 val/mig"),
        (("monitor=val/nothing", "sweep.metric=val/kl"), "monitor=val/nothing: no such number is logged each epoch"),
        (
            ("monitor=val/mig", "scores=[mig]", "scores_every_epochs=1"),
            "monitor=val/mig: of a score more is better. Add monitor_mode=max",
        ),
        (("monitor=val/kl,val/neg_elbo", "sweep.prune=asha"), "sweep.prune=asha judges all jobs by one number"),
        (("sweep.zip=[model.z_dim,seed]",), "sweep.zip=[model.z_dim,seed]: seed is not swept"),
        (("sweep.zip=[model.z_dim,optimizer.lr]",), "each has as many (model.z_dim 2, optimizer.lr 4)"),
    ):
        code, said = vae_train(*GRID, *typed)
        assert (code, message in said) == (1, True), said
    for typed, message in (
        (("hydra.sweeper.n_trials=0",), "hydra.sweeper.n_trials=0: it takes a whole number, 1 or more"),
        (("hydra.sweeper.sampler=tpa",), "hydra.sweeper.sampler=tpa: it takes one of tpe, gp, cmaes, qmc, random"),
        (("sweep.zip=[model.z_dim,optimizer.lr]",), "is of a grid; a search chooses every value by itself"),
        (("optimizer.lr=interval(5,2)",), "optimizer.lr=interval(5,2): no interval to search in"),
        (
            ("dataset.val_size=0", "sweep.metric=val/kl"),
            "sweep.metric=val/kl: there are no validation images to judge by",
        ),
        (("dataset.val_size=0",), "with one of test/neg_elbo, test/reconstruction, test/kl"),
        (
            ("dataset.val_size=int(interval(0,100))",),
            "(dataset.val_size=0), and hydra/sweeper=optuna needs them",
        ),
    ):
        code, said = vae_train(*SEARCH, *typed)
        assert (code, message in said) == (1, True), said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("asked", "name"),
    [
        (("dataset.val_size=0", "sweep.metric=test/kl"), "test/kl"),
        (("monitor=val/kl", "monitor_mode=max"), "best/val_kl"),  # sweep.metric follows it
    ],
)
def test_a_search_optimises_what_it_is_told(vae_train, asked, name):
    code, said = vae_train(*SEARCH, "epochs=2", "hydra.sweeper.n_trials=3", *asked)
    assert code == 0, said
    study = studies.load(only_sweep())
    values = []
    for trial in study.get_trials():
        values.append(json.loads((only_sweep() / str(trial.number) / "summary.json").read_text())[name])
        assert trial.value == values[-1]
    assert study.best_value == (max(values) if "monitor_mode=max" in asked else min(values))
    assert f"best       {study.best_trial.number}/best.pt" in said
    if "monitor_mode=max" in asked:
        code, said = vae_train(*SEARCH, "epochs=2", "monitor=val/kl", "sweep.metric=val/kl", "sweep.resume=latest")
        assert (code, "was started with" in said) == (1, True), said


@pytest.mark.slow
def test_jobs_without_validation_images_can_be_pruned_by_the_test_split(vae_train):
    code, said = vae_train(*FEW, "epochs=4", "sweep.prune=trend", "dataset.val_size=0", "sweep.metric=test/neg_elbo")
    assert code == 0, said
    assert {"pruned", "finished"} == set(states(only_sweep()).values())


@pytest.mark.slow
def test_a_trial_that_ends_before_it_is_validated_has_no_value(vae_train):
    code, said = vae_train(*SEARCH, "max_steps=1", "hydra.sweeper.n_trials=2")
    assert code == 0, said
    assert "no val/neg_elbo to be judged by: the run ended before its first epoch was over" in said
    trials = studies.load(only_sweep()).get_trials()
    assert [(state_of(trial), trial.value) for trial in trials] == [("FAIL", None)] * 2


@pytest.mark.slow
def test_options_that_differ_in_what_a_sweep_shares_are_refused(vae_train, tmp_path):
    """Ranges, sweeper, launcher and sweep.* are taken from the first job alone."""
    own = tmp_path / "own"
    for name, text in {
        "experiment/ranges": "hydra: {sweeper: {params: {seed: '5,6'}}}",
        "experiment/batches": "hydra: {sweeper: {max_batch_size: 1}}",
        "experiment/losing": "sweep: {prune: asha}",
        "experiment/plain": "seed: 7",
        "setting/ranges": "hydra: {sweeper: {params: {seed: '5,6'}}}",
        "setting/plain": "seed: 7",
    }.items():
        path = own / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# @package _global_\n{text}\n")
    quick = ("-m", "dataset=digits", "epochs=1", "max_steps=1", "wandb.mode=disabled")
    with_own = (*quick, "--config-dir", str(own))
    for swept, key in (
        ("experiment=sweep_z_lr,demo", "hydra.sweeper.params.model.z_dim"),
        ("experiment=demo,sweep_z_lr", "hydra.sweeper.params.model.z_dim"),
        ("experiment=sweep_z_lr,sweep_beta", "hydra.sweeper.params.model.beta"),
        ("experiment=search,sweep_z_lr", "hydra.sweeper._target_"),
        ("experiment=demo,published/tutorial_seeds", "hydra.sweeper.params.seed"),
        ("experiment=plain,ranges", "hydra.sweeper.params.seed"),
        ("experiment=plain,batches", "hydra.sweeper.max_batch_size"),
        ("experiment=plain,losing", "sweep.prune"),
        ("+setting=ranges,plain", "hydra.sweeper.params.seed"),
    ):
        code, said = vae_train(*(with_own if "plain" in swept else quick), swept)
        assert (code, len(said.splitlines())) == (1, 1), said
        assert f"{swept}: all jobs of a sweep share its ranges" in said
        assert key in said
        assert "Start a sweep for each, such as: vae-train -m" in said
    assert not Path("outputs").exists()
    for swept in (
        ("experiment=demo,plain",),
        ("experiment=ranges,plain", "seed=3"),
        ("+setting=ranges,plain", "seed=3"),
    ):
        code, said = vae_train(*with_own, *swept, f"sweep.name={len(written('sweep.json'))}")
        assert code == 0, said
        assert "2 of 2 jobs finished" in said


@pytest.mark.slow
def test_keys_that_go_together(vae_train):
    together = ("model.z_dim=3,4", "network.hidden_dims=[8],[16]", "sweep.zip=[model.z_dim,network.hidden_dims]")
    code, said = vae_train("-m", *TINY[:2], "wandb.mode=disabled", "epochs=0", *together, "seed=0,1")
    assert code == 0, said
    assert "4 of 4 jobs finished" in said
    pairs = [(row["model.z_dim"], row["network.hidden_dims"], row["seed"]) for row in table(only_sweep())]
    assert sorted(pairs) == [("3", "[8]", "0"), ("3", "[8]", "1"), ("4", "[16]", "0"), ("4", "[16]", "1")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampler", "n_trials"),
    [("tpe", 12), ("gp", 12), ("cmaes", 6), ("qmc", 6), ("random", 6)],  # tpe and gp draw the first ten at random
)
def test_a_search_goes_on_as_if_it_had_never_stopped(vae_train, sampler, n_trials, tmp_path, monkeypatch):
    asked = (*SEARCH, "epochs=1", f"hydra.sweeper.sampler={sampler}")
    (tmp_path / "whole").mkdir()
    monkeypatch.chdir(tmp_path / "whole")
    assert vae_train(*asked, f"hydra.sweeper.n_trials={n_trials}")[0] == 0
    whole = table(only_sweep())
    (tmp_path / "parts").mkdir()
    monkeypatch.chdir(tmp_path / "parts")
    assert vae_train(*asked, f"hydra.sweeper.n_trials={n_trials // 2 + 1}")[0] == 0
    code, said = vae_train(*asked, f"hydra.sweeper.n_trials={n_trials}", "sweep.resume=latest")
    assert code == 0, said
    assert table(only_sweep()) == whole
    trials = studies.load(only_sweep()).get_trials()
    assert [trial.number for trial in trials] == list(range(n_trials))
    for trial in trials:
        summary = json.loads((only_sweep() / str(trial.number) / "summary.json").read_text())
        config = yaml.safe_load((only_sweep() / str(trial.number) / "config.yaml").read_text())
        assert trial.value == summary["best/val_neg_elbo"]
        assert trial.params == {"model.z_dim": config["model"]["z_dim"], "optimizer.lr": config["optimizer"]["lr"]}
    assert len({trial.params["optimizer.lr"] for trial in trials}) == n_trials


@pytest.mark.slow
def test_a_search_chooses_among_words_and_lists_and_counts_what_diverges(vae_train):
    asked = ("hydra/sweeper=optuna", "network.hidden_dims=[8],[8,4]", "optimizer=adam,sgd", "optimizer.lr=1e-3,1e12")
    code, said = vae_train("-m", *TINY[:2], "wandb.mode=disabled", "epochs=1", *asked, "hydra.sweeper.n_trials=6")
    assert code == 0, said
    trials = studies.load(only_sweep()).get_trials()
    assert {state_of(trial) for trial in trials} == {"COMPLETE", "FAIL"}
    ended = states(only_sweep())
    assert all((state_of(trial) == "FAIL") == (ended[str(trial.number)] == "failed") for trial in trials)
    assert {trial.params["optimizer.lr"] for trial in trials if state_of(trial) == "FAIL"} == {"1000000000000.0"}


@pytest.mark.slow
def test_a_search_with_pruning_keeps_its_best(vae_train):
    code, said = vae_train(*SEARCH, "epochs=9", "hydra.sweeper.n_trials=6", "sweep.prune=asha")
    assert code == 0, said
    assert {"pruned", "finished"} == set(states(only_sweep()).values())
    study = studies.load(only_sweep())
    assert f"best       {study.best_trial.number}/best.pt" in said


@pytest.mark.slow
def test_a_journal_that_was_cut_off_is_mended(vae_train):
    asked = (*SEARCH, "epochs=1")
    assert vae_train(*asked, "hydra.sweeper.n_trials=2")[0] == 0
    journal = only_sweep() / studies.JOURNAL
    with journal.open("ab") as file:
        file.write(b'{"op_code":4,"wor')
    Path(f"{journal}.lock").symlink_to("nowhere")
    assert vae_train(*asked, "hydra.sweeper.n_trials=3", "sweep.resume=latest")[0] == 0
    assert [state_of(trial) for trial in studies.load(only_sweep()).get_trials()] == ["COMPLETE"] * 3
    journal.write_text("null\n")
    code, said = vae_train(*asked, "hydra.sweeper.n_trials=3", "sweep.resume=latest")
    assert (code, said.count("journal.log: damaged (TypeError: ")) == (1, 1), said


def kill_when(running, there):
    while not there():
        time.sleep(0.01)
        assert running.poll() is None, running.stdout.read()
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [(), ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")])
def test_a_search_that_is_killed_takes_its_trials_up_again(vae_train, launcher):
    asked = (*SEARCH, "epochs=20", "hydra.sweeper.n_trials=6", "sweep.prune=asha", *launcher)
    running = command(*asked)
    kill_when(running, lambda: any(len(logged(p.parent)) > 6 for p in written("metrics.jsonl")))
    stale = {
        trial.number: trial.params for trial in studies.load(only_sweep()).get_trials() if not trial.state.is_finished()
    }
    assert stale
    code, said = vae_train(*asked, "sweep.resume=latest")
    assert code == 0, said
    assert "  resumes" in said or launcher
    trials = studies.load(only_sweep()).get_trials()
    assert len(trials) == 6
    assert all(trial.state.is_finished() for trial in trials)
    assert all(trials[number].params == params for number, params in stale.items())
    assert set(states(only_sweep())) == {str(i) for i in range(6)}
    assert not list(only_sweep().rglob("*.partial"))


@pytest.mark.slow
def test_a_pruned_grid_that_is_killed_goes_on(vae_train):
    asked = (*GRID, "epochs=30", "sweep.prune=asha")
    running = command(*asked)
    kill_when(running, lambda: len(written("summary.json")) > 3)
    code, said = vae_train(*asked, "sweep.resume=latest")
    assert code == 0, said
    assert set(states(only_sweep()).values()) == {"pruned", "finished"}
    trials = studies.load(only_sweep()).get_trials()
    assert len(trials) == 8, "a job that goes on keeps its trial"
    assert all(trial.state.is_finished() for trial in trials)


@pytest.mark.slow
def test_a_sweep_grows(vae_train):
    """By a key and by the values of one; by values of a key that was swept in the tests above."""
    asked = ("-m", *TINY, "epochs=1")
    assert vae_train(*asked, "model.z_dim=3,4", "optimizer.lr=1e-3")[0] == 0
    before = {path.name: (path / "metrics.jsonl").read_bytes() for path in only_sweep().iterdir() if path.is_dir()}
    assert set(before) == {"z_dim-3", "z_dim-4"}
    for more, finished in ((("1e-3", "0,1"), 2), (("1e-3,1e-2", "0,1"), 4)):
        typed = ("model.z_dim=3,4", f"optimizer.lr={more[0]}", f"seed={more[1]}", "sweep.resume=latest")
        code, said = vae_train(*asked, *typed)
        assert code == 0, said
        assert said.count("already finished") == finished
    jobs = {path.name: path for path in only_sweep().iterdir() if path.is_dir()}
    assert len(jobs) == 8
    for old in before:
        assert (jobs[old] / "metrics.jsonl").read_bytes() == before[old]
    rows = {(row["model.z_dim"], row["optimizer.lr"], row["seed"]): row["run"] for row in table(only_sweep())}
    assert len(rows) == 8
    assert (rows["3", "0.001", "0"], rows["3", "0.01", "1"]) == ("z_dim-3", "z_dim-3_lr-0.01_seed-1")
    for typed in (("model.z_dim=3", "seed=0,1"), ("model.z_dim=3,4", "seed=1,2"), ("model.z_dim=3,4", "seed=0")):
        code, said = vae_train(*asked, *typed, "optimizer.lr=1e-3,1e-2", "sweep.resume=latest")
        assert code == 1, said
        assert "A resumed sweep keeps its settings and its values" in said
    assert set(jobs) == {path.name for path in only_sweep().iterdir() if path.is_dir()}


@pytest.mark.slow
def test_a_sweep_grows_only_around_what_it_has(vae_train):
    asked = ("-m", *TINY, "epochs=0")
    assert vae_train(*asked, "model.z_dim=3,4")[0] == 0
    code, said = vae_train(*asked, "model.z_dim=3,4", "seed=1,2", "sweep.resume=latest")
    assert code == 1, said
    assert "its jobs have seed=0, which is not among seed=1,2" in said
    assert {path.name for path in only_sweep().iterdir() if path.is_dir()} == {"z_dim-3", "z_dim-4"}


@pytest.mark.slow
def test_numbered_jobs_grow_around_those_that_are_there(vae_train):
    asked = ("-m", *TINY[:2], "wandb.mode=disabled", "epochs=0")
    assert vae_train(*asked, "network.hidden_dims=[8],[16]")[0] == 0
    code, said = vae_train(*asked, "network.hidden_dims=[4],[8],[16]", "sweep.resume=latest")
    assert code == 0, said
    assert said.count("already finished") == 2
    assert {row["network.hidden_dims"]: row["run"] for row in table(only_sweep())} == {
        "[8]": "0",
        "[16]": "1",
        "[4]": "3",
    }


def test_an_old_optuna_is_told_of(vae_train, monkeypatch, tmp_path):
    monkeypatch.setattr(studies.metadata, "version", lambda name: "2.10.1")
    code, said = vae_train(*SEARCH)
    assert (code, "Optuna is 2.10.1, and 4.9 or newer is needed" in said) == (1, True), said
    monkeypatch.setattr(studies.importlib.util, "find_spec", lambda name: None)
    code, said = vae_train(*GRID, "sweep.prune=median")
    assert (code, "sweep.prune=median: Optuna is not installed. It comes with: pip install" in said) == (1, True), said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_optuna_reads_the_journal_by_itself(vae_train):
    """As its dashboard does: the storage that people name on its command line."""
    assert vae_train(*SEARCH, "epochs=1", "hydra.sweeper.n_trials=2")[0] == 0
    backend = optuna.storages.journal.JournalFileBackend(str(only_sweep() / "journal.log"))
    (summary,) = optuna.get_all_study_summaries(optuna.storages.JournalStorage(backend))
    assert (summary.n_trials, summary.study_name) == (2, only_sweep().name)
