"""A run that begins with a trained model's weights: what is taken, what is refused, what it remembers."""

import functools
import shutil
import sys
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import torch
import yaml

import vae_exp
from tests.conftest import compose, metrics, quick_run, recorded, stored
from vae_exp.config import build
from vae_exp.errors import UserError
from vae_exp.training import checkpoints, init_from

NETWORKS = {  # with the images that each takes
    "network=mlp": (1, 8, 8),
    "network=conv network.channels=4": (1, 12, 12),
    "network=resnet network.channels=4": (3, 12, 16),
    "network=burgess": (1, 32, 32),
    "network=locatello": (1, 64, 64),
    "network._target_=tests.networks_of_users.net ~network.hidden_dims ~network.activation": (1, 8, 8),
    "network._target_=tests.networks_of_users.two_heads ~network.hidden_dims ~network.activation": (1, 8, 8),
}
CLASSES = 3


def made(z_dim, network, x_shape, seed, conditional):
    config = build.check(compose(*network.split(), f"model.z_dim={z_dim}", f"model.conditional={conditional}"))
    torch.manual_seed(seed)
    return build.model(config, x_shape, CLASSES).eval(), config


def as_checkpoint(model, config, x_shape, kl_per_dim):
    best, weights = None, model.state_dict()
    return checkpoints.Checkpoint(config, x_shape, CLASSES, list("abc"), 7, 2, best, kl_per_dim, weights)


@torch.no_grad()
@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("network", NETWORKS)
def test_a_smaller_z_dim_keeps_the_latents_of_the_largest_kl_and_a_larger_one_adds_fresh_ones(network, conditional):
    x_shape = NETWORKS[network]
    old, config = made(5, network, x_shape, 1, conditional)
    kl_per_dim = [0.1, 3.0, 0.2, 2.0, 4.0]
    source = as_checkpoint(old, config, x_shape, kl_per_dim)
    x, y = torch.rand(4, *x_shape), torch.tensor([0, 1, 2, 1])
    q_old = old.encode(x, y)

    smaller, config = made(3, network, x_shape, 2, conditional)
    make = functools.partial(build.model_of, config, source)
    assert init_from.initialise(smaller, source, {**config, "init_from": "a"}, make).latents == [1, 3, 4]
    q = smaller.encode(x, y)
    torch.testing.assert_close(q.mean, q_old.mean[:, [1, 3, 4]])
    torch.testing.assert_close(q.log_var, q_old.log_var[:, [1, 3, 4]])
    z = torch.randn(4, 3)
    spread_out = torch.zeros(4, 5).index_copy_(1, torch.tensor([1, 3, 4]), z)
    torch.testing.assert_close(smaller.decode(z, y).mean, old.decode(spread_out, y).mean)

    larger, config = made(7, network, x_shape, 3, conditional)
    fresh = larger.encode(x, y).mean[:, 5:]
    make = functools.partial(build.model_of, config, source)
    assert init_from.initialise(larger, source, {**config, "init_from": "a"}, make).latents is None
    q = larger.encode(x, y)
    torch.testing.assert_close(q.mean[:, :5], q_old.mean)
    torch.testing.assert_close(q.log_var[:, :5], q_old.log_var)
    assert fresh.shape == q.mean[:, 5:].shape and not q.mean[:, 5:].isnan().any()
    z = torch.cat([torch.randn(4, 5), torch.zeros(4, 2)], 1)
    torch.testing.assert_close(larger.decode(z, y).mean, old.decode(z[:, :5], y).mean)


@pytest.mark.slow
def test_a_run_begins_where_the_other_ended_and_says_so_everywhere(trained):
    before, folder = trained("epochs=3", "model.z_dim=4", folder="before")
    after, _ = quick_run("epochs=0", "model.z_dim=4", "init_from=before", wandb="offline")
    assert after["test/neg_elbo"] == before["test/neg_elbo"], "the same weights, measured with the same noise"
    start = after["start"]
    assert {**start, "path": start["path"]} == {
        "path": str(folder.resolve() / "best.pt"), "epoch": before["best/epoch"], "step": before["best/step"],
        "epochs": before["best/epoch"], "latents": None,
    }  # fmt: skip
    assert after["path_epochs"] == before["best/epoch"]
    assert "start" not in before and "path_epochs" not in before
    assert yaml.safe_load(Path("run/config.yaml").read_text())["init_from"] == str(folder.resolve() / "best.pt")
    (wandb_folder,) = Path("outputs/wandb").glob("offline-run-*")
    assert recorded(wandb_folder)["run"][0]["config"]["update"]["start"]["step"] == before["best/step"]
    for place in ("before/last.pt", "before.safetensors"):
        vae_exp.load(folder).export("before.safetensors")
        again, _ = quick_run("epochs=0", "model.z_dim=4", f"init_from={place}", folder=f"from_{Path(place).suffix}")
        assert again["test/neg_elbo"] == pytest.approx(before["test/neg_elbo"], abs=1)


