"""One run in several processes: the numbers of one process, whoever is killed, and one voice."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests import several
from tests.conftest import QUICK, command, metrics, quick_run, stored
from vae_exp.config import build
from vae_exp.errors import UserError
from vae_exp.training.run_dir import read_summary

NORMED = ("~network", "+network._target_=tests.networks_of_users.net")
LONG = (*QUICK, "epochs=2000", "wandb.mode=disabled", "hydra.run.dir=run", "checkpoint_every_epochs=1", "devices=2")


def torchrun(processes, *arguments, folder=None):
    """A program of ours in so many processes; what it printed."""
    root = Path(__file__).parents[1]
    words = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", "-m", *arguments]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=folder)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def pair(made_once):
    """The folder in which two processes have made every run of tests.several, and gone on with a run of one."""

    def make():
        quick_run(*several.settings("steps"), "max_steps=12", folder=Path("several/from_one"))
        others = ("again", "from_one", "to_one", "ends_early")
        words = [sys.executable, "-m", "tests.several", *several.CASES, *others]
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
        done = subprocess.run(words, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr

    return made_once(make, "pair") / "several"


def numbers(folder):
    """What a run logged, but for times."""
    rows = [{key: value for key, value in row.items() if not key.startswith("time/")} for row in metrics(folder)]
    return [(row["step"], key, one) for row in rows for key, value in row.items() for one in _flat(value)]


def _flat(value):
    return value if isinstance(value, list) else [value]


def assert_equal_but_for_rounding(folder, other):
    """1e-5 of each number, and of one that is the small difference of large ones 1e-5 of a nat."""
    one, two = numbers(folder), numbers(other)
    assert [entry[:2] for entry in one] == [entry[:2] for entry in two]
    for (step, key, a), (*_, b) in zip(one, two, strict=True):
        assert a == pytest.approx(b, rel=1e-5, abs=1e-5), f"{key} at step {step}"


def weights(folder):
    return torch.cat([values.flatten() for values in stored(folder / "last.pt")["model"].values()])


@pytest.mark.slow
@pytest.mark.parametrize("name", several.CASES)
def test_two_processes_have_the_numbers_of_one(name, pair):
    """Each objective, over 22 steps, the last batch of an epoch with 17 images among them."""
    quick_run(*several.settings(name))
    assert_equal_but_for_rounding(pair / name, Path("run"))
    torch.testing.assert_close(weights(pair / name), weights(Path("run")), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_two_processes_twice_are_equal_to_the_bit(pair):
    assert numbers(pair / "again") == numbers(pair / several.AGAIN)
    assert torch.equal(weights(pair / "again"), weights(pair / several.AGAIN))


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(pair):
    """From one to two, and from two to one, inside an epoch: the numbers of the run without a break."""
    assert_equal_but_for_rounding(pair / "from_one", pair / "steps")
    quick_run(*several.settings("steps"), f"resume={pair / 'to_one'}", folder=pair / "to_one")
    assert_equal_but_for_rounding(pair / "to_one", pair / "steps")


@pytest.mark.slow
def test_a_run_ends_early_in_all_processes(pair):
    """The two measure the same and stop after the same epoch."""
    quick_run(*several.settings("ends_early"))
    assert_equal_but_for_rounding(pair / "ends_early", Path("run"))
    assert metrics("run")[-1]["epoch"] < 5
    assert read_summary(pair / "ends_early").reason == read_summary(Path("run")).reason


def test_a_launcher_that_starts_one_process_changes_nothing(monkeypatch):
    quick_run(folder="plain")
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    quick_run(folder="launched")
    assert numbers("plain") == numbers("launched")


@pytest.mark.slow
def test_three_processes_share_batches_that_do_not_divide(tmp_path):
    """Of 17 images, and of the last two of an epoch, for which one process has nothing to do; compiled, too."""
    few = ("elbo", "optimal", "conditional", "compiled", "two_left", "two_left_full", "two_left_iaf")
    code, said = torchrun(3, "tests.several", *few, folder=tmp_path)
    assert code == 0, said
    for name in few:
        quick_run(*several.settings(name), folder=f"alone/{name}")
        assert_equal_but_for_rounding(Path("several", name), Path("alone", name))


def running(process):
    """The processes of a run by their rank, once it has saved."""
    deadline = time.monotonic() + 120
    while not Path("run/last.pt").exists():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    ranks = {}
    for pid in subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split():
        if found := re.search(r"\0RANK=(\d+)\0", Path(f"/proc/{pid}/environ").read_text()):
            ranks[int(found[1])] = int(pid)
    return ranks


@pytest.fixture
def started():
    """A run in several processes, which leaves none of them behind."""
    runs = []

    def start(*words):
        runs.append(command(*words))
        return runs[-1]

    yield start
    for run in runs:
        found = subprocess.run(["pgrep", "-P", str(run.pid)], capture_output=True, text=True).stdout.split()
        for pid in [run.pid, *map(int, found)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def is_alive(pid):
    """One that has ended may stay listed until somebody asks how."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


