"""The device that a run, a process of it or a job of a sweep is computed on."""

from collections.abc import Mapping
from typing import Any

import torch

from vae_exp import distributed, torchrun_env
from vae_exp.config.check import flatten
from vae_exp.config.combinations import check_devices
from vae_exp.errors import UserError


def device(name: str) -> torch.device:
    """auto is the fastest device there is. Raises UserError for one that is not there.

    Of several processes that compute a run on GPUs each gets its own.
    """
    return torch.device(choose(name, _available(), torch.cuda.device_count(), *torchrun_env.here()))


def agreed(config: Mapping[str, Any]) -> int:
    """How many processes the run has: those that were started, of which devices=N need not tell.

    Raises UserError where N others were asked for, and where these cannot do what the run is to do.
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
    """Raises UserError where so many processes on this machine could not have a device each."""
    choose(name, _available(), torch.cuda.device_count(), processes - 1, processes)


def _available() -> dict[str, bool]:
    return {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}


def choose(name: str, available: Mapping[str, bool], n_gpus: int, process: int, processes: int) -> str:
    """The device of a process among those of a run on one machine: cuda:1 of the second. Raises UserError as device."""
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
    """The device of one of the jobs that run side by side on this machine: the GPUs take turns."""
    n_gpus = torch.cuda.device_count() if n_gpus is None else n_gpus
    return f"cuda:{number % n_gpus}" if name in ("auto", "cuda") and n_gpus > 1 else name
