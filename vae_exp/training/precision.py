"""Precision, compilation and determinism of the arithmetic."""

import contextlib
import importlib.util
import logging
import os
import shlex
import shutil
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from vae_exp.config.schema import Config
from vae_exp.errors import UserError, first_line
from vae_exp.training.checkpoints import Checkpoint

log = logging.getLogger(__name__)
Step = Callable[..., Any]
_cudnn: Any = torch.backends.cudnn  # its types leave out what is set by operation


def check(precision: str, compiles: bool | str, device: torch.device) -> None:
    """Raise UserError for a precision that the device lacks, or a step that nothing here can compile."""
    if precision == "tf32" and device.type != "cuda":
        raise UserError(f"precision=tf32: a format of NVIDIA's GPUs, and this run is on {device}. Use fp32 or bf16.")
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        gpu = torch.cuda.get_device_name(device)
        raise UserError(f"precision=bf16: {gpu} has no bfloat16 of its own, and emulates it slowly. Use fp32.")
    if compiles is True and (missing := missing_for_compiling(device)):
        raise UserError(f"compile=true: PyTorch needs {missing}, which is not there. Use compile=false.")


def _bf16_factor() -> float:
    """Return how many times as long as in float32 a matrix product takes in bfloat16 on this processor."""

    def seconds(dtype: torch.dtype) -> float:
        x, weights = torch.ones(128, 784, dtype=dtype), torch.ones(784, 400, dtype=dtype)
        taken = []
        for _ in range(3):
            started = time.perf_counter()
            torch.mm(x, weights)
            taken.append(time.perf_counter() - started)
        return min(taken)

    return seconds(torch.bfloat16) / seconds(torch.float32)


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Set how float32 products are computed, and return the context in which a step's networks are run.

    fp32 is float32 throughout; tf32 rounds what matrix products and convolutions multiply to 10 bits; bf16 computes
    them in bfloat16, with a warning where the processor has no units for it. Weights, densities, the KL and every
    measured number stay float32.
    """
    _allow_tf32(precision == "tf32", precision == "tf32")
    if precision != "bf16":  # only a caller's own autocast has to be kept out
        is_on = torch.is_autocast_enabled(device.type)
        return torch.autocast(device.type, torch.bfloat16, enabled=False) if is_on else contextlib.nullcontext()
    if device.type == "cpu" and (factor := _bf16_factor()) > 1.5:
        times = f"a product takes {factor:.0f} times as long as in fp32, which is the default"
        log.warning(f"precision=bf16: this processor has no units for it, and {times}")
    return torch.autocast(device.type, torch.bfloat16)


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Run the block with float32 products in float32: numbers that are compared must not depend on precision."""
    before = [kind.fp32_precision == "tf32" for kind in (torch.backends.cuda.matmul, _cudnn.conv)]
    _allow_tf32(False, False)
    try:
        yield
    finally:
        _allow_tf32(*before)


def _allow_tf32(products: bool, convolutions: bool) -> None:
    """Set whether matrix products and convolutions may use TF32; PyTorch allows it for convolutions by default."""
    # The old switches come first: PyTorch's compiler reads them, and refuses to if only the new keys were set.
    torch.set_float32_matmul_precision("high" if products else "highest")
    _cudnn.allow_tf32 = convolutions
    torch.backends.cuda.matmul.fp32_precision = "tf32" if products else "ieee"
    _cudnn.conv.fp32_precision = "tf32" if convolutions else "ieee"


@contextlib.contextmanager
def float32() -> Iterator[None]:
    """Run the block with new tensors of 32 bits, whatever the default of the program is (torch.set_default_dtype)."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(default)


@contextlib.contextmanager
def reproducible(device: torch.device) -> Iterator[None]:
    """Run the block with arithmetic that gives the same bits each time, which some of cuDNN's algorithms do not.

    Subnormal numbers, below 1.2e-38, are flushed to zero: Adam's mean gradient of a dead unit's weights decays to them,
    and they can take a processor a hundred times as long. PyTorch's threads inherit this setting when they start, so it
    must come before the first operation that is shared among them.
    """
    flushed = (torch.tensor(1e-40) * 1).item() == 0
    cudnn = _cudnn.deterministic, _cudnn.benchmark
    torch.set_flush_denormal(True)
    if device.type == "cuda":
        _cudnn.deterministic, _cudnn.benchmark = True, False
    try:
        with float32():
            yield
    finally:
        torch.set_flush_denormal(flushed)
        _cudnn.deterministic, _cudnn.benchmark = cudnn


def compile_step(
    step: Step, config: Config, resumed: Checkpoint | None, device: torch.device, interrupted: Callable[[], None]
) -> Step:
    """Return the step(now, x, y, eps), compiled if compile=true, or with auto if the run that goes on was compiled.

    Where the compiler fails, `interrupted` raises if that was for Ctrl-C; else auto goes on without, true raises.
    """
    was_compiled = resumed is not None and resumed.resume is not None and resumed.resume.facts.compiled
    required = config["compile"] is True
    if not (required or (config["compile"] == "auto" and was_compiled)):
        return step
    if missing := missing_for_compiling(device):
        log.warning(f"not compiled, for want of {missing}")
        return step
    log.info("the first step compiles: up to a minute, and a few seconds where it has been done before on this machine")
    torch.compiler.reset()  # else the jobs of a sweep together reach PyTorch's limit of recompilations
    compiled, works = torch.compile(step), True

    def step_or_compiled(now: Any, x: torch.Tensor, *rest: Any) -> Any:
        nonlocal works
        if not works or len(x) != config["batch_size"]:  # the smaller last batch would cost as much again
            return step(now, x, *rest)
        try:
            return compiled(now, x, *rest)
        except torch._dynamo.exc.TorchDynamoException as error:
            interrupted()
            reason = f"PyTorch's compiler fails ({first_line(error)})"
            if required:
                raise UserError(f"compile=true: {reason}. Use compile=false.") from error
            log.warning(f"not compiled: {reason}")
            works = False
            return step(now, x, *rest)

    return step_or_compiled


def missing_for_compiling(device: torch.device) -> str | None:
    """Return which of Triton for a GPU, a C++ compiler and Python's headers PyTorch needs and does not find."""
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return "Triton (pip install triton)"
    compiler = shlex.split(os.environ.get("CXX") or ("cl" if sys.platform == "win32" else "g++"))[0]
    if not shutil.which(compiler):
        return f"a C++ compiler ({compiler})"
    header = Path(sysconfig.get_path("include")) / "Python.h"
    return None if header.exists() else f"{header} (Debian and Ubuntu: apt install python3-dev)"
