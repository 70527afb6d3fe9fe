"""`vae-reproduce`: claims are complete, a wrong one is missed with exit code 1, and a killed one goes on."""

import dataclasses
import itertools
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

import vae_exp
from tests.conftest import needs_mnist, quick_run, readme_section, recorded, written
from vae_exp.cli import reproduce
from vae_exp.config import build
from vae_exp.config.checks import CONF_DIR
from vae_exp.errors import UserError

TINY = ("epochs=2", "wandb.mode=disabled", "device=cpu")


@pytest.mark.parametrize("name", reproduce.preset_names())
def test_a_preset_composes_and_its_claims_are_complete(name):
    preset = reproduce.read_preset(name)
    build.check(vae_exp.compose(preset.config))
    assert preset.minutes > 0
    assert preset.source and preset.about and preset.differs
    for claim in preset.claims:
        assert (claim.value is None) == (claim.spread == 0) == (not claim.spread_of)
        if " + " in claim.spread_of:
            parts = [float(part.split()[-1]) for part in claim.spread_of.split(" + ")]
            assert claim.spread == pytest.approx(sum(parts))
        assert set(claim.at) <= set(preset.swept)
        assert claim.what.startswith(("train_epoch/", "test/", "evaluate/"))
        assert (preset.evaluate is not None) or not claim.what.startswith("evaluate/")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["linear_gaussian", pytest.param("ppca_mnist", marks=needs_mnist)])
def test_the_claim_of_a_linear_model_is_its_closed_form(name):
    """With v = sigma^2, an axis of variance l > v among the first z_dim costs log(l / v) / 2 (Tipping & Bishop)."""
    preset = reproduce.read_preset(name)
    config = build.check(vae_exp.compose(preset.config))
    data = build.dataset(config)
    x = data.train.x.flatten(1).double() / 255
    measured = data.split(preset.evaluate.get("split", "test")).x.flatten(1).double() / 255
    variances, axes = (found.flip(-1) for found in torch.linalg.eigh(torch.cov(x.T, correction=0)))
    v, kept = config["likelihood"]["sigma"] ** 2, config["model"]["z_dim"]
    told = torch.where((variances > v) & (torch.arange(len(variances)) < kept), variances, v)
    along = ((measured - x.mean(0)) @ axes).square().mean(0)
    exact = 0.5 * (told * 2 * torch.pi).log().sum() + 0.5 * (along / told).sum()
    for claim in preset.claims:
        assert claim.value == pytest.approx(exact.item(), abs=1e-3)


@pytest.mark.parametrize(
    ("values", "claim", "rest", "verdict"),
    [
        ([10.9], {"spread": 1.0}, {}, "reproduced"),
        ([11.1], {"spread": 1.0}, {}, "missed by +1.10"),
        ([8.9], {"spread": 1.0}, {}, "missed by -1.10"),
        ([11.1], {"spread": 1.0, "seed_std": 0.06}, {}, "reproduced"),  # of one seed: 1 + 2 * 0.06
        ([10.6, 11.0, 11.4, 11.8], {"spread": 0.7}, {}, "reproduced"),  # 0.7 + 2 * 0.516 / sqrt(4) = 1.216
        ([10.6, 11.0, 11.4, 11.8], {"spread": 0.65, "seed_std": 9.0}, {}, "missed by +1.20"),  # 1.166: theirs count
        ([10.0], {"spread": 1.0}, {"shortened": "2 of 9 epochs"}, "shortened (2 of 9 epochs), off by +0.00"),
        ([10.0], {"value": None}, {}, "nothing to compare with"),
        ([], {"spread": 1.0}, {}, "not run here (needs 2 h)"),
        ([], {"spread": 1.0}, {"needs": "a week"}, "not run here (needs a week)"),
    ],
)
def test_the_rule_of_the_verdict(values, claim, rest, verdict):
    preset = dataclasses.replace(reproduce.read_preset("linear_gaussian"), minutes=120, **rest)
    result = reproduce.Result(reproduce.Claim(**{"what": "test/neg_elbo", "value": 10.0} | claim), values)
    assert result.verdict(preset) == verdict


def test_a_time_has_two_digits_and_a_unit_that_fits():
    minutes = (0.3, 2.34, 9.96, 52, 99.4, 99.6, 420, 6000)
    assert [reproduce.duration(n) for n in minutes] == [
        "18 s",
        "2.3 min",
        "10 min",
        "52 min",
        "99 min",
        "1.7 h",
        "7 h",
        "100 h",
    ]


