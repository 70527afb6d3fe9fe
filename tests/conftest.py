"""Fixtures: a run in a folder of its own, the command line in this process, and a reader of W&B's files."""

import contextlib
import functools
import gc
import hashlib
import json
import os
import pickle
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

# Two test processes on two cores: with two threads each their pools would spin against each other.
os.environ["OMP_NUM_THREADS"] = "1"

import hydra
import numpy as np
import pytest
import torch
import wandb.util
import yaml
from filelock import FileLock
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import OverrideType
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vae_exp.cli import compare, evaluate, generate, reproduce
from vae_exp.cli import train as cli
from vae_exp.config import build
from vae_exp.config.checks import CONF_DIR, options
from vae_exp.config.compose import BASE, parse
from vae_exp.errors import UserError
from vae_exp.train import train

ROOT = Path(__file__).parents[1]
README_FILES = [
    ROOT / "README.md",
    *sorted(path for part in ("conf", "tests", "vae_exp") for path in (ROOT / part).rglob("README.md")),
]
READMES = {path.relative_to(ROOT).as_posix(): path.read_text() for path in README_FILES}

if yaml.__with_libyaml__:
    yaml.SafeLoader = yaml.CSafeLoader  # Hydra reads some fifteen files for every configuration

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


def pytest_collection_finish():
    gc.freeze()  # nothing of what is imported and collected goes before the tests end: not looked through again
    gc.set_threshold(50_000, 20, 20)


class Remembering:
    """Hydra's loader, which merges its files once for each choice of options, and sets what is typed as Hydra sets it.

    A run composes three times, which takes 80 to 100 ms each. The options of vae_exp and Hydra do not change meanwhile.
    """

    def __init__(self, loader, composed):
        self.loader, self.composed = loader, composed

    def __getattr__(self, name):
        if name == "loader":  # of a copy that has none yet
            raise AttributeError(name)
        return getattr(self.loader, name)

    def get_mode(self, config_name, overrides):
        return self.loader.get_mode(config_name, overrides, parse(overrides))

    def load_configuration(self, config_name, overrides, run_mode, *flags, **named_flags):
        words = [_parse(word) for word in overrides]
        swept = [word for word in words if word.is_sweep_override()]
        values = [word for word in words if word not in swept and _sets_value(word)]
        options = [word.input_line for word in words if word not in swept and word not in values]
        are_ours = [source.path for source in self.loader.get_sources()] == ["hydra.conf", str(CONF_DIR), ""]
        is_refused = any(word.is_hydra_override() or run_mode == RunMode.RUN for word in swept)
        is_more = re.search("searchpath|env_copy|override_dirname", str(overrides))
        if are_ours and not is_refused and not is_more and all(re.match(r"\w[\w/]*=", word) for word in options):
            key = (config_name, *options, run_mode, *flags, *named_flags.items())
            if key not in self.composed:
                cfg = self.loader.load_configuration(config_name, options, run_mode, *flags, **named_flags)
                self.composed[key] = pickle.dumps(cfg)
            cfg = pickle.loads(self.composed[key])
            with contextlib.suppress(OmegaConfBaseException):  # Hydra says below in its words what is wrong
                for word in values:
                    OmegaConf.update(cfg, word.key_or_group, word.value())
                cfg.hydra.overrides.hydra = [word.input_line for word in words if word.is_hydra_override()]
                cfg.hydra.overrides.task = [word.input_line for word in words if not word.is_hydra_override()]
                cfg.hydra.runtime.cwd = str(Path.cwd())
                return cfg
        return self.loader.load_configuration(config_name, overrides, run_mode, *flags, **named_flags)


@pytest.fixture(scope="session", autouse=True)
def composed_once():
    """Hydra composes with a memory: see Remembering."""
    initialize, composed = GlobalHydra.initialize, {}

    def with_memory(self, theirs):
        theirs.config_loader = Remembering(theirs.config_loader, composed)
        initialize(self, theirs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GlobalHydra, "initialize", with_memory)
        yield


@pytest.fixture(scope="session", autouse=True)
def packages_listed_once():
    """W&B lists what is installed once, and not anew for each run."""
    list_packages = wandb.util.working_set
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wandb.util, "working_set", functools.cache(lambda: list(list_packages())))
        yield


