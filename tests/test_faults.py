"""Faults, each produced for real: one message, exit code 1, what was good stays good."""

import contextlib
import io
import json
import os
import pickle
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.errors import ConfigCompositionException
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from tests import hooks
from tests.conftest import A_FEW_SECONDS, QUICK, Remembering, command, full_disk, metrics, quick_run, stored, written
from tests.test_data import write_idx
from vae_exp import files, inference
from vae_exp.cli import common
from vae_exp.config.compose import IS_NEW
from vae_exp.datasets.image_folder import read_images
from vae_exp.datasets.torchvision import torchvision_images
from vae_exp.errors import Diverged, Unwritable, UserError, printable
from vae_exp.training import checkpoints, run_dir

SMALL = ("network.hidden_dims=[16]", "model.z_dim=3")
RUN = (*QUICK, *SMALL, "wandb.mode=disabled", "hydra.run.dir=run")


@pytest.mark.slow
def test_a_full_disk_is_one_message_and_the_last_good_checkpoint_stays(vae_train, trained_by_command):
    trained_by_command(*RUN[:-1])
    before = {path: path.read_bytes() for path in Path("run").glob("*.pt")}
    with full_disk(min(map(len, before.values())) - 100):
        code, said = vae_train("resume=run", "epochs=2")
    assert code == 1
    assert "run/best.pt: cannot be written (File too large)" in said
    assert "vae-train resume=run" in said, "what was saved before is whole"
    assert not list(Path("run").glob("*.partial"))
    assert "Traceback" not in said
    assert {path: path.read_bytes() for path in Path("run").glob("*.pt")} == before
    assert json.loads(Path("run/summary.json").read_text())["state"] == "failed"
    assert vae_train("resume=run", "epochs=2")[0] == 0


def test_a_folder_that_cannot_be_written_is_named(vae_train):
    code, said = vae_train(*QUICK, "wandb.mode=disabled", "hydra.run.dir=/proc/nothing/here")
    assert code == 1
    assert "/proc/nothing" in said
    assert "cannot be written" in said
    assert "Traceback" not in said


def test_a_name_that_no_rule_sees_and_no_file_system_takes_is_one_message():
    long = "x" * 300
    message = f"vae-train: {long}: this name is too long for the file system."
    with pytest.raises(SystemExit, match=re.escape(message)), common.exits("vae-train", "config"):
        Path(long).stat()


@pytest.mark.slow
@pytest.mark.parametrize("key", ["model.z_dim=100000000", "network.hidden_dims=[2147483647,2147483647]"])
def test_a_model_larger_than_the_memory_is_refused_before_it_is_built(vae_train, key):
    code, said = vae_train(*QUICK, "wandb.mode=disabled", key)
    assert code == 1
    assert "lower model.z_dim, network.hidden_dims" in said
    assert "Traceback" not in said


def test_out_of_memory_says_what_to_try():
    """The allocator itself refuses: a billion gigabytes."""
    with (
        hooks.at_step(2, lambda: torch.empty(2**60)),
        pytest.raises(
            UserError,
            match=r"out of memory with batch_size=128, model.z_dim=3 .* Try batch_size=64 accumulate_steps=2, ",
        ),
    ):
        quick_run(*SMALL, hooks.OWN_OBJECTIVE)
    message = r"vae-generate: out of memory \(.*\). Try a smaller n"
    with pytest.raises(SystemExit, match=message), common.exits("vae-generate", "generate"):
        torch.empty(2**60)


def test_no_message_is_longer_than_can_be_read():
    lines = str(UserError("\n".join(["begins", *"x" * 200, "ends"]))).split("\n")
    assert (len(lines), lines[0], lines[-1]) == (20, "begins", "ends")
    assert "... (183 more lines)" in lines
    text = str(UserError(f"key={'x' * 13_000}: ends"))
    assert len(text) < 1_100 and text.startswith("key=xxx") and text.endswith("xxx: ends")
    assert len(str(UserError("\n".join(["x" * 900] * 9)))) < 2_000


