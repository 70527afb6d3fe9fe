"""One run for many settings: what it trains, what is read off it, and how far that is from runs of their own."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import vae_exp
from tests.conftest import compose, metrics, quick_run, recorded, stored
from vae_exp import amortized, mapping
from vae_exp.comparing import maps, rate_distortion
from vae_exp.comparing.runs import read_runs
from vae_exp.config import build
from vae_exp.errors import UserError
from vae_exp.metrics import evaluate
from vae_exp.networks.modulated import Modulated
from vae_exp.run import reading_off
from vae_exp.run.places import Place
from vae_exp.terms import Progress, one_draw

BOTH = ("amortize.beta=[0.25,8]", "amortize.z_dim=[2,4,8]", "model.z_dim=4", "network.hidden_dims=[32]")
SHAPES = {"mlp": (1, 8, 8), "conv": (1, 12, 9), "resnet": (3, 8, 8), "burgess": (1, 32, 32)}
SHAPES |= {"mlp network.hidden_dims=[]": (1, 8, 8)}  # a decoder of one layer: its latents are scaled too


def summaries(folder):
    return [json.loads(path.read_text()) for path in Path(folder).glob("*/summary.json")]


def shaken(config, x_shape, n_classes=10):
    """A model whose scales and shifts are not 0 any more."""
    torch.manual_seed(0)
    model = build.model(config, x_shape, n_classes)
    with torch.no_grad():
        for weights in model.parameters():
            weights += 0.05 * torch.randn_like(weights)
    return model


@pytest.mark.parametrize("network", SHAPES)
@pytest.mark.parametrize("kind", ["vanilla", "conditional"])
def test_the_ordinary_model_of_a_setting_gives_what_the_whole_one_gives_there(network, kind):
    config = build.check(compose(*f"network={network}".split(), f"model={kind}", *BOTH[:3]))
    model, x_shape = shaken(config, SHAPES[network]), SHAPES[network]
    x, y = torch.rand(5, *x_shape), torch.arange(5)
    for beta, z_dim in ((0.25, 2), (1.0, 4), (7.5, 8)):
        setting = amortized.of(beta, z_dim, 5)
        q = model.encode(x, y, setting)
        alone = amortized.settled(model, config, x_shape, beta, z_dim)
        assert not [part for part in alone.modules() if isinstance(part, Modulated)]
        assert alone.z_dim == z_dim
        own = alone.encode(x, y)
        torch.testing.assert_close(own.mean, q.mean[:, :z_dim])
        torch.testing.assert_close(own.log_var, q.log_var[:, :z_dim])
        torch.testing.assert_close(alone.decode(own.mean, y).logits, model.decode(q.mean, y, setting).logits)
        assert q.kl_to_prior()[:, z_dim:].abs().sum() == 0
    plain = build.model(amortized.at(config, 7.5, 8), x_shape, 10)
    assert plain.state_dict().keys() == alone.state_dict().keys()


OF_USERS = "network._target_=tests.networks_of_users."
SETTINGS = (*BOTH[:3], "~network.hidden_dims", "~network.activation", "epochs=1")


@pytest.mark.parametrize(
    "network",
    [
        *[("net", f"+network.kind={kind}") for kind in ("shared", "sequence", "transformer", "weight_norm")],
        *[("net", f"+network.kind='{kind}'") for kind in ("no bias", "batch norm")],
        ("heads",),
    ],
    ids=str,
)
def test_networks_of_users_are_read_off_as_they_are_trained(network):
    config = build.check(compose(OF_USERS + network[0], *network[1:], *SETTINGS))
    model, x_shape = shaken(config, (1, 8, 8)), (1, 8, 8)
    x, y = torch.rand(5, *x_shape), torch.arange(5)
    with model.evaluating():
        reading_off.check(config, model, x, y)
        for beta, z_dim in ((0.25, 2), (7.5, 8)):
            alone, setting = amortized.settled(model, config, x_shape, beta, z_dim), amortized.of(beta, z_dim, 5)
            q = model.encode(x, y, setting)
            torch.testing.assert_close(alone.encode(x, y).mean, q.mean[:, :z_dim], rtol=1e-4, atol=1e-5)
            logits = model.decode(q.mean, y, setting).logits
            torch.testing.assert_close(alone.decode(q.mean[:, :z_dim], y).logits, logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("network", "said"),
    [
        (("net", "+network.kind=functional"), "is not what it is there"),
        (("net", "+network.kind=flattened"), "called with 4 rows for 2 images"),
        (("again", "+network.label_first=false"), "is not what it is there"),
        (("again", "+network.label_first=true", "model=conditional", "model.z_dim=4"), "takes z before the label"),
        (("wide",), "no other layer's width follows from z_dim"),
    ],
    ids=str,
)
def test_networks_that_could_not_be_read_off_are_refused_before_a_run_begins(network, said, vae_train, tmp_path):
    typed = ("dataset=digits", "wandb.mode=disabled", *SETTINGS, "hydra.run.dir=run")
    code, told = vae_train(OF_USERS + network[0], *network[1:], *typed)
    assert (code, said in told) == (1, True), told
    assert "Traceback" not in told
    assert not list(tmp_path.rglob("best.pt"))
    assert not list(tmp_path.rglob("metrics.jsonl"))


def test_it_begins_as_the_plain_model_and_images_of_a_batch_have_settings_of_their_own():
    config = build.check(compose(*BOTH))
    torch.manual_seed(0)
    model = build.model(config, (1, 8, 8), 0)
    torch.manual_seed(0)
    plain = build.model(amortized.at(config, z_dim=8), (1, 8, 8), 0)
    x, y = torch.rand(3, 1, 8, 8), torch.zeros(3, dtype=torch.long)
    setting = torch.tensor([[0.5, 8.0], [4.0, 8.0], [4.0, 2.0]])
    assert torch.equal(model.encode(x, y, setting).mean[:2], plain.encode(x, y).mean[:2])
    model = shaken(config, (1, 8, 8))
    together = model.encode(x, y, setting).mean
    for i in range(3):
        torch.testing.assert_close(model.encode(x[i : i + 1], y[:1], setting[i : i + 1]).mean[0], together[i])
    assert (together[2, 2:] == 0).all()


def test_settings_are_drawn_evenly_over_the_range_and_the_values():
    config = build.check(compose(*BOTH))
    (drawn,) = amortized.draw(config, 3000, torch.Generator().manual_seed(0))
    logs = drawn[:, 0].log().sort().values
    expected = torch.linspace(math.log(0.25), math.log(8), 3000)
    assert (logs - expected).abs().max() < 2 * math.log(32) / 3000
    assert [(drawn[:, 1] == z).sum().item() for z in (2, 4, 8)] == [1000, 1000, 1000]
    assert abs(torch.corrcoef(torch.stack([drawn[:, 0].log(), drawn[:, 1]]))[0, 1]) < 0.1
    assert amortized.draw(build.check(compose()), 10, torch.Generator()) == ()
    (one,) = amortized.draw(build.check(compose("amortize.beta=[0.5,2]")), 4, torch.Generator().manual_seed(0))
    assert (one[:, 1] == 20).all()


def test_a_linear_model_learns_how_its_optimum_depends_on_beta():
    """Data of known variances along its axes, p(x|z) = N(Wz + b, s^2). The optimum is that of probabilistic PCA with
    the variance beta s^2 (Lucas et al. 2019, arXiv:1911.02469): with v = beta s^2, an axis of variance l > v costs
    log(l / v) / 2 nats of KL and leaves a residual of v; the others leave theirs.
    """
    sigma, z_dim, n = 0.5, 4, 2048
    typed = ("network.hidden_dims=[]", "likelihood=gaussian", f"likelihood.sigma={sigma}", "amortize.beta=[0.25,4]")
    config = build.check(compose(*typed, f"model.z_dim={z_dim}"))
    variances, noise = torch.tensor([4.0, 2.0, 1.0, 0.5, 0.1, 0.05]), torch.Generator().manual_seed(0)
    axes = torch.linalg.qr(torch.randn(6, 6, generator=noise))[0]
    white = torch.randn(n, 6, generator=noise)
    white = torch.linalg.svd(white - white.mean(0), full_matrices=False)[0] * math.sqrt(n)
    x, y = ((white * variances.sqrt()) @ axes.T).view(n, 1, 2, 3), torch.zeros(n, dtype=torch.long)

    torch.manual_seed(0)
    model, objective = build.model(config, (1, 2, 3), 0), build.partial(config, "objective")
    steps, lr = 2000, 3e-2
    optimizer = torch.optim.Adam(model.parameters())
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / steps))
        rows = torch.randint(n, (256,), generator=noise)
        eps, setting = torch.randn(256, z_dim, generator=noise), amortized.draw(config, 256, noise)
        now = Progress(step, steps, 1, n)
        loss, _ = one_draw(model, objective, x[rows], y[rows], eps, now, noise, *setting)
        model.zero_grad()
        loss.backward()
        optimizer.step()

    for beta in (0.25, 0.5, 1, 2, 4):
        v, largest = beta * sigma**2, variances[:z_dim]
        kl = (0.5 * (largest / v).log()).clamp(min=0).sum()
        residual = largest.clamp(max=v).sum() + variances[z_dim:].sum()
        exact = 3 * math.log(2 * math.pi * sigma**2) + residual / (2 * sigma**2) + beta * kl
        alone = amortized.settled(model, config, (1, 2, 3), beta)
        q = alone.encode(x, y)
        draws = [-alone.decode(q.rsample(noise), y).log_prob(x).mean() for _ in range(10)]
        found = torch.stack(draws).mean() + beta * q.kl_to_prior().sum(1).mean()
        assert found.item() == pytest.approx(exact.item(), rel=0.01), beta


def test_a_run_is_measured_at_its_own_setting_and_keeps_its_map(vae_command):
    summary, folder = quick_run(*BOTH, "epochs=2", "figure_every_epochs=1", wandb="offline")
    model = vae_exp.load(folder)
    assert model.model.z_dim == 4
    assert len(model.kl_per_dim) == 4
    test = model.read_data().split("test")
    again = evaluate(model.model, test, build.generator(0, "evaluation"))
    assert summary["test/neg_elbo"] == pytest.approx(again.neg_elbo, abs=1e-4)
    assert all(len(row["val/kl_per_dim"]) == 4 for row in metrics(folder) if "val/kl_per_dim" in row)
    held = json.loads((folder / "map.json").read_text())
    settings = [(place["beta"], place["z_dim"]) for place in held["test"]]
    assert settings == [(beta, z) for z in (2, 4, 8) for beta in (0.25, 0.5, 1, 2, 4, 8)]
    chosen = held["test"][settings.index((4, 8))]
    alone = model.at(beta=4, z_dim=8)
    assert alone.model.z_dim == 8
    measured = evaluate(alone.model, test, build.generator(0, "evaluation"))
    assert chosen["kl"] == pytest.approx(measured.per_image["kl"].mean().item(), rel=1e-4)
    assert chosen["neg_elbo"] == pytest.approx(measured.neg_elbo, abs=0.3), "other noise"
    pictures = sorted(path.name for path in (folder / "images").glob("*map*"))
    assert pictures == ["map_0000011.png", "map_0000022.png", "test_map_0000022.png"]
    (logged,) = Path("outputs/wandb").glob("offline-run-*")
    items = {name for record in recorded(logged)["history"] for name in record["item"]}
    assert {"images/map.caption", "images/test_map.caption"} <= items


def test_a_setting_is_an_ordinary_model_that_is_exported_and_read_again():
    _, folder = quick_run(*BOTH)
    alone = vae_exp.load(folder).at(beta=4, z_dim=2)
    assert alone.config["model"] | {"beta": 4, "z_dim": 2} == alone.config["model"]
    alone.export("alone.safetensors")
    again = vae_exp.load("alone.safetensors")
    assert torch.equal(alone.sample(5, seed=1), again.sample(5, seed=1))
    assert again.kl_per_dim == pytest.approx(alone.kl_per_dim)
    assert alone.weights != vae_exp.load(folder).weights
    for wrong, said in (({"beta": 9}, "0.25 to 8"), ({"z_dim": 3}, "2, 4, 8"), ({"beta": 0.1}, "0.25 to 8")):
        with pytest.raises(UserError, match=said):
            alone.at(**wrong)
    with pytest.raises(UserError, match="4 alone"):
        again.at(beta=1)
    model = vae_exp.load(folder)
    numbers = (np.float64(4), np.int64(2)), (torch.tensor(4.0), torch.tensor(2)), (4, 2)
    samples = [model.at(beta, z_dim).sample(2, seed=1) for beta, z_dim in numbers]
    assert torch.equal(samples[0], samples[1]) and torch.equal(samples[1], samples[2])
    for wrong in ("2", [1, 2], 1j, math.nan, True, np.array([1.0, 2.0])):
        with pytest.raises(UserError, match="beta="):
            model.at(wrong)
        with pytest.raises(UserError, match="z_dim="):
            model.at(4, wrong)


@pytest.mark.parametrize("entry", ["objective", "amortize", "model"])
@pytest.mark.parametrize("value", [None, 3, {}, "gone"])
def test_a_checkpoint_of_it_with_an_entry_altered_is_refused_in_one_message(entry, value):
    quick_run(*BOTH)
    path = Path("run/best.pt")
    state = stored(path)
    state["config"] |= {entry: value}
    if value == "gone":
        del state["config"][entry]
    torch.save(state, path)
    if (entry, value) == ("objective", {}):  # which nothing of the model comes from
        assert vae_exp.load(path).sample(2, seed=0).isfinite().all()
        return
    with pytest.raises(UserError, match="checkpoint"):
        vae_exp.load(path)


def test_evaluate_and_generate_take_settings(vae_command):
    quick_run(*BOTH)
    code, said = vae_command("vae-evaluate", "checkpoint=run", "beta=[0.5,2]", "z_dim=[2,8]", "importance_samples=2")
    assert code == 0, said
    rows = json.loads(Path("run/best.test.settings.json").read_text())["rows"]
    assert [(row["beta"], row["z_dim"]) for row in rows] == [(0.5, 2), (2, 2), (0.5, 8), (2, 8)]
    model = vae_exp.load("run")
    for row in rows:
        alone = model.at(row["beta"], row["z_dim"])
        again = evaluate(alone.model, model.read_data().split("test"), build.generator(0, "evaluation"), 5, 1000)
        assert row["neg_elbo"] == pytest.approx(again.neg_elbo, abs=1e-4)
        assert row["nll"] > 0
        assert f"{row['neg_elbo']:.3f}" in said
    assert Path("run/generated/settings.png").stat().st_size > 10_000
    assert not Path("run/best.test.json").exists()
    code, said = vae_command("vae-evaluate", "checkpoint=run", "beta=[0.5,20]")
    assert (code, "beta=20: the model was trained for 0.25 to 8" in said) == (1, True)
    code, said = vae_command("vae-generate", "checkpoint=run", "what=traversals", "beta=0.5", "z_dim=8")
    assert code == 0, said
    assert Path("run/generated/traversals_beta-0.5_z_dim-8.png").exists()
    code, said = vae_command("vae-generate", "checkpoint=run", "what=weights", "beta=0.5", "z_dim=8")
    assert code == 0, said
    kept = vae_exp.load("run/generated/best_beta-0.5_z_dim-8.safetensors")
    assert torch.equal(kept.sample(2, seed=0), model.at(0.5, 8).sample(2, seed=0))
    code, said = vae_command("vae-generate", "checkpoint=run", "z_dim=5")
    assert (code, "z_dim=5: the model was trained for 2, 4, 8" in said) == (1, True)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (("amortize.beta=[2,8]",), "model.beta=1: the run is measured at it"),
        (("amortize.z_dim=[2,5]",), "model.z_dim=20: the run is measured at it"),
        (("amortize.z_dim=[5,5]",), "a list of different whole numbers"),
        (("amortize.beta=[8,2]",), "the lowest and the highest"),
        (("amortize.beta=2",), "the lowest and the highest"),
        (("amortize.beta=[0.5,2]", "objective=iwae"), "of objective=elbo alone"),
        (("amortize.beta=[0.5,2]", "likelihood=gaussian", "likelihood.sigma=optimal"), "one for all settings"),
        (("amortize.beta=[0.5,2]", "model=autoencoder", "model.beta=1"), "no KL to weigh"),
        (("amortize.confirm=2",), "there is no map to confirm"),
        (("amortize.beta=[0.5,2]", "amortize.confirm=2", "-m", "seed=0,1"), "is of one run"),
        (("amortize.beta=[0.5,2]", "-m", "amortize.confirm=0,2"), "is of one run"),
        (("amortize=null",), "amortize"),
        (("amortize=3",), "amortize"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(typed, said, vae_train, tmp_path):
    code, told = vae_train("dataset=digits", *typed)
    assert (code, said in told) == (1, True), told
    assert not list(tmp_path.iterdir())


def test_a_run_for_one_setting_cannot_go_on_as_one_for_many():
    quick_run("network.hidden_dims=[16]")
    with pytest.raises(UserError, match=r"amortize.beta=\[0.5, 2\]: the run has amortize.beta=None"):
        quick_run("network.hidden_dims=[16]", "amortize.beta=[0.5,2]", "epochs=2", "resume=run")


def test_the_best_settings_are_trained_for_themselves_and_compared(vae_train, vae_command):
    typed = ("dataset=digits", "device=cpu", *BOTH, "epochs=2", "wandb.mode=disabled", "hydra.run.dir=run")
    code, said = vae_train(*typed, "amortize.confirm=2")
    assert code == 0, said
    held = json.loads(Path("run/map.json").read_text())
    best = sorted(held["val"], key=lambda place: place["neg_elbo"])[:2]
    assert [row["map"] for row in held["confirmed"]["settings"]] == best
    for row in held["confirmed"]["settings"]:
        folder = Path("run/confirmed") / row["setting"]
        alone = vae_exp.load(folder)
        assert (alone.config["model"]["beta"], alone.config["model"]["z_dim"]) == (
            row["map"]["beta"],
            row["map"]["z_dim"],
        )
        measured = mapping.measure_one(alone.model, alone.read_data().split("val"), 1, 1)
        assert row["alone"]["neg_elbo"] == measured["neg_elbo"]
        assert f"{row['alone']['neg_elbo']:.2f}" in said
    code, said = vae_train("resume=run", "amortize.confirm=3")
    assert code == 0, said
    assert said.count("already finished") == 2
    assert len(list(Path("run/confirmed").iterdir())) == 3

    code, said = vae_command("vae-compare", "run", "--map", "map.png")
    assert code == 0, said
    figure = maps.draw(read_runs(["run"])[0])
    drawn = [line for line in figure.axes[0].lines if line.get_marker() == "X"]
    assert sorted(line.get_xdata()[0] for line in drawn) == sorted(run["test/kl"] for run in summaries("run/confirmed"))
    code, said = vae_command("vae-compare", "run/confirmed", "--map", "map.png")
    assert (code, "none of these runs has a map" in said) == (1, True)
    place = json.loads(Path("run/map.json").read_text())["test"][0]
    for damaged in ([], [place | {"z_dim": math.inf}], [place | {"beta": -1}], [place | {"kl": math.nan}], ["x"]):
        Path("run/map.json").write_text(json.dumps({"test": damaged}))
        code, said = vae_command("vae-compare", "run", "--map", "map.png")
        assert (code, "run/map.json: damaged" in said) == (1, True)
    code, said = vae_command("vae-compare", "run", "--map", "map.foo")
    assert (code, "a picture is a .png" in said) == (2, True)


@pytest.mark.slow
def test_the_newest_run_is_the_one_with_the_map_and_goes_on_confirming(vae_train, vae_command):
    typed = ("dataset=digits", "device=cpu", *BOTH, "epochs=1", "wandb.mode=disabled", "amortize.confirm=2")
    code, said = vae_train(*typed)
    assert code == 0, said
    code, said = vae_command("vae-evaluate", "checkpoint=latest", "beta=[0.5,2]")
    assert code == 0, said
    (folder,) = {path.parent for path in Path("outputs").rglob("map.json")}
    second = sorted((folder / "confirmed").iterdir())[1]
    summary = json.loads((second / "summary.json").read_text())
    (second / "summary.json").write_text(json.dumps(summary | {"state": "interrupted"}))
    code, said = vae_train(*typed, "resume=auto")
    assert code == 0, said
    assert said.count("already finished") == 1
    assert json.loads((second / "summary.json").read_text())["state"] == "finished"
    assert len(list(Path("outputs").rglob("map.json"))) == 1
    code, said = vae_train("resume=latest", "epochs=2")
    assert code == 0, said
    assert "already finished" not in said
    lengths = [
        yaml.safe_load(path.read_text())["epochs"] for path in folder.rglob("config.yaml") if path.parent != folder
    ]
    assert lengths.count(2) >= 2


@pytest.mark.slow
def test_confirmed_runs_are_runs_of_their_own_in_wandb(vae_train, monkeypatch):
    typed = ("dataset=digits", "device=cpu", *BOTH, "epochs=1", "wandb.mode=offline", "amortize.confirm=1")
    monkeypatch.setenv("WANDB_RUN_ID", "mine")
    code, said = vae_train(*typed, "hydra.run.dir=run")
    assert (code, "WANDB_RUN_ID=mine" in said) == (1, True)
    monkeypatch.delenv("WANDB_RUN_ID")
    code, said = vae_train(*typed, "hydra.run.dir=run", "wandb.name=mine")
    assert code == 0, said
    kept = [json.loads(path.read_text()) for path in Path("run").rglob("summary.json")]
    assert len({summary["wandb"]["id"] for summary in kept}) == 2
    assert sorted(summary["name"] for summary in kept)[0] == "mine"
    assert sorted(summary["name"] for summary in kept)[1].startswith("mine beta-")


def test_evaluations_of_settings_and_of_splits_are_together_in_wandb(vae_command):
    quick_run(*BOTH, wandb="offline")
    for typed in ((), ("beta=[0.5,2]", "split=val"), ("beta=1",)):
        code, said = vae_command("vae-evaluate", "checkpoint=run", *typed)
        assert code == 0, said
    logged = [recorded(folder) for folder in Path("outputs/wandb").glob("offline-run-*")]
    (summary,) = [keys for log in logged if "evaluate/test/kl" in (keys := keys_of(log))]
    assert {f"evaluate/val/beta-{beta}_z_dim-4/neg_elbo" for beta in ("0.5", "2")} <= summary
    assert "evaluate/test/beta-1_z_dim-4/kl" in summary


def keys_of(log):
    return {name for record in log["summary"] for name in record.get("update", {})}


def test_an_objective_of_a_users_must_take_the_beta_of_each_image(vae_train):
    typed = (
        "dataset=digits",
        *BOTH,
        "epochs=1",
        "wandb.mode=disabled",
        "~objective.warmup",
        "~objective.warmup_epochs",
    )
    typed = (*typed, "~objective.warmup_steps", "~objective.warmup_fraction", "~objective.cycles", "~objective.beta")
    code, said = vae_train(*typed, "objective._target_=tests.networks_of_users.without_beta")
    assert (code, "must take beta" in said, "Traceback" in said) == (1, True, False), said


def test_the_map_is_drawn_with_one_setting_of_either():
    places = [Place(beta=b, z_dim=2, neg_elbo=3 + b, reconstruction=3.0, kl=b, active_units=1) for b in (1, 2)]
    figure = rate_distortion.draw(places, "title", places[:1])
    assert [axes.get_title() for axes in figure.axes][1] == "neg_elbo"
