"""The explorer in a real browser: its pictures are those of PyTorch, and its controls do what they say."""

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import vae_exp
from tests.conftest import STRANGE, needs_browser, quick_run, seconds
from vae_exp import UserError
from vae_exp.evaluation import metrics

OWN = ("~network", "+network._target_=tests.networks_of_users.net")
SPRITES = ("dataset=sprites", "dataset.factors={shape:3,scale:2,orientation:2,x:4,y:4}", "dataset.val_size=0.1")
FAMILIES = {
    "gelu": ("network.activation=gelu", "likelihood=continuous_bernoulli", "model.z_dim=3"),
    "several": ("network.hidden_dims=[64,32]", "network.activation=elu", "posterior=full", "likelihood=laplace"),
    "gated": ("network=gated_mlp", "likelihood=gaussian", "likelihood.sigma=optimal", "prior=mixture"),
    "conv": ("network=conv", "network.channels=4", "network.activation=leaky_relu", "prior=flow", "model.z_dim=4"),
    "resnet": ("network=resnet", "network.channels=8", "model=conditional", "likelihood=discretized_logistic"),
    "by label": ("model=conditional", "prior=by_label", "network.activation=tanh", "posterior=iaf"),
    "by pixel": ("likelihood=gaussian", "likelihood.sigma=by_pixel", "likelihood.mean=sigmoid"),
    "autoencoder": ("model=autoencoder", "model.z_dim=24", "network.activation=silu"),
    "of users": (*OWN, "model.z_dim=1"),
    "burgess": (*SPRITES, "network=burgess", "max_steps=2"),
    "locatello": (*SPRITES, "network=locatello", "max_steps=2", "model=conditional"),
}
# The bytes of the picture: of a copy, because reading the canvas itself would slow it down, as Chromium warns.
BYTES = """() => {
  const { width, height } = document.getElementById("picture");
  const copy = Object.assign(document.createElement("canvas"), { width, height });
  const context = copy.getContext("2d", { willReadFrequently: true });
  context.drawImage(document.getElementById("picture"), 0, 0);
  return [height, width, Array.from(context.getImageData(0, 0, width, height).data)];
}"""
FRAMES = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
FOLLOW = """async hash => {
  history.replaceState(null, "", "#");  // to the hash that is there already nothing would change
  const followed = new Promise(done => addEventListener("hashchange", done, { once: true }));
  location.hash = hash;
  await followed;
}"""


def written(folder):
    """The model of a run, its explorer, and what the page's script reads."""
    model = vae_exp.load(folder, device="cpu", trust=True)
    model.export(path := Path("explorer.html").resolve())
    return model, path, held(path)


def held(path):
    return json.loads(re.search(r'id="explorer">(.*?)</script>', path.read_text(), re.DOTALL)[1])


def shown(page):
    """The picture, uint8 [H, W, 3]."""
    page.evaluate(FRAMES)
    height, width, content = page.evaluate(BYTES)
    return np.array(content).reshape(height, width, 4)[..., :3]


def drawn(model, z, label=None):
    """What PyTorch draws for a code [Z], as bytes [H, W, 3]."""
    x = model.decode(torch.tensor(z, dtype=torch.float32)[None], label if model.model.n_classes else None)
    return np.broadcast_to((255 * x[0].clamp(0, 1)).round().permute(1, 2, 0).numpy(), (*x.shape[2:], 3))


def row_of(split, image):
    """The number of an image of the page in the split that it was taken from."""
    with Image.open(io.BytesIO(base64.b64decode(image["png"]))) as picture:
        pixels = torch.tensor(np.atleast_3d(np.array(picture))).permute(2, 0, 1)
    return int((split.x == pixels).flatten(1).all(1).nonzero()[0])


def values(page):
    """What the page says of each latent: the number beside its slider."""
    page.evaluate(FRAMES)
    read = "all => all.map(row => [row.firstChild.data, row.lastChild.innerText])"
    rows = page.locator("#sliders label").evaluate_all(read)
    return {int(name[1:]): float(text) for name, text in rows}


@pytest.fixture
def see(visit):
    def see(path, hash="", **options):
        page = visit(f"{path}{hash}", until="#sliders input", **options)
        page.evaluate(FRAMES)
        return page

    return see


@pytest.fixture
def of_digits(trained):
    """A conditional model of digits."""
    return written(trained("model=conditional", "model.z_dim=24", "epochs=2")[1])


QUICK_FAMILIES = ("gated", "resnet", "by label", "by pixel", "of users")