@pytest.mark.parametrize("place", ["weights", "gradients", "noise"])
def test_a_nan_is_found_at_the_next_read_or_checkpoint_and_saved_nowhere(place):
    def spoil(step, terms):
        if step == 15 and place == "noise":
            return terms._replace(kl=terms.kl * torch.nan)
        if step == 15 and place == "gradients":
            terms.reconstruction.register_hook(lambda gradient: gradient * torch.nan)
        elif step == 15:
            terms.q.mean.register_hook(lambda gradient: gradient * torch.inf)
        return None

    message = r"between steps 12 and 16: .*not finite. The last good checkpoint is run/last.pt"
    with hooks.in_step(spoil), pytest.raises(Diverged, match=message):
        quick_run(*SMALL, hooks.OWN_OBJECTIVE, "epochs=3", "checkpoint_every_steps=4")
    kept = checkpoints.load(Path("run/last.pt"))
    assert kept.step == 12
    assert all(weights.isfinite().all() for weights in kept.model.values())


def test_two_writers_of_one_file_do_not_meet_and_one_that_fails_leaves_nothing():
    path = Path("results.csv")
    for left, age in (("results.csv.1.partial", 7200), ("results.csv.2.partial", 60)):
        Path(left).touch()
        os.utime(left, (time.time() - age,) * 2)
    with files.atomic_write(path) as one, files.atomic_write(path) as other:
        one.write(b"one")
        other.write(b"other")
    assert path.read_bytes() == b"one", "the last that is done"
    with pytest.raises(Unwritable, match=r"results.csv: cannot be written \(File too large\)"), full_disk(3):
        files.write(path, "longer")
    with pytest.raises(ZeroDivisionError), files.atomic_write(path) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert sorted(each.name for each in Path().iterdir()) == ["results.csv", "results.csv.2.partial"]
    assert path.read_bytes() == b"one"


def test_files_have_the_mode_that_the_umask_leaves(vae_command):
    before = os.umask(0o027)
    try:
        assert vae_command("vae-train", *RUN)[0] == 0
        assert vae_command("vae-evaluate", "checkpoint=run", "repeats=1", "device=cpu")[0] == 0
        assert vae_command("vae-generate", "checkpoint=run", "what=weights", "device=cpu")[0] == 0
        assert vae_command("vae-generate", "checkpoint=run", "device=cpu")[0] == 0
        assert vae_command("vae-compare", "run", "--csv", "run/t.csv")[0] == 0
    finally:
        os.umask(before)
    made = {path.name: path.stat().st_mode & 0o777 for path in Path("run").rglob("*") if path.is_file()}
    assert {"best.pt", "best.test.json", "best.safetensors", "samples.png", "t.csv", "summary.json"} <= made.keys()
    assert set(made.values()) == {0o640}, made


# Who reads what is printed may have gone, and may know few letters.


class Escapes(io.TextIOWrapper):
    """Standard output of a terminal that has no ±, on a file of a number of its own."""

    def __init__(self, number):
        super().__init__(os.fdopen(number, "wb"), encoding="ascii", errors="strict")


def without_a_reader():
    reader, number = os.pipe()
    os.close(reader)
    return number


READERS = {
    "gone": without_a_reader,
    "full": lambda: os.open("/dev/full", os.O_WRONLY),
    "ascii": lambda: os.open("said", os.O_WRONLY | os.O_CREAT | os.O_APPEND),
}


@pytest.mark.parametrize("reader", [*READERS, "closed"])
def test_a_measurement_is_written_before_it_is_printed(vae_command, trained_by_command, monkeypatch, reader):
    trained_by_command(*RUN[:-1])
    monkeypatch.setattr(sys, "stdout", Escapes(READERS[reader]()) if reader in READERS else None)
    code, said = vae_command("vae-evaluate", "checkpoint=run", "wandb.mode=disabled", "repeats=1", "device=cpu")
    assert code == (1 if reader in ("gone", "full") else 0)
    assert "Traceback" not in said
    assert ("standard output: cannot be written (No space left on device)" in said) == (reader == "full")
    assert json.loads(Path("run/best.test.json").read_text())["neg_elbo"] > 0
    monkeypatch.setattr(sys, "stdout", Escapes(READERS[reader]()) if reader in READERS else None)
    assert vae_command("vae-compare", "run", "--csv", "t.csv")[0] == code
    assert "test/neg_elbo" in Path("t.csv").read_text()
    if reader == "ascii":
        sys.stdout.flush()
        assert "SE over images" in Path("said").read_text()


