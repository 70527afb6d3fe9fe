"""What W&B really recorded, read back from its own files; and that nothing of W&B's costs a run."""

import contextlib
import http.server
import json
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from datetime import date
from importlib import metadata
from pathlib import Path

import pytest
import requests

import vae_exp
from tests.conftest import A_FEW_SECONDS, command, metrics, quick_run, recorded
from vae_exp.errors import Diverged
from vae_exp.tracking import tracker
from vae_exp.tracking.wandb_run import choose_mode


def only_run():
    (folder,) = Path("outputs/wandb").glob("*run-*")
    return folder


def test_a_good_run_is_recorded_whole():
    name = "vanilla-digits-z5-lr0.002-s7"
    changes = ("model.z_dim=5", "optimizer.lr=2e-3", "seed=7", "epochs=2", "wandb.group=g", "wandb.tags=[mine]")
    summary, folder = quick_run(*changes, wandb="offline")
    records = recorded(only_run())
    (run,) = records["run"]
    assert (run["display_name"], run["project"], run["run_group"], run["job_type"]) == (name, "vae_exp", "g", "train")
    assert set(run["tags"]) == {"vanilla", "digits", "mine"}
    assert run["run_id"] == summary["wandb"]["id"]
    assert run["run_id"].startswith(name)
    config = run["config"]["update"]
    assert (config["model"]["z_dim"], config["optimizer"]["lr"], config["dataset"]["name"]) == (5, 2e-3, "digits")
    assert (config["parameters"], config["train_size"], config["val_size"]) == (summary["parameters"], 1297, 200)

    history = [row["item"] for row in records["history"]]
    local = {}
    for row in metrics(folder):
        local.setdefault(row["step"], {}).update(row)
    assert [row["_step"] for row in history] == sorted(local)
    for row in history:
        for key, value in local[row["_step"]].items():
            if key == "val/kl_per_dim":
                assert sum(row[f"{key}.values"]) == 5, "a histogram of five dimensions"
            elif key != "step":
                assert row[key] == pytest.approx(value), key
    epoch = history[-1]
    for picture in ("reconstructions", "samples"):
        assert "epoch 2" in epoch[f"images/{picture}.caption"]
        stored = only_run() / "files" / epoch[f"images/{picture}.path"]
        assert stored.read_bytes() == (folder / "images" / f"{picture}_{epoch['_step']:07d}.png").read_bytes()

    final = {}
    for update in records["summary"]:
        final |= update["update"]
    for key in ("best/val_neg_elbo", "best/epoch", "test/neg_elbo", "test/kl"):
        assert final[key] == pytest.approx(summary[key])
    assert records["exit"][0].get("exit_code", 0) == 0


def test_a_failed_run_is_marked_failed():
    with pytest.raises(Diverged):
        quick_run("optimizer.lr=1e10", wandb="offline")
    assert recorded(only_run())["exit"][0]["exit_code"] == 1


@pytest.mark.slow
def test_runs_of_one_process_do_not_swallow_each_other():
    for seed in (0, 1):
        quick_run(f"seed={seed}", folder=f"run{seed}", wandb="offline")
    folders = sorted(Path("outputs/wandb").glob("*run-*"))
    assert len(folders) == 2
    seeds = [recorded(folder)["run"][0]["config"]["update"]["seed"] for folder in folders]
    assert sorted(seeds) == [0, 1]
    assert all(len(recorded(folder)["exit"]) == 1 for folder in folders)


@pytest.mark.slow
def test_an_interrupted_run_is_closed_with_all_its_points():
    running = command("dataset=digits", "epochs=100000", "wandb.mode=offline")
    log = None
    while log is None or log.read_text().count("\n") < 20:
        time.sleep(0.1)
        log = next(Path("outputs").rglob("metrics.jsonl"), None)
        assert running.poll() is None, running.stdout.read()
    os.killpg(running.pid, signal.SIGTERM)
    said, _ = running.communicate(timeout=30)
    assert running.returncode == 143, said
    assert "Traceback" not in said
    summary = json.loads((log.parent / "summary.json").read_text())
    assert summary["state"] == "interrupted"
    records = recorded(only_run())
    assert records["exit"][0]["exit_code"] == 143
    steps = {row["step"] for row in metrics(log.parent)}
    assert {row["item"]["_step"] for row in records["history"]} == steps


def test_disabled_leaves_no_trace_of_wandb():
    summary, _ = quick_run(wandb="disabled")
    assert summary["wandb"]["mode"] == "disabled"
    assert not Path("outputs").exists()


def test_auto_without_a_key_is_offline_and_asks_nothing():
    assert quick_run(wandb="auto")[0]["wandb"]["mode"] == "offline"


