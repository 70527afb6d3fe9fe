"""Runs that were stopped go on to the bit; what contradicts them, or is damaged, is said."""

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

import vae_exp
from tests import hooks
from tests.conftest import QUICK, command, metrics, quick_run, recorded, stored
from tests.hooks import Crash
from vae_exp.errors import UserError
from vae_exp.train import train
from vae_exp.training import checkpoints
from vae_exp.training.run_dir import read_config
from vae_exp.training.state import Best, TrainState
from vae_exp.training.stopper import patience_reason

STEPS_PER_EPOCH = 11  # of the digits, 1,297 images in batches of 128
# What must come back: weights, a label's width, schedules, noise of the data, a learned buffer, streamed images.
KINDS = {
    "vanilla": ("log_every_steps=4",),
    "conditional": ("model=conditional", "optimizer=adamw", "dataset.flip=true"),
    "schedules": ("objective.warmup_epochs=3", "scheduler=cosine", "model=beta"),
    "dynamic": ("dataset.binarize=dynamic", "optimizer=sgd", "optimizer.momentum=0.9"),
    "buffer": ("likelihood=gaussian", "likelihood.sigma=optimal", "dataset.device_memory=0"),
    "no validation": ("dataset.val_size=0",),
    "averaged": ("ema=0.9", "gradient_clip_norm=5", "likelihood=gaussian", "likelihood.sigma=optimal"),
    "vamp": ("prior=vamp", "prior.components=5", "prior.init=data", "posterior=full", "ema=0.9", "model=conditional"),
    "flows": ("prior=flow", "prior.hidden_dim=8", "posterior=iaf", "posterior.hidden_dims=[8]"),
    "accumulated": ("batch_size=32", "accumulate_steps=4", "dataset.flip=true"),
}
EVERY_EPOCH = ("checkpoint_every_epochs=1", "figure_every_epochs=1")  # not by the clock, which no two runs share
SMALL = ("network.hidden_dims=[16]", "model.z_dim=3", hooks.OWN_OBJECTIVE, *EVERY_EPOCH)  # own: trust=true
RUN = (*QUICK, *SMALL, "wandb.mode=disabled")


def the_same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(the_same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(the_same, a, b))
    return a == b


TOLD = {"seconds", "epoch_seconds", "metrics_bytes", "wandb_id"}  # lines hold times, of unequal length


def everything(folder):
    """All that a run leaves and that does not depend on the time it took."""
    folder, left = Path(folder), {}
    for name in ("last.pt", "best.pt"):
        state = stored(folder / name)
        state["resume"] = {key: value for key, value in state["resume"].items() if key not in TOLD}
        state["config"] = state["config"] | {"resume": None, "epochs": None}
        left[name] = state
    left["metrics"] = [{k: v for k, v in row.items() if not k.startswith("time/")} for row in metrics(folder)]
    summary = json.loads((folder / "summary.json").read_text())
    left["summary"] = {key: value for key, value in summary.items() if key not in ("seconds", "environment")}
    left["images"] = {path.name: path.read_bytes() for path in sorted((folder / "images").iterdir())}
    return left


def assert_the_same_runs(*folders):
    """Everything that the runs left is equal to the bit."""
    first, second = map(everything, folders)
    for part in first:
        assert the_same(first[part], second[part]), part


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_died_inside_an_epoch_goes_on_to_the_bit(kind):
    settings = (*SMALL, *KINDS[kind], "epochs=3", "checkpoint_every_steps=4")
    quick_run(*settings, folder="whole")
    with hooks.crash_at(2 * STEPS_PER_EPOCH - 1), pytest.raises(Crash):
        quick_run(*settings)
    assert checkpoints.load(Path("run/last.pt")).step == 20
    assert metrics("run")[-1]["step"] <= 21
    quick_run(*settings, "resume=run")
    assert_the_same_runs("whole", "run")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vanilla", "conditional", "dynamic", "buffer", "no validation"])
def test_training_longer_equals_having_trained_so_long(kind):
    settings = (*SMALL, *KINDS[kind])
    quick_run(*settings, "epochs=4", folder="whole")
    quick_run(*settings, "epochs=2")
    quick_run(*settings, "epochs=4", "resume=run")
    assert_the_same_runs("whole", "run")