def test_a_reader_that_has_gone_stops_no_evaluation_of_several_runs(vae_command, trained_by_command, monkeypatch):
    trained_by_command(*RUN[:-1])
    shutil.copytree("run", "runs/a")
    shutil.move("run", "runs/b")
    at_once = io.TextIOWrapper(os.fdopen(READERS["full"](), "wb", buffering=0), write_through=True)
    monkeypatch.setattr(sys, "stdout", at_once)
    typed = ("wandb.mode=disabled", "repeats=1", "device=cpu")
    code, said = vae_command("vae-evaluate", "checkpoint=runs", *typed)
    assert (code, "standard output: cannot be written (No space left on device)" in said) == (1, True), said
    assert {path.parent.name for path in Path("runs").rglob("best.test.json")} == {"a", "b"}


def test_an_evaluation_of_a_run_whose_summary_is_damaged_is_told_to_its_end(vae_command, trained_by_command):
    trained_by_command(*RUN[:-1])
    summary = json.loads(Path("run/summary.json").read_text())
    summary["wandb"] |= {"id": 5, "project": [], "group": {}, "tags": [None]}
    Path("run/summary.json").write_text(json.dumps(summary))
    code, said = vae_command("vae-evaluate", "checkpoint=run", "wandb.mode=offline", "repeats=1", "device=cpu")
    assert code == 0, said
    assert "written   run/best.test.json" in said


@pytest.mark.slow
def test_a_sweep_ends_whole_where_nobody_can_read_its_table(vae_train, monkeypatch):
    monkeypatch.setattr(sys, "stdout", Escapes(READERS["ascii"]()))
    typed = ("-m", "dataset=digits", "epochs=0", *SMALL, "wandb.mode=offline", "seed=1,2", "hydra.sweep.dir=sweep")
    assert vae_train(*typed)[0] == 0
    sys.stdout.flush()
    assert r" \xb1 " in Path("said").read_text()
    assert Path("sweep/results.csv").read_text().count("\n") == 3
    assert list(Path("outputs/wandb").glob("offline-run-*-sweep-summary-*"))


@pytest.mark.parametrize("reader", ["ascii", "closed"])
def test_a_run_needs_no_reader_and_no_letters_but_ascii(vae_train, monkeypatch, reader):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, Escapes(READERS[reader]()) if reader in READERS else None)
    assert vae_train(*QUICK, *SMALL, "wandb.mode=disabled", "hydra.run.dir=é")[0] == 0
    assert json.loads(Path("é/summary.json").read_text())["state"] == "finished"
    assert "run folder é" in Path("é/train.log").read_text()
    if reader == "ascii":
        sys.stdout.flush()
        assert r"run folder \xe9" in Path("said").read_text()


@pytest.mark.slow
def test_a_run_with_a_path_that_is_no_text_is_read_back(vae_train, vae_command):
    folder = os.fsdecode(b"caf\xe9")
    code, said = vae_train(*QUICK, *SMALL, "epochs=1", "wandb.mode=disabled", f"hydra.run.dir={folder}")
    if IS_NEW:
        assert (code, said.strip()) == (
            1, r"vae-train: hydra.run.dir=caf\udce9: no text in UTF-8, which Hydra 1.4 needs. Rename what it names.",
        )  # fmt: skip
        return
    assert code == 0, said
    code, said = vae_train(f"resume={folder}", "epochs=2")
    assert code == 0, said
    assert run_dir.read_config(Path(folder))["resume"] == folder
    assert "epochs=2" in run_dir.read_overrides(Path(folder))
    assert vae_command("vae-compare", folder)[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&-"])
def test_a_process_needs_no_terminal_and_no_letters_but_ascii(closed):
    script = f"{sys.executable} -m vae_exp {' '.join((*QUICK, *SMALL))} wandb.mode=disabled hydra.run.dir=é {closed}"
    started = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, env=started)
    assert done.returncode == 0, done.stderr
    assert json.loads(Path("é/summary.json").read_text())["state"] == "finished"
    assert (r"run folder \xe9" in done.stdout) == (closed == "2>&-")
    assert "run folder é" in Path("é/train.log").read_text()


