"""Run one training over several processes, in the words of torch.distributed; with one process everything is inert."""

import atexit
import contextlib
import itertools
import logging
import os
import platform
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, NamedTuple, ParamSpec, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vae_exp.errors import PeerLost, UserError
from vae_exp.torchrun_env import started

FINDING = timedelta(minutes=5)  # for all processes to come
PATIENCE = timedelta(hours=6)  # with one that is at work: the first downloads data and draws while the others wait
_rank, _size = 0, 1  # of this process, and of all of them; 1 outside `process_group`
P = ParamSpec("P")
T = TypeVar("T")


def rank() -> int:
    return _rank


def world_size() -> int:
    return _size


def is_rank0() -> bool:
    """Return whether this process owns the run's folder, its W&B run, its pictures and its terminal."""
    return _rank == 0


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Run the block with all processes of the run connected. Raises PeerLost, or UserError if they cannot be found."""
    global _rank, _size
    if started() == 1 or _size > 1:
        yield
        return
    if not dist.is_initialized():
        _find_each_other()
    _rank, _size = dist.get_rank(), dist.get_world_size()
    package = logging.getLogger("vae_exp")
    level = package.level
    if _rank:
        package.setLevel(logging.ERROR)
    try:
        yield
    finally:
        _rank, _size = 0, 1
        package.setLevel(level)


def _find_each_other() -> None:
    cuda = torch.cuda.is_available() and dist.is_nccl_available()
    try:
        with guard_peers():
            store, rank, size = next(dist.rendezvous("env://", timeout=FINDING))
            store.set(f"vae_exp/{rank}", "here")
            store.wait([f"vae_exp/{other}" for other in range(size)], FINDING)
            backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
            dist.init_process_group(
                backend, store=dist.PrefixStore("run", store), rank=rank, world_size=size, timeout=PATIENCE
            )
    except ValueError as error:
        raise UserError(
            f"RANK={os.environ['RANK']} and WORLD_SIZE={os.environ['WORLD_SIZE']} are set, so this is one of several "
            f"processes of a run, and: {error}. torchrun sets all that is needed; without these two it is a run alone."
        ) from error
    atexit.register(dist.destroy_process_group)  # kept until then, for a next run of the same processes


def wait_for_rank0() -> None:
    """Wait, in a further process, until the first has ended, which all have agreed to."""
    with contextlib.suppress(RuntimeError):
        if dist.is_initialized():
            dist.broadcast_object_list([None])  # which the first does not send: that it is gone is noticed


@contextlib.contextmanager
def guard_peers() -> Iterator[None]:
    """Raise PeerLost if another process does not answer."""
    try:
        yield
    except RuntimeError as error:  # gloo's are of no kind of their own
        is_gloos = any(sign in str(error) for sign in ("gloo", "onnection", "imed out", "roken pipe"))
        if not is_gloos and not isinstance(error, dist.DistError):
            raise
        reason = str(error).strip().splitlines()[0].rpartition("] ")[2].partition(". ")[0]
        raise PeerLost(
            f"another of the {started()} processes of this run has ended, or cannot be reached ({reason})"
        ) from error


def broadcast(make: Callable[[], T]) -> T:
    """Return in every process what `make` returns in the first."""
    if _size == 1:
        return make()
    values: list[Any] = [make() if _rank == 0 else None]
    with guard_peers():
        dist.broadcast_object_list(values)
    return cast("T", values[0])


def all_gather(value: T) -> list[T]:
    if _size == 1:
        return [value]
    values: list[Any] = [None] * _size
    with guard_peers():
        dist.all_gather_object(values, value)
    return values


def processes_here() -> int:
    """Return how many processes of the run, this one included, have its machine and its cores."""
    machine = platform.node(), sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return all_gather(machine).count(machine)


@contextlib.contextmanager
def rank0_first() -> Iterator[None]:
    """Run the block in the first process alone, and then in the others: to download a dataset, and to find it there."""
    if _rank:
        broadcast(lambda: None)
    yield
    if not _rank:
        broadcast(lambda: None)


class NullObject:
    """The stand-in, in the further processes, for an object of the first: every call on it does nothing."""

    def __getattr__(self, name: str) -> "NullObject":
        return self

    def __call__(self, *_: object, **__: object) -> "NullObject":
        return self

    def __enter__(self) -> "NullObject":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __iter__(self) -> Iterator[Any]:
        return iter(())


def seed_layers(seed: int) -> None:
    """Seed layers that draw random numbers, such as dropout, differently in each of the further processes."""
    if _rank:
        torch.manual_seed(seed + _rank)


def rank0_only(make: Callable[P, T], *arguments: P.args, **settings: P.kwargs) -> T:
    """Return what `make` returns for these arguments in the first process, and a NullObject in the others."""
    return make(*arguments, **settings) if _rank == 0 else cast("T", NullObject())


class Share(NamedTuple):
    """The rows of a batch that each process computes; with one process, all of them."""

    sizes: tuple[int, ...]

    @property
    def parts(self) -> list[slice]:
        ends = list(itertools.accumulate(self.sizes))
        return [slice(end - rows, end) for end, rows in zip(ends, self.sizes, strict=True)]

    @property
    def rows(self) -> slice:
        return self.parts[rank() if len(self.sizes) > 1 else 0]

    def local(self, full: Tensor, dim: int = 0) -> Tensor:
        """Return this process's rows of a tensor that has all of them."""
        return full.narrow(dim, self.rows.start, self.sizes[rank()]) if len(self.sizes) > 1 else full

    def gather(self, local: Tensor, dim: int = 0) -> Tensor:
        """Return the rows of all processes, in order; the gradient of each row goes back to its own process."""
        if len(self.sizes) == 1:
            return local
        return cast("Tensor", _Gather.apply(local.movedim(dim, 0), self.sizes)).movedim(0, dim)


