"""`vae-compare --wandb`: what is sent names only what runs really logged, and a second call makes nothing new."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import quick_run, recorded
from tests.wandb_loopback import Loopback, serving

pytest.importorskip("wandb_workspaces", reason="not installed: pip install 'vae_exp[workspaces]'")
TYPED = ("-m", "dataset=digits", "device=cpu", "network.hidden_dims=[16]", "epochs=2", "seed=0,1", "sweep.name=one")
SWEPT = ("model.z_dim=2,8", "optimizer.lr=1e-3,1e-2", "wandb.mode=offline")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return tmp_path_factory.mktemp("swept")


@pytest.fixture
def sweep(made, vae_train):
    """Eight runs that were logged offline; they are trained once."""
    if not any(made.iterdir()):
        code, said = vae_train(*TYPED, *SWEPT)
        assert code == 0, said
        shutil.copytree("outputs", made / "outputs")
    shutil.copytree(made / "outputs", "outputs", dirs_exist_ok=True)
    (folder,) = Path("outputs/sweeps").iterdir()
    return folder


def leaves(value, path=()):
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, (*path, key))
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner, path)
    else:
        yield path, value


def plain(names):
    """As a panel asks for it: val/kl_per_dim of val/kl_per_dim.bins."""
    return {name.partition(".")[0] for name in names}


def flat(config, prefix="config:"):
    """config:model.value.z_dim, where W&B keeps it."""
    return {
        f"{prefix}{key}.value" + (f".{inner}" if inner else "")
        for key, value in config.items()
        for inner in (value if isinstance(value, dict) else [""])
    }


@pytest.mark.slow
def test_no_panel_is_of_a_key_that_nobody_logs(sweep, vae_command):
    code, said = vae_command("vae-compare", sweep, "--wandb", "me/mine", "--wandb-report", "--dry-run")
    assert code == 0, said
    sent = json.loads(said)
    assert set(sent) == {"view", "report"}
    logs = [recorded(folder) for folder in Path("outputs/wandb").glob("*run-*")]
    history = plain(name for log in logs for record in log.get("history", []) for name in record["item"])
    summary = {f"summary:{name}" for log in logs for record in log["summary"] for name in record.get("update", {})}
    config = {name for log in logs for record in log["run"] for name in flat(record["config"]["update"])}
    asked = {}
    for path, value in leaves(sent):
        asked.setdefault(path[-1], set()).add(value)
    assert asked["metrics"] | asked["mediaKeys"] <= history
    assert {"val/neg_elbo", "val/reconstruction", "val/kl", "val/kl_per_dim", "time/epoch_seconds"} <= asked["metrics"]
    assert {"images/samples", "images/reconstructions", "sweep/heat_map"} <= asked["mediaKeys"]
    named = asked["accessor"] | asked["columnOrder"] | asked["zAxis"] | asked["yAxis"]
    assert {name for name in named if str(name).startswith("config:")} <= config
    assert {name for name in named if str(name).startswith("summary:")} <= summary
    columns = {"model.value.z_dim", "model.value.beta", "optimizer.value.lr", "seed.value"}
    assert {f"config:{name}" for name in columns} <= asked["columnOrder"]
    assert {"summary:best/val_neg_elbo", "summary:test/neg_elbo", "summary:state"} <= asked["columnOrder"]
    assert {"config:model.value.z_dim", "config:optimizer.value.lr"} <= asked["accessor"]
    assert "config:seed.value" not in asked["accessor"], "seeds are folded"
    assert any("vae-train -m" in str(value) and "model.z_dim=2,8" in str(value) for _, value in leaves(sent["report"]))


@pytest.mark.slow
def test_scores_of_disentanglement_have_panels_where_runs_have_them(vae_train, vae_command):
    part = "dataset.factors={shape:[0],scale:4,orientation:1,x:8,y:8}"
    typed = (
        "dataset=sprites",
        "dataset.test_size=0.3",
        "dataset.val_size=0.4",
        part,
        "network.hidden_dims=[16]",
        "model.z_dim=2",
        "epochs=1",
        "device=cpu",
    )
    scored = ("scores=[mig,dci]", "scores_every_epochs=1", "wandb.mode=offline", "hydra.sweep.dir=swept")
    code, said = vae_train("-m", *typed, *scored, "model.beta=1,4")
    assert code == 0, said
    code, said = vae_command("vae-compare", "swept", "--wandb", "me/mine", "--wandb-report", "--dry-run")
    assert code == 0, said
    logs = [recorded(folder) for folder in Path("outputs/wandb").glob("*run-*")]
    history = plain(name for log in logs for record in log.get("history", []) for name in record["item"])
    summary = {f"summary:{name}" for log in logs for record in log["summary"] for name in record.get("update", {})}
    for part in json.loads(said).values():
        asked: dict[str, set] = {}
        for path, value in leaves(part):
            asked.setdefault(path[-1], set()).add(value)
        over = {"summary:test/mig", "summary:test/dci_disentanglement"}
        assert over <= asked["yAxis"] <= summary
        assert {"summary:test/reconstruction", "config:model.value.beta"} <= asked["xAxis"] | asked["zAxis"]
        assert {"val/mig", "val/dci_disentanglement"} <= asked["metrics"] <= history
    assert {"sweep/trade_off"} <= asked["mediaKeys"] <= history


def view_of(said):
    """How the view that is sent groups the runs, by which column, and its columns."""
    spec = json.loads(said)["view"]["spec"]
    (runs,) = (json.loads(spec) if isinstance(spec, str) else spec)["section"]["runSets"]
    return [(key["section"], key["name"]) for key in runs["grouping"]], runs["runFeed"]["columnOrder"]


@pytest.mark.slow
def test_runs_alone_are_grouped_by_their_settings_and_not_each_by_itself(vae_command):
    for seed in (0, 1):
        quick_run(f"seed={seed}", "max_steps=1", folder=f"runs/{seed}", wandb="offline")
    code, said = vae_command("vae-compare", "runs", "--wandb", "me/mine", "--dry-run")
    assert code == 0, said
    assert view_of(said)[0] == []


@pytest.mark.slow
def test_the_view_names_what_was_swept_where_no_key_has_it(vae_train, vae_command):
    for name in ("one", "two"):
        Path("own/experiment").mkdir(parents=True, exist_ok=True)
        Path(f"own/experiment/{name}.yaml").write_text("# @package _global_\nbatch_size: 64\n")
    typed = ("dataset=digits", "device=cpu", "epochs=1", "max_steps=1", "wandb.mode=offline", "hydra.sweep.dir=s")
    code, said = vae_train("-m", "--config-dir", "own", *typed, "experiment=one,two", "dataset.seed=0,1")
    assert code == 0, said
    code, said = vae_command("vae-compare", "s", "--wandb", "me/mine", "--wandb-report", "--dry-run")
    assert code == 0, said
    grouped, columns = view_of(said)
    assert grouped == [("run", "group")]
    assert {"config:sweep.value.over", "config:dataset.value.seed"} <= set(columns)
    assert "| one |" in said, "the report's table has it by name"


def compared(*typed, **environment):
    """vae-compare as a process of its own: W&B's library reads its variables once in a process."""
    code = "from vae_exp.cli.compare import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, typed)], capture_output=True, text=True, env=os.environ | environment
    )
    return done.returncode, done.stdout + done.stderr


