"""The cores that a run may have: what the system allows, what other runs have taken, and what else is busy.

Each run of vae_exp holds a small file in the temporary folder, locked for as long as its process lives: a measured load
alone would not tell of a run that has been started just now. Nothing here imports torch.
"""

import atexit
import contextlib
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import NamedTuple, TextIO

# Turns of a loop that a thread of GNU's OpenMP waits for another before it sleeps; by default 300,000. Meanwhile it
# keeps its core from whom it waits for, where both share it. Beside a busy program two threads did several times as
# many steps of the tutorial with 30,000, and alone as many; with 10,000 alone a tenth less. It only counts where it is
# set before torch is imported.
SPINS = 30_000
CGROUPS = Path("/sys/fs/cgroup")
LEAST_SECONDS, MOST_SECONDS = 0.25, 60.0  # over which the load is measured
_own: TextIO | None = None  # this process's file
_since: "Moment | None" = None  # the load is the mean from here on


def limit_spin() -> None:
    """Let waiting threads give up their core to others sooner, unless the user has set how they wait."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))


def allowed() -> int:
    """Return how many cores this process may use: by its affinity, and by the quota of its container or service."""
    affinity, limit = len(_affinity()), quota()
    return affinity if limit is None else max(1, min(affinity, int(limit)))


def place() -> tuple[str, list[int]]:
    """Return the machine and the cores of this process, which others may use too."""
    return platform.node(), _affinity()


def _affinity() -> list[int]:
    """Return the numbers of the cores that the system gives this process."""
    return sorted(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1))


def quota(cgroups: Path = CGROUPS, membership: Path = Path("/proc/self/cgroup")) -> float | None:
    """Return the cores' worth of time that this process's control groups allow, such as 1.5; None without a limit.

    The group of a service lies below those that contain it, and each may have a limit; a container sees its own on top.
    """
    folders = [cgroups, cgroups / "cpu"]
    with contextlib.suppress(OSError, ValueError):
        for line in membership.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers or "cpu" in controllers.split(","):
                top = cgroups / "cpu" if controllers else cgroups
                below = Path(path.lstrip("/"))
                folders += [top / inner for inner in (below, *below.parents)]
    return min((limit for folder in folders if (limit := _limit(folder)) is not None), default=None)


def _limit(folder: Path) -> float | None:
    """Return the limit in one control group's folder, from cpu.max of version 2 or version 1's two files."""
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        if (folder / "cpu.max").exists():
            granted, period = (folder / "cpu.max").read_text().split()  # "max 100000" where there is no limit
        else:
            granted, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return int(granted) / int(period) if int(granted) > 0 else None
    return None


class Moment(NamedTuple):
    """A time, and the seconds of all cores, and of this process with its children, that were used until then."""

    at: float
    busy: float
    own: float


def moment() -> Moment | None:
    """Return the present moment, or None if the system does not report it."""
    busy = _busy_seconds()
    return None if busy is None else Moment(time.monotonic(), busy, sum(os.times()[:4]))


def busy_with_others() -> float:
    """Return how many cores other processes have kept busy since `announce` or the last call; 0 if unknown.

    It waits until enough time has passed to measure, and measures anew if that moment is long ago.
    """
    global _since
    if _since is None or time.monotonic() - _since.at > MOST_SECONDS:
        _since = moment()
    if _since is not None:
        time.sleep(max(0.0, _since.at + LEAST_SECONDS - time.monotonic()))
    before, _since = _since, moment()
    if before is None or _since is None:
        return 0.0
    return max(0.0, (_since.busy - before.busy - (_since.own - before.own)) / (_since.at - before.at))


def _busy_seconds() -> float | None:
    """Return the seconds that this process's cores have been busy since the machine started; None if unknown.

    Its cores are those of its affinity.
    """
    try:
        mine = {f"cpu{core}" for core in os.sched_getaffinity(0)}
        lines = [line.split() for line in Path("/proc/stat").read_text().splitlines()]
        # user, nice, system, then idle and waiting for the disk, then interrupts; what follows is not of this machine.
        ticks = [sum(map(int, times[:3] + times[5:7])) for name, *times in lines if name in mine]
        return sum(ticks) / os.sysconf("SC_CLK_TCK") if ticks else None
    except (OSError, ValueError, AttributeError):
        return None


def announce() -> None:
    """Tell other runs of this user that one is about to begin here.

    How many threads it will have is not yet known.
    """
    global _own, _since
    _since = _since or moment()
    with contextlib.suppress(OSError, ImportError):  # where files cannot be locked nothing can be told
        import fcntl

        path = _folder() / str(os.getpid())
        if _own is None:
            _own = path.with_suffix(".new").open("w")
            fcntl.flock(_own, fcntl.LOCK_EX)
            path.with_suffix(".new").replace(path)  # nobody finds it unlocked
            atexit.register(withdraw)


def take(threads: int) -> None:
    """Tell other runs how many threads this one has."""
    if _own is not None:
        with contextlib.suppress(OSError):
            _own.seek(0)
            _own.truncate()
            _own.write(str(threads))
            _own.flush()


def withdraw() -> None:
    """Tell other runs that the run of this process is over."""
    global _own
    if _own is not None:
        with contextlib.suppress(OSError):
            Path(_own.name).with_suffix("").unlink(missing_ok=True)
            _own.close()
        _own = None


def other_runs() -> list[int | None]:
    """Return the threads of each other run of this user on this machine.

    The number is None for a run that has not chosen yet.
    """
    found: list[int | None] = []
    with contextlib.suppress(OSError, ImportError):
        import fcntl

        for path in _folder().iterdir():
            if not path.name.isdecimal() or path.name == str(os.getpid()):
                continue
            with contextlib.suppress(OSError), path.open() as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                    path.unlink(missing_ok=True)  # its process is gone
                except BlockingIOError:
                    words = file.read()
                    found.append(int(words) if words.isdecimal() else None)
    return found


def _folder() -> Path:
    """Make and return the folder for this user's runs, which is this user's alone.

    Raises OSError if another user has made it.
    """
    user = os.getuid() if hasattr(os, "getuid") else 0
    folder = Path(tempfile.gettempdir(), f"vae_exp-{user}")
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != user:
        raise PermissionError(folder)
    return folder
