"""`vae-reproduce`: re-run the figures that presets in conf/experiment/published claim."""

import argparse
import contextlib
import math
import os
import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf

from vae_exp.cli import common, evaluate
from vae_exp.compare.runs import BOOKKEEPING, SEEDS
from vae_exp.config.checks import CONF_DIR, check, flatten, literal, resolve
from vae_exp.config.compose import compose, readable, without_hydra
from vae_exp.config.schema import EvaluateOptions, is_number
from vae_exp.errors import UserError
from vae_exp.evaluation import results
from vae_exp.files import read_json, read_json_lines, write_json
from vae_exp.torchrun_env import safe_path
from vae_exp.training import run_dir
from vae_exp.training.console import echo
from vae_exp.training.run_dir import BEST, LAST, LENGTH, METRICS, OUTPUTS, PREVIOUS, RESULT, read_summary

PUBLISHED = "published"
EVALUATED = "evaluate/"  # a claim of what vae-evaluate measures; others are of what a run logs
NOT_RUN = "not run here"
ABOUT = """Published figures: train, or resume, the presets that claim them, evaluate them by their protocol, and
print claim, here and verdict. Without a name: the list. Exit code 1 where a figure is missed or could not be had."""
ROOT = "dataset.root"
HANDED_ON = (f"{ROOT}=", "device=", "trust=")  # to vae-evaluate
RESERVED = ("resume", "replace", "sweep.", "hydra.")  # what this command says itself


@dataclass(frozen=True)
class Claim:
    """A number that somebody published."""

    what: str  # test/neg_elbo, or evaluate/nll
    value: float
    within: float  # how far it may be off and count as the same
    after_epoch: int | None = None  # as logged after this epoch; None is the end

    @property
    def name(self) -> str:
        return self.what.removeprefix(EVALUATED) + (f", epoch {self.after_epoch}" if self.after_epoch else "")

    def text(self, value: float) -> str:
        """Return the value with as many digits as the tolerance has, and one more."""
        digits = max(2, len(f"{self.within:g}".partition(".")[2]) + 1)
        return f"{value:.{digits}f}"


@dataclass(frozen=True)
class Preset:
    """Hold the part of a file in conf/experiment/published that is not settings."""

    name: str
    about: str
    source: str
    minutes: float
    differs: str
    claims: list[Claim]
    runs: int | None  # of a sweep how many; None is one run
    has_root: bool  # its data lie in a folder, dataset.root
    evaluate: dict[str, Any] | None = None  # keys of vae-evaluate; None where nothing but the run is claimed
    shortened: str | None = None  # it is not the whole protocol
    needs: str | None = None  # more than a machine of today is given for it

    @property
    def config(self) -> str:
        return f"experiment={PUBLISHED}/{self.name}"


@dataclass
class Result:
    """A claim beside what was found here."""

    claim: Claim
    values: list[float]  # one, or one for each seed; empty: not run to the end

    @property
    def mean(self) -> float | None:
        return statistics.mean(self.values) if self.values else None

    def text(self) -> str:
        """Return the value found here, with its standard deviation over seeds."""
        if self.mean is None:
            return "-"
        spread = f" ± {self.claim.text(statistics.stdev(self.values))}" if len(self.values) > 1 else ""
        return self.claim.text(self.mean) + spread

    def verdict(self, preset: Preset, changes: Sequence[str] = ()) -> str:
        """Return "reproduced", or by how much the claim is missed; of another protocol only how far off it is."""
        if self.mean is None:
            return f"{NOT_RUN} (needs {preset.needs or f'{preset.minutes:g} minutes'})"
        off = self.mean - self.claim.value
        if changes:
            return f"other protocol ({' '.join(changes)}), off by {off:+.2f}"
        if preset.shortened:
            return f"shortened ({preset.shortened}), off by {off:+.2f}"
        return "reproduced" if abs(off) <= self.claim.within else f"missed by {off:+.2f}"


def preset_names() -> list[str]:
    return sorted(path.stem for path in (CONF_DIR / "experiment" / PUBLISHED).glob("*.yaml"))