def sections(server):
    """Those of the view that the server has, from the JSON that was sent."""
    (view,) = (view for view in server.views.values() if view["type"] == "project-view")
    spec = json.loads(view["spec"])
    return view, spec, spec["section"]["panelBankConfig"]["sections"]


@pytest.mark.slow
def test_a_second_call_makes_no_second_one_and_keeps_what_the_user_added(sweep):
    ids = [json.loads(path.read_text())["wandb"]["id"] for path in sweep.rglob("summary.json")]
    with serving(Loopback("me", "mine", ids[1:])) as server:
        known = {"WANDB_API_KEY": "a" * 40, "WANDB_BASE_URL": server.url}
        for word in ("made", "updated"):
            code, said = compared(sweep, "--wandb", "me/mine", "--wandb-report", **known)
            assert code == 0, said
            assert f"{word} the view {server.url}/me/mine?nw=" in said
            assert f"{word} the report {server.url}/me/mine/reports/" in said
            assert "me/mine does not have 1 of these runs yet: wandb sync outputs/wandb/*run-*" in said
            assert sorted(view["type"] for view in server.views.values()) == ["project-view", "runs"]
            view, spec, drawn = sections(server)
            names = [section["name"] for section in drawn]
            if word == "made":
                ours = names
                drawn.insert(0, drawn[0] | {"name": "My notes", "__id__": "mine"})
                view["spec"] = json.dumps(spec)
        assert sorted(names) == sorted([*ours, "My notes"])
        assert "images/samples" in view["spec"]

        code, said = compared(sweep, "--wandb", "me/other", **known)
        assert (code, "W&B has no such project" in said) == (1, True), said
        server.runs.clear()
        code, said = compared(sweep, "--wandb", "me/mine", **known)
        assert code == 1
        assert "me/mine does not have 8 of these runs yet: wandb sync" in said
        assert "me/mine has none of these runs, so its view would be empty." in said
        assert len(server.views) == 2


