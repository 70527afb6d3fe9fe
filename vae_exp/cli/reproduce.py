"""`vae-reproduce`: re-run published figures."""

import argparse
import contextlib
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from vae_exp.cli import common, evaluate
from vae_exp.compare import published
from vae_exp.compare.published import EVALUATED, Claim, Preset, Result
from vae_exp.compare.runs import BOOKKEEPING
from vae_exp.config.checks import literal, resolve
from vae_exp.config.compose import compose, readable
from vae_exp.config.schema import EvaluateOptions
from vae_exp.errors import UserError, printable
from vae_exp.evaluation import results
from vae_exp.files import read_json, write_json
from vae_exp.torchrun_env import safe_path
from vae_exp.training.run_dir import BEST, LAST, OUTPUTS, PREVIOUS, RESULT, SUMMARY, read_summary, runs_below

Rows = Sequence[tuple[Preset, list[Result]]]  # each preset, and the results of its claims
ABOUT = """Published figures: train, or go on with, the presets that claim them, evaluate them by their protocol, and
print claim, here and verdict. Without a name: the list. Exit code 1 where a figure is missed or could not be had."""
ROOT = "dataset.root"
HANDED_ON = (f"{ROOT}=", "device=", "trust=")  # to vae-evaluate
RESERVED = ("resume", "replace", "sweep.", "hydra.")  # what this command says itself


def main() -> None:
    """Run `vae-reproduce`: exit with code 0, or with 1 if a claim that was asked for is missed."""
    with common.exits("vae-reproduce", "config"):
        sys.exit(_main(_arguments().parse_intermixed_args()))


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vae-reproduce", description=ABOUT, epilog="example: vae-reproduce tutorial dataset.root=PATH"
    )
    parser.add_argument("words", nargs="*", metavar="NAME | all | KEY=VALUE", help="presets, and keys of vae-train")
    parser.add_argument("--markdown", action="store_true", help="the table in Markdown, of all that was found so far")
    parser.add_argument("--version", action="version", version=common.versions())
    return parser


def _main(options: argparse.Namespace) -> int:
    words = [word for word in options.words if "=" not in word and word != "all"]
    named = [published.read(name) for name in dict.fromkeys(words)]
    presets = [published.read(name) for name in published.names()] if "all" in options.words or not words else named
    overrides = _overrides([word for word in options.words if "=" in word])
    requested = [preset for preset in presets if options.words and (preset in named or "all" in options.words)]
    requested = [preset for preset in requested if preset in named or not preset.needs]
    if overrides and not (requested or options.markdown):
        raise UserError(f"{' '.join(overrides)}: of which preset? There are {', '.join(published.names())}, and all.")
    missed = [not _reproduce(preset, _for_preset(preset, overrides)) for preset in requested]
    rows = [(preset, _results(preset, _for_preset(preset, overrides))) for preset in presets]
    lines = _markdown if options.markdown else _table if requested else _list
    print("\n".join(lines(rows, _changes(overrides))))
    return int(any(missed))


def _list(rows: Rows, changes: Sequence[str]) -> list[str]:
    lines = []
    for preset, preset_results in rows:
        claims = "; ".join(f"{result.claim.name} {result.claim.text(result.claim.value)}" for result in preset_results)
        verdicts = "; ".join(dict.fromkeys(result.verdict(preset, changes) for result in preset_results))
        lines += [f"{preset.name}  (about {preset.minutes:g} minutes on one core)", f"    {preset.about}"]
        lines += [f"    claims   {claims}", f"    source   {preset.source}", f"    differs  {preset.differs}"]
        lines += [f"    here     {verdicts}", ""]
    return [*lines, "vae-reproduce NAME ... trains, evaluates and compares; all is every one that needs no days."]


