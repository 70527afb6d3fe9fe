"""A step waits for its device only where a point is logged. Counted on the CPU, where waiting itself costs nothing."""

from pathlib import Path

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile

from tests import hooks
from tests.conftest import metrics, quick_run
from vae_exp import files
from vae_exp.training import precision
from vae_exp.training.state import RngStreams

READS = ("item", "tolist", "numpy", "__float__", "__int__", "__bool__", "__index__", "__array__")
BUILDS = ("tensor", "from_numpy", "new_tensor")  # on the host, to be copied to the device; and, without a device:
MAKES = ("full", "zeros", "ones", "empty", "arange", "linspace", "eye", "rand", "randn", "randperm")
BACKWARD = "backward"  # which every step calls, and no evaluation
SMALL = ("model.z_dim=4", "network.hidden_dims=[16]", "log_every_steps=4", "figure_every_epochs=100", "compile=false")


class Seen(TorchFunctionMode):
    """What a run does with tensors that a GPU would have to be waited for, after the step that began last."""

    def __init__(self):
        super().__init__()
        self.by_step = {}
        self.step = 0
        self.in_order = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        builds = name in BUILDS or (name in MAKES and "device" not in (kwargs or {}))
        if name in READS or builds:
            self.in_order.append(name)
            self.by_step.setdefault(self.step, []).append(name)
        elif name == BACKWARD:
            self.in_order.append(name)
        return function(*args, **(kwargs or {}))

    def begins(self, step, terms):
        self.step = step


def seen(*settings):
    """Reads and builds of a run of 11 steps, by the step after whose beginning they were made."""
    with Seen() as mode, hooks.in_step(mode.begins):
        quick_run(*SMALL, hooks.OWN_OBJECTIVE, *settings)
    assert mode.step == 11
    return mode.by_step


VARIANTS = {
    "vanilla": (),
    "a scale that is learned": ("likelihood=gaussian", "likelihood.sigma=learned"),
    "a scale that is fitted": ("likelihood=gaussian", "likelihood.sigma=optimal"),
    "clipped and averaged": (
        "gradient_clip_norm=1",
        "ema=0.9",
        "optimizer=adamw",
        "accumulate_steps=2",
        "batch_size=64",
    ),
    "drawn anew": ("model=conditional", "dataset.flip=true", "dataset.binarize=dynamic"),
    "sgd": ("optimizer=sgd", "scheduler=cosine"),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_the_device_is_read_once_for_a_point_and_not_in_between(name):
    """log_every_steps=4: after the beginnings of steps 4, 8 and, at the end of the epoch, 11."""
    found = seen(*VARIANTS[name])
    between = {step: what for step, what in found.items() if step in (2, 3, 5, 6, 7, 9, 10)}
    assert not between
    assert [found.get(step) for step in (4, 8)] == [["tolist"]] * 2
    assert len([row for row in metrics("run") if "train/grad_norm" in row]) == 3


OBJECTIVES = ("beta_tc", "iwae", "free_bits", "capacity", "dip_vae")


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_no_objective_reads_or_builds_on_the_host(objective):
    """The profiler sees what PyTorch itself does below Python too: no number is taken from a tensor in a step."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled, Seen() as mode:
        quick_run(*SMALL, f"objective={objective}", "log_every_steps=1000")
    last = max(at for at, name in enumerate(mode.in_order) if name == BACKWARD)
    assert set(mode.in_order[last - 8 : last]) == {BACKWARD}, "nothing else between the last steps"

    events = sorted(profiled.events(), key=lambda event: event.time_range.start)
    steps = [event.time_range.start for event in events if event.name == "aten::_fused_adam_"]
    assert len(steps) == 11
    inside = [event for event in events if steps[1] < event.time_range.start < steps[-1]]
    assert "aten::addmm" in {event.name for event in inside}
    reads = [event for event in inside if event.name in ("aten::item", "aten::_local_scalar_dense", "aten::is_nonzero")]
    assert not [event.name for event in reads if not of_fused_adam(event)]


def of_fused_adam(event):
    """On a CPU, where the counter of steps is at hand, that kernel reads it; a GPU's does not."""
    while event is not None and event.name != "aten::_fused_adam_":
        event = event.cpu_parent
    return event is not None


def test_a_run_on_the_cpu_asks_nothing_of_a_gpu(monkeypatch):
    """Its random state would be asked for by starting one, and there is none here to be started."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert RngStreams.from_seed(0, torch.device("cpu")).state_dict().keys() == {"order", "noise", "draws", "torch"}


def test_what_a_user_has_set_of_tf32_is_no_obstacle():
    """PyTorch refuses to tell by its old switches once something has written the new keys."""
    kinds = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)
    before = [kind.fp32_precision for kind in kinds]
    try:
        for kind in kinds:
            kind.fp32_precision = "tf32"
        with precision.full_precision():
            assert [kind.fp32_precision for kind in kinds] == ["ieee", "ieee"]
            assert torch.get_float32_matmul_precision() == "highest"  # as the compiler asks
        assert [kind.fp32_precision for kind in kinds] == ["tf32", "tf32"]
        assert torch.get_float32_matmul_precision() == "high"
        quick_run()
    finally:
        precision._allow_tf32(False, False)
        for kind, value in zip(kinds, before, strict=True):
            kind.fp32_precision = value


def test_the_best_epoch_that_is_the_last_is_one_file_with_two_names():
    quick_run(folder="one")
    assert Path("one/best.pt").samefile("one/last.pt")
    quick_run("epochs=2", "resume=one", folder="one")
    assert Path("one/best.pt").samefile("one/last.pt")
    assert not Path("one/last.previous.pt").samefile("one/last.pt")


def test_a_second_name_that_a_killed_process_left_is_not_written_through():
    """Killed between naming best.pt a second time and renaming that to last.pt: the next one leaves best.pt whole."""
    quick_run(folder="one")
    best = Path("one/best.pt").read_bytes()
    Path("one/last.pt.partial").hardlink_to("one/best.pt")
    files.write(Path("one/last.pt"), b"other weights")
    assert Path("one/best.pt").read_bytes() == best
