"""How many threads the arithmetic of a run has: PyTorch would take every core, whoever else computes there.

Threads of two runs that share a core wait for each other busily, and both runs become several times as slow. A sum
over other threads may differ in its last bit, so the number is chosen once, before the first step.
"""

import contextlib
import logging
from collections.abc import Iterator

import torch

from vae_exp.run import cores

log = logging.getLogger(__name__)
# Multiplications and additions of a training step below which a second thread gains nothing: handing work to it costs
# as much as it saves. The tutorial's step has 500 million, that of its network on the 8x8 digits 58 million.
TINY_STEP = 100e6
PASSES = 3  # of a step: forward, and backward to the inputs and to the weights
_part: tuple[int, int] | None = None  # of a job that runs beside others of its sweep: its cores, and how many such jobs


def share(jobs_at_once: int) -> None:
    """Of jobs that run side by side in as many processes this is one: it has its part of the cores, and no other."""
    global _part
    _part = max(1, cores.allowed() // jobs_at_once), jobs_at_once


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Around a run: other runs know of it while it lasts, and its caller then has as many threads as before."""
    before = torch.get_num_threads()
    cores.announce()
    try:
        yield
    finally:
        cores.withdraw()
        torch.set_num_threads(before)


def choose(asked: int | str, before: int | None, operations: float, device: torch.device) -> None:
    """Set the number of threads and say why.

    `before` is that of the run that goes on, which auto keeps: its numbers stay equal to the bit. `operations` are
    the multiplications and additions of a step. On another device than a CPU auto leaves the number as it is.
    """
    if asked == "auto" and before is None and device.type != "cpu":
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
    """The number of threads, and why it is that."""
    if operations < TINY_STEP:
        return 1, f"a step of {operations / 1e6:,.0f} million operations gains nothing from more"
    allowed, bound = cores.allowed(), torch.get_num_threads()
    if _part is not None and _part[0] <= bound:
        return _part[0], f"its part of {allowed} cores, of {_part[1]} jobs at once"
    most = min(allowed, bound)
    if _part is not None or most == 1:
        return most, "OMP_NUM_THREADS, or who called, allows no more" if bound < allowed else "there is one core"
    others = cores.other_runs()
    taken = sum(number or 0 for number in others)
    beginning = others.count(None)
    # The load of other runs is in what they have taken, and one that begins keeps a core busy.
    busy = round(max(0.0, cores.busy_with_others() - taken - beginning))
    threads = max(1, min(bound, (allowed - taken - busy) // (1 + beginning)))
    if threads == allowed:
        return threads, "all cores are free"
    reasons = [f"{len(others)} other run{'s' * (len(others) > 1)}"] * bool(others)
    reasons += [f"other programs on {busy}"] * bool(busy)
    if not reasons:
        return threads, f"OMP_NUM_THREADS, or who called, allows no more of {allowed} cores"
    return threads, f"what is left of {allowed} cores, beside {' and '.join(reasons)}"