def renamed_to(event, arguments):
    """The name under which a file that was written beside is put in its place; None at any other call."""
    return Path(os.fsdecode(arguments[1])).name if event == "os.rename" else None


@pytest.mark.slow
def test_every_moment_to_die_is_survived():
    """Before each file that is put in its place, as an epoch's pictures are drawn, and at the very end."""
    settings = (*SMALL, "epochs=2", "checkpoint_every_steps=3", "early_stopping.patience=1")
    places = []  # the names of all files that are put in their place, and of all pictures, in their order

    def place(event, arguments):
        if name := renamed_to(event, arguments):
            return name
        is_picture = event == "open" and str(arguments[0]).endswith(".png") and "w" in str(arguments[1])
        return Path(arguments[0]).name if is_picture else None

    with hooks.at_call(lambda *call: places.append(place(*call)) if place(*call) else None):
        quick_run(*settings, folder="whole")
    after = range(places.index("last.pt") + 1, len(places))  # before that there is nothing to go on from
    deadly = [n for n in after if places[n].endswith((".pt", ".png")) or n == after[-1]]
    assert len(deadly) > 12
    for number in deadly:
        seen = []

        def dies(*call, seen=seen, number=number):
            if place(*call):
                seen.append(1)
                if len(seen) == number + 1:
                    raise Crash

        shutil.rmtree("run", ignore_errors=True)
        with hooks.at_call(dies), pytest.raises(Crash):
            quick_run(*settings)
        quick_run(*settings, "resume=run")
        assert_the_same_runs("whole", "run")


def stop(number=signal.SIGTERM):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_of_a_scheduler_saves_ends_the_run_and_then_calls_who_was_there_before(number):
    called = []
    before = signal.signal(number, lambda *call: called.append((call[0], Path("run/last.pt").exists(), ended())))
    try:
        with hooks.at_step(4, lambda: stop(number)), pytest.raises(SystemExit) as stopped:
            quick_run(*SMALL)
        assert stopped.value.code == 128 + number
        assert called == [(number, True, ("interrupted", number.name))]
        assert stored(Path("run/last.pt"))["step"] == 4
        stop(number)
        assert len(called) == 2, "it has its signal back"
    finally:
        signal.signal(number, before)


def ended():
    summary = json.loads(Path("run/summary.json").read_text())
    return summary["state"], summary["reason"]


def test_a_signal_that_is_ignored_stays_so():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with hooks.at_step(4, lambda: stop(signal.SIGHUP)):
            quick_run(*SMALL)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert ended() == ("finished", None)


def test_a_signal_in_the_last_step_of_an_epoch_leaves_nothing_of_it_to_do():
    settings = (*SMALL, "epochs=2", "log_every_steps=1")
    quick_run(*settings, folder="whole")
    with hooks.at_step(STEPS_PER_EPOCH, stop), pytest.raises(SystemExit):
        quick_run(*settings)
    assert [stored(Path("run/last.pt"))[name] for name in ("step", "epoch")] == [STEPS_PER_EPOCH, 0]
    quick_run(*settings, "resume=run")
    assert_the_same_runs("whole", "run")


@pytest.mark.slow
@pytest.mark.parametrize("written", ["best.pt", "last.pt"])
def test_a_signal_while_a_checkpoint_is_written_still_saves_the_run(written):
    settings = (*SMALL, "epochs=4")
    quick_run(*settings, folder="whole")
    seen = []

    def caught(*call):
        if renamed_to(*call) == written:
            seen.append(1)
            if len(seen) == 3:
                stop()

    with hooks.at_call(caught), pytest.raises(SystemExit):
        quick_run(*settings)
    assert len(seen) >= 3
    quick_run(*settings, "resume=run")
    assert_the_same_runs("whole", "run")


@pytest.mark.slow
def test_with_rare_checkpoints_the_best_epoch_waits_in_memory_and_a_signal_saves_it():
    settings = (*SMALL, "epochs=4", "checkpoint_every_epochs=null")
    quick_run(*settings, folder="whole")
    written = []
    with (
        hooks.at_call(lambda *call: written.append(renamed_to(*call))),
        hooks.at_step(3 * STEPS_PER_EPOCH - 1, stop),
        pytest.raises(SystemExit),
    ):
        quick_run(*settings)
    assert [name for name in written if str(name).endswith(".pt")] == ["best.pt", "last.pt"]
    assert checkpoints.load(Path("run/best.pt")).epoch == 2
    quick_run(*settings, "resume=run")
    assert_the_same_runs("whole", "run")


