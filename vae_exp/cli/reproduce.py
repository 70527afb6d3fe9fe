"""`vae-reproduce`: re-run published figures."""

import argparse
import contextlib
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from vae_exp.cli import common, evaluate
from vae_exp.compare.published import (
    EVALUATED,
    NOT_RUN,
    PUBLISHED,
    Claim,
    Preset,
    Result,
    finished_runs,
    logged_value,
    names,
    number,
    read,
)
from vae_exp.compare.runs import BOOKKEEPING
from vae_exp.config.checks import literal, resolve
from vae_exp.config.compose import compose, readable
from vae_exp.errors import UserError, printable
from vae_exp.evaluation import results
from vae_exp.files import read_json, write_json
from vae_exp.torchrun_env import safe_path
from vae_exp.training.run_dir import BEST, LAST, OUTPUTS, PREVIOUS, RESULT, SUMMARY, read_summary, runs_below

Rows = Sequence[tuple[Preset, list[Result]]]


def listed(found: Rows, changes: Sequence[str]) -> list[str]:
    """Return lines that list each preset: name, claims, source, duration, and what was found so far."""
    lines = []
    for preset, rows in found:
        claims = "; ".join(f"{each.claim.name} {each.claim.text(each.claim.value)}" for each in rows)
        lines += [f"{preset.name}  (about {preset.minutes:g} minutes on one core)", f"    {preset.about}"]
        lines += [f"    claims   {claims}", f"    source   {preset.source}", f"    differs  {preset.differs}"]
        lines += [f"    here     {'; '.join(dict.fromkeys(each.verdict(preset, changes) for each in rows))}", ""]
    return [*lines, "vae-reproduce NAME ... trains, evaluates and compares; all is every one that needs no days."]


def table(found: Rows, changes: Sequence[str]) -> list[str]:
    lines = ["", f"{'':22}{'':31}{'claim':>9}{'within':>8}{'here':>18}   verdict"]
    for preset, claim, here, verdict in _cells(found, changes):
        cells = f"{claim.text(claim.value):>9}{claim.within:>8g}{here:>18}"
        lines.append(f"{preset.name:22}{claim.name:31}{cells}   {verdict}")
    return lines


def markdown(found: Rows, changes: Sequence[str]) -> list[str]:
    """Return the lines of the table in the README."""
    lines = ["| preset | number | claim | here | verdict |", "|---|---|---|---|---|"]
    for preset, claim, here, verdict in _cells(found, changes):
        claimed = f"{claim.text(claim.value)} ± {claim.within:g}"
        lines.append(f"| `{preset.name}` | {claim.name} | {claimed} | {here} | {verdict} |")
    return lines


def _cells(found: Rows, changes: Sequence[str]) -> Iterable[tuple]:
    for preset, rows in found:
        for each in rows:
            yield preset, each.claim, each.text(), printable(each.verdict(preset, changes))


ABOUT = """Published figures: train, or go on with, the presets that claim them, evaluate them by their protocol, and
print claim, here and verdict. Without a name: the list. Exit code 1 where a figure is missed or could not be had."""
ROOT = "dataset.root"
HANDED_ON = (f"{ROOT}=", "device=", "trust=")  # to vae-evaluate
NOT_TYPED = ("resume", "replace", "sweep.", "hydra.")  # what this command says itself


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
    typed = [word for word in options.words if "=" not in word and word != "all"]
    named = [read(name) for name in dict.fromkeys(typed)]
    presets = [read(name) for name in names()] if "all" in options.words or not typed else named
    overrides = _overrides([word for word in options.words if "=" in word])
    asked = [preset for preset in presets if options.words and (preset in named or "all" in options.words)]
    asked = [preset for preset in asked if preset in named or not preset.needs]
    if overrides and not (asked or options.markdown):
        raise UserError(f"{' '.join(overrides)}: of which preset? There are {', '.join(names())}, and all.")
    missed = [not _reproduced(preset, _own(preset, overrides)) for preset in asked]
    found = [(preset, _found(preset, _own(preset, overrides))) for preset in presets]
    lines = markdown if options.markdown else table
    changes = _changes(overrides)
    print("\n".join(lines(found, changes) if asked or options.markdown else listed(found, changes)))
    return int(any(missed))