def share(n: int) -> Share:
    """Return the shares of a batch of n images, as even as possible."""
    if world_size() == 1:
        return Share((n,))
    ends = [n * done // world_size() for done in range(world_size() + 1)]
    return Share(tuple(end - begin for begin, end in itertools.pairwise(ends)))


class _Gather(torch.autograd.Function):
    """Rows [b, ...] of each process, concatenated to [B, ...]."""

    @staticmethod
    def forward(ctx: Any, local: Tensor, sizes: tuple[int, ...]) -> Tensor:
        ctx.sizes = sizes
        padded = local.new_zeros(max(sizes), *local.shape[1:])
        padded[: len(local)] = local
        parts = [torch.empty_like(padded) for _ in sizes]
        with guard_peers():
            dist.all_gather(parts, padded)
        return torch.cat([part[:rows] for part, rows in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return Share(ctx.sizes).local(gradients[0]), None


def all_reduce_gradients(model: nn.Module) -> None:
    """Replace the gradient of each weight by its sum over the processes."""
    if world_size() == 1:
        return
    trained = [weights for weights in model.parameters() if weights.grad is not None]
    for dtype in sorted({weights.dtype for weights in trained}, key=str):  # in one order everywhere
        same_dtype = [weights for weights in trained if weights.dtype == dtype]
        flat = torch.cat([cast("Tensor", weights.grad).flatten() for weights in same_dtype])
        with guard_peers():
            dist.all_reduce(flat)
        for weights, part in zip(same_dtype, flat.split([weights.numel() for weights in same_dtype]), strict=True):
            weights.grad = part.view_as(weights)


def mean(values: Tensor) -> Tensor:
    """Return the mean over the values of all processes, a scalar; no gradient goes through it."""
    if world_size() == 1:
        return values.mean()
    both = torch.stack([values.sum(), values.new_tensor(float(values.numel()))])
    with guard_peers():
        dist.all_reduce(both)
    return both[0] / both[1]


def broadcast_weights(*models: nn.Module) -> None:
    """Set weights and buffers to the first process's: a user's network may draw them from a generator of its own."""
    for values in {id(values): values for model in models for values in model.state_dict().values()}.values():
        if world_size() > 1:
            with guard_peers():
                dist.broadcast(values, 0)
