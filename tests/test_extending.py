"""Code and options of a user's own, from a folder of their own: what the READMEs show, to the letter."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import vae_exp
from tests.conftest import code_blocks, metrics, quick_run, readme_section
from tests.test_data import write_idx
from vae_exp.config.checks import CONF_DIR
from vae_exp.errors import UserError

MODULES = ("squares", "normed", "heavy", "spiky", "peaked", "spare", "broken", "mine")
QUICKLY = ("epochs=1", "wandb.mode=disabled", "device=cpu")


@pytest.fixture(autouse=True)
def as_in_a_new_process(monkeypatch):
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    yield
    for name in MODULES:
        sys.modules.pop(name, None)


def blocks():
    """The examples of "Adding parts" in vae_exp/README.md: files by their names, and commands."""
    found = code_blocks(readme_section("vae_exp/README.md", "Adding parts"))
    files = {code.split("\n")[0].removeprefix("# "): code for language, code in found if language != "bash"}
    return files, [line for language, code in found if language == "bash" for line in code.splitlines()]


def write(files):
    for name, content in files.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(content)


def newest():
    return max(Path("outputs").rglob("summary.json"), key=lambda path: path.stat().st_mtime).parent


@pytest.mark.slow
def test_the_readmes_examples_work_as_they_stand(vae_command):
    files, commands = blocks()
    assert len(files) == 12
    write(files)
    for line in commands:
        program, *arguments = shlex.split(line)
        code, said = vae_command(program, *arguments, *(QUICKLY if program == "vae-train" else ()))
        assert code == 0, said
        if "model=conditional" in arguments:
            summary = json.loads((newest() / "summary.json").read_text())
            assert (summary["x_shape"], summary["train_size"]) == ([1, 16, 16], 900)
        if program == "vae-evaluate":
            assert (newest() / "best.test.json").exists()
    assert len(commands) == 7

    trained = [path for path in Path("outputs").rglob("config.yaml") if path.with_name("summary.json").exists()]
    (network,) = [path.parent for path in trained if "normed.normed" in path.read_text()]
    with pytest.raises(UserError, match=r"network._target_=normed.normed: .* trust=True"):
        vae_exp.load(network)
    assert vae_exp.load(network, trust=True).sample(2).shape == (2, 1, 16, 16)
    (spare,) = [path.parent for path in trained if "spare.spare" in path.read_text()]
    logged = [row for row in metrics(spare) if "train/over_budget" in row]
    assert all(0 <= row["train/over_budget"] <= 1 for row in logged)
    assert logged
    assert "objective=spare,elbo" in commands[-1]
    assert "2 of 2 jobs finished" in said
    again = next(line for line in said.splitlines() if line.startswith("rerun best"))
    _, _, program, *arguments = shlex.split(again)
    assert vae_command(program, *arguments)[0] == 0


@pytest.mark.slow
def test_the_installed_command_finds_code_in_the_current_folder():
    """And does not let a file there stand in for an installed module. It gives a note once a sweep."""
    write(blocks()[0] | {"sklearn.py": "raise SystemExit('not this one')"})
    vae_train = Path(sys.executable).with_name("vae-train")
    arguments = ["--config-dir", "conf", "dataset=digits", "network=normed", "epochs=0", "wandb.mode=disabled"]
    done = subprocess.run([vae_train, "-m", *arguments, "seed=0,1"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 jobs finished" in done.stdout
    assert (done.stdout + done.stderr).count("grey pixels: neg_elbo is not") == 1
    logs = [path.read_text() for path in Path("outputs/sweeps").rglob("train.log")]
    assert [log.count("grey pixels: neg_elbo is not") for log in logs] == [1, 1]
    assert all("vanilla VAE on digits" in log for log in logs)


def test_a_function_with_an_options_own_settings_needs_no_yaml():
    write({"mine.py": "def halved(terms, now, **_):\n    return 0.5 * terms.neg_elbo.mean(), {'half': 0.5}\n"})
    _, folder = quick_run("objective._target_=mine.halved")
    row = metrics(folder)[0]
    assert row["train/loss"] == pytest.approx(0.5 * row["train/neg_elbo"], rel=1e-5)
    assert row["train/half"] == 0.5


FROZEN = """
from vae_exp.networks.mlp import mlp