def test_help_tells_the_rule_and_what_each_preset_takes_without_importing_torch():
    code = (
        "import sys; from vae_exp.cli import reproduce\ntry: reproduce.main()\nfinally: print('torch' in sys.modules)"
    )
    process = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=True)
    assert "two standard errors over our seeds plus the claim's own spread" in process.stdout
    costs = dict(re.findall(r"^  (\w+) +(\d[\d.]* (?:s|min|h))$", process.stdout, re.M))
    assert list(costs) == reproduce.preset_names()
    assert (costs["linear_gaussian"], costs["iwae_k1"]) == ("18 s", "7 h")
    assert process.stdout.endswith("\nFalse\n")


@pytest.fixture
def own(monkeypatch, tmp_path):
    """A preset of two epochs on digits in a conf of its own; the function writes its claims."""
    conf = tmp_path / "conf"
    shutil.copytree(CONF_DIR, conf)
    for path in (conf / "experiment" / "published").iterdir():
        if path.stem not in ("conditional", "tutorial_seeds"):  # two others suffice
            path.unlink()
    for module in ("vae_exp.config.checks", "vae_exp.config.compose", "vae_exp.cli.reproduce"):
        if hasattr(sys.modules.get(module), "CONF_DIR"):
            monkeypatch.setattr(f"{module}.CONF_DIR", conf)

    def write(hydra=None, **said):
        told = {"about": "digits", "source": "nobody", "minutes": 0.1, "differs": "all", **said}
        preset = {"defaults": [{"override /dataset": "digits"}], "epochs": 2, "network": {"hidden_dims": [16]}}
        preset |= {"hydra": hydra} if hydra else {}
        path = conf / "experiment" / "published" / "tiny.yaml"
        path.write_text(f"# @package _global_\n{OmegaConf.to_yaml({**preset, 'published': told})}")

    return write


def claimed(value, spread=1.0, what="test/neg_elbo", **rest):
    return {"what": what, "value": value, "spread": spread, "spread_of": "a guess", **rest}


@pytest.mark.slow
def test_a_run_is_trained_once_evaluated_and_compared(vae_command):
    """Of two epochs, which is another protocol: the whole one takes longer, in the slow test below."""
    typed = ("epochs=2", "likelihood.sigma=0.3", "wandb.mode=offline", "device=cpu")  # a key of the preset's likelihood
    code, said = vae_command("vae-reproduce", "linear_gaussian", *typed, "dataset.root=x")
    assert code == 0, said
    assert said.count("other protocol (epochs=2 likelihood.sigma=0.3), off by") == 2
    folder = Path("outputs/published/linear_gaussian_epochs-2_likelihood.sigma-0.3")
    assert len(json.loads((folder / "reproduced.json").read_text())["claims"]) == 2
    logs = [recorded(path) for path in Path("outputs/wandb").glob("offline-run-*")]
    summary = {name for log in logs for record in log["summary"] for name in record.get("update", {})}
    assert {"published/evaluate/nll", "published/evaluate/nll/here", "evaluate/train/nll"} <= summary
    before = (folder / "summary.json").read_bytes()
    code, said = vae_command("vae-reproduce", "linear_gaussian", *typed, "--markdown")
    assert code == 0, said
    (row,) = [line for line in said.splitlines() if line.startswith("| `linear_gaussian` | nll | -12.444 ± 0.05 | [")]
    here, time_taken, machine, verdict = row.strip("| ").split(" | ")[4:]
    assert re.fullmatch(r"-?\d+\.\d{3} \(n = 1\)", here) and re.fullmatch(r"[\d.]+ s", time_taken)
    assert re.fullmatch(r".+, \d+ cores", machine)
    assert verdict.startswith("other protocol (epochs=2 likelihood.sigma=0.3), off by")
    assert (folder / "summary.json").read_bytes() == before


def test_a_wrong_claim_is_missed_with_exit_code_1(own, vae_command):
    """The command reads the preset's own conf in this process; the run that it would train is there already."""
    own(claims=[claimed(20.0), claimed(20.0, what="train_epoch/neg_elbo", after_epoch=1)])
    preset = reproduce.read_preset("tiny")
    found = reproduce.Attempt(preset, []).results()
    assert [each.verdict(preset) for each in found] == ["not run here (needs 6 s)"] * 2
    summary, _ = quick_run("network.hidden_dims=[16]", "epochs=2", folder=Path("outputs/published/tiny"))
    found = reproduce.Attempt(preset, []).results()
    assert found[0].mean == summary["test/neg_elbo"]
    assert found[0].verdict(preset) == f"missed by {summary['test/neg_elbo'] - 20:+.2f}"
    assert found[1].mean > found[0].mean
    code, said = vae_command("vae-reproduce", "tiny")
    assert (code, said.count("missed by")) == (1, 2)
    own(claims=[claimed(summary["test/neg_elbo"] + 0.5)])
    code, said = vae_command("vae-reproduce", "tiny")
    assert (code, said.count("reproduced")) == (0, 1)
    with pytest.raises(UserError, match=r"nothing: no such preset. There are conditional"):
        reproduce.read_preset("nothing")


