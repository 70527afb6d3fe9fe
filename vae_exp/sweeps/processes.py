"""Jobs in processes of their own: the sweep tells how each ended, and its workers end when it is killed."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vae_exp.errors import UserError
from vae_exp.files import read_text
from vae_exp.sweeps.plan import Plan
from vae_exp.torchrun_env import safe_path
from vae_exp.training import cores
from vae_exp.training.console import say
from vae_exp.training.folder import LOCK, SUMMARY, Summary, read_summary, require_no_owner, runs_below

LAUNCHED_BY = "VAE_EXP_LAUNCHED_BY"  # in the environment of processes that another started for its jobs or its run
POLL_SECONDS = 0.5


@contextlib.contextmanager
def report_jobs(planned: Plan, launcher: str, n_jobs: int | None) -> Iterator[None]:
    """Print a line for each job that ends, read from its folder, while the block runs jobs in other processes."""
    if launcher == "basic" or (launcher == "joblib" and n_jobs == 1):  # jobs in this process speak for themselves
        yield
        return
    added = {name: value for name, value in safe_path().items() if name not in os.environ}
    if launcher == "joblib":
        # Joblib sets what is not set of these, and to 1 also where there are few jobs.
        most = os.environ.get("OMP_NUM_THREADS", str(cores.allowed()))
        added |= {name: most for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if name not in os.environ}
        added[LAUNCHED_BY] = str(os.getpid())
    os.environ.update(added)
    over = threading.Event()
    teller = threading.Thread(target=_tell_of_jobs, args=(planned, over), daemon=True)
    teller.start()
    try:
        yield
    finally:
        over.set()
        teller.join()
        for name in added:
            os.environ.pop(name, None)


def places(of_hydra: Any) -> int:
    """Return how many jobs joblib runs at once: n_jobs, from all cores down if negative; other launchers run one."""
    n_jobs = of_hydra.launcher.get("n_jobs") or 1
    return n_jobs if n_jobs > 0 else max(1, cores.allowed() + 1 + n_jobs)


def tell(text: str) -> None:
    """Print a text, unless the process that started this one does: lines of parallel jobs would mix."""
    if not _launcher():
        say(text)


def _tell_of_jobs(planned: Plan, over: threading.Event) -> None:
    began, ended = time.monotonic(), 0
    known = {folder: _written_at(folder) for folder in runs_below(planned.folder)}
    for folder in sorted(known):
        if (summary := read_summary(folder)) is not None and summary.is_done:
            say(f"{folder.name}  already {summary.state}")
    is_last = False
    while not is_last:
        is_last = over.wait(POLL_SECONDS)  # once more after the last job has ended
        summaries = {folder: read_summary(folder) for folder in runs_below(planned.folder)}
        done = sum(summary is not None and summary.is_done for summary in summaries.values())
        for folder, summary in summaries.items():
            written = _written_at(folder)
            if summary is None or summary.state == "running" or known.get(folder) == written:
                continue
            known[folder], ended = written, ended + 1
            failed = sum(summary is not None and summary.state == "failed" for summary in summaries.values())
            left = (time.monotonic() - began) / ended * (planned.jobs - done - failed)
            say(f"{folder.name}  {_ending(summary)}    {done} of {planned.jobs} done{time_left(left)}")


def time_left(seconds: float) -> str:
    """Return a text such as ", about 2 min left", empty if no time is left."""
    if seconds <= 0:
        return ""
    return f", about {seconds / 60:.0f} min left" if seconds >= 90 else f", about {seconds:.0f} s left"


def _ending(summary: Summary) -> str:
    if not summary.is_done:
        return f"{summary.state}: {summary.reason}"
    pruned = "" if summary.finished else f"  {summary.state}"
    return f"neg_elbo {summary.score:.3f}  {summary.seconds:.1f} s{pruned}" if summary.score is not None else "finished"


def _written_at(folder: Path) -> int:
    with contextlib.suppress(OSError):
        return (folder / SUMMARY).stat().st_mtime_ns
    return 0


def is_worker() -> bool:
    """Return whether this is a process that joblib started for the jobs of a sweep."""
    return _launcher() is not None


def _launcher() -> int | None:
    """Return the id of the process that started this one for its jobs or its run, or None in any other process."""
    pid = os.environ.get(LAUNCHED_BY)
    return int(pid) if pid and int(pid) != os.getpid() else None


@contextlib.contextmanager
def ends_with_its_launcher() -> Iterator[None]:
    """Run the block, a run; if the process that started this one is gone, save as for SIGTERM and end.

    Otherwise joblib's workers would train on for nobody when their sweep is killed, and the processes of a run too.
    """
    launcher = _launcher()
    if launcher is None:
        yield
        return
    over = threading.Event()

    def watch() -> None:
        while not over.wait(POLL_SECONDS):
            if os.getppid() != launcher:
                os.kill(os.getpid(), signal.SIGTERM)
                return

    threading.Thread(target=watch, daemon=True).start()
    try:
        if os.getppid() == launcher:
            yield
    finally:
        over.set()
        if os.getppid() != launcher:
            sys.stdout.flush()  # joblib would go on to the next job that it holds, or wait for one
            os._exit(128 + signal.SIGTERM)


def join_tasks() -> None:
    """Set, for a job that submitit runs in several tasks, the environment that torchrun would have set in each."""
    from submitit import JobEnvironment
    from submitit.helpers import TorchDistributedEnvironment

    if JobEnvironment().num_tasks > 1:  # each with all GPUs in sight, of which it takes its own
        TorchDistributedEnvironment().export(overwrite=True, set_cuda_visible_devices=False)


def has_owner(folder: Path) -> bool:
    """Return whether another process trains in the folder."""
    try:
        require_no_owner(folder)
    except UserError:
        return True
    return False


def wait_for_owner(folder: Path) -> None:
    """Wait until no other process trains in the folder: one that outlived its sweep saves, or finishes."""
    told = False
    while has_owner(folder):
        if not told:
            with contextlib.suppress(OSError):
                pid = read_text(folder / LOCK).strip() or "?"
                say(f"waits for process {pid}, which trains in {folder}")
                told = True
        time.sleep(POLL_SECONDS)
