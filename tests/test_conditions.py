"""Several labels and numbers as conditions: what a model is given, what people type, and what is measured of it."""

import csv
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vae_exp
from tests.conftest import compose, quick_run
from vae_exp.config import build
from vae_exp.datasets.conditions import Conditions, spread
from vae_exp.errors import UserError

SMALL = ("network.hidden_dims=[16]", "model.z_dim=3", "model=conditional", "dataset.test_size=0.2")
SPRITES = ("dataset=sprites", "dataset.factors={shape:[0,2],scale:[1,4],orientation:1,x:4,y:3}")
GIVEN = ("dataset.label=[shape,scale]", "dataset.condition=[x]")
NAMES = ["square", "heart"]


def conditions_of(*overrides):
    data = build.dataset(
        build.check(compose("model=conditional", "dataset.val_size=0.2", "dataset.test_size=0.2", *overrides))
    )
    return data, data.conditions


def test_the_context_is_what_the_factors_of_an_image_say():
    data, conditions = conditions_of(*SPRITES, *GIVEN)
    model = build.model(build.check(compose(*SPRITES, *GIVEN, *SMALL)), (1, 64, 64), data.n_classes, None, conditions)
    assert data.n_classes == 2 * 2 * 4 == len(set(data.class_names))
    split, xs = data.train, [0, 10, 21, 31]  # four of the grid's 32 places
    low, high = (xs[int(v)] for v in split.factors.column("x").aminmax())
    for context, (shape, scale, _, x, _), y in zip(model.context(split.y), split.factors.table, split.y, strict=True):
        number = 2 * (xs[x] - low) / (high - low) - 1
        expected = [shape == 0, shape == 1, scale == 0, scale == 1, number]
        assert context.tolist() == pytest.approx([float(value) for value in expected])
        assert data.class_names[y] == f"{NAMES[shape]}, scale={[1, 4][scale]}, x={xs[x]}"