@pytest.fixture(autouse=True)
def alone(tmp_path, shared_folder, monkeypatch):
    """An empty working folder, and no W&B settings of whoever runs the tests."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(shared_folder / "cache"))
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)


def compose(*overrides):
    """What Hydra composes."""
    with hydra.initialize_config_dir(str(CONF_DIR), **BASE):
        return hydra.compose("config", list(overrides))


@functools.cache
def _parse(override):
    return parse([override])[0]


def _sets_value(word):
    is_group = word.package or "/" in word.key_or_group or options(word.key_or_group)
    return word.type == OverrideType.CHANGE and not is_group and not isinstance(word.value(), dict)


def refusal(*overrides):
    """What the check of a configuration says against it, before anything is begun."""
    with pytest.raises(UserError) as error:
        build.check(compose(*overrides))
    return str(error.value)


def quick_run(*overrides, folder="run", wandb="disabled"):
    """Train on the bundled digits for one epoch; returns the summary and the folder."""
    return train(compose(*QUICK, f"wandb.mode={wandb}", *overrides), Path(folder), quiet=True), Path(folder)


def seconds():
    """Overrides for a dataset of images with the second, of this century, in which each was taken."""
    noise, taken = np.random.default_rng(0), 1_700_000_000 + 3 * np.arange(60)
    images = noise.integers(0, 256, (60, 8, 8), dtype=np.uint8)
    np.savez("seconds.npz", images=images, factors=taken[:, None], factor_names=np.array(["second"]))
    return "dataset=arrays", "dataset.root=seconds.npz", "dataset.val_size=0.1", "dataset.condition=[second]"


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory):
    """A folder of all processes of pytest."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def made_once(shared_folder):
    """made_once(make, *key): the folder in which make() was called, once for all processes of pytest."""

    def made_once(make, *key):
        folder = shared_folder / "shared" / hashlib.sha256(repr(key).encode()).hexdigest()[:16]
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"), pytest.MonkeyPatch.context() as patch:
            if not (folder / "made").exists():
                patch.chdir(folder)
                make()
                Path("made").touch()
        return folder

    return made_once


@pytest.fixture(scope="session")
def trained(made_once):
    """Like quick_run, but the run is trained once for all tests: its summary, and the folder of a copy of it."""

    def copied(*overrides, folder="run"):
        place = made_once(lambda: quick_run(*overrides), "run", *overrides)
        shutil.copytree(place / "run", folder)
        return json.loads(Path(folder, "summary.json").read_text()), Path(folder)

    return copied


@pytest.fixture(scope="session")
def trained_by_command(made_once):
    """A copy of the folder of a run that `vae-train ... hydra.run.dir=run` has trained, once for all tests."""

    def make(arguments):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["vae-train", *arguments, "hydra.run.dir=run"])
            cli.main()

    def copied(*arguments, folder="run"):
        place = made_once(lambda: make(arguments), "command", *arguments)
        return Path(shutil.copytree(place / "run", folder))

    return copied


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
    (log,) = Path(folder).glob("*.wandb")
    reader = [wandb.util.get_core_path(), "leet", "inspect", "--no-observability", "--json", "--run-file", log]
    out = subprocess.run(reader, capture_output=True, text=True, check=True)
    records = [json.loads(line) for line in out.stdout.splitlines()]
    by_type = {}
    for record in records:
        by_type.setdefault(record["type"], []).append(record[record["type"]])
    return by_type


# A real browser, which opens the pages that are written.

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
STRANGE = "</script><script>window.ran = 1</script><img src=x onerror='window.ran = 2'>&amp;\"'\u2028"
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    with playwright.sync_playwright() as driver, driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS) as found:
        yield found


@pytest.fixture
def visit(browser):
    """Opens a page; at the end no error was told and nothing was asked of a network."""
    said, asked, opened = [], [], []

    def visit(path, width=1280, until=".charts svg", **options):
        page = browser.new_page(viewport={"width": width, "height": 900}, **options)
        page.set_default_timeout(20_000)  # a machine with other work to do
        opened.append(page)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("console", lambda line: said.append(line.text) if line.type in ("error", "warning") else None)
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"file://{path}")
        page.wait_for_selector(until)
        return page

    yield visit
    for page in opened:
        assert page.evaluate("window.ran") is None, "text of a run was run"
        page.close()
    assert said == []
    assert all(url.startswith(("file://", "data:")) for url in asked)
