"""What a step can do beside the loss and its gradient: add batches up, clip, average the weights."""

import copy
from pathlib import Path

import pytest
import torch

import vae_exp
from tests.conftest import metrics, quick_run, stored
from vae_exp.config import build
from vae_exp.errors import UserError
from vae_exp.evaluation.metrics import evaluate
from vae_exp.training.optimizer import step_of
from vae_exp.training.state import EMA

SMALL = ("network.hidden_dims=[16]", "model.z_dim=3", "log_every_steps=1")


def train_rows(folder):
    return [row for row in metrics(folder) if "train/loss" in row]


def weights(path):
    return torch.cat([value.flatten() for value in stored(path)["model"].values()])


@pytest.mark.parametrize(
    "variant",
    [
        ("objective.warmup_epochs=1",),
        ("model=conditional", "dataset.flip=true", "dataset.binarize=dynamic"),
        ("likelihood=gaussian", "likelihood.sigma=learned", "optimizer=sgd", "optimizer.lr=1e-4"),
    ],
)
def test_batches_that_add_up_make_the_steps_of_the_larger_batch(variant):
    """The epoch's last batch too: 1,297 images are five batches of 256 and one of 17, of which 64 takes none whole."""
    settings = (*SMALL, *variant, "epochs=2", "wandb.mode=disabled")
    quick_run(*settings, "batch_size=256", folder="whole")
    quick_run(*settings, "batch_size=64", "accumulate_steps=4", folder="parts")
    for whole, parts in zip(train_rows("whole"), train_rows("parts"), strict=True):
        assert parts["train/loss"] == pytest.approx(whole["train/loss"], rel=1e-4)
        assert parts["train/grad_norm"] == pytest.approx(whole["train/grad_norm"], rel=1e-3)
        assert all(parts[key] == whole[key] for key in ("step", "epoch", "images_seen", "train/lr"))
    torch.testing.assert_close(weights("parts/last.pt"), weights("whole/last.pt"), rtol=1e-3, atol=1e-4)


def test_the_longest_step_is_the_norm_that_gradients_are_clipped_to():
    """Plain SGD with a learning rate of 1 moves the weights by the gradient itself."""
    clip = ("gradient_clip_norm=0.01", "optimizer=sgd", "optimizer.momentum=0", "optimizer.lr=1", "batch_size=2000")
    moved = {}
    for epochs in (0, 1):
        quick_run(*SMALL, *clip, f"epochs={epochs}", folder=f"e{epochs}")
        moved[epochs] = weights(f"e{epochs}/last.pt").double()
    assert (moved[1] - moved[0]).norm().item() == pytest.approx(0.01, rel=1e-2)
    assert train_rows("e1")[0]["train/grad_norm"] > 1, "what is logged is the length before"


def test_a_gradient_that_is_short_enough_is_left_alone():
    for folder, clip in (("free", "null"), ("clipped", "1e6")):
        quick_run(*SMALL, f"gradient_clip_norm={clip}", folder=folder)
    assert torch.equal(weights("free/last.pt"), weights("clipped/last.pt"))


def test_the_average_is_what_its_formula_says():
    trained = torch.nn.Linear(1, 1, bias=False)
    average, decay, expected = EMA(trained, 0.9), 0.9, trained.weight.item()
    for step in range(1, 200):
        trained.weight.data.fill_(float(step))
        average.update(step)
        rate = min(decay, (1 + step) / (10 + step))
        expected = rate * expected + (1 - rate) * step
    assert average.model.weight.item() == pytest.approx(expected, rel=1e-5)
    assert expected == pytest.approx(199 - 0.9 / 0.1, rel=1e-3), "its age is that of a mean over ten steps"


def test_the_average_is_measured_and_saved_and_training_is_that_without_it():
    plain, _ = quick_run(*SMALL, "epochs=2", folder="plain")
    averaged, _ = quick_run(*SMALL, "epochs=2", "ema=0.99", folder="averaged")
    both = [[row["train/loss"] for row in train_rows(folder)] for folder in ("plain", "averaged")]
    assert both[0] == both[1], "the steps do not know of it"
    assert averaged["best/val_neg_elbo"] != plain["best/val_neg_elbo"]
    last, best = stored(Path("averaged/last.pt")), stored(Path("averaged/best.pt"))
    raw = stored(Path("plain/last.pt"))["model"]
    assert all(torch.equal(raw[name], last["resume"]["weights"][name]) for name in raw)
    assert not all(torch.equal(raw[name], last["model"][name]) for name in raw)
    assert last["config"]["ema"] == 0.99
    model = vae_exp.load("averaged/best.pt")
    assert all(torch.equal(value, best["model"][name]) for name, value in model.model.state_dict().items())
    again = evaluate(model.model, model.read_data().split("test"), build.generator(0, "evaluation"))
    assert again.per_image["neg_elbo"].mean().item() == pytest.approx(averaged["test/neg_elbo"], rel=1e-6)


