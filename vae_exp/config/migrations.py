"""Read configurations of older versions."""

from collections.abc import Mapping
from typing import Any

CONV = ("conv", "resnet", "burgess", "locatello")
MOVED = {
    **{f"vae_exp.conv_networks.{name}": f"vae_exp.networks.{name}" for name in CONV},
    **{f"vae_exp.image_folder.{name}": f"vae_exp.datasets.{name}" for name in ("image_folder", "celeba")},
}
# Keys that only development versions of 0.2.0 had, and what took their place.
WARM = "a sweep that starts warm: vae-train -m sweep.warm_start=true model.z_dim=16,8,4 model.beta=0.5,1,2"
GONE = {
    "amortize": f"In its place there is {WARM}",
    "beta": f"Each setting has a checkpoint of its own, from {WARM}",
    "z_dim": f"Each setting has a checkpoint of its own, from {WARM}",
}
ADDED: dict[str, Any] = {  # with the value that changes nothing
    "accumulate_steps": 1,
    "gradient_clip_norm": None,
    "ema": None,
    "max_steps": None,
    "scores": [],
    "scores_every_epochs": None,
    "devices": 1,
    "trust": False,
    "rerun": None,
    "monitor": "val/neg_elbo",
    "monitor_mode": "min",
    "init_from": None,
    "init_from_partial": False,
    "freeze": [],
    "posterior": {"_target_": "vae_exp.posteriors.diagonal", "scale": "exp", "log_var_range": None},
    "prior": {"_target_": "vae_exp.priors.standard"},
}
ADDED_BELOW: dict[str, dict[str, Any]] = {
    "sweep": {"warm_start": False, "warm_epochs": None, "confirm": 0},
    "wandb": {"alert": False},
}
ADDED_TO: dict[str, dict[str, Any]] = {  # the same, of a group's function
    "vae_exp.datasets.image_folder": dict.fromkeys(("factors", "factor_columns", "label", "condition", "white")),
    "vae_exp.datasets.arrays": dict.fromkeys(("factor_columns", "condition")),
    **{f"vae_exp.datasets.{name}": {"condition": None} for name in ("sprites", "dsprites", "shapes3d", "mpi3d")},
    **{f"vae_exp.networks.{name}": {"init": "pytorch"} for name in ("mlp", *CONV)},
    **{f"vae_exp.likelihoods.{name}": {"mean": "linear"} for name in ("gaussian", "laplace", "discretized_logistic")},
    "vae_exp.posteriors.iaf": {"gate": False},
}


def renamed(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a configuration with today's _target_ names and keys; everything else in it stays.

    Raises ValueError for a network of many settings, which is no VAE of one.
    """
    groups: dict[str, Any] = {}
    for group, settings in config.items():
        groups[group] = dict(settings) if isinstance(settings, Mapping) else settings
        if isinstance(settings, Mapping) and isinstance(target := settings.get("_target_"), str):
            target = MOVED.get(target, target)
            groups[group] = {**ADDED_TO.get(target, {}), **settings, "_target_": target}
    dataset = groups.get("dataset")
    if isinstance(dataset, dict) and dataset.get("_target_") == "vae_exp.datasets.torchvision_images":
        dataset.setdefault("source", dataset.get("name"))  # the name was also what was read
    if isinstance(amortize := groups.pop("amortize", None), dict) and (amortize.get("beta") or amortize.get("z_dim")):
        raise ValueError("amortize.*, which only development versions of 0.2.0 up to 1a84f12 read")
    for group, added in ADDED_BELOW.items():
        if isinstance(groups.get(group), dict):
            groups[group] = added | groups[group]
    config = ADDED | groups
    if isinstance(sweep := config.get("sweep"), dict) and sweep.get("metric") == config["monitor"]:
        sweep["metric"] = None  # it follows the monitor; versions before wrote its name
    return config
