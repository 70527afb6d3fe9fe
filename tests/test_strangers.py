"""A checkpoint with any entry altered: it is read right and used, or refused in one message; never a traceback."""

import copy
import math
import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from tests import hooks
from tests.conftest import QUICK, compose, quick_run, stored
from tests.hooks import Crash
from tests.test_factor_scores import SMALL as WITH_FACTORS
from vae_exp import inference
from vae_exp.config import build
from vae_exp.errors import UserError
from vae_exp.training import restore, resume
from vae_exp.training.state import EMA, Meters, RngStreams, RunInfo, TrainingRun, TrainState

# Inside an epoch, with means that are not read yet, a buffer beside the weights, and an optimizer with moments.
SETTINGS = ("network.hidden_dims=[8]", "model.z_dim=3", "model=conditional", "epochs=2", "log_every_steps=5")
SETTINGS += ("likelihood=gaussian", "likelihood.sigma=optimal", "checkpoint_every_steps=4", hooks.OWN_OBJECTIVE)
GONE = object()  # the entry itself is taken away
ALTERED = (
    None,
    "text",
    -1,
    2**70,
    math.nan,
    [],
    {},
    [[]],
    True,
    torch.zeros(2, 3, 5),
    torch.zeros(3, dtype=torch.bool),
)
TENSORS = (
    lambda t: t.to_sparse() if t.dim() else t[None],
    lambda t: t.to("meta"),
    lambda t: t.double().to(torch.complex64),
    lambda t: t.long() if t.is_floating_point() else t.double(),
    lambda t: torch.full_like(t, math.nan) if t.is_floating_point() else t[:-1],
    lambda t: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8),
    lambda t: t[None],
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that died inside its second epoch, and what its last.pt holds."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as here, hooks.crash_at(19), pytest.raises(Crash):
        here.chdir(folder)
        quick_run(*SETTINGS)
    (folder / "run" / "last.previous.pt").unlink()  # it would be taken instead
    return folder / "run", stored(folder / "run" / "last.pt")


