"""A checkpoint with any entry altered: it is read right and used, or refused in one message; never a traceback."""

import copy
import math

import pytest
import torch

from tests import hooks
from tests.conftest import quick_run, stored
from tests.hooks import Crash
from vae_exp import trained
from vae_exp.errors import UserError

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


def answers(run, state):
    """The messages with which an altered checkpoint was refused: as a model, and as a run that goes on."""
    folder, _ = run
    torch.save(state, folder / "last.pt")
    refused = []
    for use in (lambda: use_model(folder / "last.pt"), lambda: go_on(folder)):
        try:
            use()
            refused.append(None)
        except UserError as error:
            refused.append(str(error))
    return refused


def use_model(path):
    model = trained.load(path, "cpu")
    assert model.sample(10, seed=0).isfinite().all()
    assert model.name
    data = model.read_data()
    assert len(data.train)


def go_on(folder):
    """To the next step, which uses all that was restored."""
    step = stored(folder / "last.pt").get("step")
    with hooks.in_step(lambda now, _: stop() if not isinstance(step, int) or now > step + 1 else None):
        try:
            quick_run(*SETTINGS, f"resume={folder}", folder=folder)
        except Crash:
            return


def stop():
    raise Crash