# A stranger's checkpoint.


def changed(state, keys, value):
    inner = state
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    return state


ABSURD = [
    (("config", "model", "z_dim"), 10**9, "its weights are not those"),
    (("config", "model", "z_dim"), 10**18, "model.z_dim=1000000000000000000: it takes"),
    (("config", "model", "z_dim"), "3", "model.z_dim=3: it takes a whole number"),
    (("config", "network", "hidden_dims"), [16, 16], "its weights are not those"),
    (("config", "network", "hidden_dims"), [2**31 - 1] * 3, "its config gives no model|its weights are not those"),
    (("config", "network", "hidden_dims"), None, "network.hidden_dims=null: it takes"),
    (("config", "network", "more"), 1, "its config gives no model"),
    (("config", "network", "_args_"), [1], "plain values"),
    (("config", "network"), "mlp", "not a checkpoint that this version reads"),
    (("x_shape",), [1, 10**9, 10**9], "not a checkpoint that this version reads"),
    (("x_shape",), [1, 2**16, 2**16], "its weights are not those"),
    (("n_classes",), -1, "not a checkpoint that this version reads"),
    (("class_names",), ["../../out"], None),  # a name like others; no file is called by it
    (("class_names",), ["a\nb"], None),  # a folder may be called so
    (("class_names",), [1], "not a checkpoint that this version reads"),
    (("model",), {}, "its weights are not those"),
    (("model",), {"a": 1}, "not a checkpoint that this version reads"),
    (("kl_per_dim",), "many", "not a checkpoint that this version reads"),
]


@pytest.mark.parametrize(("keys", "value", "message"), ABSURD, ids=str)
def test_a_strangers_checkpoint_is_checked_before_anything_is_built(tmp_path, trained, keys, value, message):
    torch.save(changed(stored(trained(*SMALL, "epochs=0")[1] / "last.pt"), keys, value), tmp_path / "x.pt")
    if message is None:
        inference.rebuild(checkpoints.load(tmp_path / "x.pt"))
        return
    with pytest.raises(UserError, match=message):
        inference.rebuild(checkpoints.load(tmp_path / "x.pt"))


def test_a_name_from_a_checkpoint_leads_nowhere(vae_command, tmp_path):
    state = stored(quick_run(*SMALL, "model=conditional", "epochs=0")[1] / "last.pt")
    state["class_names"][0] = "../../../out"
    (tmp_path / "a" / "b").mkdir(parents=True)
    torch.save(state, tmp_path / "a" / "b" / "x.pt")
    code, said = vae_command("vae-generate", "checkpoint=a/b/x.pt", "label='../../../out'", "n=4", "device=cpu")
    assert code == 0, said
    (written,) = (tmp_path / "a" / "b" / "generated").iterdir()
    assert "label" in written.name
    assert not list(tmp_path.glob("out*"))


STRANGE = "a\nb", "c\u3000d", "e\x1b[2Jf", "g\u202eh"  # a new line, a wide space, a clear screen, another direction


def photos(root):
    for number, name in enumerate(STRANGE):
        (root / name).mkdir(parents=True)
        for i in range(6):
            Image.new("L", (8, 8), 40 * number + i).save(root / name / f"{i}.png")


