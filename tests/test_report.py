"""The page of vae-compare --html, in a real browser: what it shows is what the files of the runs hold."""

import base64
import copy
import functools
import hashlib
import json
import random
import re
import shlex
import shutil
import statistics
import time
from pathlib import Path

import pytest
import yaml

from tests.conftest import STRANGE, needs_browser, quick_run
from vae_exp.cli import compare
from vae_exp.compare.report import T_975, gather_pictures, thinned, verdict
from vae_exp.compare.runs import Run
from vae_exp.compare.table import is_logarithmic, swept


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
        keys = {"model__z_dim": z_dim, "optimizer__lr": lr, "seed": seed, "log_every_steps": 50 + z_dim}
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


def held(path, view=0):
    """What the page's script reads: everything about the runs but the pictures, each by itself or folded."""
    text = json.loads(re.search(r'id="runs">(.*?)</script>', path.read_text(), re.DOTALL)[1])
    return text["views"][view]


@pytest.fixture(scope="module")
def built(folder, tmp_path_factory):
    return written(folder, to=tmp_path_factory.mktemp("page") / "report.html")[0]


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


@pytest.mark.slow
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
    for text, count in (
        ("z_dim=2", 4),
        ("z_dim=200", 0),
        ("z_dim=2 lr<5e-3", 2),
        ("seed!=0 finished", 4),
        ("failed", 1),
    ):
        page.fill("#filter", text)
        assert rows(page).count() == count, text
        drawn = 0 if text == "failed" else count
        assert first.locator(".sheet figure:visible").count() == drawn
        assert first.locator(".charts figure").first.locator("path.line").count() == drawn
        if drawn:
            assert first.locator("svg[aria-label^=swept] path.line").count() == drawn
    page.fill("#filter", "z_dum=2")
    assert page.locator("#found").inner_text() == "no such column: z_dum=2"
    for text in ("job3", "name=job3"):
        page.fill("#filter", text)
        assert (rows(page).count(), rows(page, 1).count()) == (0, 1)


@pytest.mark.slow
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
    at = line.evaluate(
        "p => { const b = p.ownerSVGElement.getBoundingClientRect(), e = p.getPointAtLength(p.getTotalLength());"
        "return [b.x + e.x, b.y + e.y] }"
    )
    page.mouse.move(at[0] - 1, at[1])
    assert only(run)
    assert "at epoch 3" in page.locator("#tip").inner_text()
    page.mouse.move(2, 2)
    rows(page).first.focus()
    page.keyboard.press("ArrowDown")
    assert only(run_of(page, names(page)[1])), "the keyboard marks too"
    faint = f'section:first-of-type .charts path.line:not([data-runs="{run_of(page, names(page)[1])}"])'
    page.wait_for_function("e => getComputedStyle(e).opacity < 0.5", arg=page.locator(faint).first.element_handle())


@pytest.mark.slow
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
    kl = [
        line for line in map(json.loads, (best / "metrics.jsonl").read_text().splitlines()) if "val/kl_per_dim" in line
    ]
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
    page.reload()
    assert dialog.locator("h2").inner_text().startswith("two/z2-lr0.001-s0"), "its page can be bookmarked"
    page.keyboard.press("Escape")
    dialog.wait_for(state="detached")
    # Back where it was; the browser tells the page of the closed dialog in its own time.
    run = run_of(page, "z2-lr0.001-s0")
    page.wait_for_function("run => document.activeElement.dataset.runs === run", arg=run)


@pytest.mark.slow
@needs_browser
def test_runs_that_do_not_compare_stand_in_sections_of_their_own(built, visit):
    page = visit(built)
    assert page.locator("section h2").all_inner_texts() == [
        "digits, bernoulli",
        "digits, bernoulli, binarize=threshold",
    ]
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
    cells = ["32.50", "44.50", "26.50", "38.50"]
    assert two.locator("td div").all_inner_texts() == cells
    colors = two.locator("td[data-runs]").evaluate_all("all => all.map(cell => cell.style.background)")
    assert len(set(colors)) == 4
    assert three.locator("caption").all_inner_texts() == ["model.z_dim 2", "model.z_dim 4"]
    assert three.first.locator("td div").all_inner_texts() == ["71.00", "69.00", "72.00", "70.00"]
    assert "pruned" in three.first.inner_text()
    failed = rows(page).filter(has_text="failed")
    failed.click()
    assert STRANGE.replace("\u2028", " ") in page.locator("dialog .reason").inner_text().replace("\u2028", " ")