def folder(root, rng, n=60):
    """Images of a bar as bright as the number of their row, whose class is their folder; a second column is a word."""
    rows = [["file", "light", "side"]]
    for i in range(n):
        light, side = rng.uniform(-5, 3), "left" if i % 3 else "right"
        path = root / ("a" if i % 2 else "b") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.zeros((8, 8), np.uint8)
        pixels[:, slice(0, 4) if side == "left" else slice(4, 8)] = round(128 + 20 * light)
        Image.fromarray(pixels).save(path)
        rows.append([path.relative_to(root).as_posix(), f"{light:.4f}", side])
    with (root / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return {row[0]: float(row[1]) for row in rows[1:]}


OWN = (
    *("dataset=image_folder", "dataset.root=own", "dataset.image_size=8", "dataset.channels=1", "dataset.cache=cache"),
    *("dataset.factors=table.csv", "dataset.val_size=9", "dataset.test_size=9"),
)


@pytest.mark.parametrize("label", ["null", "side", "[side]"])
def test_a_measurement_of_a_table_is_a_condition_as_it_stands(label):
    light = folder(Path("own"), np.random.default_rng(0))
    data, conditions = conditions_of(*OWN, "dataset.condition=[light]", f"dataset.label={label}")
    assert conditions.names == ["class" if label == "null" else "side", "light"]
    train = np.array([light[data.train.files[i]] for i in [*data.train.index, *data.val.index]])
    table = conditions.table()
    for split in (data.train, data.val, data.read_test()):
        for i, context in zip(split.index, table[split.y], strict=True):
            number = 2 * (light[split.files[i]] - train.min()) / (train.max() - train.min()) - 1
            assert context[-1].item() == pytest.approx(number, abs=1e-5)
            assert label != "null" or context[:2].tolist() == [split.files[i][0] == name for name in "ab"]
        assert split.factors.names == ["side"], "a measurement is no factor that scores could count"
    assert table[data.train.y][:, -1].abs().max() <= 1


def test_fractions_of_an_array_may_be_conditions_and_nothing_else():
    rng = np.random.default_rng(0)
    angle = rng.uniform(0, 1, 50).astype(np.float32)
    factors = np.stack([np.arange(50) % 3, angle], 1)
    images = np.broadcast_to((255 * angle).astype(np.uint8)[:, None, None], (50, 4, 4))
    np.savez("own.npz", images=images, factors=factors, factor_names=["kind", "angle"])
    own = ("dataset=arrays", "dataset.root=own.npz")
    data, conditions = conditions_of(*own, "dataset.label=kind", "dataset.condition=[angle]")
    shown = data.train.x[:, 0, 0, 0] / 255
    scaled = conditions.table()[data.train.y][:, -1]
    assert np.corrcoef(shown, scaled)[0, 1] > 0.9999
    assert data.train.factors.names == ["kind"]
    with pytest.raises(UserError, match=r"or name it in dataset\.condition"):
        conditions_of(*own)
    with pytest.raises(UserError, match=r"angle has 0\.\d+ in it.* or name it in dataset\.condition"):
        conditions_of(*own, "dataset.condition=[angel]")
    assert conditions_of(*own, "dataset.condition=[angle]", "dataset.factor_columns=[angle]")[1].names == ["angle"]
    assert conditions_of(*own, "dataset.factor_columns=[kind]")[0].train.factors.names == ["kind"]
    angle[7] = np.nan
    np.savez("own.npz", images=images, factors=np.stack([factors[:, 0], angle], 1), factor_names=["kind", "angle"])
    with pytest.raises(UserError, match="factors must be finite numbers, and angle has nan in it"):
        conditions_of(*own, "dataset.condition=[angle]")


def images(model, **label):
    return model.sample(4, seed=0, **label)


@pytest.mark.slow
def test_a_label_is_typed_by_its_values(vae_command):
    _, run = quick_run(*SPRITES, *GIVEN, *SMALL, "epochs=2")
    model, where = vae_exp.load(run), f"checkpoint={run}"
    by_list = images(model, label=["heart", 4, 10])
    assert torch.equal(by_list, images(model, label={"x": 10, "scale": 4, "shape": "heart"}))
    assert torch.equal(by_list, images(model, label="heart, scale=4, x=10"))
    known = len(model.class_names)
    between, changed = images(model, label=["heart", 4, 12.5]), images(model, label=["square", 4, 10])
    assert not torch.equal(by_list, between) and not torch.equal(by_list, changed)
    assert model.class_names[known:] == ["heart, scale=4, x=12.5"], "that the data have no such images is no obstacle"
    weight = model.model.decoder.layers[0].weight[:, -1]  # of the number
    context = model.model.context(torch.tensor([model.number(["heart", 4, x]) for x in (10, 12.5, 15)]))
    assert context[1, -1].item() == pytest.approx(context[[0, 2], -1].mean().item()) and weight.abs().max() > 0
    code, said = vae_command("vae-generate", where, "label={shape:heart,scale:4,x:12.5}", "n=4", "format=npz")
    assert code == 0, said
    written = np.load(said.split("written to ")[1].strip())["x"]
    seeded = torch.Generator().manual_seed(int(build.generator(0, "samples").initial_seed()))
    z = torch.randn(vae_exp.inference.CHUNK, 3, generator=seeded)[:4]
    assert np.abs(written / 255 - model.decode(z, ["heart", 4, 12.5]).numpy()).max() <= 0.5 / 255 + 1e-6
    codes = model.codes("train")
    texts = [
        f"{NAMES[row[0]]}, scale={[1, 4][row[1]]}, x={x:g}"
        for row, x in zip(codes["factors"], codes["condition_x"], strict=True)
    ]
    assert texts == codes["class_names"][codes["label"]].tolist()
    for what in ("classes", "traversals", "reconstructions", "interpolations", "codes", "latents", "anomalies"):
        assert vae_command("vae-generate", where, f"what={what}")[0] == 0
    for sampler in ("gmm", "aggregate"):
        assert vae_command("vae-generate", where, f"sampler={sampler}", "label=[heart,4,12.5]")[0] == 0


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("{shape:hart,scale:4,x:1}", ["shape is square, heart", "Did you mean heart?"]),
        ("{shape:heart,scale:4}", ["shape (square|heart), scale (1|4), x (from 0 to 31 in training)", "give each"]),
        ("[heart,4]", ["give each, by name or in this order, such as label=[square,1,0]"]),
        ("{shape:heart,scale:4,y:1}", ["and no y"]),
        ("[heart,4,far]", ["x is a number, and not far"]),
        ("[heart,4,nan]", ["x is a number, and not nan"]),
        ("[heart,4,1e999]", ["x is a number, and not 1e999"]),
        ("[heart,4,1e9]", ["x is too far from those of training"]),
        ("7.5", ["label=7.5", "give each"]),
        ("hart", ["label=hart", "give each"]),
    ],
)
def test_a_wrong_label_is_one_message(trained, vae_command, label, words):
    _, run = trained(*SPRITES, *GIVEN, *SMALL)
    code, said = vae_command("vae-generate", f"checkpoint={run}", f"label={label}")
    assert code == 1
    assert all(word in said for word in words), said


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["dataset.condition=[shape]", "dataset.label=null"], "dataset.condition=shape: its value square is no number"),
        (["dataset.condition=[z]"], "dataset.condition=z: it takes null or one of shape, scale, orientation, x, y"),
        (["dataset.label=[shape,shape]"], "shape is named twice"),
        (["dataset.label=[shape]", "dataset.condition=[shape]"], "shape is named twice"),
        (["dataset.label=[]"], "dataset.label=[]: it takes"),
        (["dataset.label=[shape,x]", "dataset.n_classes=50"], "dataset.n_classes=50: here the labels are the 48"),
        (["dataset.condition=[x]", "model.conditional=false"], "only a conditional model is given it"),
        (["dataset.condition=[x]", "prior=by_label"], "it has a Gaussian for each label alone"),
    ],
)
def test_what_cannot_be_a_condition_is_refused(typed, words):
    factors = "dataset.factors={shape:3,scale:1,orientation:1,x:16,y:4}"
    with pytest.raises(UserError) as error:
        build.dataset(build.check(compose("dataset=sprites", factors, "model=conditional", *typed)))
    assert words in str(error.value)


