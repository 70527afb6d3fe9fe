"""vae-compare: its table and its CSV agree with the files of the runs; test_report.py has its page."""

import csv
import functools
import itertools
import json
import os
import re
import shutil
import statistics
from pathlib import Path

import pytest
import yaml

from tests.conftest import full_disk, metrics, quick_run
from vae_exp.cli import compare as compare_command
from vae_exp.cli import train as train_command
from vae_exp.cli.common import versions
from vae_exp.compare.runs import RESULTS, UDR, Run, fold_seeds, sort_runs, usual_columns
from vae_exp.compare.table import best, best_per_group, format_table, metric_of
from vae_exp.config.checks import made_name
from vae_exp.config.compose import compose
from vae_exp.config.schema import judged_by
from vae_exp.errors import UserError
from vae_exp.tracking.wandb_run import run_name
from vae_exp.training.run_dir import Summary, WandbRun, lock_folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two z_dims, two seeds each, and one run that diverged."""
    folder = tmp_path_factory.mktemp("runs")
    for z_dim in (2, 8):
        for seed in (0, 1):
            settings = (f"model.z_dim={z_dim}", f"seed={seed}", "epochs=2", "model.beta=0.5")
            quick_run(*settings, folder=folder / f"z{z_dim}-s{seed}")
    with pytest.raises(Exception, match="diverged"):
        quick_run("optimizer.lr=1e10", "epochs=2", "model.beta=0.5", folder=folder / "diverged")
    (folder / "diverged" / "metrics.jsonl").unlink()  # as a run that failed before it logged anything
    return folder


@pytest.fixture
def vae_compare(vae_command):
    return functools.partial(vae_command, "vae-compare")


@pytest.mark.slow
def test_the_table_has_the_keys_that_differ_and_the_best_first(runs, vae_compare, monkeypatch):
    monkeypatch.setenv("COLUMNS", "250")
    code, said = vae_compare(runs)
    assert code == 0
    head, *rows = said.splitlines()
    columns = re.split(r"  +", head.strip())
    assert columns[0] == "run"
    assert set(columns[1:4]) == {"model.z_dim", "optimizer.lr", "seed"}
    assert "model.beta" not in columns
    assert "dataset.seed" not in columns, "the same values under a second name"
    assert rows[0].startswith("best")
    assert "failed" in rows[-1]
    assert "diverged" in rows[-1]


def test_the_csv_has_the_numbers_of_the_runs_in_full(runs, vae_compare, tmp_path):
    assert vae_compare(runs, "--csv", tmp_path / "new" / "t.csv")[0] == 0
    with (tmp_path / "new" / "t.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 5
    for row in rows[:4]:
        folder = runs / row["run"].split("/")[-1]
        history = [line["val/neg_elbo"] for line in metrics(folder) if "val/neg_elbo" in line]
        assert float(row["val/neg_elbo"]) == min(history)
        assert float(row["test/neg_elbo"]) == json.loads((folder / "summary.json").read_text())["test/neg_elbo"]
        assert int(row["model.z_dim"]) == yaml.safe_load((folder / "config.yaml").read_text())["model"]["z_dim"]
    numbers = [float(row["val/neg_elbo"]) for row in rows[:4]]
    assert numbers == sorted(numbers)
    assert rows[4]["val/neg_elbo"] == ""


def test_seeds_are_folded_on_request(runs, vae_compare, tmp_path):
    assert vae_compare(runs, "--fold-seeds", "--filter", "state=finished", "--csv", tmp_path / "t.csv")[0] == 0
    with (tmp_path / "t.csv").open() as file:
        rows = {row["model.z_dim"]: row for row in csv.DictReader(file)}
    assert rows.keys() == {"2", "8"}
    for z_dim, row in rows.items():
        of_seeds = [json.loads((runs / f"z{z_dim}-s{seed}" / "summary.json").read_text()) for seed in (0, 1)]
        numbers = [summary["test/kl"] for summary in of_seeds]
        assert float(row["test/kl"]) == pytest.approx(statistics.mean(numbers))
        assert float(row["test/kl std"]) == pytest.approx(statistics.stdev(numbers))
        assert row["seeds"] == "2"


def test_filter_sort_and_columns(runs, vae_compare):
    arguments = ("--filter", "model.z_dim>=8", "--filter", "seed=1", "--columns", "seed,model.z_dim,test/kl")
    lines = vae_compare(runs, *arguments)[1].splitlines()
    assert len(lines) == 2
    assert lines[0].split() == ["run", "seed", "model.z_dim", "test/kl"]
    assert lines[1].split()[:3] == ["z8-s1", "1", "8"]
    assert vae_compare(runs, "--filter", "model.z_dim==8") == vae_compare(runs, "--filter", "model.z_dim=8")
    up = vae_compare(runs, "--columns", "test/kl", "--sort", "test/kl", "--filter", "optimizer.lr<1e-2")[1]
    down = vae_compare(
        runs, "--columns", "test/kl", "--sort", "test/kl", "--descending", "--filter", "optimizer.lr<1e-2"
    )[1]
    numbers = [float(line.split()[-1]) for line in up.splitlines()[1:]]
    assert numbers == sorted(numbers)
    assert [float(line.split()[-1]) for line in down.splitlines()[1:]] == numbers[::-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere",), "nowhere: there is no such file or folder"),
        ((".",), "no run in it"),
        (("x" * 5000,), "... (5,000 characters): it takes the path of a folder"),
        (("RUNS", "--filter", f"seed={'[' * 3000}"), "... (3,005 characters): none of the 5 runs passes"),
        (("RUNS", "--sort", "val/elbo"), "val/elbo: no run has this column. Did you mean val/neg_elbo"),
        (("RUNS", "--columns", "z_dum"), "z_dum: no run has this column. Did you mean model.z_dim"),
        (("RUNS", "--filter", "model.z_dim=3"), "none of the 5 runs passes"),
        (("RUNS", "--filter", "model.z_dim"), "write KEY=VALUE"),
        (("RUNS", "--csv", "/proc/none/x.csv"), "/proc/none/x.csv: cannot be written"),
    ],
)
def test_mistakes_are_one_message(runs, vae_compare, arguments, message):
    code, said = vae_compare(*(runs if word == "RUNS" else word for word in arguments))
    assert code == 1
    assert message in said
    assert "Traceback" not in said


def test_runs_that_all_failed_are_told_with_their_reasons(runs, vae_compare):
    code, said = vae_compare(runs / "diverged")
    assert code == 0
    assert "diverged" in said


def test_the_best_settings_are_those_whose_seeds_all_finished():
    def run(z_dim, seed, number):
        state = "failed" if number is None else "finished"
        metrics = {} if number is None else {"val/neg_elbo": number}
        return Run(Path(f"z{z_dim}s{seed}"), {"model.z_dim": z_dim, "seed": seed}, state, None, metrics)

    runs = [run(2, 0, 10.0), run(2, 1, 20.0), run(3, 0, 14.0), run(3, 1, 14.5), run(5, 0, 13.0), run(5, 1, None)]
    best_settings = best(fold_seeds(runs))
    assert best_settings.config == {"model.z_dim": 3}
    assert best(best_settings.members).folder == Path("z3s0")


DAMAGE = {
    "truncated": lambda folder: (folder / "summary.json").write_text('{"state": '),
    "a list": lambda folder: (folder / "summary.json").write_text("[1, 2]"),
    "no number": lambda folder: set_in_summary(folder, **{"best/val_neg_elbo": float("nan")}),
    "text for a number": lambda folder: set_in_summary(folder, **{"test/kl": "3"}),
    "no config": lambda folder: (folder / "config.yaml").unlink(),
    "config of text": lambda folder: (folder / "config.yaml").write_text("text"),
    "deep": lambda folder: (folder / "summary.json").write_text("[" * 200_000),
    "deep but sound": lambda folder: (folder / "summary.json").write_text(f'{{"a": {"[" * 900}{"]" * 900}}}'),
    "deep config": lambda folder: (folder / "config.yaml").write_text("[" * 200_000),
    "config in itself": lambda folder: (folder / "config.yaml").write_text("a: &a\n  b: *a\n"),
    "bomb": lambda folder: (folder / "config.yaml").write_text(BOMB),
    "environment of text": lambda folder: set_in_summary(folder, environment="text"),
    "infinite reason": lambda folder: set_in_summary(folder, reason=float("inf")),
    "month 13": lambda folder: (folder / "config.yaml").write_text("a: 2026-13-01"),
    "pipe": lambda folder: in_place(folder / "summary.json", os.mkfifo),
    "endless": lambda folder: in_place(folder / "config.yaml", lambda path: path.symlink_to("/dev/zero")),
    "large": lambda folder: in_place(folder / "summary.json", lambda path: os.truncate(path.open("w").name, 2**30)),
}
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{to}: &{to} [{', '.join([f'*{of}'] * 9)}]\n" for of, to in itertools.pairwise("abcdefghijk")
)


def in_place(path, make):
    path.unlink()
    make(path)


def set_in_summary(folder, **values):
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(summary | values))


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_run_is_named_and_the_others_are_compared(runs, vae_compare, tmp_path, damage):
    for name in ("bad", "good", "fine"):
        shutil.copytree(runs / "z2-s0", tmp_path / name)
    DAMAGE[damage](tmp_path / "bad")
    code, said = vae_compare(tmp_path, "--html", tmp_path / "report.html")
    assert code == 0
    (line,) = [line for line in said.splitlines() if line.startswith("left out: ")]
    assert f"left out: {tmp_path}/bad: not a run of vae_exp, or a damaged one: " in line
    assert set(rows_of(said)) == {"good", "fine"}
    code, said = vae_compare(tmp_path / "bad")
    assert code == 1
    assert "bad: not a run of vae_exp, or a damaged one" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("where", ["metrics.jsonl", "images/samples_0000011.png"])
def test_a_pipe_in_the_place_of_a_runs_file_keeps_nobody_waiting(runs, vae_compare, tmp_path, where):
    shutil.copytree(runs / "z2-s0", tmp_path / "a")
    (tmp_path / "a" / where).unlink(missing_ok=True)
    os.mkfifo(tmp_path / "a" / where)
    assert vae_compare(tmp_path / "a", "--html", tmp_path / "report.html")[0] == 0
    (tmp_path / "a" / where).unlink()
    (tmp_path / "a" / where).write_text('{"epoch": 1, "val/kl": 2.0}\n' + "[" * 200_000)
    assert vae_compare(tmp_path / "a", "--html", tmp_path / "report.html")[0] == 0


@pytest.mark.parametrize("option", ["--csv", "--html"])
def test_on_a_full_disk_the_file_that_was_there_stays(runs, vae_compare, tmp_path, option):
    path = tmp_path / "there"
    assert vae_compare(runs, option, path)[0] == 0
    before = path.read_bytes()
    with full_disk(len(before) // 2):
        code, said = vae_compare(runs, "--filter", "state=finished", option, path)
    assert (code, said.splitlines()[-1:]) == (1, [said]), said
    assert f"{path}: cannot be written (File too large)" in said
    assert [(each.name, each.read_bytes()) for each in tmp_path.iterdir()] == [("there", before)]


def test_a_table_can_go_to_a_pipe(runs, vae_compare):
    reader, writer = os.pipe()
    assert vae_compare(runs, "--csv", f"/dev/fd/{writer}")[0] == 0
    os.close(writer)
    with os.fdopen(reader) as file:
        assert len(list(csv.DictReader(file))) == 5


def rows_of(said):
    """The lines of the table, by the name of their run, and whether each is marked as the best."""
    names = {}
    for line in said.splitlines():
        words = line.removeprefix("best").split()
        if line.startswith(("best", "  ")) and words and words[0] != "run":
            names.setdefault(words[0], line.startswith("best"))
    return names


@pytest.mark.parametrize(
    "arguments", [(), ("--fold-seeds",), ("--columns", "run,test/kl,dataset.name,network.hidden_dims,reason,state")]
)
def test_no_line_is_longer_than_the_terminal_and_every_run_is_named(
    runs, vae_compare, monkeypatch, arguments, tmp_path
):
    for sweep in ("2026-01-01_12-00-00-123456_z_dim-lr-warmup_epochs", "2026-01-01_13-00-00-123456_z_dim-lr"):
        shutil.copytree(runs, tmp_path / sweep)
    monkeypatch.setenv("COLUMNS", "80")
    code, said = vae_compare(tmp_path, *arguments)
    assert code == 0
    assert max(len(line) for line in said.splitlines() if not line.startswith("the best is in ")) <= 80
    names = rows_of(said)
    assert len(names) == (10 if "--fold-seeds" not in arguments else 3)
    assert sum("z2" in name for name in names) == (4 if "--fold-seeds" not in arguments else 1)


def test_names_are_the_folders_below_their_common_parent(runs, vae_compare, tmp_path):
    assert set(rows_of(vae_compare(runs)[1])) == {"z2-s0", "z2-s1", "z8-s0", "z8-s1", "diverged"}
    for sweep in "abc":
        shutil.copytree(runs / "z2-s0", tmp_path / sweep / "z_dim-2")
    code, said = vae_compare(tmp_path, "--columns", "run")
    assert code == 0
    assert set(rows_of(said)) == {"a/z_dim-2", "b/z_dim-2", "c/z_dim-2"}
    (tmp_path / "a" / "z_dim-2").rename(tmp_path / "a" / "two\nlines")
    assert r"a/two\nlines" in vae_compare(tmp_path, "--columns", "run")[1], "a name is one line, whatever is in it"


def test_columns_of_one_value_stand_above_the_table(runs, vae_compare, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "250")
    for name in "ab":
        shutil.copytree(runs / "z2-s0", tmp_path / name)
    above, head, *_ = vae_compare(tmp_path)[1].splitlines()
    kl = json.loads((runs / "z2-s0" / "summary.json").read_text())["test/kl"]
    assert above.startswith("all: ")
    assert f"test/kl {kl:.3f}" in above
    assert head.split() == ["run", "val/neg_elbo"]
    assert not vae_compare(runs / "z2-s0")[1].startswith("all: "), "one run has nothing in common with others"


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """A sweep whose best runs have the same learning rate, over keys that stand in no configuration, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("sweep"))
        for name in ("one", "two"):
            Path("own/experiment").mkdir(parents=True, exist_ok=True)
            Path(f"own/experiment/{name}.yaml").write_text("# @package _global_\nbatch_size: 64\n")
        typed = (
            "-m --config-dir own dataset=digits wandb.mode=disabled device=cpu max_steps=20 epochs=1 hydra.sweep.dir=s"
        )
        swept = "experiment=one,two model.z_dim=2,4 network.hidden_dims=[2],[4] optimizer.lr=1e-4,1e-2"
        zipped = "sweep.zip=[model.z_dim,network.hidden_dims]"
        patch.setattr("sys.argv", ["vae-train", *typed.split(), *swept.split(), zipped])
        train_command.main()
        return Path("s").resolve()


