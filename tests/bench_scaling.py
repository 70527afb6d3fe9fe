"""How cost grows with size: images, pixels, parameters, jobs of a sweep, and runs that are compared.

The slope of a row is that of the logarithm of its seconds over the logarithm of its size, since the row before: 1 where
cost grows as the work does, less where a fixed cost is still a part of it.
"""

import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from tests.peers import BATCH_SIZE
from vae_exp import compose, train
from vae_exp.config import build
from vae_exp.datasets.prepare import Data
from vae_exp.datasets.splits import Split, Streamed

STEPS = -(-60_000 // BATCH_SIZE)
WIDTHS = {10**5: [60], 10**6: [630], 10**7: [1860, 1860], 10**8: [6600, 6600]}  # hidden layers, by weights
MOST = 1.05  # a slope above it is marked


def products_epoch(device: torch.device) -> Callable[[], float]:
    """The step's matrix products and nothing else: forward, weight gradients, and input gradients but the first."""
    shapes = [(784, 400), (400, 40), (20, 400), (400, 784)]
    layers = [(torch.randn(BATCH_SIZE, a, device=device), torch.randn(a, b, device=device)) for a, b in shapes]
    grads = [torch.randn(BATCH_SIZE, b, device=device) for _, b in shapes]

    def epoch() -> float:
        started = time.perf_counter()
        for _ in range(STEPS):
            for i, ((x, w), g) in enumerate(zip(layers, grads, strict=True)):
                _ = x @ w
                _ = x.T @ g
                if i:
                    _ = g @ w.T
        _synchronize(device)
        return time.perf_counter() - started

    return epoch


def scaling(folder: Path, picture: Path) -> None:
    """Everything that grows, printed as a table and drawn."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows: dict[str, list[tuple[int, float]]] = {}
    environment = os.environ | {"WANDB_MODE": "disabled", "PYTHONPATH": str(Path(__file__).parents[1])}

    def command(*words: str) -> float:
        started = time.perf_counter()
        subprocess.run([sys.executable, *words], check=True, cwd=folder, env=environment, capture_output=True)
        return time.perf_counter() - started

    def sweep(jobs: int) -> float:
        small = ("dataset=digits", "epochs=1", "network.hidden_dims=[8]", "model.z_dim=2", "figures=[]")
        return command("-m", "vae_exp", "-m", *small, f"seed=range(0,{jobs})", f"hydra.sweep.dir=jobs{jobs}")

    def compare(runs: int) -> float:
        several = folder / f"runs{runs}"
        _copies(folder / "jobs10/seed-0", several, runs)
        return command("-c", "from vae_exp.cli.compare import main; main()", str(several))

    measured: dict[str, tuple[tuple[int, ...], Callable[[int], float]]] = {
        "images, in memory (an epoch)": ((10**3, 10**4, 10**5, 10**6), lambda n: n / _speed(folder, n)),
        "images, streamed (an epoch)": ((10**3, 10**4, 10**5, 10**6), lambda n: n / _speed(folder, n, streamed=True)),
        "pixels (1,000 images)": ((28**2, 64**2, 128**2, 256**2), lambda n: 1000 / _speed(folder, 1000, n)),
        "parameters (1,280 images)": ((*WIDTHS,), lambda n: 1280 / _speed(folder, 1280, widths=WIDTHS[n])),
        "jobs in a sweep": ((10, 100, 1000), sweep),
        "runs in vae-compare": ((10, 100, 1000, 5000), compare),
    }
    print(f"  {'':32}{'size':>12}{'seconds':>10}{'slope':>7}")
    for name, (sizes, seconds_of) in measured.items():
        points = rows.setdefault(name, [])
        for size in sizes:
            points.append((size, seconds_of(size)))
            print(f"  {name:32}{size:12,}{points[-1][1]:10.3f}{_slope(points)}", flush=True)
    figure, axes = plt.subplots(figsize=(9, 4.2), layout="constrained")
    for name, points in rows.items():
        axes.loglog(*zip(*points, strict=True), "o-", label=name)
    axes.set(xlabel="size", ylabel="seconds")
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(picture, dpi=90)


def _slope(points: list[tuple[int, float]]) -> str:
    if len(points) == 1:
        return ""
    (size, seconds), (larger, longer) = points[-2:]
    slope = math.log(longer / seconds) / math.log(larger / size)
    return f"{slope:7.2f}{' !' if slope > MOST else ''}"


def _speed(folder: Path, n: int, pixels: int = 784, widths: list[int] | None = None, streamed: bool = False) -> float:
    """Images a second of a run's better epoch of two, on random images, with a hidden layer of 60."""
    side = math.isqrt(pixels)
    total, shape = n + 128, (1, side, side)
    images = torch.randint(0, 256, (total, *shape), dtype=torch.uint8)
    split = Split(images, torch.zeros(total, dtype=torch.long))
    if streamed:
        path = folder / "images.raw"
        images.numpy().tofile(path)
        split = Split(Streamed(path, (total, *shape), torch.arange(total)), split.y)
    works = build.dataset
    build.dataset = lambda _: Data("random", split[:n], split[n:], lambda: split[n:], 0, [], lambda: split)
    try:
        size = f"network.hidden_dims={widths or [60]}".replace(" ", "")
        run_dir = folder / "scaling"
        cfg = compose("experiment=tutorial", "wandb.mode=disabled", size, "epochs=2", "device=cpu", "replace=true")
        train.train(cfg, run_dir, quiet=True)
        rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
        return max(row.get("time/images_per_second", 0.0) for row in rows)
    finally:
        build.dataset = works


def _copies(run: Path, folder: Path, n: int) -> None:
    """Copy a run n times, without its weights and pictures, each with another seed and another result."""
    config, summary = (run / "config.yaml").read_text(), json.loads((run / "summary.json").read_text())
    for seed in range(n):
        copy = folder / f"run{seed:05}"
        shutil.copytree(run, copy, ignore=shutil.ignore_patterns("*.pt", "images"))
        (copy / "config.yaml").write_text(config.replace("\nseed: 0\n", f"\nseed: {seed // 10}\n").replace(
            "\n  lr: 0.001\n", f"\n  lr: {1e-5 * (1 + seed % 10)}\n"
        ))  # fmt: skip
        changed = summary | {"best/val_neg_elbo": summary["best/val_neg_elbo"] + seed % 7}
        (copy / "summary.json").write_text(json.dumps(changed))


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