def _table(rows: Rows, changes: Sequence[str]) -> list[str]:
    lines = ["", f"{'':22}{'':31}{'claim':>9}{'within':>8}{'here':>18}   verdict"]
    for preset, claim, found, verdict in _cells(rows, changes):
        cells = f"{claim.text(claim.value):>9}{claim.within:>8g}{found:>18}"
        lines.append(f"{preset.name:22}{claim.name:31}{cells}   {verdict}")
    return lines


def _markdown(rows: Rows, changes: Sequence[str]) -> list[str]:
    lines = ["| preset | number | claim | here | verdict |", "|---|---|---|---|---|"]
    for preset, claim, found, verdict in _cells(rows, changes):
        claimed = f"{claim.text(claim.value)} ± {claim.within:g}"
        lines.append(f"| `{preset.name}` | {claim.name} | {claimed} | {found} | {verdict} |")
    return lines


def _cells(rows: Rows, changes: Sequence[str]) -> Iterable[tuple[Preset, Claim, str, str]]:
    for preset, preset_results in rows:
        for result in preset_results:
            yield preset, result.claim, result.text(), printable(result.verdict(preset, changes))


def _overrides(words: list[str]) -> list[str]:
    """Return each key once, with the value typed last. Raises UserError for keys that this command sets itself."""
    last = {word.partition("=")[0]: word for word in words}
    if taken := [word for key, word in last.items() if key.lstrip("+~").startswith(RESERVED)]:
        raise UserError(f"{taken[0]}: vae-reproduce says itself where a run lies and whether it goes on. Leave it out.")
    return sorted(last.values())


def _for_preset(preset: Preset, overrides: list[str]) -> list[str]:
    """Return the overrides without dataset.root if the preset has no data folder: with `all` it is for the others."""
    return [word for word in overrides if preset.has_root or word.partition("=")[0].lstrip("+") != ROOT]


def _changes(overrides: list[str]) -> list[str]:
    keys = {word: word.partition("=")[0].lstrip("+~") for word in overrides}
    return [word for word, key in keys.items() if key not in BOOKKEEPING and not key.startswith("wandb.")]


def _reproduce(preset: Preset, overrides: list[str]) -> bool:
    """Train what is missing of a preset, evaluate it, and store the results; return whether no claim is missed."""
    folder = _folder(preset, overrides)
    print(f"\n{preset.name}: {preset.about}")
    print(f"  about {preset.minutes:g} minutes on one core; folder {folder}", flush=True)
    try:
        command = _training_command(preset, folder, overrides)
        if command and (code := _call(command)):
            raise UserError(f"vae-train ended with {code}; the reason stands above")
        evaluations = [_evaluate(preset, run, overrides) for run in _runs(folder)]
    except UserError as error:  # the other presets are tried all the same
        print(f"{preset.name}: {published.NOT_RUN} ({error})")
        return False
    rows, changes = _results(preset, overrides), _changes(overrides)
    lines = _store(preset, folder, rows, overrides)
    for show in evaluations:
        show()
    for line in lines:
        print(line)
    return not any(row.verdict(preset, changes).startswith(("missed", published.NOT_RUN)) for row in rows)


def _folder(preset: Preset, overrides: list[str]) -> Path:
    """Return the folder of a preset's runs; settings of another protocol get a folder of their own."""
    changed = [re.sub(r"[^\w.-]+", "-", word) for word in _changes(overrides)]
    return OUTPUTS / published.PUBLISHED / "_".join([preset.name, *changed])


def _runs(folder: Path) -> list[Path]:
    return [folder] if (folder / SUMMARY).is_file() else sorted(runs_below(folder))


def _training_command(preset: Preset, folder: Path, overrides: list[str]) -> list[str]:
    """Return the command that trains what is missing, or nothing. Raises UserError for a run of another protocol."""
    runs = _runs(folder)
    if published.finished_runs(preset, overrides, runs):
        return []
    vae_train = [sys.executable, "-m", "vae_exp"]
    if preset.runs:
        return [*vae_train, preset.config, *overrides, f"{'sweep.resume' if runs else 'hydra.sweep.dir'}={folder}"]
    if any((folder / name).is_file() for name in (LAST, PREVIOUS)):
        return [*vae_train, *overrides, f"resume={folder}"]
    return [*vae_train, preset.config, *overrides, f"hydra.run.dir={folder}", "replace=true"]


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


