"""Any override at all is either a valid configuration or one message that names its key, and leaves nothing behind."""

import re
import sys
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import compose
from vae_exp.commands import train as cli
from vae_exp.config.check import CONF_DIR, check, flatten, options
from vae_exp.config.rules import DATASET_RULES, OPTION_RULES, RULES

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
typed_words = st.lists(overrides, min_size=1, max_size=4)


def check_typed(vae_train_check, typed):
    """Exit code 0 and nothing said, or 1 and one message."""
    code, said = vae_train_check(*typed)
    assert code in (0, 1)
    if code:
        assert said.startswith("vae-train: ")
        assert "Traceback" not in said
        keys = {re.split("[=@]", word.lstrip("+~"))[0] for word in typed}
        assert any(key in said[len("vae-train: ") :] for key in {*KEYS, *GROUPS, *keys} - {""}) or "" in keys, said
    assert list(Path().iterdir()) == []


def answered(monkeypatch, capfd):
    """The command line up to the moment at which Hydra would make a folder for the run."""
    monkeypatch.setattr(cli, "_job", lambda: None)
    monkeypatch.setattr(cli.jobs, "start", lambda planned: None)
    monkeypatch.setattr(cli.jobs, "finish", lambda *_, **__: 0)
    monkeypatch.setattr(cli, "make_parents", lambda path: None)

    def run(*typed):
        monkeypatch.setattr(sys, "argv", ["vae-train", "dataset=digits", "wandb.mode=offline", *typed])
        try:
            cli.main()
        except SystemExit as stop:
            capfd.readouterr()
            return (1, stop.code) if isinstance(stop.code, str) else (stop.code or 0, "")
        return 0, ""

    return run


@settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(typed=typed_words)
def test_any_overrides_are_a_configuration_or_one_message(monkeypatch, capfd, typed):
    check_typed(answered(monkeypatch, capfd), typed)