def test_labels_that_are_chosen_keep_their_conditions():
    chosen = ["heart, scale=4, x=10", "square, scale=1, x=31"]
    data, conditions = conditions_of(*SPRITES, *GIVEN, f"dataset.labels={json.dumps(chosen)}")
    assert data.class_names == conditions.class_names() == sorted(chosen, reverse=True)
    assert {tuple(row) for row in conditions.table().tolist()} == {(1, 0, 1, 0, 1), (0, 1, 0, 1, -1)}


@pytest.mark.slow
def test_a_run_resumes_and_a_stranger_cannot_change_the_conditions(trained):
    _, whole = trained(*SPRITES, *GIVEN, *SMALL, "epochs=2", folder="whole")
    _, half = trained(*SPRITES, *GIVEN, *SMALL, "epochs=2", "max_steps=2", folder="half")
    quick_run(*SPRITES, *GIVEN, *SMALL, "epochs=2", f"resume={half}", folder=half)
    a, b = (torch.load(run / "best.pt", weights_only=True) for run in (whole, half))
    assert all(torch.equal(a["model"][name], b["model"][name]) for name in a["model"])
    stored = a["conditions"]
    wrongs = [("rows", [9] * len(stored["rows"])), ("ranges", []), ("n_labels", 4), ("names", ["x"])]
    wrongs += [("ranges", [(float("nan"), 1.0)] * len(stored["ranges"])), ("names", ["x"] * len(stored["names"]))]
    for name, wrong in wrongs:
        torch.save(a | {"conditions": stored | {name: wrong}}, "wrong.pt")
        with pytest.raises(UserError, match="damaged"):
            vae_exp.load("wrong.pt")
    model = vae_exp.load(whole)
    model.export(Path("model.safetensors"))
    again = vae_exp.load("model.safetensors")
    assert torch.equal(images(model, label=["heart", 4, 12.5]), images(again, label=["heart", 4, 12.5]))