def _overrides(words: list[str]) -> list[str]:
    """Return each key once, with the value typed last. Raises UserError for keys that this command sets itself."""
    last = {word.partition("=")[0]: word for word in words}
    if own := [word for key, word in last.items() if key.lstrip("+~").startswith(NOT_TYPED)]:
        raise UserError(f"{own[0]}: vae-reproduce says itself where a run lies and whether it goes on. Leave it out.")
    return sorted(last.values())


def _own(preset: Preset, overrides: list[str]) -> list[str]:
    """Return the overrides without dataset.root if the preset has no data folder: with `all` it is for the others."""
    return [word for word in overrides if preset.has_root or word.partition("=")[0].lstrip("+") != ROOT]


def _changes(overrides: list[str]) -> list[str]:
    """Return the overrides that make it another protocol."""
    keys = {word: word.partition("=")[0].lstrip("+~") for word in overrides}
    return [word for word, key in keys.items() if key not in BOOKKEEPING and not key.startswith("wandb.")]


def _reproduced(preset: Preset, overrides: list[str]) -> bool:
    """Train what is missing of a preset, evaluate it, and store the results; return whether no claim is missed."""
    folder = folder_of(preset, overrides)
    print(f"\n{preset.name}: {preset.about}")
    print(f"  about {preset.minutes:g} minutes on one core; folder {folder}", flush=True)
    try:
        command = _training(preset, folder, overrides)
        if command and (code := _run(command)):
            raise UserError(f"vae-train ended with {code}; the reason stands above")
        evaluations = [_evaluate(preset, run, overrides) for run in _runs(folder)]
    except UserError as error:  # the other presets are tried all the same
        print(f"{preset.name}: {NOT_RUN} ({error})")
        return False
    rows, changes = _found(preset, overrides), _changes(overrides)
    lines = _keep(preset, folder, rows, overrides)
    for show in evaluations:
        show()
    for line in lines:
        print(line)
    return not any(each.verdict(preset, changes).startswith(("missed", NOT_RUN)) for each in rows)


def folder_of(preset: Preset, overrides: list[str]) -> Path:
    """Return the folder of a preset's runs; settings of another protocol get a folder of their own."""
    changed = [re.sub(r"[^\w.-]+", "-", word) for word in _changes(overrides)]
    return OUTPUTS / PUBLISHED / "_".join([preset.name, *changed])


def _runs(folder: Path) -> list[Path]:
    """Return the run in a folder, or those of the sweep in it."""
    return [folder] if (folder / SUMMARY).is_file() else sorted(runs_below(folder))


def _training(preset: Preset, folder: Path, overrides: list[str]) -> list[str]:
    """Return the command that trains what is missing, or nothing if all is finished.

    Raises UserError if the folder holds a run of another protocol.
    """
    runs = _runs(folder)
    if finished_runs(preset, overrides, runs):
        return []
    vae_train = [sys.executable, "-m", "vae_exp"]
    if preset.runs:
        place = f"sweep.resume={folder}" if runs else f"hydra.sweep.dir={folder}"
        return [*vae_train, preset.config, *overrides, place]
    if any((folder / name).is_file() for name in (LAST, PREVIOUS)):
        return [*vae_train, *overrides, f"resume={folder}"]
    return [*vae_train, preset.config, *overrides, f"hydra.run.dir={folder}", "replace=true"]


def _run(command: list[str]) -> int:
    """Run a command that writes to this terminal and return its exit code; if this program is stopped, it is too."""
    with subprocess.Popen(command, env=os.environ | safe_path()) as process, _stopped_together(process):
        return process.wait()


