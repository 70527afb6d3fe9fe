"""How many threads a run has: what its step is worth, what the system allows, and what others have left of it."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch

from tests.conftest import QUICK, command, metrics, quick_run, stored
from vae_exp.training import cores, threads
from vae_exp.training.run_dir import read_summary

LARGE_STEP = "network.hidden_dims=[2000]"  # of the digits: 290 million operations
needs_affinity = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not pin processes")


@pytest.fixture(autouse=True)
def alone_on_this_machine(tmp_path, monkeypatch):
    """Runs of other tests, which go on beside these, have another temporary folder."""
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path))


@pytest.fixture
def on_one_core():
    """This process on one core; returns its number."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield min(before)
    os.sched_setaffinity(0, before)


@contextlib.contextmanager
def another(code):
    """Another process that does this and then says so, and waits for its end."""
    code = f"from vae_exp.training import cores\n{code}\nprint('done', flush=True)\ninput()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"done\n"
        yield process
        process.kill()


def test_a_tiny_step_has_one_thread_whatever_is_free(caplog):
    torch.set_num_threads(2)
    with caplog.at_level("INFO"):
        summary, folder = quick_run()
    assert summary["threads"] == read_summary(folder).results["threads"] == 1
    assert "threads=1: a step of 58 million operations gains nothing from more" in caplog.text
    assert torch.get_num_threads() == 2, "whoever called train counts as before"


@pytest.mark.parametrize(
    ("variant", "operations"),
    [
        ("network.hidden_dims=[32] model.z_dim=4", 2 * (64 * 32 + 32 * 8 + 4 * 32 + 32 * 64)),
        # The decoder once for the draw that every objective makes, and for each of eight more.
        (
            "network.hidden_dims=[32] model.z_dim=4 objective=iwae objective.samples=9",
            2 * (64 * 32 + 32 * 8 + 9 * (4 * 32 + 32 * 64)),
        ),
    ],
)
def test_the_operations_of_a_step_are_those_of_its_products(variant, operations, caplog):
    with caplog.at_level("INFO"):
        quick_run("batch_size=500", *variant.split())
    assert f"a step of {3 * 500 * operations / 1e6:,.0f} million operations" in caplog.text


@needs_affinity
def test_on_one_core_there_is_one_thread(on_one_core, caplog):
    torch.set_num_threads(2)
    assert cores.allowed() == 1
    with caplog.at_level("INFO"):
        assert quick_run(LARGE_STEP)[0]["threads"] == 1
    assert "threads=1: there is one core" in caplog.text


@pytest.mark.parametrize(
    ("files", "own", "limit"),
    [
        ({"cpu.max": "150000 100000"}, "0::/", 1.5),
        ({"cpu.max": "max 100000"}, "0::/", None),
        ({}, "0::/", None),
        ({"a/cpu.max": "400000 100000", "a/b/cpu.max": "max 100000"}, "0::/a/b", 4),
        ({"a/cpu.max": "400000 100000"}, "0::/other", None),
        ({"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "25000"}, "3:cpu,cpuacct:/", 2),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, "3:cpu:/", None),
        ({"cpu/a/cpu.cfs_quota_us": "100000", "cpu/a/cpu.cfs_period_us": "100000"}, "4:memory:/b\n3:cpu:/a", 1),
        ({"cpu.max": "nonsense"}, "nonsense", None),
    ],
)
def test_the_quota_of_a_control_group_and_of_those_around_it(tmp_path, files, own, limit):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content + "\n")
    (tmp_path / "own").write_text(own + "\n")
    assert cores.quota(tmp_path, tmp_path / "own") == limit


@pytest.mark.parametrize(
    ("allowed", "others", "busy", "number"),
    [
        (2, [], 0.1, 2),
        (2, [], 0.9, 1),
        (2, [None], 1.0, 1),  # both begin: a part each
        (2, [2], 2.0, 1),  # never none
        (16, [], 0.3, 16),
        (16, [None], 1.0, 8),
        (16, [None, None, None], 3.0, 4),
        (16, [8], 8.2, 8),
        (16, [8, None], 9.0, 4),
        (16, [4], 8.0, 8),  # four cores are busy with something else
        (16, [16], 0.0, 1),  # it waits for its data just now
    ],
)
def test_a_run_takes_what_is_left(allowed, others, busy, number):
    assert threads.left(allowed, others, threads.busy_beside(others, busy)) == number


def test_other_runs_are_known_while_they_live():
    with another("cores.announce()") as process:
        assert cores.other_runs() == [None]
        with another("cores.announce()\ncores.take(3)"):
            assert sorted(cores.other_runs(), key=str) == [3, None]
        assert cores.other_runs() == [None]
        process.kill()
        process.wait()
        assert cores.other_runs() == []
    with another("cores.announce()\ncores.withdraw()"):
        assert cores.other_runs() == []


@needs_affinity
@pytest.mark.skipif(cores.allowed() < 2, reason="there is one core")
@pytest.mark.parametrize("other", ["cores.announce()", "cores.announce()\ncores.take(1)"])
def test_a_run_beside_another_leaves_it_its_cores(other):
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:2])
    torch.set_num_threads(2)
    try:
        with another(other):
            assert quick_run(LARGE_STEP)[0]["threads"] == 1
    finally:
        os.sched_setaffinity(0, before)


