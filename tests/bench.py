"""How fast a run is, against the tutorial's own loop and the arithmetic alone: `make bench`, not part of the tests.

Each round measures everything in turn, A B C A B C, because a machine's speed drifts; medians and ratios are printed.
Needs MNIST (VAE_EXP_DATA, or it is downloaded), and measures pythae too where that is installed.
"""

import argparse
import contextlib
import importlib.util
import json
import logging
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from omegaconf import DictConfig
from tqdm import tqdm

from tests import bench_devices, bench_sweep
from tests.bench_scaling import STEPS, products_epoch, scaling
from tests.peers import pythae_epoch, tutorial_epoch
from tests.timing import Functions, timed
from vae_exp import compose, train
from vae_exp.config.checks import CONF_DIR, resolve
from vae_exp.figures import training
from vae_exp.tracking import tracker
from vae_exp.training import checkpointer, state

ENVIRONMENT = os.environ | {"WANDB_SILENT": "true", "PYTHONPATH": str(CONF_DIR.parent)}
THREADS = f"threads={torch.get_num_threads()}"  # as many as all that is measured beside it
OURS, COMPILED = "vae_exp, everything included", "vae_exp compile=true"
# What is not the step itself: the functions of a run that are timed while it runs.
BESIDE_THE_STEP: dict[str, Functions] = {
    "validation": [(train, "evaluate")],
    "pictures": [(training, "reconstructions"), (training, "samples"), (tracker.Tracker, "image")],
    "checkpoints": [(checkpointer.Checkpointer, "keep_best"), (checkpointer.Checkpointer, "write")],
    "tracker": [(tracker.Tracker, "log"), (tracker.Tracker, "summarise"), (tracker.Tracker, "to_disk")],
    "running means": [(state.Meters, "add"), (state.Meters, "read")],
    "progress bar": [(tqdm, "update"), (tqdm, "set_postfix_str")],
}


def tutorial(*overrides: str) -> DictConfig:
    return compose("experiment=tutorial", "wandb.mode=offline", THREADS, *overrides)


def in_its_own_process(make: Callable, *arguments: object) -> Callable[[], float]:
    """What make(*arguments) measures, in a process that nothing of vae_exp's has set up."""
    context = multiprocessing.get_context("spawn")
    process = ProcessPoolExecutor(1, context, initializer=_begin, initargs=(make, *arguments))
    return lambda: process.submit(_measure).result()


def _begin(make: Callable, *arguments: object) -> None:
    global _measured
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115
    _measured = make(*arguments)


def _measure() -> float:
    return _measured()


def our_epoch(device: torch.device, folder: Path, *overrides: str) -> tuple[float, dict[str, float]]:
    """An epoch of experiment=tutorial, everything included: of eleven epochs the last ten, and their parts."""
    walls, parts = [], []
    for epochs in (1, 11):
        with timed(BESIDE_THE_STEP) as spent, open(os.devnull, "w") as null, contextlib.redirect_stderr(null):  # noqa: PTH123
            started = time.perf_counter()
            run_dir = folder / f"{time.time_ns()}"
            train.train(tutorial(f"epochs={epochs}", f"device={device.type}", *overrides), run_dir)
            walls.append(time.perf_counter() - started)
            shutil.rmtree(run_dir)
        parts.append(spent)
    one, many = parts
    return (walls[1] - walls[0]) / 10, {part: (many[part] - one[part]) / 10 for part in BESIDE_THE_STEP}


def start_up() -> dict[str, Callable[[], float]]:
    """Seconds until a command has answered, or until the first training step of MNIST is in metrics.jsonl."""

    def python(*arguments: str) -> float:
        started = time.perf_counter()
        subprocess.run(
            [sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ENVIRONMENT
        )
        return time.perf_counter() - started

    def first_step() -> float:
        with tempfile.TemporaryDirectory() as folder:
            asked = ("experiment=tutorial", "wandb.mode=offline", "log_every_steps=1", "hydra.run.dir=run")
            started = time.perf_counter()
            run = subprocess.Popen(
                [sys.executable, "-m", "vae_exp", *asked],
                cwd=folder, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            log = Path(folder) / "run" / "metrics.jsonl"
            while not (log.exists() and log.stat().st_size):
                time.sleep(0.01)
                assert run.poll() is None, "the run failed"
            taken = time.perf_counter() - started
            run.kill()
            run.wait()
        return taken

    return {
        "import hydra": lambda: python("-c", "import hydra"),
        "import torch": lambda: python("-c", "import torch"),
        "vae-train --help": lambda: python("-m", "vae_exp", "--help"),
        "vae-train --cfg job": lambda: python("-m", "vae_exp", "--cfg", "job"),
        "a misspelt key": lambda: python("-m", "vae_exp", "model.zdim=3"),
        "first step on MNIST": first_step,
    }


def peak_memory(*command: str) -> float:
    """Peak resident memory of a Python program, MB. Told by a small parent: a child inherits its parent's peak."""
    script = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], stdout=2, stderr=subprocess.DEVNULL); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-S", "-c", script, sys.executable, *command],
            cwd=folder, capture_output=True, text=True, env=ENVIRONMENT,
        )  # fmt: skip
    return int(done.stdout) / 1024