@pytest.mark.slow
def test_what_training_writes_of_any_class_it_can_read(vae_command, tmp_path):
    root = Path("in\u3000and\u00a0out")
    photos(root)
    data = ("dataset=image_folder", f"dataset.root='{root}'", "dataset.image_size=8", "dataset.channels=1")
    typed = (*data, "model=conditional", *SMALL, "epochs=1", "device=cpu", "wandb.mode=disabled", "hydra.run.dir=run")
    code, said = vae_command("vae-train", *typed)
    assert code == 0, said
    assert set(inference.load("run").class_names) == {printable(name) for name in STRANGE}
    assert vae_command("vae-train", "resume=run", "epochs=2")[0] == 0
    evaluated = ("checkpoint=run", "device=cpu", "repeats=1", "label_accuracy=false")
    assert vae_command("vae-evaluate", *evaluated)[0] == 0
    assert vae_command("vae-generate", "checkpoint=run", "what=classes", "device=cpu")[0] == 0
    code, said = vae_command("vae-generate", "checkpoint=run", "label=nobody", "device=cpu")
    assert code == 1
    assert r"a\nb, c d, e\x1b[2Jf, g\u202eh" in said


def test_a_strangers_text_is_shown_escaped(vae_command):
    state = stored(quick_run(*SMALL)[1] / "last.pt")
    state["config"]["dataset"]["name"] = "\x1b[2J\nforged"
    torch.save(state, "x.pt")
    for program in ("vae-evaluate", "vae-generate"):
        _, said = vae_command(program, "checkpoint=x.pt", "device=cpu")
        assert "\x1b" not in said
        assert r"\x1b[2J\nforged" in said and "\nforged" not in said


def test_no_control_character_of_a_runs_files_reaches_a_terminal(vae_command, trained_by_command):
    one, other = trained_by_command(*RUN[:-1], folder="a/\x1b[2J"), trained_by_command(*RUN[:-1], folder="a/b")
    config = (one / "config.yaml").read_text()
    (one / "config.yaml").write_text(f'"\\e[2Jkey": 3\n{config}')
    summary = json.loads((other / "summary.json").read_text())
    (other / "summary.json").write_text(json.dumps(summary | {"state": "\x1b[2J"}))
    on_both = [("vae-compare", "a"), ("vae-compare", "a", "--delete", "--dry-run"), ("vae-compare", "a", "--\x1b[2J")]
    for words in [*on_both, *(("vae-train", f"resume={run}", "epochs=2") for run in (one, other))]:
        _, said = vae_command(*words)
        assert "\x1b" not in said
        assert (r"\x1b[2J" in said) == (f"resume={other}" not in words), said


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_resume_runs_nothing_of_a_strangers_file(tmp_path, caplog):
    quick_run(*SMALL)
    torch.save({"evil": Evil(tmp_path / "ran")}, "run/last.pt")
    Path("run/last.previous.pt").write_bytes(pickle.dumps(Evil(tmp_path / "ran")))
    with pytest.raises(UserError, match=r"no last\.pt that can be read"):
        quick_run(*SMALL, "epochs=2", "resume=run")
    assert not (tmp_path / "ran").exists()


MODEST = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
DAMAGE = st.one_of(
    st.tuples(st.just("cut"), st.floats(0, 1, exclude_max=True)),
    st.tuples(st.just("flip"), st.floats(0, 1, exclude_max=True), st.integers(0, 7)),
)


def damaged(content, damage):
    place = int(len(content) * damage[1])
    if damage[0] == "cut":
        return content[:place]
    changed = bytearray(content)
    changed[place] ^= 1 << damage[2]
    return bytes(changed)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A checkpoint's bytes, and a folder for damaged ones."""
    folder = tmp_path_factory.mktemp("whole")
    os.chdir(folder)
    torch.set_num_threads(1)
    quick_run(*SMALL, folder=folder / "run")
    return (folder / "run" / "last.pt").read_bytes(), folder


def check_damaged_checkpoint(whole, damage):
    content, folder = whole
    (folder / "x.pt").write_bytes(damaged(content, damage))
    (folder / "y.pt").write_bytes(content)
    try:
        read = checkpoints.load(folder / "x.pt")
        inference.rebuild(read)
    except UserError as error:
        assert "checkpoint" in str(error)
        return
    good = checkpoints.load(folder / "y.pt")
    assert all(torch.equal(read.model[name], weights) for name, weights in good.model.items())
    assert (read.config, read.step) == (good.config, good.step)