def test_own_images_bring_their_conditions(vae_command):
    folder(Path("own"), np.random.default_rng(0))
    _, run = quick_run(*OWN, "dataset.condition=[light]", "dataset.label=side", *SMALL, "epochs=2")
    folder(Path("new"), np.random.default_rng(1), n=6)
    code, said = vae_command("vae-generate", f"checkpoint={run}", "what=reconstructions", "inputs=new", "format=npz")
    assert code == 0, said
    model, written = vae_exp.load(run), np.load(said.split("written to ")[1].strip())["x"]
    with Path("new/table.csv").open() as file:
        labels = {row["file"]: [row["side"], row["light"]] for row in csv.DictReader(file)}
    for file, pixels in zip(sorted(labels), written, strict=True):
        x = torch.from_numpy(np.asarray(Image.open(Path("new", file))).copy())[None, None]
        expected = model.reconstruct(x, labels[file])
        assert np.abs(pixels / 255 - expected[0].numpy()).max() <= 0.5 / 255 + 1e-6


@pytest.mark.slow
def test_each_condition_is_read_in_samples(vae_command):
    """A decoder that draws what it is told, and one that is told nothing, have the figures that they must have."""
    grid = ("dataset=sprites", "dataset.factors={shape:[0,2],scale:[5],orientation:1,x:8,y:8}", "dataset.test_size=32")
    fast = ("network.hidden_dims=[128]", "model.z_dim=1", "model=conditional", "model.beta=20", "optimizer.lr=3e-3")
    typed = ("dataset.label=[shape]", "dataset.condition=[x,y]", "batch_size=16", "epochs=60")
    _, run = quick_run(*grid, *fast, *typed, "dataset.val_size=0.2")
    code, said = vae_command("vae-evaluate", f"checkpoint={run}", "wandb.mode=disabled")
    assert code == 0, said
    result = json.loads((Path(run) / "best.test.json").read_text())
    assert result["label_accuracy/shape"] > 0.8 > result["label_accuracy_shuffled/shape"]
    for name in ("x", "y"):
        assert result[f"number_error_real/{name}"] < 5
        assert result[f"number_error/{name}"] < 0.6 * result[f"number_error_shuffled/{name}"]
    assert "shape read as intended" in said and "x read, RMS error" in said


@pytest.mark.parametrize("of", [65, 96, 1000, 3072, 7680])
def test_a_few_of_many_combinations_are_spread(of):
    chosen = spread(16, of)
    assert len(set(chosen.tolist())) == 16 and chosen.max() < of
    assert sorted(spread(of, of).tolist()) == list(range(of))
    assert len({int(i) % 32 for i in chosen}) >= 8, "the last condition varies too"


def test_conditions_that_do_not_fit_are_no_conditions():
    with pytest.raises(ValueError, match="values that there are not"):
        Conditions(["a"], [["x", "y"]], 1, [2])
    with pytest.raises(ValueError, match="not numbers"):
        Conditions(["a"], [["x", "y"]], 0, [0, 1])


@pytest.mark.skipif(not importlib.util.find_spec("onnxruntime"), reason="the extra onnx is not installed")
@pytest.mark.parametrize("kind", ["onnx", "pt2"])
@pytest.mark.slow
def test_exported_networks_take_each_condition_by_its_name(trained, kind):
    """Also between the values of the data; with constant numbers nothing is divided by 0."""
    _, run = trained(*SPRITES, *GIVEN, *SMALL)
    model, label = vae_exp.load(run), ["heart", 4, 12.5]
    model.sample(1, ["heart", 4, 0.1])  # which the data do not have: it becomes a class of the loaded model alone
    inputs = {"z": torch.randn(2, 3), "condition_shape": torch.ones(2).long(), "condition_scale": torch.ones(2).long()}
    inputs["condition_x"] = torch.full((2,), 12.5)
    model.export(f"decoder.{kind}")
    if kind == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession("decoder.onnx")
        assert [one.name for one in session.get_inputs()] == list(inputs)
        image = torch.from_numpy(session.run(None, {name: values.numpy() for name, values in inputs.items()})[0])
        about = json.loads(session.get_modelmeta().custom_metadata_map["conditions"])
        assert about["shape"] == NAMES and len(about["x"]) == 2
    else:
        program = torch.export.load("decoder.pt2")
        assert not program.constants, "no table of all combinations"
        image = program.module()(*inputs.values())["image"]
    torch.testing.assert_close(image, model.decode(inputs["z"], label), atol=1e-5, rtol=0)


