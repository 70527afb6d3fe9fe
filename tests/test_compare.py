"""vae-compare: its table, its CSV and its page agree with the files of the runs."""

import csv
import functools
import json
import os
import re
import shutil
import statistics
from pathlib import Path

import pytest
import yaml

from tests.conftest import metrics, quick_run
from vae_exp.commands.shared import versions
from vae_exp.comparing.comparable import best, bests
from vae_exp.comparing.plots import is_logarithmic
from vae_exp.comparing.runs import Run, fold_seeds

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


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
        (("RUNS", "--columns", "z_dim"), "z_dim: no run has this column. Did you mean model.z_dim"),
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
}


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


def test_metrics_that_are_damaged_leave_a_gap(runs, vae_compare, tmp_path):
    shutil.copytree(runs / "z2-s0", tmp_path / "run")
    with (tmp_path / "run" / "metrics.jsonl").open("ab") as file:
        file.write(b'[1]\n{"val/neg_elbo": 3}\n{"epoch": 9, "val/neg_elbo": NaN}\n\xff\n{"epo')
    assert vae_compare(tmp_path, "--html", tmp_path / "report.html")[0] == 0
    assert "NaN" not in (tmp_path / "report.html").read_text().rsplit("Plotly.newPlot", 1)[0].rsplit("</script>", 1)[-1]


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
    assert max(map(len, said.splitlines())) <= 80
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


def finished(name, number, **config):
    config = {key.replace("__", "."): value for key, value in config.items()}
    config = {"dataset": "torchvision_images", "dataset.source": "mnist", "likelihood": "bernoulli"} | config
    return Run(Path(name), config, "finished", None, {"val/neg_elbo": number})


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
    assert [run.name for run in bests(runs)] == (["a"] if compare else ["a", "b"])


@pytest.mark.parametrize(
    ("one", "other", "compare"),
    [(0.1, 0.2, False), (0.1, "learned", False), ("learned", "optimal", True), (0.1, 0.1, True)],
)
def test_settings_of_a_likelihood_make_another_one(one, other, compare):
    runs = [finished(str(i), i, likelihood="gaussian", likelihood__sigma=sigma) for i, sigma in enumerate((one, other))]
    assert len(bests(runs)) == (1 if compare else 2)


def test_own_images_in_two_folders_are_different_data():
    runs = [finished(root, 1.0, dataset="image_folder", dataset__root=root) for root in ("cats", "dogs", "./cats")]
    assert len(bests(runs)) == 2


def test_of_runs_that_do_not_compare_there_is_a_best_of_each(runs, vae_compare, tmp_path):
    shutil.copytree(runs, tmp_path / "runs")
    quick_run("likelihood=gaussian", folder=tmp_path / "gaussian")
    code, said = vae_compare(tmp_path)
    assert code == 0
    marked = [name for name, is_best in rows_of(said).items() if is_best]
    assert len(marked) == 2
    assert "gaussian" in marked
    assert "runs of different data or likelihood do not compare: a best of each (likelihood" in said
    assert "do not compare" not in vae_compare(runs)[1]


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


def test_latest_is_the_newest_run_with_results_or_its_sweep(runs, vae_compare, tmp_path):
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


def test_the_versions_are_told(vae_compare):
    code, said = vae_compare("--version")
    assert code == 0
    assert said == f"{versions()}\n"
    assert re.fullmatch(r"vae_exp \S+ \(torch \S+, hydra-core \S+, wandb \S+, Python \S+\)", versions())


def figures_of(path):
    """What the page draws: the traces of each of its figures."""
    drawn = re.findall(r'Plotly\.newPlot\(\s*"[\w-]+",\s*(\[.*?\]),\s*\{"', path.read_text(), re.DOTALL)
    return [json.loads(traces) for traces in drawn]