def _evaluate(preset: Preset, run: Path, overrides: list[str]) -> Callable[[], object]:
    """Run vae-evaluate by the preset's protocol, unless that was done already; return a function that prints it."""
    claimed = [claim for claim in preset.claims if claim.what.startswith(EVALUATED)]
    if all(_evaluated(preset, run, claim) is not None for claim in claimed):
        return lambda: None
    path, keys = _checkpoint(preset, run)
    words = [f"checkpoint={literal(path)}", *(f"{key}={value}" for key, value in keys.items())]
    words += [word.lstrip("+") for word in overrides if word.lstrip("+").startswith(HANDED_ON)]
    options = resolve(compose("evaluate", readable([*words, _mode(overrides)])))
    _, show = evaluate.evaluate_checkpoint(path, cast("EvaluateOptions", options))
    return show


def _mode(overrides: list[str]) -> str:
    return next((word for word in overrides if word.startswith("wandb.mode=")), "wandb.mode=auto")


def _checkpoint(preset: Preset, run: Path) -> tuple[Path, dict[str, Any]]:
    """Return the checkpoint that is evaluated, and the other keys of vae-evaluate."""
    keys = dict(preset.evaluate or {})
    return run / keys.pop("checkpoint", BEST), keys


def _evaluated(preset: Preset, run: Path, claim: Claim) -> float | None:
    """Return what vae-evaluate wrote for a claim by the preset's protocol and the current weights, or None."""
    path, keys = _checkpoint(preset, run)
    stored = results.read(evaluate.results_path(path, keys.get("split", "test")))
    if claim.what == f"{EVALUATED}nll" and stored.get("importance_samples") != keys.get("importance_samples"):
        return None
    return published.number(stored.get(claim.what.removeprefix(EVALUATED)))


def _results(preset: Preset, overrides: list[str]) -> list[Result]:
    """Return each claim with its numbers here, which are none unless the preset was run to its end."""
    try:
        runs = published.finished_runs(preset, overrides, _runs(_folder(preset, overrides)))
    except UserError:  # of another protocol, which is said where it is asked for
        runs = []
    rows = []
    for claim in preset.claims:
        is_evaluated = claim.what.startswith(EVALUATED)
        numbers = (
            _evaluated(preset, run, claim) if is_evaluated else published.logged_value(run, claim) for run in runs
        )
        values = [value for value in numbers if value is not None]
        rows.append(Result(claim, values if len(values) == len(runs) else []))
    return rows


def _store(preset: Preset, folder: Path, rows: list[Result], overrides: list[str]) -> list[str]:
    """Write reproduced.json beside each run, and log it to W&B if it is new; return the lines to print."""
    from vae_exp import inference

    trust = compose("config", readable(overrides)).trust is True
    changes = _changes(overrides)
    claims = [
        asdict(row.claim) | {"here": row.mean, "values": row.values, "verdict": row.verdict(preset, changes)}
        for row in rows
    ]
    lines = []
    for run in _runs(folder):
        path, _ = _checkpoint(preset, run)
        model, summary = inference.load(path, "cpu", trust), read_summary(run)
        record: dict[str, Any] = {"name": preset.name, "weights": model.weights, "claims": claims}
        record |= {"machine": _machine(), "seconds": summary.seconds if summary else None}
        with contextlib.suppress(OSError, ValueError):
            if read_json(run / RESULT) == record:
                continue
        write_json(run / RESULT, record)
        lines += evaluate.log_to_wandb(path, model.weights, _mode(overrides).partition("=")[2], model.config)
    return lines


def _machine() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
