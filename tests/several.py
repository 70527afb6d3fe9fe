"""Runs of several processes, for tests: torchrun --nproc-per-node=2 -m tests.several NAME ... (see CASES).

All of them in the same processes, because starting these takes longer than the runs. `python -m tests.several NAME ...`
is torchrun with two processes, which are copies of one that has imported and composed everything already.
"""

import contextlib
import os
import sys

import torch._dynamo  # noqa: F401  (which the first optimizer imports)
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from tests.conftest import QUICK, compose, quick_run
from vae_exp.errors import UserError

# 1,297 digits in batches of 128: eleven steps an epoch, the last of 17 images.
TWO_EPOCHS = ("epochs=2", "batch_size=128", "log_every_steps=1", "model.z_dim=4")
CASES = {
    "elbo": ("objective.warmup_epochs=2", "scheduler=cosine"),
    "beta": ("model=beta", "likelihood=gaussian", "likelihood.sigma=learned", "dataset.val_size=0"),
    "free_bits": ("objective=free_bits",),
    "capacity": ("objective=capacity",),
    "iwae": ("objective=iwae", "objective.samples=4", "objective.samples_at_once=1"),
    "beta_tc": ("objective=beta_tc",),
    "dip_vae": ("objective=dip_vae",),
    "optimal": ("likelihood=gaussian", "likelihood.sigma=optimal"),
    "autoencoder": ("model=autoencoder",),
    "conditional": ("model=conditional", "dataset.flip=true", "dataset.binarize=dynamic"),
    "by_label": ("model=conditional", "prior=by_label"),
    "mixture_iaf": ("prior=mixture", "posterior=iaf", "posterior.hidden_dims=[16]", "objective.warmup_epochs=2"),
    "vamp_full": (
        *("prior=vamp", "prior.components=7", "prior.init=data", "posterior=full"),
        *("objective=iwae", "objective.samples=3", "objective.samples_at_once=1"),
    ),
    "steps": ("batch_size=50", "accumulate_steps=3", "gradient_clip_norm=20", "ema=0.9", "optimizer=adamw"),
}
AGAIN = "conditional"  # which "again" repeats
OTHERS = {
    "again": CASES[AGAIN],
    "from_one": (*CASES["steps"], "resume=several/from_one"),
    "to_one": (*CASES["steps"], "max_steps=12"),
    "ends_early": ("epochs=5", "early_stopping.patience=1", "optimizer.lr=0.3"),
    "compiled": ("compile=true",),
    "two_left": (
        "batch_size=259",
        "network=conv",
        "network.channels=4",
    ),  # 1,297 images are five batches and two images
    "two_left_full": ("batch_size=259", "prior=vamp", "prior.components=5", "posterior=full"),
    "two_left_iaf": ("batch_size=259", "prior=flow", "posterior=iaf", "posterior.hidden_dims=[8]"),
}


def settings(name: str) -> tuple[str, ...]:
    case = (CASES | OTHERS)[name]
    return (*TWO_EPOCHS, *(() if "network=conv" in case else ("network.hidden_dims=[32]",)), *case)


def main(names: list[str]) -> None:
    with contextlib.suppress(UserError):  # a run that fails in all processes is no end of their common work
        quick_run(*settings(names[0]), "optimizer.lr=1e30", folder="several/diverges")
    for name in names:
        quick_run(*settings(name), folder=f"several/{name}")


def launch(names: list[str]) -> None:
    for name in names:
        compose(*QUICK, "wandb.mode=disabled", *settings(name))
    here = LaunchConfig(1, 1, 2, rdzv_backend="c10d", rdzv_endpoint="localhost:0", start_method="fork", max_restarts=0)
    elastic_launch(here, main)(names)


if __name__ == "__main__":
    (main if "RANK" in os.environ else launch)(sys.argv[1:])