@needs_browser
@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=() if name in QUICK_FAMILIES else pytest.mark.slow) for name in FAMILIES]
)
def test_the_picture_is_that_of_pytorch(trained, see, family):
    model, path, data = written(trained(*FAMILIES[family])[1])
    page, noise = see(path), np.random.default_rng(0)
    split = model.read_data().split("test")
    row = row_of(split, data["images"][0])
    start = model.encode(split.x[row], int(split.y[row]) if model.model.n_classes else None).mean[0]
    assert np.abs(shown(page) - drawn(model, start.tolist(), int(split.y[row]))).max() <= 1, "at first"
    labels = range(model.n_classes_in_data) if model.model.n_classes else [0]
    for label in [*labels, *labels][: max(3, len(labels))]:
        z = noise.uniform(data["low"], data["high"]).round(4)
        page.evaluate(FOLLOW, f"z={','.join(map(str, z))}&given={label}")
        difference = np.abs(shown(page) - drawn(model, z, label))
        assert difference.max() <= 1, f"{family}, label {label}"
        assert shown(page).std() > 0


@needs_browser
def test_weights_that_16_bits_would_spoil_have_32(trained, see):
    model = vae_exp.load(trained("likelihood=gaussian")[1], device="cpu")
    model.export("plain.html")
    last, z = model.model.decoder.layers[-1], np.linspace(-1, 1, 20).round(4)
    last.weight.mul_(1000)  # then grey is a small difference of large numbers
    last.bias += 0.5 - (outputs := model.model.decoder(torch.tensor(z[None]).float(), torch.empty(1, 0)).flatten())
    model.export(path := Path("large.html").resolve())
    assert [held(Path(name))["is_half"] for name in ("plain.html", "large.html")] == [True, False]
    assert outputs.abs().max() > 10
    assert np.abs(shown(see(path, f"#z={','.join(map(str, z))}")) - 127.5).max() <= 1.5


@needs_browser
def test_latents_come_in_order_of_what_they_tell(trained, of_digits, see):
    model, path, data = of_digits
    order = np.argsort(-np.array(model.kl_per_dim), kind="stable").tolist()
    page = see(path)
    assert list(values(page)) == order
    assert page.locator("#sliders small").all_inner_texts()[0] == f"{max(model.kl_per_dim):.2f} nats"
    assert page.locator("#sliders label:visible").count() == 20
    page.get_by_text("show all 24").click()
    assert page.locator("#sliders label:visible").count() == 24
    assert (data["low"], data["high"]) == ([-3.0] * 24, [3.0] * 24)

    model, path, data = written(trained("posterior=full", "model.z_dim=3", folder="full")[1])
    means = metrics.posterior(model.model, model.read_data().split("test")).mean
    assert [each["dim"] for each in data["latents"]] == means.std(0).argsort(descending=True).tolist()
    assert all(each["about"].startswith("spread ") for each in data["latents"])


@needs_browser
def test_a_link_shows_the_same_view(of_digits, see):
    page = see(of_digits[1])
    page.locator("#thumbnails button").nth(5).click()
    page.get_by_label("B: image").click()
    page.locator("#thumbnails button").nth(7).click()
    page.get_by_text("random").click()
    page.get_by_label("label").select_option("4")
    page.locator("#axes select").nth(1).select_option(index=6)
    first, last = (of_digits[2]["latents"][i]["dim"] for i in (0, 6))
    page.wait_for_function(f"() => location.hash.includes('given=4') && location.hash.endsWith('pad={first},{last}')")
    again = see(of_digits[1], "#" + page.url.partition("#")[2])
    assert (shown(again) == shown(page)).all()
    for what in ("values", "marked", "pad"):
        read = {
            "values": values,
            "marked": lambda page: page.locator("[aria-pressed=true]").evaluate_all("all => all.map(e => e.ariaLabel)"),
            "pad": lambda page: page.locator("#pad").get_attribute("aria-label"),
        }[what]
        assert read(again) == read(page), what
    strange = see(of_digits[1], "#z=1,2&given=99&images=-1,7.5&pad=a,b&between=1e9&z=<img src=x>")
    assert (shown(strange) == shown(see(of_digits[1]))).all(), "what is no view of this page is passed over"


@needs_browser
def test_copied_is_said_of_this_view_alone(of_digits, see):
    page = see(of_digits[1])
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_text("copy link").click()
    page.get_by_text("copied").wait_for()
    assert page.evaluate("() => navigator.clipboard.readText()") == page.url
    page.get_by_text("random").click()
    page.get_by_text("copy link").wait_for()


