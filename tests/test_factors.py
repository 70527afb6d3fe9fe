"""Images whose factors are known: how sprites are drawn, parts of their grid, and the table that travels with them."""

import dataclasses
import functools
import hashlib
import http.server
import math
import sys
import threading

import numpy as np
import pytest
import torch
from matplotlib.path import Path as Curve

import vae_exp
from tests.conftest import compose, quick_run
from vae_exp.config import build, targets
from vae_exp.datasets import Factors, Source, Split, batches, dsprites, factor_files, mpi3d, prepare, shapes3d, sprites
from vae_exp.datasets.factors import chosen_values, grid
from vae_exp.datasets.prepare import require_source
from vae_exp.datasets.sprites import SIZES
from vae_exp.errors import UserError

A = np.linspace(0, 2 * np.pi, 2001)
HEART_Y = -0.662 * (13 * np.cos(A) - 5 * np.cos(2 * A) - 2 * np.cos(3 * A) - np.cos(4 * A)) - 1.44
HEART = Curve(np.stack([9.6 * np.sin(A) ** 3, HEART_Y], axis=1))
SMALL = {"shape": 3, "scale": [0, 5], "orientation": 3, "x": 4, "y": 5}


def drawn_one_by_one(shape, scale, orientation, x, y):
    """An image [64, 64] from the published description, in double precision and pixel by pixel."""
    size, t = np.linspace(0.5, 1, 6)[scale], np.linspace(0, 2 * np.pi, 40)[orientation]
    column, row = 16 + 32 * np.linspace(0, 1, 32)[x], 16 + 32 * np.linspace(0, 1, 32)[y]
    image = np.zeros((64, 64), np.uint8)
    for r in range(64):
        for c in range(64):
            dx, dy = c + 0.5 - column, r + 0.5 - row
            u, v = (math.cos(t) * dx - math.sin(t) * dy) / size, (math.sin(t) * dx + math.cos(t) * dy) / size
            if math.hypot(u, v) > 14:
                continue
            if shape == 0:
                image[r, c] = abs(u) <= 9.6 and abs(v) <= 9.6
            elif shape == 1:
                image[r, c] = (u / 12.8) ** 2 + (v / 7.2) ** 2 <= 1
            else:
                image[r, c] = HEART.contains_point((u, v))
    return 255 * image


def test_sprites_are_drawn_as_they_are_described():
    source = sprites("sprites")
    rng = np.random.default_rng(0)
    rows = torch.from_numpy(rng.integers(len(source.train), size=16))
    seen = source.train[torch.cat([rows, torch.tensor([0, len(source.train) - 1])])]  # the corners of the grid too
    for image, values in zip(seen.x[:, 0].numpy(), seen.factors.table.tolist(), strict=True):
        np.testing.assert_array_equal(image, drawn_one_by_one(*values), err_msg=str(values))
    assert seen.y.unique().tolist() == [0, 1, 2]


def test_the_grid_is_the_published_one():
    source = sprites("sprites", test_size=1000)
    assert (len(source.train), len(source.read_test()), source.train.x_shape) == (736_280, 1000, (1, 64, 64))
    assert (source.train.factors.names, source.train.factors.sizes) == (list(SIZES), [3, 6, 40, 32, 32])
    assert source.class_names == ["square", "ellipse", "heart"]
    together = torch.cat([source.train.factors.table, source.read_test().factors.table])
    number = (together * torch.tensor([6 * 40 * 32 * 32, 40 * 32 * 32, 32 * 32, 32, 1])).sum(1)
    assert torch.equal(number.sort().values, torch.arange(737_280)), "every combination once"


def test_the_last_orientation_is_the_first_once_more():
    """Not that sin(2 pi) is nearly 0, but to the last pixel."""
    part = {"x": 3, "y": 3}
    first, last = (sprites("sprites", part | {"orientation": [value]}, test_size=1).train for value in (0, 39))
    assert len(first) == 3 * 6 * 9 - 1
    assert torch.equal(first.factors.table, last.factors.table)
    assert torch.equal(first.x, last.x)