@pytest.mark.slow
def test_wandbs_own_variables_are_honoured(tmp_path):
    """In a process of its own: W&B reads its variables once in each."""
    chosen = {"PROJECT": "p", "NAME": "n", "RUN_GROUP": "g", "TAGS": "a,b", "NOTES": "why", "DIR": str(tmp_path / "w")}
    chosen |= {"MODE": "offline", "RUN_ID": "id1"}
    running = command("dataset=digits", "epochs=1", **{f"WANDB_{name}": value for name, value in chosen.items()})
    assert "Traceback" not in running.communicate()[0]
    (folder,) = (tmp_path / "w" / "wandb").glob("*run-*")
    (run,) = recorded(folder)["run"]
    assert (run["project"], run["display_name"], run["run_group"], run["notes"]) == ("p", "n", "g", "why")
    assert run["run_id"] == "id1"
    assert {"a", "b"} <= set(run["tags"])


def everything():
    """What was recorded of each W&B run, the latest part last: (job type, project, group, tags)."""
    folders = sorted(Path("outputs/wandb").glob("*run-*"), key=lambda folder: folder.stat().st_mtime)
    runs = [recorded(folder)["run"][0] for folder in folders]
    return [(run["job_type"], run["project"], run["run_group"], sorted(run["tags"])) for run in runs]


def test_no_filter_finds_a_run_without_its_evaluation(vae_command):
    quick_run("wandb.tags=[mine,8]", wandb="offline")
    assert vae_command("vae-evaluate", "checkpoint=run", "device=cpu", "importance_samples=2")[0] == 0
    name, tags = "vanilla-digits-z20-lr0.001-s0", ["8", "digits", "mine", "vanilla"]
    assert everything() == [("train", "vae_exp", name, tags), ("evaluate", "vae_exp", name, tags)]


@pytest.mark.slow
def test_what_the_environment_said_of_a_run_holds_for_what_is_added_later(vae_command, monkeypatch):
    for key, value in {"TAGS": "a,b", "RUN_GROUP": "g", "PROJECT": "p"}.items():
        monkeypatch.setenv(f"WANDB_{key}", value)
    quick_run(wandb="offline")
    for key in ("TAGS", "RUN_GROUP", "PROJECT"):
        monkeypatch.delenv(f"WANDB_{key}")
    quick_run("resume=run", "epochs=2", wandb="offline")
    assert vae_command("vae-evaluate", "checkpoint=run", "device=cpu", "importance_samples=2")[0] == 0
    tags = ["a", "b", "digits", "vanilla"]
    assert everything() == [(kind, "p", "g", tags) for kind in ("train", "train", "evaluate")]
    quick_run("resume=run", "epochs=3", "wandb.tags=[c]", "wandb.group=h", wandb="offline")
    assert everything()[-1] == ("train", "p", "h", ["c", "digits", "vanilla"])