def test_a_run_of_before_there_was_a_choice_of_precision_goes_on():
    quick_run(*SMALL)
    state = stored(Path("run/last.pt"))
    for key in ("precision", "compile"):
        del state["config"][key]
    torch.save(state, Path("run/last.pt"))
    quick_run(*SMALL, "epochs=2", "resume=run")
    assert checkpoints.load(Path("run/last.pt")).epoch == 2


def test_a_contradiction_is_refused_with_both_values_and_what_may_change_changes():
    quick_run(*SMALL)
    before = everything("run")
    with pytest.raises(UserError) as error:
        quick_run("model.z_dim=4", "optimizer.lr=0.01", "epochs=2", "resume=run")
    assert "model.z_dim=4: the run has model.z_dim=3" in str(error.value)
    assert "optimizer.lr=0.01: the run has optimizer.lr=0.001" in str(error.value)
    assert the_same(everything("run"), before)
    may_change = ("log_every_steps=3", "checkpoint_every_steps=2", "figures=[manifold]", "wandb.name=x", "epochs=2")
    assert quick_run(*SMALL, *may_change, "resume=run")[0]["best/epoch"] == 2


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(caplog):
    caplog.set_level("INFO")
    settings = (*SMALL, "epochs=2")
    quick_run(*settings, folder="whole")
    quick_run(*settings)
    last = Path("run/last.pt")
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1  # one bit of a weight: the file's form is whole
    last.write_bytes(content)
    Path("run/images/samples_0000022.png.1.partial").touch()
    quick_run(*settings, "resume=run")
    assert not [*Path("run").rglob("*.partial")]
    assert "run/last.pt: damaged" in caplog.text
    assert "resumes from run/last.previous.pt: step 11" in caplog.text
    assert the_same(everything("run"), everything("whole"))
    for name in ("last.pt", "last.previous.pt"):
        Path("run", name).write_text("not a checkpoint")
    with pytest.raises(UserError, match=r"resume=run: no last\.pt that can be read"):
        quick_run(*settings, "resume=run")


@pytest.mark.parametrize("damage", [b"", b'{"step": 3', b"\xff\xfe\n"])
def test_lost_rows_are_told_of(caplog, damage):
    quick_run(*SMALL)
    Path("run/metrics.jsonl").write_bytes(damage)
    quick_run(*SMALL, "epochs=2", "resume=run")
    assert "run/metrics.jsonl: rows from before step 11 are lost or damaged; the weights are not" in caplog.text


STANDS_STILL = ("scheduler=milestones", "scheduler.at_epochs=[1]", "scheduler.gamma=1e-30")  # after its first epoch


@pytest.mark.parametrize("fate", ["deleted", "damaged", "of another epoch", "of another run", "of another size"])
def test_without_the_weights_of_its_best_epoch_a_run_is_refused_before_it_trains(vae_train, trained_by_command, fate):
    trained_by_command(*RUN, *STANDS_STILL, "epochs=2")
    best = Path("run/best.pt")
    assert checkpoints.load(best).epoch == 1
    if fate == "deleted":
        best.unlink()
    elif fate in ("of another run", "of another size"):
        other = "seed=1" if fate == "of another run" else "model.z_dim=4"
        trained_by_command(*RUN, *STANDS_STILL, "epochs=2", other, folder="other")
        best.write_bytes(Path("other/best.pt").read_bytes())  # of the same step
    else:
        best.write_bytes(best.read_bytes()[:-100] if fate == "damaged" else Path("run/last.pt").read_bytes())

    def content():
        return {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}

    before = content()
    code, said = vae_train("resume=run", "trust=true", "epochs=3")
    assert code == 1
    assert re.match(r"vae-train: resume=run: .*best epoch.* lost. checkpoint=run/best.pt: ", said)
    assert len(said.splitlines()) == 1
    assert content() == before, "not even Hydra's account of the start"