def test_parts_of_the_grid():
    assert chosen_values({"a": 40, "b": 32, "c": 3}, {"a": 8, "b": 4, "c": [2, 0]}, ["a"]) == {
        "a": [0, 5, 10, 15, 20, 24, 29, 34],  # of 39 steps around
        "b": [0, 10, 21, 31],
        "c": [2, 0],
    }
    assert chosen_values({"a": 40, "b": 3}, {"b": 1}, ["a"]) == {"a": list(range(40)), "b": [0]}
    known = grid(["a", "b"], [2, 3])
    assert known.table.tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]], "the last is the fastest"
    source = sprites("sprites", SMALL, label="scale", test_size=10)
    assert (len(source.train), source.train.factors.sizes, source.class_names) == (350, [3, 2, 3, 4, 5], ["0", "5"])
    for wrong, says in [
        ({"colour": 2}, "dataset.factors: there is no colour. There are shape, scale"),
        ({"x": 33}, "dataset.factors.x=33: it takes so many values, from 1 to 32"),
        (
            {"shape": [0, 3]},
            r"dataset.factors.shape=\[0,3\]: it takes .* or a list of different ones, numbered from 0 to 2",
        ),
        ({"shape": [1, 1]}, r"dataset.factors.shape=\[1,1\]: it takes .* different"),
        ({"shape": []}, r"dataset.factors.shape=\[\]: it takes .* different"),
        ({"shape": [0.5]}, r"dataset.factors.shape=\[0.5\]: it takes .* different"),
        ({"shape": True}, "dataset.factors.shape=True: it takes so many values"),
        ({"shape": "ab"}, "dataset.factors.shape=ab: it takes so many values"),
        *(
            (value, f"dataset.factors={value}: it takes values by factor names, such as")
            for value in (3, True, "", "abc")
        ),
        ([1], r"dataset.factors=\[1\]: it takes values by factor names"),
    ]:
        with pytest.raises(UserError, match=says):
            sprites("sprites", wrong)
    with pytest.raises(UserError, match=r"dataset.label=colour: it takes null or one of shape, scale"):
        sprites("sprites", SMALL, label="colour")
    with pytest.raises(UserError, match=r"dataset.test_size=360: sprites has 360 usable images"):
        sprites("sprites", SMALL, test_size=360)


