"""vae-generate: pictures read back as a user would look at them."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import vae_exp
from tests.conftest import full_disk, metrics, quick_run, recorded
from vae_exp.datasets.image_folder import read_images
from vae_exp.figures import grids, latent_walks
from vae_exp.figures import grids as figures
from vae_exp.priors import ByLabel, Flow, Mixture
from vae_exp.vae import VAE

CELL = 28  # 8x8 digits enlarged three times, with two pixels around


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return quick_run("model=conditional", "model.z_dim=3", "epochs=10", folder=tmp_path_factory.mktemp("trained"))[1]


@pytest.fixture
def conditional(trained, tmp_path):
    return Path(shutil.copytree(trained, tmp_path / "run"))


def cells(path, columns, rows):
    """The images of a sheet [rows, columns, CELL, CELL]: those below the title and right of the words."""
    with Image.open(path) as picture:
        sheet = np.asarray(picture.convert("L"), dtype=float)
    frame = np.abs(sheet - 128) < 2  # the line around each image; the words stand on white
    top, left = (int(np.argmax(frame.sum(1 - axis) > 0.6 * CELL * min(rows, columns))) for axis in (0, 1))
    sheet = sheet[top:, left:]
    down, across = ((sheet[:, :CELL] < 250).any(1), (sheet[:CELL] < 250).any(0))  # without white gaps
    grid = sheet[down][:, across][: CELL * rows, : CELL * columns]
    return grid.reshape(rows, CELL, columns, CELL).transpose(0, 2, 1, 3)


def drawn(vae_command, *arguments):
    code, said = vae_command("vae-generate", *arguments)
    assert code == 0, said
    return Path(said.split("written to ")[1].strip())


@pytest.mark.slow
def test_samples_are_repeatable_and_as_many_as_asked(vae_command, conditional):
    where = f"checkpoint={conditional}"
    path = drawn(vae_command, where, "n=30", "label=3")
    assert path == conditional / "generated" / "samples_label-3.png"
    first = path.read_bytes()
    assert drawn(vae_command, where, "n=30", "label=3").read_bytes() == first
    assert drawn(vae_command, where, "n=30", "label=3", "seed=1").read_bytes() != first
    assert cells(path, 6, 5).min() < 20 < 100 < cells(path, 6, 5).max()

    few, many = (np.load(drawn(vae_command, where, f"n={n}", "format=npz", f"output=o{n}")) for n in (7, 2500))
    assert (many["x"].shape, many["x"].dtype, many["y"].shape) == ((2500, 1, 8, 8), np.uint8, (2500,))
    assert many["y"][:12].tolist() == [*range(10), 0, 1]
    np.testing.assert_array_equal(few["x"], many["x"][:7])
    assert len(np.unique(many["x"][::10], axis=0)) == 250, "chunks do not repeat"

    folder = drawn(vae_command, where, "n=12", "format=files")
    assert drawn(vae_command, where, "n=7", "format=files") == folder
    files = sorted(folder.iterdir())
    assert [file.name for file in files] == [f"{i}.png" for i in range(7)], "those of before are gone"
    with Image.open(files[4]) as image:
        np.testing.assert_array_equal(np.asarray(image), many["x"][4, 0])


def test_temperature_pulls_samples_together(vae_command, conditional):
    spread = []
    for temperature in (0, 0.5, 2):
        arguments = (f"checkpoint={conditional}", "label=3", f"temperature={temperature}", "format=npz")
        spread.append(np.load(drawn(vae_command, *arguments))["x"].astype(float).std(0).mean())
    assert spread[0] == 0 < spread[1] < spread[2]


def test_classes_are_a_row_each(vae_command, conditional):
    rows = cells(drawn(vae_command, f"checkpoint={conditional}", "what=classes", "n=5"), 5, 10)
    assert (rows - rows.mean(1, keepdims=True)).std() < (rows.mean(1) - rows.mean((0, 1))).std()


@pytest.mark.slow
def test_a_users_own_images_are_resized_cropped_and_reconstructed(vae_command):
    _, folder = quick_run("epochs=10")
    own = Path("own")
    own.mkdir()
    digit = Image.fromarray(np.load(drawn(vae_command, f"checkpoint={folder}", "n=1", "format=npz"))["x"][0, 0])
    digit.resize((80, 80), Image.NEAREST).save(own / "a.png")
    wide = Image.new("RGB", (160, 80), "black")
    wide.paste(digit.resize((80, 80), Image.NEAREST), (40, 0))
    wide.save(own / "b.png")
    digit.convert("RGBA").save(own / "c.png")
    read, _ = read_images(own, (1, 8, 8))
    expected = torch.from_numpy(np.array(digit, dtype=float))
    for image in read:
        assert (image[0] - expected).abs().mean() < 12
    path = drawn(vae_command, f"checkpoint={folder}", "what=reconstructions", f"inputs={own.resolve()}")
    assert path.name == "reconstructions_inputs-own.png"
    ((first, again, second, *_),) = cells(path, 6, 1)
    assert np.abs(first - second).mean() < 12
    assert np.corrcoef(first.ravel(), again.ravel())[0, 1] > 0.7

    (own / "d.png").write_bytes(b"no image")
    again = drawn(vae_command, f"checkpoint={folder}", "what=reconstructions", "inputs=own")
    assert cells(again, 6, 1).shape[1] == 6, "what cannot be used is left out, as in training"
    code, said = vae_command("vae-generate", f"checkpoint={folder}", "what=reconstructions", "inputs=own/d.png")
    assert code == 1
    assert "own/d.png: not an image that Pillow can read" in said


def test_interpolations_begin_and_end_at_reconstructions_and_share_a_label(vae_command, conditional):
    where = f"checkpoint={conditional}"
    for path in ("spherical", "linear"):
        walk = np.load(drawn(vae_command, where, "what=interpolations", f"path={path}", "steps=5", "n=4", "format=npz"))
        assert walk["x"].shape == (20, 1, 8, 8)
        assert walk["y"].reshape(4, 5).std(1).max() == 0
        film = drawn(vae_command, where, "what=interpolations", f"path={path}", "steps=5", "n=4", "animate=true")
        with Image.open(film) as gif:
            assert (gif.format, gif.n_frames) == ("GIF", 8), "there and back"
    model = vae_exp.load(conditional)
    start, end = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[0.0, 3.0, 0.0]])
    decoded = []
    model.model.decode = lambda z, y: type("Keep", (), {"mean": decoded.append(z) or z[:, :, None, None]})
    for path in ("spherical", "linear"):
        latent_walks.interpolation(model.model, start, end, torch.tensor([0]), 3, path)
    torch.testing.assert_close(decoded[0].norm(dim=1), torch.tensor([1.0, 2.0, 3.0]))
    torch.testing.assert_close(decoded[1], torch.tensor([[1.0, 0, 0], [0.5, 1.5, 0], [0, 3.0, 0]]))


def test_traversals_are_ordered_by_kl(vae_command, conditional):
    arguments = (f"checkpoint={conditional}", "what=traversals", "steps=7", "label=2")
    path = drawn(vae_command, *arguments)
    rows = cells(path, 7, 3)
    moved = np.abs(rows[:, 0] - rows[:, -1]).mean((1, 2))
    assert moved[0] > moved[-1]
    np.testing.assert_array_equal(rows[0, 3], rows[1, 3], "the middle is the prior's mean in every row")
    around = cells(drawn(vae_command, *arguments, "around=image", "dims=[1]"), 7, 1)
    assert np.abs(around[0, 3] - rows[0, 3]).mean() > 1
    order = latent_walks.most_kl(vae_exp.load(conditional).kl_per_dim)
    kl = vae_exp.load(conditional).kl_per_dim
    assert kl[order[0]] == max(kl)


def test_other_settings_go_to_another_file(vae_command, conditional):
    asked = ("split=test", "split=train", "split=val", "seed=1", "n=8")
    names = [drawn(vae_command, f"checkpoint={conditional}", "what=reconstructions", each).name for each in asked]
    assert names == [f"reconstructions{end}.png" for end in ("", "_split-train", "_split-val", "_seed-1", "")]
    steps = drawn(vae_command, f"checkpoint={conditional}", "what=interpolations", "steps=5", "path=linear")
    assert steps.name == "interpolations_steps-5_path-linear.png"


class ShowsItsCode(torch.nn.Module):
    def forward(self, z, _):
        return z[:, :, None, None]


def shows_codes(prior=None, z_dim=3, n_classes=0, scale=1.0):
    """A model whose images are its codes, times a scale."""
    shown = lambda shown: SimpleNamespace(mean=shown * scale)  # noqa: E731
    model = VAE(torch.nn.Linear(1, 1), ShowsItsCode(), shown, z_dim, n_classes, prior=prior)
    torch.manual_seed(0)
    for weights in model.prior.parameters() if prior else ():
        torch.nn.init.normal_(weights, std=0.3)
    return model


def test_a_manifold_grows_to_the_right_and_up():
    model = shows_codes()
    images, (across, up), _ = latent_walks.manifold(model, [2, 0], torch.tensor(0), 5)
    z = images[..., 0, 0]
    torch.testing.assert_close(z[0, :, 2], across)
    torch.testing.assert_close(z[:, 0, 0], up.flip(0))
    assert (z[..., 1] == 0).all()
    assert torch.distributions.Normal(0, 1).cdf(across).tolist() == pytest.approx([0.1, 0.3, 0.5, 0.7, 0.9])


def test_a_learned_prior_says_where_pictures_look():
    """Traversals count its standard deviations, the manifold its quantiles, and the lines its mass."""
    uneven, values = torch.tensor([1.0, 9.0, 4.0])[:, None, None], torch.linspace(-2, 2, 5)
    for prior in (ByLabel(3, 2), Mixture(3, 4), Flow(3, 4, 8)):
        model = shows_codes(prior, n_classes=2, scale=uneven)
        for y in torch.arange(2):
            mean, std = model.prior_moments(y)
            z = latent_walks.traversal(model, y[None], [2], values)[0, :, :, 0, 0] / uneven[:, 0, 0]
            torch.testing.assert_close(z, mean.expand(5, 3) + torch.tensor([0, 0, 1]) * std * values[:, None])
            around = latent_walks.traversal(model, y[None], [2], values, torch.ones(3))[0, :, :, 0, 0]
            torch.testing.assert_close(around[:, 2] / 4, z[:, 2])
            _, (across, up), title = latent_walks.manifold(model, [1, 2], y, 10)
            draws = model.prior_sample(20_000, torch.Generator().manual_seed(1), y.expand(20_000))
            for dim, found in ((1, across), (2, up)):
                below = (draws[:, dim, None] < found).double().mean(0)
                torch.testing.assert_close(below, torch.arange(0.05, 1, 0.1).double(), atol=0.02, rtol=0)
            assert ("the others at its mean" in title) == (not isinstance(prior, ByLabel))
        order = (model.prior_moments(torch.tensor(0))[1] * uneven[:, 0, 0]).argsort(descending=True).tolist()
        assert latent_walks.most_change(model, torch.tensor([0])) == order


def test_every_label_gets_the_same_noise():
    for prior in (None, ByLabel(3, 2), Mixture(3, 4)):
        model, noise = shows_codes(prior, n_classes=2), torch.Generator().manual_seed(0)
        z = latent_walks.classes(model, 5, [0, 1], noise, 0.5)[..., 0, 0]
        if isinstance(prior, ByLabel):
            mean, std = map(torch.stack, zip(*map(model.prior_moments, torch.arange(2)), strict=True))
            assert not torch.allclose(*z)
            torch.testing.assert_close(*((z - mean[:, None]) / std[:, None]))
        else:
            assert torch.equal(*z)
        torch.testing.assert_close(z[0], model.prior_sample(5, noise.manual_seed(0), torch.zeros(5).long(), 0.5))
        assert latent_walks.shared(model) == ("the same noise" if prior else "the same z")


@pytest.mark.parametrize("prior", [ByLabel(2, 2), Mixture(2, 4), Flow(2, 4, 8)], ids=lambda prior: type(prior).__name__)
def test_lines_go_around_their_share_of_the_prior(prior):
    model = shows_codes(prior, z_dim=2, n_classes=2)
    log_p, levels = latent_walks.density(model, [0, 1])
    draws = model.prior_sample(20_000, torch.Generator().manual_seed(1), torch.arange(20_000) % 2)
    within = (log_p(draws)[:, None] > levels).double().mean(0)
    torch.testing.assert_close(within, torch.tensor(figures.SHARES).double(), atol=0.02, rtol=0)
    assert latent_walks.density(shows_codes(z_dim=2), []) is None
    assert latent_walks.density(shows_codes(Mixture(3, 4)), []) is None
    means, y = draws[:400], torch.zeros(400, dtype=torch.long)
    plain, lined = (figures.latents(means, y, ["a"], [1, 0], density=each) for each in (None, (log_p, levels)))
    plain.canvas.draw()
    lined.canvas.draw()
    assert plain.axes[0].get_xlim()[1] == pytest.approx(lined.axes[0].get_xlim()[1], rel=0.2)
    (lines,) = (each for each in lined.axes[0].collections if hasattr(each, "levels"))
    for level, path in zip(lines.levels, lines.get_paths(), strict=True):
        at = torch.from_numpy(path.vertices[:, [1, 0]])  # the axes show z1 and z0
        assert (log_p(at) - level).abs().median() < 0.1, "it is computed on a grid"
    assert lined.axes[0].get_title().endswith("lines around 10%, 50%, 90%, 99% of the prior")


@pytest.mark.slow
def test_latents_are_drawn_and_written(vae_command, conditional):
    where = f"checkpoint={conditional}"
    with Image.open(drawn(vae_command, where, "what=latents")) as picture:
        colours = picture.convert("RGB").getcolors(maxcolors=1_000_000)
    vivid = {colour for count, colour in colours if max(colour) - min(colour) > 100 and count > 5}
    assert len(vivid) >= 7, "a colour a label"
    codes = np.load(drawn(vae_command, where, "what=latents", "format=npz"))
    assert codes["mean"].shape == codes["log_var"].shape == (300, 3)
    assert np.bincount(codes["y"]).shape == (10,)
    assert drawn(vae_command, where, "what=latents", "dims=[2,0]").name == "latents_dims-2-0.png"


@pytest.mark.slow
def test_latents_as_arrays_are_of_every_image_and_a_picture_says_of_how_many(vae_command, monkeypatch):
    rng = np.random.default_rng(0)
    test = rng.integers(0, 256, (5300, 8, 8), dtype=np.uint8)
    labels = rng.integers(0, 3, 5300)
    labels[:5200] = 0  # the first 5,000 images show one of three classes
    np.savez("many.npz", images=test[:300], labels=labels[-300:], test_images=test, test_labels=labels)
    data = ("dataset=arrays", "dataset.root=many.npz", "dataset.val_size=20")
    _, folder = quick_run(*data, "model=conditional", "model.z_dim=3", "network.hidden_dims=[8]")
    as_arrays = (f"checkpoint={folder}", "what=latents", "format=npz")
    codes = np.load(drawn(vae_command, *as_arrays))
    assert list(codes) == ["mean", "log_var", "y"]
    np.testing.assert_array_equal(codes["y"], labels)
    q = vae_exp.load(folder).encode(test[:, None], labels)
    np.testing.assert_allclose(codes["mean"], q.mean, atol=1e-6)
    np.testing.assert_allclose(codes["log_var"], q.log_var, atol=1e-6)
    assert sorted(path.name for path in (folder / "generated").iterdir()) == ["latents.npz"]
    few = np.load(drawn(vae_command, *as_arrays, "n=6", "output=few"))
    assert (few["mean"].shape, sorted(few["y"])) == ((6, 3), [0, 0, 1, 1, 2, 2])

    titles, save = [], figures.save_figure
    monkeypatch.setattr(
        figures, "save_figure", lambda shown, *rest: (titles.append(shown.axes[0].get_title()), save(shown, *rest))
    )
    for n in ("null", "5200", "6000"):
        drawn(vae_command, f"checkpoint={folder}", "what=latents", f"n={n}")
    assert titles == [f"posterior means of {shown}5,300 images" for shown in ("5,000 of the ", "5,200 of the ", "")]


COMPONENTS = {"mixture": "prior.components=20 posterior=full", "vamp": "prior.components=20 posterior=iaf"}
COMPONENTS |= {"by_label": "model=conditional", "flow": ""}


@pytest.mark.slow
@pytest.mark.parametrize("prior", COMPONENTS)
def test_every_picture_of_every_prior(vae_command, monkeypatch, prior):
    """During training and afterwards; and what of the prior and the posterior is decoded and written."""
    figures_of_all = "figures=[traversals,interpolations,manifold,latents]"
    typed = (f"prior={prior}", *COMPONENTS[prior].split(), "model.z_dim=2", "network.hidden_dims=[8]", figures_of_all)
    _, folder = quick_run(*typed)
    for name in ("traversals", "interpolations", "manifold", "latents"):
        assert len(list((folder / "images").glob(f"{name}_*.png"))) == 1
    sheets, save = [], figures.Sheet.save
    monkeypatch.setattr(figures.Sheet, "save", lambda sheet, *rest: (sheets.append(sheet), save(sheet, *rest))[1])
    where, model = f"checkpoint={folder}", vae_exp.load(folder)
    drawn(vae_command, where, "what=traversals", "steps=3")
    assert sheets[-1].rows[0][-2:] in ("z0", "z1") or prior == "by_label", "no KL of a latent is known"
    assert ("KL" in sheets[-1].title) == (prior == "by_label")
    samples = [np.load(drawn(vae_command, where, "n=40", f"temperature={t}", "format=npz"))["x"] for t in (0, 1)]
    assert samples[0][::10].std(0).max() < samples[1][::10].std(0).max()

    content = np.load(drawn(vae_command, where, "what=latents", "format=npz"))
    of_posterior = {"mixture": ["log_var", "lower"], "vamp": ["base_mean", "base_log_var"]}.get(prior, ["log_var"])
    assert list(content) == ["mean", *of_posterior, "y"]
    with_index = np.load(drawn(vae_command, where, "what=codes"))
    assert list(with_index) == ["index", "split", "label", "mean", *of_posterior, "class_names"]
    assert all((with_index[name] == content[name]).all() for name in ("mean", *of_posterior))
    code, said = vae_command("vae-generate", where, "sampler=aggregate")
    assert (code, "Use sampler=gmm" in said) == ((1, True) if prior == "vamp" else (0, False))

    if prior == "flow":
        code, said = vae_command("vae-generate", where, "what=components")
        assert code == 1
        assert "prior=flow has no components. It is for prior=mixture, prior=vamp and prior=by_label." in said
        return
    drawn(vae_command, where, "what=components", "n=10")
    p, sheet = model.model.prior, sheets[-1]
    if prior == "vamp":
        torch.testing.assert_close(sheet.images[::2], p.images[:10])
        torch.testing.assert_close(sheet.images[1::2], model.decode(p.gaussians().mean[:10]))
        assert "10 of the 20" in sheet.title
    elif prior == "mixture":
        heaviest = p.weights.argsort(descending=True)
        torch.testing.assert_close(sheet.images, model.decode(p.mean[heaviest[:10]]))
        share = p.weights[heaviest]
        assert list(sheet.rows) == [f"{share[0]:.1%} to {share[7]:.1%}", f"{share[8]:.1%} to {share[9]:.1%}"]
    else:
        torch.testing.assert_close(sheet.images, model.decode(p.mean, torch.arange(10)))
        assert sheet.words == list("0123456789")
        drawn(vae_command, where, "what=components", "label=3")
        torch.testing.assert_close(sheets[-1].images, sheet.images[3:4])
        assert sheets[-1].words == ["3"]


UNUSED = [
    ("what=components seed=1", "seed=1: what=components does not use it"),
    ("what=classes label=3", "label=3: what=classes does not use it; it is for what=samples, what=reconstructions"),
    ("what=weights format=npz", "format=npz: what=weights does not use it"),
    ("what=weights n=3", "n=3: what=weights does not use it"),
    ("what=onnx format=npz", "format=npz: what=onnx does not use it"),
    ("what=pt2 label=3", "label=3: what=pt2 does not use it"),
    ("what=latents temperature=2", "temperature=2: what=latents does not use it; it is for what=samples, what=classes"),
    ("what=samples steps=5", "steps=5: what=samples does not use it; it is for what=interpolations, what=traversals"),
    ("what=samples inputs=.", "inputs=.: what=samples does not use it"),
    ("what=manifold seed=1", "seed=1: what=manifold does not use it"),
    ("what=traversals split=val", "split=val: what=traversals does not use it; it is for what=reconstructions"),
    ("what=traversals path=linear", "path=linear: what=traversals does not use it; it is for what=interpolations."),
    ("what=latents scale=2", "scale=2: what=latents does not use it"),
    ("format=npz dpi=300", "dpi=300: it is for pictures, and not for format=npz"),
    ("what=traversals animate=true format=pdf", "with format=png"),
    ("title=a\ab", "b: it takes text on one line"),
    ("n=10000 scale=20", "scale=20: 10,000 images would have more than"),
    ("what=reconstructions dims=[1]", "dims=[1]: what=reconstructions does not use it"),
]
WRONG = [
    *UNUSED,
    ("range=1e39 what=traversals", "range=1e+39: it takes a number above 0 and at most 1000"),
    ("temperature=1e39", "temperature=1e+39: it takes a number, 0 or more and at most 1000"),
    ("what=manifold n=100000", "n=100000: a picture holds up to 100 images a side; use format=files or format=npz"),
    (
        "what=manifold n=100000 format=npz",
        "n=100000: a manifold of 100000 x 100000 images; of 1x8x8 pixels up to 7,812,500",
    ),
    ("what=classes n=1001", "n=1001: 10 classes make 10,010 images; a picture shows up to 10,000 images"),
    (
        "what=traversals label=0 steps=1000 dims=[0,1,2,0,1,2,0,1,2,0,1]",
        "steps=1000: 11 walks of 1000 images; a picture shows",
    ),
    ("what=reconstructions label=3 inputs=3", "inputs=3: it takes the path of a file or a folder"),
    ("seed=1,2", "seed=1,2: vae-generate takes one value of it."),
    (f"output={'x' * 300}", "x: it takes the path of a folder (names up to 255 bytes, 3,900 in all), or null"),
    ("what=sample", "what=sample: it takes one of samples"),
    ("n=100000", "n=100000: a picture holds up to 10,000 images; use format=files or format=npz"),
    ("animate=true", "animate=true: films are made of what=interpolations and what=traversals"),
    ("label=10", "label=10: this model knows 0, 1, 2, 3, 4, 5, 6, 7, 8, 9"),
    ("what=traversals dims=[3]", "dims: there is no latent 3; this model has 0 to 2"),
    ("what=manifold dims=[1]", "dims=[1]: what=manifold takes two latents"),
    ("what=reconstructions inputs=nowhere label=1", "nowhere: there is no such file"),
    ("what=reconstructions inputs=.", "label: this model is conditional"),
    ("what=reconstructions split=val", None),
    ("what=weights", None),
]


@pytest.mark.slow
def test_mistakes_are_one_message_and_write_nothing(vae_command, conditional):
    Image.new("L", (9, 9)).save("a.png")
    for arguments, message in WRONG:
        code, said = vae_command("vae-generate", f"checkpoint={conditional}", "output=out", *arguments.split())
        assert len(said.splitlines()) == 1, said
        assert code == (1 if message else 0), said
        if message:
            assert message in said
            assert not Path("out").exists() or not list(Path("out").iterdir())


def test_an_unconditional_model_has_no_classes_and_an_autoencoder_no_prior(vae_command):
    _, folder = quick_run("epochs=0")
    _, autoencoder = quick_run("model=autoencoder", "epochs=0", folder="autoencoder")
    for what in ("samples", "manifold", "traversals"):
        code, said = vae_command("vae-generate", f"checkpoint={autoencoder}", f"what={what}")
        assert (code, "no prior" in said) == (1, True)
    assert vae_command("vae-generate", f"checkpoint={autoencoder}", "what=traversals", "around=image")[0] == 0
    codes = np.load(drawn(vae_command, f"checkpoint={autoencoder}", "what=latents", "format=npz"))
    assert set(codes) == {"mean", "y"}
    for arguments, message in ((["label=7"], "is not conditional"), (["what=classes"], "is not conditional")):
        code, said = vae_command("vae-generate", f"checkpoint={folder}", *arguments)
        assert code == 1
        assert message in said


@pytest.mark.slow
def test_a_model_of_two_latents_gets_its_manifold_and_scatter_and_others_what_they_ask_for():
    _, folder = quick_run("model.z_dim=2", "epochs=3", "figure_every_epochs=2", wandb="offline")
    drawn = sorted(path.name for path in (folder / "images").glob("[lm]*"))
    assert drawn == [f"{name}_{step:07d}.png" for name in ("latents", "manifold") for step in (22, 33)]
    (logged,) = Path("outputs/wandb").glob("*run-*")
    last = recorded(logged)["history"][-1]["item"]
    assert "epoch 3" in last["images/manifold.caption"]
    assert metrics(folder)[-1]["step"] == last["_step"]

    wanted = "figures=[traversals,interpolations]"
    _, other = quick_run("model=conditional", wanted, folder="other")
    names = {path.name.split("_0")[0] for path in (other / "images").iterdir()}
    assert names == {"reconstructions", "samples", "test_reconstructions", "traversals", "interpolations"}


VECTORS = {"pdf": b"/Subtype /Image", "svg": b"<image"}


@pytest.mark.slow
def test_a_picture_for_paper_or_slides(vae_command, conditional):
    """As large as asked, titled as asked, and as a vector file with text as text and every pixel as it is."""
    asked = (f"checkpoint={conditional}", "what=interpolations", "n=2", "steps=3")
    usual = drawn(vae_command, *asked)
    assert drawn(vae_command, *asked, "format=grid") == usual, "its older name"
    with Image.open(usual) as small, Image.open(drawn(vae_command, *asked, "scale=9", "dpi=300")) as large:
        assert large.info["dpi"] == pytest.approx((300, 300), abs=0.1)
        assert large.height > 2 * small.height
    sizes = [Image.open(drawn(vae_command, *asked, f"title={title}")).size for title in ("none", "auto", "a" * 90)]
    assert sizes[0][1] < sizes[1][1] == sizes[2][1]
    assert sizes[1][0] < sizes[2][0]
    for kind, image in VECTORS.items():
        first = (path := drawn(vae_command, *asked, f"format={kind}", "title=One $x$ & more")).read_bytes()
        assert path == usual.with_suffix(f".{kind}")
        assert first.count(image) == 1
        assert drawn(vae_command, *asked, f"format={kind}", "title=One $x$ & more").read_bytes() == first
        assert drawn(vae_command, asked[0], "what=latents", f"format={kind}").suffix == f".{kind}"
    assert b">One $x$ &amp; more</text>" in first
    assert b"pixelated" in first


def test_pairs_and_ends_are_the_images_themselves():
    x = torch.rand(3, 1, 28, 28).mul(255).round() / 255
    sheet = figures.reconstructions(x, 1 - x).pixels()
    for i in range(3):
        left = 2 + 32 * 2 * i + 8 * i
        np.testing.assert_array_equal(sheet[2:30, left : left + 28], x[i, 0].mul(255).round())
        np.testing.assert_array_equal(sheet[2:30, left + 32 : left + 60], 255 - x[i, 0].mul(255).round())
    walk = figures.interpolations(torch.zeros(1, 4, 1, 28, 28), x[:1], x[1:2], "linear", ["cat"])
    assert walk.words == ["x", "0.0", "0.3", "0.7", "1.0", "x"]
    np.testing.assert_array_equal(walk.images[[0, -1]], x[:2])
    assert figures.interpolations(x[:0, None], x[:0], x[:0], "linear").pixels().size, "of too few images: no row"


def test_traversals_of_every_label_have_their_names_and_kl(vae_command, conditional, monkeypatch):
    sheets, save = [], figures.Sheet.save
    monkeypatch.setattr(figures.Sheet, "save", lambda sheet, *rest: (sheets.append(sheet), save(sheet, *rest))[1])
    model, where = vae_exp.load(conditional), f"checkpoint={conditional}"
    drawn(vae_command, where, "what=traversals", "steps=3", "n=2")
    first, second = latent_walks.most_kl(model.kl_per_dim)[:2]
    words = [f"z{dim}  KL {model.kl_per_dim[dim]:.2f}" for dim in (first, second)]
    assert sheets[-1].rows == [f"{label}   {word}" for label in range(10) for word in words]
    z = torch.zeros(1, 3)
    z[0, second] = 3
    torch.testing.assert_close(sheets[-1].images[15 * 3 + 2], model.decode(z, "7")[0])
    drawn(vae_command, where, "what=traversals", "steps=3", "n=2", "label=7")
    assert sheets[-1].rows == words
    drawn(vae_command, where, "what=samples")
    assert sheets[-1].words == [str(label) for label in range(10)]
    drawn(vae_command, where, "what=interpolations", "n=3")
    assert sheets[-1].rows == ["0", "1", "2"]


def test_words_on_a_sheet_leave_its_images_alone():
    images, gaps = torch.rand(6, 1, 28, 28), ([1], [1, 2])
    sheet = figures.Sheet(images, 3, gaps=gaps).pixels()
    words = ("a title that is longer than the sheet is wide", ["one", "two"], ["a", "b", "a long word"], "x")
    page = figures.Sheet(images, 3, *words, gaps).pixels()
    height, width = page.shape[0] - sheet.shape[0], page.shape[1] - sheet.shape[1]
    found = [
        (top, left)
        for top in range(height + 1)
        for left in range(width + 1)
        if (page[top : top + sheet.shape[0], left : left + sheet.shape[1], 0] == sheet).all()
    ]
    assert len(found) == 1


def test_a_single_image_has_a_scatter():
    _, folder = quick_run("dataset.val_size=1", "figures=[latents]")
    assert len(list((folder / "images").glob("latents_*.png"))) == 1


def test_every_key_is_for_something_and_every_what_is_known():
    from vae_exp.cli.generate import IN_THE_NAME, USED_BY
    from vae_exp.config.schema import GENERATE_RULES

    for_all = {"checkpoint", "what", "output", "device", "trust"}
    assert USED_BY.keys() | for_all == GENERATE_RULES.keys()
    assert set(IN_THE_NAME) <= USED_BY.keys()
    for users in USED_BY.values():
        assert all(GENERATE_RULES["what"].allows(what.split()[0]) for what in users)


def test_own_images_of_a_conditional_model_get_the_labels_of_their_folders(vae_command, conditional):
    model, where = vae_exp.load(conditional), f"checkpoint={conditional}"
    x = torch.from_numpy(np.load(drawn(vae_command, where, "n=4", "format=npz"))["x"])
    for row, name in enumerate(("3", "7", "7", "0")):
        folder = Path("own") / name
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(x[row, 0].numpy()).save(folder / f"{row}.png")
    asked = (where, "what=reconstructions", "inputs=own", "format=npz")
    again = np.load(drawn(vae_command, *asked))
    assert again["y"].tolist() == [0, 3, 7, 7], "in the order of their names"
    expected = model.reconstruct(x[[3, 0, 1, 2]], [0, 3, 7, 7])
    np.testing.assert_allclose(again["x"], expected.mul(255).round().numpy(), atol=1)
    assert np.load(drawn(vae_command, *asked, "label=5"))["y"].tolist() == [5] * 4, "what is typed comes first"
    (Path("own") / "0").rename(Path("own") / "cat")
    code, said = vae_command("vae-generate", *asked)
    assert code == 1
    assert "inputs=own: the folder cat is none of its classes" in said
    assert "one of 0, 1, 2, 3, 4, 5, 6, 7, 8, 9" in said


WRITTEN = [
    ("what=samples", "samples.png"),
    ("what=samples format=npz", "samples.npz"),
    ("what=samples format=files", "samples"),
    ("what=latents", "latents.png"),
    ("what=latents format=npz", "latents.npz"),
    ("what=codes", "codes.npz"),
    ("what=codes format=csv", "codes.csv"),
    ("what=interpolations animate=true", "interpolations.gif"),
    ("what=weights", "best.safetensors"),
    ("what=pt2", "encoder.pt2"),
]


@pytest.mark.parametrize(("arguments", "name"), WRITTEN)
def test_a_file_that_cannot_be_written_leaves_what_was_there_and_nothing_else(
    vae_command, conditional, arguments, name
):
    """The system refuses at the very end: something of another kind lies there."""
    there = Path("out") / name
    if there.suffix:
        (there / "mine").mkdir(parents=True)
    else:
        there.parent.mkdir()
        there.write_text("mine")
    code, said = vae_command("vae-generate", f"checkpoint={conditional}", "output=out", *arguments.split())
    assert code == 1
    assert "cannot be written" in said
    assert len(said.strip().splitlines()) == 1
    assert list(Path("out").iterdir()) == [there]


def test_a_refusal_leaves_no_folder(vae_command, conditional):
    code, _ = vae_command("vae-generate", f"checkpoint={conditional}", "output=new/deep", "what=manifold", "dims=[7,8]")
    assert code == 1
    assert not Path("new").exists()


@pytest.mark.slow
def test_more_classes_than_a_picture_has_room_for(vae_command, conditional):
    """A model with room for 300 classes, of data with ten; and one of 70 classes."""
    _, folder = quick_run(
        "model=conditional",
        "dataset.n_classes=300",
        "network.hidden_dims=[16]",
        "epochs=1",
        folder="many",
        wandb="offline",
    )
    (picture,) = (folder / "images").glob("samples_*")
    with Image.open(picture) as image:
        assert image.size == (8 * CELL, 10 * CELL)
    (logged,) = Path("outputs/wandb").glob("*run-*")
    assert "10 of 300 classes" in recorded(logged)["history"][-1]["item"]["images/samples.caption"]
    where = f"checkpoint={folder}"
    assert cells(drawn(vae_command, where, "what=classes", "n=4"), 4, 10).shape[:2] == (10, 4)
    assert np.load(drawn(vae_command, where, "n=12", "format=npz"))["y"].tolist() == [*range(10), 0, 1]
    assert cells(drawn(vae_command, where, "n=20"), 10, 2).shape[:2] == (2, 10)
    assert vae_command("vae-generate", where, "label=299")[0] == 0
    assert vae_command("vae-generate", where, "label=300")[0] == 1
    code, said = vae_command("vae-evaluate", where, "wandb.mode=disabled")
    assert code == 0, said
    rows = grids.class_rows(70, [str(i) for i in range(70)])
    assert len(rows) == grids.FEW_CLASSES and rows == sorted(set(rows)) and rows[-1] < 70


@pytest.mark.parametrize(
    "arguments",
    [
        *("n=500 format=npz", "what=weights", "n=500", "what=latents format=npz", "what=traversals animate=true"),
        *("what=codes", "what=codes format=csv", "what=anomalies", "what=pt2"),
        pytest.param("what=onnx", marks=pytest.mark.slow),
    ],
)
def test_a_disk_that_is_full_in_the_middle_is_one_message_and_nothing_stays(vae_command, conditional, arguments):
    with full_disk(4000):
        code, said = vae_command("vae-generate", f"checkpoint={conditional}", "output=new/out", *arguments.split())
    assert code == 1
    (line,) = said.strip().splitlines()
    assert "cannot be written (" in line
    assert "File too large" in line
    assert not Path("new").exists()
