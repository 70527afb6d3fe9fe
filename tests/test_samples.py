"""Where codes are drawn from, and how good the samples are: vae-evaluate samples=[...] and sampler=."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import vae_exp
from tests.conftest import MNIST, needs_mnist, quick_run, recorded
from vae_exp.config.schema import SAMPLE_SCORES
from vae_exp.distributions import DiagonalGaussian, Point
from vae_exp.errors import UserError
from vae_exp.evaluation import sample_scores, samplers
from vae_exp.inference import TrainedVAE
from vae_exp.scores import features

ALL = f"samples=[{','.join(SAMPLE_SCORES)}]"
FEW = ("n_samples=200", "wandb.mode=disabled")


def codes_of_two_groups(n=4000):
    """q of images whose codes lie about -3 (group 0) and about (5, 1) with correlated latents (group 1)."""
    noise = torch.Generator().manual_seed(0)
    group = torch.arange(n) % 2
    base = torch.randn(n, 2, generator=noise)
    leaning = base @ torch.tensor([[1.0, 0.9], [0.0, 0.5]]) + torch.tensor([5.0, 1.0])
    mean = torch.where(group[:, None] == 0, 0.5 * base - 3, leaning)
    return DiagonalGaussian(mean, torch.full((n, 2), 0.25).log()), group


@pytest.mark.parametrize("fit", samplers.FITTED.values(), ids=samplers.FITTED)
def test_a_sampler_draws_what_the_codes_of_each_label_are(fit):
    q, group = codes_of_two_groups()
    mixture = fit(q, group)
    y = torch.arange(40_000) % 2
    z = mixture.draw(y, torch.Generator().manual_seed(1))
    for label in (0, 1):
        drawn, codes = z[y == label], q.mean[group == label]
        assert torch.allclose(drawn.mean(0), codes.mean(0), atol=0.06)
        expected = codes.T.cov() + 0.25 * torch.eye(2)  # of the means, and of q itself
        assert torch.allclose(drawn.T.cov(), expected, atol=0.12)


def test_a_temperature_of_zero_leaves_the_means_and_an_unknown_label_is_refused():
    q, group = codes_of_two_groups(100)
    mixture = samplers.aggregate(q, group)
    z = mixture.draw(torch.ones(50, dtype=torch.long), torch.Generator(), temperature=0)
    assert all((q.mean[group == 1] == code).all(1).any() for code in z)
    with pytest.raises(UserError, match=r"no training image has label 2.*they are of 0, 1\. Use sampler=prior"):
        mixture.draw(torch.tensor([0, 2]), torch.Generator())


@pytest.mark.parametrize("fit", samplers.FITTED.values(), ids=samplers.FITTED)
def test_codes_without_a_spread_and_classes_of_one_image_can_be_drawn(fit):
    q, group = codes_of_two_groups(301)
    group[-1] = 2
    mixture = fit(Point(q.mean), group)
    z = mixture.draw(torch.tensor([2] * 100 + [1] * 2000), torch.Generator().manual_seed(0))
    assert torch.allclose(z[:100], q.mean[-1], atol=0.02)
    spread = z[100:].std(0) / q.mean[group == 1].std(0)
    assert ((spread > 0.9) & (spread < 1.25)).all(), "a kernel density is a little wider than its points"
    assert len(z[100:].unique(dim=0)) > 1000, "not the points themselves"


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["gmm", "aggregate"])
def test_a_fitted_sampler_is_kept_beside_the_checkpoint_and_belongs_to_its_weights(sampler, monkeypatch):
    _, folder = quick_run("dataset.train_size=100")
    first = vae_exp.load(folder).sample(9, seed=3, sampler=sampler)
    kept = folder / f"best.{sampler}.npz"
    assert kept.is_file()
    whole = dict(np.load(kept))
    assert not torch.equal(first, vae_exp.load(folder).sample(9, seed=3))

    reads = []
    read_data = TrainedVAE.read_data
    monkeypatch.setattr(TrainedVAE, "read_data", lambda *a: reads.append(a) or read_data(*a))
    assert torch.equal(vae_exp.load(folder).sample(9, seed=3, sampler=sampler), first)
    assert not reads, "the training data are not needed again"
    kept.write_bytes(kept.read_bytes()[:-300])
    assert torch.equal(vae_exp.load(folder).sample(9, seed=3, sampler=sampler), first)
    assert len(reads) == 1, "a damaged file is written again"
    wrong = [{"mean": whole["mean"].astype(np.int64)}, {"mean": whole["mean"] * np.nan}]
    for number, values in enumerate(wrong, 2):
        np.savez(kept, **whole | values)
        assert torch.equal(vae_exp.load(folder).sample(9, seed=3, sampler=sampler), first)
        assert len(reads) == number, f"{list(values)} cannot be what was written"

    quick_run("dataset.train_size=100", "epochs=2", "replace=true")
    other = vae_exp.load(folder).sample(9, seed=3, sampler=sampler)
    assert len(reads) == 2 + len(wrong), "other weights have other codes"
    assert not torch.equal(other, first)


def test_the_command_line_draws_the_same_images_and_says_where_they_are_from(vae_command):
    quick_run("model=conditional")
    for sampler in ("prior", "gmm", "aggregate"):
        assert vae_command("vae-generate", "checkpoint=run", f"sampler={sampler}", "n=20", "format=npz")[0] == 0
    names = sorted(path.name for path in Path("run/generated").iterdir())
    assert names == ["samples.npz", "samples_sampler-aggregate.npz", "samples_sampler-gmm.npz"]
    drawn = [np.load(Path("run/generated") / name) for name in names]
    assert all((each["y"] == np.arange(20) % 10).all() for each in drawn)
    assert len({each["x"].tobytes() for each in drawn}) == 3
    code, said = vae_command("vae-generate", "checkpoint=run", "what=manifold", "sampler=gmm")
    assert code == 1
    assert "sampler=gmm: what=manifold does not use it" in said


@pytest.mark.slow
def test_an_autoencoder_is_drawn_from_its_codes(vae_command):
    quick_run("model=autoencoder", "epochs=3", "optimizer.lr=1e-2")
    for program, more in (("vae-generate", ()), ("vae-evaluate", ("samples=[density]",))):
        code, said = vae_command(program, "checkpoint=run", *more)
        assert code == 1
        assert "an autoencoder has no prior" in said
        assert "sampler=gmm" in said
    assert not Path("run/best.test.json").exists()
    images = vae_exp.load("run").sample(64, sampler="gmm", seed=0)
    assert images.std(0).mean() > 0.05, "they differ"
    assert vae_command("vae-evaluate", "checkpoint=run", "samples=[density]", "sampler=aggregate", *FEW)[0] == 0
    assert "aggregate/classifier" in json.loads(Path("run/best.test.json").read_text())["samples"]


@pytest.mark.slow
def test_scores_are_printed_written_logged_to_wandb_and_kept(vae_command):
    quick_run("epochs=2", wandb="offline")
    code, said = vae_command("vae-evaluate", "checkpoint=run", ALL, "n_samples=200")
    assert code == 0
    assert "200 samples of prior, classifier features, against the test images" in said
    assert all(f"\n{name} " in said for name in SAMPLE_SCORES)
    prior = json.loads(Path("run/best.test.json").read_text())["samples"]["prior/classifier"]
    assert prior.keys() == {"n", "seed", *SAMPLE_SCORES, *(f"{name}_real" for name in SAMPLE_SCORES)}
    assert prior["frechet"] > prior["frechet_real"] > 0, "two epochs leave samples worse than digits"
    assert prior["coverage"] < prior["coverage_real"] <= 1
    assert vae_command("vae-evaluate", "checkpoint=run", "samples=[frechet]", "sampler=gmm", "n_samples=200")[0] == 0
    assert (
        vae_command("vae-evaluate", "checkpoint=run", "samples=[density]", "features=pixels", "n_samples=200")[0] == 0
    )
    code, said = vae_command("vae-evaluate", "checkpoint=run")
    kept = json.loads(Path("run/best.test.json").read_text())["samples"]
    assert kept["prior/classifier"] == prior, "an evaluation without them leaves them"
    assert {"prior/classifier", "gmm/classifier", "prior/pixels"} == set(kept)
    assert "samples of gmm" in said

    (folder,) = Path("outputs/wandb").glob("offline-run-*-evaluate-*")
    log = recorded(folder)
    final = {key: value for update in log["summary"] for key, value in update["update"].items()}
    assert {name: final[f"evaluate/test/samples/prior/classifier/{name}"] for name in SAMPLE_SCORES} == pytest.approx(
        {name: prior[name] for name in SAMPLE_SCORES}
    )
    assert list(folder.rglob("*nearest_prior_classifier*.png"))


def test_a_picture_shows_samples_beside_their_nearest_training_images(vae_command):
    quick_run("epochs=2")
    assert vae_command("vae-evaluate", "checkpoint=run", "samples=[nearest]", "features=pixels", *FEW)[0] == 0
    assert Path("run/generated/nearest_prior_pixels.png").stat().st_size > 1000
    model = vae_exp.load("run")
    data = model.read_data()
    options = {"samples": ["nearest"], "features": "pixels", "sampler": "prior", "n_samples": 200, "seed": 0}
    options |= {"split": "test", "batch_size": 100, "dataset": {"root": None}}
    found, picture = sample_scores.score(model, data, data.split("test"), None, options)
    train = data.train.x.flatten(1).float() / 255
    distances = torch.cdist(picture[:, 0].flatten(1), train).sort().values
    beside = (picture[:, 1:] - picture[:, :1]).flatten(2).norm(dim=2)
    assert torch.allclose(beside, distances[:, : sample_scores.NEIGHBOURS], atol=1e-4)
    assert found["nearest"] > 0


WRONG = [
    (("samples=[fid]",), "samples=[fid]: it takes a list of frechet, kid"),
    (("samples=[kid]", "sampler=vamp"), "one of prior, gmm, aggregate"),
    (("samples=[kid]", "features=vgg"), "one of classifier, inception, pixels"),
    (("samples=[kid]", "n_samples=3"), "a whole number, 10 or more"),
    (("samples=[kid]",), "features=classifier: this data set has no labels"),
]


@pytest.mark.parametrize(("typed", "says"), WRONG, ids=[" ".join(typed) for typed, _ in WRONG])
def test_what_cannot_be_scored_is_refused_and_leaves_nothing(typed, says, vae_command):
    quick_run("dataset.n_classes=0")
    before = sorted(Path().rglob("*"))
    code, said = vae_command("vae-evaluate", "checkpoint=run", *typed, "wandb.mode=disabled")
    assert code == 1
    assert says in said
    assert "Traceback" not in said
    assert sorted(Path().rglob("*")) == before


def test_a_covariance_of_too_many_pixels_is_refused_and_other_scores_are_not(vae_command, monkeypatch):
    quick_run()
    monkeypatch.setattr(sample_scores, "MAX_COVARIANCE", 63)
    code, said = vae_command("vae-evaluate", "checkpoint=run", "samples=[frechet]", "features=pixels", *FEW)
    assert code == 1
    assert "64 pixels have too large a covariance" in said
    assert vae_command("vae-evaluate", "checkpoint=run", "samples=[density]", "features=pixels", *FEW)[0] == 0


def test_what_is_held_of_samples_does_not_grow_with_their_number():
    images = (torch.rand(5000, 1, 2, 2, generator=torch.Generator().manual_seed(i)) for i in range(5))
    found = sample_scores.gather(images, 25_000, features.pixels, "samples")
    assert len(found.rows) == sample_scores.COMPARED
    assert found.moments.n == 25_000
    assert torch.allclose(found.moments.covariance, torch.eye(4).double() / 12, atol=2e-3), "of all of them"


@pytest.mark.slow
def test_a_judge_and_the_features_of_real_images_are_computed_once(vae_command, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    quick_run()
    quick_run("seed=1", folder="other")
    scores, written = [], []
    for run in ("run", "run", "other"):
        assert vae_command("vae-evaluate", f"checkpoint={run}", "samples=[frechet,density]", *FEW)[0] == 0
        scores.append(json.loads(Path(run, "best.test.json").read_text())["samples"]["prior/classifier"])
        kept = sorted((tmp_path / "cache/vae_exp/features").iterdir())
        written.append([path.stat().st_mtime_ns for path in kept])
    assert written[0] == written[1] == written[2], "nothing is written again"
    assert len(kept) == 3, "the judge, the test images, as many training images"
    assert scores[0] == scores[1]
    for path in kept:  # by another judge, or damaged: the features go with the weights of the judge that saw them
        content = dict(np.load(path))
        name = "1.weight" if "1.weight" in content else "rows"
        np.savez(path, **content | {name: content[name] * np.float32("nan")})
    assert vae_command("vae-evaluate", "checkpoint=run", "samples=[frechet,density]", *FEW)[0] == 0
    assert json.loads(Path("run/best.test.json").read_text())["samples"]["prior/classifier"] == scores[0]
    assert scores[2]["frechet_real"] == scores[0]["frechet_real"]
    assert scores[2]["frechet"] != scores[0]["frechet"]


def test_weights_that_cannot_be_downloaded_are_told_of(monkeypatch, tmp_path):
    fidelity = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(fidelity, "URL_INCEPTION_V3", "http://127.0.0.1:9/weights.pth")
    with pytest.raises(UserError, match=r"features=inception: its weights cannot be had .*put weights\.pth of"):
        features.Inception()


class Touches:
    """What leaves a file `ran` where it is unpickled."""

    def __reduce__(self):
        return Path.touch, (Path("ran"),)


def test_weights_that_are_not_the_published_ones_are_not_unpickled(monkeypatch, tmp_path):
    fidelity = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    there = tmp_path / "hub/checkpoints" / Path(fidelity.URL_INCEPTION_V3).name
    there.parent.mkdir(parents=True)
    torch.save({"fc.weight": Touches()}, there)
    assert features.INCEPTION_SHA256.startswith(there.stem.rpartition("-")[2])
    with pytest.raises(UserError, match=r"features=inception: .*weights-inception.*pth"):
        features.Inception()
    assert not Path("ran").exists()


@pytest.mark.slow
def test_inception_takes_grey_and_coloured_images_of_any_size(monkeypatch, tmp_path):
    """With weights by chance: the published ones are a download of 95 MB. What they are is torch-fidelity's affair."""
    fidelity = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    there = tmp_path / "hub/checkpoints" / Path(fidelity.URL_INCEPTION_V3).name
    there.parent.mkdir(parents=True)
    torch.save({}, there)
    with monkeypatch.context() as patch:
        patch.setattr(fidelity.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        empty = fidelity.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    torch.save(empty.state_dict(), there)
    monkeypatch.setattr(features, "INCEPTION_SHA256", hashlib.sha256(there.read_bytes()).hexdigest())
    inception = features.Inception()
    grey = torch.rand(3, 1, 28, 28)
    found = inception(grey)
    assert found.shape == (3, 2048)
    assert found.isfinite().all()
    assert torch.equal(found, inception(grey.expand(-1, 3, -1, -1)))
    assert not torch.equal(found[0], found[1])
    assert torch.equal(inception(torch.rand(51, 3, 32, 32))[:0], found[:0].new_empty(0, 2048))


@needs_mnist
@pytest.mark.slow
def test_the_scores_order_checkpoints_of_mnist_as_they_are(vae_command):
    """Untrained, one epoch, fifteen epochs, real digits: each better than the one before.

    Density and precision are left out: the blurred samples of one epoch lie where digits are dense.
    """
    mnist = ("dataset=mnist", f"dataset.root={MNIST}", "dataset.val_size=0", "dataset.train_size=6000")
    found = {}
    for epochs in (0, 1, 15):
        quick_run(*mnist, f"epochs={epochs}", "compile=false", folder=f"e{epochs}")
        asked = ("samples=[frechet,kid,coverage]", "n_samples=2000", "wandb.mode=disabled")
        checkpoint = f"e{epochs}/best.pt" if Path(f"e{epochs}/best.pt").exists() else f"e{epochs}/last.pt"
        assert vae_command("vae-evaluate", f"checkpoint={checkpoint}", *asked)[0] == 0
        written = Path(checkpoint).with_suffix(".test.json")
        found[epochs] = json.loads(written.read_text())["samples"]["prior/classifier"]
    for name, better in (("frechet", -1), ("kid", -1), ("coverage", 1)):
        in_order = [better * found[epochs][name] for epochs in (0, 1, 15)] + [better * found[15][f"{name}_real"]]
        assert in_order[0] < in_order[1] < in_order[2] < in_order[3], name


@pytest.mark.slow
def test_pictures_are_those_of_the_weights_and_a_damaged_evaluation_is_written_anew(vae_command):
    """Of two checkpoints in a folder, and of an evaluation that is not as it was written."""
    quick_run("epochs=2", wandb="offline")
    asked = ("samples=[nearest]", "features=pixels", "n_samples=50")
    for checkpoint in ("run/best.pt", "run/last.pt"):
        assert vae_command("vae-evaluate", f"checkpoint={checkpoint}", *asked)[0] == 0
    names = ["last_test_nearest_prior_pixels.png", "nearest_prior_pixels.png"]
    assert sorted(path.name for path in Path("run/generated").iterdir()) == names
    written = json.loads(Path("run/best.test.json").read_text())
    for wrong in (
        {"samples": [1]},
        {"samples": {"prior": {}}},
        {"samples": {"prior/pixels": 3}},
        {"nll": "x"},
        {"scores": 1},
    ):
        Path("run/best.test.json").write_text(json.dumps(written | wrong))
        Path("run/best.val.json").write_text(json.dumps(written | wrong))
        code, said = vae_command("vae-evaluate", "checkpoint=run")
        assert code == 0, said
        assert json.loads(Path("run/best.test.json").read_text()).keys() <= written.keys()

    quick_run("seed=1", folder="other")
    Path("run/best.pt").write_bytes(Path("other/best.pt").read_bytes())
    assert vae_command("vae-evaluate", "checkpoint=run")[0] == 0
    (folder,) = Path("outputs/wandb").glob("offline-run-*-evaluate-*")
    assert not list(folder.rglob("*nearest*")), "the picture is of other weights"
