"""The number of threads for the arithmetic of a run: PyTorch would take every core, whoever else computes there.

Threads of two runs that share a core wait for each other busily, and both runs become several times as slow. A sum
over other threads may differ in its last bit, so the number is chosen once, before the first step.
"""

import contextlib
import logging
from collections.abc import Iterator

import torch

from vae_exp.training import cores

log = logging.getLogger(__name__)
# Multiplications and additions of a training step below which a second thread gains nothing: handing work to it costs
# as much as it saves. The tutorial's step has 500 million, that of its network on the 8x8 digits 58 million.
TINY_STEP = 100e6
PASSES = 3  # of a step: forward, and backward to the inputs and to the weights
_bound = 1  # what OMP_NUM_THREADS, or who called, allows
_part: tuple[int, str] | None = None  # of a process beside others: its cores, and how many of what there are


def share(at_once: int, what: str = "jobs") -> None:
    """Give this process, one of the jobs that run side by side, its part of the cores until its run is over."""
    global _part
    shared, beside = (cores.allowed(), "") if _part is None else (_part[0], f", of {_part[1]}")
    _part = max(1, shared // at_once), f"{at_once} {what} at once{beside}"


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Run the block on one thread until it chooses, announced to other runs; then restore its caller's threads."""
    global _bound, _part
    _bound = torch.get_num_threads()
    cores.announce()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        cores.withdraw()
        torch.set_num_threads(_bound)
        _part = None


def choose(asked: int | str, before: int | None, operations: float, device: torch.device) -> None:
    """Set the number of threads and say why.

    `before` is that of the run that goes on, which auto keeps: its numbers stay equal to the bit. `operations` are
    the multiplications and additions of a step. On another device than a CPU auto is what the caller allows.
    """
    if asked == "auto" and before is None and device.type != "cpu":
        torch.set_num_threads(_bound)
        cores.take(1)
        return
    if asked != "auto":
        threads, why = int(asked), "as asked"
    elif before is not None:
        threads, why = before, "as the run began; threads=N changes it, and with it the last digits of its numbers"
    else:
        threads, why = _auto(operations)
    torch.set_num_threads(threads)
    cores.take(threads)
    log.info(f"threads={threads}: {why}")


def _auto(operations: float) -> tuple[int, str]:
    """Return the number of threads, and the reason for it."""
    if operations < TINY_STEP:
        return 1, f"a step of {operations / 1e6:,.0f} million operations gains nothing from more"
    allowed = cores.allowed()
    bounded = f"OMP_NUM_THREADS, or who called, allows no more of {allowed} cores"
    if _part is not None and _part[0] <= _bound:
        return _part[0], f"its part of {allowed} cores, of {_part[1]}"
    if _part is not None:
        return _bound, bounded
    if min(allowed, _bound) == 1:
        return 1, bounded if _bound < allowed else "there is one core"
    others = cores.other_runs()
    busy = busy_beside(others, cores.busy_with_others())
    threads = left(allowed, others, busy)
    if _bound < threads:
        return _bound, bounded
    if threads == allowed:
        return threads, "all cores are free"
    reasons = [f"{len(others)} other run{'s' * (len(others) > 1)}"] * bool(others)
    reasons += [f"other programs on {busy}"] * bool(busy)
    return threads, f"what is left of {allowed} cores beside {' and '.join(reasons)}"


def busy_beside(others: list[int | None], busy: float) -> int:
    """Return how many of the busy cores are busy with programs other than runs.

    Each run is busy on the cores it has taken. A run that is beginning, which has None yet, imports its libraries
    on one core.
    """
    return max(0, round(busy - sum(1 if threads is None else threads for threads in others)))


def left(allowed: int, others: list[int | None], busy: int) -> int:
    """Return the threads for one more run: the cores that others leave, in equal parts with runs that are beginning."""
    free = allowed - busy - sum(threads or 0 for threads in others)
    return max(1, free // (1 + others.count(None)))