def frozen(*sizes, **settings):
    encoder, decoder = mlp(*sizes, **settings)
    return encoder.requires_grad_(False), decoder
"""
PLAIN = """
import torch

class Plain(torch.optim.SGD):
    def step(self):
        super().step()
"""


MASKED = """
import torch
from vae_exp.networks.mlp import mlp

def masked(*sizes, **settings):
    encoder, decoder = mlp(*sizes, **settings)
    encoder.register_buffer("mask", torch.full((2, 2), -torch.inf).triu(1))
    return encoder, decoder
"""
WRAPPER = """
import torch

class Wrapper(torch.optim.Optimizer):
    def __init__(self, params, **settings):
        self.inner = torch.optim.SGD(params, **settings)
        self.param_groups, self.state, self.defaults = self.inner.param_groups, self.inner.state, {}

    def step(self):
        self.inner.step()

    def zero_grad(self):
        self.inner.zero_grad()

    def state_dict(self):
        return self.inner.state_dict()
"""


def test_a_buffer_may_be_infinite_and_an_optimizer_may_wrap_another():
    write({"masked.py": MASKED, "wrapper.py": WRAPPER})
    summary, _ = quick_run("network._target_=masked.masked", "optimizer=sgd", "optimizer._target_=wrapper.Wrapper")
    assert summary["state"] == "finished"


def test_a_frozen_network_and_an_optimizer_without_a_closure_train():
    write({"frozen.py": FROZEN, "plain.py": PLAIN})
    _, folder = quick_run("network._target_=frozen.frozen", "optimizer=sgd", "optimizer._target_=plain.Plain")
    assert metrics(folder)[0]["train/grad_norm"] > 0


OWN_PARTS = """
from vae_exp import datasets, likelihoods, networks

seen = {}

def network(x_shape, z_dim, context_dim, blocks, channels):
    seen["network"] = blocks, channels
    return networks.mlp(x_shape, z_dim, context_dim, [8], "relu")

def dataset(name, channels, split):
    seen["dataset"] = channels, split
    return datasets.digits(name)

def likelihood(sigma):
    seen["likelihood"] = sigma
    return likelihoods.bernoulli()

def objective(terms, now, gamma, warmup):
    seen["objective"] = gamma, warmup
    return terms.neg_elbo.mean(), {}

def schedule(epoch, epochs, gamma):
    seen["scheduler"] = gamma
    return 1.0
