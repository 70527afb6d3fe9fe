"""The command line as a user meets it: from an installed wheel and in an empty folder."""

import json
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from vae_exp.config.checks import CONF_DIR

ROOT = CONF_DIR.parent


@pytest.mark.slow
def test_a_wheel_trains_digits_from_an_empty_folder(tmp_path):
    """Built from the sources, installed into another environment that has the same libraries and not vae_exp."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, ROOT], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    other = tmp_path / "env"
    venv.create(other, with_pip=False)
    site = next(other.glob("lib/python*/site-packages"))
    # A .pth file lends the libraries; that of the editable vae_exp is not followed from there.
    (site / "libraries.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    python = str(other / "bin" / "python")
    subprocess.run([*pip, "--python", python, "install", "-q", "--no-deps", "--no-index", wheel], check=True)

    empty = tmp_path / "empty"
    empty.mkdir()
    where = "from vae_exp.config.checks import CONF_DIR; print(CONF_DIR)"
    conf = subprocess.run([python, "-c", where], cwd=empty, capture_output=True, text=True, check=True).stdout
    assert Path(conf.strip()) == site / "vae_exp" / "conf"
    done = subprocess.run(
        [other / "bin" / "vae-train", "experiment=demo", "epochs=2"], cwd=empty, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (summary,) = empty.rglob("summary.json")
    assert json.loads(summary.read_text())["state"] == "finished"
    assert sorted(path.name for path in empty.iterdir()) == ["outputs"]


def test_a_run_ends_with_where_things_are_and_what_to_type_next(vae_train):
    code, said = vae_train("experiment=demo", "epochs=1")
    assert code == 0
    (folder,) = (path.parent for path in Path("outputs").rglob("best.pt"))
    (upload,) = Path("outputs/wandb").glob("offline-run-*")
    for expected in (
        f"folder    {folder}    (images/, metrics.jsonl, summary.json, best.pt)",
        "vae-evaluate checkpoint=latest",
        "leet outputs/wandb",
        f"sync {upload}",
        "test ",
        "experiment=tutorial",
    ):
        assert expected in said
    assert said.count(str(folder)) == 2, "as it starts and as it ends"
    assert "MNIST" not in vae_train("dataset=digits", "epochs=0", "wandb.mode=disabled")[1], "no advert of it"
    assert "%|" not in said, "no bar where there is no terminal"
    assert "epoch 1/1" in (folder / "train.log").read_text()


def test_two_runs_of_one_second_do_not_share_a_folder(vae_train):
    for _ in range(2):
        assert vae_train("dataset=digits", "epochs=0", "wandb.mode=disabled")[0] == 0
    assert len(list(Path("outputs").rglob("summary.json"))) == 2


def test_data_that_cannot_be_had_is_one_message(vae_train, monkeypatch, tmp_path):
    for scheme in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(scheme, "http://127.0.0.1:9")
    code, said = vae_train(f"dataset.root={tmp_path / 'data'}", "wandb.mode=offline")
    assert code == 1
    assert said.count("could not be downloaded") == 1
    assert "dataset=digits" in said
    assert "Traceback" not in said
    assert not Path("outputs/wandb").exists()