KILLS = {  # who is sent what; the exit code, the run's state and what is said of it
    "the second killed": (1, signal.SIGKILL, 1, "failed", "another of the 2 processes of this run has ended"),
    "the first killed": (0, signal.SIGKILL, 1, "running", "process 0 of 2 was killed (SIGKILL)"),
    "the first asked to stop": (0, signal.SIGTERM, 143, "interrupted", "Stopped by SIGTERM"),
    "the second asked to stop": (1, signal.SIGTERM, 143, "interrupted", "Stopped by SIGTERM"),
    "all asked to stop": (None, signal.SIGTERM, 143, "interrupted", "Stopped by SIGTERM"),
    "all asked by a scheduler": (None, signal.SIGUSR1, 138, "interrupted", "Stopped by SIGUSR1"),
    "Ctrl-C": (None, signal.SIGINT, 130, "interrupted", "Stopped by Ctrl-C"),
    "the launcher killed": (None, signal.SIGKILL, -9, "interrupted", "Stopped by SIGTERM"),
}


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc to tell the processes of a run apart")
@pytest.mark.slow
@pytest.mark.parametrize("name", KILLS)
def test_whoever_is_killed_the_run_ends_with_one_message_and_goes_on(name, started):
    rank, number, code, state, said = KILLS[name]
    process = started(*LONG)
    ranks = running(process)
    assert ranks.keys() == {0, 1}
    began = time.monotonic()
    os.kill(process.pid if rank is None else ranks[rank], number)
    printed = process.communicate(timeout=30)[0]
    assert time.monotonic() - began < 30
    assert process.returncode == code
    assert said in printed
    assert "resume    vae-train resume=run" in printed
    assert "Traceback" not in printed
    voices = 1 if said in printed.partition("vae-train:")[2] else 0  # beside the launcher, which names who was killed
    assert len(re.findall(r"vae-train: (?!process 1 of 2 was killed)", printed)) == voices, "one message"
    assert read_summary(Path("run")).state == state
    while [pid for pid in ranks.values() if is_alive(pid)]:
        assert time.monotonic() - began < 30, "no process waits for ever"
        time.sleep(0.1)
    step = stored("run/last.pt")["step"]
    quick_run("checkpoint_every_epochs=1", f"epochs={-(-step // 11) + 1}", "resume=run")
    assert metrics("run")[-1]["step"] > step


