"""Jobs in processes of their own: none outlives its sweep, none is trained twice, and each is told of when it ends."""

import contextlib
import fcntl
import json
import os
import re
import signal
import time
from pathlib import Path

import pytest

from tests.conftest import command, written

JOBLIB = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
SECONDS = 60  # far above what a save takes and far below what the epochs of these tests would


@pytest.fixture
def sweep():
    """Starts sweeps, none of which outlives its test."""
    started = []

    def start(epochs, *more):
        typed = ("-m", "dataset=digits", f"epochs={epochs}", "wandb.mode=disabled", "seed=0,1", *more)
        started.append(command(*typed))
        return started[-1]

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def wait_until(true):
    end = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < end
        time.sleep(0.1)


def saved(count):
    return len(written("last.pt")) >= count


def is_owned(folder):
    with (folder / "lock").open("r+") as lock:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return False
        return True


@pytest.mark.slow
def test_workers_end_when_their_sweep_is_killed(sweep):
    running = sweep(100_000, *JOBLIB, "checkpoint_every_epochs=20")
    wait_until(lambda: saved(2))
    folders = [path.parent for path in Path("outputs").rglob("last.pt")]
    assert all(is_owned(folder) for folder in folders)
    os.kill(running.pid, signal.SIGKILL)  # the parent alone
    wait_until(lambda: not any(is_owned(folder) for folder in folders))
    for folder in folders:
        summary = json.loads((folder / "summary.json").read_text())
        assert (summary["state"], summary["reason"]) == ("interrupted", "SIGTERM")


@pytest.mark.slow
def test_a_resumed_sweep_waits_for_a_job_that_is_still_trained_and_takes_it_over(sweep):
    first = sweep(60, "checkpoint_every_epochs=1")
    wait_until(lambda: saved(1))
    (folder,) = [path.parent for path in Path("outputs").rglob("last.pt")]
    os.kill(first.pid, signal.SIGSTOP)  # it holds its folder, and will not come to its end by itself
    second = sweep(60, "checkpoint_every_epochs=1", "sweep.resume=latest")
    said = ""
    while "waits for" not in said:
        line = second.stdout.readline()
        assert line, said
        said += line
    assert f"waits for process {first.pid}, which trains in {folder}" in said
    os.kill(first.pid, signal.SIGKILL)
    said += second.communicate(timeout=SECONDS)[0]
    assert second.returncode == 0, said
    assert "  resumes" in said
    assert "2 of 2 jobs finished" in said


@pytest.mark.slow
def test_a_line_tells_of_each_job_that_ends_elsewhere(sweep):
    running = sweep(1, *JOBLIB, "optimizer.lr=1e-3,1e10")
    said, _ = running.communicate(timeout=150)
    counts = re.findall(r"neg_elbo .* (\d) of 4 done", said)
    assert counts == ["1", "2"], "each is counted as it ends"
    for seed in (0, 1):
        (done,) = [line for line in said.splitlines() if line.startswith(f"seed-{seed}_lr-0.001  neg_elbo")]
        assert "of 4 done" in done
        (failed,) = [line for line in said.splitlines() if line.startswith(f"seed-{seed}_lr-10000000000.0  failed")]
        assert "diverged" in failed
    assert not [line for line in said.splitlines() if line.startswith("job ")], "they would mix"
    assert said.count("grey pixels: neg_elbo is not") == 1, "of two workers"
