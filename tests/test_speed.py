"""Speed changes no result: precisions, compiling, and the faster kernels against the plain loop."""

import platform
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch._inductor.config  # reads CXX when it is imported, and tests below change that
import torch.nn.functional as F

from tests.conftest import QUICK, command, compose, metrics, quick_run, stored
from vae_exp import inference
from vae_exp.config import build
from vae_exp.evaluation.metrics import evaluate, importance_bound
from vae_exp.training import checkpoints, precision

FIFTY = ("epochs=5", "log_every_steps=1", "batch_size=128", "dataset=digits")


def losses(*overrides):
    """The loss of each of the run's 55 steps."""
    _, folder = quick_run(*FIFTY, *overrides, folder="-".join(overrides) or "run")
    return [row["train/loss"] for row in metrics(folder) if "train/loss" in row]


def plain_losses(precision="fp32"):
    """The same weights, order and noise in PyTorch's own words: no VAE, an unfused Adam, the loss as a sum."""
    config = build.check(compose(*FIFTY))
    data = build.dataset(config)
    torch.manual_seed(0)
    model = build.model(config, data.x_shape, data.n_classes)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, foreach=False, fused=False)
    order, noise = build.generator(0, "order"), build.generator(0, "noise")
    found = []
    for _ in range(5):
        for rows in torch.randperm(len(data.train), generator=order).split(128):
            x = data.train.x[rows].float() / 255
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                mean, log_var = model.encoder(x, torch.empty(len(x), 0)).float().chunk(2, dim=1)
                z = mean + torch.exp(0.5 * log_var) * torch.randn(mean.shape, generator=noise)
                logits = model.decoder(z, torch.empty(len(x), 0)).float()
            bce = F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
            loss = (bce - 0.5 * (1 + log_var - mean**2 - log_var.exp()).sum()) / len(x)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
    assert len(found) == 55
    return found


# What rounding may do to a loss, relative to it.
# fp32: each of the 55 steps rounds by 2**-24 in its forward pass, its sums, its backward pass and its update, and at
# worst all of these go the same way.
# bf16: where float32 differs in the last bit, a bfloat16 of eight bits may fall to its neighbour, 2**-8 away. The two
# networks do that, for 64 pixels whose roundings do not go the same way.
ROUNDING = {"fp32": 4 * 55 * 2**-24, "bf16": 2 * 2**-8 / 64**0.5}


def apart(some, others):
    """How far losses lie apart, relative to their size: the mean over all steps."""
    return statistics.mean(abs(a - b) / abs(b) for a, b in zip(some, others, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ROUNDING)
def test_fifty_steps_are_those_of_the_plain_loop_but_for_rounding(precision):
    assert losses(f"precision={precision}") == pytest.approx(plain_losses(precision), rel=ROUNDING[precision])


@pytest.mark.slow
def test_bf16_is_another_rounding_of_the_same_training():
    """The run rounds as the plain loop does that computes in bfloat16, and no loss is off by more than one number is.

    How far bfloat16 lies from float32 depends on the processor, so the plain loops of this one are the measure.
    """
    full, half = losses(), losses("precision=bf16")
    plain, plain_half = plain_losses(), plain_losses("bf16")
    assert apart(half, plain_half) < apart(half, plain)
    assert apart(full, plain) < apart(full, plain_half)
    assert half == pytest.approx(full, rel=2**-8)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ROUNDING)
def test_fifty_compiled_steps_are_those_of_the_plain_loop_but_for_rounding(precision, compiling):
    compiled = losses(f"precision={precision}", "compile=true")
    assert compiling() == 1
    assert compiled == pytest.approx(plain_losses(precision), rel=ROUNDING[precision])


@pytest.mark.slow
@pytest.mark.parametrize(
    "variant",
    [
        "model=conditional objective.warmup=cosine objective.warmup_epochs=2",
        "network=conv network.channels=4 objective=capacity likelihood=gaussian likelihood.sigma=optimal",
    ],
)
def test_compiling_changes_nothing_but_rounding_and_a_schedule_is_not_compiled_step_by_step(variant, compiling):
    plain = losses(*variant.split())
    compiled = losses(*variant.split(), "compile=true")
    assert 1 <= compiling() <= 3
    assert compiled == pytest.approx(plain, rel=ROUNDING["fp32"])
    assert losses(*variant.split(), "compile=true", "seed=0") == compiled, "it repeats to the bit"


@pytest.mark.slow
def test_no_subnormal_numbers_slow_the_optimizer_down():
    _, folder = quick_run("batch_size=8", "epochs=6")
    state = stored(folder / "last.pt")["optimizer"]["state"]
    means = torch.cat([weights["exp_avg"].flatten() for weights in state.values()]).abs()
    smallest = torch.finfo(torch.float32).tiny
    assert means[means > 0].min() < 1e-30, "the gradients of units that have died go on decaying"
    assert not ((means > 0) & (means < smallest)).any()
    assert torch.tensor(1e-40) * 1 > 0, "whoever called train counts as before"