SWEPT = ("experiment", "model.z_dim", "network.hidden_dims", "optimizer.lr")


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--top", "2"),
        ("--top", "1"),
        ("--filter", "optimizer.lr=1e-2"),
        ("--filter", "experiment=one", "--fold-seeds", "--top", "2"),
        ("--columns", "run,test/kl"),
        ("--columns", "optimizer.lr,test/kl", "--fold-seeds", "--top", "2"),
    ],
)
def test_a_swept_key_is_never_hidden(sweep, vae_compare, arguments, tmp_path):
    code, said = vae_compare(sweep, *arguments, "--csv", tmp_path / "t.csv", "--html", tmp_path / "t.html")
    assert code == 0, said
    lines = [line for line in said.splitlines() if line.startswith(("all: ", "not shown: ", "      run", "run"))]
    words = re.split(r"[ ,]+", " ".join(lines))
    assert [key for key in SWEPT if not {key, key.rpartition(".")[2]} & set(words)] == []
    chosen = arguments[arguments.index("--columns") + 1].split(",") if "--columns" in arguments else SWEPT
    with (tmp_path / "t.csv").open() as file:
        head = next(csv.reader(file))
    assert set(chosen) <= set(head)
    held = (tmp_path / "t.html").read_text().split('id="runs">')[1].split("</script>")[0]
    (section,) = json.loads(held)["views"][0]["sections"]
    assert set(SWEPT) <= {column["name"] for column in section["columns"]} | set(section["not_shown"])
    assert set(chosen) & set(SWEPT) <= {column["name"] for column in section["columns"]}