@pytest.mark.slow
def test_a_name_that_there_is_not_and_a_training_that_fails_have_exit_code_1(vae_command):
    code, said = vae_command("vae-reproduce", "nothing")
    assert (code, "nothing: no such preset" in said) == (1, True)
    code, said = vae_command("vae-reproduce", "linear_gaussian", "optimizer.lr=-1")
    assert (code, "optimizer.lr=-1" in said, "not run here" in said) == (1, True, True)
    for typed in ("tutorials", "published/tutorial"):
        code, said = vae_command("vae-reproduce", typed)
        assert (code, f"{typed}: no such preset. Did you mean tutorial" in said) == (1, True)


@pytest.mark.slow
def test_what_is_not_the_whole_protocol_is_never_called_reproduced(own, vae_command):
    summary, folder = quick_run("network.hidden_dims=[16]", "epochs=2", folder=Path("outputs/published/tiny"))
    own(claims=[claimed(summary["test/neg_elbo"])], shortened="two of ten epochs")
    code, said = vae_command("vae-reproduce", "tiny")
    assert (code, "shortened (two of ten epochs), off by" in said) == (0, True)
    own(claims=[claimed(summary["test/neg_elbo"])])
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("epochs: 2", "epochs: 3"))
    code, said = vae_command("vae-reproduce", "tiny")
    assert (code, "no run of tiny" in said, "epochs=2: it has 3" in said, "reproduced" in said) == (
        1,
        True,
        True,
        False,
    )
    sweep = Path("outputs/published/tutorial_seeds/seed-0")
    sweep.mkdir(parents=True)
    (sweep / "summary.json").write_text(json.dumps(summary | {"train_epoch/neg_elbo": 104.7}))
    assert not [
        each for each in reproduce.Attempt(reproduce.read_preset("tutorial_seeds"), []).results() if each.values
    ]


@pytest.mark.slow
@pytest.mark.parametrize("damaged", ["[]", "{", '{"claims": [{"here": 1}], "weights": "x"}'])
def test_damaged_files_are_no_traceback(own, vae_command, damaged):
    summary, folder = quick_run("network.hidden_dims=[16]", "epochs=2", folder=Path("outputs/published/tiny"))
    (folder / "reproduced.json").write_text(damaged)
    (folder / "metrics.jsonl").write_text(damaged)
    (folder / "summary.json").write_text(json.dumps(summary | {"test/neg_elbo": "abc"}))
    own(claims=[claimed(1.0), claimed(1.0, what="train_epoch/neg_elbo", after_epoch=1)])
    for typed in ((), ("--markdown",), ("tiny",)) if damaged == "[]" else (("tiny",),):
        code, said = vae_command("vae-reproduce", *typed)
        assert (code, "Traceback" in said) == (int(typed == ("tiny",)), False)
    code, said = vae_command("vae-evaluate", f"checkpoint={folder}", "wandb.mode=offline")
    assert code == 0, said


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (("epochs=2",), "epochs=2: of which preset?"),
        (("tutorial", "replace=true"), "replace=true: vae-reproduce says itself"),
        (("tutorial", "hydra.run.dir=x"), "hydra.run.dir=x: vae-reproduce says itself"),
        (("all", "nothing"), "nothing: no such preset"),
    ],
)
def test_words_that_it_does_not_take(typed, said, vae_command, tmp_path):
    code, told = vae_command("vae-reproduce", *typed)
    assert (code, said in told) == (1, True)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_killed_one_goes_on_where_it_was(vae_command):
    typed = ["linear_gaussian", "wandb.mode=disabled", "device=cpu", "checkpoint_every_epochs=5"]
    code = "from vae_exp.cli.reproduce import main; main()"
    process = subprocess.Popen([sys.executable, "-c", code, *typed], start_new_session=True, stdout=subprocess.DEVNULL)
    deadline = time.time() + 90
    while not written("last.pt") and time.time() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    folder = Path("outputs/published/linear_gaussian")
    reached = vae_exp.load(folder / "last.pt").epoch
    assert 0 < reached < 600
    code, said = vae_command("vae-reproduce", *typed)
    assert code == 0, said
    assert "resumes from" in said
    epochs = [int(n) for n in re.findall(r"^epoch +(\d+)/600", said, re.M)]
    assert epochs[0] == reached + 1
    assert said.count("reproduced") == 2
    claims = json.loads((folder / "reproduced.json").read_text())["claims"]
    assert [claim["verdict"] for claim in claims] == ["reproduced", "reproduced"]
    code, said = vae_command("vae-reproduce", "linear_gaussian", "--markdown")
    assert code == 0, said
    assert re.search(r"^\| `linear_gaussian` \| nll \| -12.444 ± 0.05 \| .* \| reproduced \|$", said, re.M)
    code, said = vae_command("vae-reproduce")
    assert code == 0, said
    assert "not run here (needs" in said
    assert "    here     reproduced\n" in said