@pytest.fixture
def compiling():
    """How many graphs have been compiled since."""
    counters = pytest.importorskip("torch._dynamo.utils").counters
    if reason := precision.missing_for_compiling(torch.device("cpu")):
        pytest.skip(f"no {reason}")
    counters.clear()
    return lambda: counters["stats"]["unique_graphs"]


@pytest.mark.slow
def test_a_compiled_run_goes_on_as_if_it_had_never_stopped(compiling):
    variant = ("compile=true", "objective.warmup_epochs=4", "log_every_steps=1")
    whole = metrics(quick_run(*variant, "epochs=3", folder="whole")[1])
    quick_run(*variant, "epochs=1", folder="parts")
    parts = metrics(quick_run(*variant, "epochs=3", "resume=parts", folder="parts")[1])
    losses = [[(row["step"], row["train/loss"]) for row in rows if "train/loss" in row] for rows in (whole, parts)]
    assert compiling() > 1
    assert losses[0] == losses[1]


def test_measuring_is_exact_whatever_the_precision_of_training():
    precision.autocast("tf32", torch.device("cpu"))
    try:
        with precision.full_precision():
            assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == ("highest", False)
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == ("high", True)
    finally:
        precision.autocast("fp32", torch.device("cpu"))


def test_a_run_of_any_precision_is_measured_in_float32():
    precisions = []
    state = checkpoints.load(quick_run("epochs=0")[1] / "last.pt")
    model, split = inference.rebuild(state), build.dataset(state.config).read_test()

    def notes(*images, works=model.encode):
        precisions.append(torch.get_float32_matmul_precision())
        return works(*images)

    model.encode = notes
    precision.autocast("tf32", torch.device("cpu"))
    try:
        evaluate(model, split, torch.Generator())
        importance_bound(model, split, 1, torch.Generator())
    finally:
        precision.autocast("fp32", torch.device("cpu"))
    assert set(precisions) == {"highest"}


@pytest.mark.slow
def test_auto_compiles_only_a_resumed_run_that_was_compiled(compiling):
    assert quick_run("compile=auto", "epochs=2", folder="plain")[0]["compiled"] is False
    assert compiling() == 0
    assert quick_run("compile=true")[0]["compiled"] is True
    assert quick_run("compile=auto", "epochs=2", "resume=run")[0]["compiled"] is True
    assert quick_run("compile=false", "epochs=3", "resume=run")[0]["compiled"] is False


@pytest.mark.slow
def test_a_compiler_that_fails_is_said_and_auto_goes_on_without():
    fails = {"CXX": "/bin/false", "TORCHINDUCTOR_CACHE_DIR": str(Path("compiled").resolve())}
    quick_run("compile=true")
    for compiles, code in (("true", 1), ("auto", 0)):
        running = command("resume=run", *QUICK, "epochs=2", "wandb.mode=disabled", f"compile={compiles}", **fails)
        said, _ = running.communicate()
        assert running.returncode == code, said
        assert "Traceback" not in said
        if compiles == "true":
            assert re.search(r"compile=true: PyTorch's compiler fails .* Use compile=false", said)
    assert "not compiled: PyTorch's compiler fails" in said


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("precision=tf32", "precision=tf32: a format of NVIDIA's GPUs, and this run is on cpu. Use fp32 or bf16."),
        ("precision=fp16", "precision=fp16: it takes one of fp32, tf32, bf16."),
        ("compile=maybe", "compile=maybe: it takes one of auto, true, false."),
        ("compile=true", "compile=true: PyTorch needs a C++ compiler (no-such-compiler), which is not there."),
    ],
)
def test_what_cannot_be_had_is_refused_before_anything_is_written(vae_train, monkeypatch, asked, said):
    monkeypatch.setenv("CXX", "no-such-compiler")
    code, told = vae_train(*QUICK, "device=cpu", "hydra.run.dir=run", asked)
    assert code == 1
    assert said in told
    assert not Path("run/summary.json").exists()


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the library's switch is of x86")
@pytest.mark.slow
def test_bf16_without_units_for_it_says_how_slow_it_is(monkeypatch):
    """oneDNN, which computes PyTorch's products, can be told to use an older processor's instructions."""
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    arguments = ("dataset=digits", "epochs=1", "max_steps=1", "network.hidden_dims=[8]", "wandb.mode=disabled")
    running = command(*arguments, "precision=bf16")
    said, _ = running.communicate(timeout=120)
    assert running.returncode == 0, said
    factor = int(re.search(r"precision=bf16: .* takes (\d+) times as long as in fp32", said)[1])
    assert factor > 1
    assert said.index("precision=bf16") < said.index("run folder")


@pytest.mark.slow
def test_a_run_does_not_wait_for_pytorchs_compiler_to_be_imported(tmp_path):
    arguments = ["vae-train", "dataset=digits", "epochs=1", "network.hidden_dims=[8]", "wandb.mode=disabled"]
    program = f"import sys; sys.argv = {arguments}; from vae_exp.cli.train import main; main()"
    program += "; print([name for name in ('torch._dynamo', 'sympy', 'matplotlib', 'wandb') if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "[]"
