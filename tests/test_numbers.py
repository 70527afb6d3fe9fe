"""Short runs of every part give the numbers of tests/data/numbers.json, but for another processor's rounding."""

import json

import pytest

from tests.numbers import DATA, RUNS, measured

KEPT = json.loads(DATA.read_text())
# Another processor sums in another order, and so rounds otherwise: in float32 by 2**-24, in each of a step's forward
# pass, sums, backward pass and update, or 5e-6 after 22 steps; a norm or a difference of them may have ten times that.
# A bfloat16 of eight bits that lies on the edge falls to its neighbour, 2**-8 away, in some of a number's many terms.
FLOAT32, BFLOAT16 = 1e-4, 1e-3
NOTHING = 1e-5  # nats: a KL near zero is what is left of numbers near one
NEARLY_COUNTED = ("active_units",)  # a latent may lie on the threshold


def assert_the_same(now, then, rounding, where):
    assert type(now) is type(then), where
    if isinstance(then, dict):
        assert now.keys() == then.keys(), where
        for key in then:
            assert_the_same(now[key], then[key], rounding, f"{where} {key}")
    elif isinstance(then, list):
        assert len(now) == len(then), where
        for row, (a, b) in enumerate(zip(now, then, strict=True)):
            assert_the_same(a, b, rounding, f"{where} {row}")
    elif isinstance(then, float):
        assert now == pytest.approx(then, rel=rounding, abs=NOTHING), where
    elif where.endswith(NEARLY_COUNTED):
        assert abs(now - then) <= 1, where
    else:
        assert now == then, where


def test_every_run_is_kept():
    assert KEPT.keys() == RUNS.keys()


@pytest.mark.parametrize("name", RUNS)
def test_the_numbers_stay(name, tmp_path):
    now = measured(name, tmp_path / "run")
    for part in ("rows", "results"):
        assert_the_same(now[part], KEPT[name][part], BFLOAT16 if name == "bf16" else FLOAT32, part)
    assert now["pictures"].keys() == KEPT[name]["pictures"].keys()
