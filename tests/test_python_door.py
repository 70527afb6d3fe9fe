"""vae_exp.load from Python: what the command line refuses is refused in the same words."""

import sys
from types import SimpleNamespace

import hydra
import numpy as np
import pytest
import torch

import vae_exp
from tests.conftest import QUICK, compose, quick_run
from vae_exp.config.compose import BASE
from vae_exp.errors import UserError
from vae_exp.train import train


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    made = {}
    for name in ("vanilla", "conditional", "autoencoder"):
        _, folder = quick_run(f"model={name}", "model.z_dim=3", "epochs=0", folder=tmp_path_factory.mktemp(name))
        made[name] = vae_exp.load(folder)
    return made


@pytest.mark.slow
def test_a_program_in_float64_trains_and_uses_models_in_float32(models, tmp_path, request):
    model, image = models["vanilla"], np.zeros((2, 1, 8, 8), np.uint8)

    def used(model):
        return [model.sample(2, seed=0), model.reconstruct(image), model.log_prob_bound(image, k=2)]

    expected = used(model)
    request.addfinalizer(lambda: torch.set_default_dtype(torch.float32))
    torch.set_default_dtype(torch.float64)
    for now, before in zip([*used(model), *used(vae_exp.load(model.path))], 2 * expected, strict=True):
        assert torch.equal(now, before) and now.dtype == before.dtype
    assert model.encode(image).rsample().dtype == torch.float32
    summary, _ = quick_run("likelihood=gaussian", "likelihood.sigma=learned", folder=tmp_path)
    assert summary["state"] == "finished"
    assert torch.get_default_dtype() == torch.float64


def test_composing_inside_an_application_of_hydras_leaves_it_as_it_is(tmp_path):
    with hydra.initialize_config_dir(str(tmp_path), **BASE):
        (tmp_path / "theirs.yaml").write_text("a: 1\n")
        assert vae_exp.compose("dataset=digits", "model.z_dim=3").model.z_dim == 3
        with pytest.raises(UserError, match="zdim: no such key"):
            vae_exp.compose("zdim=3")
        assert hydra.compose("theirs") == {"a": 1}


ONE = torch.zeros(1, 1, 8, 8)
WRONG = [
    ("vanilla", lambda m: m.sample(-1), "n=-1: it takes a whole number, 1 or more"),
    ("vanilla", lambda m: m.sample(0), "n=0: it takes a whole number, 1 or more"),
    ("vanilla", lambda m: m.sample(2.5), "n=2.5: it takes a whole number, 1 or more"),
    ("vanilla", lambda m: m.sample("4"), "n=4: it takes a whole number, 1 or more"),
    ("vanilla", lambda m: m.sample(True), "n=True: it takes a whole number"),
    ("vanilla", lambda m: m.sample(4, temperature=float("nan")), "temperature=nan: it takes a number, 0 or more"),
    ("vanilla", lambda m: m.sample(4, temperature=float("inf")), "temperature=inf: it takes a number, 0 or more"),
    ("vanilla", lambda m: m.sample(4, temperature=-1), "temperature=-1: it takes a number, 0 or more"),
    ("vanilla", lambda m: m.sample(4, seed=-1), "seed=-1: it takes a whole number from 0"),
    ("vanilla", lambda m: m.sample(4, label=3), "label=3: this model is not conditional; omit label"),
    ("vanilla", lambda m: m.sample(4, label=[0, 1, 2, 3]), "this model is not conditional; omit label"),
    ("vanilla", lambda m: m.encode(ONE, label="3"), "label=3: this model is not conditional"),
    ("vanilla", lambda m: m.log_prob_bound(ONE, k=0), "k=0: it takes a whole number, 1 or more"),
    ("vanilla", lambda m: m.log_prob_bound(ONE, seed=0.5), "seed=0.5: it takes a whole number"),
    ("vanilla", lambda m: m.decode(torch.zeros(4, 2)), r"z of shape \[4, 2\]: this model takes codes \[N, 3\]"),
    ("vanilla", lambda m: m.decode(torch.zeros(3)), r"z of shape \[3\]: this model takes codes \[N, 3\]"),
    ("vanilla", lambda m: m.decode(torch.full((1, 3), torch.nan)), "z: codes are finite real numbers"),
    ("vanilla", lambda m: m.decode("z"), "z: not an array of numbers"),
    ("vanilla", lambda m: m.encode(ONE * torch.nan), "images: pixels are real numbers"),
    ("vanilla", lambda m: m.encode(ONE + torch.inf), "images from inf to inf"),
    ("vanilla", lambda m: m.encode("picture.png"), "images: not an array of numbers"),
    ("vanilla", lambda m: m.encode(torch.zeros(2, 2)), r"images of shape \[2, 2\]: this model takes \[N, 1, 8, 8\]"),
    ("conditional", lambda m: m.sample(4, label=[1, 2]), r"label: torch.int64 of shape \[2\] for 4 images"),
    ("conditional", lambda m: m.sample(4, label=[0.5] * 4), r"label: torch.float32 of shape \[4\] for 4 images"),
    ("conditional", lambda m: m.sample(2, label=["a", "b"]), r"label=\[a,b\]: this model has one label"),
    (
        "conditional",
        lambda m: m.sample(4, label=[0, 1, 2, 10]),
        "label: numbers from 0 to 10; this model's classes are 0",
    ),
    ("conditional", lambda m: m.sample(4, label="cat"), "label=cat: this model knows 0, 1, 2"),
    ("conditional", lambda m: m.encode(ONE), "label: this model is conditional"),
    ("autoencoder", lambda m: m.sample(4), "an autoencoder has no prior"),
    ("autoencoder", lambda m: m.log_prob_bound(ONE), "an autoencoder .* gives images no likelihood"),
]


