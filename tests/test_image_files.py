"""What lies in image folders beside images: pipes, sockets, links without end, names of any letters."""

import json
import os
import shutil
import socket
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vae_exp
from tests.test_images import BLUE, RED, every, flat, folder
from vae_exp.datasets.image_folder import list_images, read_images
from vae_exp.errors import UserError, printable

NAMES = [
    "a\u3000b",
    "line\nbreak",
    "\U0001f431",
    "\u200f\u05e9\u05dc\u05d5\u05dd",
    "café",
    "中国",
    os.fsdecode(b"caf\xe9"),
]
QUICKLY = ("epochs=1", "device=cpu", "wandb.mode=disabled", "network.hidden_dims=[8]", "model.z_dim=3")
TINY = ("dataset=image_folder", "dataset.image_size=8", "dataset.cache=cache", "likelihood=gaussian")


def strange_things(root):
    """Five images, and everything else that may have an image's name; the names of what is no file."""
    for i in range(5):
        flat(root / f"good{i}.png")
    os.mkfifo(root / "pipe.png")
    listener = socket.socket(socket.AF_UNIX)
    here = Path.cwd()
    os.chdir(root)  # a socket's path is short
    listener.bind("socket.png")
    os.chdir(here)
    (root / "dangling.png").symlink_to("nowhere.png")
    (root / "loop.png").symlink_to("loop.png")
    (root / "device.png").symlink_to("/dev/zero")
    (root / "folder.png").mkdir()
    (root / "itself").symlink_to(root)
    (root / "above").symlink_to(root.parent)
    (root / "round").symlink_to("round")
    return ["pipe.png", "socket.png", "dangling.png", "loop.png", "device.png"]


def test_only_files_are_opened_and_all_else_is_left_out_and_named(tmp_path, caplog):
    names = strange_things(tmp_path / "mine")
    data = folder(tmp_path / "mine")
    assert len(every(data)) == 5
    assert data.n_classes == 0, "a link to the folder itself is no class"
    assert "left out 5 of 10 files" in caplog.text
    for name in names:
        assert f"{name}: not a file" in caplog.text
        with pytest.raises(UserError, match=f"{name}: not a file|there is no such file"):
            read_images(tmp_path / "mine" / name, (3, 8, 8))
    assert len(read_images(tmp_path / "mine", (3, 8, 8))[0]) == 5
    with pytest.raises(UserError, match=r"dangling.png: not a file.*dataset.on_error=skip leaves"):
        folder(tmp_path / "mine", on_error="fail")
    flat(tmp_path / "mine" / "nowhere.png")
    assert len(every(folder(tmp_path / "mine"))) == 7, "a link that has found its end is another folder's content"


@pytest.mark.parametrize("damaged", ["images.uint8", "about.json", "about.json of another", "depths", "folder"])
def test_a_damaged_cache_is_made_anew(tmp_path, caplog, damaged):
    for i in range(4):
        flat(tmp_path / "mine" / f"{i}.png", (60 * i, 0, 0))
    (tmp_path / "mine" / "bad.png").write_text("no")
    before = every(folder(tmp_path / "mine"))
    (cache,) = (path for path in tmp_path.rglob("image_cache/*") if path.is_dir())
    if damaged == "images.uint8":
        os.truncate(cache / damaged, 100)
    elif damaged == "about.json":
        (cache / damaged).write_text('{"unusable": ')
    elif damaged == "about.json of another":
        (cache / "about.json").write_text('{"unusable": {"0": "no", "3": "no"}}')
    elif damaged == "depths":
        (cache / "about.json").write_text('{"unusable": {"0": "no"}, "depths": {"7-bit": 1}}')
    else:
        shutil.rmtree(cache)
        cache.mkdir()
    assert torch.equal(every(folder(tmp_path / "mine")), before)
    assert ("damaged, so the images are decoded anew" in caplog.text) == (damaged != "folder")
    assert (cache / "about.json").is_file()


@pytest.mark.parametrize("pixel", [float("nan"), float("inf"), float("-inf")])
def test_an_image_whose_pixels_are_no_numbers_is_left_out_and_named(tmp_path, caplog, pixel):
    for i in range(4):
        flat(tmp_path / "mine" / f"{i}.png")
    pixels = np.full((8, 8), 0.5, dtype=np.float32)
    Image.fromarray(pixels).save(tmp_path / "mine" / "sound.tiff")
    pixels[3, 3] = pixel
    Image.fromarray(pixels).save(tmp_path / "mine" / "odd.tiff")
    assert len(every(folder(tmp_path / "mine"))) == 5
    assert "odd.tiff: pixels that are not finite numbers" in caplog.text


