"""Images of one's own: whatever Pillow opens, folders of them, their cache, and training on it."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import vae_exp
from tests import hooks
from tests.conftest import compose
from vae_exp.config import build
from vae_exp.datasets.image_folder import image_folder, read_images
from vae_exp.datasets.prepare import prepare
from vae_exp.datasets.splits import Streamed, batches
from vae_exp.datasets.torchvision import celeba
from vae_exp.errors import UserError
from vae_exp.train import train

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def flat(path, colour=RED, size=(12, 12), mode="RGB", **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, **how)


def folder(root, cache="cache", **changes):
    own = {"image_size": 8, "channels": 3, "crop": None, "test_size": 0.2, "on_error": "skip", "white": None}
    own["cache"] = None if cache is None else str(cache)
    shared = {key: changes.pop(key) for key in list(changes) if key not in own}
    return prepare(image_folder("image_folder", str(root), **own | changes), **({"val_size": 0.25, "seed": 0} | shared))


def every(data):
    return torch.cat([split.x for split in (data.train, data.val, data.read_test())])


def draw_shapes(root, n=24):
    """Circles and boxes of every size and mode, a folder for each."""
    for i in range(n):
        image = Image.new("RGB", (20 + 5 * i, 90 - 3 * i), (10 * i, 40, 80))
        kind = ("circle", "box")[i % 2]
        draw = getattr(ImageDraw.Draw(image), "ellipse" if i % 2 == 0 else "rectangle")
        draw((5, 5, image.width - 6, image.height - 6), fill=(250 - 5 * i, 200, i))
        (root / kind).mkdir(parents=True, exist_ok=True)
        mode, ending = [("RGB", "jpg"), ("P", "png"), ("RGBA", "png"), ("L", "bmp"), ("CMYK", "jpg"), ("1", "png")][
            i % 6
        ]
        image.convert(mode).save(root / kind / f"{i:02}.{ending}")


@pytest.mark.parametrize("model", ["vanilla", "conditional"])
@pytest.mark.parametrize("device_memory", ["2GB", "0"])
def test_a_run_on_ones_own_images(tmp_path, model, device_memory):
    draw_shapes(tmp_path / "mine")
    arguments = ["dataset=image_folder", "dataset.root=mine", "dataset.image_size=[6,10]", "dataset.cache=cache"]
    arguments += [
        f"model={model}",
        f"dataset.device_memory={device_memory}",
        "dataset.flip=true",
        "likelihood=gaussian",
    ]
    arguments += [
        "epochs=20",
        "figure_every_epochs=20",
        "batch_size=8",
        "device=cpu",
        "wandb.mode=disabled",
        "network.hidden_dims=[16]",
    ]
    summary = train(compose(*arguments), Path("run"))
    assert summary["x_shape"] == [3, 6, 10]
    assert (summary["train_size"], summary["val_size"]) == (20, 2)
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    measured = [row["val/neg_elbo"] for row in rows if "val/neg_elbo" in row]
    assert measured[-1] < 0.7 * measured[0]
    assert Image.open(sorted(Path("run/images").glob("samples*"))[-1]).mode == "RGB"


def test_a_folder_per_class_names_the_labels(tmp_path):
    for i in range(10):
        flat(tmp_path / "mine" / "red" / f"{i}.png", RED)
        flat(tmp_path / "mine" / "blue" / "deeper" / f"{i}.png", BLUE)
        flat(tmp_path / "mine" / "green" / f"{i}.png", GREEN)
    data = folder(tmp_path / "mine")
    assert (data.n_classes, data.class_names) == (3, ["blue", "green", "red"])
    assert (len(data.train), len(data.val), len(data.read_test())) == (18, 6, 6)
    for split in (data.train, data.val, data.read_test()):
        for x, y in zip(split.x, split.y, strict=True):
            assert x.amax((1, 2)).tolist() == list((BLUE, GREEN, RED)[y])
    two = folder(tmp_path / "mine", labels=["red", "blue"])
    assert (two.class_names, len(every(two))) == (["blue", "red"], 20)
    other = folder(tmp_path / "mine", seed=1)
    assert torch.equal(other.read_test().x, data.read_test().x), "the test split is the same for every seed"


def test_train_val_and_test_folders_are_kept_apart(tmp_path):
    for part, colour, n in (("train", RED, 7), ("val", GREEN, 3), ("test", BLUE, 2)):
        for i in range(n):
            flat(tmp_path / part / f"{i}.png", colour)
    data = folder(tmp_path)
    for split, colour, n in ((data.train, RED, 7), (data.val, GREEN, 3), (data.read_test(), BLUE, 2)):
        assert torch.equal(split.x, torch.tensor(colour, dtype=torch.uint8)[:, None, None].expand(n, 3, 8, 8))
    assert len(folder(tmp_path, val_size=0).val) == 0


@pytest.mark.parametrize("name", ["valid", "validation", "dev"])
def test_a_folder_of_validation_images_has_many_names(tmp_path, caplog, name):
    for part, colour, n in (("train", RED, 7), (name, GREEN, 3), ("test", BLUE, 2), (".hidden", BLUE, 1)):
        for i in range(n):
            flat(tmp_path / part / f"{i}.png", colour)
    data = folder(tmp_path)
    assert [len(split) for split in (data.train, data.val, data.read_test())] == [7, 3, 2]
    assert (data.val.x[:, 1] == 255).all()
    assert caplog.text == "", "all is read"
    flat(tmp_path / "val" / "0.png")
    with pytest.raises(UserError, match=f"val/ and {name}/ beside train/: which are the validation images"):
        folder(tmp_path)


def test_images_that_nobody_reads_are_told(tmp_path, caplog):
    for place, n in (("train", 7), ("extra/deep", 3), ("Test", 2), (".", 1), ("docs", 0)):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        for i in range(n):
            flat(tmp_path / place / f"{i}.png")
    (tmp_path / "docs" / "notes.txt").write_text("none")
    assert len(every(folder(tmp_path))) == 7
    assert "images beside train/ that are not read: 2 in Test/, 3 in extra/, 1 in no folder" in caplog.text
    assert "docs" not in caplog.text
    caplog.clear()
    (tmp_path / "train").rename(tmp_path / "Train")
    folder(tmp_path)
    assert "Test/, Train/ taken for classes, as there is no train/" in caplog.text


def unreadable(path):
    """A folder that no system call can list, not root's either: its path is longer than a path may be."""
    path.mkdir()
    here = os.open(path, os.O_RDONLY)
    for _ in range(20):
        os.mkdir("n" * 250, dir_fd=here)
        deeper = os.open("n" * 250, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = deeper
    os.close(here)


@pytest.mark.parametrize("how", ["too long", "no permission"])
def test_a_folder_that_cannot_be_read_is_told_or_refused(tmp_path, caplog, how):
    for name in ("red", "blue", "green"):
        for i in range(4):
            flat(tmp_path / "mine" / name / f"{i}.png")
    place = tmp_path / "mine" / "red"
    if how == "no permission":
        if os.geteuid() == 0:
            pytest.skip("root may read every folder")
        place.chmod(0)
    else:
        unreadable(place / "deeper")
    try:
        data = folder(tmp_path / "mine")
        assert "left out 1 folder in" in caplog.text
        assert f"\n  red{'/deeper/nnn' if how == 'too long' else ': Permission denied'}" in caplog.text
        assert ("red" in data.class_names) == (how == "too long")
        with pytest.raises(UserError, match=r"mine: red.*dataset.on_error=skip leaves such folders out"):
            folder(tmp_path / "mine", on_error="fail")
        caplog.clear()
        assert len(read_images(tmp_path / "mine", (3, 8, 8))[0]) == len(every(data))
        assert "left out 1 folder in" in caplog.text
    finally:
        place.chmod(0o700)


def test_a_conditional_model_needs_class_folders(tmp_path):
    for i in range(9):
        flat(tmp_path / "mine" / f"{i}.png")
    flat(tmp_path / "mine" / "some" / "more.png")
    arguments = ("dataset=image_folder", "dataset.root=mine", "dataset.cache=cache", "dataset.image_size=8")
    assert build.dataset(build.check(compose(*arguments))).n_classes == 0
    with pytest.raises(UserError, match=r"model.conditional=true: dataset=image_folder has no labels here"):
        train(compose(*arguments, "model=conditional", "device=cpu"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def decoded(path, channels=3, size=8):
    return read_images(path, (channels, size, size))[0][0]


def test_transparent_parts_are_white_in_every_mode_that_has_them(tmp_path):
    half = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    half.paste((*RED, 255), (0, 0, 16, 8))
    half.save(tmp_path / "rgba.png")
    half.convert("LA").save(tmp_path / "la.png")
    half.convert("P").save(tmp_path / "p.png", transparency=half.convert("P").getpixel((0, 15)))
    for name in ("rgba", "la", "p"):
        x = decoded(tmp_path / f"{name}.png")
        assert (x[:, 5:] > 250).all(), name
        assert x[1, :3].float().mean() < 100, name


def test_modes(tmp_path):
    grey = np.tile(np.linspace(0, 1, 32)[None], (32, 1))
    Image.fromarray((grey * 65535).astype(np.uint16)).save(tmp_path / "16.png")
    Image.fromarray((grey * 65535).astype(np.int32)).save(tmp_path / "32.tif")
    Image.fromarray(grey.astype(np.float32)).save(tmp_path / "f.tif")
    Image.fromarray((grey * 255).astype(np.uint8)).save(tmp_path / "8.png")
    wanted = decoded(tmp_path / "8.png", 1, 32).int()
    for name in ("16.png", "32.tif", "f.tif"):
        assert (decoded(tmp_path / name, 1, 32).int() - wanted).abs().max() <= 1, name
    flat(tmp_path / "cmyk.jpg", (0, 255, 255, 0), mode="CMYK")
    assert decoded(tmp_path / "cmyk.jpg")[:, 4, 4].tolist() == pytest.approx(list(RED), abs=3)
    flat(tmp_path / "bits.png", 1, mode="1")
    assert (decoded(tmp_path / "bits.png") == 255).all()
    flat(tmp_path / "palette.gif", RED)
    assert decoded(tmp_path / "palette.gif")[:, 4, 4].tolist() == list(RED)


DEEP = [  # the kind of pixels, the brightest, what says which is white, and that white
    (np.uint16, 255, None, 65535),
    (np.uint16, 260, None, 65535),
    (np.uint16, 65535, None, 65535),
    (np.uint16, 4095, 4095, 4095),
    (np.uint16, 5000, 4095, 4095),
    (np.int32, 40_000, None, 65535),
    (np.int32, 1_000_000, 1_000_000, 1_000_000),
    (np.float32, 0.3, None, 1),
    (np.float32, 1, None, 1),
    (np.float32, 1.01, 1, 1),
    (np.float32, 200, 255, 255),
]


@pytest.mark.parametrize(("dtype", "brightest", "white", "taken"), DEEP)
def test_what_is_white_in_a_deep_grey_is_never_guessed_from_the_image(tmp_path, dtype, brightest, white, taken):
    """A ramp from black to the brightest pixel, whose right values are its own, divided by white."""
    ramp = np.tile(np.linspace(0, brightest, 16), (16, 1)).astype(dtype)
    right = np.minimum(ramp.astype(np.float64) / taken, 1) * 255
    for i in range(4):
        (tmp_path / "mine").mkdir(exist_ok=True)
        Image.fromarray(ramp).save(tmp_path / "mine" / f"{i}.tif")
    data = folder(tmp_path / "mine", image_size=16, channels=1, white=white)
    assert np.abs(every(data).numpy() - right).max() <= 0.5
    own = read_images(tmp_path / "mine" / "0.tif", (1, 16, 16), white=white)[0]
    assert torch.equal(own[0], data.train.x[0]), "read for a trained model as for training"


@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [(np.float32, 0, 255), (np.float32, 0, 1.01), (np.float32, -1, 1), (np.int32, 0, 70_000), (np.int32, -5, 5)],
)
def test_deep_greys_outside_of_black_and_white_need_a_word(tmp_path, dtype, low, high):
    """Also where files that cannot be used are left out: the scale would be wrong in all of them."""
    (tmp_path / "mine").mkdir()
    for i in range(4):
        pixels = np.linspace(low if i == 3 else 0, high if i == 3 else 1, 256).reshape(16, 16).astype(dtype)
        Image.fromarray(pixels).save(tmp_path / "mine" / f"{i}.tif")
    with pytest.raises(UserError, match=f"3.tif: its pixels go from {low} to {high}.*such as dataset.white=255"):
        folder(tmp_path / "mine", channels=1)
    with pytest.raises(UserError, match=r"3.tif: its pixels go from"):
        read_images(tmp_path / "mine", (1, 8, 8))
    assert len(every(folder(tmp_path / "mine", channels=1, white=high))) == 4


@pytest.mark.slow
def test_white_is_the_trained_models_too_and_is_said_once(tmp_path, vae_command):
    (tmp_path / "mine").mkdir()
    for i in range(12):
        Image.fromarray(np.full((8, 8), 341 * (i + 1), np.uint16)).save(tmp_path / "mine" / f"{i:02}.png")
    typed = ("dataset=image_folder", "dataset.root=mine", "dataset.image_size=8", "dataset.channels=1")
    typed += ("network.hidden_dims=[8]", "likelihood=gaussian", "epochs=1", "device=cpu", "wandb.mode=disabled")
    code, said = vae_command("vae-train", *typed, "dataset.white=4095", "hydra.run.dir=run")
    assert code == 0, said
    assert "12 16-bit images: 4095 (dataset.white=4095)" in said
    assert said.count("images: 4095") == 1
    x = torch.full((1, 1, 8, 8), 85, dtype=torch.uint8)  # of the fourth: 1364 / 4095 is a third
    assert any(torch.equal(image, x[0]) for image in every(vae_exp.load("run").read_data()))
    asked = ("checkpoint=run", "what=reconstructions", "inputs=mine/03.png", "format=npz", "output=out")
    assert vae_command("vae-generate", *asked)[0] == 0
    (made,) = Path("out").iterdir()
    expected = vae_exp.load("run").reconstruct(x).clamp(0, 1).mul(255).round().numpy()
    np.testing.assert_allclose(np.load(made)["x"], expected, atol=1)
    code, said = vae_command("vae-train", *typed, "hydra.run.dir=other")
    assert "12 16-bit images: 65535 (dataset.white=null)" in said, "another cache"
    for wrong in ("0", "-1", "a"):
        code, said = vae_command("vae-train", *typed, f"dataset.white={wrong}")
        assert code == 1
        assert f"dataset.white={wrong}: it takes a number above 0" in said


def test_white_without_deep_greys_is_told_to_change_nothing(tmp_path, caplog):
    caplog.set_level("INFO")
    for i in range(4):
        flat(tmp_path / "mine" / f"{i}.png")
    folder(tmp_path / "mine", white=4095)
    assert "dataset.white=4095: changes nothing" in caplog.text


def test_photos_stand_upright_and_their_middle_is_kept(tmp_path):
    wide = Image.new("RGB", (60, 20), BLUE)
    wide.paste(RED, (20, 0, 40, 20))
    wide.save(tmp_path / "wide.png")
    assert (decoded(tmp_path / "wide.png")[0] > 200).all(), "the middle third"
    lying = Image.new("RGB", (32, 32), BLUE)
    lying.paste(RED, (0, 0, 32, 16))
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned by a quarter, clockwise
    lying.save(tmp_path / "exif.png", exif=turned)
    x = decoded(tmp_path / "exif.png")
    assert (x[0, :, 6:] > 200).all()
    assert (x[2, :, :2] > 200).all()
    many = Image.new("RGB", (100, 100), BLUE)
    many.paste(RED, (40, 40, 60, 60))
    many.save(tmp_path / "middle.png")
    assert (read_images(tmp_path / "middle.png", (3, 8, 8), crop=20)[0][0, 0] == 255).all()


def test_a_users_own_images_come_in_the_order_of_their_names(tmp_path, caplog):
    for i in (3, 1, 2):
        flat(tmp_path / f"{i}.png", (80 * i, 0, 0))
    (tmp_path / "notes.txt").write_text("not an image")
    x, files = read_images(tmp_path, (1, 5, 7))
    assert files == ["1.png", "2.png", "3.png"]
    assert (x.shape, x.dtype) == ((3, 1, 5, 7), torch.uint8)
    assert x[:, 0, 0, 0].tolist() == sorted(x[:, 0, 0, 0].tolist())
    (tmp_path / "0.png").write_bytes(b"no")
    assert torch.equal(read_images(tmp_path, (1, 5, 7))[0], x), "left out, as in training"
    assert "left out 1 of 4 files" in caplog.text
    assert "0.png: not an image that Pillow can read" in caplog.text
    with pytest.raises(UserError, match=r"0.png: not an image that Pillow can read"):
        read_images(tmp_path / "0.png", (1, 5, 7))
    (tmp_path / "alone").mkdir()
    (tmp_path / "0.png").rename(tmp_path / "alone" / "0.png")
    with pytest.raises(UserError, match=r"alone: none of its 1 images can be used; 0.png: not an image"):
        read_images(tmp_path / "alone", (1, 5, 7))
    with pytest.raises(UserError, match="no such file or folder"):
        read_images(tmp_path / "nowhere", (1, 5, 7))


def damaged(root):
    """Five good images and every kind of bad one."""
    for i in range(5):
        flat(root / f"good{i}.png")
    Image.effect_noise((64, 64), 50).save(root / "whole.jpg")
    (root / "cut.jpg").write_bytes((root / "whole.jpg").read_bytes()[:700])
    (root / "whole.jpg").unlink()
    (root / "text.png").write_text("hello")
    (root / "empty.gif").write_bytes(b"")
    flat(root / "tiny.png", size=(1, 1))
    return ["cut.jpg", "text.png", "empty.gif", "tiny.png"]


def test_what_cannot_be_used_is_named_and_left_out_or_ends_the_run(tmp_path, caplog, monkeypatch):
    bad = damaged(tmp_path / "mine")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5000)
    flat(tmp_path / "mine" / "zbomb.png", size=(200, 200))
    bad.append("zbomb.png")
    assert len(every(folder(tmp_path / "mine"))) == 5
    assert "left out 5 of 10 files" in caplog.text
    assert all(f"  {name}: " in caplog.text for name in bad)
    caplog.clear()
    assert len(every(folder(tmp_path / "mine"))) == 5, "from the cache"
    assert "left out 5 of 10 files" in caplog.text
    assert caplog.text.count("\n") == 1, "the list has been told"
    (named,) = Path("cache").rglob("left_out.txt")
    assert f"all of them are named in {named}" in caplog.text
    assert sorted(line.split(": ")[0] for line in named.read_text().splitlines()) == sorted(bad)
    with pytest.raises(UserError, match=r"cut.jpg: .*truncated.*dataset.on_error=skip leaves such files out"):
        folder(tmp_path / "mine", on_error="fail")
    with pytest.raises(UserError, match=r"cut.jpg: .*truncated"):
        folder(tmp_path / "mine", cache="another", on_error="fail")
    assert not list(Path("another").rglob("*"))


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (None, "there is no such folder"),
        ([], "no images in it"),
        ([(12, 12)], "has 1 usable image; training and testing need at least one each"),
        ([(1, 1)] * 4, "none of its 4 images can be used; 0.png: 1x1 pixels are too few for 8x8"),
        ([(12, 12)] * 2, "has 1 training images; leave at least one"),
    ],
)
def test_too_few_images_are_a_clear_message(tmp_path, images, said):
    for i, size in enumerate(images or []):
        flat(tmp_path / "mine" / f"{i}.png", size=size)
    if images is not None:
        (tmp_path / "mine").mkdir(exist_ok=True)
    with pytest.raises(UserError, match=said):
        folder(tmp_path / "mine")


