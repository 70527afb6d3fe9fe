"""what=codes and what=anomalies of vae-generate: every row is of the image that it names."""

import contextlib
import csv
import importlib.util
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vae_exp
from tests.conftest import code_blocks, quick_run, readme_section, recorded
from vae_exp.datasets.image_folder import read_images

SMALL = ("network.hidden_dims=[8]", "model.z_dim=3")
CLASSES = ["=1+1", 'a,"b']  # a formula and marks of CSV are text like any other


def generate(vae_command, *arguments):
    code, said = vae_command("vae-generate", *arguments)
    assert code == 0, said
    return Path(said.split("written to ")[1].strip())


def read(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def numbers(rows, start):
    """The columns of rows of a CSV whose names begin so, [N, columns]."""
    return np.array([[float(row[name]) for name in row if name.startswith(start)] for row in rows])


def folder_of_images(root, n=40):
    """train/ and test/ with two classes, one damaged file among them, and a table of factors beside them."""
    rng, table = np.random.default_rng(0), ["file,size,tone"]
    for part, count in (("train", n), ("test", n // 2)):
        for i in range(count):
            file = Path(part, CLASSES[i % 2], f"{i:02} \u00e9.png")
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(root / file)
            table.append(f'"{file.as_posix().replace(chr(34), chr(34) * 2)}",{i % 3},{i % 5}')
    (root / "train" / CLASSES[0] / "04 \u00e9.png").write_bytes(b"no image")
    (root / "factors.csv").write_text("\n".join(table), encoding="utf-8")


@pytest.mark.slow
def test_every_row_is_of_the_file_that_it_names(vae_command):
    folder_of_images(Path("data"))
    own = ("dataset=image_folder", "dataset.root=data", "dataset.image_size=8", "dataset.channels=1")
    _, folder = quick_run(*own, "dataset.factors=factors.csv", "dataset.val_size=9", "model=conditional", *SMALL)
    typed, model = (f"checkpoint={folder}", "what=codes", "split=all"), vae_exp.load(folder)
    rows = read(generate(vae_command, *typed, "format=csv"))
    assert [row["split"] for row in rows] == ["train"] * 30 + ["val"] * 9 + ["test"] * 20
    for split in ("train", "val", "test"):
        index = [int(row["index"]) for row in rows if row["split"] == split]
        assert index == sorted(index)
    assert len({(row["split"] == "test", row["index"]) for row in rows}) == len(rows) == len({r["file"] for r in rows})
    for row in rows:
        part, name, file = row["file"].split("/")
        assert (name, CLASSES[int(row["label"])]) == (row["class_name"], name)
        assert (part == "test") == (row["split"] == "test")
        number = int(file[:2])
        assert (row["factor_size"], row["factor_tone"]) == (str(number % 3), str(number % 5))
        q = model.encode(read_images(Path("data", row["file"]), (1, 8, 8))[0], int(row["label"]))
        np.testing.assert_allclose(numbers([row], "mean_"), q.mean, atol=1e-5)
        np.testing.assert_allclose(numbers([row], "log_var_"), q.log_var, atol=1e-5)

    path = generate(vae_command, *typed)
    assert path == folder / "generated" / "codes_split-all.npz"
    arrays = np.load(path, allow_pickle=False)
    np.testing.assert_array_equal(arrays["file"], [row["file"] for row in rows])
    np.testing.assert_array_equal(arrays["mean"], numbers(rows, "mean_").astype(np.float32))
    assert arrays["class_names"][arrays["label"]].tolist() == [row["class_name"] for row in rows]
    assert (arrays["factor_names"].tolist(), arrays["factors"].shape) == (["size", "tone"], (59, 2))
    codes = model.codes("all")
    assert codes.keys() == set(arrays)
    assert all((codes[name] == arrays[name]).all() for name in codes)
    with pytest.raises(vae_exp.UserError, match="split=tests: it takes one of"):
        model.codes("tests")


@pytest.mark.parametrize("memory", ["2GB", "1KB"])
def test_the_index_finds_the_image_in_ones_own_arrays(memory):
    """In memory or streamed; chosen by label, by training size and at random."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (700, 8, 8), dtype=np.uint8), rng.integers(0, 4, 700)
    np.savez("own.npz", images=images, labels=labels)
    data = ("dataset=arrays", "dataset.root=own.npz", "dataset.val_size=20", "dataset.train_size=400")
    _, folder = quick_run(*data, "dataset.labels=[1,2,3]", f"dataset.device_memory={memory}", *SMALL, "epochs=0")
    model, seen = vae_exp.load(folder), []
    for split in ("train", "val", "test"):
        codes = model.codes(split)
        index = codes["index"]
        np.testing.assert_array_equal(labels[index], codes["label"] + 1)
        np.testing.assert_allclose(codes["mean"], model.encode(images[index, None]).mean, atol=1e-5)
        seen += index.tolist()
    assert len(set(seen)) == len(seen) > 420, "no image is in two splits"


def test_data_without_labels_have_no_column_of_them(vae_command):
    np.savez("own.npz", images=np.random.default_rng(0).integers(0, 256, (60, 8, 8), dtype=np.uint8))
    _, folder = quick_run("dataset=arrays", "dataset.root=own.npz", "dataset.val_size=0", "epochs=0", *SMALL)
    assert list(vae_exp.load(folder).codes("all")) == ["index", "split", "mean", "log_var"]
    code, said = vae_command("vae-generate", f"checkpoint={folder}", "what=codes", "split=val")
    assert (code, "split=val: the model was trained with dataset.val_size=0" in said) == (1, True)


@pytest.mark.slow
def test_a_table_in_wandb_has_rows_drawn_evenly_beside_their_thumbnails(vae_command, monkeypatch, tmp_path):
    from vae_exp.tracking import wandb_run

    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "wandb_data"))
    monkeypatch.setattr(wandb_run, "MAX_ROWS", 50)
    _, folder = quick_run("epochs=1", *SMALL, wandb="offline")
    assert vae_command("vae-evaluate", f"checkpoint={folder}", "repeats=1")[0] == 0
    path = generate(vae_command, f"checkpoint={folder}", "what=codes", "log=true")
    assert len(list(Path("outputs/wandb").glob("offline-run-*"))) == 3, "the evaluation stays"
    (logged,) = Path("outputs/wandb").glob("offline-run-*-codes-test-*")
    records, codes = recorded(logged), np.load(path)
    assert records["run"][0]["job_type"] == "codes"
    evaluation = recorded(next(Path("outputs/wandb").glob("*-evaluate-*")))
    assert records["run"][0]["run_group"] == evaluation["run"][0]["run_group"]
    (shown,) = (update["update"]["codes/test"] for update in records["summary"] if "codes/test" in update["update"])
    assert (shown["_type"], shown["nrows"]) == ("table-file", 50)
    files = {file["path"]: file["local_path"] for file in records["artifact"][0]["manifest"]["contents"]}
    table = json.loads(Path(files["codes/test.table.json"]).read_text())
    assert table["columns"] == ["image", "index", "split", "label", "class_name", "mean_0", "mean_1", "mean_2"]
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    chosen = np.arange(50) * 6  # of 300 test images
    assert [row["index"] for row in rows] == codes["index"][chosen].astype(str).tolist(), "no dimension of the code"
    assert [row["class_name"] for row in rows] == codes["class_names"][codes["label"][chosen]].tolist()
    np.testing.assert_allclose([row["mean_1"] for row in rows], codes["mean"][chosen, 1], rtol=1e-6)
    images = vae_exp.load(folder).read_data().read_test().x
    for row, image in zip(rows, images[torch.from_numpy(chosen)], strict=True):
        with Image.open(files[row["image"]["path"]]) as thumbnail:
            np.testing.assert_array_equal(np.asarray(thumbnail.convert("L")), image[0])

    Path("alone").mkdir()
    alone = Path("alone/best.pt")
    alone.write_bytes((folder / "best.pt").read_bytes())
    code, said = vae_command("vae-generate", f"checkpoint={alone}", "what=codes", "log=true")
    assert (code, "nothing was logged" in said) == (0, True)


@pytest.mark.slow
def test_the_odd_image_is_the_first_anomaly(vae_command):
    _, folder = quick_run("epochs=5", "model.z_dim=3", "dataset.train_size=200")
    model, own = vae_exp.load(folder), Path("own")
    digits, noise = model.read_data().read_test().x[:12], np.random.default_rng(0).integers(0, 256, (8, 8))
    for i, pixels in enumerate([*digits[:, 0].numpy(), noise.astype(np.uint8)]):
        (own / f"part {i % 2}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(own / f"part {i % 2}" / f"{i:02}.png")
    typed = (f"checkpoint={folder}", "what=anomalies")
    path = generate(vae_command, *typed, "inputs=own", "n=5")
    rows = read(path.with_suffix(".csv"))
    assert path.name == "anomalies_inputs-own.png"
    assert (rows[0]["file"], len(rows)) == ("part 0/12.png", 13)
    assert list(rows[0]) == ["index", "split", "file", "log_prob_bound"], "no labels were given"
    found = numbers(rows, "log_prob_bound")[:, 0]
    x, files = read_images(own, (1, 8, 8))
    expected = dict(zip(files, model.log_prob_bound(x, k=20).tolist(), strict=True))
    assert found.tolist() == sorted(found) == pytest.approx([expected[row["file"]] for row in rows], rel=1e-6)
    with Image.open(path) as picture:
        assert picture.height > 5 * 28
    arguments = ("split=all", "format=svg", "n=2")
    drawing = generate(vae_command, *typed, *arguments).read_text()
    rows = read(folder / "generated" / "anomalies_split-all.csv")
    assert {row["split"] for row in rows} == {"train", "val", "test"}
    for row in rows[:2]:
        assert f"{float(row['log_prob_bound']):.1f}  {row['split']} {row['index']}<" in drawing
        split = model.read_data().split(row["split"])
        at = int((split.index == int(row["index"])).nonzero())
        assert int(split.y[at]) == int(row["label"])


def test_anomalies_of_a_conditional_model_are_those_of_the_label(vae_command):
    _, folder = quick_run("model=conditional", *SMALL, "epochs=0")
    generate(vae_command, f"checkpoint={folder}", "what=anomalies", "label=3", "n=4")
    rows = read(folder / "generated" / "anomalies_label-3.csv")
    assert {row["class_name"] for row in rows} == {"3"}
    model = vae_exp.load(folder)
    split = model.read_data().read_test()
    x = split.x[[int((split.index == int(row["index"])).nonzero()) for row in rows]]
    expected = model.log_prob_bound(x, 3, k=20)
    assert sorted(numbers(rows, "log_prob_bound")[:, 0]) == pytest.approx(sorted(expected.tolist()), abs=2)


REFUSED = [
    ("what=codes format=pdf", "format=pdf: what=codes is written as npz, csv, parquet."),
    ("what=codes n=5", "n=5: what=codes does not use it"),
    ("what=codes scale=2", "scale=2: what=codes does not use it"),
    ("what=samples format=csv", "format=csv: what=samples is written as png, pdf, svg, files, npz."),
    ("what=anomalies format=npz", "format=npz: what=anomalies is written as png, pdf, svg."),
    ("what=latents format=files", "format=files: what=latents is written as png, pdf, svg, npz."),
    ("what=latents split=all", "split=all: what=latents takes test, val or train"),
    ("what=anomalies log=true", "log=true: what=anomalies does not use it; it is for what=codes."),
    ("what=anomalies", "what=anomalies: an autoencoder gives images no likelihood"),
    ("what=anomalies n=5001", "what=anomalies: an autoencoder"),
]


def test_refusals_are_one_sentence_and_write_nothing(vae_command):
    _, folder = quick_run("model=autoencoder", "epochs=0", *SMALL)
    for arguments, message in REFUSED:
        code, said = vae_command("vae-generate", f"checkpoint={folder}", *arguments.split())
        assert (code, len(said.strip().splitlines())) == (1, 1), said
        assert message in said
    assert not (folder / "generated").exists()
    assert list(vae_exp.load(folder).codes()) == ["index", "split", "label", "mean", "class_names"]


def test_parquet_has_the_rows_of_csv_or_says_what_is_missing(vae_command):
    _, folder = quick_run("epochs=0", *SMALL)
    typed = (f"checkpoint={folder}", "what=codes", "split=train")
    try:
        from pyarrow import parquet
    except ImportError:
        code, said = vae_command("vae-generate", *typed, "format=parquet")
        assert (code, len(said.strip().splitlines())) == (1, 1)
        assert "format=parquet: it needs pyarrow: pip install 'vae_exp[parquet]'" in said
        return
    table = parquet.read_table(generate(vae_command, *typed, "format=parquet"))
    rows = read(generate(vae_command, *typed, "format=csv"))
    assert table.column_names == list(rows[0])
    assert table["class_name"].to_pylist() == [row["class_name"] for row in rows]
    means = np.stack([table[f"mean_{i}"].to_numpy() for i in range(3)], 1)
    np.testing.assert_array_equal(means, numbers(rows, "mean_").astype(np.float32))


@pytest.mark.slow
def test_the_examples_of_the_readme_run(vae_command):
    quick_run("epochs=2", folder="outputs/from_python")
    for split, kind in (("train", "npz"), ("all", "csv")):
        arguments = ("what=codes", f"split={split}", f"format={kind}", "output=.")
        generate(vae_command, "checkpoint=outputs/from_python", *arguments)
    blocks = code_blocks(readme_section("vae_exp/evaluation/README.md", "Take the codes"))
    examples = [code for language, code in blocks if language == "python"]
    assert len(examples) == 3
    with contextlib.redirect_stdout(io.StringIO()) as said:
        for code in examples:
            if "pandas" not in code or importlib.util.find_spec("pandas"):
                exec(code, {})
    assert float(said.getvalue().splitlines()[-1]) > 0.5
