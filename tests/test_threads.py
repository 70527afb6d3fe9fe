"""How many threads a run has: what its step is worth, what the system allows, and what others have left of it."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.conftest import QUICK, command, metrics, quick_run, stored
from vae_exp.training import threads
from vae_exp.training.run_dir import read_summary

LARGE_STEP = "network.hidden_dims=[2000]"  # of the digits: 290 million operations
needs_affinity = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not pin processes")


@pytest.fixture
def on_one_core():
    """This process on one core; returns its number."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield min(before)
    os.sched_setaffinity(0, before)


@contextlib.contextmanager
def busy(processes):
    """So many other processes that compute, from when all of them do until the end of the block."""
    code = "print('on', flush=True)\nwhile True: pass"
    started = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(processes)]
    try:
        assert all(process.stdout.readline() == b"on\n" for process in started)
        yield
    finally:
        for process in started:
            process.kill()
            process.communicate()


def test_a_tiny_step_has_one_thread_whatever_is_free(caplog):
    torch.set_num_threads(2)
    with caplog.at_level("INFO"):
        summary, folder = quick_run()
    assert summary["threads"] == read_summary(folder).results["threads"] == 1
    assert "threads=1: a step of 58 million operations is too small for more threads to help" in caplog.text
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
    assert threads.available_cores() == 1
    with caplog.at_level("INFO"):
        assert quick_run(LARGE_STEP)[0]["threads"] == 1
    assert "threads=1: there is one core" in caplog.text


@pytest.mark.parametrize(
    ("cores", "of_machine", "busy", "bound", "number", "why"),
    [
        (2, 2, 0, 2, 2, "all cores are free"),
        (2, 2, 1, 2, 1, "what other programs leave of 2 cores"),
        (2, 2, 9, 2, 1, "what other programs leave"),  # never none
        (16, 16, 4, 16, 12, "what other programs leave of 16 cores"),
        (8, 64, 40, 8, 8, "all cores are free"),  # a job with cores of its own, beside others that have theirs
        (8, 64, 60, 8, 4, "what other programs leave of 8 cores"),
        (16, 16, 0, 4, 4, "limited to 4 threads by OMP_NUM_THREADS (16 cores available)"),
        (1, 64, 0, 1, 1, "there is one core"),
    ],
)
def test_a_run_takes_what_is_left(cores, of_machine, busy, bound, number, why, monkeypatch):
    monkeypatch.setattr(threads, "available_cores", lambda: cores)
    monkeypatch.setattr(threads, "busy_cores", lambda: busy)
    monkeypatch.setattr(os, "cpu_count", lambda: of_machine)
    monkeypatch.setattr(threads, "_bound", bound)
    chosen, reason = threads._auto(1e9)
    assert chosen == number
    assert why in reason


@pytest.mark.skipif(not Path("/proc/loadavg").exists(), reason="this system does not tell what runs now")
def test_other_programs_that_compute_are_seen():
    with busy(3):
        assert threads.busy_cores() >= 2  # one may wait for a moment


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/loadavg").exists(), reason="this system does not tell what runs now")
def test_a_run_beside_busy_programs_has_one_thread():
    torch.set_num_threads(2)
    with busy(os.cpu_count() + 2):
        assert quick_run(LARGE_STEP)[0]["threads"] == 1


@pytest.mark.slow
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


def test_omp_num_threads_bounds_auto(vae_train, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    code, said = vae_train(*QUICK, LARGE_STEP, "wandb.mode=disabled", "hydra.run.dir=run")
    assert code == 0, said
    assert read_summary(Path("run")).results["threads"] == 1
    assert threads.available_cores() == 1 or "threads=1: limited to 1 thread by OMP_NUM_THREADS" in said


@pytest.mark.slow
def test_a_run_from_a_second_terminal_leaves_the_first_its_cores():
    free = {"OMP_NUM_THREADS": str(threads.available_cores())}
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
    left = max(1, threads.available_cores() - int(chosen[1]))
    assert 1 <= read_summary(Path("second")).results["threads"] <= left  # fewer, where other programs run
    assert "what other programs leave" in said or threads.available_cores() == 1


@pytest.mark.slow
def test_a_sweep_with_joblib_uses_all_cores_without_being_told_how_many():
    jobs = min(2, threads.available_cores())
    free = {"OMP_NUM_THREADS": str(threads.available_cores())}
    running = command("-m", *QUICK, LARGE_STEP, "seed=0,1", "hydra/launcher=joblib", "wandb.mode=disabled", **free)
    said, _ = running.communicate()
    assert running.returncode == 0, said
    folders = [path.parent for path in Path("outputs").rglob("summary.json")]
    assert {read_summary(folder).results["threads"] for folder in folders} == {
        max(1, threads.available_cores() // jobs)
    }
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
