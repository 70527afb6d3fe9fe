"""The page of vae-compare --html, in a real browser: what it shows is what the files of the runs hold."""

import base64
import copy
import functools
import hashlib
import json
import math
import re
import shutil
import statistics
import time
from pathlib import Path

import pytest
import yaml

from tests.conftest import quick_run
from vae_exp.commands import compare
from vae_exp.comparing.axes import is_logarithmic, swept
from vae_exp.comparing.report import pictures
from vae_exp.comparing.report.history import thinned
from vae_exp.comparing.report.verdict import verdict
from vae_exp.comparing.runs import Run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
STRANGE = "</script><script>window.ran = 1</script><img src=x onerror='window.ran = 2'>&amp;\"'\u2028"
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


@pytest.fixture
def vae_compare(vae_command):
    return functools.partial(vae_command, "vae-compare")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """One real run of three epochs with pictures of each."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    quick_run("epochs=3", "model.z_dim=2", "figures=[]", "figure_every_epochs=1", folder=folder)
    return folder


@functools.cache
def files_of(run):
    """The configuration, the summary and the metrics of a run."""
    texts = [(run / name).read_text() for name in ("config.yaml", "summary.json", "metrics.jsonl")]
    return yaml.safe_load(texts[0]), json.loads(texts[1]), [json.loads(line) for line in texts[2].splitlines()]


def copied(run, folder, score, state="finished", **keys):
    """A copy of a run as if it had other settings and another result: its numbers go up or down with its score."""
    shutil.copytree(run / "images", folder / "images")
    config, summary, rows = map(copy.deepcopy, files_of(run))
    for key, value in keys.items():
        *groups, name = key.split("__")
        functools.reduce(dict.__getitem__, groups, config)[name] = value
    (folder / "config.yaml").write_text(json.dumps(config))  # which YAML reads as well
    more = score - summary["best/val_neg_elbo"]
    summary |= {"best/val_neg_elbo": float(score), "test/neg_elbo": summary["test/neg_elbo"] + more, "state": state}
    (folder / "summary.json").write_text(json.dumps(summary))
    for row in rows:
        for name in {"val/neg_elbo", "train_epoch/neg_elbo"} & row.keys():
            row[name] += more
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def folder(trained, tmp_path_factory):
    """A sweep of two keys and two seeds, one of three keys on other pixels, and runs that failed or were pruned."""
    folder = tmp_path_factory.mktemp("runs")
    for i, (z_dim, lr, seed) in enumerate((z, lr, seed) for z in (2, 20) for lr in (1e-3, 1e-2) for seed in (0, 1)):
        keys = {"model__z_dim": z_dim, "optimizer__lr": lr, "seed": seed, "log_every_steps": 50 + i}
        copied(trained, folder / "two" / f"z{z_dim}-lr{lr:g}-s{seed}", 25 + 3 * i, **keys)
    lost = copied(trained, folder / "two" / "failed", 99, model__z_dim=7, model__name=STRANGE)
    (lost / "metrics.jsonl").unlink()
    shutil.rmtree(lost / "images")
    (lost / "summary.json").write_text(json.dumps({"state": "failed", "reason": STRANGE}))
    for i, (z_dim, beta, lr) in enumerate((z, beta, lr) for z in (2, 4) for beta in (1.0, 4.0) for lr in (1e-3, 1e-2)):
        keys = {"model__z_dim": z_dim, "model__beta": beta, "optimizer__lr": lr, "dataset__binarize": "threshold"}
        copied(trained, folder / "three" / f"job{i}", 72 - i, "pruned" if i == 3 else "finished", **keys)
    return folder


def written(*paths, options=(), to):
    """The page of these runs, and what it holds as JSON."""
    arguments = [*map(str, paths), *options, "--html", str(to)]
    compare.compare(compare._arguments().parse_args(arguments))
    return to, held(to)


def held(path):
    """What the page's script reads: everything about the runs but the pictures."""
    return json.loads(re.search(r'id="runs">(.*?)</script>', path.read_text(), re.DOTALL)[1])


@pytest.fixture(scope="module")
def built(folder, tmp_path_factory):
    return written(folder, to=tmp_path_factory.mktemp("page") / "report.html")[0]


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    with playwright.sync_playwright() as driver, driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS) as found:
        yield found


