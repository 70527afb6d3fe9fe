"""Data of one's own with known factors: a folder of images with a table beside it, and arrays in one file."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

import vae_exp
from tests.conftest import compose, quick_run
from tests.test_images import flat
from vae_exp.config import build
from vae_exp.datasets import arrays, image_folder, prepare
from vae_exp.datasets.factors import read_factors
from vae_exp.datasets.splits import Streamed
from vae_exp.errors import UserError
from vae_exp.train import train

TINY = ("likelihood=gaussian", "network.hidden_dims=[8]", "model.z_dim=3", "batch_size=16")
FOLDER = ("dataset=image_folder", "dataset.root=mine", "dataset.image_size=8", "dataset.cache=cache")
TABLE = ("dataset.factors=factors.csv", "dataset.val_size=24", "dataset.test_size=24")
FILE = ("dataset=arrays", "dataset.root=mine.npz", "dataset.val_size=24", "dataset.test_size=24")
SIZES = {"2": 0, "4.5": 1, "10": 2}  # in the order of the numbers, not of the text
KINDS = {"circle": 0, "é box": 1}


def draw(root, places, n=1):
    """n images of every size, kind and place in each of these folders: their colour says which."""
    lines = ["file,size,kind"]
    for place in places:
        for i in range(n):
            for size, s in SIZES.items():
                for kind, k in KINDS.items():
                    file = f"{place}{s}{k}{i}.png"
                    flat(root / file, (50 * s, 100 * k, 200))
                    lines.append(f'{file}, {size},"{kind}"')
    return lines


def write(root, lines, encoding="utf-8-sig"):
    root.mkdir(exist_ok=True)
    (root / "factors.csv").write_text("\n".join([*lines, ""]), encoding=encoding)


def folder(root, factors="factors.csv", label=None, test_size=0.25, columns=None, **shared):
    source = image_folder("mine", str(root), 8, 3, None, test_size, "skip", "cache", factors, label, None, columns)
    return prepare(source, **({"val_size": 0.25, "seed": 0} | shared))


def rows_shown(split):
    """What the colours of the images say that their factors are."""
    return torch.stack([split.x[:, 0, 0, 0] // 50, split.x[:, 1, 0, 0] // 100], dim=1).long()


@pytest.mark.parametrize("places", [[""], ["red/", "blue/deep/"], ["train/", "val/", "test/"]], ids=" ".join)
@pytest.mark.parametrize("device_memory", ["2GB", 0])
def test_a_table_follows_the_images_into_every_split(tmp_path, caplog, places, device_memory):
    lines = draw(tmp_path / "mine", places, n=3)
    for bad in ("0.png", "1bad.png"):  # among the others, and of no use
        (tmp_path / "mine" / places[0] / bad).write_text("no")
        lines.append(f"./{places[0]}{bad},10,circle")
    lines += ["gone.png,100,circle", ""]
    write(tmp_path / "mine", [lines[0], *reversed(lines[1:])])
    data = folder(tmp_path / "mine", device_memory=device_memory, train_size=0.9)
    seen = []
    for split in (data.train, data.val, data.read_test()):
        assert isinstance(split.images, Streamed) == (device_memory == 0)
        assert (split.factors.names, split.factors.sizes) == (["size", "kind"], [4, 2]), "of all rows of the table"
        assert torch.equal(split.factors.table, rows_shown(split))
        seen.append(split.x)
    assert len(torch.cat(seen)) > 12 * len(places), "nearly all of 18 in each place"
    assert "left out 1 of" in caplog.text
    assert "rows, which are of no image in" in caplog.text
    assert "gone.png" in caplog.text
    assert "left out 2 of" in caplog.text, "files that cannot be used"


def test_a_factor_is_the_label_in_place_of_the_class_folders(tmp_path):
    write(tmp_path / "mine", draw(tmp_path / "mine", ["red/", "blue/"], n=2))
    data = folder(tmp_path / "mine")
    assert data.class_names == ["blue", "red"]
    for label, column, names in (("size", 0, list(SIZES)), ("kind", 1, list(KINDS))):
        data = folder(tmp_path / "mine", label=label)
        assert data.class_names == names
        for split in (data.train, data.val, data.read_test()):
            assert torch.equal(split.y, rows_shown(split)[:, column])
    some = folder(tmp_path / "mine", label="size", labels=["4.5", "10"])
    assert (some.class_names, set(rows_shown(some.train)[:, 0].tolist())) == (["4.5", "10"], {1, 2})


def test_values_are_numbered_in_their_natural_order(tmp_path):
    columns = {
        "number": ["10", "-2", "1e1", "9.5", "+.5", "-2.0"],
        "text": ["b", "10", "B", "2", "é", "a b"],
        "whole": ["9007199254740993", "9007199254740992", "3", "3", "3", "3"],  # no float can tell the first two apart
    }
    rows = zip([f"{i}.png" for i in range(6)], *columns.values(), strict=True)
    write(tmp_path, ["file,number,text,whole", *(",".join(row) for row in rows)])
    factors, values, _ = read_factors(tmp_path, "factors.csv", [f"{i}.png" for i in range(6)], None, ())
    assert factors.table.T.tolist() == [[3, 0, 3, 2, 1, 0], [4, 0, 2, 1, 5, 3], [2, 1, 0, 0, 0, 0]]
    assert values[0] == ["-2", "+.5", "9.5", "10"]
    assert values[1] == ["10", "2", "B", "a b", "b", "é"]
    assert factors.sizes == [4, 6, 3]


WRONG_TABLES = [
    ("nowhere.csv", None, r"dataset.factors=nowhere.csv: there is no such file: .*mine/nowhere.csv"),
    ("../mine", None, r"dataset.factors=../mine: there is no such file"),
    ("pipe", None, r"dataset.factors=pipe: there is no such file"),
    ("a\0b", None, r"there is no such file"),
    ({"shape": 3}, None, r"dataset=image_folder takes the path of a CSV file, or null"),
    ("factors.csv", "", r"its first line must be file, for the path of each image, .* and is ''"),
    ("factors.csv", "name,size\n0.png,1", r"its first line must be file, .* and is 'name,size'"),
    (
        "factors.csv",
        "file;size\n0.png;1",
        r"its first line must be file, .* with commas between them, and is 'file;size'",
    ),
    ("factors.csv", "file\n0.png", r"a name of its own for each factor, .* and is 'file'"),
    ("factors.csv", "file,size,\n0.png,1,2", r"a name of its own for each factor, .* and is 'file,size,'"),
    (
        "factors.csv",
        "file,size,kind,size\n0.png,1,2,3",
        r"a name of its own for each factor, .* and is 'file,size,kind,size'",
    ),
    ("factors.csv", "file,size,file\n0.png,1,2", r"a name of its own for each factor, .* and is 'file,size,file'"),
    ("factors.csv", "file,size\n\n", r"it has no rows below its first line"),
    ("factors.csv", "file,size,kind\n0.png,1,a\n1.png,1\n", r"line 3 has 2 cells, and the first line 3"),
    ("factors.csv", "file,size\n0.png,1,2\n", r"line 2 has 3 cells, and the first line 2"),
    ("factors.csv", "file,size,kind\n0.png,1,a\n1.png, ,a\n", r"line 3 has no value of size"),
    ("factors.csv", "file,size\n0.png,1\n1.png,nan\n", r"line 3 has no value of size"),
    ("factors.csv", "file,size\n0.png,1\n,1\n", r"line 3 has no value of file"),
    ("factors.csv", "file,size\n0.png,1\n./0.png,2\n", r"line 3 is a second row of 0.png; each image has one"),
    ("factors.csv", 'file,size\n0.png,"1\n', r"cannot be read as a CSV file in UTF-8 \(unexpected end of data\)"),
    ("factors.csv", "file,size\n0.png,\xe9\n", r"cannot be read as a CSV file in UTF-8 \('utf-8' codec"),
    (
        "factors.csv",
        "file,size\n3.png,1\nred/0.png,1\n",
        r"it has no row for 7 of the 8 images: 0.png, 1.png, 2.png, 4.png, 5.png, .... Its column file holds their",
    ),
]


@pytest.mark.parametrize(("typed", "table", "said"), WRONG_TABLES)
def test_another_table_is_a_clear_message(tmp_path, typed, table, said):
    root = tmp_path / "mine"
    for i in range(8):
        flat(root / f"{i}.png")
    os.mkfifo(root / "pipe")
    if table is not None:
        write(root, [table], encoding="latin-1")
    with pytest.raises(UserError, match=said) as error:
        folder(root, typed)
    assert str(error.value).startswith("dataset.factors=")
    assert not Path("cache").exists(), "nothing is decoded before"


def test_identifiers_and_measurements_are_no_factors(tmp_path, caplog):
    for i in range(30):
        flat(tmp_path / "mine" / f"{i}.png")
    rows = [f"{i}.png,face {i},{i % 3},{i / 7}" for i in range(30)]
    write(tmp_path / "mine", ["file,who,kind,width", *rows])
    data = folder(tmp_path / "mine", label="kind")
    assert (data.train.factors.names, data.train.factors.sizes, data.class_names) == (["kind"], [3], ["0", "1", "2"])
    assert "left out who, width, with nearly as many values as rows (30)" in caplog.text
    write(tmp_path / "mine", ["file,who", *(row.rsplit(",", 2)[0] for row in rows)])
    with pytest.raises(UserError, match=r"dataset.factors=factors.csv: no factor in it, but who, with nearly as many"):
        folder(tmp_path / "mine")


def test_columns_of_a_table_can_be_chosen(tmp_path):
    lines = draw(tmp_path / "mine", [""])
    write(
        tmp_path / "mine", [f"{line},{'note' if not i else ''}" for i, line in enumerate(lines)]
    )  # nothing in any row
    data = folder(tmp_path / "mine", columns=["kind"])
    assert data.train.factors.names == ["kind"]
    assert torch.equal(data.train.factors.table[:, 0], rows_shown(data.train)[:, 1])
    said = (
        r"dataset.factor_columns=\[kind,sise\]: factors.csv has no sise. Did you mean size\? It has size, kind, note."
    )
    with pytest.raises(UserError, match=said):
        folder(tmp_path / "mine", columns=["kind", "sise"])
    with pytest.raises(
        UserError, match=r"dataset.factor_columns=\[kind\]: it takes null where dataset.factors is null"
    ):
        folder(tmp_path / "mine", factors=None, columns=["kind"])
    np.savez("mine.npz", **grid(), factor_names=["hat", "coat"])
    assert arrays("mine", "mine.npz", factor_columns=["coat"]).train.factors.names == ["coat"]
    with pytest.raises(UserError, match=r"the file has no hats. Did you mean hat\? It has hat, coat"):
        arrays("mine", "mine.npz", factor_columns=["hats"])


def test_a_label_must_be_a_factor(tmp_path):
    write(tmp_path / "mine", draw(tmp_path / "mine", [""]))
    with pytest.raises(UserError, match=r"dataset.label=hat: it takes null or one of size, kind"):
        folder(tmp_path / "mine", label="hat")
    with pytest.raises(UserError, match=r"dataset.label=size: it takes null where dataset.factors is null"):
        folder(tmp_path / "mine", factors=None, label="size")


def grid(n=16):
    """Images [N, 8, 8] of every pair of two factors, which their pixels show; labels and factors as anyone has them."""
    a, b = (part.ravel() for part in np.indices((3, 2)).repeat(n, axis=-1))
    images = np.zeros((len(a), 8, 8), np.uint8)
    images[:, :4], images[:, 4:] = (50 * a)[:, None, None], (100 * b)[:, None, None]
    factors = np.stack([np.array([-7, 0, 300])[a], np.array([2**40, 2**41])[b]], axis=1)
    return {"images": images, "labels": 5 * a + 1, "factors": factors}


def save(path="mine.npz", **held):
    np.savez(path, **held)
    return path


def mine(path="mine.npz", label=None, test_size=0.25, **shared):
    return prepare(arrays("mine", path, label, test_size), **({"val_size": 0.25, "seed": 0} | shared))


def shown(split):
    return torch.stack([split.x[:, 0, 0, 0] // 50, split.x[:, 0, 7, 0] // 100], dim=1).long()


@pytest.mark.parametrize("device_memory", ["2GB", 0])
def test_labels_and_factors_follow_the_arrays_into_every_split(device_memory):
    save(**grid(), factor_names=["hat", "coat "])
    data = mine(device_memory=device_memory)
    assert (len(data.train), len(data.val), len(data.read_test())) == (54, 18, 24)
    assert data.class_names == ["1", "6", "11"], "numbered in their order, called what they were"
    for split in (data.train, data.val, data.read_test()):
        assert isinstance(split.images, Streamed) == (device_memory == 0)
        assert (split.factors.names, split.factors.sizes) == (["hat", "coat"], [3, 2])
        assert torch.equal(split.factors.table, shown(split))
        assert torch.equal(split.y, shown(split)[:, 0])
    assert torch.equal(mine(seed=1).read_test().x, data.read_test().x), "the test split is the same for every seed"
    by_factor = mine(label="coat")
    assert by_factor.class_names == [str(2**40), str(2**41)]
    assert torch.equal(by_factor.val.y, shown(by_factor.val)[:, 1])


def test_a_test_split_of_ones_own_is_used_whole_and_numbered_together():
    every = grid()
    order = np.argsort(every["labels"], kind="stable")
    part = {name: array[order[:70]] for name, array in every.items()}  # the largest label is in the test split alone
    save(**part, **{f"test_{name}": array[order[60:]] for name, array in every.items()})
    data = mine(val_size=0, label="factor0")
    assert (len(data.train), len(data.read_test())) == (70, 36)
    assert data.train.factors.sizes == [3, 2]
    assert data.class_names == ["-7", "0", "300"]
    for split in (data.train, data.read_test()):
        assert torch.equal(split.factors.table, shown(split))
        assert torch.equal(split.y, shown(split)[:, 0])
    assert mine().class_names == ["1", "6", "11"]


@pytest.mark.parametrize(
    ("shape", "axes", "asks"),
    [
        ((6, 5, 7), None, False),
        ((6, 5, 7, 3), (0, 3, 1, 2), False),
        ((6, 5, 7, 1), (0, 3, 1, 2), False),
        ((6, 3, 5, 7), (0, 1, 2, 3), False),
        ((6, 1, 5, 7), (0, 1, 2, 3), False),
        ((6, 3, 5, 1), (0, 3, 1, 2), True),
    ],
)
def test_channels_come_last_or_first(caplog, shape, axes, asks):
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    save(images=images, notes=np.array([{"pickled": True}], dtype=object))
    data = mine(val_size=0, test_size=1)
    assert (data.n_classes, data.train.factors) == (0, None)
    expected = images[:, None] if axes is None else images.transpose(axes)
    found = torch.cat([data.train.x, data.read_test().x]).numpy()
    np.testing.assert_array_equal(
        found[np.lexsort(found.reshape(6, -1).T)], expected[np.lexsort(expected.reshape(6, -1).T)]
    )
    assert ("they are taken as [N, H, W, C]" in caplog.text) == asks


def changed(**arrays):
    return {name: array for name, array in (grid() | arrays).items() if array is not None}


def with_one(array, value):
    """The array as floats, one of which is the value."""
    array = grid()[array].astype(float)
    array.flat[3] = value
    return array


PIXELS = grid()["images"]
WRONG_ARRAYS = [
    ({"images": None}, r"it holds no array images; it holds labels, factors"),
    (
        {"images": PIXELS / 255},
        r"images must be uint8, 0 to 255, and is float64 \[96, 8, 8\]. Floats from 0 to 1 become",
    ),
    ({"images": PIXELS.astype(int)}, r"images must be uint8, 0 to 255, and is int64 \[96, 8, 8\]\.$"),
    ({"images": PIXELS.astype(np.uint16)}, r"and is uint16 \[96, 8, 8\]. Numbers from 0 to 65535 become that by"),
    ({"images": PIXELS[:, 0]}, r"images must be \[N, H, W\], .* and is \[96, 8\]"),
    ({"images": PIXELS.reshape(96, 2, 16, 2)}, r"images must be .* with C of 1 or 3, and is \[96, 2, 16, 2\]"),
    ({"images": PIXELS[:0]}, r"images must be .* and is \[0, 8, 8\]"),
    ({"images": PIXELS.astype(object)}, r"images is pickled, and reading it would run what it holds"),
    (
        {"test_images": PIXELS[:, 1:], "labels": None, "factors": None},
        r"an image is \[1, 8, 8\] and one of test_images",
    ),
    ({"test_labels": np.zeros(96, int)}, r"it holds test_labels, and no test_images"),
    ({"test_images": PIXELS, "labels": None}, r"it holds factors, and no test_factors; save both or neither"),
    ({"test_images": PIXELS, "factors": None, "labels": None, "test_labels": np.zeros(96, int)}, "and no labels; save"),
    ({"labels": np.zeros(95, int)}, r"labels has 95 rows, and images 96; both need one for each image"),
    ({"labels": np.zeros((96, 1), int)}, r"labels must be \[N\], and is \[96, 1\]"),
    ({"labels": np.full(96, -1)}, r"labels must be 0 or more, and one is -1"),
    ({"labels": np.zeros(96)}, r"labels must be whole numbers .* is float64. Save it with .astype\('int64'\)"),
    ({"labels": np.array(["cat"] * 96)}, r"labels must be whole numbers of an integer type, and is <U3"),
    ({"labels": np.full(96, 2**64 - 1, np.uint64)}, r"labels holds 18446744073709551615, which no int64 can be"),
    ({"labels": np.array([None] * 96)}, r"labels is pickled"),
    ({"factors": with_one("factors", 0.5)}, r"factors must be whole numbers .* is float64, with 0.5 in it"),
    ({"factors": with_one("factors", np.nan)}, r"factors must be whole numbers .* is float64, with nan in it"),
    ({"factors": np.zeros((90, 2), int)}, r"factors has 90 rows, and images 96"),
    ({"factors": np.zeros(96, int)}, r"factors must be \[N, F\], and is \[96\]"),
    ({"factors": np.zeros((96, 0), int)}, r"factors must be \[N, F\], and is \[96, 0\]"),
    ({"factor_names": ["a"]}, r"factor_names must be .* for each of the 2 columns of factors, and is <U1 \[a\]"),
    ({"factor_names": ["a", "a"]}, r"factor_names must be text \[F\], a different name .* and is <U1 \[a,a\]"),
    ({"factor_names": ["a", " "]}, r"factor_names must be text \[F\], a different name"),
    ({"factor_names": [1, 2]}, r"factor_names must be text \[F\], .* and is int64 \[1,2\]"),
    ({"factor_names": np.array(["a", "b"], object)}, r"factor_names is pickled"),
    ({"factors": None, "factor_names": ["a"]}, r"it holds factor_names, and no factors"),
    (
        {"test_images": PIXELS, "labels": None, "test_factors": np.zeros((96, 3), int)},
        r"factors is \[96, 2\] and test_factors is \[96, 3\]",
    ),
]


@pytest.mark.parametrize(("change", "said"), WRONG_ARRAYS)
def test_other_arrays_are_a_clear_message(change, said):
    save(**changed(**change))
    with pytest.raises(UserError, match=said) as error:
        mine()
    assert str(error.value).startswith("dataset.root=mine.npz: ")


def test_other_files_are_a_clear_message(tmp_path):
    save(**grid())
    whole = Path("mine.npz").read_bytes()
    Path("cut.npz").write_bytes(whole[:-100])
    Path("flipped.npz").write_bytes(whole[:200] + b"!" * 100 + whole[300:])
    Path("pickle.npz").write_bytes(pickle.dumps({"images": PIXELS}))
    np.save("one.npy", PIXELS)
    os.mkfifo("pipe.npz")
    for path, says in [
        ("nowhere.npz", "there is no such file. dataset=arrays takes an .npz file"),
        (str(tmp_path), "there is no such file"),
        ("pipe.npz", "there is no such file"),
        ("cut.npz", "it is damaged or no .npz file"),
        ("one.npy", "it is damaged or no .npz file"),
        ("pickle.npz", "it is damaged or no .npz file"),
        ("flipped.npz", "images cannot be read"),
    ]:
        with pytest.raises(UserError, match=f"dataset.root={path}: {says}"):
            mine(path)
    for label, says in [("hat", "it takes null or one of factor0, factor1"), (3, "it takes null or one of factor0")]:
        with pytest.raises(UserError, match=f"dataset.label={label}: {says}"):
            mine(label=label)
    with pytest.raises(UserError, match=r"dataset.test_size=96: mine.npz has 96 usable images; training and testing"):
        mine(test_size=96)
    save(images=PIXELS)
    with pytest.raises(UserError, match=r"dataset.label=hat: it takes null, as there are no factors"):
        mine(label="hat")


def own_data():
    write(Path("mine"), draw(Path("mine"), [""], n=16))
    save(**grid(), factor_names=["size", "kind"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "names"), [((*FOLDER, *TABLE), list(SIZES)), (FILE, ["-7", "0", "300"])], ids=["folder", "arrays"]
)
def test_own_data_are_trained_on_scored_and_given_to_a_conditional_model(vae_command, data, names):
    own_data()
    summary, _ = quick_run(*data, *TINY, "scores=[mig]", "model=conditional", "dataset.label=size")
    assert (summary["state"], summary["train_size"]) == ("finished", 48)
    assert 0 <= summary["test/mig"] <= 1
    trained = vae_exp.load("run")
    assert trained.class_names == names
    assert trained.read_data().class_names == names
    assert trained.sample(2, label=names[1]).shape[0] == 2
    typed = ("checkpoint=run", "label_accuracy=false", "wandb.mode=disabled")
    code, said = vae_command("vae-evaluate", *typed, "scores=[mig]")
    assert code == 0, said
    written = json.loads(Path("run/best.test.json").read_text())["scores"]
    assert written["factors"] == ["kind"], "the model is given the size"
    for file in ("a.png", "b.png"):
        flat(Path("own") / file)
    asked = ("checkpoint=run", "what=reconstructions", "inputs=own", "format=npz")
    code, said = vae_command("vae-generate", *asked)
    assert (code, "inputs=own: some images lie in no folder" in said) == (1, True), said
    assert ("name it in the column size of factors.csv beside them" in said) == (data[:4] == FOLDER)
    if data[:4] == FOLDER:
        write(Path("own"), ["file,note,size", f"b.png,,{names[2]}", f"a.png,,{names[0]}"])
        assert vae_command("vae-generate", *asked, "output=out")[0] == 0
        assert np.load(next(Path("out").iterdir()))["y"].tolist() == [0, 2]
        write(Path("own"), ["file,size", "b.png,huge", f"a.png,{names[0]}"])
        assert "inputs=own: in factors.csv huge is none of its classes" in vae_command("vae-generate", *asked)[1]
        write(Path("own"), ["file,size", f"a.png,{names[0]}"])
        assert (
            "inputs=own: factors.csv: it has no row for 1 of the 2 images: b.png"
            in vae_command("vae-generate", *asked)[1]
        )
    Path("mine").rename("elsewhere")
    Path("mine.npz").rename("elsewhere.npz")
    root = "elsewhere.npz" if "dataset=arrays" in data else "elsewhere"
    code, said = vae_command("vae-evaluate", *typed, f"dataset.root={root}")
    assert code == 0, said


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        (
            (*FOLDER, "dataset.factors=3"),
            "dataset.factors=3: it takes values by factor names, such as {shape:[0],x:8}, or with",
        ),
        ((*FOLDER, "dataset.factors=nowhere.csv"), "dataset.factors=nowhere.csv: there is no such file"),
        ((*FOLDER, "dataset.factors={shape:3}"), "dataset=image_folder takes the path of a CSV file, or null"),
        ((*FOLDER, *TABLE, "dataset.label=[a]"), "dataset.label=a: it takes null or one of size, kind"),
        (("dataset=sprites", "dataset.factors=factors.csv"), "dataset.factors=factors.csv: it takes values by factor"),
        (("dataset=arrays",), "dataset=arrays: it needs dataset.root=FILE.npz"),
        ((*FILE, "dataset.label=hat"), "dataset.label=hat: it takes null or one of size, kind"),
        ((*FILE, "dataset.test_size=1.5"), "dataset.test_size=1.5: it takes a whole number, 1 or more, or a fraction"),
        ((*FILE, "dataset.val_size=72"), "dataset.val_size=72: arrays has 72 training images"),
    ],
)
def test_a_mistake_is_one_message_and_trains_nothing(typed, says):
    own_data()
    with pytest.raises(UserError) as error:
        quick_run(*typed, *TINY, wandb="offline")
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(Path().rglob("*.pt"))
    assert not Path("outputs/wandb").exists()


@pytest.mark.slow
def test_a_part_of_published_data_is_still_an_override():
    for typed in ("dataset.factors={shape:[0],scale:1}", "dataset.factors=null", "dataset.factors={}"):
        assert build.check(compose("dataset=sprites", typed))["dataset"]["label"] == "shape"
    with pytest.raises(UserError, match=r"dataset.factors.scale=0: it takes a whole number"):
        build.check(compose("dataset=sprites", "dataset.factors={scale:0}"))


ODD = ["+1", "-1", "0", "007", "1", "1.0", "1e3", "2.0", "true", "null", "b (1)", "é"]
LABELLED = ("dataset=image_folder", "dataset.image_size=8", "dataset.cache=cache", "device=cpu", "wandb.mode=disabled")


@pytest.fixture(scope="module")
def odd_classes(tmp_path_factory):
    """A conditional model of classes whose names look like something else, and the folder of their images."""
    where = tmp_path_factory.mktemp("odd")
    for number, name in enumerate(ODD):
        for i in range(6):
            flat(where / "mine" / name / f"{i}.png", (20 * number, 40 * i, 0))
    places = (f"dataset.root={where}/mine", f"dataset.cache={where}/cache")  # no test has a folder of its own yet
    overrides = (*LABELLED, *TINY, *places, "model=conditional", "epochs=1")
    train(compose(*overrides), where / "run")
    return where


@pytest.mark.parametrize("name", ODD)
def test_a_class_is_called_as_it_is_typed(vae_command, odd_classes, name):
    """To draw it, and in a folder of own images; from Python too."""
    model = vae_exp.load(odd_classes / "run")
    where = f"checkpoint={odd_classes}/run"
    assert sorted(model.class_names) == sorted(ODD)
    code, said = vae_command("vae-generate", where, f"label={name}", "n=2", "format=npz", "output=out")
    assert code == 0, said
    (drawn,) = Path("out").iterdir()
    assert [model.class_names[y] for y in np.load(drawn)["y"]] == [name, name]
    number = model.class_names.index(name)
    assert torch.equal(model.sample(2, label=name, seed=0), model.sample(2, label=torch.tensor(number), seed=0))
    flat(Path("own") / name / "0.png")
    asked = ("what=reconstructions", "inputs=own", "format=npz", "output=again")
    assert vae_command("vae-generate", where, *asked)[0] == 0
    (drawn,) = Path("again").iterdir()
    assert np.load(drawn)["y"].tolist() == [number]


@pytest.mark.slow
def test_a_class_by_its_number_and_null_where_no_class_is_called_so(vae_command, odd_classes):
    model = vae_exp.load(odd_classes / "run")
    assert model.number(2.0) == model.class_names.index("2.0")
    assert model.number(9) == model.number("9") == 9, "no class is called 9"
    assert model.number(1) == model.class_names.index("1"), "a name comes before a number"
    for wrong in ("+9", "9.0", "True", "1e0"):
        code, said = vae_command("vae-generate", f"checkpoint={odd_classes}/run", f"label={wrong}", "output=out")
        assert code == 1
        assert f"label={wrong}: this model knows" in said
    for i in range(12):
        flat(Path("two") / "ab"[i % 2] / f"{i}.png")
    assert (
        vae_command("vae-train", *LABELLED, *TINY, "dataset.root=two", "model=conditional", "hydra.run.dir=r")[0] == 0
    )
    for what in ("samples", "classes"):
        assert vae_command("vae-generate", "checkpoint=r", f"what={what}", "label=null", "output=out")[0] == 0
    assert vae_command("vae-generate", "checkpoint=r", "label=null", "n=4", "format=npz", "output=npz")[0] == 0
    assert np.load("npz/samples.npz")["y"].tolist() == [0, 1, 0, 1], "each in turn"


@pytest.mark.slow
def test_labels_are_kept_as_they_are_typed_in_runs_resumed_ones_and_sweeps(vae_train, odd_classes):
    typed = (*LABELLED, *TINY, f"dataset.root={odd_classes}/mine", "dataset.test_size=0.5")

    def classes(run):
        trained = vae_exp.load(run)
        data = trained.read_data()
        first = sorted({ODD[int(x)] for x in data.read_train().x[:, 0, 0, 0].float().div(20).round()})
        assert first == sorted(data.class_names), "the images are theirs"
        return data.class_names

    every = ",".join(ODD[::-1])
    code, said = vae_train(*typed, f"dataset.labels=[{every}]", "epochs=1", "hydra.run.dir=all")
    assert code == 0, said
    assert sorted(classes("all")) == sorted(ODD)
    code, said = vae_train(*typed, "dataset.labels=[+1,0]", "epochs=1", "hydra.run.dir=run")
    assert classes("run") == ["+1", "0"]
    code, said = vae_train("resume=run", "epochs=2")
    assert code == 0, said
    assert classes("run") == ["+1", "0"]
    code, said = vae_train("resume=run", "epochs=3", "dataset.labels=[1,0]")
    assert code == 1
    assert "dataset.labels" in said
    swept = "dataset.labels=choice([+1,0],[1,0],[true,null])"
    code, said = vae_train("-m", *typed, swept, "epochs=1", "hydra.sweep.dir=sweep")
    assert code == 0, said
    found = sorted(classes(path.parent) for path in Path("sweep").glob("*/best.pt"))
    assert found == sorted([["+1", "0"], ["0", "1"], ["null", "true"]])
    code, said = vae_train(*typed, "dataset.labels=[null,x]")
    assert code == 1
    assert "dataset.labels: image_folder has no x" in said
