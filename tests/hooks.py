"""Where tests step into a run: an objective, a schedule and a dataset of one's own, and the system's own calls.

These are doors that every user has, so a test says nothing of how vae_exp is written inside.
"""

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

from vae_exp import datasets, objectives, schedules
from vae_exp.datasets import Source
from vae_exp.terms import Progress, Terms

OWN_OBJECTIVE = "objective._target_=tests.hooks.elbo"
OWN_SCHEDULE = "scheduler._target_=tests.hooks.constant"
OWN_DATASET = "dataset._target_=tests.hooks.digits"

_in_step: list[Callable[[int, Terms], Terms | None]] = []
_at_epoch: list[Callable[[float], float]] = []
_at_test: list[Callable[[], None]] = []
_at_call: list[Callable[[str, tuple], None]] = []


class Crash(BaseException):
    """As abrupt as a kill: nothing in the code catches it."""


def elbo(terms: Terms, now: Progress, **settings: Any) -> Any:
    """The ELBO, with what a test does in the middle of step now.step + 1."""
    for act in _in_step if len(terms.reconstruction) > 2 else ():  # two images are the trial before the first step
        terms = act(now.step + 1, terms) or terms
    return objectives.elbo(terms, now, **settings)


def constant(epoch: float, epochs: int) -> float:
    """The factor on the learning rate, as a test wants it."""
    return _at_epoch[0](epoch) if _at_epoch else schedules.constant(epoch, epochs)


def digits(name: str) -> Source:
    """The digits, with what a test does when the test split is read."""
    source = datasets.digits(name)

    def read_test() -> datasets.Split:
        for act in _at_test:
            act()
        return read()

    read, source.read_test = source.read_test, read_test
    return source


@contextlib.contextmanager
def _while(acts: list, act: Callable) -> Iterator[None]:
    acts.append(act)
    try:
        yield
    finally:
        acts.remove(act)


def in_step(act: Callable[[int, Terms], Terms | None]) -> contextlib.AbstractContextManager:
    """act(step, terms) in the middle of each step of runs with OWN_OBJECTIVE; it may return other terms."""
    return _while(_in_step, act)


def at_step(step: int, act: Callable[[], object]) -> contextlib.AbstractContextManager:
    """act() in the middle of this step, counted from the start of the run."""

    def once(now: int, terms: Terms) -> None:
        if now == step:
            act()

    return in_step(once)


def crash_at(step: int) -> contextlib.AbstractContextManager:
    """The process dies in the middle of this step."""

    def crash() -> None:
        raise Crash

    return at_step(step, crash)


def learning_rate(factor: Callable[[float], float]) -> contextlib.AbstractContextManager:
    """The factor on the learning rate at a fractional epoch, of runs with OWN_SCHEDULE."""
    return _while(_at_epoch, factor)


def when_test_is_read(act: Callable[[], None]) -> contextlib.AbstractContextManager:
    """act() when the test split is read, of runs with OWN_DATASET."""
    return _while(_at_test, act)


def at_call(act: Callable[[str, tuple], None]) -> contextlib.AbstractContextManager:
    """act(event, arguments) at each call to the system that Python tells of: open, os.rename, os.mkdir, ..."""
    _listen()
    return _while(_at_call, act)


@functools.cache
def _listen() -> None:
    """Python tells of its calls from the first time that a test asks; all others would pay for it too."""

    def tell(event: str, arguments: tuple) -> None:
        for act in _at_call:
            act(event, arguments)

    sys.addaudithook(tell)