@pytest.fixture
def visit(browser):
    """Opens a page; at the end no error was told and nothing was asked of a network."""
    said, asked, opened = [], [], []

    def visit(path, width=1280, **options):
        page = browser.new_page(viewport={"width": width, "height": 900}, **options)
        page.set_default_timeout(5000)
        opened.append(page)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("console", lambda line: said.append(line.text) if line.type in ("error", "warning") else None)
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"file://{path}")
        page.wait_for_selector(".charts svg")
        return page

    yield visit
    for page in opened:
        assert page.evaluate("window.ran") is None, "text of a run was run"
        page.close()
    assert said == []
    assert all(url.startswith(("file://", "data:")) for url in asked)


def rows(page, section=0):
    return page.locator("section").nth(section).locator("table.runs tbody tr:visible")


def names(page, section=0):
    return [text.removesuffix("best") for text in rows(page, section).locator("th.name").all_inner_texts()]


def column(page, name, section=0):
    """The cells of a column, as they are shown."""
    table = page.locator("section").nth(section).locator("table.runs")
    heads = table.locator("thead th").all_inner_texts()
    return rows(page, section).locator(f"td:nth-child({heads.index(name) + 1})").all_inner_texts()


def run_of(page, name):
    """The number by which everything that shows a run knows it."""
    return rows(page).filter(has_text=name).first.get_attribute("data-runs")


@needs_browser
def test_a_table_is_sorted_and_the_page_is_filtered(built, visit):
    page = visit(built)
    numbers = [f"{25 + 3 * i:.3f}" for i in range(8)]
    assert column(page, "val/neg_elbo") == [*numbers, "-"]
    others = column(page, "val/neg_elbo", 1)
    head = page.locator("section").first.locator("thead th", has_text="val/neg_elbo")
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert column(page, "val/neg_elbo") == [*numbers[::-1], "-"], "what has no number stays last"
    assert column(page, "val/neg_elbo", 1) == others, "a table is sorted alone"

    first = page.locator("section").first
    for text, count in (("z_dim=2", 4), ("z_dim=200", 0), ("z_dim=2 lr<5e-3", 2), ("seed!=0 finished", 4), ("failed", 1)):
        page.fill("#filter", text)
        assert rows(page).count() == count, text
        drawn = 0 if text == "failed" else count
        assert first.locator(".sheet figure:visible").count() == drawn
        assert first.locator(".charts figure").first.locator("path.line").count() == drawn
        if drawn:
            assert first.locator("svg[aria-label^=swept] path.line").count() == drawn
    page.fill("#filter", "job3")
    assert (rows(page).count(), rows(page, 1).count()) == (0, 1)


@needs_browser
def test_pointing_at_a_run_marks_it_everywhere(built, visit):
    page = visit(built)
    places = {
        "table": "table.runs tr",
        "curves": ".charts path.line",
        "parallel coordinates": "svg[aria-label^=swept] path.line",
        "heat map": ".heat-map td",
        "pictures": ".sheet figure",
    }

    def marked():
        """By place, which runs are marked there."""
        found = {}
        for place, selector in places.items():
            all_there = page.locator(f"section:first-of-type {selector}.marked")
            found[place] = set(" ".join(all_there.evaluate_all("all => all.map(e => e.dataset.runs)")).split())
        return found

    def only(run):
        at = marked()
        assert run in at.pop("heat map"), "a cell is of several seeds"
        return all(there == {run} for there in at.values())

    name = "z20-lr0.001-s0"
    run = run_of(page, name)
    rows(page).filter(has_text=name).hover()
    assert only(run)
    page.mouse.move(2, 2)
    assert not any(marked().values())
    page.locator(f'.sheet figure[data-runs="{run}"]').hover()
    assert only(run)
    line = page.locator(f'section:first-of-type .charts figure path.line[data-runs="{run}"]').first
    line.scroll_into_view_if_needed()
    at = line.evaluate("p => { const b = p.ownerSVGElement.getBoundingClientRect(), e = p.getPointAtLength(p.getTotalLength()); return [b.x + e.x, b.y + e.y] }")
    page.mouse.move(at[0] - 1, at[1])
    assert only(run)
    assert "at epoch 3" in page.locator("#tip").inner_text()
    page.mouse.move(2, 2)
    rows(page).first.focus()
    page.keyboard.press("ArrowDown")
    assert only(run_of(page, names(page)[1])), "the keyboard marks too"
    faint = f'section:first-of-type .charts path.line:not([data-runs="{run_of(page, names(page)[1])}"])'
    page.wait_for_function("e => getComputedStyle(e).opacity < 0.5", arg=page.locator(faint).first.element_handle())


