"""The device for a run, for one of its processes or for a job of a sweep."""

from collections.abc import Mapping
from typing import Any

import torch

from vae_exp import distributed, torchrun_env
from vae_exp.config.check import flatten
from vae_exp.config.combinations import check_devices
from vae_exp.errors import UserError


def device(name: str) -> torch.device:
    """Return the device of that name; auto is the fastest available. Raises UserError if it is not available.

    If several processes compute a run on GPUs, each gets its own.
    """
    return torch.device(choose(name, _available(), torch.cuda.device_count(), *torchrun_env.here()))


def agreed(config: Mapping[str, Any]) -> int:
    """Return the number of processes of the run: those that were started, even if devices=N is not given.

    Raises UserError if N is another number, or if these processes cannot do what the run is to do.
    """
    asked, there = config["devices"], distributed.world_size()
    if asked not in (1, there) and there == 1:
        raise UserError(
            f"devices={asked}: this is one process. vae-train devices={asked} starts so many, torchrun "
            f"--nproc-per-node={asked} does for a program of your own."
        )
    if asked not in (1, there):
        raise UserError(f"devices={asked}: {there} processes were started for this run. Leave it out, or say {there}.")
    if problems := check_devices(flatten({**config, "devices": there})):
        raise UserError("\n".join(problems))
    return there


def require(name: str, processes: int) -> None:
    """Raise UserError if this many processes on this machine cannot have a device each."""
    choose(name, _available(), torch.cuda.device_count(), processes - 1, processes)


def _available() -> dict[str, bool]:
    return {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}


def choose(name: str, available: Mapping[str, bool], n_gpus: int, process: int, processes: int) -> str:
    """Return the device of one of a run's processes on a machine: cuda:1 for the second.

    Raises UserError as `device` does.
    """
    kind, _, number = name.partition(":")
    if kind == "auto":
        kind = next(kind for kind, is_there in available.items() if is_there)
        kind = "cpu" if kind == "mps" and processes > 1 else kind
    if not available[kind]:
        raise UserError(f"device={name}: PyTorch {torch.__version__} finds no such device here. Use device=auto.")
    if processes > 1 and (kind == "mps" or number):
        raise UserError(f"device={name}: is one device, and {processes} processes need one each. Use cuda or cpu.")
    if kind != "cuda":
        return kind
    index = int(number or process)
    if index >= n_gpus and number:
        raise UserError(f"device={name}: the GPUs here are cuda:0 to cuda:{n_gpus - 1}.")
    if index >= n_gpus:
        raise UserError(f"devices={processes}: the GPUs here are {n_gpus}. Use devices={n_gpus}, or device=cpu.")
    return f"cuda:{index}" if number or processes > 1 else kind


def of_job(name: str, number: int, n_gpus: int | None = None) -> str:
    """Return the device of one of the jobs that run side by side on this machine: the GPUs take turns."""
    n_gpus = torch.cuda.device_count() if n_gpus is None else n_gpus
    return f"cuda:{number % n_gpus}" if name in ("auto", "cuda") and n_gpus > 1 else name