@pytest.mark.slow
@needs_browser
def test_dragging_along_an_axis_keeps_the_runs_that_pass_there(built, visit):
    page = visit(built)
    axis = page.locator("section").first.locator("svg[aria-label^=swept] .handle").first
    axis.scroll_into_view_if_needed()
    box = axis.bounding_box()
    x, low, high = box["x"] + box["width"] / 2, box["y"] + box["height"] - 8, box["y"] + box["height"] * 0.7
    page.mouse.move(x, low)
    page.mouse.down()
    page.mouse.move(x, high)
    page.mouse.up()
    assert column(page, "model.z_dim") == ["2"] * 4
    assert rows(page, 1).count() == 8, "another section has axes of its own"
    page.mouse.click(x, low)
    assert rows(page).count() == 9


@pytest.mark.slow
@needs_browser
def test_the_page_is_light_or_dark_and_fits_a_phone(built, visit):
    page = visit(built, color_scheme="dark")
    back = "getComputedStyle(document.body).backgroundColor"
    color = "getComputedStyle(document.querySelector('.charts path.line')).stroke"
    dark = page.evaluate(back), page.evaluate(color)
    page.locator(".theme").click()
    light = page.evaluate(back), page.evaluate(color)
    assert dark != light
    assert (light[0], dark[0] != light[0], dark[1] != light[1]) == ("rgb(255, 255, 255)", True, True)
    box = page.locator("section").nth(1).locator(".scroll").first
    assert box.evaluate("box => box.scrollWidth <= box.clientWidth"), "three keys and the results fit"

    phone = visit(built, width=390)
    sideways = "document.documentElement.scrollWidth"
    assert phone.evaluate(sideways) <= 390
    score = phone.locator("table.runs th", has_text="val/neg_elbo").first.bounding_box()
    assert score["x"] + score["width"] <= 390, "the result is on the screen"
    for chart in phone.locator(".charts svg").all():
        at = chart.bounding_box()
        assert at["x"] >= 0 and at["x"] + at["width"] <= 390
    rows(phone).first.click()
    assert phone.locator("dialog").evaluate("dialog => dialog.scrollWidth <= dialog.clientWidth")


@pytest.mark.slow
@needs_browser
def test_pictures_come_when_they_come_near_the_screen(built, visit):
    page = visit(built)
    pictures = page.locator(".sheet img")
    assert pictures.count() == 2 * 16
    pictures.last.scroll_into_view_if_needed()
    page.wait_for_function("image => image.complete && image.naturalWidth > 100", arg=pictures.last.element_handle())
    expected = "all => all.filter(i => i.complete && i.src).map(i => [i.naturalWidth, +i.getAttribute('width')])"
    assert all(there == told for there, told in pictures.evaluate_all(expected))


@pytest.mark.slow
@needs_browser
def test_seeds_are_folded_and_unfolded_in_the_page(built, visit):
    page = visit(built)
    first = page.locator("section").first
    fold = page.get_by_role("button", name="fold seeds")
    assert (rows(page).count(), first.locator(".band").count()) == (9, 0)
    cells = first.locator(".heat-map td div").all_inner_texts()
    page.fill("#filter", "z_dim=2")
    fold.click()
    assert fold.get_attribute("aria-pressed") == "true"
    assert column(page, "val/neg_elbo") == ["26.500 ± 2.121", "32.500 ± 2.121"], "what was filtered stays so"
    page.fill("#filter", "")
    assert first.locator(".charts figure").first.locator(".band").count() == 4
    assert first.locator(".heat-map td div").all_inner_texts() == cells
    rows(page).first.hover()
    assert page.locator("table.runs tr.marked").count() == page.locator(".sheet figure.marked").count() == 1
    fold.click()
    assert rows(page).count() == 9


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize(("text", "colors"), [("model.z_dim=2", 2), ("seed=0", 4)])
def test_seeds_share_the_color_of_their_setting(folder, visit, tmp_path, text, colors):
    options = ["--filter", text, "--filter", "state=finished"]
    page = visit(written(folder / "two", options=options, to=tmp_path / "report.html")[0])
    lines = page.locator(".charts figure").first.locator("path.line")
    looks = lines.evaluate_all("all => all.map(l => [getComputedStyle(l).stroke, l.getAttribute('stroke-dasharray')])")
    assert len(looks) == 4
    assert len({color for color, _ in looks}) == colors
    assert len({tuple(look) for look in looks}) == 4, "dashes tell seeds apart"


