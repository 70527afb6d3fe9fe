"""What lies in a run's folder already: nobody's run is lost, and nothing of other weights stays beside a model."""

import os
import resource
import shutil
from pathlib import Path

import pytest

from tests import hooks
from tests.conftest import QUICK, compose, metrics, quick_run, stored
from tests.hooks import Crash
from vae_exp.errors import UserError
from vae_exp.train import train

SMALL = ("network.hidden_dims=[16]", "model.z_dim=3", hooks.OWN_OBJECTIVE)  # its name lies in the folder: trust=true
START = (*QUICK, *SMALL, "wandb.mode=disabled")
RUN = (*START, "hydra.run.dir=run")
STANDS_STILL = ("scheduler=milestones", "scheduler.at_epochs=[1]", "scheduler.gamma=1e-30")  # after its first epoch


def content(folder):
    """Every file of a folder, with the time at which it was written."""
    files = [path for path in Path(folder).rglob("*") if path.is_file()]
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def evaluate(vae_command, path):
    code, said = vae_command("vae-evaluate", f"checkpoint={path}", "device=cpu", "repeats=1")
    assert code == 0, said


def generate(vae_command, path):
    code, said = vae_command("vae-generate", f"checkpoint={path}", "n=4", "device=cpu")
    assert code == 0, said


def names(folder):
    return {path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file()}


def test_a_folder_that_holds_a_run_is_refused_with_three_ways_on_and_nothing_is_touched(vae_train, trained_by_command):
    trained_by_command(*START, "epochs=2")
    before = content("run")
    code, said = vae_train(*RUN)
    assert code == 1
    assert len(said.splitlines()) == 1
    assert all(way in said for way in ("resume=run ", "another hydra.run.dir", "replace=true"))
    with pytest.raises(UserError, match=r"hydra\.run\.dir=run: there is a run"):
        train(compose(*QUICK, *SMALL, "wandb.mode=disabled"), Path("run"))
    assert content("run") == before


def test_a_run_that_has_only_its_numbers_yet_is_a_run():
    with hooks.crash_at(6), pytest.raises(Crash):
        quick_run(*SMALL, "log_every_steps=2")
    assert not Path("run/last.pt").exists()
    with pytest.raises(UserError, match="there is a run in this folder"):
        quick_run(*SMALL)


@pytest.mark.slow
def test_replace_takes_everything_of_the_old_run_away(vae_train, vae_command, trained_by_command):
    trained_by_command(*START, "epochs=2")
    for name in ("best.pt", "last.pt", "last.previous.pt"):
        evaluate(vae_command, f"run/{name}")
    generate(vae_command, "run")
    assert vae_train("resume=run", "trust=true", "epochs=3")[0] == 0
    assert Path("run/earlier").is_dir()
    Path("run/reproduced.json").write_text("{}")
    assert vae_train(*RUN, "replace=true", "seed=1")[0] == 0
    assert vae_train(*RUN, "seed=1", "hydra.run.dir=fresh")[0] == 0
    assert names("run") == names("fresh")
    assert Path("run/train.log").read_text().count("run folder") == 1
    assert [row["epoch"] for row in metrics("run") if "val/kl" in row] == [1]
    assert stored("run/best.pt")["config"]["seed"] == 1


@pytest.mark.slow
def test_a_new_run_that_cannot_begin_takes_nothing_away(vae_train, trained_by_command):
    trained_by_command(*START)
    before = content("run")
    code, said = vae_train(*RUN, "replace=true", "dataset=image_folder", "dataset.root=nowhere", "model=vanilla")
    assert (code, "nowhere" in said) == (1, True), said
    after = content("run")
    for path in before:
        if ".hydra" not in path.parts and path.name != "train.log":
            assert after[path] == before[path], path
    assert after[Path("run/train.log")][0].startswith(before[Path("run/train.log")][0])


@pytest.mark.parametrize(
    "typed",
    [
        (*RUN,),
        (*RUN, "replace=true", "model.z_dim=0"),
        (*RUN, "replace=true", "model=conditional", "dataset.n_classes=0"),
        (*RUN, "replace=true", "hydra/job_logging=disabled"),
        (*RUN, "resume=auto", "batch_size=7"),
        ("resume=run", "trust=true"),
        ("resume=run", "trust=true", "epochs=2", "model.z_dim=9"),
        ("resume=run", "epochs=2"),
        ("resume=run", "trust=true", "epochs=2", "optimizer.zr=9"),
    ],
    ids=lambda typed: " ".join(word for word in typed if word not in RUN),
)
def test_a_refused_start_changes_no_byte_of_a_run(vae_train, typed, trained_by_command):
    trained_by_command(*START)
    before = content("run")
    assert Path("run/.hydra/hydra.yaml") in before
    code, said = vae_train(*typed)
    assert (code, "Traceback" in said) == (1, False), said
    assert content("run") == before


@pytest.mark.slow
def test_a_run_that_failed_before_it_began_leaves_no_folder(vae_train):
    for wrong in (
        ["dataset=image_folder", "dataset.root=photos", *RUN[2:]],
        ["dataset=image_folder", "dataset.root=photos"],
    ):
        code, said = vae_train(*wrong, "batch_size=64")
        assert (code, "photos" in said) == (1, True), said
        assert not list(Path().rglob("train.log")) and not list(Path("outputs").glob("*"))
    for name in ("main.log", "train.log"):
        Path("other/.hydra").mkdir(parents=True)
        for path in (Path("other", name), Path("other/.hydra/notes.yaml")):
            path.write_text("of another project")
        assert vae_train("dataset=image_folder", "dataset.root=photos", *START[2:], "hydra.run.dir=other")[0] == 1
        for path in (Path("other", name), Path("other/.hydra/notes.yaml")):
            assert path.read_text().startswith("of another project")
        shutil.rmtree("other")
    assert vae_train(*RUN)[0] == 0
    assert "photos" not in Path("run/train.log").read_text()


