"""Networks that are written to run elsewhere: what=onnx, what=pt2 and model.export give the numbers of the model."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import vae_exp
from tests.conftest import QUICK, compose, quick_run, readme_python, seconds
from vae_exp.errors import EXTRAS, UserError
from vae_exp.train import train

needs_onnx = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, EXTRAS["onnx"])),
    reason="pip install 'vae_exp[onnx]'",
)
GAUSSIAN = ["mean", "log_var"]
FAMILIES = [
    ("network=mlp model=conditional", GAUSSIAN),
    pytest.param("network=gated_mlp model=conditional posterior=full", [*GAUSSIAN, "lower"], marks=pytest.mark.slow),
    pytest.param(
        "network=conv model=conditional posterior=iaf", ["mean", "base_mean", "base_log_var"], marks=pytest.mark.slow
    ),
    pytest.param("network=resnet network.channels=8 model=autoencoder", ["mean"], marks=pytest.mark.slow),
    pytest.param("network=burgess dataset=arrays dataset.root=own.npz", GAUSSIAN, marks=pytest.mark.slow),
    pytest.param("network=locatello dataset=arrays dataset.root=own.npz", GAUSSIAN, marks=pytest.mark.slow),
]


def onnx(path):
    """What runs a file: a function of arrays by name, with the inputs, the outputs and what it says of itself."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    outputs = [each.name for each in session.get_outputs()]
    return (
        lambda **inputs: dict(zip(outputs, session.run(None, {k: v.numpy() for k, v in inputs.items()}), strict=True)),
        {each.name: (each.type, each.shape) for each in session.get_inputs()},
        {each.name: (each.type, each.shape) for each in session.get_outputs()},
        session.get_modelmeta().custom_metadata_map,
    )


def expected_of(model, n):
    """Inputs of n rows, of encoder and decoder, with the outputs of the model by name."""
    noise = torch.Generator().manual_seed(n)
    x, z = torch.rand(n, *model.x_shape, generator=noise), torch.randn(n, model.model.z_dim, generator=noise)
    y = {"label": torch.arange(n) % 10} if model.model.n_classes else {}
    q = model.encode(x, y.get("label"))
    base = {f"base_{name}": getattr(q.base, name) for name in GAUSSIAN} if hasattr(q, "base") else vars(q)
    encoded = {"mean": q.mean} | base
    return ({"image": x} | y, encoded), ({"z": z} | y, {"image": model.decode(z, y.get("label"))})


