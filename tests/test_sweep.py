"""Sweeps: every job told apart, failures survived, the same results after a kill and under every launcher."""

import contextlib
import csv
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher

from tests import hooks
from tests.conftest import command, recorded, written
from vae_exp.config.checks import CONF_DIR, flatten
from vae_exp.config.compose import parse
from vae_exp.sweeps.values import distinct
from vae_exp.training.run_dir import read_config, runs_below

QUICK = ("-m", "dataset=digits", "epochs=1", "wandb.mode=disabled")


def only_sweep(under="outputs/sweeps"):
    (folder,) = Path(under).iterdir()
    return folder


def table(folder):
    """results.csv without the time each run took."""
    with (folder / "results.csv").open() as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


def test_a_sweep_is_one_group_of_closed_runs_and_a_summary(vae_train):
    swept = ("model.z_dim=3,4", "optimizer.lr=1e-3,3e-4", "objective.warmup_epochs=0,1")
    zipped = "sweep.zip=[model.z_dim,optimizer.lr]"
    named = ("wandb.mode=offline", "sweep.name=my sweep", "wandb.tags=[a,b]")
    code, said = vae_train("-m", "dataset=digits", "epochs=1", *named, *swept, zipped)
    assert code == 0
    records = [recorded(folder) for folder in Path("outputs/wandb").glob("offline-run-*")]
    assert all(len(record["exit"]) == 1 and not record["exit"][0].get("exit_code") for record in records)
    assert {record["run"][0]["run_group"] for record in records} == {"my sweep"}
    assert {tuple(sorted(record["run"][0]["tags"])) for record in records} == {("a", "b", "digits", "vanilla")}
    jobs = {record["run"][0]["display_name"]: record for record in records}
    summary = jobs.pop("sweep-summary my sweep")
    settings = [(z, lr, w) for z, lr in ((3, "0.001"), (4, "0.0003")) for w in (0, 1)]
    expected = [f"vanilla-digits-z{z}-lr{lr}-s0-warmup_epochs{w}" for z, lr, w in settings]
    assert sorted(jobs) == sorted(expected)
    ids = {record["run"][0]["run_id"] for record in jobs.values()}
    starts = {f"z{z}-lr{lr}-warmup_epochs{w}-" for z, lr, w in settings}
    assert all(any(run_id.startswith(start) for run_id in ids) for start in starts), "leet's list shows what differs"
    assert all(len(record["history"]) == 1 for record in jobs.values()), "no run swallowed another's points"
    assert summary["run"][0]["job_type"] == "sweep-summary"
    assert not any("sweep/table" in str(row) for row in summary.get("history", ())), "its sizes would be curves"
    (stored,) = (row["update"]["sweep/table"] for row in summary["summary"] if "sweep/table" in row["update"])
    assert (stored["_type"], stored["nrows"]) == ("table-file", 4)
    assert list(Path("outputs/wandb").glob(f"offline-run-*sweep-summary*/files/{stored['path']}"))

    folder = only_sweep()
    rows = table(folder)
    assert len(rows) == 4
    assert {row["state"] for row in rows} == {"finished"}
    best = min(rows, key=lambda row: float(row["val/neg_elbo"]))
    assert f"best       {best['run']}/best.pt" in said
    assert said.count(str(folder)) == 2, "at the beginning and at the end"
    assert (
        f"{best['run']}"
        == f"z_dim-{best['model.z_dim']}_lr-{best['optimizer.lr']}_warmup_epochs-" + (best["objective.warmup_epochs"])
    )
    for row in rows:
        kept = json.loads((folder / row["run"] / "summary.json").read_text())
        assert float(row["val/neg_elbo"]) == kept["best/val_neg_elbo"]
        assert float(row["test/kl"]) == kept["test/kl"]


