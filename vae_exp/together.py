"""One run in several processes, a device each: every batch is shared out, and all of them take the same step.

torch.distributed does the work between them, and torchrun starts them. A process alone has all of a batch, and nothing
here costs it anything. Random numbers are drawn for the whole batch in every process, and each takes its rows of them:
no random state belongs to one process, and the numbers of a run do not depend on how many there are.
"""

import contextlib
import itertools
import logging
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, NamedTuple, ParamSpec, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vae_exp.errors import Lost, UserError
from vae_exp.launched import started

# While the first process downloads data or draws, the others wait. One that is gone is noticed at once.
PATIENCE = timedelta(hours=6)
_rank, _size = 0, 1  # of this process, and of all of them; 1 outside `joined`
P = ParamSpec("P")
T = TypeVar("T")


def size() -> int:
    """The processes of the run."""
    return _size


def is_first() -> bool:
    """Whether the run's folder, its W&B run, its pictures and its terminal belong to this process."""
    return _rank == 0


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Inside, the processes that were started for this run work together. Raises Lost where they do not find another.

    A process group that is there already is used.
    """
    global _rank, _size
    if started() == 1 or _size > 1:
        yield
        return
    is_ours = not dist.is_initialized()
    if is_ours:
        with _reaching():
            dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    _rank, _size = dist.get_rank(), dist.get_world_size()
    package = logging.getLogger("vae_exp")
    level = package.level
    if _rank:
        package.setLevel(logging.ERROR)
    try:
        yield
        if is_ours:  # after an error the others may be gone, or wait elsewhere: the group ends with the process
            dist.destroy_process_group()
    finally:
        _rank, _size = 0, 1
        package.setLevel(level)


@contextlib.contextmanager
def _reaching() -> Iterator[None]:
    """Raises Lost where another process does not answer."""
    try:
        yield
    except dist.DistError as error:
        raise _lost(error) from error
    except RuntimeError as error:  # gloo's
        if not any(sign in str(error) for sign in ("gloo", "onnection", "imed out", "roken pipe")):
            raise
        raise _lost(error) from error


def _lost(error: BaseException) -> Lost:
    reason = str(error).strip().splitlines()[0].rpartition("] ")[2].partition(". ")[0]
    return Lost(f"another of the {started()} processes of this run has ended, or cannot be reached ({reason})")


class Share(NamedTuple):
    """The rows of a batch that each process computes; alone, all of them."""

    sizes: tuple[int, ...]

    @property
    def parts(self) -> list[slice]:
        """The rows of every process."""
        ends = list(itertools.accumulate(self.sizes))
        return [slice(end - rows, end) for end, rows in zip(ends, self.sizes, strict=True)]

    @property
    def rows(self) -> slice:
        """The rows of this process."""
        return self.parts[_rank if len(self.sizes) > 1 else 0]

    def mine(self, whole: Tensor, dim: int = 0) -> Tensor:
        """The rows of this process, of a tensor with all of them."""
        if len(self.sizes) == 1:
            return whole
        return whole.narrow(dim, self.rows.start, self.sizes[_rank])

    def whole(self, mine: Tensor, dim: int = 0) -> Tensor:
        """The rows of all processes, in order; the gradient of each row goes back to its own process.

        Whatever is computed from them is the same in every process. The gradients of the weights are then a part of
        the whole in each, and add_up adds the parts.
        """
        if len(self.sizes) == 1:
            return mine
        return cast("Tensor", _Gather.apply(mine.movedim(dim, 0), self.sizes)).movedim(0, dim)


def share(n: int) -> Share:
    """Of a batch of n images, as even as can be."""
    if _size == 1:
        return Share((n,))
    return Share(tuple(n * (rank + 1) // _size - n * rank // _size for rank in range(_size)))


class _Gather(torch.autograd.Function):
    """Rows [b, ...] of each process, together [B, ...]."""

    @staticmethod
    def forward(ctx: Any, mine: Tensor, sizes: tuple[int, ...]) -> Tensor:
        ctx.sizes = sizes
        padded = mine.new_zeros(max(sizes), *mine.shape[1:])
        padded[: len(mine)] = mine
        parts = [torch.empty_like(padded) for _ in sizes]
        with _reaching():
            dist.all_gather(parts, padded)
        return torch.cat([part[:rows] for part, rows in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return Share(ctx.sizes).mine(gradients[0]), None


def add_up(model: nn.Module) -> None:
    """The gradient of each weight becomes the sum of what the processes have of it."""
    if _size == 1:
        return
    having = [weights for weights in model.parameters() if weights.grad is not None]
    for dtype in {weights.dtype for weights in having}:
        of_type = [weights for weights in having if weights.dtype == dtype]
        flat = torch.cat([cast("Tensor", weights.grad).flatten() for weights in of_type])
        with _reaching():
            dist.all_reduce(flat)
        for weights, part in zip(of_type, flat.split([weights.numel() for weights in of_type]), strict=True):
            weights.grad = part.view_as(weights)


def take_buffers(model: nn.Module) -> None:
    """What layers count in training, such as a batch norm's averages, becomes what the first process has of it."""
    if _size == 1:
        return
    for buffer in model.buffers():
        with _reaching():
            dist.broadcast(buffer, 0)


def mean(values: Tensor) -> Tensor:
    """The mean over the values of all processes, a scalar; no gradient goes through it."""
    if _size == 1:
        return values.mean()
    both = torch.stack([values.sum(), values.new_tensor(float(values.numel()))])
    with _reaching():
        dist.all_reduce(both)
    return both[0] / both[1]


def from_first(make: Callable[[], T]) -> T:
    """What the first process makes, in every process."""
    if _size == 1:
        return make()
    carried: list[Any] = [make() if _rank == 0 else None]
    with _reaching():
        dist.broadcast_object_list(carried)
    return cast("T", carried[0])


def of_all(value: T) -> list[T]:
    """The value of every process, in every process, in order."""
    if _size == 1:
        return [value]
    found: list[Any] = [None] * _size
    with _reaching():
        dist.all_gather_object(found, value)
    return found


@contextlib.contextmanager
def first_goes_first() -> Iterator[None]:
    """The first process does it alone, and then the others: such as to download a dataset, and to find it there."""
    if _rank:
        from_first(lambda: None)
    yield
    if not _rank:
        from_first(lambda: None)


class Silent:
    """In the further processes, what stands for a thing of the first's: whatever is asked of it does nothing."""

    def __getattr__(self, name: str) -> "Silent":
        return self

    def __call__(self, *_: object, **__: object) -> "Silent":
        return self

    def __enter__(self) -> "Silent":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __iter__(self) -> Iterator[Any]:
        return iter(())


def seed_layers(seed: int) -> None:
    """Layers that draw random numbers themselves, such as dropout, draw others in each of the further processes."""
    if _rank:
        torch.manual_seed(seed + _rank)


def of_first(make: Callable[P, T], *arguments: P.args, **settings: P.kwargs) -> T:
    """What is made with these arguments, in the first process; in the others something silent in its place."""
    return make(*arguments, **settings) if _rank == 0 else cast("T", Silent())


def require_asked(devices: int) -> int:
    """How many processes the run has. Raises UserError where as many were not started as devices=N says."""
    if devices == _size or devices == 1:  # torchrun's word needs no second one
        return _size
    if _size == 1:
        raise UserError(
            f"devices={devices}: this is one process. vae-train devices={devices} starts so many, torchrun "
            f"--nproc-per-node={devices} does for a program of your own."
        )
    raise UserError(f"devices={devices}: {_size} processes were started for this run. Leave it out, or say {_size}.")