def assert_same(given, expected):
    for name, values in given.items():
        torch.testing.assert_close(torch.as_tensor(values), expected[name], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@needs_onnx
@pytest.mark.parametrize(("overrides", "outputs"), FAMILIES)
def test_the_files_give_what_the_model_gives(vae_command, overrides, outputs):
    np.savez("own.npz", images=np.random.default_rng(0).integers(0, 256, (60, 64, 64, 3), dtype=np.uint8))
    _, folder = quick_run(*overrides.split(), "model.z_dim=3")
    model = vae_exp.load(folder, device="cpu")
    for kind in ("onnx", "pt2"):
        code, said = vae_command("vae-generate", f"checkpoint={folder}", f"what={kind}", "device=cpu")
        lines = said.strip().splitlines()
        assert (code, len(lines)) == (0, 3), said
        assert [line.split(":")[0] for line in lines[:2]] == [f"encoder.{kind}", f"decoder.{kind}"]
        assert "largest difference from PyTorch: mean " in lines[0]
        assert lines[2].endswith(f"{kind} written to {folder / 'generated'}")
    image, z, label = ["N", *model.x_shape], ["N", 3], {"label": ("tensor(int64)", ["N"])}
    label = label if model.model.n_classes else {}
    sizes = {"mean": z, "log_var": z, "base_mean": z, "base_log_var": z, "lower": ["N", 3]}
    encode, given, made, about = onnx(folder / "generated/encoder.onnx")
    assert given == {"image": ("tensor(float)", image)} | label
    assert made == {name: ("tensor(float)", sizes[name]) for name in outputs}
    decode, given, made, _ = onnx(folder / "generated/decoder.onnx")
    assert given == {"z": ("tensor(float)", z)} | label
    assert made == {"image": ("tensor(float)", image)}
    programs = [torch.export.load(folder / f"generated/{part}.pt2").module() for part in ("encoder", "decoder")]
    for n in (1, 7):
        for run, program, (inputs, expected) in zip((encode, decode), programs, expected_of(model, n), strict=True):
            assert_same(run(**inputs), expected)
            assert_same(program(*inputs.values()), expected)
    assert (about["name"], about["epoch"]) == (model.name, "1")
    assert json.loads(about["config"])["model"]["z_dim"] == 3
    assert ("class_names" in about) == bool(label)
    if label:
        assert json.loads(about["class_names"]) == [*"0123456789"]


LIKELIHOODS = [
    "likelihood=continuous_bernoulli",
    pytest.param("likelihood=gaussian likelihood.sigma=optimal", marks=pytest.mark.slow),
    pytest.param("likelihood=laplace likelihood.scale=learned likelihood.mean=sigmoid", marks=pytest.mark.slow),
    pytest.param("likelihood=discretized_logistic likelihood.scale=by_pixel", marks=pytest.mark.slow),
]


@pytest.mark.slow
@needs_onnx
@pytest.mark.parametrize("overrides", LIKELIHOODS)
def test_a_decoder_gives_the_mean_of_its_likelihood(trained, overrides):
    model = vae_exp.load(trained(*overrides.split(), "model.z_dim=3")[1], device="cpu")
    assert list(model.export("decoder.onnx")) == ["image"]
    for n in (1, 7):
        inputs, expected = expected_of(model, n)[1]
        assert_same(onnx("decoder.onnx")[0](**inputs), expected)


@pytest.mark.slow
def test_a_program_says_what_it_is_and_holds_one_part_and_no_path(trained):
    _, folder = trained("model=conditional", "model.z_dim=3")
    model, extra = vae_exp.load(folder, device="cpu"), {"about.json": ""}
    model.export("new/mnist-decoder.pt2")
    assert [path.name for path in Path("new").iterdir()] == ["mnist-decoder.pt2"]
    program = torch.export.load("new/mnist-decoder.pt2", extra_files=extra)
    about = json.loads(extra["about.json"])
    assert (about["inputs"], about["outputs"], about["epoch"]) == (["z", "label"], ["image"], 1)
    assert about["class_names"] == [*"0123456789"]
    sizes = [values.numel() for values in program.state_dict.values()]
    assert sum(sizes) == sum(p.numel() for p in model.model.decoder.parameters())
    content = Path("new/mnist-decoder.pt2").read_bytes()
    assert not [place for place in (Path.cwd(), Path(vae_exp.__file__).parent) if str(place).encode() in content]


@pytest.mark.slow
def test_numbers_that_float32_does_not_tell_apart_are_refused():
    _, folder = quick_run(*seconds(), "model=conditional", "model.z_dim=3", "epochs=5")
    with pytest.raises(UserError, match=r"decoder\.pt2: its image differs by .* from PyTorch's; it was not written"):
        vae_exp.load(folder, device="cpu").export("decoder.pt2")
    assert not Path("decoder.pt2").exists()


@pytest.mark.slow
@needs_onnx
def test_a_name_of_a_stranger_is_printable(trained):
    model = vae_exp.load(trained("model.z_dim=3")[1], device="cpu")
    model.config["model"]["name"] = "half a letter \ud800"
    model.export("decoder.onnx")
    assert onnx("decoder.onnx")[3]["name"].startswith(r"half a letter \ud800 VAE on digits")


@pytest.mark.parametrize("name", ["model.onnx", "autoencoder.onnx", "decoder2.pt2", "new/.pt2.onnx"])
def test_a_name_says_which_part_it_is(trained, name):
    model = vae_exp.load(trained("model.z_dim=3")[1])
    with pytest.raises(UserError, match=rf"{name}: .* encoder\.(onnx|pt2), decoder"):
        model.export(name)
    assert not Path("new").exists()


def test_without_its_packages_onnx_is_one_message_and_pt2_is_written(vae_command, trained, monkeypatch):
    _, folder = trained("model.z_dim=3")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # as if it were not installed
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    code, said = vae_command("vae-generate", f"checkpoint={folder}", "what=onnx")
    assert (code, len(said.strip().splitlines())) == (1, 1), said
    assert "what=onnx: it needs onnxscript, onnxruntime: pip install 'vae_exp[onnx]'" in said
    assert not (folder / "generated").exists()
    model = vae_exp.load(folder)
    with pytest.raises(UserError, match=r"new/decoder.onnx: it needs .* pip install 'vae_exp\[onnx\]'"):
        model.export("new/decoder.onnx")
    model.export("new/decoder.pt2")
    assert [path.name for path in Path("new").iterdir()] == ["decoder.pt2"]


OWN = """
import math
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, n_in, out, kind):
        super().__init__()
        self.layer, self.out, self.kind = nn.Linear(n_in, math.prod(out)), out, kind

    def forward(self, x, context):
        h = torch.cat([x.flatten(1), context], 1)
        if self.kind == "data" and h.sum() > 0:
            h = 2 * h
        if self.kind == "operator":
            h = torch.special.bessel_j0(h)
        if self.kind == "other" and torch.compiler.is_exporting():
            h = h + 1e-3
        return self.layer(h).view(len(x), *self.out)


def net(x_shape, z_dim, context_dim, kind):
    return Net(math.prod(x_shape) + context_dim, (2 * z_dim,), kind), Net(z_dim + context_dim, x_shape, kind)
"""
KINDS = [
    pytest.param("batch", "onnx", None, marks=pytest.mark.slow),  # asks for the size of the batch
    ("data", "pt2", r"encoder: torch\.export cannot trace it \(.*data-dependent"),
    pytest.param(
        "operator",
        "onnx",
        r"encoder: torch\.onnx cannot write it \(.*bessel_j0.*\)\. A \.pt2 file may do",
        marks=pytest.mark.slow,
    ),
    ("other", "pt2", r"encoder\.pt2: its mean differs by 1.*e-03 from PyTorch's; it was not written"),
]


@pytest.mark.slow
@needs_onnx
@pytest.mark.parametrize(("kind", "ending", "refusal"), KINDS)
def test_a_network_of_ones_own_is_written_or_refused_in_one_message(vae_command, monkeypatch, kind, ending, refusal):
    Path("exported_nets.py").write_text(OWN)
    monkeypatch.syspath_prepend(Path.cwd())
    own = ("network._target_=exported_nets.net", "~network.hidden_dims", "~network.activation")
    train(compose(*QUICK, "wandb.mode=disabled", *own, f"+network.kind={kind}"), "run", quiet=True)
    sys.modules.pop("exported_nets", None)
    arguments = ("checkpoint=run", f"what={ending}", "trust=true", "output=out", "device=cpu")
    code, said = vae_command("vae-generate", *arguments)
    sys.modules.pop("exported_nets", None)
    if refusal is None:
        assert code == 0, said
        assert sorted(path.name for path in Path("out").iterdir()) == ["decoder.onnx", "encoder.onnx"]
    else:
        assert (code, len(said.strip().splitlines())) == (1, 1), said
        assert re.search(refusal, said), said
        assert not Path("out").exists()


@pytest.mark.slow
@needs_onnx
def test_the_example_of_the_readme_runs():
    _, folder = quick_run("epochs=0")
    vae_exp.load(folder).export("decoder.onnx")
    named = {}
    exec(readme_python("import onnxruntime"), named)
    assert named["images"].shape == (16, 1, 8, 8)
    expected = vae_exp.load(folder, device="cpu").decode(named["z"])
    np.testing.assert_allclose(named["images"], expected, atol=1e-5)