def test_an_entry_that_calls_itself_a_folder_is_refused(whole):
    """PyTorch would read nothing of it, and leave in the weights whatever was in the memory."""
    content, folder = whole
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        begins = [entry.filename for entry in archive.infolist()]
    place = content.rfind(b"PK\x01\x02")
    for _ in begins:
        changed = bytearray(content)
        changed[place + 38] ^= 0x10  # of the external attributes
        (folder / "x.pt").write_bytes(changed)
        with pytest.raises(UserError, match="damaged, or not a checkpoint"):
            checkpoints.load(folder / "x.pt")
        place = content.rfind(b"PK\x01\x02", 0, place)
    assert place == -1, "every entry was tried"


@MODEST
@given(damage=DAMAGE)
def test_a_damaged_checkpoint_is_read_right_or_refused(whole, damage):
    check_damaged_checkpoint(whole, damage)


def test_damaged_safetensors_are_read_right_or_refused(whole):
    content, folder = whole
    (folder / "x.pt").write_bytes(content)
    model = inference.load(folder / "x.pt", "cpu")
    model.export(folder / "x.safetensors")
    exported = (folder / "x.safetensors").read_bytes()
    for part in range(200):
        (folder / "y.safetensors").write_bytes(damaged(exported, ("flip", part / 200, part % 8)))
        with pytest.raises(UserError, match="damaged, or not a checkpoint"):
            checkpoints.load(folder / "y.safetensors")
    assert torch.equal(inference.load(folder / "x.safetensors", "cpu").sample(4, seed=0), model.sample(4, seed=0))


def test_safetensors_of_before_there_was_a_checksum_are_read_with_a_note(whole, caplog):
    content, folder = whole
    (folder / "x.pt").write_bytes(content)
    model = inference.load(folder / "x.pt", "cpu")
    model.export(folder / "x.safetensors")
    with safe_open(folder / "x.safetensors", "pt") as file:
        about = {name: value for name, value in file.metadata().items() if name != "sha256"}
    save_file(model.model.state_dict(), folder / "old.safetensors", about)
    assert torch.equal(inference.load(folder / "old.safetensors", "cpu").sample(4, seed=0), model.sample(4, seed=0))
    assert "old.safetensors: of an older version, without a checksum" in caplog.text


def check_damaged_idx(folder, file, damage):
    """Only structure can be told here: a pixel of somebody's own files may have any value."""
    for name in ("whole", "idx"):
        write_idx(folder / name / "MNIST" / "raw")
    root = folder / "idx"
    good = torchvision_images("mnist", "mnist", str(folder / "whole")).train
    path = root / "MNIST" / "raw" / file
    path.write_bytes(damaged(path.read_bytes(), damage))
    try:
        read = torchvision_images("mnist", "mnist", str(root)).train
    except UserError as error:
        assert str(root) in str(error)
        return
    assert read.x.shape == good.x.shape
    assert read.y.shape == good.y.shape
    assert 0 <= read.y.min() <= read.y.max() <= 9
    changed = (read.x != good.x).sum() + (read.y != good.y).sum()
    assert changed <= 1


@MODEST
@given(damage=DAMAGE, file=st.sampled_from(["train-images-idx3-ubyte", "train-labels-idx1-ubyte"]))
def test_damaged_idx_files_are_read_right_or_refused(tmp_path_factory, damage, file):
    check_damaged_idx(tmp_path_factory.mktemp("idx"), file, damage)


def test_images_that_lie_or_explode_are_named(tmp_path):
    Image.new("L", (40, 40), 7).save(tmp_path / "lies.png")
    content = bytearray((tmp_path / "lies.png").read_bytes())
    for name, side in (("lies", 400), ("bomb", 60_000)):
        content[16:24] = np.array([side, side], ">u4").tobytes()
        content[29:33] = np.array(zlib.crc32(bytes(content[12:29])), ">u4").tobytes()
        (tmp_path / f"{name}.png").write_bytes(content)
        with pytest.raises(UserError, match=rf"{name}.png: .*(truncated|broken|decompression bomb|not enough)"):
            read_images(tmp_path / f"{name}.png", (1, 8, 8))