@pytest.mark.slow
@needs_browser
def test_one_swept_key_has_a_point_for_each_setting(folder, visit, tmp_path):
    options = ["--fold-seeds", "--filter", "model.z_dim=2", "--filter", "state=finished"]
    page = visit(written(folder / "two", options=options, to=tmp_path / "report.html")[0])
    assert page.locator(".over-key .point title").all_text_contents() == [
        "lr=0.001: 26.500 ± 2.121",
        "lr=0.01: 32.500 ± 2.121",
    ]
    assert page.locator(".charts figure").first.locator(".band").count() == 2
    page.locator(".over-key .point").last.hover()
    assert page.locator("table.runs tr.marked td.number").first.inner_text() == "32.500 ± 2.121"


@pytest.mark.slow
@needs_browser
def test_runs_that_all_failed_still_have_their_reasons(folder, visit, tmp_path):
    page = visit(written(folder / "two" / "failed", to=tmp_path / "report.html")[0], until="table.runs")
    assert page.locator(".verdict").inner_text() == "No run that finished has a test/neg_elbo."
    rows(page).first.focus()
    page.keyboard.press("Enter")
    assert "window.ran = 1" in page.locator("dialog .reason").inner_text()


ODD = {
    "one epoch": ("epochs=1",),
    "no epoch": ("epochs=0",),
    "no prior": ("epochs=2", "model=autoencoder"),
    "no validation images": ("epochs=2", "dataset.val_size=0"),
    "classes": ("epochs=2", "model=conditional", "model.z_dim=2"),
}


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize("kind", ODD)
def test_a_page_of_one_odd_run(visit, tmp_path, kind):
    quick_run(*ODD[kind], folder=tmp_path / "run")
    page = visit(written(tmp_path / "run", to=tmp_path / "report.html")[0])
    assert rows(page).count() == 1
    assert page.locator(".badge").count() == 0, "nothing to be better than"
    rows(page).first.click()
    titles = " ".join(page.locator("dialog figcaption").all_inner_texts())
    assert ("kl: " in titles) == ("samples" in titles) == (kind != "no prior")
    assert page.locator("dialog .latents").count() == (kind != "no prior")


@pytest.mark.slow
@needs_browser
def test_two_hundred_runs_are_there_in_two_seconds_and_below_20_mb(trained, visit, tmp_path):
    """Each with pictures of its own, as large as those of MNIST, at more epochs than there is room for."""
    noise = random.Random(0)
    for i in range(200):
        keys = {"model__z_dim": 2 + i % 10, "optimizer__lr": 1e-4 * 2 ** (i // 10 % 5), "seed": i // 50}
        run = copied(trained, tmp_path / "runs" / f"job{i:03d}", 25 + noise.random(), **keys)
        rows_of_run = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        more = [
            row | {"epoch": row["epoch"] + 3 * k, "step": row["step"] + 33 * k}
            for k in range(10)
            for row in rows_of_run
        ]
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in more))
        for picture in (run / "images").iterdir():  # what follows the end of a PNG is not drawn
            picture.write_bytes(picture.read_bytes() + noise.randbytes(15_000))
    path, inside = written(tmp_path / "runs", to=tmp_path / "report.html")
    megabytes = path.stat().st_size / 1e6
    page = visit(path)
    measured = page.context.new_cdp_session(page)
    measured.send("Performance.enable", {"timeDomain": "threadTicks"})  # what other programs take does not count
    began = time.monotonic()
    page.reload()
    page.wait_for_function("document.querySelectorAll('.charts path.line').length >= 800")
    seconds = time.monotonic() - began
    took = {each["name"]: each["value"] for each in measured.send("Performance.getMetrics")["metrics"]}
    print(
        f"200 runs: {megabytes:.1f} MB, {took['TaskDuration']:.2f} s of the main thread, {seconds:.2f} s on the clock"
    )
    assert megabytes < 20
    assert 0.05 < took["TaskDuration"] < 2
    assert rows(page).count() == 200
    assert page.locator(".sheet figure").count() == 200, "each has a picture"
    left = sum(run["left_out"] for run in inside["runs"])
    assert left > 0
    assert f"{left} more pictures would make this page too large" in page.locator("section").inner_text()


