"""Checks of keys that are each right by themselves but not together: of different groups, or of another option."""

from collections.abc import Mapping
from typing import Any

from vae_exp.config.rules import JUDGED_BY, RULES

# Why these objectives are not for a deterministic autoencoder.
NEED_SPREAD = {
    "vae_exp.objectives.capacity": "holds the KL at a value, and an autoencoder has none",
    "vae_exp.objectives.iwae": "weighs several draws of z, and an autoencoder's code is always the same",
    "vae_exp.objectives.beta_tc": "takes the KL apart, and an autoencoder has none",
    "vae_exp.objectives.dip_vae": "takes the covariance of q(z), and an autoencoder's codes have no density",
}


def check_combinations(flat: Mapping[str, Any]) -> list[str]:
    """Return what is wrong between keys of different groups."""
    problems = []
    if flat.get("model.conditional") is True and flat.get("dataset.n_classes") == 0:
        problems.append(
            f"model.conditional=true: dataset={flat.get('dataset.name')} has no labels (dataset.n_classes=0). "
            "Use model=vanilla or model=beta, or data with labels."
        )
    if flat.get("resume") is not None and flat.get("replace") is True:
        problems.append(f"resume={flat['resume']} and replace=true: one goes on with a run, the other takes it away.")
    if flat.get("scores_every_epochs") and flat.get("scores") == []:
        problems.append(
            f"scores_every_epochs={flat['scores_every_epochs']} and scores=[]: there is nothing to measure. Name "
            "scores, such as scores=[mig], or use scores_every_epochs=null."
        )
    problems += check_devices(flat)
    problems += _check_objective(flat)
    if flat.get("early_stopping.patience") and flat.get("dataset.val_size") == 0:
        problems.append(
            f"early_stopping.patience={flat['early_stopping.patience']}: there are no validation images to watch "
            "(dataset.val_size=0). Use early_stopping.patience=null, or keep some."
        )
    return problems


def check_metric(by: str, metric: str, has_val: bool, why: str) -> list[str]:
    """Return what is wrong with sweep.metric: runs have val/* with validation images, and test/* without.

    `by` is what judges the jobs, such as hydra/sweeper=optuna; `why` is the setting that decides whether there are
    validation images.
    """
    if metric not in (*JUDGED_BY["val"], *JUDGED_BY["test"]) or metric.startswith("val/") == has_val:
        return []  # what is no metric is told already
    if has_val:
        return [
            f"sweep.metric={metric}: where there are validation images ({why}) the test images are read once, at the "
            f"end, and {by} takes one of {', '.join(JUDGED_BY['val'])}. Or use dataset.val_size=0."
        ]
    return [
        f"sweep.metric={metric}: there are no validation images to judge by ({why}), and {by} needs them. Keep some, "
        f"such as dataset.val_size=0.1, or judge by the test images, with one of {', '.join(JUDGED_BY['test'])}."
    ]


def check_devices(flat: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with settings that several processes cannot share."""
    if not all(key in flat and RULES[key].allows(flat[key]) for key in ("devices", "batch_size")):  # told already
        return []
    devices, batch_size = flat["devices"], flat["batch_size"]
    if devices == 1:
        return []
    problems = []
    if devices > batch_size:
        problems.append(f"devices={devices} and batch_size={batch_size}: each process needs an image of a batch.")
    return problems


def _check_objective(flat: Mapping[str, Any]) -> list[str]:
    """Return what is wrong between an objective and the model or the likelihood, or with its warm-up.

    A warm-up is wrong if it has two lengths, or none.
    """
    problems = []
    target = str(flat.get("objective._target_"))
    name = target.rsplit(".", 1)[-1]
    if target in NEED_SPREAD and flat.get("model.stochastic") is False:
        problems.append(f"objective={name}: it {NEED_SPREAD[target]}. Use objective=elbo.")
    sigma = flat.get("likelihood.sigma") if is_ours(flat, "likelihood") else None
    if target == "vae_exp.objectives.iwae" and sigma == "optimal":
        problems.append(
            "objective=iwae: the draws of z must be weighed under one sigma, and likelihood.sigma=optimal fits one to "
            "each. Use likelihood.sigma=learned."
        )
    if target == "vae_exp.objectives.dip_vae" and flat.get("batch_size") == 1:
        problems.append(
            "objective=dip_vae and batch_size=1: it takes the covariance of the codes of a batch, and one image has "
            "none. Use batch_size=2 or more."
        )
    if not is_ours(flat, "objective"):
        return problems
    lengths = [f"objective.warmup_{unit}" for unit in ("epochs", "steps", "fraction")]
    given = [f"{key}={flat[key]}" for key in lengths if flat.get(key)]
    if len(given) > 1:
        problems.append(f"{' and '.join(given)}: a warm-up has one length; set the other to 0.")
    shape = flat.get("objective.warmup")
    if shape in ("cosine", "cyclical") and not given:
        length = "objective.warmup_epochs=5" if shape == "cosine" else "objective.warmup_fraction=1"
        problems.append(f"objective.warmup={shape}: say how long it lasts, such as {length}.")
    return problems


def source_problems(flat: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with dataset.source and dataset.factors.

    The source may not belong to the chosen dataset, as only EMNIST has parts to choose from; or dataset.factors is a
    file, and the dataset has factors of its own.
    """
    table, target = flat.get("dataset.factors"), flat.get("dataset._target_")
    if is_ours(flat, "dataset") and isinstance(table, str) and table and target != "vae_exp.datasets.image_folder":
        return [f"dataset.factors={table}: it takes values by factor names, such as {{shape:[0],x:8}}."]
    source, split = flat.get("dataset.source"), flat.get("dataset.split")
    if flat.get("dataset._target_") != "vae_exp.datasets.torchvision_images" or (source == "emnist") == bool(split):
        return []
    if source == "emnist":
        return ["dataset.source=emnist: it needs dataset.split, which dataset=emnist has. Use dataset=emnist."]
    return [f"dataset.source={source}: dataset.split={split} is of emnist alone. Use dataset={source}."]


def is_ours(flat: Mapping[str, Any], group: str) -> bool:
    """Return whether the group's function is vae_exp's or torch's, so that its keys mean what vae_exp says."""
    return str(flat.get(f"{group}._target_")).startswith(("vae_exp.", "torch."))
