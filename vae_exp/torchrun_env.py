"""The place of this process among those of the run, from torchrun or a cluster's launcher. No torch here."""

import os
import sys


def started() -> int:
    """Return how many processes were started for one run, including this one; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def follows() -> bool:
    """Return whether this is a further process of a run: those leave its files and all messages to the first."""
    return started() > 1 and os.environ["RANK"] != "0"


def local_rank() -> tuple[int, int]:
    """Return the number of this process among those of the run on its machine, and how many there are."""
    if started() == 1:
        return 0, 1
    rank, size = os.environ.get("LOCAL_RANK", os.environ["RANK"]), os.environ.get("LOCAL_WORLD_SIZE", str(started()))
    return int(rank), int(size)


def safe_path() -> dict[str, str]:
    """Return the environment that keeps `python -m vae_exp` from importing modules of the current folder.

    It is empty if this process imports from there itself.
    """
    return {} if sys.path[0] in ("", os.getcwd()) else {"PYTHONSAFEPATH": "1"}  # noqa: PTH109