def test_folded_seeds_are_one_line_with_a_band(folder, tmp_path):
    options = ["--fold-seeds", "--filter", "state=finished"]
    _, inside = written(folder / "two", options=options, to=tmp_path / "a.html")
    assert [run["seeds"] for run in inside["runs"]] == [2, 2, 2, 2]
    assert inside == held(written(folder / "two", options=options[1:], to=tmp_path / "b.html")[0], view=1)
    assert len(held(tmp_path / "a.html", view=1)["runs"]) == 8
    for run, scores in zip(inside["runs"], ([25, 28], [31, 34], [37, 40], [43, 46]), strict=True):
        curve = run["curves"]["val/neg_elbo"]
        assert curve["epochs"] == [1, 2, 3]
        assert curve["values"][-1] == pytest.approx(statistics.mean(scores), rel=0.2)
        assert curve["spread"] == pytest.approx([statistics.stdev(scores)] * 3, rel=1e-3)
        assert run["shown"].endswith("-s0"), "of the seeds the best"
        assert [member["score"] for member in run["members"]] == [f"{score:.3f}" for score in scores]


def test_what_the_page_holds_is_what_the_files_hold(built, folder):
    inside = held(built)
    first, second = inside["sections"]
    assert [axis["key"] for axis in second["axes"]] == ["model.z_dim", "model.beta", "optimizer.lr"]
    assert [column["name"] for column in first["columns"] if column["is_folded"]] == ["log_every_steps"]
    runs = {run["name"]: run for run in inside["runs"]}
    run, place = runs["two/z20-lr0.01-s1"], folder / "two" / "z20-lr0.01-s1"
    logged = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    expected = [line["val/kl"] for line in logged if "val/kl" in line]
    assert run["curves"]["val/kl"]["values"] == pytest.approx(expected, rel=1e-5)
    assert run["label"] == "z_dim=20 lr=0.01 seed=1"
    assert {name: len(shown) for name, shown in run["pictures"].items()} == {
        "test_reconstructions": 1,
        "samples": 3,
        "reconstructions": 3,
    }
    assert runs["two/failed"]["reason"] == STRANGE
    text = built.read_text()
    assert text.count("<script") == text.count("</script>") == 3, "no text of a run ends an element"
    stored = json.loads(re.search(r'id="pictures">(.*?)</script>', text, re.DOTALL)[1])
    assert len(stored) == len(set(stored)) == 7, "the copies of a picture are held once"


def test_folding_where_no_run_has_a_second_seed_changes_nothing(folder, tmp_path):
    paths = [folder / "two" / name for name in ("z2-lr0.001-s0", "z20-lr0.001-s1")]
    path, inside = written(*paths, options=["--fold-seeds"], to=tmp_path / "report.html")
    assert path.read_text().count('"is_folded":false,"sections"') == 1, "there is one view"
    assert [run["label"] for run in inside["runs"]] == ["z_dim=2", "z_dim=20"]
    assert all(run["pictures"]["samples"] for run in inside["runs"])


def test_columns_that_were_chosen_all_stay(folder, tmp_path):
    chosen = "log_every_steps,test/kl,network.hidden_dims"
    _, inside = written(folder, options=["--columns", f"run,{chosen}"], to=tmp_path / "report.html")
    for section in inside["sections"]:
        assert [column["name"] for column in section["columns"]] == chosen.split(",")
        assert not any(column["is_folded"] for column in section["columns"])
    assert inside["runs"][0]["cells"][2] == "[400]"