@pytest.mark.parametrize(("binarize", "device_memory"), [("none", 0), ("static", "2GB"), ("dynamic", 0)])
def test_the_factors_travel_with_the_images(binarize, device_memory):
    shared = {"val_size": 0.2, "train_size": 0.5, "labels": ["heart", "square"], "binarize": binarize}
    data = prepare(sprites("sprites", SMALL, test_size=0.1), seed=3, device_memory=device_memory, **shared)
    assert (data.n_classes, data.class_names) == (2, ["square", "heart"])
    orientations = [0, 13, 26]  # three of 39 steps around
    seen = set()
    for split in (data.train, data.val, data.read_test()):
        split = split.to(torch.device("cpu"))
        assert len(split.factors) == len(split) > 0
        for part in (split, split[torch.randperm(len(split))], split[3:7]):
            shape, scale, orientation, x, y = part.factors.table[2].tolist()
            values = (shape, 5 * scale, orientations[orientation], [0, 10, 21, 31][x], [0, 8, 16, 23, 31][y])
            np.testing.assert_array_equal(part.x[2, 0].numpy(), drawn_one_by_one(*values))
            assert torch.equal(part.y, part.factors.column("shape") // 2), "renumbered: there is no ellipse"
        seen |= {tuple(values) for values in split.factors.table.tolist()}
        whole = torch.cat([x for x, _ in batches(split, 50, draws=torch.Generator())])
        assert torch.equal(whole, split.x / 255), "black and white as they are"
    assert len(seen) == len(data.train) + len(data.val) + len(data.read_test()), "no image is in two splits"


PART = [f"dataset.factors.{name}={values}".replace(" ", "") for name, values in SMALL.items()]


def test_any_part_of_the_grid_is_an_override():
    config = build.check(compose("dataset=sprites", *PART, "dataset.label=x"))
    data = build.dataset(config)
    assert data.class_names == ["0", "10", "21", "31"]
    assert torch.equal(data.train.y, data.train.factors.column("x"))
    with pytest.raises(UserError, match=r"dataset.factors.scale=0: it takes a whole number, 1 or more, or a list of"):
        build.check(compose("dataset=sprites", "dataset.factors.scale=0"))
    for value in ("3", "true", "1.5", '""', "abc"):
        for name in ("sprites", "dsprites"):
            with pytest.raises(UserError, match=r"^dataset.factors=.*: it takes .*values by factor.*$") as told:
                build.check(compose(f"dataset={name}", f"dataset.factors={value}"))
            assert len(str(told.value).splitlines()) == 1


def test_labels_that_leave_a_split_empty_are_refused():
    data = {"val_size": 0.2, "seed": 0, "labels": ["heart"]}
    source = sprites("sprites", SMALL, test_size=2)
    missing = next(name for name, y in (("square", 0), ("heart", 2)) if y not in source.read_test().y)
    says = rf"dataset.labels=\[{missing}\]: none of the 2 test images has such a label"
    with pytest.raises(UserError, match=says):
        prepare(source, **data | {"labels": [missing]})
    later = prepare(dataclasses.replace(source, test_is_at_hand=False), **data | {"labels": [missing]})
    with pytest.raises(UserError, match=says):
        later.read_test()
    square = Split(source.train.images, torch.zeros(len(source.train), dtype=torch.long))
    with pytest.raises(UserError, match="none of the 358 training images has such a label"):
        prepare(dataclasses.replace(source, train=square, test_is_at_hand=False), **data)
    with pytest.raises(UserError, match="none of the 358 validation images has such a label"):
        prepare(dataclasses.replace(source, val=square, test_is_at_hand=False), **data)


@pytest.mark.slow
def test_a_conditional_model_of_one_factor_is_read_again_from_its_checkpoint():
    summary, folder = quick_run("dataset=sprites", *PART, "dataset.label=x", "model=conditional", "model.z_dim=2")
    assert summary["state"] == "finished"
    trained = vae_exp.load(folder)
    assert trained.class_names == ["0", "10", "21", "31"]
    assert trained.read_data().train.factors.sizes == [3, 2, 3, 4, 5]


def test_a_checkpoint_may_not_name_code_inside_the_factors():
    config = build.check(compose("dataset=sprites"))
    settings = config["dataset"]
    targets.check_foreign(config, "dataset")
    build.check_dataset(config)
    for inner in ({"_target_": "os.system"}, {"shape": {"_partial_": True}}, {1: 2}):
        with pytest.raises(UserError, match="is not a _target_ with plain values"):
            targets.check_foreign({"dataset": settings | {"factors": inner}}, "dataset")


def test_factors_of_ones_own_are_checked():
    x, y = torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.zeros(4, dtype=torch.long)
    table = torch.tensor([[0, 1], [1, 0], [0, 2], [1, 1]])

    def made(factors):
        split = Split(x, y, factors=factors)
        return Source("own", split, lambda: split, [])

    assert require_source(made(Factors(table, ["a", "b"], [2, 3])), "own.made").train.factors is not None
    for factors, says in [
        (table, r"not torch.Tensor of int64 \[4, 2\]"),
        (Factors(table[:3], ["a", "b"], [2, 3]), r"not .* \[3, 2\]"),
        (Factors(table.float(), ["a", "b"], [2, 3]), r"not .*float32"),
        (Factors(table, ["a", "b"], [2]), r"\['a', 'b'\], \[2\]"),
        (Factors(table, ["a", "a"], [2, 3]), r"with F different names, not .*\['a', 'a'"),
        (Factors(table, ["a", 1], [2, 3]), r"with F different names, not .*\['a', 1"),
        (Factors(table, ["a", "b"], [2, 2]), r"from 0 to below F sizes.*\[2, 2\]"),
    ]:
        with pytest.raises(UserError, match=f"the factors of train must be a vae_exp.datasets.Factors.*{says}"):
            require_source(made(factors), "own.made")


class Explodes:
    """What a pickled array may hold."""

    def __reduce__(self):
        return exec, ("raise SystemExit('a pickle was run')",)


def publish(monkeypatch, source, folder, sizes, **arrays):
    """A small file in the layout of a published one, whose grid and checksum are then the known ones; its path."""
    known = factor_files.KNOWN[source]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / known.file
    if path.suffix == ".npz":
        np.savez_compressed(path, **arrays)
    else:
        h5py = pytest.importorskip("h5py", reason="h5py is not installed: it reads Shapes3D")
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                file.create_dataset(name, data=array, compression="gzip")
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setitem(factor_files.KNOWN, source, dataclasses.replace(known, sizes=sizes, md5=md5))
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder.parent / "cache"))  # other tests publish the same file
    return path


def publish_dsprites(monkeypatch, folder):
    sizes = {"shape": 3, "scale": 2, "orientation": 4, "x": 2, "y": 3}
    images = np.random.default_rng(0).integers(0, 2, (144, 64, 64), dtype=np.uint8)
    metadata = np.array({"author": Explodes()}, dtype=object)
    return publish(monkeypatch, "dsprites", folder, sizes, imgs=images, metadata=metadata), images


def in_order(source):
    """All images of a source and their factors, in the order of the file."""
    splits = source.train, source.read_test()
    table, images = (torch.cat([f(split) for split in splits]) for f in (lambda s: s.factors.table, lambda s: s.x))
    order = sorted(range(len(table)), key=lambda row: table[row].tolist())
    return images[order].numpy(), table[order].tolist()


