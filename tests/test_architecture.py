"""The package is a house: whoever stands above imports from below, never the other way round."""

import ast
import typing
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import vae_exp
from vae_exp.config import keys
from vae_exp.config.check import CONF_DIR, options
from vae_exp.config.foreign import PUBLIC

ROOT = Path(vae_exp.__file__).parent
# From the top. A part is a wing, which is a folder, or a file beside the wings; __init__ is the package's own.
FLOORS = [
    ["__main__", "__init__"],
    ["cli"],
    ["sweeps"],
    ["train"],
    ["figures"],
    ["inference"],
    ["tracking", "metrics"],
    ["compare"],
    ["training"],
    ["objectives", "config"],
    ["terms"],
    ["vae", "datasets", "networks", "scores", "samplers"],
    ["distributions", "likelihoods", "schedules"],
    ["shares"],
    ["distributed"],
    ["torchrun_env", "version", "files"],
    ["errors"],
]
HEIGHT = {part: -number for number, floor in enumerate(FLOORS) for part in floor}


def files():
    return {path.relative_to(ROOT).as_posix(): path for path in sorted(ROOT.rglob("*.py"))}


def part(file):
    """run/folder.py is of the part run, vae.py of vae."""
    return file.split("/")[0].removesuffix(".py")


def file_of(module):
    """The file of vae_exp.training.folder, and of a name inside a module that module's; None where it is not ours."""
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


def test_every_file_has_a_floor_and_every_floor_is_there():
    assert {part(file) for file in FILES} == HEIGHT.keys()


def test_imports_lead_downward():
    wrong = [
        f"{file} -> {target}"
        for file, target in ARROWS
        if part(file) != part(target) and HEIGHT[part(file)] <= HEIGHT[part(target)]
    ]
    assert len(ARROWS) > 100, "the imports are found"
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("wing", sorted({part(file) for file in FILES if "/" in file}))
def test_no_imports_inside_a_wing_go_in_a_circle(wing):
    inside = {file: {b for a, b in ARROWS if a == file and part(b) == wing} for file in FILES if part(file) == wing}
    try:
        TopologicalSorter(inside).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(reversed(error.args[1])))


def test_wandb_stays_in_its_wing():
    users = {file for file in FILES if any(name.split(".")[0] == "wandb" for name in IMPORTED[file])}
    assert users
    assert {part(file) for file in users} == {"tracking"}, users


KINDS = [
    (keys.Config, "config.yaml", None),
    (keys.EarlyStoppingKeys, "config.yaml", "early_stopping"),
    (keys.WandbKeys, "config.yaml", "wandb"),
    (keys.SweepKeys, "config.yaml", "sweep"),
    (keys.ModelKeys, "model/vanilla.yaml", None),
    (keys.EvaluateOptions, "evaluate.yaml", None),
    (keys.DataPlace, "evaluate.yaml", "dataset"),
    (keys.WandbMode, "evaluate.yaml", "wandb"),
    (keys.GenerateOptions, "generate.yaml", None),
    (keys.DataPlace, "generate.yaml", "dataset"),
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