def test_commands_are_those_of_what_there_is(trained, tmp_path, vae_compare, vae_command):
    shutil.copytree(trained, tmp_path / "a run")
    shutil.copytree(trained, tmp_path / "bare", ignore=shutil.ignore_patterns("*.pt"))
    assert vae_compare(tmp_path, "--html", tmp_path / "report.html")[0] == 0
    runs = {run["name"]: run["commands"] for run in held(tmp_path / "report.html")["runs"]}
    assert runs["bare"] == {}
    program, *arguments = shlex.split(runs["a run"]["generate"])
    code, said = vae_command(program, *arguments, "n=4", "device=cpu")
    assert code == 0, said
    assert shlex.split(runs["a run"]["resume"]) == ["vae-train", f"resume={tmp_path}/a run", "epochs=6"]
    assert shlex.split(runs["a run"]["evaluate"]) == ["vae-evaluate", f"checkpoint={tmp_path}/a run"]


def test_metrics_that_are_damaged_leave_a_gap(trained, tmp_path):
    run = copied(trained, tmp_path / "run", 25)
    before = written(run, to=tmp_path / "before.html")[1]["runs"][0]
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b'[1]\n{"val/neg_elbo": 3}\n{"epoch": 9, "val/neg_elbo": NaN}\n\xff\n{"epo')
    after = written(run, to=tmp_path / "after.html")[1]["runs"][0]
    assert len(before["curves"]["val/neg_elbo"]["values"]) == 3
    assert after["curves"] == before["curves"]


def made(number, seed=0, state="finished", **keys):
    config = {"model.z_dim": 2, "dataset": "digits", "seed": seed} | {k.replace("__", "."): v for k, v in keys.items()}
    return Run(Path(f"{keys}{seed}"), config, state, None, {} if number is None else {"val/neg_elbo": number})


def seeds(z_dim, *numbers):
    return [made(number, seed, model__z_dim=z_dim) for seed, number in enumerate(numbers)]


@pytest.mark.parametrize(
    ("runs", "says"),
    [
        ([made(None, state="failed")], "No run that finished has a val/neg_elbo."),
        ([made(20.0)], ": val/neg_elbo 20.000, the only run."),
        (
            seeds(2, 20.0) + seeds(3, 21.5),
            "Best z_dim=2: val/neg_elbo 20.000, ahead of the next (z_dim=3) by 1.50. One seed each: how much",
        ),
        (seeds(2, 20.0, 20.2) + seeds(3, 21.5), "One of the two has a single seed: how much"),
        (seeds(2, 20.0) + seeds(3, 20.0), "level with z_dim=3"),
        # A pooled deviation of 0.1414, so Student's t asks for 4.303 * 0.1414 = 0.61.
        (
            seeds(2, 20.0, 20.2) + seeds(3, 20.6, 20.8),
            "is 0.14 (2 seeds each): not settled, which would take a lead of 0.61",
        ),
        (seeds(2, 20.0, 20.2) + seeds(3, 21.0, 21.2), "is 0.14 (2 seeds each): the lead is more than chance"),
        (
            [*seeds(2, 20.0, 20.2), *seeds(3, 10.0), made(None, 1, "failed", model__z_dim=3)],
            "z_dim=3 is better by 10.10, but 1 of 2 finished.",
        ),
    ],
)
def test_the_verdict_claims_no_more_than_the_seeds_show(runs, says):
    assert says in verdict(runs, "val/neg_elbo")


@pytest.mark.slow
def test_students_t_is_that_of_the_tables():
    from scipy import stats

    assert pytest.approx([stats.t.ppf(0.975, freedom) for freedom in range(1, 11)], rel=2e-3) == T_975


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


def test_keys_that_change_together_are_one_axis():
    mlp, conv = {"network": "mlp", "network__hidden_dims": [400]}, {"network": "conv", "network__channels": [32, 64]}
    runs = [
        made(1.0, seed, model__z_dim=z, device=f"cuda:{z}", **net)
        for z in (2, 3)
        for net in (mlp, conv)
        for seed in (0, 1)
    ]
    assert swept(runs) == ["model.z_dim", "network"]


