"""Read configurations of older versions."""

from collections.abc import Mapping
from typing import Any

MOVED = {
    "vae_exp.conv_networks.conv": "vae_exp.networks.conv",
    "vae_exp.conv_networks.resnet": "vae_exp.networks.resnet",
    "vae_exp.conv_networks.burgess": "vae_exp.networks.burgess",
    "vae_exp.conv_networks.locatello": "vae_exp.networks.locatello",
    "vae_exp.image_folder.image_folder": "vae_exp.datasets.image_folder",
    "vae_exp.image_folder.celeba": "vae_exp.datasets.celeba",
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
}
# One network for many settings, which was taken away; these are the values of a run without it.
OFF: list[dict[str, Any]] = [{"beta": None, "z_dim": None}, {"beta": None, "z_dim": None, "confirm": 0}]
ADDED_TO: dict[str, dict[str, Any]] = {  # the same, of a group's function
    "vae_exp.datasets.image_folder": {"factors": None, "label": None, "white": None},
    **{f"vae_exp.networks.{name}": {"init": "pytorch"} for name in ("mlp", "conv", "resnet", "burgess", "locatello")},
}


def renamed(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a configuration with today's _target_ names and keys; everything else in it stays."""
    groups = {group: _renamed_group(settings) for group, settings in config.items()}
    if groups.get("amortize") in OFF:  # a run for one setting, which is what there is now
        del groups["amortize"]
    dataset = groups.get("dataset")
    if isinstance(dataset, dict) and dataset.get("_target_") == "vae_exp.datasets.torchvision_images":
        dataset.setdefault("source", dataset.get("name"))  # the name was also what was read
    return ADDED | groups


def _renamed_group(settings: Any) -> Any:
    if not isinstance(settings, Mapping):
        return settings
    target = settings.get("_target_")
    if not isinstance(target, str):
        return dict(settings)
    target = MOVED.get(target, target)
    return {**ADDED_TO.get(target, {}), **settings, "_target_": target}
