"""Imports never go in a circle, and only tracking/ imports wandb."""

import ast
import typing
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import vae_exp
from vae_exp.config import schema
from vae_exp.config.checks import CONF_DIR, options
from vae_exp.config.targets import PUBLIC

ROOT = Path(vae_exp.__file__).parent


def files():
    return {path.relative_to(ROOT).as_posix(): path for path in sorted(ROOT.rglob("*.py"))}


def part(file):
    """The folder or file at the top of the package: training for training/state.py, vae for vae.py."""
    return file.split("/")[0].removesuffix(".py")


def file_of(module):
    """The file of vae_exp.training.run_dir, and of a name inside a module that module's; None where it is not ours."""
    words = module.split(".")
    if words[0] != "vae_exp":
        return None
    while words:
        for candidate in ("/".join(words[1:]) + ".py", "/".join([*words[1:], "__init__.py"])):
            if candidate in FILES:
                return candidate
        words.pop()
    return None


def imported(path):
    """Every module that a file names in an import, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


FILES = files()
IMPORTED = {file: set(imported(path)) for file, path in FILES.items()}
ARROWS = [
    (file, target) for file in FILES for target in sorted({file_of(name) for name in IMPORTED[file]} - {None, file})
]


def test_no_imports_go_in_a_circle():
    assert len(ARROWS) > 100, "the imports are found"
    try:
        TopologicalSorter({file: {b for a, b in ARROWS if a == file} for file in FILES}).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(reversed(error.args[1])))


def test_only_tracking_imports_wandb():
    users = {file for file in FILES if any(name.split(".")[0] == "wandb" for name in IMPORTED[file])}
    assert users
    assert {part(file) for file in users} == {"tracking"}, users


KINDS = [
    (schema.Config, "config.yaml", None),
    (schema.EarlyStoppingKeys, "config.yaml", "early_stopping"),
    (schema.WandbKeys, "config.yaml", "wandb"),
    (schema.SweepKeys, "config.yaml", "sweep"),
    (schema.ModelKeys, "model/vanilla.yaml", None),
    (schema.EvaluateOptions, "evaluate.yaml", None),
    (schema.DataRootKeys, "evaluate.yaml", "dataset"),
    (schema.WandbModeKeys, "evaluate.yaml", "wandb"),
    (schema.GenerateOptions, "generate.yaml", None),
    (schema.DataRootKeys, "generate.yaml", "dataset"),
]


@pytest.mark.parametrize(("kind", "file", "inner"), KINDS, ids=lambda value: getattr(value, "__name__", None))
def test_the_types_of_the_keys_name_those_of_the_yaml(kind, file, inner):
    written = OmegaConf.to_container(OmegaConf.load(CONF_DIR / file), resolve=False)
    written = written[inner] if inner else written
    chosen = {group for default in written.pop("defaults", []) if isinstance(default, dict) for group in default}
    expected = {*written, *chosen} - {"hydra", "override hydra/help", "experiment"}
    assert set(typing.get_type_hints(kind)) == expected


@pytest.mark.parametrize("group", PUBLIC)
def test_a_checkpoint_may_name_every_option_of_ours(group):
    targets = {OmegaConf.load(CONF_DIR / group / f"{name}.yaml")._target_ for name in options(group)}
    assert targets == PUBLIC[group]