def test_the_page_folds_its_figures_too_and_marks_a_single_epoch(runs, vae_compare, tmp_path):
    kept = ("--filter", "state=finished", "--html", tmp_path / "report.html")
    assert vae_compare(runs, "--fold-seeds", *kept)[0] == 0
    text = (tmp_path / "report.html").read_text()
    assert text.count("<figure data-run") == 2
    for z_dim in (2, 8):
        scores = {seed: json.loads((runs / f"z{z_dim}-s{seed}/summary.json").read_text()) for seed in (0, 1)}
        best_seed = min(scores, key=lambda seed: scores[seed]["best/val_neg_elbo"])
        assert f", of z{z_dim}-s{best_seed}" in text
    over_epochs, _, parallel = figures_of(tmp_path / "report.html")
    lines = [trace for trace in over_epochs if trace["mode"] != "lines" or "fill" not in trace]
    assert len(lines) == 2
    assert len(over_epochs) == 4, "each line has its band"
    assert len(parallel[0]["dimensions"][0]["values"]) == 2
    quick_run(folder=tmp_path / "one")
    assert vae_compare(tmp_path / "one", "--html", tmp_path / "one.html")[0] == 0
    (curve,), *_ = figures_of(tmp_path / "one.html")
    assert curve["mode"] in ("lines", "markers")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([2, 4, 8, 16], True),
        ([1e-4, 3e-4, 1e-3], True),
        ([2, 10, 20], False),
        ([5, 10, 15], False),
        ([0, 1, 10], False),
    ],
)
def test_axes_are_logarithmic_where_the_values_are(values, expected):
    assert is_logarithmic(values) == expected


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_the_page_works_in_a_browser_without_a_network(runs, vae_compare, tmp_path):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    assert vae_compare(runs, "--html", tmp_path / "report.html")[0] == 0
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    with (
        playwright.sync_playwright() as driver,
        driver.chromium.launch(executable_path=CHROMIUM, args=flags) as browser,
    ):
        page, errors, asked = browser.new_page(), [], []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"file://{tmp_path}/report.html")
        page.wait_for_selector(".parcoords")

        heads = page.locator("table.runs th").all_inner_texts()
        column = heads.index("val/neg_elbo")

        def shown():
            cells = page.locator(f"table.runs tbody tr:visible td:nth-child({column + 1})").all_inner_texts()
            return [float(cell) for cell in cells if cell]

        summaries = [json.loads(path.read_text()) for path in runs.rglob("summary.json")]
        expected = sorted(round(s["best/val_neg_elbo"], 3) for s in summaries if s["state"] == "finished")
        assert shown() == expected
        page.locator("table.runs th").nth(column).click()
        page.locator("table.runs th").nth(column).click()
        assert shown() == expected[::-1]
        page.fill("#filter", "z_dim=80")
        assert shown() == []
        page.fill("#filter", "z_dim=8 seed=1")
        assert len(shown()) == 1
        assert page.locator(".sheet figure:visible").count() == 1
        page.fill("#filter", "")

        pictures = page.locator(".sheet img")
        assert pictures.count() == 8
        loaded = "all => all.every(i => i.complete && i.naturalWidth > 100)"
        assert pictures.evaluate_all(loaded)
        lines = page.locator(".js-plotly-plot").first
        assert lines.locator(".scatterlayer .trace").count() == 4
        lines.locator(".legendtoggle").first.click()
        page.wait_for_timeout(600)
        faded = "all => all.filter(t => getComputedStyle(t).opacity < 1).length"
        assert lines.locator(".legend .traces").evaluate_all(faded) >= 1

        for width in (1280, 400):  # the results are on the screen, and nothing is cut off
            page.set_viewport_size({"width": width, "height": 900})
            page.wait_for_timeout(600)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            boxes = [page.locator("table.runs th").nth(column).bounding_box()]
            boxes += [plot.bounding_box() for plot in page.locator(".curves .main-svg").all()]
            assert all(box["x"] >= 0 and box["x"] + box["width"] <= width for box in boxes)
        assert errors == []
        assert all(url.startswith(("file://", "data:", "blob:")) for url in asked)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_runs_that_do_not_compare_stand_in_sections_of_their_own(runs, vae_compare, tmp_path):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    for seed in (0, 1):
        quick_run("dataset.binarize=threshold", f"seed={seed}", folder=tmp_path / f"binary{seed}")
    assert vae_compare(runs, tmp_path / "binary0", tmp_path / "binary1", "--html", tmp_path / "two.html")[0] == 0
    with (
        playwright.sync_playwright() as driver,
        driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]) as browser,
    ):
        page, errors = browser.new_page(), []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"file://{tmp_path}/two.html")
        page.wait_for_selector(".parcoords")
        sections = page.locator("section")
        titles = sections.locator("h1").all_inner_texts()
        assert titles == ["dataset.binarize=none", "dataset.binarize=threshold"]
        rows = [sections.nth(number).locator("table.runs tbody tr") for number in (0, 1)]
        assert rows[1].count() == 2
        assert all(some.locator("xpath=self::*[@class='best']").count() == 1 for some in rows), "each has its best"
        assert sections.nth(1).locator(".js-plotly-plot").first.locator(".scatterlayer .trace").count() == 2
        assert sections.nth(1).locator(".sheet img").count() == 4
        assert "dataset.binarize" not in sections.nth(1).locator("th").all_inner_texts()
        before = rows[0].all_inner_texts()
        sections.nth(1).locator("th").first.click()
        sections.nth(1).locator("th").first.click()
        assert [text.split()[0].rpartition("/")[2] for text in rows[1].all_inner_texts()] == ["binary1", "binary0"]
        assert rows[0].all_inner_texts() == before, "a table is sorted alone"
        page.fill("#filter", "binary1")
        assert page.locator("table.runs tbody tr:visible").count() == 1
        assert errors == []


@pytest.mark.parametrize(("count", "has_legend"), [(3, True), (13, False)])
def test_a_legend_is_never_larger_than_the_curves(runs, vae_compare, tmp_path, count, has_legend):
    for number in range(count):
        shutil.copytree(runs / "z2-s0", tmp_path / f"run{number}")
    assert vae_compare(tmp_path, "--html", tmp_path / "report.html")[0] == 0
    page = (tmp_path / "report.html").read_text()
    assert page.count(f'"showlegend":{str(has_legend).lower()}') == 2
    for number in range(count):
        assert f"run{number}\\u003cextra" in page.replace("<extra", "\\u003cextra"), "told where the mouse points"


@pytest.mark.parametrize("value", ["2026-13-45", "0x_", "!!int x"])
def test_a_value_that_yaml_cannot_build_is_text(runs, vae_compare, value):
    code, said = vae_compare(runs, "--filter", f"seed={value}")
    assert code == 1
    assert f"--filter seed={value}: none of the" in said