"""
OWN_OPTIONS = {
    "network": "_target_: mine.network\nblocks: [2, 2]\nchannels: few\n",
    "dataset": "defaults:\n  - options@_here_: common\n  - _self_\n"
    "_target_: mine.dataset\nname: own\nchannels: 4\nsplit: cursive\nval_size: 200\n",
    "likelihood": "_target_: mine.likelihood\nsigma: -1\n",
    "objective": "_target_: mine.objective\ngamma: -1\nwarmup: cosine\n",
    "scheduler": "_target_: mine.schedule\ngamma: 0\n",
}


@pytest.mark.slow
def test_the_rules_of_our_options_do_not_bind_those_of_ones_own(vae_train):
    """These keys are also those of parts of ours, where such values are refused."""
    write({"mine.py": OWN_PARTS} | {f"conf/{group}/own.yaml": text for group, text in OWN_OPTIONS.items()})
    code, said = vae_train("--config-dir", "conf", *(f"{group}=own" for group in OWN_OPTIONS), *QUICKLY)
    assert code == 0, said
    assert sys.modules["mine"].seen == {
        "network": ([2, 2], "few"),
        "dataset": (4, "cursive"),
        "likelihood": -1,
        "objective": (-1, "cosine"),
        "scheduler": 0,
    }
    # What all datasets share, and what an own network gets from the code, is as it is for every other.
    code, said = vae_train("--config-dir", "conf", "dataset=own", "dataset.binarize=half", "model.z_dim=0", *QUICKLY)
    assert code == 1
    assert "dataset.binarize=half: it takes one of none, threshold" in said
    assert "model.z_dim=0: it takes a whole number" in said


OURS = [
    ("network=resnet network.blocks=[2,2]", "network.blocks=[2,2]: it takes a whole number"),
    ("network=conv network.channels=few", "network.channels=few: it takes a whole number"),
    ("dataset=image_folder dataset.root=x dataset.channels=4", "dataset.channels=4: it takes 1 (grey) or 3 (colour)"),
    ("dataset=emnist dataset.split=cursive", "dataset.split=cursive: it takes one of balanced"),
    ("likelihood=gaussian likelihood.sigma=-1", "likelihood.sigma=-1: it takes a number, 1e-18 or more"),
    ("objective=beta_tc objective.gamma=-1", "objective.gamma=-1: it takes a number, 0 or more"),
    ("objective.warmup=cosine", "objective.warmup=cosine: say how long it lasts"),
    ("scheduler=step scheduler.gamma=0", "scheduler.gamma=0: it takes a number above 0"),
    ("optimizer.weight_decay=-1", "optimizer.weight_decay=-1: it takes a number, 0 or more"),
]


@pytest.mark.parametrize(("arguments", "message"), OURS)
def test_the_rules_bind_our_options(vae_train, arguments, message):
    code, said = vae_train("dataset=digits", *QUICKLY, *arguments.split())
    assert code == 1
    assert message.replace(" ", "") in said.replace(" ", "")
    assert list(Path().iterdir()) == []


@pytest.mark.slow
def test_a_copy_of_an_option_may_have_a_name_of_its_own(vae_train):
    """The name stands in tables and titles; what is read is the source."""
    write_idx(Path("data/MNIST/raw"))
    option = (CONF_DIR / "dataset" / "mnist.yaml").read_text()
    assert option.count("name: mnist") == 1
    write({"conf/dataset/my_mnist.yaml": option.replace("name: mnist", "name: my_mnist")})
    typed = ("--config-dir", "conf", "dataset=my_mnist", "dataset.root=data", "dataset.val_size=5", *QUICKLY)
    code, said = vae_train(*typed)
    assert code == 0, said
    assert "vanilla VAE on my_mnist" in said
    summary = json.loads((newest() / "summary.json").read_text())
    assert summary["name"].startswith("vanilla-my_mnist-")
    assert (summary["x_shape"], summary["train_size"]) == ([1, 28, 28], 15)
    code, said = vae_train(*typed, "dataset.source=foo")
    assert code == 1
    (line,) = said.splitlines()
    assert line.startswith("vae-train: dataset.source=foo: it takes one of mnist, fashion_mnist")


@pytest.mark.parametrize("command", ["vae-evaluate", "vae-generate"])
def test_a_checkpoint_that_names_other_code_is_told_how_to_be_trusted(vae_command, command):
    files, _ = blocks()
    write(files)
    _, folder = quick_run(
        "network._target_=normed.normed", "~network.hidden_dims", "~network.activation", "+network.width=8"
    )
    code, said = vae_command(command, f"checkpoint={folder}")
    assert code == 1
    assert "network._target_=normed.normed: the checkpoint names code that is not vae_exp's" in said
    assert "trust=true" in said
    code, said = vae_command(command, f"checkpoint={folder}", "trust=true")
    assert code == 0, said


MISTAKES = [
    ("--config-dir nowhere objective=mine", "--config-dir nowhere: there is no such folder"),
    ("objective=mine", "objective=mine: there is no such objective."),
    ("objective=mine", "One of your own is found with --config-dir FOLDER."),
    ("objective._target_=broken.f", "objective._target_=broken.f: there is no such function or class (No module named"),
    ("objective._target_=mine.g", "objective._target_=mine.g: there is no such function or class (module 'mine'"),
    ("objective._target_=mine.f", "mine.f takes no beta, cycles, warmup, "),
    ("--config-dir conf objective=mine", "objective: mine.f takes no nast. Did you mean nats? Its settings are nats."),
    ("network._target_=mine.f", "Its settings are terms, now, nats."),
    ("objective._target_=elsewhere.f", "Code of your own is found in the current folder, "),
    ("--config-dir conf objective=min", "Did you mean mine? There are beta_tc, capacity, dip_vae, elbo, free_bits, "),
    ("--config-dir conf objective=xyz", "free_bits, iwae, mine."),
    ("--config-dir conf dataset=mine", "gets what it leaves out by `defaults: [{options@_here_: common}, _self_]`"),
    ("--config-dir conf model=mine", "gets what it leaves out by `defaults: [vanilla, _self_]`"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES)
def test_a_mistake_is_one_message(vae_train, arguments, message):
    write({"mine.py": "def f(terms, now, *, nats):\n    pass\n", "broken.py": "import nonexistent_module\n"})
    own = {
        "objective": "_target_: mine.f\nnast: 1",
        "dataset": "_target_: mine.f\nname: mine",
        "model": "name: mine\nz_dim: 3",
    }
    write({f"conf/{group}/mine.yaml": f"{text}\n" for group, text in own.items()})
    code, said = vae_train("dataset=digits", *arguments.split())
    assert code == 1
    assert message in said
    assert "Traceback" not in said


BROKEN = {
    "bracket": (b"z_dim: [1\nname: x\n", "bracket.yaml, line 2, column 5: no YAML ("),
    "twice": (b"z_dim: 3\nz_dim: 4\n", "twice.yaml, line 2, column 1: no YAML (found duplicate key z_dim)"),
    "two": (b"z_dim: 3\n---\nz_dim: 4\n", "two.yaml, line 2, column 1: no YAML (but found another document)"),
    "latin": (b"z_dim: 3\nname: \xff\n", "latin.yaml, line 2, column 7: no text in UTF-8"),
    "list": (b"- a\n", "list.yaml, line 1, column 1: it must hold lines of KEY: VALUE"),
    "dollar": (b"z_dim: ${epochs\n", "dollar.yaml: z_dim: no viable alternative at input '${epochs'"),
    "itself": (
        b"defaults:\n  - other\n",
        "itself.yaml: its defaults lead back to it: model/itself > model/other > model/its",
    ),
    "above": (b"defaults:\n  - twice\n", "twice.yaml, line 2, column 1: no YAML"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_yaml_of_ones_own_is_one_message_with_its_place(vae_train, name):
    write({"conf/model/other.yaml": "defaults:\n  - itself\n"})
    for file, (content, _) in BROKEN.items():
        Path(f"conf/model/{file}.yaml").write_bytes(content)
    for arguments in ((f"model={name}",), ("-m", f"model=vanilla,{name}")):
        code, said = vae_train("--config-dir", "conf", "dataset=digits", *arguments)
        assert (code, said.count("\n")) in ((1, 0), (1, 1)), said
        assert BROKEN[name][1] in said
    assert list(Path().iterdir()) == [Path("conf")]


TYPED = """
from typing import Literal