@pytest.mark.slow
@pytest.mark.parametrize("status", [403, 500])
def test_a_server_that_refuses_or_fails_costs_one_message(sweep, status):
    ids = [json.loads(path.read_text())["wandb"]["id"] for path in sweep.rglob("summary.json")]
    with serving(Loopback("me", "mine", ids)) as server:
        server.status = status
        known = {"WANDB_API_KEY": "a" * 40, "WANDB_BASE_URL": server.url}
        code, said = compared(sweep, "--wandb", "me/mine", **known)
    assert code == 1
    assert "vae-compare: --wandb" in said
    assert str(status) in said
    assert "Traceback" not in said
    assert not server.views


@pytest.mark.slow
def test_a_sweep_that_was_logged_online_ends_with_the_command_that_makes_the_view(sweep, vae_train):
    for path in sweep.rglob("summary.json"):
        summary = json.loads(path.read_text())
        summary["wandb"]["url"] = f"https://wandb.ai/team/mine/runs/{summary['wandb']['id']}"
        path.write_text(json.dumps(summary))
    code, said = vae_train(*TYPED, *SWEPT, f"sweep.resume={sweep}")
    assert code == 0, said
    assert "in W&B     vae-compare latest --wandb team/mine --wandb-report" in said


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        (("--wandb", "mine"), "--wandb mine: it takes ENTITY/PROJECT, such as me/vae_exp."),
        (("--wandb-report",), "--wandb-report: goes with --wandb ENTITY/PROJECT."),
        (("--dry-run",), "--dry-run: goes with --wandb ENTITY/PROJECT."),
        (("--wandb", "me/mine"), "--wandb: no W&B API key is configured. `wandb login`, or print what would be sent"),
    ],
)
def test_what_is_missing_is_said_before_anything_is_read(vae_command, typed, says):
    code, said = vae_command("vae-compare", "nowhere", *typed)
    assert code == 1
    assert says in said


@pytest.mark.slow
def test_without_a_name_it_is_the_project_that_the_runs_were_logged_to(sweep, vae_command):
    """As an online run's summary says; of runs that were logged to two projects one has to be named."""
    paths = sorted(sweep.rglob("summary.json"))
    for project, some in (("a%20b", paths), ("other", paths[:1])):
        for path in some:
            summary = json.loads(path.read_text())
            summary["wandb"]["url"] = f"https://wandb.ai/team/{project}/runs/{summary['wandb']['id']}"
            path.write_text(json.dumps(summary))
        code, said = vae_command("vae-compare", sweep, "--wandb", "--dry-run")
        if some is paths:
            assert code == 0, said
            assert [json.loads(said)["view"][key] for key in ("entity", "project")] == ["team", "a b"]
    assert code == 1
    assert "--wandb: the runs do not name one project that they were logged to. Say --wandb ENTITY/PROJECT." in said