def test_the_table_of_a_sweep_has_all_that_was_swept(sweep):
    with (sweep / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[1:5] == [*SWEPT]
    assert sorted({row["experiment"] for row in rows}) == ["one", "two"]
    assert {(row["model.z_dim"], row["network.hidden_dims"]) for row in rows} == {("2", "[2]"), ("4", "[4]")}


@pytest.mark.parametrize("columns", [40, 60, 100, 400])
def test_a_column_that_was_asked_for_is_shown_whatever_the_width(monkeypatch, columns):
    """Beside the metric, where many keys and results do not fit."""
    monkeypatch.setenv("COLUMNS", str(columns))
    runs = []
    for number in range(3):
        config = {f"a_rather_long_name_of_a_key.{key}": number for key in "abcdefgh"}
        runs.append(finished(f"run{number}", float(number), **{key: [key, number] for key in config}))
        runs[-1].metrics |= {name: float(number) for name in RESULTS}
    shown = format_table(runs, usual_columns(runs), metric="val/neg_elbo", requested=[UDR]).split("not shown")[0]
    assert sum(line.split().count(UDR) for line in shown.splitlines()) == 1
    assert "val/neg_elbo" in shown


def finished(name, number, **config):
    config = {key.replace("__", "."): value for key, value in config.items()}
    config = {"dataset": "torchvision_images", "dataset.source": "mnist", "likelihood": "bernoulli"} | config
    return Run(Path(name), config, "finished", None, {"val/neg_elbo": number})


@pytest.mark.parametrize(
    ("judges", "order"), [([("val/mig", -1)] * 3, "bca"), ([("val/mig", -1), *[("val/kl", 1)] * 2], "acb")]
)
def test_runs_compare_by_what_all_of_them_were_judged_by(judges, order):
    numbers = [(1.0, 0.1), (3.0, 0.3), (2.0, 0.2)]
    runs = [
        Run(Path(name), {}, "finished", None, {"val/mig": mig, "val/neg_elbo": number}, judged_by=judge)
        for name, (number, mig), judge in zip("abc", numbers, judges, strict=True)
    ]
    metric = metric_of(runs)
    assert "".join(run.name for run in sort_runs(runs, metric)) == order
    assert best_per_group(runs) == [run for run in runs if run.name == order[0]]


@pytest.mark.parametrize(
    ("config", "compare"),
    [
        ({"dataset__root": "/elsewhere"}, True),
        ({"seed": 1, "dataset__seed": 1}, True),
        ({"dataset__name": "my_mnist"}, True),
        ({"model__z_dim": 2, "objective": "iwae"}, True),
        ({"dataset__source": "kmnist"}, False),
        ({"dataset": "digits"}, False),
        ({"dataset__binarize": "static"}, False),
        ({"dataset__val_size": 10}, False),
        ({"dataset__labels": [3, 7]}, False),
        ({"likelihood": "gaussian"}, False),
    ],
)
def test_runs_of_the_same_data_and_likelihood_compare(config, compare):
    runs = [finished("a", 1.0), finished("b", 2.0, **config)]
    assert [run.name for run in best_per_group(runs)] == (["a"] if compare else ["a", "b"])


@pytest.mark.parametrize("key", ["dataset__label", "dataset__attribute"])
@pytest.mark.parametrize(("labels", "compare"), [(None, True), ([0], False)])
def test_what_the_labels_are_matters_where_they_choose_the_images(key, labels, compare):
    runs = [finished(value, 1.0, dataset__labels=labels, **{key: value}) for value in ("one", "other")]
    assert len(best_per_group(runs)) == (1 if compare else 2)


@pytest.mark.parametrize(
    ("one", "other", "compare"),
    [
        (0.1, 0.2, False),
        (0.1, "learned", False),
        ("learned", "optimal", True),
        ("learned", "by_pixel", True),
        (0.1, 0.1, True),
    ],
)
def test_settings_of_a_likelihood_make_another_one(one, other, compare):
    runs = [finished(str(i), i, likelihood="gaussian", likelihood__sigma=sigma) for i, sigma in enumerate((one, other))]
    assert len(best_per_group(runs)) == (1 if compare else 2)


@pytest.mark.parametrize("dataset", ["image_folder", "arrays"])
def test_own_images_in_two_places_are_different_data(dataset):
    roots = ("cats", "dogs", "./cats", "~nosuch/cats", "~nosuch/cats")
    assert len(best_per_group([finished(root, 1.0, dataset=dataset, dataset__root=root) for root in roots])) == 3


def test_of_runs_that_do_not_compare_there_is_a_best_of_each(runs, vae_compare, tmp_path):
    shutil.copytree(runs, tmp_path / "runs")
    quick_run("likelihood=gaussian", folder=tmp_path / "gaussian")
    code, said = vae_compare(tmp_path)
    assert code == 0
    marked = [name for name, is_best in rows_of(said).items() if is_best]
    assert len(marked) == 1 and "gaussian" not in marked, "it competes with none"
    assert "runs of different data or likelihood do not compare: a best of each (likelihood" in said
    assert "do not compare" not in vae_compare(runs)[1]
    headings = [line for line in said.splitlines() if line.endswith((" runs)", " run)"))]
    assert headings == ["digits, bernoulli (5 runs)", "runs that compare with no other here (1 run)"]


def test_a_name_that_was_given_is_the_runs_name(runs, vae_compare, tmp_path, monkeypatch):
    for folder, given in (("a", "mine"), ("b", "mine"), ("c", "other")):
        shutil.copytree(runs / "z2-s0", tmp_path / "runs" / folder)
        config = tmp_path / "runs" / folder / "config.yaml"
        config.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | {"wandb": {"name": given}}))
        set_in_summary(config.parent, name=given)
    shutil.copytree(runs / "z8-s0", tmp_path / "runs" / "d")

    def shown(*tests):
        filters = [word for test in tests for word in ("--filter", test)]
        said = vae_compare(tmp_path / "runs", "--columns", "name,seed", *filters)[1]
        rows = [line for line in said.splitlines()[1:] if not line.startswith("the best is in")]
        return {re.split(r"  +", line.removeprefix("best").strip())[0] for line in rows}

    assert shown() == {"mine (a)", "mine (b)", "other", "d"}
    assert shown("name=mine") == {"mine (a)", "mine (b)"}
    assert shown("name=other") == shown("run=other") == {"other"}
    assert shown("name!=mine", "name!=other") == {"d"}
    assert vae_compare(tmp_path / "runs", "--html", tmp_path / "t.html")[0] == 0
    assert '"label":"mine (a)"' in (tmp_path / "t.html").read_text()


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("dataset=digits", "vanilla-digits-z20"),
        ("model=beta model.beta=16 network=conv dataset=digits", "beta-digits-conv-z20-beta16"),
        ("objective=iwae likelihood=gaussian dataset.binarize=none", "vanilla-mnist-gaussian-iwae-z20"),
        ("dataset=image_folder dataset.root=/data/cats", "vanilla-cats-z20"),
        ("dataset=arrays dataset.root=a/my.npz model=conditional dataset.label=hue", "conditional-my-hue-z20"),
        ("dataset.binarize=static model=autoencoder dataset.name=own", "autoencoder-own-static-z20"),
    ],
)
def test_made_names_say_what_is_not_the_usual(typed, name):
    cfg = compose("config", typed.split())
    assert made_name(cfg) == name
    assert str(cfg.hydra.run.dir).endswith(f"_{name}")
    cfg.sweep.over = ["model.beta=16", "network=conv", "epochs=3"]
    made = run_name(cfg)
    assert made.startswith(f"{name}-lr0.001-s0") and made.endswith("-epochs3") and made.count("beta16") == 1


