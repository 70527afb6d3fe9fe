"""What is not training is written when it is due: by its share of the time, by epochs where that is asked for."""

import itertools
import os
import time
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from tests import hooks
from tests.conftest import QUICK, metrics, quick_run, stored
from tests.hooks import Crash
from vae_exp.errors import UserError
from vae_exp.figures import training
from vae_exp.sweeps import sweepers
from vae_exp.training import checkpoints
from vae_exp.training.stopper import CHECKPOINTS_SHARE, Cadence

STEP, WRITE, DRAW = 0.1, 0.05, 0.02  # seconds of the clock below
EPOCH = 11 * STEP  # of the digits
RUN = ("network.hidden_dims=[16]", "model.z_dim=3", hooks.OWN_OBJECTIVE)


@pytest.fixture
def clock(monkeypatch):
    """A clock on which only steps, checkpoints and pictures take time; it notes when last.pt was written."""

    class Clock:
        now, written, saving = 1000.0, [], True

    def spends(event, arguments):
        if event == "os.rename" and str(os.fsdecode(arguments[1])).endswith("last.pt"):
            Clock.now += WRITE
            Clock.written.append(Clock.now)
        elif event == "os.rename" and str(os.fsdecode(arguments[1])).endswith(".png"):
            Clock.now += DRAW

    def step(*_):
        Clock.now += STEP

    Clock.written = []
    monkeypatch.setattr(time, "monotonic", lambda: Clock.now)
    with hooks.at_call(spends), hooks.in_step(step):
        yield Clock


