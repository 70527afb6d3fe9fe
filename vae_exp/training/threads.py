"""Choose the number of CPU threads of a run: PyTorch would take every core, whoever else computes there.

Threads of two runs that share a core wait for each other busily, and both become several times as slow. A sum over
other threads may differ in its last bit, so the number is chosen once. Nothing imports torch before a run does.
"""

import atexit
import contextlib
import functools
import gc
import logging
import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from vae_exp.config.schema import Config
    from vae_exp.training.checkpoints import Checkpoint

log = logging.getLogger(__name__)
# Multiplications and additions of a training step below which a second thread gains nothing: handing work to it costs
# as much as it saves. The tutorial's step has 500 million, that of its network on the 8x8 digits 58 million.
TINY_STEP = 100e6
PASSES = 3  # of a step: forward, and backward to the inputs and to the weights
# Turns of a loop that a thread of GNU's OpenMP waits for another before it sleeps, by default 300,000. Meanwhile it
# keeps its core from whom it waits for, where both share it. It only counts where it is set before torch is imported.
SPINS = 30_000
LOOKS, LOOK_SECONDS = 5, 0.05  # at what else runs: one look alone may catch a process that wakes for a moment
_bound = 1  # what OMP_NUM_THREADS, or the caller, allows
_share: tuple[int, str] | None = None  # the cores of a process beside others, and why


def limit_spin() -> None:
    """Let waiting threads give up their core to others sooner, unless the user has set how they wait."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))


@functools.cache
def end_quickly() -> None:
    """Let this process end without looking for garbage, which takes 0.4 s once torch is imported."""
    atexit.register(gc.freeze)


def available_cores() -> int:
    """Return how many cores this process may use: by its affinity, and by the quota of its container."""
    from joblib import cpu_count  # type: ignore[import-untyped]

    return cpu_count()


def busy_cores() -> int:
    """Return how many threads of other processes run or want to run at this moment; 0 if the system does not tell."""
    looks = []
    with contextlib.suppress(OSError, ValueError, IndexError):
        for _ in range(LOOKS):
            running, _, _ = Path("/proc/loadavg").read_text().split()[3].partition("/")
            looks.append(int(running) - 1)  # this process itself runs while it looks
            time.sleep(LOOK_SECONDS)
    return int(statistics.median(looks)) if looks else 0


def share(n: int, what: str = "jobs") -> None:
    """Give this process, one of n that compute side by side, its part of the cores until its run is over."""
    global _share
    cores = available_cores() if _share is None else _share[0]
    _share = max(1, cores // n), f"its part of {available_cores()} cores, of {n} {what} at once"


@contextlib.contextmanager
def restored() -> Iterator[None]:
    """Run the block on one thread until it chooses, and then restore its caller's number of threads."""
    import torch

    global _bound, _share
    _bound = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(_bound)
        _share = None


def choose(config: "Config", resumed: "Checkpoint | None", operations: float, device: "torch.device") -> None:
    """Set the number of threads of a run and log why; `operations` are those of a forward pass."""
    import torch

    previous = None
    if resumed and resumed.resume and resumed.config["devices"] == config["devices"]:
        previous = resumed.resume.facts.threads
    if config["threads"] != "auto":
        threads, why = int(config["threads"]), "as asked"
    elif previous is not None:
        threads, why = previous, "as the run began; threads=N changes it, and with it the last digits of its numbers"
    elif device.type == "cpu":
        threads, why = _auto(PASSES * operations)
    else:
        torch.set_num_threads(_bound)
        return
    torch.set_num_threads(threads)
    log.info(f"threads={threads}: {why}")


def _auto(operations: float) -> tuple[int, str]:
    if operations < TINY_STEP:
        return 1, f"a step of {operations / 1e6:,.0f} million operations is too small for more threads to help"
    cores = available_cores()
    if _share is not None:
        threads, why = _share
    else:
        # Of the whole machine: another's load may be on cores that are not this process's.
        free = (os.cpu_count() or cores) - (busy_cores() if min(cores, _bound) > 1 else 0)
        threads = max(1, min(cores, free))
        why = "all cores are free" if threads == cores else f"what other programs leave of {cores} cores"
    if cores == 1:
        return 1, "there is one core"
    if threads > _bound:
        limit = "OMP_NUM_THREADS" if "OMP_NUM_THREADS" in os.environ else "the calling program"
        return _bound, f"limited to {_bound} thread{'s' * (_bound > 1)} by {limit} ({cores} cores available)"
    return threads, why
