"""The numbers of short runs of many parts, kept in tests/data/numbers.json: what they were, they stay.

python -m tests.numbers          compares to the last digit, which one machine and one PyTorch give
python -m tests.numbers --write  measures them anew: where a change is meant to change them
"""

import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path

import torch

from tests.conftest import metrics, quick_run

DATA = Path(__file__).parent / "data" / "numbers.json"
SMALL = ("figure_every_epochs=1", "epochs=2", "log_every_steps=4", "network.hidden_dims=[24]", "model.z_dim=4")
IMAGES = ("figure_every_epochs=1", "epochs=2", "log_every_steps=4", "network.channels=4", "model.z_dim=4")
RUNS = {
    "vanilla": SMALL,
    "two latents": (*SMALL, "model.z_dim=2", "batch_size=100"),
    "beta": (*SMALL, "model=beta", "objective.warmup_epochs=1", "scheduler=cosine"),
    "conditional": (*SMALL, "model=conditional", "optimizer=adamw", "dataset.flip=true"),
    "beta_conditional": (*SMALL, "model=beta_conditional", "optimizer=rmsprop", "scheduler=step", "seed=3"),
    "autoencoder": (*SMALL, "model=autoencoder", "network.activation=tanh"),
    "further figures": (*SMALL, "figures=[interpolations,traversals,manifold,latents]", "model=conditional"),
    "dynamic": (*SMALL, "dataset.binarize=dynamic", "optimizer=sgd", "dataset.device_memory=200MB"),
    "static, a part": (*SMALL, "dataset.binarize=static", "dataset.train_size=0.5", "dataset.labels=[3,7]"),
    "streamed": (*SMALL, "dataset.device_memory=0", "dataset.val_size=0"),
    "free_bits": (*SMALL, "objective=free_bits"),
    "capacity": (*SMALL, "objective=capacity"),
    "iwae": (*SMALL, "objective=iwae", "objective.samples_at_once=2"),
    "beta_tc": (*SMALL, "objective=beta_tc", "model=beta"),
    "laplace": (*SMALL, "likelihood=laplace", "scheduler=milestones", "scheduler.at_epochs=[1]"),
    "continuous_bernoulli": (*SMALL, "likelihood=continuous_bernoulli"),
    "conv, optimal sigma": (*IMAGES, "network=conv", "likelihood=gaussian", "likelihood.sigma=optimal"),
    "resnet, bytes": (*IMAGES, "network=resnet", "likelihood=discretized_logistic", "model=conditional"),
    "bf16": (*SMALL, "precision=bf16"),
}


def measured(name: str, folder: Path) -> dict:
    """Everything that the run logs but times, its results, its weights and pictures by their hashes."""
    torch.set_num_threads(1)
    summary, folder = quick_run(*RUNS[name], folder=folder)
    rows = [{key: value for key, value in row.items() if not key.startswith("time/")} for row in metrics(folder)]
    results = {key: value for key, value in summary.items() if key.startswith(("best/", "test/"))}
    pictures = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in sorted(folder.glob("images/*"))
    }
    return {"rows": rows, "results": results, "pictures": pictures}


def main() -> int:
    before = {} if "--write" in sys.argv else json.loads(DATA.read_text())
    os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp()
    with tempfile.TemporaryDirectory() as folder:
        now = {name: measured(name, Path(folder, name)) for name in RUNS}
    if "--write" in sys.argv:
        DATA.parent.mkdir(exist_ok=True)
        DATA.write_text(json.dumps(now, indent=None, separators=(",", ":")) + "\n")
        return 0
    for name in RUNS:
        differ = [part for part in now[name] if now[name][part] != before[name][part]]
        print(f"{name}: {'differs in ' + ', '.join(differ) if differ else 'equal to the last digit'}")
    return int(now != before)


if __name__ == "__main__":
    sys.exit(main())
