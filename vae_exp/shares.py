"""The part of a batch that this process computes, if several compute a run, and how the parts are put together.

Random numbers are drawn for the full batch in every process, and each takes its rows of them: no random state belongs
to one process, and the numbers of a run do not depend on how many there are. A process alone has the full batch.
"""

import itertools
from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vae_exp.distributed import guard_peers, rank, world_size


class Share(NamedTuple):
    """The rows of a batch that each process computes; with one process, all of them."""

    sizes: tuple[int, ...]

    @property
    def parts(self) -> list[slice]:
        """Return the rows of every process."""
        ends = list(itertools.accumulate(self.sizes))
        return [slice(end - rows, end) for end, rows in zip(ends, self.sizes, strict=True)]

    @property
    def rows(self) -> slice:
        """Return the rows of this process."""
        return self.parts[rank() if len(self.sizes) > 1 else 0]

    def local(self, whole: Tensor, dim: int = 0) -> Tensor:
        """Return this process's rows of a tensor that has all of them."""
        if len(self.sizes) == 1:
            return whole
        return whole.narrow(dim, self.rows.start, self.sizes[rank()])

    def gather(self, mine: Tensor, dim: int = 0) -> Tensor:
        """Return the rows of all processes, in order; the gradient of each row goes back to its own process.

        Whatever is computed from them is the same in every process. The gradients of the weights are then a part of
        the sum in each, and all_reduce_gradients adds the parts.
        """
        if len(self.sizes) == 1:
            return mine
        return cast("Tensor", _Gather.apply(mine.movedim(dim, 0), self.sizes)).movedim(0, dim)


def share(n: int) -> Share:
    """Return the shares of a batch of n images, as even as possible."""
    if world_size() == 1:
        return Share((n,))
    ends = [n * done // world_size() for done in range(world_size() + 1)]
    return Share(tuple(end - begin for begin, end in itertools.pairwise(ends)))


class _Gather(torch.autograd.Function):
    """Rows [b, ...] of each process, concatenated to [B, ...]."""

    @staticmethod
    def forward(ctx: Any, mine: Tensor, sizes: tuple[int, ...]) -> Tensor:
        ctx.sizes = sizes
        padded = mine.new_zeros(max(sizes), *mine.shape[1:])
        padded[: len(mine)] = mine
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
    having = [weights for weights in model.parameters() if weights.grad is not None]
    for dtype in sorted({weights.dtype for weights in having}, key=str):  # in one order everywhere
        of_type = [weights for weights in having if weights.dtype == dtype]
        flat = torch.cat([cast("Tensor", weights.grad).flatten() for weights in of_type])
        with guard_peers():
            dist.all_reduce(flat)
        for weights, part in zip(of_type, flat.split([weights.numel() for weights in of_type]), strict=True):
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
    """Set weights and buffers to those of the first process.

    They are the same already, unless a user's own network draws its initial weights from another generator.
    """
    for values in {id(values): values for model in models for values in model.state_dict().values()}.values():
        if world_size() > 1:
            with guard_peers():
                dist.broadcast(values, 0)