MIXED = {
    "numbers and words, words, numbers and null, lists": (
        "dataset=digits", "likelihood=gaussian", "likelihood.sigma=0.1,learned,optimal",
        "checkpoint_every_epochs=auto,1,null", "network.hidden_dims=[8],[8,8],[4]", "optimizer.lr=1e-3,1e-4,1e-5",
        "sweep.zip=[likelihood.sigma,checkpoint_every_epochs,network.hidden_dims,optimizer.lr]",
    ),
    "dictionaries, truth values, lists and null": (
        "dataset=sprites", "dataset.factors={shape:[0],x:4},{x:4,y:[0,1]}", "dataset.val_size=8",
        "dataset.flip=true,false", "figures=null,[latents]",
        "sweep.zip=[dataset.factors,dataset.flip,figures]",
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("swept", MIXED.values(), ids=MIXED)
def test_the_summary_of_a_sweep_is_written_whatever_its_values_are(vae_train, swept):
    code, said = vae_train("-m", "epochs=1", "max_steps=5", "wandb.mode=offline", *swept)
    assert code == 0, said
    assert "Traceback" not in said
    assert "W&B: the sweep's summary could not be logged" not in said
    (folder,) = Path("outputs/wandb").glob("*run-*-sweep-summary-*")
    records = recorded(folder)
    assert not records["exit"][0].get("exit_code")
    final = {}
    for update in records["summary"]:
        final |= update["update"]
    rows = table(only_sweep())
    assert (final["done"], final["jobs"]) == (len(rows), len(rows))
    (path,) = (folder / "files" / "media" / "table" / "sweep").glob("*.json")
    logged = json.loads(path.read_text())
    assert len(logged["data"]) == len(rows)
    for key in [name for name in logged["columns"] if name in rows[0] and "." in name and "/" not in name]:
        shown = [row[logged["columns"].index(key)] for row in logged["data"]]
        assert len({type(value) for value in shown if value is not None}) == 1, "one type a column, as W&B sorts it"
        assert len(set(map(str, shown))) == len({row[key] for row in rows}), f"{key}: no value is lost"


@pytest.mark.slow
def test_jobs_that_fail_are_told_and_the_others_go_on(vae_train):
    code, said = vae_train(
        "-m", "dataset=digits", "epochs=1", "wandb.mode=offline", "dataset.n_classes=0",
        "model=conditional,vanilla", "optimizer.lr=1e-3,1e10",
    )  # fmt: skip
    assert code == 1
    states = {row["run"]: (row["state"], row["reason"]) for row in table(only_sweep())}
    assert states["model-vanilla_lr-0.001"] == ("finished", "")
    assert states["model-vanilla_lr-10000000000.0"][0] == "failed"
    assert "the training diverged between steps 1 and 11" in states["model-vanilla_lr-10000000000.0"][1]
    for lr in ("0.001", "10000000000.0"):
        assert states[f"model-conditional_lr-{lr}"][0] == "failed"
        assert "digits has no labels" in states[f"model-conditional_lr-{lr}"][1]
    assert "1 of 4 jobs finished" in said
    assert "digits has no labels" in said
    assert "Traceback" not in said
    exits = [recorded(folder)["exit"][0].get("exit_code", 0) for folder in Path("outputs/wandb").glob("*digits*")]
    assert sorted(exits) == [0, 1]


@pytest.mark.slow
def test_a_bug_in_one_job_does_not_end_the_sweep(vae_train):
    jobs = []

    def bug_in_the_first():
        jobs.append(1)
        if len(jobs) == 1:
            raise ZeroDivisionError("a bug")

    with hooks.at_step(3, bug_in_the_first):
        code, said = vae_train(*QUICK, hooks.OWN_OBJECTIVE, "seed=0,1")
    assert (code, "Traceback" in said) == (1, False), said
    first, second = table(only_sweep())
    assert (first["state"], first["reason"]) == ("failed", "ZeroDivisionError: a bug")
    assert second["state"] == "finished"
    log = (only_sweep() / first["run"] / "train.log").read_text()
    assert log.endswith("ZeroDivisionError: a bug\n") and "bug_in_the_first" in log
    assert "Traceback" in log and "in train_step" in log, "whole here, and the own frames alone where it is printed"
    assert "in train_step" not in said


@pytest.mark.slow
def test_a_job_of_a_preset_sweep_goes_on_as_one_run(vae_train):
    preset = ("experiment=sweep_z_lr", "epochs=1", "wandb.mode=disabled", "network.hidden_dims=[8]")
    assert vae_train(*preset, "model.z_dim=3", "optimizer.lr=1e-3", "seed=0,1")[0] == 0
    job = sorted(only_sweep().glob("*/last.pt"))[0].parent
    code, said = vae_train(f"resume={job}", "trust=true", "epochs=2")
    assert code == 0, said
    assert json.loads((job / "summary.json").read_text())["best/epoch"] == 2
    assert not Path("multirun").exists()


@pytest.mark.slow
def test_a_damaged_job_is_left_out_of_the_table(vae_train):
    finished = []

    def damage_the_first():
        for summary in only_sweep().glob("*/summary.json"):
            if '"finished"' in summary.read_text():
                finished.append(summary.parent)
                summary.write_text("{")

    with hooks.at_step(3, damage_the_first):
        code, said = vae_train(*QUICK, hooks.OWN_OBJECTIVE, "seed=0,1")
    assert code == 1
    (first,) = finished
    assert f"left out: {first}: not a run of vae_exp, or a damaged one" in said
    assert [row["state"] for row in table(only_sweep())] == ["finished"]


@pytest.mark.slow
def test_seeds_are_folded_and_one_swept_number_gives_curves(vae_train):
    code, said = vae_train(*QUICK, "model.z_dim=4,8", "seed=0,1")
    assert code == 0
    assert said.count(" ± ") >= 4
    rows = [line.removeprefix("best").split() for line in said.splitlines() if " ± " in line]
    assert {row[0] for row in rows} == {"z_dim-4", "z_dim-8"}
    assert (only_sweep() / "curves.png").stat().st_size > 10_000


@pytest.mark.slow
def test_two_swept_numbers_give_a_heat_map(vae_train):
    assert vae_train(*QUICK, "model.z_dim=4,8", "optimizer.lr=1e-3,1e-4")[0] == 0
    assert (only_sweep() / "heat_map.png").stat().st_size > 10_000


@pytest.mark.slow
def test_a_swept_key_of_an_experiment_is_replaced_by_the_same_key_typed(vae_train):
    quick = ("epochs=1", "wandb.mode=disabled", "model.z_dim=3", "optimizer.lr=1e-3,1e-2", "seed=3")
    code, said = vae_train("experiment=sweep_z_lr", *quick)
    assert code == 0
    rows = table(only_sweep())
    assert [row["optimizer.lr"] for row in rows] == ["0.001", "0.01"]
    configs = [yaml.safe_load((only_sweep() / row["run"] / "config.yaml").read_text()) for row in rows]
    assert [(config["model"]["z_dim"], config["seed"]) for config in configs] == [(3, 3), (3, 3)]
    again = next(line for line in said.splitlines() if line.startswith("rerun best")).split()[3:]
    assert vae_train(*again)[0] == 0
    assert len(list(Path("outputs").glob("20*/*/summary.json"))) == 1


def wait_for(count, running, state="finished"):
    while sum(json.loads(p.read_text())["state"] == state for p in written("summary.json")) < count:
        time.sleep(0.05)
        assert running.poll() is None, running.stdout.read()


@pytest.mark.slow
def test_a_killed_sweep_resumed_gives_the_same_results(vae_train, tmp_path, monkeypatch):
    arguments = ("-m", "dataset=digits", "epochs=15", "wandb.mode=disabled", "model.z_dim=3,4", "seed=0,1")
    (tmp_path / "whole").mkdir()
    monkeypatch.chdir(tmp_path / "whole")
    assert vae_train(*arguments)[0] == 0
    whole = table(only_sweep())

    (tmp_path / "killed").mkdir()
    monkeypatch.chdir(tmp_path / "killed")
    running = command(*arguments)
    wait_for(2, running)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    done = [p.parent for p in Path("outputs").rglob("summary.json") if '"finished"' in p.read_text()]
    before = {folder: (folder / "metrics.jsonl").read_bytes() for folder in done}
    assert 2 <= len(done) < 4
    code, said = vae_train(*arguments, "sweep.resume=latest", "batch_size=32")
    assert code == 1
    assert "sweep.resume=latest: the sweep was started without batch_size=32. A resumed sweep keeps" in said
    code, said = vae_train(*arguments, "sweep.resume=latest")
    assert code == 0
    assert said.count("already finished") == len(done)
    assert {folder: (folder / "metrics.jsonl").read_bytes() for folder in done} == before
    assert table(only_sweep()) == whole


@pytest.mark.slow
def test_ctrl_c_closes_the_running_job_and_tells_how_to_go_on():
    running = command("-m", "dataset=digits", "epochs=2000", "wandb.mode=offline", "seed=0,1,2")
    wait_for(1, running, state="running")
    while not written("metrics.jsonl") or not written("last.pt"):
        time.sleep(0.05)
    os.killpg(running.pid, signal.SIGINT)
    said, _ = running.communicate(timeout=30)
    assert running.returncode == 130
    assert "Traceback" not in said
    assert f"sweep.resume={only_sweep()}" in said
    (summary,) = Path("outputs").rglob("summary.json")
    assert json.loads(summary.read_text())["state"] == "interrupted"
    (run,) = Path("outputs/wandb").glob("offline-run-*")
    assert recorded(run)["exit"][0]["exit_code"] == 130


LAUNCHERS = {
    "joblib": ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2"),
    "submitit": ("hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5"),
    "submitit, two processes a job": ("hydra/launcher=submitit_local", "hydra.launcher.tasks_per_node=2"),
    "ray": ("hydra/launcher=ray", "+hydra.launcher.ray.init.num_cpus=2"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LAUNCHERS)
def test_every_launcher_gives_the_same_results(name, vae_train, tmp_path, monkeypatch):
    extra = name.partition(",")[0]
    if find_spec("hydra_plugins") is None or find_spec(f"hydra_plugins.hydra_{extra}_launcher") is None:
        pytest.skip(f"not installed: pip install 'vae_exp[{extra}]'")
    jobs = (*QUICK, "optimizer.lr=1e-3,1e10")
    assert vae_train(*jobs)[0] == 1
    basic = table(only_sweep())
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    running = command(*jobs, *LAUNCHERS[name])
    said, _ = running.communicate(timeout=150)
    assert running.returncode == 1, said
    assert "1 of 2 jobs finished" in said
    assert said.count("grey pixels") == 1
    assert rounded(table(only_sweep())) == rounded(basic) if "two" in name else table(only_sweep()) == basic


def rounded(rows):
    """Two processes add up in another order than one."""
    return [{key: f"{float(v):.4f}" if v[:1].isdigit() else v for key, v in row.items()} for row in rows]


def test_a_launcher_that_does_not_exist_says_which_do(vae_train):
    code, said = vae_train(*QUICK, "seed=0,1", "hydra/launcher=joblb")
    assert code == 1
    assert "hydra/launcher=joblb: there is no such launcher. Did you mean joblib?" in said


@pytest.mark.parametrize("resume", ["latest", "outputs/nowhere"])
def test_a_sweep_that_is_not_there_cannot_be_resumed(vae_train, resume, tmp_path):
    code, said = vae_train(*QUICK, "seed=0,1", f"sweep.resume={resume}")
    assert code == 1
    assert f"sweep.resume={resume}" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_wandb_agent_runs_what_the_sweep_file_says(tmp_path):
    """The command is expanded by W&B's own functions, in the agent's order, and run with the agent's environment."""
    from wandb.sdk.launch.sweeps import utils

    sweep = yaml.safe_load((CONF_DIR / "wandb_sweep.yaml").read_text())
    asked = {"dataset": "digits", "model.z_dim": 5, "optimizer.lr": 0.0021, "seed": 2}
    assert asked.keys() == sweep["parameters"].keys()
    filled = utils.create_sweep_command_args({"args": {key: {"value": value} for key, value in asked.items()}})
    words = []
    for word in utils.create_sweep_command(sweep["command"]):
        name = word[2:-1] if word.startswith("${") else None
        words += ["/usr/bin/env"] if name == "env" else filled[name] if name else [word]
    assert words[:2] == ["/usr/bin/env", "vae-train"]
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "WANDB_SWEEP_ID": "s1",
        "WANDB_RUN_ID": "r1",
        "WANDB_MODE": "offline",
    }
    done = subprocess.run([*words, "epochs=1"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = Path("outputs/wandb").glob("offline-run-*-r1")
    records = recorded(folder)
    config = records["run"][0]["config"]["update"]
    assert (config["model"]["z_dim"], config["optimizer"]["lr"], config["seed"]) == (5, 0.0021, 2)
    assert any(sweep["metric"]["name"] in row["item"] for row in records["history"])


@pytest.mark.parametrize(
    ("swept", "once"),
    [
        ("model.z_dim=2,2", "model.z_dim=2"),
        ("model.z_dim=2,3,2.0", "model.z_dim=2,3"),
        ("optimizer.lr=1e-3,3e-4,0.001", "optimizer.lr=0.001,0.0003"),
        ("model.z_dim=2,'2'", "model.z_dim=2"),
        ("dataset.flip=true,True", "dataset.flip=True"),
        ("optimizer=adam,'adam'", "optimizer=adam"),
        ("network.hidden_dims=[8,4],[8, 4.0]", "network.hidden_dims=[8,4]"),
        ("figures=null,Null", "figures=null"),
        ("wandb.name='a b',c,'a b'", "wandb.name='a b',c"),
        ("seed=range(0,3)", "seed=range(0,3)"),
        ("dataset=glob(*)", "dataset=glob(*)"),
    ],
)
def test_a_value_that_is_swept_twice_is_one_job(swept, once):
    assert [str(override.input_line) for override in distinct(parse([swept]))] == [once]


@pytest.mark.slow
def test_a_setting_that_is_typed_twice_runs_once(vae_train):
    code, said = vae_train(*QUICK, "epochs=0", "model.z_dim=3,3", "seed=0,1,0")
    assert code == 0, said
    assert "2 of 2 jobs finished" in said
    assert sorted(row["run"] for row in table(only_sweep())) == ["seed-0", "seed-1"]


@pytest.mark.parametrize("again", ["seed=1,2", "seed=7"])
def test_a_swept_key_is_typed_once(vae_train, again, tmp_path):
    code, said = vae_train(*QUICK, "seed=0,1", again)
    assert code == 1
    assert f"seed: is there twice, as seed=0,1 and {again}" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_values_that_would_make_one_folder_of_two_jobs_are_numbered(vae_train):
    assert vae_train(*QUICK, "epochs=0", "wandb.name=n,N")[0] == 0
    assert {path.parent.name for path in only_sweep().glob("*/summary.json")} == {"0", "1"}


@pytest.mark.slow
def test_a_job_that_a_cluster_starts_again_goes_on(vae_train, monkeypatch):
    (basic,) = (kind for kind in Plugins.instance().discover(Launcher) if kind.__name__ == "BasicLauncher")
    launch = basic.launch

    def requeue(*jobs, **first):
        """As a cluster does: a job that was stopped is started again as it is."""
        with contextlib.suppress(SystemExit):
            return launch(*jobs, **first)
        return launch(*jobs, **first)

    monkeypatch.setattr(basic, "launch", requeue)
    with hooks.at_step(4, lambda: os.kill(os.getpid(), signal.SIGUSR2)):
        code, said = vae_train(*QUICK, hooks.OWN_OBJECTIVE, "hydra.sweep.dir=sweep", "seed=3")
    assert code == 0, said
    assert "  resumes" in said
    (job,) = Path("sweep").glob("*/summary.json")
    assert json.loads(job.read_text())["state"] == "finished"
    assert "resumes from" in (job.parent / "train.log").read_text()


@pytest.mark.slow
def test_the_folder_of_a_sweep_can_be_chosen(vae_train):
    arguments = (*QUICK, "epochs=0", "seed=0,1", "hydra.sweep.dir=my/sweep")
    code, said = vae_train(*arguments)
    assert code == 0
    assert "best       seed-" in said and "vae-compare my/sweep" in said
    before = {path: path.read_bytes() for path in Path("my/sweep").rglob("*.json*")}
    assert len(table(Path("my/sweep"))) == 2
    for folder in ("my/sweep", "my"):
        code, said = vae_train(*QUICK, "seed=0,1", f"hydra.sweep.dir={folder}")
        assert code == 1
        assert f"hydra.sweep.dir={folder}: a sweep or runs are there already" in said
    code, said = vae_train(*arguments, "sweep.resume=my/sweep")
    assert code == 0
    assert said.count("already finished") == 2
    assert {path: path.read_bytes() for path in Path("my/sweep").rglob("*.json*")} == before
    assert [path.name for path in Path().iterdir()] == ["my"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sweep.name=a",), "sweep.name=a: only works with -m."),
        (("sweep.resume=latest",), "sweep.resume=latest: only works with -m."),
        (("hydra.sweep.dir=a",), "hydra.sweep.dir=a: only works with -m."),
        (("-m", "seed=0,1", "hydra.sweep.subdir=a"), "hydra.sweep.subdir=a: the folders of jobs are named by their"),
        (("-m", "seed=0,1", "hydra.sweep.dir=''"), "hydra.sweep.dir=: it takes the path of a folder"),
        (("-m", "seed=0,1", f"hydra.sweep.dir={'x' * 300}"), "x: it takes the path of a folder (names up to 255 bytes"),
        (("-m", "seed=0,1", "hydra.sweep.dir=/dev/null/x"), "choose another place, such as hydra.sweep.dir=PATH."),
        (("-m", "seed=0,1", "sweep.resume=1"), "sweep.resume=1: no sweep was started there"),
        (("-m", "seed=0,1", "sweep.resume=0"), "sweep.resume=0: no sweep was started there"),
        (("-m", "model.beta=range(1,3,0)"), "model.beta=range(1,3,0): range() arg 3 must not be zero."),
        (("-m", "model.z_dim=2,0"), "model.z_dim=0: it takes a whole number, 1 or more."),
        (("-m", "seed=0,1", "hydra.run.dir=a"), "hydra.run.dir=a: is of one run. The folder of a sweep is"),
    ],
)
def test_what_is_of_a_sweep_and_what_of_one_run(vae_train, arguments, message, tmp_path):
    code, said = vae_train(*QUICK[1:], *arguments)
    assert code == 1
    assert message in said
    assert list(tmp_path.iterdir()) == []


SETTINGS = [
    ('epochs=${oc.decode:"0"}', "wandb.notes=é", f"sweep.name={'中' * 120}"),
    ("epochs=0", "wandb.notes=a b"),
    ("epochs=0", 'wandb.notes=a"b'),
]


@pytest.mark.slow
@pytest.mark.parametrize("settings", SETTINGS)
def test_settings_in_quotes_are_the_same_in_every_job(vae_train, settings):
    code, said = vae_train("-m", "dataset=digits", "wandb.mode=disabled", "seed=0,1", *settings)
    assert code == 0, said
    assert "2 of 2 jobs finished" in said
    expected = dict(setting.split("=") for setting in settings) | {"epochs": 0}
    written = [flatten(read_config(folder)) for folder in runs_below(Path("outputs"))]
    assert [{key: config[key] for key in expected} for config in written] == [expected] * 2


@pytest.mark.slow
def test_a_sweep_goes_on_and_runs_again_from_its_folder_alone(vae_train):
    typed = (*QUICK, "seed=0,1", "model.z_dim=3", "optimizer.lr=1e-3,1e10", "hydra.sweep.dir=sweep")
    code, said = vae_train(*typed)
    assert code == 1
    assert "missing    seed-0_lr-10000000000.0, seed-1_lr-10000000000.0" in said
    (go_on,) = [line.removeprefix("resume     vae-train ") for line in said.splitlines() if line.startswith("resume ")]
    done = {path: path.read_bytes() for path in Path("sweep").rglob("best.pt")}
    code, said = vae_train(*shlex.split(go_on))
    assert "2 of 4 jobs finished" in said and said.count("already finished") == 2
    assert {path: path.read_bytes() for path in done} == done

    code, said = vae_train("rerun=sweep", "optimizer.lr=2e-3,1e-3")
    assert code == 0 and "4 of 4 jobs finished" in said
    again = [read_config(run) for run in runs_below(only_sweep())]
    assert {(config["seed"], config["optimizer"]["lr"]) for config in again} == {
        (s, lr) for s in (0, 1) for lr in (2e-3, 1e-3)
    }
    assert {config["model"]["z_dim"] for config in again} == {3}

    code, said = vae_train("rerun=sweep/seed-1_lr-0.001", "epochs=2", "hydra.run.dir=one")
    assert code == 0
    config = read_config(Path("one"))
    assert (config["seed"], config["model"]["z_dim"], config["epochs"], config["sweep"]["over"]) == (1, 3, 2, [])
    assert "the configuration contradicts" not in said and "goes on" not in said
    assert vae_train("rerun=nowhere")[0] == 1
