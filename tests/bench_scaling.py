"""How the time per image grows with the arithmetic of one, and with the number of images."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import torch

from tests.peers import BATCH_SIZE
from vae_exp import compose, train
from vae_exp.config import build
from vae_exp.datasets.prepare import Data
from vae_exp.datasets.splits import Split

STEPS = -(-60_000 // BATCH_SIZE)


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
    """Time per image against the arithmetic of one, as one size after the other grows; printed, and drawn."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    usual = {"z_dim": 20, "width": 400, "image side": 28, "images": 20_000}
    grown = {
        "z_dim": (2, 20, 200, 2000),
        "width": (50, 400, 1600, 4800),
        "image side": (8, 28, 64, 128),
        "images": (1000, 4000, 20_000, 60_000),
    }
    products = products_epoch(torch.device("cpu"))
    products()
    gflops = 419.84e-3 * STEPS / products()  # of the tutorial's products alone
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained", sharey=True)
    for axis, sizes in grown.items():
        points = []
        for size in sizes:
            at = usual | {axis: size}
            speed = _images_per_second(folder, at)
            pixels, z_dim, width = at["image side"] ** 2, at["z_dim"], at["width"]
            mflop = 2e-6 * (3 * (2 * width * z_dim + z_dim * width + width * pixels) + 2 * pixels * width)
            points.append((size if axis == "images" else mflop, 1e6 / speed))
            print(f"  {axis:12}{size:8,}{speed:12,.0f} images/s{speed * mflop / 1e3:9.1f} GFLOP/s", flush=True)
        panel, label = (right, None) if axis == "images" else (left, f"{axis} {', '.join(f'{n:,}' for n in sizes)}")
        panel.loglog(*zip(*points, strict=True), "o-", label=label)
    ends = left.get_xlim()
    left.plot(ends, [1e3 * mflop / gflops for mflop in ends], "k--", label=f"products alone, {gflops:.0f} GFLOP/s")
    left.set(xlabel="MFLOP of matrix products per image", ylabel="microseconds per image")
    left.legend()
    right.set(xlabel="images in the data set")
    figure.savefig(picture, dpi=90)


def _images_per_second(folder: Path, at: dict[str, int]) -> float:
    n, side = at["images"], at["image side"]
    images = torch.randint(0, 256, (n + 128, 1, side, side), dtype=torch.uint8)
    split = Split(images, torch.zeros(n + 128, dtype=torch.long))
    works = build.dataset
    build.dataset = lambda _: Data("random", split[:n], split[n:], lambda: split[n:], 0, [], lambda: split)
    try:
        sizes = (f"model.z_dim={at['z_dim']}", f"network.hidden_dims=[{at['width']}]", "epochs=2", "device=cpu")
        run_dir = folder / "scaling"
        train.train(compose("experiment=tutorial", "wandb.mode=disabled", *sizes), run_dir)
        rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
        return max(row.get("time/images_per_second", 0.0) for row in rows)
    finally:
        build.dataset = works


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