@pytest.mark.parametrize(("model", "act", "message"), WRONG)
def test_what_cannot_be_is_said_in_the_users_words(models, model, act, message):
    with pytest.raises(UserError, match=message):
        act(models[model])


@pytest.mark.parametrize("shell", ["IPKernelApp", "TerminalIPythonApp"])
@pytest.mark.filterwarnings("ignore:IProgress not found")
def test_a_run_in_a_notebook_has_a_progress_bar(shell, monkeypatch, capfd):
    """As Jupyter has it: standard error is no terminal there."""
    ipython = SimpleNamespace(get_ipython=lambda: SimpleNamespace(config={shell: {}}))
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    for quiet in (False, True):
        train(compose(*QUICK, "wandb.mode=disabled", "replace=true"), "run", quiet=quiet)
        assert ("step/s" in capfd.readouterr().err) == (shell == "IPKernelApp" and not quiet)


def test_a_model_says_what_it_is(models):
    said = [repr(model) for model in models.values()]
    assert "vanilla VAE on digits, epoch 0; images 1x8x8, z_dim 3, " in said[0]
    assert f" parameters, on cpu; from {models['vanilla'].path}>" in said[0]
    assert "z_dim 3, 10 classes" in said[1]


def test_numbers_of_numpy_and_torch_are_numbers(models):
    model = models["conditional"]
    expected = model.sample(3, seed=1, temperature=0.5)
    again = model.sample(np.int64(3), seed=torch.tensor(1), temperature=np.float32(0.5))
    torch.testing.assert_close(again, expected, rtol=0, atol=0)
    labels = np.array([0, 1, 2])
    torch.testing.assert_close(model.sample(3, labels, seed=1, temperature=0.5), expected, rtol=0, atol=0)
    z = np.zeros((2, 3))
    torch.testing.assert_close(model.decode(z, 1), model.decode(torch.zeros(2, 3), "1"), rtol=0, atol=0)


def test_labels_travel_with_images_of_an_unconditional_model(models):
    x, y = torch.zeros(4, 1, 8, 8), torch.arange(4)
    for act in (models["vanilla"].encode, models["autoencoder"].encode):
        torch.testing.assert_close(act(x, y).mean, act(x).mean, rtol=0, atol=0)


def test_weights_that_are_no_numbers_are_refused(models, tmp_path, vae_command):
    _, folder = quick_run("model.z_dim=3", "epochs=0")
    kept = torch.load(folder / "best.pt", weights_only=True)
    next(iter(kept["model"].values()))[0] = torch.nan
    torch.save(kept, "spoilt.pt")
    code, said = vae_command("vae-generate", "checkpoint=spoilt.pt")
    assert code == 1
    assert "checkpoint: its weights encoder.layers.0.weight are not finite" in said
    assert not list(tmp_path.rglob("*.png"))[3:], "nothing but the run's own pictures"


@pytest.mark.parametrize("name", ["model", "model.h5", "model.pt", "beta-0.5"])
def test_an_export_has_the_ending_by_which_it_is_read(models, tmp_path, name):
    with pytest.raises(UserError, match=rf"{name}: weights are written as \.safetensors, .*\.onnx or \.pt2"):
        models["vanilla"].export(name)
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_cannot_be_written_leaves_nothing(models, tmp_path):
    with pytest.raises(UserError, match=r"model.safetensors: cannot be written"):
        models["vanilla"].export("/dev/full/model.safetensors")
    (tmp_path / "there.safetensors").mkdir()
    with pytest.raises(UserError, match=r"there.safetensors: cannot be written"):
        models["vanilla"].export(tmp_path / "there.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["there.safetensors"]