@pytest.mark.slow
def test_a_command_does_not_wait_at_a_pipe(tmp_path, vae_train):
    strange_things(tmp_path / "mine")
    code, printed = vae_train(*TINY, "dataset.root=mine", *QUICKLY)
    assert code == 0, printed
    assert "pipe.png: not a file" in printed


def test_links_to_folders_elsewhere_are_classes(tmp_path):
    for i in range(4):
        flat(tmp_path / "elsewhere" / f"{i}.png", RED)
        flat(tmp_path / "mine" / "here" / f"{i}.png", BLUE)
    (tmp_path / "mine" / "there").symlink_to(tmp_path / "elsewhere")
    assert {file.split("/")[0] for file in list_images(tmp_path / "mine")} == {"here", "there"}


def test_names_are_on_one_line_and_others_stay_as_they_are():
    assert [printable(name) for name in ("cat", "café", "中国", "العربية", "a b")] == [
        "cat",
        "café",
        "中国",
        "العربية",
        "a b",
    ]
    assert printable("a\u3000b\u00a0c") == "a b c"
    assert printable("a\nb\x1b[2J\u200f") == r"a\nb\x1b[2J\u200f"
    assert printable(os.fsdecode(b"\xe9")) == r"\udce9"


@pytest.mark.slow
def test_class_folders_of_any_name_are_trained_evaluated_and_generated(tmp_path, vae_command):
    """In a folder whose own path has wide spaces."""
    root = tmp_path / "my\u3000own\u00a0images"
    for name in NAMES:
        for i in range(6):
            flat(root / name / f"{i}.png", (40 * i, 10, 10))
        (root / name / "bad.png").write_text("no")
    code, said = vae_command(
        "vae-train", *TINY, f"dataset.root='{root}'", "model=conditional", "hydra.run.dir=run", *QUICKLY
    )
    assert code == 0, said
    names = vae_exp.load("run").class_names
    assert sorted(names) == sorted(map(printable, NAMES))
    assert len(json.loads(Path("run/summary.json").read_text())) > 3
    code, said = vae_command("vae-evaluate", "checkpoint=run", "wandb.mode=disabled")
    assert code == 0, said
    assert said.count("left out") == 1
    for what in ("classes", "samples", "reconstructions"):
        code, said = vae_command("vae-generate", "checkpoint=run", f"what={what}")
        assert code == 0, said
    model = vae_exp.load("run")
    for typed, name in (("a\u3000b", "a b"), ("line\nbreak", r"line\nbreak"), ("中国", "中国")):
        assert names[model.number(typed)] == name
    code, said = vae_command("vae-generate", "checkpoint=run", "label='a\u3000b'", f"output='{root}/out'")
    assert (code, len(list((root / "out").iterdir()))) == (0, 1), said


def test_a_label_by_its_folders_name(tmp_path):
    for name in ("a\u3000b", "c"):
        for i in range(6):
            flat(tmp_path / "mine" / name / f"{i}.png", RED if name == "c" else BLUE)
    data = folder(tmp_path / "mine", labels=["a\u3000b"])
    assert data.class_names == ["a b"]
    assert (every(data)[:, 2] == 255).all()
    (tmp_path / "mine" / "c").rename(tmp_path / "mine" / unicodedata.normalize("NFD", "caf\u00e9"))  # as macOS has it
    assert folder(tmp_path / "mine", labels=["caf\u00e9"]).class_names == ["caf\u00e9"]


def test_own_images_come_with_their_class_folders(tmp_path):
    flat(tmp_path / "mine" / "red" / "deeper" / "1.png", RED)
    flat(tmp_path / "mine" / "blue" / "1.png", BLUE)
    flat(tmp_path / "mine" / "0.png", BLUE)
    x, files = read_images(tmp_path / "mine", (3, 8, 8))
    assert files == ["0.png", "blue/1.png", "red/deeper/1.png"]
    np.testing.assert_array_equal(x[2, :, 0, 0], torch.tensor(RED))