def read_preset(name: str) -> Preset:
    """Read a preset by its name. Raise UserError if there is no such preset."""
    if name not in preset_names():
        raise UserError(f"{name}: no such preset. There are {', '.join(preset_names())}, and all.")
    cfg = compose("config", [f"experiment={PUBLISHED}/{name}"])
    content: Any = OmegaConf.to_container(cfg[PUBLISHED])
    claims = [Claim(**claim) for claim in content.pop("claims")]
    swept = [str(values).split(",") for values in cfg.hydra.sweeper.params.values()] if cfg.hydra.mode else None
    runs = None if swept is None else math.prod(map(len, swept))
    return Preset(name=name, claims=claims, runs=runs, has_root="root" in cfg.dataset, **content)


def _protocol(config: Any) -> dict[str, Any]:
    return {key: value for key, value in flatten(config).items() if key not in SEEDS}


def logged_value(folder: Path, claim: Claim) -> float | None:
    """Return the value that the run in a folder logged for a claim, or None if it logged none, or no number."""
    if claim.after_epoch is None:
        summary = read_summary(folder)
        return number(summary.results.get(claim.what)) if summary else None
    rows = (row for row in read_json_lines(folder / METRICS) if row.get("epoch") == claim.after_epoch)
    return next((number(row[claim.what]) for row in rows if claim.what in row), None)


def number(value: Any) -> float | None:
    """Return the value if it is a finite number, else None."""
    return float(value) if is_number(value) else None


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+~")


class Attempt:
    """Reproduce a preset: its overrides, the folder of its runs, and what was found in them."""

    def __init__(self, preset: Preset, overrides: list[str]) -> None:
        self.preset = preset
        # With `all`, dataset.root is for the presets whose data lie in a folder.
        self.overrides = [word for word in overrides if preset.has_root or _key(word) != ROOT]
        settings = [word for word in self.overrides if not _key(word).startswith("wandb.")]
        self.changes = [word for word in settings if _key(word) not in BOOKKEEPING]
        # Settings of another protocol get a folder of their own.
        changed = [re.sub(r"[^\w.-]+", "-", word) for word in self.changes]
        self.folder = OUTPUTS / PUBLISHED / "_".join([preset.name, *changed])
        self.wandb_mode = next((word for word in overrides if word.startswith("wandb.mode=")), "wandb.mode=auto")
        self.keys = dict(preset.evaluate or {})  # of vae-evaluate
        self.checkpoint = self.keys.pop("checkpoint", BEST)

    def runs(self) -> list[Path]:
        return sorted(run_dir.runs_below(self.folder))

    def finished_runs(self) -> list[Path]:
        """Return its finished runs, none if some of its sweep lack. Raise UserError for another protocol's."""
        finished = {}
        for folder in self.runs():
            summary, config = read_summary(folder), run_dir.read_config(folder)
            if summary is not None and summary.finished and config:
                finished[folder] = _protocol(config)
        if not finished:
            return []
        wanted = _protocol(check(without_hydra(compose("config", readable([self.preset.config, *self.overrides])))))
        for folder, actual in finished.items():
            wrong = run_dir.contradictions(actual, wanted)
            keys = [key for key in LENGTH if wanted[key] != actual.get(key)]
            wrong += [f"{key}={wanted[key]}: it has {actual.get(key)}" for key in keys]
            if wrong:
                message = f"{folder}: no run of {self.preset.name}; take it away, or move it."
                raise UserError("\n".join([message, *wrong]))
        return list(finished) if len(finished) == (self.preset.runs or 1) else []

    def results(self) -> list[Result]:
        """Return each claim with its numbers here, which are none unless the preset was run to its end."""
        try:
            runs = self.finished_runs()
        except UserError:  # of another protocol, which is said where it is asked for
            runs = []
        found = []
        for claim in self.preset.claims:
            value = self.evaluated if claim.what.startswith(EVALUATED) else logged_value
            values = [v for run in runs if (v := value(run, claim)) is not None]
            found.append(Result(claim, values if len(values) == len(runs) else []))
        return found

    def evaluated(self, run: Path, claim: Claim) -> float | None:
        """Return what vae-evaluate wrote for a claim by the preset's protocol and the current weights, or None."""
        stored = results.read(results.path_of(run / self.checkpoint, self.keys.get("split", "test")))
        samples = self.keys.get("importance_samples")
        if claim.what == f"{EVALUATED}nll" and stored.get("importance_samples") != samples:
            return None
        return number(stored.get(claim.what.removeprefix(EVALUATED)))