# Terminals, homes, signals.


@pytest.mark.slow
def test_a_run_needs_no_home_no_terminal_and_no_reader():
    script = (
        f"{sys.executable} -m vae_exp {' '.join((*QUICK, *SMALL))} wandb.mode=offline hydra.run.dir=run | head -n 1"
    )
    started = os.environ | {"HOME": "/proc/nowhere", "COLUMNS": "10"}
    done = subprocess.run(["bash", "-o", "pipefail", "-c", script], capture_output=True, text=True, env=started)
    assert "Traceback" not in done.stderr
    assert json.loads(Path("run/summary.json").read_text())["state"] == "finished"


def test_a_user_without_a_home_trains_and_logs(vae_train, monkeypatch, tmp_path):
    def of_no_account(number):
        raise KeyError(number)

    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name in ("XDG_DATA_HOME", "MPLCONFIGDIR"):
        monkeypatch.setenv(name, "as before")
    monkeypatch.setattr(pwd, "getpwuid", of_no_account)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code, said = vae_train(*RUN[:-2], "epochs=0", "wandb.mode=auto", "hydra.run.dir=run")
    assert code == 0, said
    assert json.loads(Path("run/summary.json").read_text())["wandb"]["mode"] == "offline"
    assert Path.home().parent == tmp_path and Path.home().stat().st_mode & 0o777 == 0o700
    monkeypatch.setenv("HOME", "/dev/null")
    monkeypatch.delenv("XDG_CACHE_HOME")
    files.use_surroundings()
    assert files.cache_folder("").is_relative_to(tmp_path)

    def closed(path, *rest, real=os.stat, **more):
        if str(path).startswith("/of_another/"):
            raise PermissionError
        return real(path, *rest, **more)

    monkeypatch.setenv("HOME", "/of_another/home")
    monkeypatch.delenv("XDG_CACHE_HOME")
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda *_: False)
        patch.setattr(os, "stat", closed)
        files.use_surroundings()
    assert files.cache_folder("").is_relative_to(tmp_path)


@pytest.mark.parametrize("program", ["vae-train", "vae-evaluate", "vae-generate", "vae-compare", "vae-reproduce"])
def test_what_the_surroundings_lack_is_one_message(vae_command, monkeypatch, tmp_path, program):
    def none_that_can_be_written():
        raise FileNotFoundError

    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "gettempdir", none_that_can_be_written)
        code, said = vae_command(program, *(["x"] if program == "vae-compare" else []))
        assert (code, said.count("\n")) == (1, 0) and f"{program}: no folder for temporary files" in said
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    code, said = vae_command(program, *(["x"] if program == "vae-compare" else []))
    assert (code, said.count("\n")) == (1, 0) and f"{program}: the current folder is there no more" in said


def test_a_folder_of_wandbs_that_cannot_be_written_is_named(vae_train, monkeypatch, tmp_path):
    for name in ("XDG_CACHE_HOME", "XDG_DATA_HOME", "MPLCONFIGDIR"):
        monkeypatch.setenv(name, str(tmp_path / "cache"))
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    code, said = vae_train(*RUN[:-2], "epochs=0", "wandb.mode=offline", "wandb.dir=logged", "hydra.run.dir=run")
    assert (code, said.count("W&B: ")) == (0, 1), said
    assert re.search(r"W&B: wandb.dir=.*/logged: cannot be written; the run folder has everything", said)
    assert json.loads(Path("run/summary.json").read_text())["wandb"]["dir"] is None


def test_ctrl_c_while_hydra_composes_ends_like_any_ctrl_c(vae_train, monkeypatch):
    """Hydra may raise an error of its own in its place."""

    def interrupted(*_, **__):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise ConfigCompositionException("what Hydra says then")  # noqa: B904

    monkeypatch.setattr(Remembering, "load_configuration", interrupted)
    assert vae_train("model.z_dim=3") == (130, "")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 138)])
