"""The options with which a run is opened in W&B: its name and id, its place, and how long it may take."""

import logging
import os
import re
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vae_exp.config.keys import Config, WandbKeys
from vae_exp.errors import printable
from vae_exp.training.folder import OUTPUTS, WandbRun

log = logging.getLogger(__name__)

INIT_SECONDS = 8  # with wandb_server.PROBE_SECONDS: a server that does not answer may cost 15 s in all
FINISH_SECONDS = 10  # of uploading at the end; what is not there by then stays in W&B's folder, to be synced
LONGEST_TAG = 64
UNKNOWN = WandbRun()
SHORT = {"model.z_dim": "z", "optimizer.lr": "lr", "seed": "s"}
IN_EVERY_NAME = ("model", "model.name", "dataset", "model.z_dim", "optimizer.lr", "seed")


def run_name(config: Config) -> str:
    """Return a name such as vanilla-mnist-z20-lr0.001-s0, or the user's; in a sweep with whatever else is swept."""
    model, dataset, lr = config["model"], config["dataset"], config["optimizer"]["lr"]
    chosen = config["wandb"]["name"] or os.environ.get("WANDB_NAME")
    name = chosen or f"{model['name']}-{dataset['name']}-z{model['z_dim']}-lr{lr:g}-s{config['seed']}"
    for swept in config["sweep"]["over"]:
        key, _, value = swept.partition("=")
        if chosen or key not in IN_EVERY_NAME:
            name = f"{name}-{key.rsplit('.', 1)[-1]}{value}"
    return str(name)


def of_run(
    config: Config, facts: dict[str, Any], name: str | None, wandb_id: str | None, known: WandbRun
) -> dict[str, Any]:
    """Return the options of wandb.init for a training run.

    wandb_id is the id of the run to resume, if there is one, and known is what summary.json has of that run.
    """
    keys = config["wandb"]
    return common(keys, known) | {
        "config": {**config, **facts},
        "id": os.environ.get("WANDB_RUN_ID") or wandb_id or new_id(_for_the_list(config, str(name))),
        "resume": "allow" if wandb_id else None,
        "name": name,
        "group": group(config, name, known),
        "job_type": os.environ.get("WANDB_JOB_TYPE") or "train",
        "tags": tags(config, known),
        "notes": text(keys["notes"]),
    }


def group(config: Mapping[str, Any], name: str | None, known: WandbRun) -> str | None:
    """Return the W&B group of a run and of its evaluations: the configured one, its sweep, or its own name.

    known is what summary.json has of the run: the environment may be another one by now.
    """
    asked = (config.get("wandb") or {}).get("group") or (config.get("sweep") or {}).get("name")
    return text(asked or known.group or os.environ.get("WANDB_RUN_GROUP") or name)


def tags(config: Mapping[str, Any], known: WandbRun) -> list[str]:
    """Return the W&B tags of a run and of its evaluations: its model, its dataset, the user's; known as in group."""
    own = (config.get("wandb") or {}).get("tags")
    if not own and isinstance(known.tags, list):
        return short([str(tag) for tag in known.tags])
    names = [(config.get(part) or {}).get("name") for part in ("model", "dataset")]
    return short([str(tag) for tag in (*names, *(own or _tags_of_environment())) if tag is not None])


def tags_of_sweep(keys: WandbKeys, known: Iterable[WandbRun]) -> list[str]:
    """Return all tags of a sweep's runs, or the user's tags if none are known."""
    of_runs = dict.fromkeys(tag for run in known if isinstance(run.tags, list) for tag in run.tags)
    return short([str(tag) for tag in of_runs or keys["tags"] or _tags_of_environment()])


def _tags_of_environment() -> list[str]:
    return [tag for tag in os.environ.get("WANDB_TAGS", "").split(",") if tag.strip()]


def _for_the_list(config: Config, name: str) -> str:
    """Put what is swept before the name: `wandb leet` lists runs by the first few letters of their ids."""
    swept = [word.partition("=") for word in config["sweep"]["over"]]
    values = [SHORT.get(key, key.rsplit(".", 1)[-1]) + value for key, _, value in swept]
    return "-".join([*values, name])


def short(tags: list[str]) -> list[str]:
    """Return the tags that W&B accepts: with one that is too long it would refuse the run."""
    if long := [tag for tag in tags if len(tag) > LONGEST_TAG]:
        shown = ", ".join(printable(tag[:LONGEST_TAG]) + "..." for tag in long)
        log.warning("W&B: left out what is longer than the %d characters of a tag: %s", LONGEST_TAG, shown)
    return [tag for tag in tags if len(tag) <= LONGEST_TAG]


def common(keys: WandbKeys, known: WandbRun = UNKNOWN) -> dict[str, Any]:
    """Return the options of wandb.init that are the same for every run: of training, an evaluation, a sweep's summary.

    known is what summary.json has of the run that is written to, or that is evaluated.
    """
    import wandb

    # Absolute, because W&B's service keeps the working folder of its start.
    folder = Path(str(keys["dir"] or os.environ.get("WANDB_DIR") or OUTPUTS)).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    return {
        "dir": folder,
        "project": str(keys["project"] or known.project or os.environ.get("WANDB_PROJECT") or "vae_exp"),
        "entity": keys["entity"] or known.entity,
        "reinit": "finish_previous",  # a run that is still open must not swallow this one's points
        "settings": wandb.Settings(
            silent=True, init_timeout=INIT_SECONDS, finish_timeout=FINISH_SECONDS, finish_timeout_raises=True
        ),
    }


def new_id(name: str) -> str:
    """Make an id that no other run has."""
    return f"{as_id(name)}-{secrets.token_hex(3)}"


def as_id(name: str) -> str:
    """Make a readable id of a name: `wandb leet` lists runs by their ids, and W&B refuses some characters in them."""
    return re.sub("[^A-Za-z0-9._-]", "-", name)[:80]


def text(value: Any) -> str | None:
    return None if value is None else str(value)


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