@needs_browser
def test_it_works_by_keyboard_and_by_pointer(of_digits, see):
    model, path, data = of_digits
    page = see(path)
    first, second = (each["dim"] for each in data["latents"][:2])
    page.locator("#sliders input").first.focus()
    before = values(page)
    page.keyboard.press("ArrowRight")
    assert values(page)[first] > before[first]
    page.locator("#pad").focus()
    before = values(page)
    for key in ("ArrowLeft", "ArrowUp", "ArrowUp"):
        page.keyboard.press(key)
    after = values(page)
    assert after[first] == pytest.approx(before[first] - 0.12, abs=0.011)
    assert after[second] == pytest.approx(before[second] + 0.24, abs=0.011)
    box = page.locator("#pad").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.75, box["y"] + box["height"] * 0.75)
    page.mouse.up()
    assert (values(page)[first], values(page)[second]) == pytest.approx((1.5, -1.5), abs=0.05)

    split = model.read_data().split("test")
    ends = [row_of(split, data["images"][i]) for i in (3, 1)]
    codes = model.encode(split.x[ends], split.y[ends]).mean
    page.locator("#thumbnails button").nth(3).focus()
    page.keyboard.press("Enter")
    assert values(page)[first] == pytest.approx(codes[0, first].item(), abs=0.006)
    page.get_by_label("between A and B").fill("0.25")
    middle = 0.75 * codes[0] + 0.25 * codes[1]
    assert np.abs(shown(page) - drawn(model, middle.tolist(), int(split.y[ends[0]]))).max() <= 1


@pytest.mark.slow
@needs_browser
def test_random_draws_from_the_prior(trained, see):
    page = see(written(trained("model.z_dim=20")[1])[1])
    draws = []
    for _ in range(20):
        page.get_by_text("random").click()
        draws += values(page).values()
    assert np.mean(draws) == pytest.approx(0, abs=0.25)
    assert np.std(draws) == pytest.approx(1, abs=0.2)
    page.get_by_text("reset").click()
    assert set(values(page).values()) == {0}

    model, path, _ = written(trained("prior=mixture", "model.z_dim=2", folder="mixture")[1])
    stored = model.model.prior_sample(256, torch.Generator().manual_seed(0))
    page = see(path)
    page.get_by_text("random").click()
    code = torch.tensor([values(page)[dim] for dim in range(2)])
    distance = (code - stored).abs().amax(1).min()
    assert stored.shape == (256, 2)
    assert distance < 0.01


@pytest.mark.slow
@needs_browser
def test_several_labels_and_a_number_are_conditions(trained, see):
    given = (*SPRITES, "model=conditional", "model.z_dim=4", "dataset.label=[shape,scale]")
    model, path, data = written(trained(*given, "dataset.condition=[x]", "max_steps=20")[1])
    low, high = model.conditions.ranges[0]
    page = see(path)
    start = data["images"][0]["choices"]
    assert page.locator("#controls output").inner_text() == f"{start[2]:g}"
    page.locator("#controls select").nth(1).select_option(index=0)
    page.locator("#controls select").first.select_option("heart")
    for x in (low, 0.3 * low + 0.7 * high):
        page.locator("#controls input").fill(str(x))
        z = [values(page)[dim] for dim in range(4)]
        page.evaluate(FOLLOW, f"z={','.join(map(str, z))}")
        label = {"shape": "heart", "scale": model.conditions.values[1][0], "x": x}
        assert np.abs(shown(page) - drawn(model, z, label)).max() <= 1, x

    model, path, data = written(trained(*given, "prior=by_label", "max_steps=1", folder="by_label")[1])
    with torch.no_grad():
        model.model.prior.mean.normal_()
    model.export(path)
    page = see(path)
    page.locator("#thumbnails button").nth(2).click()
    page.get_by_text("reset").click()
    y = [*map(tuple, data["labels"])].index(tuple(data["images"][2]["choices"]))
    assert [values(page)[dim] for dim in range(4)] == pytest.approx(model.model.prior.mean[y].tolist(), abs=0.006)
    assert model.class_names[y].split(", ")[0] == data["controls"][0]["values"][data["images"][2]["choices"][0]]


@pytest.mark.slow
@needs_browser
def test_a_number_is_as_fine_as_the_data_have_it(see):
    """A link holds it too: these are the seconds of three minutes, of which float32 tells no two apart."""
    _, folder = quick_run(*seconds(), "model=conditional", "model.z_dim=3", "epochs=5")
    model, path, data = written(folder)
    low, high = model.conditions.ranges[0]
    split = model.read_data().split("test")
    name = model.class_names[split.y[row_of(split, data["images"][0])]]
    assert name == f"second={data['images'][0]['choices'][0]:.0f}"
    page = see(path)
    z = [values(page)[dim] for dim in range(3)]
    for second in (low, (low + high) / 2):
        page.evaluate(FOLLOW, f"z={','.join(map(str, z))}&given={second}")
        assert np.abs(shown(page) - drawn(model, z, [second])).max() <= 1