@pytest.mark.slow
@pytest.mark.parametrize("fate", ["deleted", "damaged"])
def test_the_weights_of_a_best_epoch_that_is_the_last_come_back_from_last_pt(fate):
    settings = (*SMALL, "epochs=3")
    quick_run(*settings, folder="whole")
    quick_run(*SMALL, "epochs=2")
    best = Path("run/best.pt")
    assert checkpoints.load(best).epoch == 2
    best.unlink() if fate == "deleted" else best.write_bytes(b"cut off")
    quick_run(*settings, "resume=run")
    assert_the_same_runs("whole", "run")


def test_other_data_than_the_runs_are_refused():
    quick_run(*SMALL)
    state = stored(Path("run/last.pt"))
    state["resume"]["facts"]["train_size"] = 1300
    torch.save(state, Path("run/last.pt"))
    with pytest.raises(UserError, match="train_size is 1297, and was 1300"):
        quick_run(*SMALL, "epochs=2", "resume=run")


@pytest.mark.parametrize("limit", ["max_steps=5", "early_stopping.patience=1 optimizer.lr=1e-30 epochs=3"])
def test_a_run_that_ends_early_writes_its_last_checkpoint_once(limit):
    """Else last.previous.pt would be a copy of last.pt, and damage to the one would cost the run."""
    quick_run(*SMALL, *limit.split(), "checkpoint_every_steps=4")
    last, previous = (stored(Path("run", name))["step"] for name in ("last.pt", "last.previous.pt"))
    assert previous < last


def test_patience_ends_a_run_and_a_longer_one_goes_on(vae_train):
    states = [TrainState([], torch.empty(0), epoch=epoch, best=Best(3, 33)) for epoch in (3, 4, 5, 6)]
    assert [bool(patience_reason(2, state, "val/kl")) for state in states] == [False, False, True, True]
    assert not patience_reason(None, states[-1], "val/kl")
    stuck = ("optimizer.lr=1e-30", "early_stopping.patience=2")  # no epoch is better than the first
    summary, folder = quick_run(*SMALL, *stuck, "epochs=9")
    assert summary["state"] == "finished"
    assert summary["reason"] == "early_stopping.patience=2: no better val/neg_elbo since epoch 1"
    assert [row["epoch"] for row in metrics(folder) if "val/kl" in row] == [1, 2, 3]
    quick_run(*SMALL, *stuck[:1], "early_stopping.patience=4", "epochs=9", "resume=run")
    assert [row["epoch"] for row in metrics(folder) if "val/kl" in row] == [1, 2, 3, 4, 5]


@pytest.mark.slow
@pytest.mark.parametrize("step", [3, 15])
def test_max_minutes_ends_a_run_cleanly_also_inside_its_first_epoch(step):
    settings = (*SMALL, "epochs=2")
    quick_run(*settings, folder="whole")
    with hooks.at_step(step, lambda: time.sleep(3)):  # the run without it takes a tenth of that
        summary, folder = quick_run(*settings, "max_minutes=0.04")
    assert (summary["state"], summary["reason"]) == ("finished", "max_minutes=0.04 are over")
    assert {"test/neg_elbo", "best/epoch"} <= summary.keys()
    assert 0 < checkpoints.load(folder / "last.pt").step < 2 * STEPS_PER_EPOCH
    quick_run(*settings, "max_minutes=60", "resume=run")
    assert the_same(everything("run")["metrics"], everything("whole")["metrics"])
    assert the_same(everything("run")["images"], everything("whole")["images"])


def test_the_command_goes_on_in_the_same_folder_with_what_was_typed_before(vae_train):
    assert vae_train(*RUN, "model=beta")[0] == 0
    (folder,) = Path("outputs").glob("*/*beta*")
    assert vae_train("resume=latest", "trust=true", "epochs=2")[0] == 0
    assert vae_train(f"resume={folder}/last.pt", "trust=true", "epochs=3", "log_every_steps=2")[0] == 0
    assert [path.parent for path in Path("outputs").rglob("summary.json")] == [folder]
    assert [row["epoch"] for row in metrics(folder) if "val/kl" in row] == [1, 2, 3]
    kept = OmegaConf.load(folder / "config.yaml")
    assert (kept.model.name, kept.model.z_dim, kept.epochs, kept.log_every_steps) == ("beta", 3, 3, 2)
    before = everything(folder)
    for shorter in ((), ("epochs=1",)):
        code, said = vae_train("resume=latest", "trust=true", *shorter)
        assert (code, "the run is finished after epoch 3" in said) == (1, True)
    code, said = vae_train(f"resume={folder}", "trust=true", "model=vanilla", "epochs=5")
    assert (code, "model.beta=1.0: the run has model.beta=4.0" in said) == (1, True)
    code, said = vae_train("resume=nowhere")
    assert (code, "resume=nowhere: no last.pt there" in said) == (1, True)
    code, said = vae_train("-m", *RUN, "seed=0,1", "resume=latest")
    assert (code, "A sweep resumes with sweep.resume=latest" in said) == (1, True)
    assert the_same(everything(folder), before)


