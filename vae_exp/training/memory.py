"""Memory that is too small: reported before it is tried if that can be known, and explained if it cannot."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import torch

from vae_exp.config import build
from vae_exp.config.keys import Config
from vae_exp.errors import UserError

COPIES = 4  # of each weight: itself, its gradient and Adam's two moments


@contextlib.contextmanager
def explain_out_of_memory(config: Config) -> Iterator[None]:
    """Raise UserError, with what can be made smaller, if PyTorch runs out of memory inside the block."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not _is_out_of_memory(error):
            raise
        lines = str(error).strip().splitlines()
        half, odd = divmod(config["batch_size"], 2)
        the_same = "" if odd else f" accumulate_steps={2 * config['accumulate_steps']}, which makes the same steps"
        raise UserError(
            f"out of memory with batch_size={config['batch_size']}, model.z_dim={config['model']['z_dim']} and "
            f"device={config['device']} ({lines[0] if lines else 'MemoryError'}). Try batch_size="
            f"{max(1, half)}{the_same}, a smaller network or model.z_dim, or, where the images are large, a smaller "
            "dataset.device_memory, which streams them."
        ) from error


def check_model(config: Config, x_shape: tuple[int, int, int], n_classes: int, device: torch.device) -> None:
    """Raise UserError if the weights and what training keeps beside them need more than all of the memory.

    The model is built without its numbers, so this costs nothing however large it is.
    """
    too_large = "lower model.z_dim, network.hidden_dims or network.channels"
    try:
        with torch.device("meta"):
            weights = sum(
                tensor.numel() * tensor.element_size()
                for tensor in build.model(config, x_shape, n_classes).parameters()
            )
    except (RuntimeError, OverflowError, TypeError) as error:
        if "overflow" not in str(error).lower() and "invalid combination" not in str(error).lower():
            raise
        raise UserError(f"model.z_dim={config['model']['z_dim']}: the model is too large; {too_large}.") from error
    memory = _free(device)
    copies, free = COPIES + (config["ema"] is not None), " free" if device.type == "cuda" else ""
    if memory is not None and copies * weights > memory:
        raise UserError(
            f"model.z_dim={config['model']['z_dim']}: to train this model takes {copies * weights / 1e9:,.1f} GB for "
            f"its weights alone, and {device} has {memory / 1e9:,.1f} GB{free}; {too_large}."
        )


def _is_out_of_memory(error: RuntimeError) -> bool:
    text = str(error).lower()
    signs = ("can't allocate memory", "out of memory", "_status_alloc_failed")  # the last of cuBLAS and cuDNN
    return isinstance(error, torch.OutOfMemoryError) or any(sign in text for sign in signs)


def _free(device: torch.device) -> int | None:
    """Return the bytes of memory that a GPU has free, or else that this process may use in all.

    It is None if that is not known.
    """
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by PyTorch, for what comes
        return torch.cuda.mem_get_info(device)[0] + kept
    known = []
    with contextlib.suppress(OSError, ValueError, AttributeError):
        known.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with contextlib.suppress(OSError, ValueError):  # of a container; "max" where there is no limit
        known.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(known, default=None)
