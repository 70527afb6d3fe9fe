"""Images whose factors are known: how sprites are drawn, parts of their grid, and the table that travels with them."""

import math

import numpy as np
import pytest
import torch
from matplotlib.path import Path as Curve

import vae_exp
from tests.conftest import compose, quick_run
from vae_exp.config import build
from vae_exp.datasets import Factors, Source, Split, batches, prepare, sprites
from vae_exp.datasets.factors import chosen_values, grid
from vae_exp.datasets.sound import require_source
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
        ({"x": 33}, "dataset.factors.x=33: it has from 1 to 32 values"),
        ({"shape": [0, 3]}, r"dataset.factors.shape=\[0,3\]: it takes different numbers from 0 to 2"),
        ({"shape": [1, 1]}, r"dataset.factors.shape=\[1,1\]: it takes different"),
        ({"shape": []}, r"dataset.factors.shape=\[\]: it takes different"),
    ]:
        with pytest.raises(UserError, match=says):
            sprites("sprites", wrong)
    with pytest.raises(UserError, match=r"dataset.label=colour: it takes null or one of shape, scale"):
        sprites("sprites", SMALL, label="colour")
    with pytest.raises(UserError, match=r"dataset.test_size=360: there are 360 images"):
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
    build.check_foreign(config, "dataset")
    build.check_dataset(config)
    for inner in ({"_target_": "os.system"}, {"shape": {"_partial_": True}}, {1: 2}):
        with pytest.raises(UserError, match="is not a _target_ with plain values"):
            build.check_foreign({"dataset": settings | {"factors": inner}}, "dataset")


def test_factors_of_ones_own_are_checked():
    x, y = torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.zeros(4, dtype=torch.long)
    table = torch.tensor([[0, 1], [1, 0], [0, 2], [1, 1]])

    def made(factors):
        split = Split(x, y, factors=factors)
        return Source("own", split, lambda: split, [])

    assert require_source(made(Factors(table, ["a", "b"], [2, 3])), "own.made").train.factors is not None
    for factors, says in [
        (table, r"the factors of train must be a vae_exp.datasets.Factors, not torch.Tensor of int64 \[4, 2\]"),
        (Factors(table[:3], ["a", "b"], [2, 3]), r"must be a tensor of int64 \[4, 2\], not .* \[3, 2\]"),
        (Factors(table.float(), ["a", "b"], [2, 3]), r"must be a tensor of int64 \[4, 2\], not .*float32"),
        (Factors(table, ["a", "b"], [2]), "have 2 names and 1 sizes"),
        (Factors(table, ["a", "b"], [2, 2]), r"must be numbered from 0 to below their sizes \[2, 2\]"),
    ]:
        with pytest.raises(UserError, match=says):
            require_source(made(factors), "own.made")