@pytest.mark.parametrize("word", ["--by", "--sort"])
def test_the_top_are_of_runs_that_compare(runs, vae_compare, tmp_path, monkeypatch, word):
    monkeypatch.setenv("COLUMNS", "250")
    shutil.copytree(runs, tmp_path / "all")
    densities = ("likelihood=gaussian", "likelihood.sigma=optimal", "epochs=3", "optimizer.lr=3e-3")
    quick_run(*densities, folder=tmp_path / "all" / "other")  # far below the others, and no better
    numbers = {
        path.parent.name: json.loads(path.read_text()).get("test/neg_elbo")
        for path in (tmp_path / "all").glob("*/summary.json")
    }
    assert numbers["other"] < min(n for name, n in numbers.items() if n is not None and name != "other")
    code, said = vae_compare(tmp_path / "all", "--top", "2", word, "test/neg_elbo", "--csv", tmp_path / "t.csv")
    assert code == 0
    with (tmp_path / "t.csv").open() as file:
        shown = [Path(row["run"]).name for row in csv.DictReader(file)]
    lowest = sorted((n, name) for name, n in numbers.items() if n is not None and name != "other")
    assert shown == [name for _, name in lowest[:2]]
    assert "left out: 1 do not compare with the 4 that have likelihood=bernoulli" in said
    assert "1 have no test/neg_elbo" in said
    assert vae_compare(tmp_path / "all", "--top", "0")[0] == 2