def test_auto_starts_a_run_continues_it_and_then_starts_another(vae_train):
    typed = (*RUN, "epochs=3", "resume=auto")
    with hooks.crash_at(15), pytest.raises(Crash):
        vae_train(*typed)
    (first,) = [path.parent for path in Path("outputs").rglob("summary.json")]
    with hooks.crash_at(5), pytest.raises(Crash):
        vae_train(*typed, "optimizer.lr=0.5")  # another configuration is another run
    assert vae_train(*typed)[0] == 0
    assert json.loads((first / "summary.json").read_text())["state"] == "finished"
    assert len(list(Path("outputs").rglob("summary.json"))) == 2
    assert vae_train(*typed)[0] == 0
    assert len(list(Path("outputs").rglob("summary.json"))) == 3
    here = ("hydra.run.dir=here", *typed)
    assert vae_train(*here)[0] == 0
    code, said = vae_train(*here)
    assert (code, "the run in here is finished" in said) == (1, True)


@pytest.mark.slow
def test_auto_takes_no_run_of_another_length_and_none_that_is_finished(vae_train):
    with hooks.crash_at(15), pytest.raises(Crash):
        vae_train(*RUN, "epochs=2000")
    (long,) = [path.parent for path in Path("outputs").rglob("summary.json")]
    before = {path: path.read_bytes() for path in long.rglob("*") if path.is_file()}
    assert vae_train(*RUN, "epochs=3", "resume=auto")[0] == 0
    assert {path: path.read_bytes() for path in long.rglob("*") if path.is_file()} == before
    runs = [path.parent for path in Path("outputs").rglob("summary.json")]
    (short,) = [run for run in runs if run != long]
    assert [row["epoch"] for row in metrics(short) if "val/kl" in row] == [1, 2, 3]
    code, said = vae_train(*RUN, "epochs=3", "resume=auto", f"hydra.run.dir={long}")
    assert (code, "epochs=3: the run has epochs=2000" in said) == (1, True)
    with (
        hooks.crash_at(2000 * STEPS_PER_EPOCH // 1000),
        pytest.raises(Crash),
    ):  # its own length, and a new limit of time
        vae_train(*RUN, "epochs=2000", "resume=auto", "max_minutes=60")
    assert len(list(Path("outputs").rglob("summary.json"))) == 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["validation", "no validation", "patience"])
def test_a_run_that_was_killed_as_it_ended_only_ends_again_to_the_bit(vae_train, kind):
    more = {"no validation": ("dataset.val_size=0",), "patience": (*STANDS_STILL, "early_stopping.patience=2")}
    settings = (*RUN, *more.get(kind, ()), "epochs=9" if kind == "patience" else "epochs=2")
    assert vae_train(*settings, "hydra.run.dir=whole")[0] == 0
    steps, states = [], []

    def dies_at_the_end(*call):
        if renamed_to(*call) == "summary.json":
            new = json.loads(Path(os.fsdecode(call[1][0])).read_text())
            states.append(new["state"])
            if new["state"] == "finished":
                raise Crash

    with hooks.at_call(dies_at_the_end), pytest.raises(Crash):
        vae_train(*settings, "resume=auto")
    (folder,) = [path.parent for path in Path("outputs").rglob("summary.json")]
    assert json.loads((folder / "summary.json").read_text())["state"] == "running"
    with hooks.in_step(lambda step, _: steps.append(step)):
        assert vae_train(*settings, "resume=auto")[0] == 0
    assert steps == []
    assert_the_same_runs("whole", folder)


