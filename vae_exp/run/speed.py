"""How the step is computed: in which precision, and compiled where that pays."""

import contextlib
import logging
import os
import shlex
import shutil
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from vae_exp.errors import UserError

log = logging.getLogger(__name__)
# Steps of a whole run from which on compile=auto compiles on a CPU. Compiling takes about half a minute, and the
# tutorial's step is 1 ms shorter afterwards. Not counted in epochs left, so that a resumed run does the same.
PAYS_FROM_STEPS = 30_000


def check(precision: str, compiles: bool | str, device: torch.device) -> None:
    """Raises UserError for a precision that the device does not have, or a step that nothing here can compile."""
    if precision == "tf32" and device.type != "cuda":
        raise UserError(f"precision=tf32: a format of NVIDIA's GPUs, and this run is on {device}. Use fp32 or bf16.")
    if compiles is True and (missing := missing_for_compiling()):
        raise UserError(f"compile=true: PyTorch needs {missing}, which is not there. Use compile=false.")


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Set how float32 products are computed, and return the context in which a step's networks are run.

    fp32 is float32 throughout; tf32 rounds what matrix products and convolutions multiply to 10 bits; bf16 computes
    them in bfloat16. Weights, densities, the KL and, by exact_products, every measured number stay float32.
    """
    _allow_tf32(precision == "tf32")
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


@contextlib.contextmanager
def exact_products() -> Iterator[None]:
    """Float32 products in float32, whatever was set before: numbers that are compared must not depend on precision."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    _allow_tf32(False)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def _allow_tf32(allowed: bool) -> None:
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed  # PyTorch allows it to convolutions even where not asked


@contextlib.contextmanager
def without_subnormals() -> Iterator[None]:
    """Flush subnormal numbers, below float32's 1.2e-38, to zero where the processor can; no result depends on them.

    Adam's mean gradient of a dead unit's weights decays to such numbers and stays there. A quarter of the tutorial's
    were at the end, and arithmetic with them can take a processor a hundred times as long. PyTorch's threads inherit
    this setting when they start: it must come before the first operation that is shared among them.
    """
    before = (torch.tensor(1e-40) * 1).item() == 0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def compiled(
    step: Callable[..., Any], compiles: bool | str, device: torch.device, steps: int, interrupted: Callable[[], None]
) -> Callable[..., Any]:
    """The same function, compiled where that is asked for or, with auto, where a run of so many steps gains by it.

    Raises UserError where the compiler fails, except with auto, which then goes on without. `interrupted` is called
    first: it raises where it was Ctrl-C that made the compiler fail.
    """
    if compiles == "auto":
        if device.type != "cpu" or steps < PAYS_FROM_STEPS:
            log.info(f"not compiled: that pays on a CPU from {PAYS_FROM_STEPS:,} steps on ({steps:,} here)")
            return step
        if missing := missing_for_compiling():
            log.info(f"not compiled, for want of {missing}")
            return step
    if compiles is False:
        return step
    log.info("the first step compiles: up to a minute, and a few seconds where it has been done before on this machine")
    torch.compiler.reset()  # else the jobs of a sweep together reach PyTorch's limit of recompilations
    fast = torch.compile(step)

    def step_or_reason(*arguments: Any) -> Any:
        nonlocal fast
        try:
            return fast(*arguments)
        except torch._dynamo.exc.TorchDynamoException as error:
            interrupted()
            reason = f"PyTorch's compiler fails ({str(error).strip().splitlines()[0]})"
            if compiles is True:
                raise UserError(f"compile=true: {reason}. Use compile=false.") from error
            log.warning(f"not compiled: {reason}")
            fast = step
            return step(*arguments)

    return step_or_reason


def missing_for_compiling() -> str | None:
    """What PyTorch needs for compiling and does not find: a C++ compiler or Python's headers."""
    usual = {"win32": "cl", "darwin": "clang++"}.get(sys.platform, "g++")
    compiler = (shlex.split(os.environ.get("CXX", "")) or [usual])[0]
    if not shutil.which(compiler):
        return f"a C++ compiler ({compiler})"
    header = Path(sysconfig.get_path("include")) / "Python.h"
    return None if header.exists() else f"{header} (Debian and Ubuntu: apt install python3-dev)"
