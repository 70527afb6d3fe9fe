"""Take optimizer steps without the Python around them, which a small model's step would wait for."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer
from torch.optim import optimizer as of_all  # whose hooks are those of all optimizers


def step_of(optimizer: Optimizer) -> Callable[[], object]:
    """Return what takes a step of the optimizer: its own method, or where it is fused Adam or AdamW, the kernel alone.

    The kernel gets what PyTorch's method gives it, so the weights are the same to the bit; the method spends as long on
    collecting that anew at each step as the kernel needs for the tutorial's network on 8x8 digits. Of PyTorch's other
    optimizers it is the method without what is around it: hooks, of which there are none, a profiler's mark, and
    for the compiler, which never sees it, an import of 1.2 seconds.
    """
    if not _is_pytorchs(optimizer):
        return optimizer.step
    method = torch.no_grad()(functools.partial(inspect.unwrap(type(optimizer).step), optimizer))
    kernel = _kernel(optimizer)
    if kernel is None:
        return method
    known: object = None  # the optimizer's state, which a checkpoint that is loaded takes the place of
    steps = torch.tensor(0.0)
    lists: list[list[Tensor]] = []

    def step() -> None:
        nonlocal known, steps, lists
        group = optimizer.param_groups[0]
        params: list[Tensor] = group["params"]
        grads = [weights.grad for weights in params]
        if optimizer.state is not known or any(grad is None for grad in grads):
            method()  # the first makes the state
            states = [optimizer.state.get(weights, {}) for weights in params]
            if all(states):
                known, steps = optimizer.state, _count_together(states)
                lists = [[each[name] for each in states] for name in ("exp_avg", "exp_avg_sq", "step")]
            return
        exp_avgs, exp_avg_sqs, each_step = lists
        beta1, beta2 = group["betas"]
        with torch.no_grad():
            steps += 1
            kernel(
                params, grads, exp_avgs, exp_avg_sqs, [], each_step, amsgrad=False, lr=group["lr"], beta1=beta1,
                beta2=beta2, weight_decay=group["weight_decay"], eps=group["eps"], maximize=group["maximize"],
                grad_scale=None, found_inf=None,
            )  # fmt: skip

    return step


def _is_pytorchs(optimizer: Optimizer) -> bool:
    """Return whether it is one of PyTorch's classes, and nothing else is to happen at a step."""
    if not type(optimizer).__module__.startswith("torch.optim."):
        return False
    hooks = (
        *(optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks),
        *(of_all._global_optimizer_pre_hooks, of_all._global_optimizer_post_hooks),
    )
    is_differentiable = any(group.get("differentiable") for group in optimizer.param_groups)
    return not ("step" in vars(optimizer) or any(hooks) or is_differentiable)


def _kernel(optimizer: Optimizer) -> Callable[..., Any] | None:
    """Return the kernel that is all of this optimizer's step, or None if there is more to it, or no such kernel."""
    if type(optimizer) not in (Adam, AdamW) or len(optimizer.param_groups) != 1:
        return None
    group = optimizer.param_groups[0]
    kinds = {(weights.device, weights.dtype) for weights in group["params"]}
    is_plain = group.get("fused") and not group.get("amsgrad") and not group.get("capturable")
    if not is_plain or len(kinds) != 1 or any(weights.is_complex() for weights in group["params"]):
        return None
    is_decoupled = group.get("decoupled_weight_decay", type(optimizer) is AdamW)
    return getattr(torch, "_fused_adamw_" if is_decoupled else "_fused_adam_", None)


def _count_together(states: list[dict[str, Tensor]]) -> Tensor:
    """Make the counts of steps, one for each tensor of weights, parts of one tensor, and return it, to add to all."""
    steps = torch.stack([state["step"] for state in states])
    for state, count in zip(states, steps, strict=True):
        state["step"] = count
    return steps