def test_latest_is_the_newest_run_with_results_or_its_sweep(runs, vae_compare, vae_command, tmp_path):
    code, said = vae_compare("latest")
    assert code == 1
    assert "latest: no run in outputs has results" in said
    shutil.copytree(runs / "z8-s0", "outputs/sweeps/a/z8")
    shutil.copytree(runs / "z8-s1", "outputs/sweeps/a/z9")
    for job in ("z8", "z9"):
        config = Path("outputs/sweeps/a") / job / "config.yaml"
        config.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | {"sweep": {"jobs": 2}}))
        os.utime(config.with_name("summary.json"), (2e9, 2e9))
    shutil.copytree(runs / "z2-s0", "outputs/2026-01-01/one")
    os.utime("outputs/2026-01-01/one/summary.json", (1e9, 1e9))
    shutil.copytree(runs / "diverged", "outputs/2026-01-01/failed")
    (tmp_path / "outputs/2026-01-01/failed/summary.json").write_text('{"state": "failed", "reason": "no network"}')
    os.utime("outputs/2026-01-01/failed/summary.json", (3e9, 3e9))
    assert set(rows_of(vae_compare("latest")[1])) == {"z8", "z9"}
    os.utime("outputs/2026-01-01/one/summary.json", (4e9, 4e9))
    code, said = vae_compare("latest")
    assert code == 0
    assert "one" in said
    assert "z8" not in said
    os.utime("outputs/sweeps/a/z9/best.pt", (5e9, 5e9))
    scores = {job: json.loads(Path("outputs/sweeps/a", job, "summary.json").read_text()) for job in ("z8", "z9")}
    best = min(scores, key=lambda job: scores[job]["best/val_neg_elbo"])
    said = vae_command("vae-generate", "checkpoint=latest")[1]
    assert "latest is outputs/sweeps/a/z9, the last job of a sweep" in said
    assert ("and its best" if best == "z9" else f"vae-generate checkpoint=outputs/sweeps/a/{best}") in said


