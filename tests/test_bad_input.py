"""Any override at all is either a valid configuration or one message that names its key, and leaves nothing behind."""

import os
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import hooks
from tests.conftest import compose
from vae_exp.config.checks import CONF_DIR, check, flatten, options
from vae_exp.config.schema import DATASET_RULES, OPTION_RULES, RULES
from vae_exp.errors import printable

GROUPS = [path.name for path in CONF_DIR.iterdir() if path.is_dir() and path.name != "hydra"]
KEYS = sorted({*flatten(check(compose())), *RULES, *OPTION_RULES, *DATASET_RULES})

numbers = st.one_of(
    st.integers(), st.floats(), st.sampled_from([0, -1, 1e309, 10**30, "1e-400", "0x10", "1_000", "inf", "-nan"])
).map(str)
words = st.one_of(
    st.sampled_from(
        ["", "null", "true", "'null'", "''", '" "', "~", "..", "../..", "/", "a/../b", "???", "${seed}", "${epochs}"]
    ),
    st.sampled_from(["${nowhere}", "${oc.env:NOWHERE}", "${", "$", "é", "日本", "a b", "a\\tb", "'a\nb'", "\x00"]),
    st.text(max_size=12),
    st.text("0123456789.,[]{}:=-+'\"\\$", max_size=10),
)
nested = st.recursive(
    st.one_of(numbers, st.sampled_from(["a", "null", "true", "''"])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4).map(lambda parts: f"[{','.join(parts)}]"),
        st.dictionaries(st.sampled_from(["a", "_target_", "lr"]), inner, max_size=3).map(
            lambda parts: "{" + ",".join(f"{key}:{value}" for key, value in parts.items()) + "}"
        ),
    ),
    max_leaves=6,
)
values = st.one_of(numbers, words, nested)
chosen = st.sampled_from(GROUPS).flatmap(
    lambda group: st.sampled_from([f"{group}={option}" for option in options(group)])
)
signs = st.sampled_from(["", "", "", "", "+", "++"])
overrides = st.one_of(
    st.builds("{}{}={}".format, signs, st.sampled_from(KEYS), values),
    st.builds("{}{}={}".format, signs, st.sampled_from(KEYS), numbers),
    st.builds("{}={}".format, st.sampled_from(GROUPS), values),
    st.builds("{}{}={}".format, signs, st.text(max_size=8), values),
    st.sampled_from(KEYS + GROUPS).map("~{}".format),
    chosen,
    values,
)
FLAGS = (
    "-m",
    "-r",
    "-c",
    "-p",
    "-i",
    "-sc",
    "-cp",
    "-cn",
    "-cd",
    "-h",
    "--",
)  # Hydra's own begin so, in one way or another
overrides = overrides.filter(lambda word: not word.startswith(FLAGS))
typed_words = st.lists(overrides, min_size=1, max_size=4)


def check_typed(vae_train_check, typed):
    """Exit code 0 and nothing said, or 1 and one message."""
    code, said = vae_train_check(*typed)
    assert code in (0, 1)
    if code:
        assert said.startswith("vae-train: ")
        assert "Traceback" not in said
        keys = {printable(re.split("[=@]", word.lstrip("+~"))[0]) for word in typed}
        assert any(key in said[len("vae-train: ") :] for key in {*KEYS, *GROUPS, *keys} - {""}) or "" in keys, said
    assert list(Path().iterdir()) == []


def stop_at_a_folder(event, arguments):
    """Where the user stands: libraries make folders for themselves when they are first imported."""
    if event == "os.mkdir" and Path(os.fsdecode(arguments[0])).absolute().is_relative_to(Path.cwd()):
        raise hooks.Crash


def answered(vae_train):
    """The command line up to the moment at which it makes the first folder: until then it has refused, or will run."""

    def run(*typed):
        try:
            with hooks.at_call(stop_at_a_folder):
                code, said = vae_train("dataset=digits", "wandb.mode=offline", *typed)
        except hooks.Crash:
            return 0, ""
        assert code != 0, "it ended well and made nothing"
        return code, said

    return run


def answers(max_examples):
    return settings(max_examples=max_examples, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@answers(max_examples=60)
@given(typed=typed_words)
def test_any_overrides_are_a_configuration_or_one_message(vae_train, typed):
    check_typed(answered(vae_train), typed)


@pytest.mark.slow
@answers(max_examples=400)
@given(typed=typed_words)
def test_many_more_overrides_are_too(vae_train, typed):
    check_typed(answered(vae_train), typed)
