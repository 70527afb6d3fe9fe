"""The READMEs: links lead somewhere, commands compose, options and tables name what there is."""

import pkgutil
import re
import shlex
from pathlib import Path

import numpy
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from PIL import Image

import vae_exp
from tests.conftest import CONF_DIR, READMES, ROOT, code_blocks, quick_run, readme_python, readme_section

QUICKLY = ("epochs=1", "wandb.mode=disabled", "device=cpu")
PAGES = [*READMES, ".github/CONTRIBUTING.md", ".github/CHANGELOG.md"]
GROUPS = sorted(path.name for path in CONF_DIR.iterdir() if path.is_dir() and path.name not in ("hydra", "experiment"))


def options(group):
    return {path.stem for path in (CONF_DIR / group).glob("*.yaml")} - {"common"}


def without_code(text):
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(text):
    """Return what GitHub calls the headings of a page."""
    headings = re.findall(r"^#+ (.*)", without_code(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_and_pictures_of_a_page_are_there(page):
    text = without_code((ROOT / page).read_text())
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"https?://", link)]
    for link in links:
        path, _, anchor = link.partition("#")
        target = ((ROOT / page).parent / path if path else ROOT / page).resolve()
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        if anchor:
            assert anchor in anchors(target.read_text()), link


def test_every_readme_is_reached_from_the_first_page():
    table = readme_section("README.md", "Where things are")
    linked = set(re.findall(r"\]\(([\w/]+/README\.md)\)", table))
    assert linked == READMES.keys() - {"README.md"}
    assert len(READMES["README.md"].splitlines()) <= 250


def typed(program):
    """Return the arguments of each example of a program that is complete: without "..." and not a prompt's mistake."""
    lines = [
        line
        for text in READMES.values()
        for language, code in code_blocks(text)
        if language == "bash"
        for line in code.splitlines()
    ]
    commands = [shlex.split(line, comments=True) for line in lines if line.startswith(f"{program} ")]
    return list(dict.fromkeys(tuple(words[1:]) for words in commands if "..." not in words))


def one_job(arguments):
    """Return the overrides of a sweep's first job, or of a run, without those of Hydra itself."""
    overrides = OverridesParser.create().parse_overrides([each for each in arguments if not each.startswith("-")])
    for override in overrides:
        if override.key_or_group.startswith("hydra") or (
            override.is_sweep_override() and not override.is_choice_sweep()
        ):
            continue
        if override.is_sweep_override():
            value = next(override.sweep_string_iterator())
            yield f"{override.key_or_group}={value}"
        else:
            yield override.input_line


OWN = ("--config-dir", "-sc", "--help", "--info", "--hydra-help", "--cfg")


def test_every_run_and_sweep_composes():
    commands = [arguments for arguments in typed("vae-train") if not set(arguments) & set(OWN)]
    assert len(commands) > 25
    for arguments in commands:
        assert vae_exp.compose(*(word for word in one_job(arguments) if not word.startswith("resume=")))


@pytest.mark.parametrize("program", ["vae-evaluate", "vae-generate"])
def test_every_evaluation_and_picture_passes_the_checks(vae_command, program):
    """In an empty folder all that is wrong with them is that there is no run yet."""
    commands = [arguments for arguments in typed(program) if "--help" not in arguments]
    assert len(commands) > 3
    for arguments in commands:
        code, said = vae_command(program, *arguments)
        assert code == 1
        assert said.startswith(f"{program}: checkpoint=latest: "), said


@pytest.mark.parametrize("program", ["vae-compare", "vae-reproduce"])
def test_every_option_is_one_of_the_command(vae_command, program):
    _, said = vae_command(program, "--help")
    commands = re.findall(rf"{program} [^\n`]*", "\n".join(READMES.values()))
    named = {option for command in commands for option in re.findall(r"(?<!\w)--[a-z][a-z-]*", command)}
    assert named
    assert named <= set(re.findall(r"--[a-z][a-z-]*", said))


@pytest.mark.parametrize("page", ["README.md", "conf/README.md"])
@pytest.mark.parametrize("group", GROUPS)
def test_the_tables_of_groups_name_options_that_exist(page, group):
    """That of the first page may leave some out."""
    (row,) = re.findall(rf"^\| `{group}` \|([^|]*)\|", READMES[page], re.MULTILINE)
    named = set(re.findall(r"`(\w+)`", row))
    assert named <= options(group)
    assert named == options(group) or page == "README.md"


def test_the_table_of_presets_names_them_all():
    rows = re.findall(r"^\| `(\w+)` \|", readme_section("conf/README.md", "Presets"), re.MULTILINE)
    assert set(rows) == options("experiment")


@pytest.mark.slow
def test_the_mistake_on_the_first_page_is_answered_as_shown(vae_command):
    ((command, answer),) = re.findall(r"^\$ (vae-train .*)\n(.*?) \.\.\.$", READMES["README.md"], re.MULTILINE)
    code, said = vae_command(*shlex.split(command))
    assert code == 1
    assert said.startswith(answer)


@pytest.mark.slow
def test_the_example_of_own_arrays_trains(vae_train):
    section = readme_section("conf/README.md", "Your own arrays")
    (saving,) = (code for language, code in code_blocks(section) if language == "python")
    (training,) = (code for language, code in code_blocks(section) if language == "bash")
    rng = numpy.random.default_rng(0)
    images = rng.integers(0, 256, (60, 8, 8)).astype("uint8")
    factors = rng.integers(0, 3, (60, 2))
    exec(saving, {"numpy": numpy, "images": images, "labels": factors[:, 0], "factors": factors})
    code, said = vae_train(*shlex.split(training)[1:], *QUICKLY)
    assert code == 0, said


@pytest.mark.slow
def test_the_example_of_own_factors_trains(vae_train):
    section = readme_section("conf/README.md", "Your own factors")
    (header, *_), *commands = (code.splitlines() for language, code in code_blocks(section))
    rows = [(f"photos/{i}.png", shape, size) for i, (shape, size) in enumerate([("circle", 2), ("square", 10)] * 30)]
    Path("PATH/photos").mkdir(parents=True)
    for file, *_ in rows:
        Image.new("RGB", (8, 8)).save(f"PATH/{file}")
    Path("PATH/factors.csv").write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]))
    for line in commands[0]:
        code, said = vae_train(*shlex.split(line)[1:], "dataset.image_size=8", "dataset.test_size=20", *QUICKLY)
        assert code == 0, said


def test_the_example_of_scores_runs():
    names = {"codes": numpy.random.default_rng(0).normal(size=(300, 3)), "factors": numpy.indices((300, 2))[0] % 3}
    exec(readme_python("from vae_exp import scores"), names)


def test_the_names_of_the_python_api_exist():
    cells = re.findall(r"^\| (`.*?`) \|", readme_section("vae_exp/README.md", "Python API"), re.MULTILINE)
    names = [name for cell in cells for name in re.findall(r"`(\.?[a-z_][\w.]*)", cell)]
    assert len(names) > 30
    model = vae_exp.load(quick_run("epochs=0")[1])
    for name in names:
        owner, _, last = name.rpartition(".")
        if owner == "model":
            assert hasattr(model, last), name
        else:  # a name that begins with a dot is a further score
            pkgutil.resolve_name(f"{owner or 'vae_exp.scores'}.{last}")