def test_the_versions_are_told(vae_compare):
    code, said = vae_compare("--version")
    assert code == 0
    assert said == f"{versions()}\n"
    assert re.fullmatch(r"vae_exp \S+ \(torch \S+, hydra-core \S+, wandb \S+, Python \S+\)", versions())


@pytest.mark.parametrize("value", ["2026-13-45", "0x_", "!!int x"])
def test_a_value_that_yaml_cannot_build_is_text(runs, vae_compare, value):
    code, said = vae_compare(runs, "--filter", f"seed={value}")
    assert code == 1
    assert f"--filter seed={value}: none of the" in said


def test_runs_are_deleted_after_asking_and_never_one_that_trains_or_a_link(trained, vae_command, monkeypatch):
    for name in ("runs/a", "runs/b", "runs/training", "elsewhere"):
        trained(folder=name)
    Path("runs/link").symlink_to(Path("elsewhere").resolve())
    Path("runs/damaged\nforged").mkdir()
    Path("runs/damaged\nforged/summary.json").write_text("{")
    summary = json.loads(Path("runs/b/summary.json").read_text()) | {"state": "failed"}
    Path("runs/b/summary.json").write_text(json.dumps(summary))

    code, said = vae_command("vae-compare", "runs", "--delete", "--dry-run")
    assert (
        code == 0
        and r"damaged      runs/damaged\nforged" in said
        and "MB  failed" in said
        and "nothing is deleted" in said
    )
    answers = iter(["n", "y"])
    monkeypatch.setattr("builtins.input", lambda _: next(answers))
    assert "nothing is deleted" in vae_command("vae-compare", "runs", "--delete")[1]
    code, said = vae_command("vae-compare", "runs", "--delete", "--filter", "state=failed")
    assert code == 0 and "deleted 1 of 1 runs" in said
    assert not Path("runs/b").exists() and Path("runs/a").exists()

    with lock_folder(Path("runs/training")):
        code, said = vae_command("vae-compare", "runs", "runs/link", "--delete", "--yes")
    assert code == 1 and "is training in this folder" in said
    assert {path.name for path in Path("runs").iterdir()} == {"training", "link"}
    assert Path("elsewhere/best.pt").exists()


