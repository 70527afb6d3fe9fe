"""vae-compare: its table, its CSV and its page agree with the files of the runs."""

import csv
import functools
import json
import re
import shutil
import statistics
from pathlib import Path

import pytest
import yaml

from tests.conftest import metrics, quick_run
from vae_exp.comparing.plots import is_logarithmic
from vae_exp.comparing.runs import Run, best, fold_seeds

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


def test_the_table_has_the_keys_that_differ_and_the_best_first(runs, vae_compare):
    code, said = vae_compare(runs)
    assert code == 0
    head, *rows = said.splitlines()
    columns = re.split(r"  +", head.strip())
    assert set(columns[:3]) == {"model.z_dim", "optimizer.lr", "seed"}
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
    assert lines[0].split() == ["seed", "model.z_dim", "test/kl"]
    assert lines[1].split()[:2] == ["1", "8"]
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


def test_a_damaged_run_is_named(runs, vae_compare, tmp_path):
    shutil.copytree(runs / "z2-s0", tmp_path / "bad")
    (tmp_path / "bad" / "summary.json").write_text('{"state": ')
    code, said = vae_compare(tmp_path)
    assert code == 1
    assert "bad: not a run of vae_exp, or a damaged one" in said


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

        heads = page.locator("#runs th").all_inner_texts()
        column = heads.index("val/neg_elbo")

        def shown():
            cells = page.locator(f"#runs tbody tr:visible td:nth-child({column + 1})").all_inner_texts()
            return [float(cell) for cell in cells if cell]

        summaries = [json.loads(path.read_text()) for path in runs.rglob("summary.json")]
        expected = sorted(round(s["best/val_neg_elbo"], 3) for s in summaries if s["state"] == "finished")
        assert shown() == expected
        page.locator("#runs th").nth(column).click()
        page.locator("#runs th").nth(column).click()
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
        assert lines.locator(".scatterlayer .trace").count() >= 8
        lines.locator(".legendtoggle").first.click()
        page.wait_for_timeout(600)
        faded = "all => all.filter(t => getComputedStyle(t).opacity < 1).length"
        assert lines.locator(".legend .traces").evaluate_all(faded) >= 1
        assert errors == []
        assert all(url.startswith(("file://", "data:", "blob:")) for url in asked)