@pytest.mark.slow
def test_a_run_that_goes_on_needs_the_file_no_more_and_equals_one_that_was_never_stopped(trained):
    trained("epochs=3", "model.z_dim=4", folder="before")
    settings = ("model.z_dim=2", "init_from=before", "ema=0.9", "freeze=[encoder.layers.0]")
    whole, _ = quick_run(*settings, "epochs=2", folder="whole")
    quick_run(*settings, "epochs=1", folder="part")
    shutil.rmtree("before")
    resumed = ("model.z_dim=2", "ema=0.9", "freeze=[encoder.layers.0]", "resume=part")
    again, _ = quick_run(*resumed, "epochs=2", folder="part")
    assert {key: again[key] for key in ("start", "path_epochs", "test/neg_elbo")} == {
        key: whole[key] for key in ("start", "path_epochs", "test/neg_elbo")
    }
    rows = [[{k: v for k, v in row.items() if "time/" not in k} for row in metrics(f)] for f in ("whole", "part")]
    assert rows[0] == rows[1]
    assert yaml.safe_load(Path("part/config.yaml").read_text())["init_from"].endswith("before/best.pt")
    with pytest.raises(UserError, match="resume=part and init_from=x: a resumed run has its own weights"):
        quick_run(*resumed, "init_from=x", folder="part")


@pytest.mark.slow
def test_a_learned_scale_and_buffers_come_along(trained, monkeypatch):
    own = ("network._target_=tests.networks_of_users.net", "~network.hidden_dims", "~network.activation")
    learned = ("likelihood=gaussian", "likelihood.sigma=learned", *own)
    _, folder = trained(*learned, folder="before")
    quick_run(*learned, "epochs=0", "init_from=before")
    before, after = (stored(f"{name}/best.pt")["model"] for name in (folder, "run"))
    assert before.keys() == after.keys() and any("running_mean" in name for name in before)
    assert any(name.startswith("likelihood") for name in before)
    assert all(torch.equal(values, after[name]) for name, values in before.items())


@pytest.mark.slow
def test_of_averaged_weights_best_pt_gives_the_average_and_last_pt_where_training_stands(trained):
    trained("ema=0.9", folder="before")
    for file, weights in {
        "best.pt": stored("before/best.pt")["model"],
        "last.pt": stored("before/last.pt")["resume"]["weights"],
    }.items():
        quick_run("epochs=0", f"init_from=before/{file}", folder=file)
        assert all(torch.equal(values, weights[name]) for name, values in stored(f"{file}/best.pt")["model"].items())


def test_what_does_not_fit_is_named_and_refused_unless_a_part_is_wanted(trained, caplog):
    trained("model.z_dim=4", "network.hidden_dims=[16,8]", folder="before")
    wider = ("model.z_dim=4", "network.hidden_dims=[16,9]", "init_from=before", "epochs=0")
    with pytest.raises(UserError) as refused:
        quick_run(*wider)
    said = str(refused.value)
    assert said.startswith("init_from=") and "encoder.layers.2.weight is [9, 16] here and [8, 16] there" in said
    assert "init_from_partial=true takes the 6 of 12 that fit" in said
    quick_run(*wider, "init_from_partial=true", "replace=true")
    before, after = (stored(f"{name}/best.pt")["model"] for name in ("before", "run"))
    assert torch.equal(before["encoder.layers.0.weight"], after["encoder.layers.0.weight"])
    with pytest.raises(UserError, match="Nothing fits"):
        conv = ("network=conv", "network.channels=4", "init_from=before", "init_from_partial=true")
        quick_run("model.z_dim=4", *conv, folder="conv")


@pytest.mark.slow
def test_frozen_parts_stay_as_they_are(trained):
    own = ("network._target_=tests.networks_of_users.net", "~network.hidden_dims", "~network.activation")
    trained(*own, folder="before")
    for optimizer in ("adam", "sgd", "adamw"):
        frozen = "freeze=[encoder,decoder.layers.3.bias]"
        quick_run(*own, "init_from=before", frozen, f"optimizer={optimizer}", folder=optimizer)
        before, after = (stored(f"{name}/last.pt")["model"] for name in ("before", optimizer))
        same = {name for name in before if torch.equal(before[name], after[name])}
        assert {name for name in before if name.startswith("encoder.")} <= same, "the batch norm's means too"
        assert "decoder.layers.3.bias" in same and "decoder.layers.3.weight" not in same
    with pytest.raises(UserError, match=r"no such part\. There are encoder, decoder, encoder\.layers"):
        quick_run("freeze=[coder]", folder="refused")
    with pytest.raises(UserError, match="nothing is left to learn"):
        quick_run("freeze=[encoder,decoder]", folder="refused")