def f(terms, now, nats: float, mode: Literal["soft", "hard"] = "soft", parts: "list[int] | None" = None, n: int = None):
    return terms.neg_elbo.mean(), {}

def unknown(terms, now, nats: "Nats", shape: tuple[int, int] = (1, 2)):
    return f(terms, now, 1.0)
"""
HINTS = [
    ("+objective.nats=true", "objective.nats=true: it takes a number."),
    ("+objective.nats=1 +objective.mode=sfot", "objective.mode=sfot: it takes soft or hard."),
    (
        "+objective.nats=1 +objective.parts=[1,a]",
        "objective.parts=[1,a]: it takes a list, each a whole number, or null.",
    ),
    ('+objective.nats="1"', "objective.nats=1: it takes a number. This 1 is text"),
    ("+objective.nats=1 +objective.n=null +objective.parts=[2]", None),
    ("objective._target_=mine.unknown +objective.nats=few +objective.shape=[3,4]", None),
]


@pytest.mark.parametrize(("arguments", "message"), HINTS)
def test_type_hints_of_ones_own_function_are_the_rules_of_its_settings(vae_train, arguments, message):
    """What no hint says, or one that cannot be checked, is the function's own affair."""
    write({"mine.py": TYPED, "conf/objective/mine.yaml": "_target_: mine.f\n"})
    typed = ("dataset=digits", "epochs=0", "wandb.mode=disabled", "device=cpu")
    code, said = vae_train("--config-dir", "conf", "objective=mine", *typed, *arguments.split())
    assert (code, message is None or message in said) == (int(message is not None), True), said
