"""Which rows and classes a picture shows, and its letters."""

import logging
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import vae_exp
from tests.conftest import compose
from tests.test_images import flat
from vae_exp.figures import grids
from vae_exp.train import train

COLOURS = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0)]
GREEK, CYRILLIC, ARABIC = "Ελληνικά", "ракета", "العربية"
MISSING = "\U000e0041\u0b95"  # a tag and a Tamil letter: no font has both


def test_rows_in_turn_show_the_classes_one_after_the_other():
    y = torch.tensor([5, 5, 3, 5, 3, 9])
    assert grids.in_turn(y).tolist() == [0, 2, 5, 1, 4, 3]
    assert grids.in_turn(torch.tensor([], dtype=torch.long)).tolist() == []
    many = torch.randint(0, 7, (500,))
    rows = grids.in_turn(many)
    assert sorted(rows.tolist()) == list(range(500))
    for n in (1, 5, 7, 100):
        assert len(many[rows[:n]].unique()) == min(n, 7)


def test_the_first_rows_stay_where_they_show_every_class():
    mixed, ordered = torch.arange(100) % 10, torch.arange(100) // 10
    assert grids.rows(mixed, 32).tolist() == list(range(32))
    assert len(ordered[grids.rows(ordered, 32)].unique()) == 10
    assert len(ordered[grids.rows(ordered, 4)].unique()) == 4
    assert grids.rows(torch.zeros(5), 32).tolist() == list(range(5)), "without labels"
    assert grids.rows(torch.zeros(100), 4).tolist() == [0, 25, 50, 75], "not the first files by name"


@pytest.mark.slow
@pytest.mark.parametrize(("model", "separator"), [("vanilla", "/"), ("conditional", "/"), ("vanilla", "")])
def test_the_pictures_of_a_folder_of_sorted_images_show_every_class(tmp_path, vae_command, model, separator):
    for name, colour in zip("abcd", COLOURS, strict=True):
        for i in range(100):
            flat(tmp_path / "mine" / f"{name}{separator}{i:02}.png", colour)
    arguments = ["dataset=image_folder", "dataset.root=mine", "dataset.image_size=28", "dataset.cache=cache"]
    arguments += ["dataset.test_size=0.5", "dataset.val_size=0.5", "likelihood=gaussian", f"model={model}"]
    arguments += ["epochs=1", "device=cpu", "wandb.mode=disabled", "network.hidden_dims=[4]"]
    train(compose(*arguments, "figures=[interpolations]"), Path("run"))
    code, said = vae_command("vae-generate", "checkpoint=run", "what=reconstructions", "n=8")
    assert code == 0, said
    for path in [*Path("run/images").glob("*reconstructions*"), *Path("run/generated").glob("*.png")]:
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
        for colour in COLOURS:
            assert (pixels == colour).all(1).any(), (path, colour)


def test_letters_of_other_scripts_are_drawn(caplog):
    """As different words, and none as boxes: of a box all letters look alike."""

    def drawn(word):
        page = Image.new("L", (200, 40), 255)
        grids.write(ImageDraw.Draw(page), (5, 20), word, 24, "lm")
        return np.asarray(page)

    for word in (GREEK, CYRILLIC, ARABIC, "café"):
        assert grids.drawable([word]) == [word]
        letters = [drawn(letter) for letter in dict.fromkeys(word)]
        for i, letter in enumerate(letters):
            assert (letter < 255).any()
            assert not any((letter == other).all() for other in letters[:i])
    assert (drawn(unicodedata.normalize("NFD", "café")) == drawn("café")).all()
    assert "no font" not in caplog.text


def test_what_no_font_has_is_shown_by_its_number_and_said_once(caplog):
    names = ["cat", MISSING, CYRILLIC]
    with caplog.at_level(logging.WARNING):
        assert grids.drawable(names) == grids.drawable(names) == ["cat", "1", CYRILLIC]
    assert caplog.text.count("no font installed here has the letters of") == 1


@pytest.mark.parametrize("size", [11, 14, 20])
def test_words_stand_apart_and_fill_the_room_that_is_made_for_them(size):
    page = Image.new("L", (400, 40), 255)
    grids.write(ImageDraw.Draw(page), (0, 20), "64 samples of the prior", size, "lm")
    inked = (np.asarray(page) < 200).any(0).nonzero()[0]
    gaps = sorted(np.diff(inked))
    assert gaps[-4] > gaps[-5], "four spaces, wider than what is between letters"
    assert abs(inked[-1] - grids.text_width("64 samples of the prior", size)) <= 3
    assert grids.families(["cat"]) == ["DejaVu Sans"]


@pytest.mark.slow
def test_a_scatter_shows_every_name_as_it_is(caplog):
    """An underscore hides a label from matplotlib, and a dollar begins a formula."""
    means, y = torch.randn(40, 2), torch.arange(40) % 4
    plain = grids.pixels(grids.latents(means, y, ["a", "b", "c", "d"], None))
    for names in (["_a", "b", "c", "d"], ["a$b", "b$\\x", "$c$", "d"], [CYRILLIC, ARABIC, "café", MISSING]):
        assert (grids.pixels(grids.latents(means, y, names, None)) != plain[:1, :1]).any()
    assert "Glyph" not in caplog.text


@pytest.mark.slow
def test_labels_of_other_scripts_in_the_pictures_of_a_run(tmp_path, vae_command):
    for name, colour in zip((CYRILLIC, ARABIC, "café", MISSING), COLOURS, strict=True):
        for i in range(10):
            flat(tmp_path / "mine" / name / f"{i}.png", colour)
    arguments = ["dataset=image_folder", "dataset.root=mine", "dataset.image_size=8", "dataset.cache=cache"]
    arguments += ["likelihood=gaussian", "model=conditional", "model.z_dim=2", "figures=[manifold,latents]"]
    train(compose(*arguments, "epochs=1", "device=cpu", "wandb.mode=disabled"), Path("run"))
    assert CYRILLIC in vae_exp.load("run").class_names
    for asked in ("what=classes", f"label='{CYRILLIC}'", f"label='{ARABIC}'"):
        code, said = vae_command("vae-generate", "checkpoint=run", asked)
        assert code == 0, said
    names = {path.name for path in Path("run/generated").iterdir()}
    assert names == {"classes.png", f"samples_label-{CYRILLIC}.png", f"samples_label-{ARABIC}.png"}