@pytest.mark.slow
def test_claims_at_one_setting_of_a_sweep_take_its_jobs_alone(own, vae_command):
    sweep = {"mode": "MULTIRUN", "sweeper": {"params": {"model.beta": "1,2", "seed": "0,1"}}}
    own(claims=[claimed(1.0, at={"model.beta": beta}) for beta in (1, 2)], hydra=sweep)
    found = {1: [], 2: []}
    for beta, seed in itertools.product((1, 2), (0, 1)):
        folder = Path(f"outputs/published/tiny/beta-{beta}_seed-{seed}")
        words = ("network.hidden_dims=[16]", "epochs=2", f"model.beta={beta}", f"seed={seed}")
        found[beta].append(quick_run(*words, folder=folder)[0]["test/neg_elbo"])
    results = reproduce.Attempt(reproduce.read_preset("tiny"), []).results()
    assert [result.values for result in results] == [found[1], found[2]]
    code, said = vae_command("vae-reproduce", "tiny", "wandb.mode=disabled", "--markdown")
    assert (code, said.count("(n = 2)")) == (1, 2)
    assert "| `tiny` | test/neg_elbo, beta 2 | 1.00 ± 1 | nobody | " in said
    (claim,) = json.loads((folder / "reproduced.json").read_text())["claims"]
    assert claim["at"] == {"model.beta": 2}


def test_a_file_that_is_not_there_is_asked_for(vae_command, tmp_path):
    for typed, file in ((tmp_path, "freyfaces.npz"), (tmp_path / "my.npz", "")):
        code, said = vae_command("vae-reproduce", "freyfaces", f"dataset.root={typed}")
        assert (code, f"dataset.root={typed / file}: there is no such file" in said) == (1, True)
    assert "frey_rawface.mat" in said


def test_the_table_of_the_readme_is_what_the_command_prints():
    """Each row: the claim as the preset has it, and the verdict that follows from the number that was found."""
    lines = readme_section("tests/README.md", "Published figures").splitlines()
    table = [line for line in lines if re.match(r"\| `\w+` \|", line)]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table]
    presets = [reproduce.read_preset(name) for name in reproduce.preset_names()]
    expected = [(reproduce.Attempt(preset, []), claim) for preset in presets for claim in preset.claims]
    assert lines[lines.index(table[0]) - 2] == reproduce.table([], True)[0]
    assert len(rows) == len(expected)
    for row, (attempt, claim) in zip(rows, expected, strict=True):
        here, time_taken, machine, verdict = row[4:]
        values, number = [], re.fullmatch(r"(-?[\d.]+)(?: ± ([\d.]+))? \(n = (\d+)\)", here)
        if number:
            mean, spread, n = float(number[1]), float(number[2] or 0), int(number[3])
            off = spread * math.sqrt((n - 1) / 2)  # of the first two, where the others are at the mean
            values = [mean - off, mean + off, *[mean] * (n - 2)] if n > 1 else [mean]
            assert time_taken and machine != "-"
        else:
            assert (here, time_taken, machine) == ("-", "-", "-")
        (written_anew,) = reproduce.table([(attempt, [reproduce.Result(claim, values)])], True)[2:]
        cells = [cell.strip() for cell in written_anew.strip("|").split(" | ")]
        assert row[:5] == cells[:5]
        (said, _, off), (expected_said, _, expected_off) = verdict.rpartition(" by "), cells[7].rpartition(" by ")
        assert said == expected_said
        assert off == expected_off if not said else float(off) == pytest.approx(float(expected_off), abs=0.011)