def test_a_run_is_finished_only_when_its_wandb_run_is():
    seen = []

    def look(event, arguments):
        if event == "os.rename" and renamed_to(event, arguments) == "summary.json":
            new = json.loads(Path(os.fsdecode(arguments[0])).read_text())
            if new["state"] == "finished":
                (log,) = Path("outputs/wandb").glob("offline-run-*/run-*.wandb")
                end = time.monotonic() + 5  # its process may still write; if it were not closed, it would wait for us
                while "exit" not in (records := recorded(log.parent)) and time.monotonic() < end:
                    time.sleep(0.05)
                seen.append(records)

    with hooks.at_call(look):
        summary, _ = quick_run(*SMALL, wandb="offline")
    assert summary["state"] == "finished"
    assert len(seen) == 1
    assert seen[0]["exit"], "W&B had its last record"


def touch(path, seconds):
    os.utime(path, ns=(seconds * 10**9, seconds * 10**9))


@pytest.mark.slow
def test_latest_is_the_newest_run_that_has_what_is_needed(vae_train, vae_command, trained_by_command):
    for name in ("a", "b"):
        trained_by_command(*RUN, folder=f"outputs/{name}")
    code, _ = vae_train("dataset=image_folder", "dataset.root=nowhere", "hydra.run.dir=outputs/c", "device=cpu")
    assert code == 1
    assert not Path("outputs/c").exists()  # it failed before it was opened
    copy = Path("outputs/wandb/artifacts/e_p_model_best")  # of W&B's, and no run
    copy.mkdir(parents=True)
    (copy / "best.pt").write_bytes(Path("outputs/a/best.pt").read_bytes())
    for name in ("a", "b"):
        for file in ("best.pt", "last.pt"):
            touch(f"outputs/{name}/{file}", 1_000_000)  # at the same time: the later name
    assert "outputs/b/best.test.json" in vae_command("vae-evaluate", "checkpoint=latest", "device=cpu")[1]
    touch("outputs/a/best.pt", 1_000_001)
    assert "outputs/a/best.test.json" in vae_command("vae-evaluate", "checkpoint=latest", "device=cpu")[1]
    touch("outputs/b/last.pt", 1_000_002)
    assert vae_train("resume=latest", "trust=true", "epochs=2")[0] == 0
    assert stored("outputs/b/last.pt")["epoch"] == 2


def test_a_checkpoint_of_an_earlier_version_may_lack_what_is_not_needed():
    quick_run(*SMALL)
    state = stored("run/last.pt")
    for name in ("seconds", "epoch_seconds", "wandb_id"):
        del state["resume"][name]
    torch.save(state, "run/last.pt")
    quick_run(*SMALL, "epochs=2", "resume=run")
    assert checkpoints.load(Path("run/last.pt")).epoch == 2


@pytest.mark.slow
def test_a_run_without_overrides_goes_on_by_its_configuration(capsys):
    """One from Python has none, whatever it was composed of."""
    groups = ("model=conditional", "network=conv", "likelihood=gaussian", "optimizer=adamw", "scheduler=cosine")
    values = ("dataset.labels=['1',\"2\"]", "wandb.tags=[a b,'1']", r"wandb.notes='it\'s é'", "optimizer.lr=1e-5")
    quick_run(*groups, *values, "epochs=0")
    before = read_config(Path("run"))
    after = OmegaConf.to_container(vae_exp.compose("resume=run", "epochs=3"), resolve=True)
    assert after == before | {"resume": "run", "epochs": 3}
    with pytest.raises(UserError, match=r"optimizer.lr=0.1: the run has optimizer.lr=1e-05"):
        train(vae_exp.compose("resume=run", "optimizer.lr=0.1"))
    with Path("run/config.yaml").open("a") as file:
        file.write("ema: ${oc.env:HOME}\n")
    vae_exp.compose("resume=run")
    assert r"not taken from run/config.yaml: ++ema='\${oc.env:HOME}'. Type it again" in capsys.readouterr().err


@pytest.mark.slow
def test_a_configuration_of_a_run_that_cannot_be_read_is_named(vae_train, trained_by_command):
    trained_by_command(*RUN)
    Path("run/.hydra/overrides.yaml").write_text("[")
    assert vae_train("resume=run", "trust=true", "epochs=2")[0] == 0
    for name in (".hydra/overrides.yaml", "config.yaml"):
        Path("run", name).write_text("[")
    code, said = vae_train("resume=run", "trust=true", "epochs=5")
    assert code == 1, said
    assert "resume=run: config.yaml cannot be read there" in said
    assert "the configuration contradicts the run" in said
    assert vae_train(*RUN, "resume=run", "epochs=3")[0] == 0