def test_an_average_follows_what_layers_count_themselves():
    """The running error of likelihood.sigma=optimal is no weight; the average takes it as it is."""
    quick_run(*SMALL, "likelihood=gaussian", "likelihood.sigma=optimal", "ema=0.5", folder="run")
    state = stored(Path("run/last.pt"))
    assert torch.equal(state["model"]["likelihood.mean_square"], state["resume"]["weights"]["likelihood.mean_square"])
    assert state["model"]["likelihood.batches"].item() == 11


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("ema=1", "ema=1: it takes a decay above 0 and below 1, such as 0.999, or null"),
        ("gradient_clip_norm=0", "gradient_clip_norm=0: it takes a number above 0"),
        ("accumulate_steps=0", "accumulate_steps=0: it takes a whole number, 1 or more"),
    ],
)
def test_a_value_that_cannot_be_is_named(typed, said):
    with pytest.raises(UserError) as error:
        quick_run(typed)
    assert said in str(error.value)


def test_a_run_goes_on_with_the_average_that_it_has():
    quick_run(*SMALL, "ema=0.9", folder="run")
    with pytest.raises(UserError, match=r"ema=0.5: the run has ema=0.9"):
        quick_run(*SMALL, "ema=0.5", "epochs=2", "resume=run")
    state = stored(Path("run/last.pt"))
    del state["resume"]["weights"]
    torch.save(state, "run/last.pt")
    Path("run/last.previous.pt").unlink(missing_ok=True)
    with pytest.raises(UserError, match="the checkpoint is damaged, or made by hand: its weights"):
        quick_run(*SMALL, "ema=0.9", "epochs=2", "resume=run")


def test_a_run_of_before_there_were_such_keys_goes_on():
    quick_run(*SMALL)
    state = stored(Path("run/last.pt"))
    for key in ("ema", "gradient_clip_norm", "accumulate_steps"):
        del state["config"][key]
    torch.save(state, "run/last.pt")
    assert quick_run(*SMALL, "epochs=2", "resume=run")[0]["best/epoch"] == 2


FUSED = {"lr": 1e-2, "fused": True}


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        *(("Adam", FUSED | more) for more in ({}, {"weight_decay": 0.1, "maximize": True}, {"amsgrad": True})),
        *(("AdamW", FUSED | more) for more in ({}, {"fused": False})),
        *((name, {}) for name in ("SGD", "Adadelta", "Adafactor", "Rprop", "RMSprop", "NAdam")),
    ],
)
def test_a_step_is_that_of_pytorch_to_the_bit(name, settings):
    """With another learning rate at each step, with weights that get no gradient at some, and after a reload."""
    both = []
    for makes in (step_of, lambda optimizer: optimizer.step):
        torch.manual_seed(0)
        weights = [torch.nn.Parameter(torch.randn(shape)) for shape in ((40, 30), (40,), (3, 2, 2))]
        optimizer = getattr(torch.optim, name)(weights, **settings)
        take_step = makes(optimizer)
        for number in range(30):
            optimizer.param_groups[0]["lr"] = 1e-2 / (1 + number)
            for i, each in enumerate(weights):
                each.grad = None if (i + number) % 13 == 2 and number % 2 else torch.randn(each.shape)
            take_step()
            if number == 20:
                optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        both.append((weights, optimizer.state_dict()))
    (ours, our_state), (theirs, their_state) = both
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert our_state["param_groups"] == their_state["param_groups"]
    for key, state in their_state["state"].items():
        for part, values in state.items():
            torch.testing.assert_close(our_state["state"][key][part], values, rtol=0, atol=0)


def test_what_is_hooked_to_an_optimizer_is_called():
    weights = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.Adam([weights], fused=True)
    calls = []
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    take_step = step_of(optimizer)
    for _ in range(3):
        weights.grad = torch.ones(2)
        take_step()
    assert len(calls) == 3