@needs_browser
def test_a_run_has_a_page_with_a_slider_over_its_epochs(built, folder, visit):
    page = visit(built)
    best = folder / "two" / "z2-lr0.001-s0"
    rows(page).first.focus()
    page.keyboard.press("Enter")
    dialog = page.locator("dialog[open]")
    assert dialog.locator("h2").inner_text().startswith("two/z2-lr0.001-s0")
    slider, picture = dialog.locator("input[type=range]"), dialog.locator("img[alt^='samples']")

    def sha():
        data = picture.evaluate("image => image.src").partition(",")[2]
        return hashlib.sha256(base64.b64decode(data)).hexdigest()

    files = sorted((best / "images").glob("samples_*.png"))
    kl = [line for line in map(json.loads, (best / "metrics.jsonl").read_text().splitlines()) if "val/kl_per_dim" in line]
    assert len(files) == len(kl) == 3
    for number in (2, 0, 1):
        slider.fill(str(number))
        assert dialog.locator("output").inner_text() == f"epoch {number + 1}"
        assert sha() == hashlib.sha256(files[number].read_bytes()).hexdigest()
        bars = dialog.locator(".bar").evaluate_all("all => all.map(bar => bar.title)")
        expected = sorted(kl[number]["val/kl_per_dim"], reverse=True)
        assert [float(bar.split()[-2]) for bar in bars] == pytest.approx(expected, rel=1e-3)
    config = dict(zip(*(dialog.locator(f".config {tag}").all_inner_texts() for tag in ("dt", "dd")), strict=True))
    assert (config["model.z_dim"], config["optimizer.lr"], config["network.hidden_dims"]) == ("2", "0.001", "[400]")
    assert dialog.locator(".charts svg").count() == 4
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0
    assert page.evaluate("document.activeElement.dataset.runs") == run_of(page, "z2-lr0.001-s0"), "back where it was"


@needs_browser
def test_runs_that_do_not_compare_stand_in_sections_of_their_own(built, visit):
    page = visit(built)
    assert page.locator("section h2").all_inner_texts() == ["dataset.binarize=none", "dataset.binarize=threshold"]
    for section, count in ((0, 9), (1, 8)):
        assert rows(page, section).count() == count
        assert rows(page, section).locator(".badge").count() == 1, "each has its best"
    heads = page.locator("section").nth(1).locator("table.runs th:visible").all_inner_texts()
    assert "dataset.binarize" not in heads
    assert "seed" not in heads
    more = page.locator("section").first.get_by_role("button", name="log_every_steps")
    assert "log_every_steps" not in page.locator("section").first.locator("table.runs th:visible").all_inner_texts()
    more.click()
    assert "log_every_steps" in page.locator("section").first.locator("table.runs th:visible").all_inner_texts()

    two, three = (page.locator("section").nth(section).locator(".heat-map") for section in (0, 1))
    assert two.count() == 1
    # The mean over two seeds in each cell: 25 and 28, 31 and 34 for z_dim 2; rows from the highest rate down.
    cells = two.locator("td div").all_inner_texts()
    assert cells == ["32.50", "44.50", "26.50", "38.50"]
    assert three.locator("caption").all_inner_texts() == ["model.z_dim 2", "model.z_dim 4"]
    assert three.first.locator("td div").all_inner_texts() == ["71.00", "69.00", "72.00", "70.00"]
    assert "pruned" in three.first.inner_text()
    failed = rows(page).filter(has_text="failed")
    failed.click()
    assert STRANGE.replace("\u2028", " ") in page.locator("dialog .reason").inner_text().replace("\u2028", " ")