def places(value, path=()):
    """The path of each entry, of what is deeper down too."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in inner:
        yield (*path, key)
        yield from places(entry, (*path, key))


def at(state, path):
    for key in path:
        state = state[key]
    return state


def altered(state, path, value):
    """A copy of a checkpoint with another value at one place."""
    copied = copy.deepcopy(state)
    if value is GONE:
        del at(copied, path[:-1])[path[-1]]
    else:
        at(copied, path[:-1])[path[-1]] = value
    return copied


def variants(state, path):
    entry = at(state, path)
    yield GONE
    yield from ALTERED
    if isinstance(entry, torch.Tensor):
        yield from (change(entry) for change in TENSORS)


def use_model(path):
    model = inference.load(path, "cpu")
    assert model.sample(10, seed=0).isfinite().all()
    assert model.name
    assert len(model.read_data().train)


def go_on(folder, config, data):
    """Restore the run and take a step, which uses all of it."""
    device = torch.device("cpu")
    before = resume.load(folder, config, quiet=True)
    model = build.model(config, data.x_shape, data.n_classes)
    run = TrainingRun(config, folder, device)
    run.data, run.info, run.model, run.ema = data, RunInfo.of(model, data, device), model, EMA(model, None)
    run.optimizer, run.rng, run.meters = build.optimizer(config, model), RngStreams.from_seed(0, device), Meters()
    run.state = TrainState([0.0] * model.z_dim, run.rng.order.get_state())
    restore.restore(before, run)
    sum(weights.sum() for weights in model.parameters()).backward()
    run.optimizer.step()
    run.meters.add([(1, {"reconstruction": 1.0, "kl": 1.0})])
    assert run.meters.read("train") and run.meters.read_epoch("train_epoch")
    assert run.state.best is None or run.state.best.summary()


def check(run, every):
    state = run[1]
    folder = shutil.copytree(run[0], Path("run"))
    config = build.check(compose(*QUICK, "wandb.mode=disabled", *SETTINGS))
    data = build.dataset(config)
    cases = [(path, value) for path in places(state) for value in variants(state, path)][::every]
    refused, wrong = 0, []
    for path, value in cases:
        torch.save(altered(state, path, value), folder / "last.pt")
        for use in (lambda: use_model(folder / "last.pt"), lambda: go_on(folder, config, data)):
            try:
                use()
            except UserError:
                refused += 1
            except Exception as error:
                wrong.append(f"{path} = {value!r:.40}: {type(error).__name__}: {error!s:.80}")
    assert not wrong, "\n".join(wrong)
    assert refused > len(cases), "most are not what training writes"


@pytest.mark.slow
def test_a_checkpoint_with_an_entry_altered_is_used_or_refused(run):
    check(run, every=43)


@pytest.mark.slow
def test_a_checkpoint_with_any_entry_altered_is_used_or_refused(run):
    check(run, every=1)


LINKS = ["lock", "train.log", "metrics.jsonl", "summary.json", ".hydra/config.yaml", "last.previous.pt"]
LINKS += ["images", "earlier", "generated", ".hydra", "earlier/epoch-1", "images/samples_0000012.png"]


@pytest.mark.parametrize(
    ("name", "begins"),
    [
        *((name, "resume=run") for name in LINKS),
        *((name, "hydra.run.dir=run replace=true") for name in ("lock", "train.log", "images", ".hydra/config.yaml")),
    ],
)
def test_a_link_in_a_strangers_folder_is_refused_before_anything_is_touched(vae_train, run, tmp_path, name, begins):
    shutil.copytree(run[0], tmp_path / "run")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "samples_9999999.png").write_text("mine")
    link = tmp_path / "run" / name
    shutil.rmtree(link) if link.is_dir() else link.unlink(missing_ok=True)
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(tmp_path / "mine" / ("samples_9999999.png" if link.suffix or name == "lock" else ""))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    code, said = vae_train(*begins.split(), *QUICK, *SETTINGS, "wandb.mode=disabled")
    assert code == 1
    assert said.splitlines()[-1].startswith(f"vae-train: run/{name}: a link, to {tmp_path}/mine"), said
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.slow
@pytest.mark.parametrize("name", [".hydra/config.yaml", "train.log", "images/pipe"])
def test_a_pipe_in_a_strangers_folder_keeps_nobody_waiting(vae_train, run, tmp_path, name):
    shutil.copytree(run[0], tmp_path / "run")
    (tmp_path / "run" / name).unlink(missing_ok=True)
    (tmp_path / "run" / name).parent.mkdir(exist_ok=True)
    os.mkfifo(tmp_path / "run" / name)
    # Whoever opens a pipe to write waits for a reader, which is there, or the test would wait too.
    reader = os.open(tmp_path / "run" / name, os.O_RDONLY | os.O_NONBLOCK)
    code, said = vae_train("resume=run", *QUICK, *SETTINGS, "wandb.mode=disabled")
    assert os.read(reader, 10) == b"", "nobody has written to it"
    os.close(reader)
    assert code == 1
    assert said.splitlines()[-1].startswith(f"vae-train: run/{name}: not a file or folder."), said


@pytest.mark.slow
def test_a_strangers_paths_read_nothing_of_the_environment(vae_train, run, tmp_path, monkeypatch):
    monkeypatch.setenv("MY_SECRET", "hush")
    shutil.copytree(run[0], tmp_path / "run")
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    config["dataset"] |= {"_target_": "theirs.images", "root": "at/${oc.env:MY_SECRET}"}
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(config))
    code, said = vae_train("resume=run", *QUICK, *SETTINGS, "wandb.mode=disabled", "~dataset.name")
    assert code == 1
    assert "hush" not in said
    shutil.copytree(run[0], tmp_path / "outputs" / "${oc.env:MY_SECRET}")
    code, said = vae_train("resume=latest", *QUICK, *SETTINGS, "wandb.mode=disabled")
    assert (code, "hush" in said) == (1, False), said
    assert said.splitlines()[-1] == "vae-train: outputs/${oc.env:MY_SECRET}: a run's folder may have no ${ in its name."
    assert not Path("outputs/hush").exists()


def test_a_small_file_of_huge_weights_is_refused_before_they_fill_the_memory(run, tmp_path):
    state = copy.deepcopy(run[1])
    state["config"]["network"]["hidden_dims"] = [2**16]
    of_width = {name: [2**16 if side == 8 else side for side in t.shape] for name, t in state["model"].items()}
    state["model"] = {name: torch.zeros(()).expand(sides) for name, sides in of_width.items()}
    torch.save(state, tmp_path / "best.pt")
    with pytest.raises(UserError, match=r"a tensor is not of plain numbers"):
        inference.load(tmp_path / "best.pt")


def test_labels_of_pseudo_inputs_that_no_class_has_are_refused(tmp_path):
    """One-hot labels of them are PyTorch's error in the midst of a picture; on a GPU no more is computed after it."""
    _, folder = quick_run("model=conditional", "prior=vamp", "prior.components=3", "ema=0.9")
    state = stored(folder / "last.pt")
    for place in (("model",), ("resume", "weights")):
        torch.save(altered(state, (*place, "prior.labels"), torch.tensor([0, 1, 10])), tmp_path / "foreign.pt")
        with pytest.raises(UserError, match=r"prior.labels are not labels of its classes"):
            inference.load(tmp_path / "foreign.pt")