@pytest.mark.slow
def test_what_two_processes_cannot_do_is_refused_under_torchrun_too():
    """Where devices=2 is not typed: a batch norm has no whole batch."""
    code, said = torchrun(2, "vae_exp", *QUICK, "wandb.mode=disabled", *NORMED)
    assert code == 1
    assert said.count("devices=2: network._target_=tests.networks_of_users.net has a batch norm") == 1, said


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["devices=2", "torchrun"])
def test_a_mistake_that_only_a_run_can_see_is_told_once(launcher, started):
    """By the first process: an objective of one's own that returns no loss is found in each of them."""
    Path("spare.py").write_text("def objective(terms, now):\n    return terms.kl.sum(1), {}\n")
    words = (*QUICK, "wandb.mode=disabled", "~objective", "+objective._target_=spare.objective")
    if launcher == "torchrun":
        code, said = torchrun(2, "vae_exp", *words)
    else:
        process = started(*words, launcher)
        said, code = process.communicate()[0], process.returncode
    assert code == 1
    assert said.count("objective._target_=spare.objective: the loss must be one number") == 1, said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("-m", "devices=2", "seed=0,1"), "devices=2: is of one run"),
        (("-m", "devices=1,2"), "devices=1,2: is of one run"),
        (("devices=0",), "devices=0: it takes a whole number from 1 to 1,024"),
        (("devices=2", "device=mps"), "device=mps"),
        (("devices=2", "device=cuda:0"), "device=cuda:0"),
        (("devices=256",), "devices=256 and batch_size=128"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(words, message, vae_train):
    code, said = vae_train("dataset=digits", *words)
    assert code == 1
    assert message in said, said
    assert not Path("outputs").exists()


def test_several_processes_are_not_started_from_python(monkeypatch):
    with pytest.raises(UserError, match="devices=2: this is one process"):
        quick_run("devices=2")


def test_a_process_alone_is_told_to_follow_only_by_a_launcher():
    """WORLD_SIZE alone, which some clusters set, starts nothing."""
    done = subprocess.run(
        [sys.executable, "-m", "vae_exp", "--version"],
        capture_output=True,
        text=True,
        env=os.environ | {"WORLD_SIZE": "4", "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert done.stdout.startswith("vae_exp ")


THERE = {"cuda": True, "mps": False, "cpu": True}
NO_GPU = {"cuda": False, "mps": False, "cpu": True}


@pytest.mark.parametrize(
    ("name", "available", "gpus", "process", "processes", "chosen"),
    [
        ("auto", NO_GPU, 0, 0, 1, "cpu"),
        ("auto", NO_GPU, 0, 1, 2, "cpu"),
        ("auto", THERE, 2, 0, 1, "cuda"),
        ("auto", THERE, 2, 1, 2, "cuda:1"),
        ("cuda", THERE, 4, 3, 4, "cuda:3"),
        ("cuda:1", THERE, 2, 0, 1, "cuda:1"),
        ("cuda:001", THERE, 2, 0, 1, "cuda:1"),
        ("cpu", THERE, 2, 1, 2, "cpu"),
        ("auto", {"cuda": False, "mps": True, "cpu": True}, 0, 0, 1, "mps"),
        ("auto", {"cuda": False, "mps": True, "cpu": True}, 0, 1, 2, "cpu"),
    ],
)
def test_each_process_has_a_device_of_its_own(name, available, gpus, process, processes, chosen):
    assert build.choose(name, available, gpus, process, processes) == chosen


@pytest.mark.parametrize(
    ("name", "available", "gpus", "process", "processes", "message"),
    [
        ("cuda", NO_GPU, 0, 0, 1, "finds no such device"),
        ("cuda:2", THERE, 2, 0, 1, "the GPUs here are cuda:0 to cuda:1"),
        ("cuda:0", THERE, 2, 1, 2, "2 processes need one each"),
        ("auto", THERE, 2, 2, 3, "devices=3: the GPUs here are 2"),
    ],
)
def test_a_device_that_is_not_there_is_refused(name, available, gpus, process, processes, message):
    with pytest.raises(UserError, match=re.escape(message)):
        build.choose(name, available, gpus, process, processes)


def test_jobs_side_by_side_take_turns_at_the_gpus():
    assert [build.job_device("auto", job, 3) for job in range(4)] == ["cuda:0", "cuda:1", "cuda:2", "cuda:0"]
    assert [build.job_device(name, 1, gpus) for name, gpus in (("cpu", 3), ("cuda:2", 3), ("auto", 1))] == [
        "cpu",
        "cuda:2",
        "auto",
    ]


@pytest.mark.slow
def test_the_run_says_how_many_processes_computed_it(pair):
    assert json.loads((pair / "elbo" / "summary.json").read_text())["state"] == "finished"
    assert "devices: 2" in (pair / "elbo" / "config.yaml").read_text()