def step_budget(device: torch.device, folder: Path) -> str:
    """PyTorch's profile of a tutorial epoch, by the time spent in each operation itself."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [torch.profiler.ProfilerActivity.CUDA] if device.type == "cuda" else []
    with torch.profiler.profile(activities=activities) as profile:
        train.train(tutorial("epochs=1", f"device={device.type}", "wandb.mode=disabled"), folder / "profiled")
    key = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    rows = sorted(profile.key_averages(), key=lambda row: -getattr(row, key))[:18]
    lines = [f"{'operation':42}{'ms a step':>10}{'calls':>8}"]
    return "\n".join(
        lines + [f"{row.key[:40]:42}{getattr(row, key) / 1000 / STEPS:10.3f}{row.count / STEPS:8.1f}" for row in rows]
    )


def _line(name: str, number: float, remark: str = "") -> None:
    print(f"  {name:42}{number:9.3f}   {remark}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--gpu", action="store_true", help="the same on a GPU")
    parser.add_argument("--json", type=Path, help="write every figure there")
    parser.add_argument("--scaling", type=Path, metavar="PNG", help="draw speed over each size, nothing else")
    parser.add_argument("--compiled", action="store_true", help="compile=true as well")
    parser.add_argument("--sweep", action="store_true", help="the sweep experiment=sweep_z_lr, nothing else")
    parser.add_argument("--devices", action="store_true", help="one run in two processes, nothing else")
    parser.add_argument("--cpu", action="store_true", help="of --sweep: processor time, on a machine with other work")
    asked = parser.parse_args()
    logging.disable(logging.WARNING)  # of a run's remarks
    if asked.scaling:
        with tempfile.TemporaryDirectory() as folder:
            scaling(Path(folder), asked.scaling)
        return
    if asked.sweep:
        logging.disable(logging.NOTSET)
        taken: dict[str, list[float]] = bench_sweep.measure(
            asked.rounds, time.process_time if asked.cpu else time.perf_counter, _line
        )
        if asked.json:
            asked.json.write_text(json.dumps(taken, indent=2) + "\n")
        return
    if asked.devices:
        medians = bench_devices.measure(asked.rounds)
        if asked.json:
            asked.json.write_text(json.dumps(medians, indent=2) + "\n")
        return
    device = torch.device("cuda" if asked.gpu else "cpu")
    print(f"{torch.get_num_threads()} threads, PyTorch {torch.__version__}, {device}\n")

    root = Path(resolve(tutorial())["dataset"]["root"]).expanduser()
    taken = {}
    parts: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as after:
        after.callback(os.chdir, os.getcwd())  # noqa: PTH109
        os.chdir(folder)
        others = {
            "the tutorial's own loop": in_its_own_process(tutorial_epoch, root, device),
            "its matrix products alone": in_its_own_process(products_epoch, device),
        }
        others["its matrix products alone"]()  # once in vain: the first time is not like the others
        if importlib.util.find_spec("pythae"):
            others["pythae"] = in_its_own_process(pythae_epoch, root, device)
        if asked.compiled:
            our_epoch(device, Path(folder), "compile=true")  # PyTorch keeps what it compiles for the next time
        for number in range(asked.rounds):
            print(f"round {number + 1} of {asked.rounds}", file=sys.stderr)
            for name, measure in others.items():
                taken.setdefault(name, []).append(measure())
            ours, beside = our_epoch(device, Path(folder))
            taken.setdefault(OURS, []).append(ours)
            for part, seconds in beside.items():
                parts.setdefault(part, []).append(seconds)
            if asked.compiled:
                taken.setdefault(COMPILED, []).append(our_epoch(device, Path(folder), "compile=true")[0])
        budget = step_budget(device, Path(folder))
        starts: dict[str, list[float]] = {}
        for _ in range(asked.rounds):
            for name, measure in start_up().items():
                starts.setdefault(name, []).append(measure())
        run = ("-m", "vae_exp", "experiment=tutorial", "epochs=1", "wandb.mode=offline", f"device={device.type}")
        memory = {
            "import torch, torchvision": peak_memory("-c", "import torch, torchvision"),
            "the run": peak_memory(*run),
        }

    beside, start = ({name: statistics.median(all_) for name, all_ in measured.items()} for measured in (parts, starts))
    ours = statistics.median(taken[OURS])
    print("an epoch of experiment=tutorial, seconds; medians, also of the ratios of each round")
    for name, all_ in taken.items():
        ratio = statistics.median(a / b for a, b in zip(all_, taken[OURS], strict=True))
        compiled = [a / b for a, b in zip(all_, taken.get(COMPILED, []), strict=False)]
        against = f", of it compiled {statistics.median(compiled):.2f}" if compiled else ""
        _line(name, statistics.median(all_), f"{ratio:.2f} of vae_exp's{against}")
    for name, seconds in beside.items():
        _line(f"  {name}", seconds, f"{seconds / ours:.1%} of it")
    _line("  all of these", sum(beside.values()), f"{sum(beside.values()) / ours:.1%} of it")
    print("\nseconds until the answer")
    for name, seconds in start.items():
        base = "import torch" if name == "first step on MNIST" else "import hydra"
        _line(name, seconds, "" if name.startswith("import") else f"{seconds - start[base]:+.2f} over {base}")
    print("\npeak memory, MB")
    for name, megabytes in memory.items():
        _line(name, megabytes)
    print(f"\n{budget}")
    if asked.json:
        figures_ = {"epochs": taken, "beside_the_step": parts, "start_up": starts, "memory_mb": memory}
        asked.json.write_text(json.dumps(figures_, indent=2) + "\n")


if __name__ == "__main__":
    main()