@pytest.mark.slow
def test_replace_and_resume_are_two_wishes_and_replace_is_not_inherited(vae_train):
    assert vae_train(*RUN, "replace=true")[0] == 0
    code, said = vae_train("resume=run", "trust=true", "epochs=2", "replace=true")
    assert (code, "resume=run and replace=true" in said) == (1, True)
    assert vae_train("resume=run", "trust=true", "epochs=2")[0] == 0
    assert [row["epoch"] for row in metrics("run") if "val/kl" in row] == [1, 2]


def test_auto_starts_anew_where_a_run_was_stopped_before_its_first_checkpoint(vae_train):
    typed = (*RUN, "resume=auto", "log_every_steps=2")
    with hooks.crash_at(6), pytest.raises(Crash):
        vae_train(*typed)
    assert vae_train(*typed)[0] == 0
    assert [row["step"] for row in metrics("run")][:2] == [2, 4]


def test_auto_refuses_a_folder_whose_checkpoints_are_damaged(vae_train):
    typed = (*RUN, "epochs=3", "resume=auto")
    with hooks.crash_at(30), pytest.raises(Crash):
        vae_train(*typed)
    for name in ("last.pt", "last.previous.pt"):
        Path("run", name).write_bytes(b"cut off")
    before = content("run")
    code, said = vae_train(*typed)
    assert (code, "replace=true" in said, "Traceback" in said) == (1, True, False)
    assert content("run") == before


def test_what_was_measured_of_other_weights_is_set_aside(vae_train, vae_command, trained_by_command):
    trained_by_command(*START, "epochs=2")
    assert stored("run/best.pt")["epoch"] == 2
    for name in ("best.pt", "last.pt"):
        evaluate(vae_command, f"run/{name}")
    generate(vae_command, "run")
    moved = {path: Path("run", path).read_bytes() for path in ("best.test.json", "last.test.json")}
    assert vae_train("resume=run", "trust=true", "epochs=3")[0] == 0
    assert stored("run/best.pt")["epoch"] == 3
    assert not list(Path("run").glob("*.test.json"))
    assert not Path("run/generated").exists()
    assert {path: Path("run/earlier/epoch-2", path).read_bytes() for path in moved} == moved
    assert len(list(Path("run/earlier/epoch-2/generated").iterdir())) == 1


@pytest.mark.slow
def test_what_was_measured_of_the_same_weights_stays(vae_train, vae_command, trained_by_command):
    trained_by_command(*START, *STANDS_STILL, "epochs=2")
    for name in ("best.pt", "last.pt"):
        evaluate(vae_command, f"run/{name}")
    generate(vae_command, "run")
    kept = content("run/generated") | {Path("run/best.test.json"): content("run")[Path("run/best.test.json")]}
    assert vae_train("resume=run", "trust=true", "epochs=3")[0] == 0
    assert stored("run/best.pt")["epoch"] == 1
    assert {path: content("run")[path] for path in kept} == kept
    assert not Path("run/last.test.json").exists()
    assert Path("run/earlier/epoch-2/last.test.json").exists()


@pytest.mark.slow
def test_a_job_of_a_resumed_sweep_replaces_what_failed(vae_train):
    typed = ("-m", *QUICK, *SMALL, "wandb.mode=disabled", "optimizer.lr=1e-3,1e10", "epochs=2", "log_every_steps=1")
    assert vae_train(*typed)[0] == 1
    (folder,) = Path("outputs/sweeps").iterdir()
    failed = next(path.parent for path in folder.rglob("summary.json") if '"failed"' in path.read_text())
    assert metrics(failed)
    assert not (failed / "last.pt").exists()
    code, said = vae_train(*typed, f"sweep.resume={folder}")
    assert (code, "there is a run" in said) == (1, False), said
    assert "not finite" in said


@pytest.mark.parametrize("place", ["/proc/x", "/proc/nothing/here"])
def test_a_place_where_nothing_can_be_made_is_one_message(vae_train, place):
    code, said = vae_train(*START, f"hydra.run.dir={place}")
    assert code == 1
    assert len(said.splitlines()) == 1
    assert place in said
    assert "cannot be written" in said


@pytest.mark.parametrize("name", ["train.log", "summary.json", "best.pt", "metrics.jsonl", "last.previous.pt"])
@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_what_stands_in_the_place_of_a_file_is_named(vae_train, name, kind, trained_by_command):
    trained_by_command(*START)
    Path("run", name).unlink(missing_ok=True)
    Path("run", name).mkdir() if kind == "folder" else os.mkfifo(Path("run", name))
    before = content("run")
    code, said = vae_train("resume=run", "trust=true", "epochs=2")
    assert (code, len(said.splitlines())) == (1, 1), said
    assert f"run/{name}: not a file" in said or f"checkpoint=run/{name}" in said
    assert content("run") == before


def test_a_disk_that_is_full_at_the_start_is_one_message_that_names_a_file(vae_train):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        code, said = vae_train(*RUN)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (code, len(said.splitlines())) == (1, 1), said
    assert "run/train.log: cannot be written (File too large)" in said
    assert not Path("run").exists()
