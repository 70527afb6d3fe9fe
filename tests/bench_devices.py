"""What several processes bring one run: seconds of an epoch, in turns with one process of one thread and of two."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

WAYS = {"threads=1": ("threads=1",), "threads=2": ("threads=2",), "devices=2": ("devices=2",)}
RUNS = {
    "experiment=tutorial": ("experiment=tutorial", "epochs=4"),  # needs MNIST
    "network=conv dataset=sprites": ("network=conv", "dataset=sprites", "dataset.train_size=3000", "epochs=3"),
}
QUIET = ("compile=false", "wandb.mode=disabled", "figure_every_epochs=100", "dataset.val_size=0")


def measure(rounds: int) -> dict[str, dict[str, float]]:
    """The median time of an epoch, the first of each run left out."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    medians = {}
    for name, words in RUNS.items():
        taken: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(rounds):
            for way, how in WAYS.items():
                with tempfile.TemporaryDirectory() as folder:
                    # Epochs are timed before their evaluation, which is of a large split here.
                    run = [sys.executable, "-m", "vae_exp", *words, *QUIET, *how, f"hydra.run.dir={folder}/run"]
                    subprocess.run(run, check=True, capture_output=True, env=environment)
                    rows = map(json.loads, Path(folder, "run", "metrics.jsonl").read_text().splitlines())
                    taken[way] += [row["time/epoch_seconds"] for row in rows if "time/epoch_seconds" in row][1:]
        medians[name] = {way: statistics.median(times) for way, times in taken.items()}
        alone = medians[name]["threads=1"]
        shown = "   ".join(f"{way} {seconds:.2f} s ({alone / seconds:.2f})" for way, seconds in medians[name].items())
        print(f"{name:30} {shown}", flush=True)
    return medians