Rows = Sequence[tuple[Attempt, list[Result]]]  # with the results of its preset's claims


def main() -> None:
    """Run `vae-reproduce`: exit with code 0, or with 1 if a claim that was asked for is missed."""
    with common.exits("vae-reproduce", "config"):
        options = _arguments().parse_intermixed_args()
        is_all, words = "all" in options.words, [word for word in options.words if "=" not in word and word != "all"]
        named = [read_preset(name) for name in dict.fromkeys(words)]
        presets = [read_preset(name) for name in preset_names()] if is_all or not words else named
        overrides = _overrides([word for word in options.words if "=" in word])
        attempts = [Attempt(preset, overrides) for preset in presets]
        requested = [one for one in attempts if one.preset in named or (is_all and not one.preset.needs)]
        if overrides and not (requested or options.markdown):
            raise UserError(f"{' '.join(overrides)}: of which preset? There are {', '.join(preset_names())}, and all.")
        missed = [not _reproduce(attempt) for attempt in requested]
        rows = [(attempt, attempt.results()) for attempt in attempts]
        echo("\n".join(_table(rows, options.markdown) if requested or options.markdown else _list(rows)))
        sys.exit(int(any(missed)))


def _arguments() -> argparse.ArgumentParser:
    parser = common.ArgumentParser(
        prog="vae-reproduce", description=ABOUT, epilog="example: vae-reproduce tutorial dataset.root=PATH"
    )
    parser.add_argument("words", nargs="*", metavar="NAME | all | KEY=VALUE", help="presets, and keys of vae-train")
    parser.add_argument("--markdown", action="store_true", help="the table in Markdown, of all that was found so far")
    parser.add_argument("--version", action="version", version=common.versions())
    return parser


def _list(rows: Rows) -> list[str]:
    lines = []
    for attempt, found in rows:
        preset = attempt.preset
        claims = "; ".join(f"{result.claim.name} {result.claim.text(result.claim.value)}" for result in found)
        verdicts = "; ".join(dict.fromkeys(result.verdict(preset, attempt.changes) for result in found))
        lines += [f"{preset.name}  (about {preset.minutes:g} minutes on one core)", f"    {preset.about}"]
        lines += [f"    claims   {claims}", f"    source   {preset.source}", f"    differs  {preset.differs}"]
        lines += [f"    here     {verdicts}", ""]
    return [*lines, "vae-reproduce NAME ... trains, evaluates and compares; all is every one that needs no days."]


def _table(rows: Rows, markdown: bool) -> list[str]:
    lines = ["", f"{'':22}{'':31}{'claim':>9}{'within':>8}{'here':>18}   verdict"]
    if markdown:
        lines = ["| preset | number | claim | here | verdict |", "|---|---|---|---|---|"]
    for attempt, result in ((attempt, result) for attempt, found in rows for result in found):
        name, claim, measured = attempt.preset.name, result.claim, result.text()
        verdict, value = result.verdict(attempt.preset, attempt.changes), claim.text(claim.value)
        if markdown:
            lines.append(f"| `{name}` | {claim.name} | {value} ± {claim.within:g} | {measured} | {verdict} |")
        else:
            lines.append(f"{name:22}{claim.name:31}{value:>9}{claim.within:>8g}{measured:>18}   {verdict}")
    return lines


def _overrides(words: list[str]) -> list[str]:
    """Return each key once, with the value typed last. Raises UserError for keys that this command sets itself."""
    last = {word.partition("=")[0]: word for word in words}
    if taken := [word for key, word in last.items() if key.lstrip("+~").startswith(RESERVED)]:
        raise UserError(f"{taken[0]}: vae-reproduce says itself where a run lies and whether it goes on. Leave it out.")
    return sorted(last.values())