@pytest.mark.slow
def test_a_strangers_file_runs_no_code_and_a_missing_one_leaves_nothing(trained, vae_train):
    _, folder = trained(folder="before")
    code = "import pathlib\npathlib.Path('ran').touch()\nfrom vae_exp.networks import mlp as net\n"
    Path("foreign_code.py").write_text(code)
    checkpoint = torch.load(folder / "best.pt", weights_only=True)
    checkpoint["config"]["network"]["_target_"] = "foreign_code.net"
    torch.save(checkpoint, "stranger.pt")
    quick = ("dataset=digits", "epochs=0", "device=cpu", "wandb.mode=disabled")
    code, said = vae_train(*quick, "init_from=stranger.pt", "hydra.run.dir=run")
    assert code == 0 and "starts from epoch 1 of" in said
    assert "foreign_code" not in sys.modules and not Path("ran").exists()
    Path("damaged.pt").write_bytes(Path("stranger.pt").read_bytes()[:-100])
    for place, why in {"nowhere": "there is no such file", "damaged.pt": "damaged"}.items():
        code, said = vae_train(*quick, f"init_from={place}", "hydra.run.dir=refused")
        assert code == 1 and f"init_from={place}: " in said and why in said and len(said.splitlines()) == 1
        assert not Path("refused").exists()
        code, said = vae_train("-m", *quick, f"init_from={place}", "seed=0,1")
        assert code == 1 and f"init_from={place}: " in said and not Path("outputs/sweeps").exists()


@pytest.mark.slow
def test_what_took_the_place_of_networks_of_many_settings_is_named(vae_train, vae_command, trained):
    code, said = vae_train("amortize.beta=[0.1,10]")
    assert code == 1 and "amortize.beta: no such key any more" in said and "sweep.warm_start=true" in said
    for program in ("vae-evaluate", "vae-generate"):
        code, said = vae_command(program, "checkpoint=x", "beta=2")
        assert code == 1 and "beta: no such key any more" in said and "sweep.warm_start=true" in said
    code, said = vae_command("vae-compare", "x", "--map")
    assert code == 1 and "--map: no such flag any more" in said and "sweep.warm_start=true" in said
    _, folder = trained(folder="before")
    model = vae_exp.load(folder)
    with pytest.raises(UserError, match=r"sweep\.warm_start=true"):
        model.at(beta=2)
    assert not hasattr(model, "attribute")
    checkpoint = torch.load(folder / "best.pt", weights_only=True)
    checkpoint["config"]["amortize"] = {"beta": [0.1, 10], "z_dim": None, "confirm": 0}
    torch.save(checkpoint, "many.pt")
    with pytest.raises(UserError, match=r"which only development versions of 0\.2\.0 up to 1a84f12 read"):
        vae_exp.load("many.pt")
    checkpoint["config"]["amortize"]["beta"] = None
    torch.save(checkpoint, "one.pt")
    vae_exp.load("one.pt")


@pytest.mark.slow
def test_a_preempted_run_goes_on_and_one_from_other_weights_is_another(trained, vae_train):
    trained("model.z_dim=4", folder="before")
    trained("model.z_dim=4", "seed=1", folder="other")
    quick = ("dataset=digits", "model.z_dim=4", "device=cpu", "wandb.mode=disabled", "epochs=2", "resume=auto")
    for source, steps, goes_on in (("before", 5, False), ("before", 15, True), ("other", 5, False)):
        code, said = vae_train(*quick, f"init_from={source}", f"max_steps={steps}")
        assert code == 0, said
        assert ("resumes from" in said) == goes_on
        for path in Path("outputs").glob("*/*/summary.json"):  # as if it had been preempted
            path.write_text(path.read_text().replace('"finished"', '"interrupted"'))
    assert len([*Path("outputs").glob("*/*/summary.json")]) == 2