def test_where_there_is_no_room_every_run_gets_its_last_picture_first(tmp_path):
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        (folder / "images").mkdir(parents=True)
        for step in range(9):
            (folder / "images" / f"samples_{step:07d}.png").write_bytes(
                b"\x89PNG\r\n\x1a\n" + f"{folder.name}{step}".encode() * 26
            )
    epochs = {str(folder): {step: step + 1 for step in range(9)} for folder in folders}
    steps = []
    for most in (80, 160, 240, 320, 480, 10_000):
        stored, _, shown = gather_pictures(epochs, most)
        assert sum(map(len, stored)) <= most
        steps.append([[epoch for epoch, _ in each["pictures"].get("samples", [])] for each in shown.values()])
        assert all(len(of_run) + each["left_out"] == 9 for of_run, each in zip(steps[-1], shown.values(), strict=True))
    assert steps[:-1] == [[[9], []], [[9], [9]], [[1, 9], [9]], [[1, 9], [1, 9]], [[1, 5, 9], [1, 5, 9]]]
    assert steps[-1] == [list(range(1, 10))] * 2
    assert base64.b64decode(stored[shown[str(folders[1])]["pictures"]["samples"][4][1]]).endswith(b"b4" * 26)


def test_the_points_of_a_long_curve_are_thinned_evenly():
    assert thinned(list(range(1001)), 11) == [*range(0, 1001, 100)]
    assert thinned([1, 2, 3], 3) == [1, 2, 3]


@pytest.mark.slow
@needs_browser
def test_heat_maps_show_any_result_and_a_beta_has_rate_and_distortion(trained, tmp_path, vae_compare, visit):
    for i, (z, beta) in enumerate((z, beta) for z in (2, 4) for beta in (0.5, 1, 2)):
        copied(trained, tmp_path / "runs" / f"z{z}-b{beta}", 30 + i, model__z_dim=z, objective__beta=beta)
    assert vae_compare("runs", "--html", "page.html")[0] == 0
    page = visit(tmp_path / "page.html")
    assert page.title().startswith("6 VAE runs: vanilla on digits, 3 epochs, 20")
    summaries = [json.loads(path.read_text()) for path in sorted((tmp_path / "runs").glob("*/summary.json"))]
    choose = page.locator("label.choice", has_text="Result").locator("select")
    for name in ("test/kl", "test/reconstruction", "objective"):
        choose.select_option(label=name)
        betas = [2, 1, 0.5]  # a row each, from the highest down; a column for each z_dim
        wanted = [
            next(
                s
                for s, p in zip(summaries, sorted((tmp_path / "runs").iterdir()), strict=True)
                if p.name == f"z{z}-b{b:g}"
            )
            for b in betas
            for z in (2, 4)
        ]
        kl, reconstruction = ([s[f"test/{part}"] for s in wanted] for part in ("kl", "reconstruction"))
        objective = [r + beta * k for r, k, beta in zip(reconstruction, kl, [2, 2, 1, 1, 0.5, 0.5], strict=True)]
        numbers = {"test/kl": kl, "test/reconstruction": reconstruction, "objective": objective}[name]
        shown = page.locator(".heat-map td div").all_inner_texts()
        assert shown == [f"{n:.{3 if abs(n) < 10 else 2}f}" for n in numbers]
    assert page.locator(".rate-distortion polyline").count() == 2, "a curve for each z_dim"
    assert page.locator(".rate-distortion .point").count() == 6


@needs_browser
@pytest.mark.slow
def test_where_the_highest_is_the_best_it_is_marked_and_dark(trained, tmp_path, visit):
    for i, (z_dim, lr) in enumerate((z_dim, lr) for z_dim in (2, 4) for lr in (1e-3, 1e-2)):
        keys = {"model__z_dim": z_dim, "optimizer__lr": lr, "monitor_mode": "max"}
        copied(trained, tmp_path / "runs" / f"{z_dim}-{lr:g}", 25 + i, **keys)
    path, data = written(tmp_path / "runs", to=tmp_path / "report.html")
    assert [data["runs"][number]["score"] for number in data["sections"][0]["ranked"]] == [28, 27, 26, 25]
    page = visit(path)
    assert names(page)[0] == "4-0.01"
    assert "higher val/neg_elbo" in page.locator("header + p").inner_text()
    brightness = {}
    for cell in page.locator(".heat-map td:not(.empty)").all():
        color = cell.evaluate("cell => getComputedStyle(cell).backgroundColor")
        brightness[cell.inner_text()] = sum(map(int, re.findall(r"\d+", color)[:3]))
    darkest = min((text for text in brightness if text), key=brightness.__getitem__)
    assert "28" in darkest and "best" in darkest