def drawn_after(folder, name="samples"):
    """The epochs after which a picture was drawn."""
    return [int(path.stem.rpartition("_")[2]) // 11 for path in sorted((folder / "images").glob(f"{name}_*"))]


@pytest.mark.slow
def test_pictures_and_checkpoints_take_their_share_of_the_time_and_no_more(clock):
    _, folder = quick_run(*RUN, "epochs=40")
    checkpoints_due, pictures_due = WRITE / CHECKPOINTS_SHARE, 2 * DRAW / training.SHARE
    gaps = [b - a for a, b in itertools.pairwise(clock.written)]
    assert len(clock.written) > 5
    assert all(gap <= checkpoints_due + EPOCH + 3 * DRAW + WRITE for gap in gaps), "a kill loses no more"
    assert all(gap >= checkpoints_due for gap in gaps[:-1]), "it costs no more than its share"
    assert stored(folder / "last.pt")["epoch"] == 40
    drawn = drawn_after(folder)
    assert (drawn[0], drawn[-1], drawn_after(folder, "reconstructions")) == (1, 40, drawn)
    assert all((b - a) * EPOCH >= pictures_due - 3 * DRAW - WRITE - EPOCH for a, b in itertools.pairwise(drawn[:-1]))
    assert 3 < len(drawn) < 12


def test_what_takes_long_is_written_first_and_at_the_end_also_where_patience_ends_the_run(clock, monkeypatch):
    monkeypatch.setattr("tests.test_price.WRITE", 10.0)
    monkeypatch.setattr("tests.test_price.DRAW", 10.0)
    stuck = ("optimizer.lr=1e-30", "early_stopping.patience=3")  # no epoch is better than the first
    summary, folder = quick_run(*RUN, *stuck, "epochs=9", "figures=[traversals]")
    assert "early_stopping.patience" in summary["reason"]
    assert drawn_after(folder) == [1, 4]
    assert drawn_after(folder, "traversals") == [4], "its price is guessed before the first"
    assert len(clock.written) == 2
    assert (stored(folder / "last.pt")["epoch"], stored(folder / "best.pt")["epoch"]) == (4, 1)


@pytest.mark.parametrize(("every", "epochs"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (9, [5])])
def test_keys_that_are_set_mean_what_they_say_whatever_it_costs(clock, monkeypatch, every, epochs):
    monkeypatch.setattr("tests.test_price.WRITE", 100.0)
    monkeypatch.setattr("tests.test_price.DRAW", 100.0)
    keys = (f"checkpoint_every_epochs={every}", f"figure_every_epochs={every}")
    _, folder = quick_run(*RUN, *keys, "epochs=5", "figures=[traversals]")
    assert drawn_after(folder) == drawn_after(folder, "traversals") == epochs
    assert len(clock.written) == len(epochs)


@pytest.mark.slow
def test_a_run_that_is_killed_between_two_checkpoints_goes_on_to_the_bit(clock):
    quick_run(*RUN, "epochs=9", folder="whole")
    with hooks.crash_at(8 * 11 - 1), pytest.raises(Crash):
        quick_run(*RUN, "epochs=9")
    kept = checkpoints.load(Path("run/last.pt"))
    assert 0 < kept.epoch < 7
    assert (7 - kept.epoch) * EPOCH <= WRITE / CHECKPOINTS_SHARE + EPOCH
    quick_run(*RUN, "epochs=9", "resume=run")
    for name in ("last.pt", "best.pt"):
        whole, resumed = (stored(Path(folder, name)) for folder in ("whole", "run"))
        assert all(torch.equal(resumed["model"][key], weights) for key, weights in whole["model"].items())
        assert (resumed["step"], resumed["best"]) == (whole["step"], whole["best"])
    numbers = [
        [{key: value for key, value in row.items() if not key.startswith("time/")} for row in metrics(folder)]
        for folder in ("whole", "run")
    ]
    assert numbers[0] == numbers[1]
    whole, resumed = (
        {path.name: path.read_bytes() for path in Path(run, "images").iterdir()} for run in ("whole", "run")
    )
    common = whole.keys() & resumed.keys()
    assert len(common) >= 3
    assert all(whole[name] == resumed[name] for name in common)


def test_the_best_epoch_is_the_best_of_all_not_of_those_that_were_written(clock, monkeypatch):
    monkeypatch.setattr("tests.test_price.WRITE", 1000.0)
    summary, folder = quick_run(*RUN, "epochs=6", "optimizer.lr=0.3")
    epochs = [row for row in metrics(folder) if "val/neg_elbo" in row]
    best = min(epochs, key=lambda row: row["val/neg_elbo"])
    assert summary["best/epoch"] == best["epoch"] == stored(folder / "best.pt")["epoch"]


@pytest.mark.parametrize("key", ["checkpoint_every_epochs", "figure_every_epochs"])
def test_other_words_than_auto_are_refused(key):
    with pytest.raises(UserError, match=rf"{key}=often: it takes a whole number, 1 or more, or auto"):
        quick_run(f"{key}=often")


def test_null_means_not_by_epochs_and_a_share_counts_from_the_end():
    assert not Cadence(None, 0.01).is_due(1)
    assert Cadence("auto", 0.5).is_due(1)
    assert not Cadence("auto", 0.5, price=100.0).is_due(1)


@pytest.mark.parametrize(
    "swept",
    [
        ("model=vanilla,beta", "network.hidden_dims=[8],[16,8]"),
        ("model.beta=2,'${seed}'", "wandb.notes='a=b','c,d'", "optimizer=sgd"),
        pytest.param(("++seed=0,1", "optimizer.lr=1e-3,3e-3"), marks=pytest.mark.slow),
        pytest.param(
            ("early_stopping={patience:2},{patience:3}", "seed=0,1", "hydra.verbose=false"), marks=pytest.mark.slow
        ),
    ],
)
def test_the_configurations_of_a_sweep_are_those_that_hydra_composes(vae_train, monkeypatch, swept):
    load, compared = sweepers.JobConfigs.load_sweep_config, []

    def load_both(self, master_config, sweep_overrides):
        known = len(self.composed)
        cfg = load(self, master_config, sweep_overrides)
        if len(self.composed) == known:
            hydras = self.loader.load_sweep_config(master_config, sweep_overrides)
            compared.append((OmegaConf.to_yaml(cfg), OmegaConf.to_yaml(hydras)))
        return cfg

    monkeypatch.setattr(sweepers.JobConfigs, "load_sweep_config", load_both)
    code, said = vae_train("-m", *QUICK[::2], "epochs=0", "wandb.mode=disabled", *swept)
    assert code == 0, said
    assert compared
    assert all(ours == hydras for ours, hydras in compared)