def test_a_signal_saves_ends_the_run_where_it_stands_and_auto_goes_on(number, code, vae_train):
    typed = ("dataset=digits", "device=cpu", *SMALL, "epochs=40", "wandb.mode=disabled", "resume=auto")
    quick_run(*SMALL, "epochs=40", folder="whole")
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    running = command(*typed, "checkpoint_every_epochs=null")
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    while not any(len(metrics(path.parent)) > 3 for path in written("metrics.jsonl")):
        time.sleep(0.01)
        assert running.poll() is None, running.stdout.read()
    os.killpg(running.pid, signal.SIGHUP)
    for _ in range(2):  # the second is the echo of a wrapper, such as `timeout`
        os.killpg(running.pid, number)
    said, _ = running.communicate()
    assert running.returncode == code, said
    assert "Traceback" not in said
    (folder,) = [path.parent for path in Path("outputs").rglob("last.pt")]
    assert checkpoints.load(folder / "last.pt").epoch < 40
    assert f"resume={folder}" in said
    assert f"Stopped by {'Ctrl-C' if code == 130 else number.name}." in said
    assert vae_train(*typed)[0] == 0
    ended, straight = (checkpoints.load(Path(where) / "last.pt") for where in (folder, "whole"))
    assert all(torch.equal(ended.model[name], weights) for name, weights in straight.model.items())
    assert ended.best == straight.best


class Cloud(BaseHTTPRequestHandler):
    """As much of W&B's server as a run needs."""

    hangs = threading.Event()

    def do_POST(self):
        if self.hangs.is_set():
            time.sleep(60)
        asked = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode(errors="replace")
        data = {}
        if "viewer" in asked:
            data = {"viewer": {"id": "x", "entity": "e", "username": "u", "flags": "{}", "teams": {"edges": []}}}
        if "upsertBucket" in asked:
            project = {"id": "p", "name": "vae_exp", "entity": {"id": "e", "name": "e"}}
            bucket = {"id": "b", "name": "r", "displayName": "r", "config": "{}", "historyLineCount": 0}
            data = {"upsertBucket": {"bucket": bucket | {"project": project}, "inserted": True}}
        if "createRunFiles" in asked:
            data = {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": []}}
        answer = json.dumps({"data": data}).encode()
        with contextlib.suppress(BrokenPipeError):  # the run has been killed
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

    do_GET = do_POST

    def log_message(self, *_):
        pass


@pytest.mark.slow
@pytest.mark.parametrize("dies", ["server", "service", "nothing answers"])
def test_wandb_dying_in_the_middle_costs_seconds_and_one_warning(dies):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Cloud)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    account = {"WANDB_API_KEY": "a" * 40, "WANDB_BASE_URL": f"http://127.0.0.1:{server.server_port}"}
    running = command("dataset=digits", *SMALL, "epochs=40", "hydra.run.dir=run", "device=cpu", **account)
    while not Path("run/last.pt").exists():
        time.sleep(0.05)
        assert running.poll() is None, running.stdout.read()
    Cloud.hangs.clear()
    if dies == "nothing answers":
        Cloud.hangs.set()
    elif dies == "server":
        server.shutdown()
        server.server_close()
    else:
        children = subprocess.run(["pgrep", "-P", str(running.pid), "-f", "wandb-core"], capture_output=True, text=True)
        os.kill(int(children.stdout.split()[0]), signal.SIGKILL)
        server.shutdown()
    said, _ = running.communicate(timeout=90)
    summary = json.loads(Path("run/summary.json").read_text())
    assert running.returncode == 0, said
    assert summary["state"] == "finished"
    assert summary["best/epoch"] > 1
    assert len([row for row in metrics("run") if "val/kl" in row]) == 40
    assert said.count("W&B stopped working") == 1
    assert "wandb sync outputs/wandb/run-" in said
    assert "Traceback" not in said
    wall = Path("run/summary.json").stat().st_mtime
    assert time.time() - wall < A_FEW_SECONDS