@needs_affinity
@pytest.mark.skipif(cores.moment() is None, reason="this system does not tell its load")
def test_the_load_is_that_of_other_processes(on_one_core):
    cores.busy_with_others()
    began, own = time.monotonic(), time.process_time()
    while time.monotonic() < began + 1:
        pass
    mine = (time.process_time() - own) / (time.monotonic() - began)
    assert cores.busy_with_others() < 1.1 - mine, "what this process did is not counted"
    spin = f"import os, threading\nos.sched_setaffinity(0, {{{on_one_core}}})\n"
    spin += "def spin():\n    while True: pass\nthreading.Thread(target=spin, daemon=True).start()"
    with another(spin):
        cores.busy_with_others()
        assert cores.busy_with_others() > 0.5, "the core was free for nobody else"


def test_a_resumed_run_keeps_its_threads_to_the_bit_unless_others_are_typed():
    """The second part finds a caller that allows one thread, and a step that is worth one."""
    variant = ("log_every_steps=1", "batch_size=650")
    whole = metrics(quick_run(*variant, "threads=2", "epochs=2", folder="whole")[1])
    quick_run(*variant, "threads=2", folder="parts")
    summary, folder = quick_run(*variant, "epochs=2", "resume=parts", folder="parts")
    assert summary["threads"] == stored(folder / "last.pt")["resume"]["facts"]["threads"] == 2
    losses = [
        [(row["step"], row["train/loss"]) for row in rows if "train/loss" in row] for rows in (whole, metrics(folder))
    ]
    assert losses[0] == losses[1]
    summary, _ = quick_run(*variant, "epochs=3", "resume=parts", "threads=1", folder="parts")
    assert summary["threads"] == 1
    assert torch.get_num_threads() == 1


def test_a_number_that_is_typed_counts_whatever_is_free(vae_train):
    code, said = vae_train(*QUICK, "threads=3", "wandb.mode=disabled", "hydra.run.dir=run")
    assert code == 0
    assert "threads=3: as asked" in said
    assert read_summary(Path("run")).results["threads"] == 3
    code, said = vae_train(*QUICK, "threads=0")
    assert code == 1
    assert "threads=0: it takes a whole number from 1 to 1,024, or auto." in said


def test_omp_num_threads_bounds_auto():
    running = command(*QUICK, LARGE_STEP, "wandb.mode=disabled", "hydra.run.dir=run", OMP_NUM_THREADS="1")
    said, _ = running.communicate()
    assert running.returncode == 0, said
    assert read_summary(Path("run")).results["threads"] == 1
    assert cores.allowed() == 1 or "threads=1: OMP_NUM_THREADS, or who called, allows no more of" in said


@pytest.mark.slow
def test_a_run_from_a_second_terminal_leaves_the_first_its_cores():
    free = {"OMP_NUM_THREADS": str(cores.allowed())}
    typed = (*QUICK, LARGE_STEP, "wandb.mode=disabled")
    first, log = command(*typed, "epochs=100000", "hydra.run.dir=first", **free), Path("first/train.log")
    while not (log.exists() and (chosen := re.search(r"threads=(\d+)", log.read_text()))):
        assert first.poll() is None, first.communicate()[0]
        time.sleep(0.1)
    second = command(*typed, "hydra.run.dir=second", **free)
    said, _ = second.communicate()
    first.send_signal(signal.SIGINT)
    first.communicate()
    assert (first.returncode, second.returncode) == (130, 0), said
    left = max(1, cores.allowed() - int(chosen[1]))
    assert 1 <= read_summary(Path("second")).results["threads"] <= left  # fewer, where other programs run
    assert "1 other run" in said or cores.allowed() == 1


@pytest.mark.slow
def test_a_sweep_with_joblib_uses_all_cores_without_being_told_how_many():
    jobs = min(2, cores.allowed())
    free = {"OMP_NUM_THREADS": str(cores.allowed())}
    running = command("-m", *QUICK, LARGE_STEP, "seed=0,1", "hydra/launcher=joblib", "wandb.mode=disabled", **free)
    said, _ = running.communicate()
    assert running.returncode == 0, said
    folders = [path.parent for path in Path("outputs").rglob("summary.json")]
    assert {read_summary(folder).results["threads"] for folder in folders} == {max(1, cores.allowed() // jobs)}
    assert len({(folder / "lock").read_text() for folder in folders}) == jobs, "in processes of their own"


@pytest.mark.slow
def test_joblib_does_not_bound_the_threads_of_few_jobs(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    running = command("-m", *QUICK, LARGE_STEP, "seed=0", "hydra/launcher=joblib", "wandb.mode=disabled")
    said, _ = running.communicate()
    assert running.returncode == 0, said
    (log,) = Path("outputs").rglob("train.log")
    assert "threads=" in log.read_text()
    assert "allows no more" not in log.read_text()