def test_wandb_mode_from_the_environment_gives_way_to_the_command_line(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert quick_run(wandb="auto")[0]["wandb"]["mode"] == "disabled"
    assert quick_run(wandb="offline", folder="b")[0]["wandb"]["mode"] == "offline"


def test_wandb_disabled_is_honoured_unless_the_key_says_otherwise(monkeypatch):
    for word in ("true", "1", "yes"):
        monkeypatch.setenv("WANDB_DISABLED", word)
        assert choose_mode("auto") == "disabled"
    assert quick_run(wandb="auto")[0]["wandb"]["mode"] == "disabled"
    assert not Path("outputs").exists()
    assert quick_run(wandb="offline", folder="b")[0]["wandb"]["mode"] == "offline"


@pytest.mark.slow
def test_a_run_id_that_wandb_refuses_is_one_message_before_anything_is_written(vae_train, monkeypatch):
    monkeypatch.setenv("WANDB_RUN_ID", "a/b c")
    code, said = vae_train("dataset=digits", "epochs=1", "device=cpu", "wandb.mode=offline")
    assert (code, len(said.splitlines())) == (1, 1), said
    assert "WANDB_RUN_ID=a/b c: W&B takes no id" in said
    assert list(Path().iterdir()) == []
    assert quick_run(wandb="disabled")[0]["state"] == "finished"
    monkeypatch.setenv("WANDB_RUN_ID", "mine")
    typed = ("dataset=digits", "epochs=1", "device=cpu", "model.z_dim=2,3")
    code, said = vae_train("-m", *typed, "wandb.mode=offline")
    assert code == 1, said
    assert "WANDB_RUN_ID=mine: is of one run, and each job of a sweep is a run of its own" in said
    assert not Path("outputs").exists()
    monkeypatch.setenv("WANDB_RUN_ID", "")
    assert quick_run(wandb="offline", folder="b")[0]["wandb"]["mode"] == "offline"


def test_a_tag_that_is_too_long_for_wandb_is_left_out_with_one_warning(monkeypatch, caplog):
    monkeypatch.setenv("WANDB_TAGS", f"{'x' * 65},{'y' * 64},,mine")
    summary, _ = quick_run(wandb="auto")
    assert summary["wandb"]["mode"] == "offline"
    (run,) = recorded(only_run())["run"]
    assert set(run["tags"]) == {"vanilla", "digits", "y" * 64, "mine"}
    assert len([record for record in caplog.records if "left out" in record.message]) == 1


def test_one_tag_that_is_too_long_costs_no_run(monkeypatch):
    """W&B refuses a run whose WANDB_TAGS is there and empty."""
    monkeypatch.setenv("WANDB_TAGS", "x" * 65)
    assert quick_run(wandb="auto")[0]["wandb"]["mode"] == "offline"
    assert set(recorded(only_run())["run"][0]["tags"]) == {"vanilla", "digits"}


def test_the_clock_may_jump(monkeypatch):
    monkeypatch.setattr(time, "time", iter(range(10**9, 0, -86_400)).__next__)
    assert 0 < quick_run()[0]["seconds"] < 600
    assert 0 < quick_run("epochs=2", "resume=run")[0]["seconds"] < 600


def test_only_a_folder_that_cannot_be_written_costs_a_run_its_wandb(monkeypatch, caplog):
    attempts = []

    def unreachable(mode, **_):
        attempts.append(mode)
        raise requests.ConnectionError("the server has gone")

    monkeypatch.setattr("wandb.init", unreachable)
    monkeypatch.setattr("vae_exp.training.run.choose_mode", lambda _: "online")
    quick_run("epochs=0")
    assert attempts == ["online", "offline"]
    assert "W&B: the server has gone; the run goes on offline." in caplog.text
    Path("file").touch()
    quick_run("epochs=0", "wandb.dir=file/logged", folder="other")
    assert len(attempts) == 2
    assert re.search(r"W&B: .*file/logged: cannot be written \(.*wandb.dir=PATH; the run folder has", caplog.text)


class Refusing(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.send_response(401)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def failing_server(request):
    """The address of a server that hangs, refuses every key, or is not there at all."""
    with contextlib.ExitStack() as stack:
        if request.param == "refuses":
            server = stack.enter_context(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing))
            threading.Thread(target=server.serve_forever, daemon=True).start()
            stack.callback(server.shutdown)
            port = server.server_port
        else:
            listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            port = listening.getsockname()[1]
            if request.param == "away":
                listening.close()
        yield {"WANDB_API_KEY": "a" * 40, "WANDB_BASE_URL": f"http://127.0.0.1:{port}"}


SAYS = [("away", "does not answer"), ("hangs", "does not answer"), ("refuses", "refuses the API key (401)")]


@pytest.mark.slow
@pytest.mark.parametrize(("failing_server", "says"), SAYS, indirect=["failing_server"])
def test_a_server_that_fails_means_offline_within_seconds(failing_server, says):
    script = (
        "import time; from vae_exp.tracking.wandb_run import choose_mode; started = time.monotonic()\n"
        "print(choose_mode('auto'), time.monotonic() - started)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=os.environ | failing_server
    )
    mode, seconds = done.stdout.split()
    assert mode == "offline"
    assert float(seconds) < A_FEW_SECONDS
    assert done.stderr.count("the run goes on offline") == 1
    assert says in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("failing_server", ["hangs"], indirect=True)
def test_a_server_that_hangs_costs_a_run_seconds_and_a_warning(failing_server):
    taken = []
    for environment in ({}, failing_server):
        started = time.monotonic()
        running = command("dataset=digits", "epochs=1", **environment)
        said, _ = running.communicate(timeout=60)
        taken.append(time.monotonic() - started)
        assert running.returncode == 0, said
        assert "Traceback" not in said
    assert taken[1] < taken[0] + A_FEW_SECONDS
    assert said.count("the run goes on offline") == 1
    summaries = [json.loads(path.read_text()) for path in Path("outputs").rglob("summary.json")]
    assert [(s["state"], s["wandb"]["mode"]) for s in summaries] == [("finished", "offline")] * 2


def test_a_run_remembers_what_it_was_made_with_and_alerts_when_it_ends_early():
    def git(*words):
        return subprocess.run(["git", *words], check=True, capture_output=True, text=True).stdout.strip()

    git("init")
    Path("code.py").write_text("a = 1\n")
    git("add", "code.py")
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-m", "code")
    summary, _ = quick_run("max_steps=3", "wandb.alert=true", folder="one", wandb="offline")
    made = summary["environment"]
    assert (made["commit"], made["clean"]) == (git("rev-parse", "HEAD"), True)
    assert made["torch"] == metadata.version("torch") and made["vae_exp"] == vae_exp.__version__
    assert made["host"] == platform.node() and made["date"][:10] == date.today().isoformat()
    (folder,) = Path("outputs/wandb").glob("offline-run-*")
    records = recorded(folder)
    assert records["run"][0]["config"]["update"]["environment"] == made
    (alert,) = records["alert"]
    assert "finished" in alert["title"] and alert["text"] == "max_steps=3 are taken"
    Path("code.py").write_text("a = 2\n")
    tracker._commit.cache_clear()
    assert not quick_run("epochs=0", folder="two")[0]["environment"]["clean"]
