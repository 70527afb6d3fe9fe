"""A run folder of a stranger's: nothing that it names is imported or obeyed, whatever the command, unless trusted."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
import torch
import yaml

import vae_exp
from tests.conftest import stored
from vae_exp.errors import UserError

SMALL = ("dataset=digits", "network.hidden_dims=[8]", "model.z_dim=3", "wandb.mode=disabled", "device=cpu")
GROUPS = ("network", "likelihood", "objective", "dataset", "optimizer", "scheduler")
EVIL = "from pathlib import Path\nPath('ran').touch()\ndef f(*a, **k):\n    return 1.0\n"


@pytest.fixture
def run(trained_by_command, tmp_path, monkeypatch):
    """A finished run of one epoch in the current folder, beside evil.py, which leaves a file `ran` when imported."""
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    folder = trained_by_command(*SMALL, "epochs=1")
    (tmp_path / "evil.py").write_text(EVIL)
    yield tmp_path / folder
    sys.modules.pop("evil", None)


def alter(folder, *words, group=None, settings=None):
    """Words more in the overrides of a run; and other settings of a group wherever a configuration is kept."""
    overrides = folder / ".hydra" / "overrides.yaml"
    overrides.write_text(yaml.safe_dump([*yaml.safe_load(overrides.read_text()), *words]))
    if group is None:
        return
    config = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump(config | {group: settings}))
    for name in ("best.pt", "last.pt"):
        state = stored(folder / name)
        torch.save(state | {"config": state["config"] | {group: settings}}, folder / name)


@pytest.mark.parametrize(
    ("group", "resume"), [*((group, "run") for group in GROUPS), ("network", "run/last.pt"), ("network", "latest")]
)
def test_a_name_in_a_folder_is_not_imported_when_it_goes_on(vae_train, run, group, resume):
    alter(run, f"{group}._target_=evil.f")
    if resume == "latest":
        shutil.move(run, "outputs/run")
    code, said = vae_train(f"resume={resume}", "epochs=2")
    assert code == 1
    assert f"{group}._target_=evil.f" in said
    assert "trust=true" in said
    assert not Path("ran").exists()
    assert "evil" not in sys.modules


def test_a_folder_does_not_trust_itself(vae_train, run):
    alter(run, "scheduler._target_=evil.f", "trust=true", group="trust", settings=True)
    code, said = vae_train("resume=run", "epochs=2")
    assert (code, "scheduler._target_=evil.f" in said, Path("ran").exists()) == (1, True, False)


@pytest.mark.slow
def test_a_configuration_in_a_folder_is_trusted_no_more_than_overrides(vae_train, run):
    alter(run, group="scheduler", settings={"_target_": "evil.f"})
    (run / ".hydra" / "overrides.yaml").unlink()  # as after a run from Python
    code, said = vae_train("resume=run", "epochs=2")
    assert (code, "scheduler._target_=evil.f" in said, Path("ran").exists()) == (1, True, False)
    with pytest.raises(UserError, match=r"scheduler\._target_=evil\.f"):
        vae_exp.compose("resume=run", "epochs=2")
    assert not Path("ran").exists()


def test_a_command_in_a_folder_is_not_called(vae_train, vae_command, run):
    """In every file of the run at once, so that nothing contradicts anything."""
    call = {"_target_": "subprocess.call", "args": ["touch", "ran"]}
    alter(run, "likelihood._target_=subprocess.call", "+likelihood.args=[touch,ran]", group="likelihood", settings=call)
    for program, typed in (
        ("vae-train", ("resume=run", "epochs=2")),
        ("vae-evaluate", ("checkpoint=run",)),
        ("vae-generate", ("checkpoint=run",)),
        ("vae-generate", ("checkpoint=run/last.pt", "what=weights")),
    ):
        code, said = vae_command(program, *typed)
        assert (code, "likelihood._target_=subprocess.call" in said) == (1, True), said
    with pytest.raises(UserError, match=r"subprocess\.call"):
        vae_exp.load("run")
    code, said = vae_command("vae-compare", "run", "--html", "report.html")
    assert code == 0, said
    assert not Path("ran").exists()


NESTED = [
    {"_recursive_": True},
    {"_partial_": True},
    {"_args_": ["x"]},
    {"hidden_dims": [{"_target_": "evil.f"}]},
    {"activation": {"_target_": "evil.f"}},
]


@pytest.mark.parametrize("more", NESTED, ids=str)
def test_a_name_deeper_down_is_refused(vae_train, run, more):
    kept = yaml.safe_load((run / "config.yaml").read_text())["network"]
    words = [f"++network.{key}={json.dumps(value).replace(chr(34), '')}" for key, value in more.items()]
    alter(run, *words, group="network", settings=kept | more)
    with pytest.raises(UserError, match=r"its network is not a _target_ with plain values|it takes a list of whole"):
        vae_exp.load("run")
    code, said = vae_train("resume=run", "epochs=2")
    assert code == 1
    assert "its network is not a _target_ with plain values" in said
    assert not Path("ran").exists()


OBEYED = [
    "hydra.output_subdir=../../outside",
    "hydra.job_logging.handlers.file.filename=precious",
    "hydra.job_logging.handlers.file.mode=w",
    "+hydra.callbacks.one={_target_: evil.f}",
    "hydra.searchpath=[file://.]",
    "hydra.run.dir=outside",
    "++hydra.hydra_logging.handlers.console.class=evil.f",
    "~hydra.job_logging",
    "hydra/job_logging=disabled",
    "+hydra={callbacks: {one: {_target_: evil.f}}}",
    "hydra.launcher.n_jobs=${oc.env:HOME}",
    "wandb.notes=${oc.env:HOME}",
    "wandb.notes=${oc.decode:${oc.env:HOME}}",
    "wandb.notes='${hydra:runtime.cwd}'",
    "experiment=../../../../../../../../../../{here}/evil",
    "network=[/evil]",
    "network={_target_: evil.f}",
    "+network@hydra.callbacks=mlp",
    "no word: [",
]


@pytest.mark.parametrize("words", [OBEYED[:10], OBEYED[10:]], ids=["values", "options and no words"])
def test_of_the_overrides_in_a_folder_only_our_own_keys_are_taken(vae_train, run, tmp_path, monkeypatch, words):
    """The run goes on as if the other words were not there, which is said on one line."""
    monkeypatch.setenv("HOME", "/a/secret/home")
    Path("precious").write_text("kept")
    Path("evil.yaml").write_text("# @package _global_\nhydra:\n  callbacks:\n    one:\n      _target_: evil.f\n")
    words = [word.replace("{here}", str(tmp_path)) for word in words]
    alter(run, *words)
    before = {path for path in tmp_path.rglob("*") if run not in path.parents}
    code, said = vae_train("resume=run", "epochs=2")
    assert code == 0, said
    (line,) = [line for line in said.splitlines() if "not taken from" in line]
    assert [word for word in words if word not in line] == []
    assert "epoch 2/2" in said
    assert Path("precious").read_text() == "kept"
    assert {path for path in tmp_path.rglob("*") if run not in path.parents} == before
    assert not (tmp_path.parent / "outside").exists()
    kept = [path.read_text() for path in run.rglob("*.yaml") if path.name != "overrides.yaml"]
    assert "/a/secret/home" not in "".join(kept)


@pytest.mark.slow
def test_our_own_keys_of_a_folder_are_taken(vae_train, run):
    kept = yaml.safe_load((run / "config.yaml").read_text())
    kept["network"] = kept["network"] | {"hidden_dims": [8]}
    alter(run, "wandb.notes='seed ${seed}'", "++network.init=pytorch", "log_every_steps=7")
    code, said = vae_train("resume=run", "epochs=2")
    assert code == 0, said
    assert "not taken" not in said
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["wandb"]["notes"], config["log_every_steps"]) == ("seed 0", 7)
    assert config["network"] == kept["network"]


OWN = "from vae_exp import schedules\ndef same(epoch, epochs):\n    return schedules.constant(epoch, epochs)\n"


@pytest.fixture
def own(vae_train, run, tmp_path):
    """A run with a schedule of its own, which lies in the current folder, and its option in conf."""
    (tmp_path / "mine.py").write_text(OWN)
    (tmp_path / "conf" / "scheduler").mkdir(parents=True)
    (tmp_path / "conf" / "scheduler" / "same.yaml").write_text("_target_: mine.same\n")
    code, said = vae_train(*SMALL, "--config-dir", "conf", "scheduler=same", "epochs=1", "hydra.run.dir=own")
    assert code == 0, said
    yield tmp_path / "own"
    sys.modules.pop("mine", None)


@pytest.mark.slow
def test_code_that_is_typed_anew_or_trusted_goes_on(vae_train, own):
    code, said = vae_train("resume=own", "epochs=2")
    assert code == 1
    assert "scheduler=same: there is no such scheduler" in said
    code, said = vae_train("resume=own", "epochs=2", "--config-dir", "conf")
    assert code == 0, said
    code, said = vae_train("resume=own", "epochs=3", "scheduler._target_=mine.same")
    assert code == 1, "the option in the overrides is none of vae_exp's"
    overrides = own / ".hydra" / "overrides.yaml"
    words = [word for word in yaml.safe_load(overrides.read_text()) if "scheduler" not in word]
    overrides.write_text(yaml.safe_dump([*words, "scheduler._target_=mine.same"]))
    assert vae_train("resume=own", "epochs=3")[0] == 1
    code, said = vae_train("resume=own", "epochs=3", "scheduler._target_=mine.same")
    assert code == 0, said
    code, said = vae_train("resume=own", "epochs=4", "trust=true")
    assert code == 0, said
    assert vae_train("resume=own", "epochs=5")[0] == 1, "what was typed once does not count again"


@pytest.mark.slow
def test_a_preempted_job_with_code_of_its_own_goes_on(vae_train, run, tmp_path):
    (tmp_path / "mine.py").write_text(OWN)
    typed = (*SMALL, "scheduler._target_=mine.same", "epochs=2", "hydra.run.dir=job", "resume=auto")
    assert vae_train(*typed, "max_steps=5")[0] == 0
    summary = json.loads(Path("job/summary.json").read_text())
    Path("job/summary.json").write_text(json.dumps(summary | {"state": "interrupted"}))
    code, said = vae_train(*typed)
    assert code == 0, said
    assert "resumes from job/last.pt" in said


NETWORK = """
from pathlib import Path
from vae_exp import networks
import beside