def test_dsprites_as_published(tmp_path, monkeypatch):
    path, images = publish_dsprites(monkeypatch, tmp_path / "dsprites")
    source = dsprites("dsprites", str(tmp_path), test_size=20)
    assert (len(source.train), len(source.read_test()), source.class_names) == (124, 20, ["square", "ellipse", "heart"])
    found, table = in_order(source)
    np.testing.assert_array_equal(found[:, 0], images * 255)
    assert table == np.indices((3, 2, 4, 2, 3)).reshape(5, -1).T.tolist()
    assert list((tmp_path / "dsprites").iterdir()) == [path], "nothing is written beside it"
    path.unlink()  # what was unpacked is enough
    part, table = in_order(
        dsprites("dsprites", str(tmp_path), {"shape": [2], "orientation": 3}, label="y", test_size=5)
    )
    expected = images.reshape(3, 2, 4, 2, 3, 64, 64)[2:, :, [0, 1, 2]].reshape(-1, 64, 64)
    np.testing.assert_array_equal(part[:, 0], expected * 255)
    assert table[-1] == [0, 1, 2, 1, 2], "numbered within the part"
    path.write_bytes(b"cut off")
    dsprites("dsprites", str(tmp_path), test_size=5)  # found by the checksum that the file must have
    with pytest.raises(UserError, match="is damaged"):
        dsprites("dsprites", str(tmp_path), test_size=5, cache="another")
    (unpacked,) = (tmp_path / "cache" / "vae_exp" / "unpacked").iterdir()
    assert unpacked.stat().st_size == 144 * 64 * 64


def test_other_files_than_the_published_are_refused(tmp_path, monkeypatch):
    path, _ = publish_dsprites(monkeypatch, tmp_path / "dsprites")
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    with pytest.raises(UserError, match="is damaged: of another checksum"):
        dsprites("dsprites", str(tmp_path))
    assert list((tmp_path / "dsprites").iterdir()) == [path]
    assert not (tmp_path / "cache" / "vae_exp" / "unpacked").exists(), "nothing is unpacked"


@pytest.mark.slow  # torchvision, which downloads, takes seconds to import
def test_a_published_file_is_downloaded_once_and_checked(tmp_path, monkeypatch):
    path, images = publish_dsprites(monkeypatch, tmp_path / "mirror")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path / "mirror")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        known = factor_files.KNOWN["dsprites"]
        here = dataclasses.replace(known, url=f"http://127.0.0.1:{server.server_port}/{path.name}")
        monkeypatch.setitem(factor_files.KNOWN, "dsprites", here)
        found, _ = in_order(dsprites("dsprites", str(tmp_path / "root")))
        np.testing.assert_array_equal(found[:, 0], images * 255)
        wrong = dataclasses.replace(here, md5="0" * 32)
        monkeypatch.setitem(factor_files.KNOWN, "dsprites", wrong)
        with pytest.raises(UserError, match=r"not found in .*other/dsprites, and it could not be downloaded") as error:
            dsprites("dsprites", str(tmp_path / "other"))
        server.shutdown()
    assert here.url in str(error.value)
    assert "dataset=sprites" in str(error.value)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("source", "make"), [("mpi3d_real", functools.partial(mpi3d, version="real")), ("shapes3d", shapes3d)]
)
def test_published_colour_images(tmp_path, monkeypatch, source, make):
    sizes = dict.fromkeys(factor_files.KNOWN[source].sizes, 2)
    n = 2 ** len(sizes)
    images = np.random.default_rng(0).integers(0, 256, (n, 64, 64, 3), dtype=np.uint8)
    publish(monkeypatch, source, tmp_path / source.removesuffix("_real"), sizes, images=images)
    monkeypatch.setattr(factor_files, "ROWS_AT_ONCE", 50)
    found, table = in_order(make(source, str(tmp_path), test_size=0.25))
    np.testing.assert_array_equal(found, images.transpose(0, 3, 1, 2))
    assert table == grid(list(sizes), list(sizes.values())).table.tolist()
    with pytest.raises(UserError, match=r"dataset.label=hat: it takes null or one of"):
        make(source, str(tmp_path), label="hat")


def test_shapes3d_without_h5py_says_what_to_install(tmp_path, monkeypatch):
    known = factor_files.KNOWN["shapes3d"]
    (tmp_path / "shapes3d").mkdir()
    (tmp_path / "shapes3d" / known.file).write_bytes(b"")
    monkeypatch.setitem(factor_files.KNOWN, "shapes3d", dataclasses.replace(known, md5=hashlib.md5(b"").hexdigest()))
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UserError, match=r"it needs h5py to read 3dshapes.h5: pip install 'vae_exp\[hdf5\]'"):
        shapes3d("shapes3d", str(tmp_path))
