"""Fixtures: a run in a folder of its own, the command line in this process, and a reader of W&B's files."""

import contextlib
import functools
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

# Two test processes on two cores: with two threads each their pools would spin against each other.
os.environ["OMP_NUM_THREADS"] = "1"

import hydra
import pytest
import torch

from vae_exp.cli import compare, evaluate, generate, reproduce
from vae_exp.cli import train as cli
from vae_exp.config.checks import CONF_DIR
from vae_exp.train import train

ROOT = Path(__file__).parents[1]
README_FILES = [
    ROOT / "README.md",
    *sorted(path for part in ("conf", "tests", "vae_exp") for path in (ROOT / part).rglob("README.md")),
]
READMES = {path.relative_to(ROOT).as_posix(): path.read_text() for path in README_FILES}
A_FEW_SECONDS = 15  # of the README, on a machine with other work to do
QUICK = ("dataset=digits", "epochs=1", "device=cpu")
MNIST = Path(os.environ.get("VAE_EXP_DATA", "nowhere"))
needs_mnist = pytest.mark.skipif(
    not (MNIST / "MNIST" / "raw").is_dir(), reason="VAE_EXP_DATA does not name a folder that holds MNIST/raw"
)


def readme_section(file, heading):
    """Return the part of a README below a heading, with its subsections."""
    lines, level, fenced = [], 0, False
    for line in READMES[file].splitlines(keepends=True):
        fenced ^= line.startswith("```")
        marks = 0 if fenced else len(line) - len(line.lstrip("#"))
        if level and 0 < marks <= level:
            break
        if level:
            lines.append(line)
        elif marks and line.strip("# \n") == heading:
            level = marks
    assert lines, f"{file} has no section {heading}"
    return "".join(lines)


def code_blocks(text):
    """Return the fenced blocks of a README: pairs of a language and the code."""
    return re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def readme_python(first_line):
    """Return the one Python example in the READMEs that begins with this line."""
    blocks = [code for text in READMES.values() for language, code in code_blocks(text) if language == "python"]
    (example,) = [code for code in blocks if code.startswith(first_line + "\n")]
    return example


@pytest.fixture(autouse=True)
def alone(tmp_path, tmp_path_factory, monkeypatch):
    """An empty working folder, and no W&B settings of whoever runs the tests."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)


def compose(*overrides):
    with hydra.initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return hydra.compose("config", list(overrides))


def quick_run(*overrides, folder="run", wandb="disabled"):
    """Train on the bundled digits for one epoch; returns the summary and the folder."""
    return train(compose(*QUICK, f"wandb.mode={wandb}", *overrides), Path(folder)), Path(folder)


@pytest.fixture
def vae_command(monkeypatch, capfd):
    """A command as a user types it, in this process: returns its exit code and what it printed."""
    commands = {"train": cli, "evaluate": evaluate, "generate": generate, "compare": compare, "reproduce": reproduce}

    def run(program, *arguments):
        monkeypatch.setattr(sys, "argv", [program, *map(str, arguments)])
        capfd.readouterr()  # what a run before it said: a command's logging stays for the rest of the process
        code, said = 0, ""
        try:
            commands[program.removeprefix("vae-")].main()
        except SystemExit as stop:  # sys.exit("text") prints the text and means 1
            code, said = (1, stop.code) if isinstance(stop.code, str) else (stop.code or 0, "")
        printed = capfd.readouterr()
        return code, printed.out + printed.err + said

    return run


@pytest.fixture
def vae_train(vae_command):
    return functools.partial(vae_command, "vae-train")


def command(*arguments, **environment):
    """vae-train as a process of its own, which finds these tests before those that some installed packages bring."""
    environment = {"PYTHONPATH": str(Path(__file__).parents[1]), **environment}
    return subprocess.Popen(
        [sys.executable, "-m", "vae_exp", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | environment,
        start_new_session=True,
    )


@contextlib.contextmanager
def full_disk(room=0):
    """No file may grow beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def written(name, where="outputs"):
    """The files of that name so far, while a run writes there: os.walk passes over folders that go meanwhile.

    A run that starts makes its folder to see that it can be written, and takes it away again.
    """
    return [Path(folder, name) for folder, _, files in os.walk(where) if name in files]


def stored(path):
    """What a checkpoint's file holds, as it lies on the disk."""
    return torch.load(path, weights_only=True)


def metrics(run_dir):
    return [json.loads(line) for line in (Path(run_dir) / "metrics.jsonl").read_text().splitlines()]


def recorded(folder):
    """What W&B's own log of a run holds, read with W&B's own reader: records by their type."""
    wandb = shutil.which("wandb") or str(Path(sys.executable).with_name("wandb"))
    out = subprocess.run([wandb, "leet", "inspect", "--json", folder], capture_output=True, text=True, check=True)
    records = [json.loads(line) for line in out.stdout.splitlines()]
    by_type = {}
    for record in records:
        by_type.setdefault(record["type"], []).append(record[record["type"]])
    return by_type