@pytest.mark.parametrize("name", ["config.yaml", "summary.json"])
def test_a_strangers_run_among_others_does_not_stop_them(vae_train, run, name):
    shutil.copytree(run[0], "outputs/mine")
    shutil.copytree(run[0], "outputs/theirs")
    Path("outputs/theirs", name).write_text("[" * 200_000)
    code, said = vae_train("resume=auto", *QUICK, *SETTINGS, "wandb.mode=disabled", "checkpoint_every_minutes=1")
    assert code == 0, said
    assert "run folder outputs/" in said


@pytest.mark.slow
def test_the_folder_of_a_run_may_be_a_link_itself(vae_train, run, tmp_path):
    shutil.copytree(run[0], tmp_path / "elsewhere" / "run")
    Path("run").symlink_to("elsewhere/run")
    assert vae_train("resume=run", *QUICK, *SETTINGS, "wandb.mode=disabled")[0] == 0
    assert (tmp_path / "elsewhere" / "run" / "train.log").is_file()


@pytest.mark.parametrize("program", ["vae-evaluate scores=[mig] score_repeats=1", "vae-generate format=files"])
def test_pictures_beside_a_checkpoint_follow_no_link(vae_command, tmp_path, program):
    quick_run(*WITH_FACTORS)
    (tmp_path / "mine" / "samples").mkdir(parents=True)
    (tmp_path / "mine" / "samples" / "1.png").write_text("mine")
    (tmp_path / "run" / "generated").symlink_to(tmp_path / "mine")
    code, said = vae_command(*program.split(), "checkpoint=run", "device=cpu")
    assert (code, len(said.splitlines())) == (1, 1), said
    assert "run/generated: a link, to " in said
    assert [path.name for path in (tmp_path / "mine").rglob("*")] == ["samples", "1.png"]


@pytest.mark.slow
def test_a_link_to_a_jobs_log_is_refused_before_a_sweep_goes_on(vae_train, tmp_path):
    typed = ("-m", *QUICK[:2], "network.hidden_dims=[8]", "wandb.mode=disabled", "model.z_dim=3,4")
    assert vae_train(*typed, "hydra.sweep.dir=sweep")[0] == 0
    log = Path("sweep/z_dim-3/train.log")
    log.unlink()
    Path("mine").write_text("mine")
    log.symlink_to(tmp_path / "mine")
    code, said = vae_train(*typed, "sweep.resume=sweep")
    assert (code, len(said.splitlines())) == (1, 1)
    assert "sweep/z_dim-3/train.log: a link, to " in said
    assert Path("mine").read_text() == "mine"


LOST = [
    ("optimizer", GONE),
    ("optimizer", "text"),
    ("optimizer", {"state": {}, "param_groups": []}),
    ("model", GONE),
    ("step", GONE),
    ("best", GONE),
    (("resume", "streams"), GONE),
    (("resume", "means"), GONE),
    (("resume", "means", "sums", "kl"), -math.inf),
    (("model", "encoder.layers.0.weight"), torch.full((8, 74), math.nan)),
]


@pytest.mark.slow
@pytest.mark.parametrize(("path", "value"), LOST, ids=[str(path) for path, _ in LOST])
def test_a_last_pt_without_what_a_run_needs_is_one_message_at_resume(vae_train, run, tmp_path, path, value):
    folder, state = run
    shutil.copytree(folder, tmp_path / "run")
    torch.save(altered(state, (path,) if isinstance(path, str) else path, value), tmp_path / "run" / "last.pt")
    before = {name: (tmp_path / "run" / name).read_bytes() for name in ("best.pt", "metrics.jsonl", "summary.json")}
    code, said = vae_train("resume=run", *QUICK, *SETTINGS, "wandb.mode=disabled")
    assert code == 1
    assert "resume" in said
    assert "Traceback" not in said
    assert {name: (tmp_path / "run" / name).read_bytes() for name in before} == before
