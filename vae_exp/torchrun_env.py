"""What torchrun, or a cluster's launcher, has told this process of its place among those of a run. No torch here."""

import os
import sys


def started() -> int:
    """How many processes were started for one run, this one among them; 1 where there is no launcher."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def follows() -> bool:
    """Whether this is one of the further processes of a run, which leave its files and all telling to the first."""
    return started() > 1 and os.environ["RANK"] != "0"


def here() -> tuple[int, int]:
    """The number of this process among those of the run on its machine, and how many these are."""
    if started() == 1:
        return 0, 1
    return int(os.environ.get("LOCAL_RANK", os.environ["RANK"])), int(
        os.environ.get("LOCAL_WORLD_SIZE", str(started()))
    )


def safe_path() -> dict[str, str]:
    """Return what keeps `python -m vae_exp` from importing modules of the current folder, unless this process does."""
    return {} if sys.path[0] in ("", os.getcwd()) else {"PYTHONSAFEPATH": "1"}  # noqa: PTH109