def _reproduce(attempt: Attempt) -> bool:
    """Train what is missing of a preset, evaluate it, and store the results; return whether no claim is missed."""
    preset = attempt.preset
    echo(f"\n{preset.name}: {preset.about}")
    echo(f"  about {preset.minutes:g} minutes on one core; folder {attempt.folder}")
    sys.stdout.flush()  # before what vae-train says
    try:
        command = _training_command(attempt)
        if command and (code := _call(command)):
            raise UserError(f"vae-train ended with {code}; the reason stands above")
        evaluations = [_evaluate(attempt, run) for run in attempt.runs()]
    except UserError as error:  # the other presets are tried all the same
        echo(f"{preset.name}: {NOT_RUN} ({error})")
        return False
    rows = [(result, result.verdict(preset, attempt.changes)) for result in attempt.results()]
    lines = _store(attempt, rows)
    for show in evaluations:
        show()
    for line in lines:
        echo(line)
    return not any(verdict.startswith(("missed", NOT_RUN)) for _, verdict in rows)


def _training_command(attempt: Attempt) -> list[str]:
    """Return the command that trains what is missing, or nothing. Raises UserError for a run of another protocol."""
    if attempt.finished_runs():
        return []
    folder, new = attempt.folder, [attempt.preset.config, *attempt.overrides]
    vae_train = [sys.executable, "-m", "vae_exp"]
    if attempt.preset.runs:
        return [*vae_train, *new, f"{'sweep.resume' if attempt.runs() else 'hydra.sweep.dir'}={folder}"]
    if any((folder / name).is_file() for name in (LAST, PREVIOUS)):
        return [*vae_train, *attempt.overrides, f"resume={folder}"]
    return [*vae_train, *new, f"hydra.run.dir={folder}", "replace=true"]


def _call(command: list[str]) -> int:
    """Run a command that writes to this terminal and return its exit code; if this program is stopped, it is too."""
    with subprocess.Popen(command, env=os.environ | safe_path()) as process:
        try:
            return process.wait()
        except (KeyboardInterrupt, SystemExit) as stop:
            if isinstance(stop, SystemExit):  # of Ctrl-C the terminal tells the process too
                process.terminate()
            process.wait()
            raise


def _evaluate(attempt: Attempt, run: Path) -> Callable[[], object]:
    """Run vae-evaluate by the preset's protocol, unless that was done already; return a function that prints it."""
    claimed = [claim for claim in attempt.preset.claims if claim.what.startswith(EVALUATED)]
    if all(attempt.evaluated(run, claim) is not None for claim in claimed):
        return lambda: None
    path = run / attempt.checkpoint
    words = [f"checkpoint={literal(path)}", *(f"{key}={value}" for key, value in attempt.keys.items())]
    words += [word.lstrip("+") for word in attempt.overrides if word.lstrip("+").startswith(HANDED_ON)]
    options = resolve(compose("evaluate", readable([*words, attempt.wandb_mode])))
    _, show = evaluate.evaluate_checkpoint(path, cast("EvaluateOptions", options))
    return show


def _store(attempt: Attempt, rows: list[tuple[Result, str]]) -> list[str]:
    """Write reproduced.json beside each run, and log it to W&B if it is new; return the lines to print."""
    from vae_exp import inference

    trust = compose("config", readable(attempt.overrides)).trust is True
    claims = [
        asdict(result.claim) | {"here": result.mean, "values": result.values, "verdict": verdict}
        for result, verdict in rows
    ]
    lines = []
    for run in attempt.runs():
        path = run / attempt.checkpoint
        model, summary = inference.load(path, "cpu", trust), read_summary(run)
        record: dict[str, Any] = {"name": attempt.preset.name, "weights": model.weights, "claims": claims}
        record |= {"machine": _machine(), "seconds": summary.seconds if summary else None}
        with contextlib.suppress(OSError, ValueError):
            if read_json(run / RESULT) == record:
                continue
        write_json(run / RESULT, record)
        lines += evaluate.log_to_wandb(path, model.weights, attempt.wandb_mode.partition("=")[2], model.config)
    return lines


def _machine() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