def test_the_command_that_syncs_runs_is_printed_whole(capsys):
    runs = [Run(Path(f"runs/{number}"), {}, "finished", None, {}, name="") for number in range(40)]
    for number, run in enumerate(runs):
        Summary("finished", wandb=WandbRun(dir=f"{'x' * 60}/{number}/run")).write(run.folder)
    with pytest.raises(UserError, match="me/mine has none of these runs"):
        compare_command._report_missing("me/mine", 40, runs, is_empty=True)
    _, _, command = capsys.readouterr().err.partition("me/mine does not have 40 of these runs yet: ")
    assert command.split() == ["wandb", "sync", *sorted(f"{'x' * 60}/{number}/*run-*" for number in range(40))]


def test_a_strangers_sweep_may_be_no_dictionary():
    assert [judged_by({"sweep": sweep}) for sweep in (3, None, [])] == [("val/neg_elbo", 1)] * 3


def test_columns_are_known_by_their_last_part_too():
    known = ["model.z_dim", "model.beta", "objective.beta", "optimizer.lr", "test/kl", "val/kl", "run"]
    assert [compare_command._require_known(name, known) for name in ("z_dim", "beta", "lr", "test/kl", "run")] == [
        "model.z_dim", "model.beta", "optimizer.lr", "test/kl", "run",
    ]  # fmt: skip
    named = ["model.name", "dataset", "dataset.name"]  # tables call both by their group
    assert [compare_command._require_known(name, named) for name in ("model", "dataset")] == [named[0], named[2]]
    for name, why in {"kl": "It may be test/kl or val/kl", "z_dum": "Did you mean model.z_dim"}.items():
        with pytest.raises(UserError, match=why):
            compare_command._require_known(name, known)