@pytest.mark.slow
def test_other_axes_are_not_taken_for_latents(trained):
    conditional = ("model=conditional", "network.hidden_dims=[16,16]", "epochs=0")
    trained(*conditional, "model.z_dim=4", folder="before")
    for change in ("dataset.labels=[0,1,2,3,4,5,6,7]", "network.hidden_dims=[14,16]"):
        with pytest.raises(UserError, match="do not fit this model"):
            quick_run(*conditional, "model.z_dim=2", change, "init_from=before")
    trained("model=autoencoder", "model.z_dim=8", "epochs=1", folder="autoencoder")
    with pytest.raises(UserError, match="no KL by which 4 of its 8"):
        quick_run("model.z_dim=4", "init_from=autoencoder")
    for family in ("posterior=full", "posterior=iaf", "prior=flow"):
        with pytest.raises(UserError, match=f"of {family} cannot be divided between them. Use model.z_dim=8"):
            quick_run("model.z_dim=9", family, "init_from=autoencoder", folder="other")


@pytest.mark.slow
def test_weights_of_the_same_shape_that_meant_something_else_are_named(trained, caplog):
    def warnings():
        return [record.message for record in caplog.records if record.levelname == "WARNING"]

    trained("model.z_dim=4", "posterior=iaf", "model=conditional", "dataset.labels=[3,5]", folder="before")
    same = ("model.z_dim=4", "posterior=iaf", "model=conditional", "init_from=before", "epochs=0")
    quick_run(*same, "dataset.labels=[3,5]", "network.init=he", "optimizer.lr=1e-4", folder="same")
    assert not warnings()
    quick_run(*same, "dataset.labels=[5,3]", "posterior.gate=true", "network.activation=tanh", folder="other")
    (warning,) = warnings()
    source, _, settings = warning.partition(": its weights were trained with ")
    assert source == "init_from=before/best.pt"
    assert settings == "network.activation=relu, posterior.gate=false, dataset.labels=[3,5]"
    trained("model=autoencoder", "likelihood=gaussian", folder="autoencoder")
    quick_run("likelihood=laplace", "init_from=autoencoder", "init_from_partial=true", "epochs=0", folder="vae")
    assert warnings()[-1].endswith("trained with likelihood=gaussian, model.stochastic=false")
    plain = ("model.z_dim=4", "posterior=iaf", "init_from=before", "init_from_partial=true", "epochs=0")
    quick_run(*plain, folder="plain")
    assert len(warnings()) == 2


@pytest.mark.slow
def test_a_learned_prior_comes_along_and_another_one_keeps_what_the_seed_made(trained):
    trained("prior=mixture", "prior.components=3", "model.z_dim=4", "epochs=2", folder="before")
    mixture, _ = quick_run("prior=mixture", "prior.components=3", "model.z_dim=6", "init_from=before", folder="larger")
    assert mixture["start"]["latents"] is None
    before, larger = stored("before/best.pt")["model"], stored("larger/last.pt")["model"]
    assert larger["prior.mean"].shape == (3, 6) and before["prior.mean"].shape == (3, 4)
    other = ("prior=vamp", "prior.components=3", "model.z_dim=4", "init_from=before", "epochs=0")
    with pytest.raises(UserError, match=r"prior\.inputs is \[3, 1, 8, 8\] here and missing there"):
        quick_run(*other, folder="vamp")
    quick_run(*other, "init_from_partial=true", folder="vamp")
    taken = stored("vamp/last.pt")["model"]
    assert all(torch.equal(taken[name], before[name]) for name in before if not name.startswith("prior."))


def test_runs_from_other_weights_are_not_seeds_of_one_setting(trained, vae_command):
    trained("model.z_dim=4", folder="runs/before")
    quick_run("model.z_dim=4", "seed=1", folder="runs/same")
    quick_run("model.z_dim=4", "seed=1", "init_from=runs/before", folder="runs/after")
    code, said = vae_command("vae-compare", "runs", "--fold-seeds")
    assert code == 0 and "before and 1 more" in said and " after " in said, said


def test_an_artifact_is_recorded_as_used(trained, monkeypatch):
    """With a stand-in for W&B's run: offline it takes no artifact, and there is no server here."""
    _, folder = trained("model.z_dim=4", folder="before")
    run = MagicMock(
        offline=False, id="id", url="url", dir="outputs/wandb/run/files", project="p", entity="e", group="g"
    )
    run.tags = ()
    monkeypatch.setattr("wandb.init", lambda **_: run)
    monkeypatch.setattr("vae_exp.training.run.choose_mode", lambda _: "online")
    Path("artifact").mkdir()
    shutil.copy(folder / "best.pt", "artifact")
    downloaded = {"team/vae/model:best": Path("artifact")}
    monkeypatch.setattr("vae_exp.tracking.wandb_run.download", downloaded.__getitem__)
    summary, _ = quick_run("model.z_dim=4", "epochs=0", "init_from='wandb:team/vae/model:best'", wandb="online")
    run.use_artifact.assert_called_once_with("team/vae/model:best")
    assert summary["start"]["path"] == "wandb:team/vae/model:best"