def when_read(act, ending=".png"):
    """act(name) as an image file is opened for reading by Pillow; its key takes some of its bytes in another way."""

    def opened(event, arguments):
        if event == "open" and str(arguments[0]).endswith(ending) and "r" in str(arguments[1]):
            act(Path(arguments[0]).name)

    return hooks.at_call(opened)


def test_a_second_run_decodes_nothing_and_a_changed_file_or_setting_does(tmp_path):
    for i in range(8):
        flat(tmp_path / "mine" / f"{i}.png", (30 * i, 0, 0))
    read = []
    with when_read(read.append):
        first = every(folder(tmp_path / "mine"))
        assert len(read) == 8
        assert torch.equal(every(folder(tmp_path / "mine")), first)
        assert len(read) == 8
        every(folder(tmp_path / "mine", image_size=6))
        every(folder(tmp_path / "mine", channels=1))
        every(folder(tmp_path / "mine", crop=4))
        assert len(read) == 32
    flat(tmp_path / "mine" / "3.png", GREEN)
    os.utime(tmp_path / "mine" / "3.png", (1, 1))
    assert (every(folder(tmp_path / "mine"))[:, 1] == 255).any()


def photos(place, grey, n=8):
    """Images whose names, sizes and times of change are the same for every grey, as an archive unpacks them."""
    for i in range(n):
        flat(Path(place) / f"{i}.bmp", (grey, grey, i))
        os.utime(Path(place) / f"{i}.bmp", ns=(10**18 + 5, 10**18 + 5))