@pytest.mark.slow
def test_a_folder_belongs_to_one_process(vae_train):
    running = command(*RUN[:-3], *SMALL, "epochs=100000", "wandb.mode=disabled", "hydra.run.dir=run")
    try:
        while not Path("run/last.pt").exists():
            time.sleep(0.05)
            assert running.poll() is None, running.stdout.read()
        for arguments in (
            (*RUN, "hydra.run.dir=run"),
            ("resume=run", "trust=true", "epochs=5"),
            (*RUN, "epochs=5", "resume=auto"),
        ):
            code, said = vae_train(*arguments, "hydra.run.dir=run")
            assert (code, f"process {running.pid} is training" in said) == (1, True), said
            assert "Traceback" not in said
        assert "epochs=5" not in Path("run/.hydra/overrides.yaml").read_text()
    finally:
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()


def test_wandb_goes_on_under_the_same_id():
    quick_run(*SMALL, wandb="offline")
    quick_run(*SMALL, "epochs=2", "resume=run", wandb="offline")
    parts = [recorded(folder) for folder in sorted(Path("outputs/wandb").glob("offline-run-*"))]
    assert len(parts) == 2
    assert parts[0]["run"][0]["run_id"] == parts[1]["run"][0]["run_id"]
    assert [row["item"]["_step"] for part in parts for row in part["history"]] == [11, 22]


def test_a_run_that_fails_between_two_writes_keeps_its_best_epoch():
    settings = (*SMALL, "epochs=9", "checkpoint_every_epochs=null")

    def breaks():
        raise ZeroDivisionError

    with hooks.at_step(3 * STEPS_PER_EPOCH + 2, breaks), pytest.raises(ZeroDivisionError):
        quick_run(*settings)
    assert checkpoints.load(Path("run/best.pt")).epoch == json.loads(Path("run/summary.json").read_text())["best/epoch"]
    assert not Path("run/last.pt").exists()


@pytest.mark.slow
def test_a_best_epoch_that_is_ahead_of_the_last_checkpoint_stays_the_best():
    quick_run(*SMALL, "epochs=2")
    ahead = Path("run/best.pt").read_bytes()
    quick_run(*SMALL, "epochs=1", folder="short")
    state = stored(Path("short/last.pt"))
    state["best"]["best/val_neg_elbo"] = -1.0  # so good that no further epoch is better
    torch.save(state, "short/last.pt")
    Path("short/best.pt").write_bytes(ahead)
    summary, _ = quick_run(*SMALL, "epochs=3", "resume=short", folder="short")
    assert summary["best/epoch"] == checkpoints.load(Path("short/best.pt")).epoch > 1
    assert checkpoints.load(Path("short/last.pt")).best.epoch == summary["best/epoch"]
    quick_run(*SMALL, "epochs=4", "resume=short", folder="short")


@pytest.mark.parametrize("wandb", [None, [], {"mode": "offline", "id": "x", "entity": "of a later version"}])
def test_what_another_version_says_of_wandb_is_no_damage(vae_train, wandb):
    _, folder = quick_run(*SMALL)
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(summary | {"wandb": wandb}))
    code, said = vae_train(*RUN, "hydra.run.dir=run", "resume=auto")
    assert (code, "the run in run is finished" in said) == (1, True), said


@pytest.mark.slow
def test_a_run_that_was_killed_before_its_first_checkpoint_leaves_no_second_folder(vae_train):
    typed = (*QUICK, "wandb.mode=disabled", "resume=auto")
    assert vae_train(*typed)[0] == 0
    (summary,) = Path("outputs").glob("*/*/summary.json")
    summary.write_text(summary.read_text().replace('"finished"', '"running"'))
    for name in ("last.pt", "best.pt"):
        (summary.parent / name).unlink()
    code, said = vae_train(*typed, "seed=1")  # another run
    assert code == 0 and len([*Path("outputs").glob("*/*/summary.json")]) == 2
    code, said = vae_train(*typed)
    assert code == 0 and str(summary.parent) in said
    assert json.loads(summary.read_text())["state"] == "finished"
    assert len([*Path("outputs").glob("*/*/summary.json")]) == 2