@needs_browser
def test_a_single_latent_has_no_plane(trained, see):
    page = see(written(trained("model.z_dim=1")[1])[1], "#z=1.5&pad=0,0")
    assert values(page) == {0: 1.5}
    assert page.locator("#pad").count() == 0
    page.locator("#thumbnails button").nth(3).click()
    assert values(page) != {0: 1.5}


@needs_browser
def test_text_of_strangers_stays_text(trained, see):
    model = vae_exp.load(trained("model=conditional")[1], device="cpu")
    model.class_names = [STRANGE] * 10
    model.config["model"]["name"] = STRANGE
    model.export(path := Path("strange.html").resolve())
    page = see(path)
    assert page.locator("h1").inner_text().startswith("</script><script>")
    assert "</script>" in page.locator("#controls option").first.inner_text()
    assert page.locator("#thumbnails img[onerror]").count() == 0


@needs_browser
def test_a_phone_and_the_dark(of_digits, see):
    page = see(of_digits[1], width=390, color_scheme="dark", has_touch=True, is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 27)"
    page.locator("#sliders input").nth(15).scroll_into_view_if_needed()
    assert page.locator("#picture").bounding_box()["y"] >= 0, "the picture stays in sight of the sliders"


@needs_browser
@pytest.mark.slow
def test_frames_follow_a_moving_slider(trained, see):
    """With the tutorial's network. A free machine draws 60 a second, and one with four runs beside it 7."""
    _, path, _ = written(trained("network.hidden_dims=[400]", "model.z_dim=20")[1])
    assert path.stat().st_size < 1e6
    page = see(path)
    rate = page.evaluate(
        """async () => {
          const slider = document.querySelector("#sliders input"), start = performance.now();
          for (let i = 0; i < 40; i++) {
            slider.value = (i % 20) / 10 - 1;
            slider.dispatchEvent(new Event("input"));
            await new Promise(requestAnimationFrame);
          }
          return 40e3 / (performance.now() - start);
        }"""
    )
    assert rate > 3


class Softened(nn.Module):
    """A decoder with a layer of its own making."""

    def __init__(self, layer):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(20, 64), layer)

    def forward(self, z, context):
        return self.layers(z).view(-1, 1, 8, 8)


class Reshaped(Softened):
    def forward(self, z, context):
        return self.layers(z).reshape(-1, 1, 8, 8)


class Twice(Softened):
    def forward(self, z, context):
        return 2 * super().forward(z, context)


REFUSED = {
    "Softplus": Softened(nn.Softplus()),
    "LeakyReLU6": Softened(type("LeakyReLU6", (nn.ReLU6,), {})()),
    "Twice does more": Twice(nn.ReLU()),
    "LayerNorm": Softened(nn.LayerNorm(64)),
    "Flatten": Reshaped(nn.Sequential(nn.Unflatten(1, (4, 4, 4)), nn.Flatten(1, 2), nn.Linear(4, 4))),
    "Reshaped does more": Reshaped(nn.Sequential(nn.Unflatten(1, (4, 4, 4)), nn.Conv2d(4, 4, 1))),
}


@pytest.mark.parametrize("named", REFUSED)
def test_a_network_with_other_layers_is_refused(trained, named):
    model = vae_exp.load(trained()[1], device="cpu")
    model.model.decoder = REFUSED[named].requires_grad_(False)
    with pytest.raises(UserError, match=rf"what=explorer: .*{named}.*ConvTranspose2d"):
        model.export("explorer.html")
    assert not Path("explorer.html").exists()


def test_a_layer_may_come_twice(trained):
    model, relu = vae_exp.load(trained()[1], device="cpu"), nn.ReLU()
    model.model.decoder = Softened(nn.Sequential(relu, nn.Linear(64, 64), relu, nn.Linear(64, 64)))
    model.export("explorer.html")
    names = [each["name"] for each in held(Path("explorer.html"))["operations"]]
    assert names == ["spread", "relu", "spread", "relu", "spread", "reshape", "sigmoid"]


def test_codes_that_are_not_finite_are_one_message(trained):
    model = vae_exp.load(trained("model=conditional", "prior=by_label")[1], device="cpu")
    model.model.prior.log_var[0, 0] = 2000
    with pytest.raises(UserError, match=r"what=explorer: codes .* not finite"):
        model.export("explorer.html")


@pytest.mark.slow
def test_the_command_writes_it(trained, vae_command):
    _, folder = trained()
    code, said = vae_command("vae-generate", f"checkpoint={folder}", "what=explorer", "split=val")
    assert code == 0, said
    assert str(folder / "generated" / "explorer_split-val.html") in said
    for wrong in ("n=3", "format=pdf", "label=3", "split=all"):
        code, said = vae_command("vae-generate", f"checkpoint={folder}", "what=explorer", wrong)
        assert code == 1
        assert wrong.split("=")[0] in said