def test_a_cache_is_found_by_what_the_files_hold_wherever_they_lie():
    photos("v1/photos", 255)
    photos("v2/photos", 40)
    assert (every(folder("v1/photos"))[:, 0] == 255).all()
    second = every(folder("v2/photos"))
    assert (second[:, 0] == 40).all(), "another folder of that name"
    Path("v2/photos").rename("elsewhere")
    with when_read(lambda name: pytest.fail(f"{name} is decoded again"), ".bmp"):
        assert torch.equal(every(folder("elsewhere")), second)
    assert len(list(Path("cache/image_cache").iterdir())) == 2
    os.utime("elsewhere/3.bmp", ns=(10**18, 10**18 + 6))  # a nanosecond later
    folder("elsewhere")
    assert len(list(Path("cache/image_cache").iterdir())) == 3
    photos("elsewhere", 41)  # in place, in the same session
    assert (every(folder("elsewhere"))[:, 0] == 41).all()


def test_the_cache_lies_in_the_users_cache_folder_and_is_named_once(tmp_path, monkeypatch, vae_train):
    monkeypatch.setenv("VAE_EXP_DATA", str(tmp_path / "shared"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    (tmp_path / "shared").mkdir()
    photos("mine", 7)
    typed = ("dataset=image_folder", "dataset.root=mine", "dataset.image_size=8", "network.hidden_dims=[8]")
    typed += ("likelihood=gaussian", "epochs=1", "device=cpu", "wandb.mode=disabled")
    code, said = vae_train(*typed)
    assert code == 0, said
    cache = tmp_path / "own" / "vae_exp" / "image_cache"
    assert said.count(str(cache)) == 1
    assert f"decoded images are cached in {cache} (dataset.cache=FOLDER: elsewhere)" in said
    assert len(list(cache.iterdir())) == 1
    assert list((tmp_path / "shared").iterdir()) == []
    code, said = vae_train(*typed, "dataset.cache=third")
    assert f"cached in {tmp_path}/third/image_cache" in said
    assert len(list(Path("third/image_cache").iterdir())) == 1


READ_WHEN_TOLD = """
import sys, time
from pathlib import Path
from vae_exp.datasets import image_folder

Path(f"ready{sys.argv[1]}").touch()
while not Path("go").exists():
    time.sleep(0.001)
source = image_folder("mine", "mine", 8, 3, None, 10, "skip", "cache")
print(int(source.train.x.sum()), len(source.train))
"""


@pytest.mark.slow  # two processes that import torch
def test_two_processes_may_make_a_cache_at_once():
    photos("mine", 100, n=200)
    started = [
        subprocess.Popen([sys.executable, "-c", READ_WHEN_TOLD, str(i)], stdout=subprocess.PIPE, text=True)
        for i in range(2)
    ]
    deadline = time.time() + 60
    while not all(Path(f"ready{i}").exists() for i in range(2)) and time.time() < deadline:
        time.sleep(0.01)
    Path("go").touch()
    said = [process.communicate(timeout=60)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    assert said[0] == said[1]
    assert said[0].split()[1] == "190"
    (cache,) = Path("cache/image_cache").iterdir()
    assert sorted(path.name for path in cache.iterdir()) == ["about.json", "images.uint8"]


@pytest.mark.parametrize("damaged", [False, True])
def test_another_process_that_was_quicker_is_no_error(tmp_path, damaged):
    photos("mine", 100)
    if damaged:
        folder("mine")
        (cache,) = Path("cache/image_cache").iterdir()
        os.truncate(cache / "images.uint8", 7)
    before = []

    def quicker(name):
        if name == "5.bmp" and not before:  # while it is decoded here, somebody else makes the whole cache
            before.append(None)
            before[0] = every(folder("mine"))

    with when_read(quicker, ".bmp"):
        slower = every(folder("mine"))
    assert torch.equal(slower, before[0])
    assert torch.equal(every(folder("mine")), before[0])
    assert len(list(Path("cache/image_cache").iterdir())) == 1


def test_a_cache_that_was_interrupted_is_not_used_and_leaves_nothing(tmp_path):
    for i in range(8):
        flat(tmp_path / "mine" / f"{i}.png")

    def stop_at_five(name):
        if name == "5.png":
            raise KeyboardInterrupt

    with when_read(stop_at_five), pytest.raises(KeyboardInterrupt):
        folder(tmp_path / "mine")
    assert not list(Path("cache").rglob("*"))
    killed = [Path("cache/image_cache/0123") / f"images.uint8.{name}.partial" for name in ("old", "new")]
    killed[0].parent.mkdir(parents=True)
    for partial in killed:
        partial.write_bytes(b"half")
    os.utime(killed[0], (time.time() - 1e5,) * 2)
    assert len(every(folder(tmp_path / "mine"))) == 8
    assert [partial.exists() for partial in killed] == [False, True], "another process may be writing the new one"


def test_a_cache_that_cannot_be_written_is_said(tmp_path):
    flat(tmp_path / "mine" / "0.png")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="the decoded images cannot be written there"):
        folder(tmp_path / "mine", cache=tmp_path / "file")


def test_images_that_are_streamed_are_those_in_memory(tmp_path):
    draw_shapes(tmp_path / "mine")
    here, streamed = folder(tmp_path / "mine"), folder(tmp_path / "mine", device_memory=100)
    assert isinstance(streamed.train.images, Streamed)
    assert not isinstance(here.train.images, Streamed)
    a, b = (
        list(batches(d.train.to(torch.device("cpu")), 5, torch.Generator().manual_seed(1))) for d in (here, streamed)
    )
    assert all(torch.equal(x1, x2) and torch.equal(y1, y2) for (x1, y1), (x2, y2) in zip(a, b, strict=True))
    assert torch.equal(every(here), every(streamed))
    with pytest.raises(UserError, match=r"dataset.binarize: .* more than dataset.device_memory"):
        folder(tmp_path / "mine", device_memory=100, binarize="static")


def test_celeba_has_its_own_splits_and_an_attribute_as_label(tmp_path, monkeypatch):
    from torchvision.datasets import CelebA

    base = tmp_path / "celeba"
    for i in range(10):
        flat(base / "img_align_celeba" / f"{i}.jpg", (25 * i, 0, 0), size=(178, 218))
    rows = {
        "list_eval_partition.txt": [f"{i}.jpg {(0, 0, 0, 0, 0, 0, 1, 1, 2, 2)[i]}" for i in range(10)],
        "identity_CelebA.txt": [f"{i}.jpg 1" for i in range(10)],
        "list_bbox_celeba.txt": ["10", "image_id x y w h", *(f"{i}.jpg 0 0 1 1" for i in range(10))],
        "list_landmarks_align_celeba.txt": ["10", "a b", *(f"{i}.jpg 0 0" for i in range(10))],
        "list_attr_celeba.txt": ["10", "Male Smiling", *(f"{i}.jpg -1 {1 if i % 3 else -1}" for i in range(10))],
    }
    for name, lines in rows.items():
        (base / name).write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(CelebA, "_check_integrity", lambda self: True)
    how = {"root": str(tmp_path), "image_size": 16, "crop": 148, "on_error": "fail"}
    data = prepare(celeba("celeba", attribute="Smiling", **how), val_size=19867, seed=0)
    assert (data.x_shape, data.class_names) == ((3, 16, 16), ["not Smiling", "Smiling"])
    assert data.train.y.tolist() == [0, 1, 1, 0, 1, 1]
    assert [len(split) for split in (data.train, data.val, data.read_test())] == [6, 2, 2]
    assert data.read_test().x[1, 0, 8, 8] == pytest.approx(225, abs=3)
    assert prepare(celeba("celeba", attribute=None, **how), val_size=1, seed=0).n_classes == 0
    with pytest.raises(UserError, match=r"dataset.attribute=Happy: it takes null or one of Male, Smiling"):
        celeba("celeba", attribute="Happy", **how)