def net(x_shape, z_dim, context_dim):
    Path("{here}").touch()
    return networks.mlp(x_shape, z_dim, context_dim, beside.SIZES, "relu")
"""


@pytest.fixture
def elsewhere(vae_train, run, tmp_path, monkeypatch):
    """A run with a network of its own, of project/mynet.py, and a current folder with another mynet.py."""
    for name in ("project", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mynet.py").write_text(NETWORK.replace("{here}", str(tmp_path / f"of_{name}")))
        (tmp_path / name / "beside.py").write_text("SIZES = [8]\n")
    monkeypatch.chdir(tmp_path / "project")
    typed = ("network._target_=mynet.net", "~network.hidden_dims", "~network.activation", "~network.init")
    code, said = vae_train(
        *(word for word in SMALL if "hidden" not in word), *typed, "epochs=1", "hydra.run.dir=../own"
    )
    assert code == 0, said
    _forget()
    (tmp_path / "of_project").unlink()
    monkeypatch.chdir(tmp_path / "other")
    yield tmp_path
    _forget()


def _forget():
    """As in a new process."""
    for name in ("mynet", "beside"):
        sys.modules.pop(name, None)
    sys.path[:] = [place for place in sys.path if "pytest-of-" not in place]


@pytest.mark.slow
def test_a_runs_own_code_is_found_where_it_lay(vae_command, elsewhere):
    """Never another file of that name in the folder where one stands; where it is gone, that one, with a note."""
    assert stored(elsewhere / "own" / "best.pt")["code"] == {"mynet": str(elsewhere / "project" / "mynet.py")}
    commands = {
        "vae-evaluate": ["checkpoint=../own", "trust=true"],
        "vae-train": ["resume=../own", "epochs=2", "trust=true"],
        "vae-generate": ["checkpoint=../own", "what=weights", "trust=true", "output=weights"],
    }
    for program, typed in commands.items():
        code, said = vae_command(program, *typed)
        assert code == 0, said
        assert (elsewhere / "of_project").exists()
        assert not (elsewhere / "of_other").exists()
        (elsewhere / "of_project").unlink()
        _forget()
    assert len(vae_exp.load("weights/best.safetensors", trust=True).sample(2)) == 2
    _forget()
    (elsewhere / "project" / "mynet.py").unlink()
    code, said = vae_command("vae-evaluate", "checkpoint=../own", "trust=true")
    assert code == 0, said
    assert f"mynet: the run's code was {elsewhere}/project/mynet.py, which is gone; {elsewhere}/other/mynet.py" in said
    assert (elsewhere / "of_other").exists()
    _forget()
    Path("mynet.py").unlink()
    code, said = vae_command("vae-evaluate", "checkpoint=../own", "trust=true")
    assert code == 1
    assert f"{elsewhere}/project/mynet.py, which is gone, and in {elsewhere}/other there is none" in said


@pytest.mark.slow
def test_code_of_that_name_that_is_imported_already_is_no_substitute(elsewhere, monkeypatch):
    monkeypatch.syspath_prepend(".")
    import mynet  # noqa: F401

    with pytest.raises(UserError, match=r"project/mynet\.py, and .*other/mynet\.py is imported already"):
        vae_exp.load("../own", trust=True)
    shutil.copy("../project/mynet.py", "mynet.py")
    assert vae_exp.load("../own", trust=True), "a copy is the same"


@pytest.mark.slow
def test_names_typed_anew_are_those_of_the_current_folder_with_a_note(vae_train, elsewhere):
    typed = ("network._target_=mynet.net", "~network.hidden_dims", "~network.activation", "~network.init")
    code, said = vae_train("resume=../own", "epochs=2", *typed)
    assert code == 0, said
    assert f"mynet: is {elsewhere}/other/mynet.py, and the run had {elsewhere}/project/mynet.py" in said
    assert not (elsewhere / "of_project").exists()


@pytest.mark.parametrize("code", [None, 3, [], {"a b": "x"}, {"mynet": 3}, {"": ""}])
def test_where_code_lay_is_text(run, code):
    torch.save(stored(run / "best.pt") | {"code": code}, run / "best.pt")
    with pytest.raises(UserError, match="not a checkpoint that this version reads"):
        vae_exp.load("run")


def shell(line):
    """A printed command, run as it stands by a shell that finds the commands of this Python."""
    bin_of = str(Path(sys.executable).parent)
    path = f"{bin_of}:/usr/bin:/bin"
    environment = {"PATH": path, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1", "HOME": "."}
    return subprocess.run(line, shell=True, capture_output=True, text=True, env=environment, timeout=120)


@pytest.mark.slow
def test_what_is_printed_as_the_next_command_works_as_it_stands(vae_train, vae_command, own):
    """A run with code of its own, options in a folder that was typed, and a path with what shells and Hydra read."""
    place = "out put/it's, [a] run"
    code, said = vae_train(*SMALL, "--config-dir", "conf", "scheduler=same", "epochs=1", f'hydra.run.dir="{place}"')
    assert code == 0, said
    printed = dict(re.findall(r"^(evaluate|generate|compare) +(.*)$", said, re.MULTILINE))
    assert "trust" not in "".join(printed.values()), "the schedule is not needed there"
    code, _ = vae_command("vae-compare", "out put", "--html", "report.html")
    page = json.loads(re.search(r"<script[^>]*json[^>]*>(.*?)</script>", Path("report.html").read_text(), re.DOTALL)[1])
    (commands,) = [each["commands"] for view in page["views"][:1] for each in view["runs"]]
    of_both = [shlex.split(line)[1:] for line in (printed["evaluate"], commands["evaluate"])]
    assert of_both[0] == of_both[1], "but for where the program lies"
    for line in (commands["resume"], *printed.values()):
        done = shell(line)
        assert done.returncode == 0, (line, done.stdout + done.stderr)
    assert "trust=true" in shlex.split(commands["resume"])
    assert json.loads(Path(place, "summary.json").read_text())["state"] == "finished"


@pytest.mark.slow
def test_commands_of_a_run_with_a_network_of_its_own_say_that_it_is_trusted(vae_command, elsewhere):
    _, said = vae_command("vae-train", "resume=../own", "epochs=2", "trust=true")
    printed = dict(re.findall(r"^(evaluate|generate) +(.*)$", said, re.MULTILINE))
    assert shlex.split(printed["evaluate"])[1:] == ["checkpoint=../own", "trust=true"]
    assert shlex.split(printed["generate"])[1:] == ["checkpoint=../own", "trust=true"]


def swept(vae_train, *words):
    """The folder of a sweep of two jobs that are trained for no epoch."""
    mode = () if any("wandb.mode" in word for word in words) else ("wandb.mode=disabled",)
    code, said = vae_train("-m", *SMALL[:3], "device=cpu", *mode, "epochs=0", *words)
    assert code == 0, said
    (folder,) = Path("outputs/sweeps").iterdir()
    return folder


@pytest.mark.slow
def test_the_name_of_a_sweep_is_no_interpolation(vae_train, run, monkeypatch):
    monkeypatch.setenv("SECRET", "told")
    folder = swept(vae_train, "seed=0,1")
    record = json.loads((folder / "sweep.json").read_text())
    wrongs = ({"name": "${oc.env:SECRET}"}, {"settings": 3}, {"values": ["seed=["]}, {"name": None}, {"cwd": 5})
    for wrong in wrongs:
        (folder / "sweep.json").write_text(json.dumps(record | wrong))
        code, said = vae_train("-m", *SMALL, "epochs=0", "seed=0,1", f"sweep.resume={folder}")
        assert (code, "no readable sweep.json" in said, "told" in said) == (1, True, False), said


@pytest.mark.slow
def test_jobs_of_a_sweep_that_grows_stay_in_its_folder(vae_train, run):
    folder = swept(vae_train, "scheduler=constant,cosine")
    (folder / "scheduler-x").mkdir()
    hydra = folder / "scheduler-cosine" / ".hydra" / "hydra.yaml"
    kept = yaml.safe_load(hydra.read_text())
    kept["hydra"]["runtime"]["choices"]["scheduler"] = "x/../../outside"
    hydra.write_text(yaml.safe_dump(kept))
    for place in (folder, folder / "scheduler-constant" / "confirmed" / "one"):  # runs that are no jobs
        place.mkdir(parents=True, exist_ok=True)
        for name in ("summary.json", "config.yaml"):
            shutil.copy(folder / "scheduler-constant" / name, place)
    code, said = vae_train("-m", *SMALL, "epochs=0", "scheduler=constant,cosine,milestones", f"sweep.resume={folder}")
    assert code == 0, said
    assert {path.name for path in folder.parent.iterdir()} == {folder.name}
    assert hydra.is_file()
    assert (folder / "scheduler-constant" / "confirmed" / "one" / "summary.json").is_file()


@pytest.mark.slow
def test_workers_of_a_sweep_import_nothing_of_the_current_folder(vae_train):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="not installed: pip install 'vae_exp[joblib]'")
    Path("joblib.py").write_text("open('ran', 'w')\n")
    joblib = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    code, said = vae_train("-m", *SMALL, "epochs=0", "wandb.mode=disabled", "seed=0,1", *joblib)
    assert not Path("ran").exists()
    assert code == 0, said
    assert "PYTHONSAFEPATH" not in os.environ


@pytest.mark.slow
def test_trials_in_the_journal_of_a_search_have_values_that_were_typed(vae_train, run, tmp_path):
    asked = ("hydra/sweeper=optuna", "scheduler=constant,cosine", "hydra.sweeper.n_trials=1")
    folder = swept(vae_train, *asked)
    (tmp_path / "evil.yaml").write_text("_target_: evil.f\n")
    (folder / "journal.log").unlink()
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(folder / "journal.log")))
    study = optuna.create_study(study_name=folder.name, storage=storage)
    outside = "/".join([".."] * 12) + f"{tmp_path}/evil"
    study.ask({"scheduler": optuna.distributions.CategoricalDistribution([outside])})
    (folder / "0" / "summary.json").unlink()
    vae_train("-m", *SMALL, "epochs=0", *asked, f"sweep.resume={folder}")
    assert not Path("ran").exists()
    assert study.get_trials()[0].state.name == "FAIL"


@pytest.mark.slow
def test_the_command_that_repeats_a_sweep_has_our_own_keys_alone(vae_train, vae_command, run):
    pytest.importorskip("wandb_workspaces", reason="not installed: pip install 'vae_exp[workspaces]'")
    folder = swept(vae_train, "seed=0,1", "wandb.mode=offline", "hydra/launcher=joblib", "hydra.launcher.n_jobs=1")
    kept = yaml.safe_load((folder / "multirun.yaml").read_text())
    evil = ["hydra.launcher.pre_dispatch=evil", "+hydra.callbacks.one={_target_: evil.f}", "hydra/job_logging=evil"]
    kept["hydra"]["overrides"]["hydra"] += [*evil, "+hydra.sweeper.params.hydra/callbacks=evil"]
    kept["hydra"]["overrides"]["task"] += ["wandb.notes=${oc.env:EVIL}", "log_every_steps=7"]
    (folder / "multirun.yaml").write_text(yaml.safe_dump(kept))
    code, said = vae_command("vae-compare", folder, "--wandb", "me/mine", "--wandb-report", "--dry-run")
    assert code == 0, said
    (dropped,) = [line for line in said.splitlines() if "not taken from" in line]
    assert all(word in dropped for word in [*evil, "wandb.notes"])
    (line,) = re.findall(r'"(vae-train -m .*?)"', said.replace(dropped, ""))
    assert "evil" not in line.lower()
    assert {"hydra/launcher=joblib", "hydra.launcher.n_jobs=1", "seed=0,1", "log_every_steps=7"} <= set(line.split())


@pytest.mark.slow
def test_a_published_run_that_lies_there_is_not_called(vae_command, run):
    """vae-reproduce finds it finished, by all that its configuration says."""
    code, said = vae_command("vae-reproduce", "linear_gaussian", "wandb.mode=disabled", "device=cpu", "epochs=1")
    assert Path("outputs/published/linear_gaussian_epochs-1/best.pt").is_file(), said
    folder = Path("outputs/published/linear_gaussian_epochs-1")
    for name in ("best.pt", "last.pt"):
        state = stored(folder / name)
        torch.save(state | {"config": state["config"] | {"likelihood": {"_target_": "evil.f"}}}, folder / name)
    code, said = vae_command("vae-reproduce", "linear_gaussian", "wandb.mode=disabled", "device=cpu", "epochs=1")
    assert code == 1
    assert "likelihood._target_=evil.f" in said
    assert not Path("ran").exists()


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info < (3, 11), reason="an older Python cannot leave out the current folder")
def test_processes_of_a_run_import_nothing_of_the_current_folder(run):
    """Of a stranger's folder, where one stands, no file takes the place of an installed module."""
    Path("yaml.py").write_text(EVIL)
    done = shell(f"vae-train {shlex.join(SMALL)} epochs=1 devices=2 hydra.run.dir=two")
    assert done.returncode == 0, done.stdout + done.stderr
    assert Path("two/best.pt").exists()
    assert not Path("ran").exists()


def test_a_pickled_configuration_is_not_run_again(vae_train, run):
    code, said = vae_train("--experimental-rerun", "run/.hydra/config.pickle")
    assert code == 1
    assert "--experimental-rerun: no such flag" in said