def table(root, names, rows):
    """Write images in the folders a and b by turns, and a table of what rows hold of each."""
    for i, _ in enumerate(rows):
        path = Path(root, "ab"[i % 2], f"{i:02}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), 3 * i, np.uint8)).save(path)
    with Path(root, "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [["file", *names], *([f"{'ab'[i % 2]}/{i:02}.png", *row] for i, row in enumerate(rows))]
        )


@pytest.mark.parametrize(("cell", "words"), [("1e999", "its value 1e999 is no number"), ("nan", "has no value")])
def test_a_number_is_finite(cell, words):
    table("own", ["light"], [[cell if i == 5 else i / 4] for i in range(60)])
    with pytest.raises(UserError, match=words):
        conditions_of(*OWN, "dataset.condition=[light]")


def test_a_number_that_never_changes_is_reported(caplog):
    table("own", ["light"], [[7] for _ in range(60)])
    assert conditions_of(*OWN, "dataset.condition=[light]")[1].table().tolist() == [[1, 0, 0], [0, 1, 0]]
    assert "dataset.condition=light: it is 7 in all training images" in caplog.text


def test_a_column_called_class_does_not_replace_the_folders():
    table("own", ["class"], [[i % 5] for i in range(60)])
    data, conditions = conditions_of(*OWN, "dataset.condition=[class]")
    assert (conditions.names, conditions.n_labels) == (["own class", "class"], 1)
    for i, context in zip(data.train.index.tolist(), conditions.table()[data.train.y].tolist(), strict=True):
        file = data.train.files[i]
        assert context == pytest.approx(
            [1.0 * (file[0] == "a"), 1.0 * (file[0] == "b"), 2 * (int(file[2:4]) % 5) / 4 - 1]
        )


def test_letters_of_two_parts_are_the_letters_of_one():
    table("own", ["side"], [["e\u0301" if i % 3 else "\u00e9"] for i in range(60)])
    assert conditions_of(*OWN, "dataset.label=side")[0].class_names == ["\u00e9"]


def test_labels_that_only_test_images_have_are_one_message():
    table("own", ["light"], [[i / 4] for i in range(60)])
    data, _ = conditions_of(*OWN, "dataset.condition=[light]")
    chosen = data.class_names[data.read_test().y[0]]
    with pytest.raises(UserError, match="none of the 51 training images has such a label"):
        conditions_of(*OWN, "dataset.condition=[light]", f"dataset.labels={json.dumps([chosen])}")


def test_scores_leave_out_conditions_however_rare_their_combinations_are():
    table("own", ["light", "side", "other"], [[i // 2, i % 3, i % 4] for i in range(60)])
    data, _ = conditions_of(*OWN, "dataset.label=side", "dataset.condition=[light]")
    for split in (data.train, data.val, data.read_test()):
        assert split.unknown_factors(conditional=True).names == ["other"]
        assert len(split.y.unique()) > len(split) / 2
        assert "light" in split.unknown_factors(conditional=False).names


def test_words_above_samples_are_of_the_images_below_them(trained, vae_command, monkeypatch):
    _, run = trained(*SPRITES, *GIVEN, *SMALL)
    shown, sheet = {}, vae_exp.figures.grids.Sheet
    monkeypatch.setattr("vae_exp.figures.grids.Sheet", lambda *args, **how: shown.update(how) or sheet(*args, **how))
    assert vae_command("vae-generate", f"checkpoint={run}")[0] == 0
    code, said = vae_command("vae-generate", f"checkpoint={run}", "format=npz")
    assert code == 0, said
    names, y = vae_exp.load(run).class_names, np.load(said.split("written to ")[1].strip())["y"]
    assert shown["words"] == [names[label] for label in y[: len(names)]]


WORDS = ["007", "1e3", "true", "null", "a, b", "x=y", "\u00e9", "it's"]


@pytest.mark.slow
def test_words_that_look_like_something_else_are_typed_in_both_ways(vae_command):
    table("own", ["side", "light"], [[WORDS[i % 8], i / 4] for i in range(60)])
    labels = ("dataset.label=side", "dataset.condition=[light]")
    _, run = quick_run(*OWN, *labels, *SMALL)
    model = vae_exp.load(run)
    for word in WORDS:
        typed = json.dumps(word, ensure_ascii=False) if set(word) & set(",'") else word
        for label in (f"[{typed},3]", f"{{side:{typed},light:3}}"):
            code, said = vae_command("vae-generate", f"checkpoint={run}", f"label={label}", "format=npz", "n=1")
            assert code == 0, said
            number = model.number([word, 3])
            assert np.load(said.split("written to ")[1].strip())["y"] == number or number >= model.n_classes_in_data


def test_a_list_of_one_label_is_that_label(vae_command):
    table("own", ["side"], [[("left", "right")[i % 3 > 0]] for i in range(60)])
    _, run = quick_run(*OWN, "dataset.label=[side]", *SMALL)
    code, said = vae_command("vae-generate", f"checkpoint={run}", "what=reconstructions", "inputs=own", "format=npz")
    assert code == 0, said
    assert np.load(said.split("written to ")[1].strip())["y"].tolist()[:4] == [0, 1, 1, 0]
    model = vae_exp.load(run)
    assert torch.equal(images(model, label=[0, 1, 0, 1]), images(model, label=torch.tensor([0, 1, 0, 1])))
    code, said = vae_command("vae-generate", f"checkpoint={run}", "label=[left]")
    assert (code, "this model has one label, left, right" in said) == (1, True), said


@pytest.mark.slow
def test_runs_of_different_conditions_compare_and_are_named_by_them(vae_command):
    for name, typed in (("a", "dataset.condition=[x]"), ("b", "dataset.condition=[x,y]")):
        _, run = quick_run(*SPRITES, "dataset.label=[shape,scale]", typed, *SMALL, folder=f"runs/{name}")
    assert json.loads((run / "summary.json").read_text())["name"].startswith("conditional-sprites-shape-scale-x-y-z3")
    code, said = vae_command("vae-compare", "runs")
    assert code == 0, said
    assert said.count("best") == 1, "both stand in one table"
    assert "[x,y]" in said


@pytest.mark.slow
def test_a_model_of_conditions_is_loaded_as_fast_as_another(trained):
    _, run = trained(*SPRITES, *GIVEN, *SMALL)
    code = f"import sys, vae_exp; vae_exp.load({str(run)!r}); sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0, "it takes seconds to import"


def test_a_label_of_too_many_values_is_refused(monkeypatch):
    table("own", ["code", "side"], [[i // 2, i % 2] for i in range(60)])
    monkeypatch.setattr("vae_exp.datasets.conditions.MAX_CELLS", 60 * 32 - 1)
    with pytest.raises(UserError, match=r"dataset\.label=code: 30 values are too many for a label"):
        conditions_of(*OWN, "dataset.label=[code,side]")
    assert conditions_of(*OWN, "dataset.label=[side]", "dataset.condition=[code]")[1].n == 60


def test_a_name_may_have_a_slash_in_it(vae_command, monkeypatch):
    monkeypatch.setattr("vae_exp.evaluation.reference_classifier.STEPS", 3)
    table("own", ["m/s", "on/off/b"], [[i / 4, ("on", "off")[i % 2]] for i in range(60)])
    _, run = quick_run(*OWN, "dataset.label=[on/off/b]", "dataset.condition=[m/s]", *SMALL)
    code, said = vae_command("vae-evaluate", f"checkpoint={run}", "wandb.mode=disabled")
    assert code == 0, said
    result = json.loads((run / "best.test.json").read_text())
    assert {"number_error_real/m/s", "label_accuracy_shuffled/on/off/b"} <= result.keys()
    assert "m/s read, RMS error" in said