@contextlib.contextmanager
def _stopped_together(process: subprocess.Popen) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:  # the terminal has told the process too
        process.wait()
        raise
    except SystemExit:
        process.terminate()
        process.wait()
        raise


def _evaluate(preset: Preset, run: Path, overrides: list[str]) -> Callable[[], object]:
    """Run vae-evaluate by the preset's protocol, unless that was done already; return a function that prints it."""
    claimed = [claim for claim in preset.claims if claim.what.startswith(EVALUATED)]
    if all(_measured(preset, run, claim) is not None for claim in claimed):
        return lambda: None
    from vae_exp.cli.evaluate import evaluate_checkpoint

    path, keys = _checkpoint(preset, run)
    handed_on = [word.lstrip("+") for word in overrides if word.lstrip("+").startswith(HANDED_ON)]
    typed = [
        f"checkpoint={literal(path)}",
        *(f"{key}={value}" for key, value in keys.items()),
        *handed_on,
        _mode(overrides),
    ]
    _, show = evaluate_checkpoint(path, resolve(compose("evaluate", readable(typed))))  # type: ignore[arg-type]
    return show


def _mode(overrides: list[str]) -> str:
    return next((word for word in overrides if word.startswith("wandb.mode=")), "wandb.mode=auto")


def _checkpoint(preset: Preset, run: Path) -> tuple[Path, dict[str, Any]]:
    """Return the checkpoint that is evaluated, and the other keys of vae-evaluate."""
    keys = dict(preset.evaluate or {})
    return run / keys.pop("checkpoint", BEST), keys


def _measured(preset: Preset, run: Path, claim: Claim) -> float | None:
    """Return what vae-evaluate wrote for a claim by the preset's protocol and the current weights, or None."""
    path, keys = _checkpoint(preset, run)
    written = results.read(evaluate.file_of(path, keys.get("split", "test")))
    if claim.what == f"{EVALUATED}nll" and written.get("importance_samples") != keys.get("importance_samples"):
        return None
    return number(written.get(claim.what.removeprefix(EVALUATED)))


def _found(preset: Preset, overrides: list[str]) -> list[Result]:
    """Return each claim with the numbers found for it, which are none unless the preset was run to its end."""
    try:
        runs = finished_runs(preset, overrides, _runs(folder_of(preset, overrides)))
    except UserError:  # of another protocol, which is said where it is asked for
        runs = []
    rows = []
    for claim in preset.claims:
        read_one = _measured if claim.what.startswith(EVALUATED) else lambda _, run, claim: logged_value(run, claim)
        values = [value for run in runs if (value := read_one(preset, run, claim)) is not None]
        rows.append(Result(claim, values if len(values) == len(runs) else []))
    return rows


def _keep(preset: Preset, folder: Path, rows: list[Result], overrides: list[str]) -> list[str]:
    """Write reproduced.json beside each run, and log it to W&B if it is new; return the lines to print."""
    from vae_exp import inference

    trust = compose("config", readable(overrides)).trust is True
    claims = [
        {"what": each.claim.what, "after_epoch": each.claim.after_epoch, "value": each.claim.value}
        | {"within": each.claim.within, "here": each.mean, "values": each.values}
        | {"verdict": each.verdict(preset, _changes(overrides))}
        for each in rows
    ]
    lines = []
    for run in _runs(folder):
        path, _ = _checkpoint(preset, run)
        model, summary = inference.load(path, "cpu", trust), read_summary(run)
        kept: dict[str, Any] = {"name": preset.name, "weights": model.weights, "claims": claims}
        kept |= {"machine": machine(), "seconds": summary.seconds if summary else None}
        with contextlib.suppress(OSError, ValueError):
            if read_json(run / RESULT) == kept:
                continue
        write_json(run / RESULT, kept)
        lines += evaluate.in_wandb(path, model.weights, _mode(overrides).partition("=")[2], model.config)
    return lines


def machine() -> str:
    """Return the name of the processor, as the system gives it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
