"""Where the time of a run goes: functions of vae_exp, timed while it runs, each without what it calls of the others."""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

Clock = Callable[[], float]  # seconds
Functions = list[tuple[Any, str]]  # the module or class that has it, and its name there


@contextlib.contextmanager
def timed(parts: dict[str, Functions], clock: Clock = time.perf_counter) -> Iterator[dict[str, float]]:
    """The seconds spent in the functions of each part, filled in while the block runs.

    A part may call another, such as a checkpoint its write: every second counts once, for the innermost of them.
    """
    spent = dict.fromkeys(parts, 0.0)
    at_work: list[str] = []
    since = clock()

    def change() -> None:
        nonlocal since
        now = clock()
        if at_work:
            spent[at_work[-1]] += now - since
        since = now

    def timed_one(part: str, works: Any) -> Any:
        @functools.wraps(works)
        def call(*args: Any, **kwargs: Any) -> Any:
            change()
            at_work.append(part)
            try:
                return works(*args, **kwargs)
            finally:
                change()
                at_work.pop()

        return call

    with contextlib.ExitStack() as put_back:
        for part, functions in parts.items():
            for owner, name in functions:
                works = getattr(owner, name)
                setattr(owner, name, timed_one(part, works))
                put_back.callback(setattr, owner, name, works)
        yield spent
