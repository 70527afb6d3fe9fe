"""A checkpoint with any entry altered: it is read right and used, or refused in one message; never a traceback."""

import copy
import math
import shutil

import pytest
import torch

from tests import hooks
from tests.conftest import QUICK, compose, quick_run, stored
from tests.hooks import Crash
from vae_exp import trained
from vae_exp.config import build
from vae_exp.errors import UserError
from vae_exp.run import restoring, resume
from vae_exp.run.running_means import RunningMeans
from vae_exp.run.standing import Facts, Standing, Streams, Training

# Inside an epoch, with means that are not read yet, a buffer beside the weights, and an optimizer with moments.
SETTINGS = ("network.hidden_dims=[8]", "model.z_dim=2", "model=conditional", "epochs=2", "log_every_steps=5")
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
    model = trained.load(path, "cpu")
    assert model.sample(10, seed=0).isfinite().all()
    assert model.name
    assert len(model.read_data().train)


def go_on(folder, config, data):
    """Restore the run and take a step, which uses all of it."""
    device = torch.device("cpu")
    before = resume.load(folder, config, quiet=True)
    model = build.model(config, data.x_shape, data.n_classes)
    optimizer, facts = build.optimizer(config, model), Facts.of(model, data, device)
    streams, means = Streams.of(0, device), RunningMeans()
    stands = Standing([0.0] * model.z_dim, streams.order.get_state())
    restoring.restore(before, Training(config, data, facts, model, model, optimizer, streams, means, stands))
    sum(weights.sum() for weights in model.parameters()).backward()
    optimizer.step()
    means.add([(1, {"reconstruction": 1.0, "kl": 1.0})])
    assert means.read("train") and means.read_epoch("train_epoch")
    assert stands.best is None or stands.best.summary()


def check(run, every):
    folder, state = run
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


def test_a_checkpoint_with_an_entry_altered_is_used_or_refused(run):
    check(run, every=29)


@pytest.mark.slow
def test_a_checkpoint_with_any_entry_altered_is_used_or_refused(run):
    check(run, every=1)


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
