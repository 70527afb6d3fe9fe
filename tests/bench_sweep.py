"""What a sweep costs beside its steps: experiment=sweep_z_lr against a bare loop over the same jobs.

The bare loop takes the same optimizer steps on the same batches, one validation pass an epoch, and does nothing else.
"""

import contextlib
import logging
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import torch
from omegaconf import DictConfig

from tests.timing import Clock, Functions, timed
from vae_exp import compose, train
from vae_exp.cli import train as command
from vae_exp.config import build
from vae_exp.datasets import batches
from vae_exp.evaluation.metrics import evaluate
from vae_exp.figures import training
from vae_exp.sweeps import sweepers
from vae_exp.tracking.tracker import Tracker
from vae_exp.training import checkpointer, dry_run, run, threads
from vae_exp.training.precision import reproducible

MODES = ("offline", "disabled")
SWEPT = {"model.z_dim": (2, 4, 8, 16), "optimizer.lr": (3e-4, 1e-3, 3e-3), "seed": (0, 1)}  # as the experiment's file
PARTS: dict[str, Functions] = {
    "composing and checking the configuration": [
        (sweepers.JobConfigs, "load_sweep_config"), (command, "check_sweep"), (build, "check"),
    ],
    "data, model and the trial of its parts": [
        *((build, f) for f in ("dataset", "model", "optimizer")), (threads, "choose"),
        *((dry_run, f) for f in ("check_data", "check_model", "check_own_parts")),
    ],
    "steps": [(train, "train_epoch")],
    "validation and the test split": [(train, "evaluate")],
    "W&B's start": [(run, "choose_mode"), (Tracker, "_open_wandb")],
    "points, in metrics.jsonl and W&B": [(Tracker, "log")],
    "summary.json": [(Tracker, "_write_summary"), (Tracker, "summarise")],
    "pictures": [*((training, f) for f in ("_usual", "_further", "test_figure")), (Tracker, "image")],
    "checkpoints": [(checkpointer.Checkpointer, name) for name in ("keep_best", "write", "write_best", "best")],
    "W&B's finish": [(Tracker, "_close_wandb")],
    "tables and figures at the end": [(sweepers.summary, "finish")],
}  # fmt: skip


def bare_run(cfg: DictConfig) -> None:
    """The optimizer steps of a run and a validation pass an epoch."""
    config = build.check(cfg)
    seed, batch_size = config["seed"], config["batch_size"]
    data = build.dataset(config)
    torch.manual_seed(seed)
    model = build.model(config, data.x_shape, data.n_classes)
    optimizer = build.optimizer(config, model)
    order, noise = build.generator(seed, "order"), build.generator(seed, "noise")
    for _ in range(config["epochs"]):
        for x, y in batches(data.train, batch_size, order):
            q = model.encode(x, y)
            z = q.rsample(noise)
            loss = (q.kl_to_prior().sum(1) - model.decode(z, y).log_prob(x)).mean()
            model.zero_grad()
            loss.backward()
            optimizer.step()
        _ = evaluate(model, data.val, build.generator(seed, "evaluation")).scalars("val")


def bare_sweep(clock: Clock, *overrides: str) -> float:
    """Seconds of all jobs' bare loops. Their configurations are composed before the clock starts."""
    every = [dict(zip(SWEPT, values, strict=True)) for values in product(*SWEPT.values())]
    cfgs = [
        compose("experiment=sweep_z_lr", *(f"{key}={value}" for key, value in job.items()), *overrides) for job in every
    ]
    started = clock()
    with reproducible(torch.device("cpu")):
        for cfg in cfgs:
            bare_run(cfg)
    return clock() - started


def sweep(mode: str, clock: Clock, *overrides: str) -> tuple[float, dict[str, float]]:
    """Seconds of `vae-train -m experiment=sweep_z_lr` in this process, and of its parts."""
    before = sys.argv, logging.getLogger().handlers[:], logging.getLogger().level
    sys.argv = ["vae-train", "-m", "experiment=sweep_z_lr", f"wandb.mode={mode}", *overrides]
    started = clock()
    try:
        with timed(PARTS, clock) as spent, open(os.devnull, "w") as null, contextlib.redirect_stdout(null):  # noqa: PTH123
            command.main()
    except SystemExit as end:
        assert not end.code, f"the sweep failed: {end.code}"
    finally:
        sys.argv, logging.getLogger().handlers, logging.getLogger().level = before
    return clock() - started, spent


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def measure(rounds: int, clock: Clock, line: Callable[[str, float, str], None]) -> dict[str, list[float]]:
    """Everything in turns, so many rounds, printed: medians, also of the ratios of each round."""
    taken: dict[str, list[float]] = {}
    parts: dict[str, dict[str, list[float]]] = {mode: {name: [] for name in PARTS} for mode in MODES}
    with tempfile.TemporaryDirectory() as folder, _inside(Path(folder)):
        bare_sweep(clock, "epochs=1")  # once in vain: imports, and what is cached
        for mode in MODES:
            sweep(mode, clock, "epochs=1")
        for number in range(rounds):
            print(f"round {number + 1} of {rounds}", file=sys.stderr)
            taken.setdefault("bare", []).append(bare_sweep(clock))
            for mode in MODES:
                seconds, spent = sweep(mode, clock)
                taken.setdefault(mode, []).append(seconds)
                for name, of_part in spent.items():
                    parts[mode][name].append(of_part)
    bare = statistics.median(taken["bare"])
    print("experiment=sweep_z_lr, 24 jobs, seconds")
    line("the bare loop", bare, "its steps and a validation pass an epoch")
    for mode in MODES:
        ratio = statistics.median(a / b for a, b in zip(taken[mode], taken["bare"], strict=True))
        whole = statistics.median(taken[mode])
        line(f"wandb.mode={mode}", whole, f"{ratio:.2f} times the bare loop")
        spent = {name: statistics.median(all_) for name, all_ in parts[mode].items()}
        for name, seconds in spent.items():
            line(f"  {name}", seconds, f"{seconds / bare:.1%} of the bare loop")
        rest = whole - bare - sum(spent.values())
        line("  all else", rest, f"{rest / bare:.1%} of the bare loop")
    return taken
