"""`vae-reproduce`: published figures, trained and evaluated by their protocol, beside what is found here."""

import argparse
import contextlib
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vae_exp.commands import recording, shared
from vae_exp.comparing.claims import (
    EVALUATED,
    NOT_RUN,
    PUBLISHED,
    REPRODUCED,
    SHORTENED,
    Found,
    Preset,
    logged,
    names,
    read,
)
from vae_exp.comparing.runs import BOOKKEEPING
from vae_exp.config.check import resolve
from vae_exp.config.messages import compose
from vae_exp.errors import printable
from vae_exp.run import evaluated
from vae_exp.run.folder import BEST, LAST, OUTPUTS, RESULT, SUMMARY, read_summary, runs_below
from vae_exp.run.writing import write_json

ABOUT = """Published figures: train, or go on with, the presets that claim them, evaluate them by their protocol, and
print claim, here and verdict. Without a name: the list. Exit code 1 where a figure is missed or could not be had."""
ROOT = "dataset.root"
NO_PART_OF_IT = ("wandb.", "checkpoint_every_")  # keys that change no number, beside those of BOOKKEEPING


def main() -> None:
    """Exit code 0; 1 where a claim that was asked for is missed."""
    with shared.exits("vae-reproduce", "config"):
        sys.exit(_main(_arguments().parse_args()))


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vae-reproduce", description=ABOUT, epilog="example: vae-reproduce tutorial dataset.root=PATH"
    )
    parser.add_argument("words", nargs="*", metavar="NAME | all | KEY=VALUE", help="presets, and keys of vae-train")
    parser.add_argument("--markdown", action="store_true", help="the table in Markdown, of all that was found so far")
    parser.add_argument("--version", action="version", version=shared.versions())
    return parser


def _main(options: argparse.Namespace) -> int:
    overrides = [word for word in options.words if "=" in word]
    wanted = [word for word in options.words if "=" not in word]
    presets = [read(name) for name in (names() if "all" in wanted or not wanted else dict.fromkeys(wanted))]
    if wanted:
        for preset in presets:
            if "all" in wanted and preset.needs:
                print(f"\n{preset.name}: {NOT_RUN} (needs {preset.needs}); vae-reproduce {preset.name} does.")
            else:  # `all` has presets whose data lie nowhere
                _reproduce(preset, [word for word in overrides if preset.has_root or word.partition("=")[0] != ROOT])
    found = [(preset, _found(preset, overrides)) for preset in presets]
    if options.markdown:
        print("\n".join(markdown(found, overrides)))
    elif wanted:
        print("\n" + "\n".join(_table(found, overrides)))
    else:
        print("\n".join(_list(found)))
    asked = [(preset, rows) for preset, rows in found if wanted and not ("all" in wanted and preset.needs)]
    verdicts = [each.verdict(_shortened(preset, overrides)) for preset, rows in asked for each in rows]
    return int(any(not verdict.startswith((REPRODUCED, SHORTENED)) for verdict in verdicts))


def _reproduce(preset: Preset, overrides: list[str]) -> None:
    """Train what is missing of it, evaluate it, and keep what was found in its folder."""
    folder = folder_of(preset, overrides)
    print(
        f"\n{preset.name}: {preset.about}\n  about {preset.minutes:g} minutes on one core; folder {folder}", flush=True
    )
    command = _training(preset, folder, overrides)
    if command and (code := _run(command)):
        print(f"{preset.name}: {NOT_RUN} (vae-train ended with {code}; the reason stands above)")
        return
    for run in _runs(folder):
        if preset.evaluate is not None:
            _evaluate(preset, run, overrides)
    rows = _found(preset, overrides)
    seconds = sum(summary.seconds for run in _runs(folder) if (summary := read_summary(run)))
    claims = [
        {"what": each.claim.what, "after_epoch": each.claim.after_epoch, "value": each.claim.value}
        | {"within": each.claim.within, "here": each.here, "values": each.values}
        | {"verdict": each.verdict(_shortened(preset, overrides))}
        for each in rows
    ]
    for run in _runs(folder):
        write_json(run / RESULT, {"name": preset.name, "claims": claims, "seconds": seconds, "machine": machine()})
        _log(preset, run)


def folder_of(preset: Preset, overrides: list[str]) -> Path:
    """Where its runs lie; with settings of another protocol in a place of their own."""
    changed = [re.sub(r"[^\w.-]+", "-", word) for word in _changes(overrides)]
    return OUTPUTS / PUBLISHED / "_".join([preset.name, *changed])


def _changes(overrides: list[str]) -> list[str]:
    """The overrides that make it another protocol."""
    keys = {word: word.partition("=")[0].lstrip("+~") for word in overrides}
    return [word for word, key in keys.items() if key not in BOOKKEEPING and not key.startswith(NO_PART_OF_IT)]


def _shortened(preset: Preset, overrides: list[str]) -> list[str]:
    return [*([preset.shortened] if preset.shortened else []), *_changes(overrides)]


def _runs(folder: Path) -> list[Path]:
    """The run in a folder, or those of the sweep in it."""
    return [folder] if (folder / SUMMARY).is_file() else sorted(runs_below(folder))


def _training(preset: Preset, folder: Path, overrides: list[str]) -> list[str]:
    """The command that trains what is missing; nothing where all is finished."""
    summaries = [read_summary(run) for run in _runs(folder)]
    if summaries and all(summary and summary.finished for summary in summaries) and not preset.is_sweep:
        return []
    vae_train = [sys.executable, "-m", "vae_exp"]
    if preset.is_sweep:
        place = f"sweep.resume={folder}" if summaries else f"hydra.sweep.dir={folder}"
        return [*vae_train, preset.config, *overrides, place]
    if (folder / LAST).is_file():
        return [*vae_train, *overrides, f"resume={folder}"]
    return [*vae_train, preset.config, *overrides, f"hydra.run.dir={folder}", "replace=true"]


def _run(command: list[str]) -> int:
    """The exit code of a command that writes to this terminal; what stops this program stops it too, in order."""
    with subprocess.Popen(command) as process, _stopped_together(process):
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


def _evaluate(preset: Preset, run: Path, overrides: list[str]) -> None:
    """vae-evaluate by the preset's protocol, unless it was done already."""
    if all(_measured(preset, run, each.claim.what) is not None for each in _claimed(preset, EVALUATED)):
        return
    from vae_exp.commands.evaluate import evaluate_checkpoint

    path, keys = _checkpoint(preset, run)
    root = [word for word in overrides if word.partition("=")[0] in (ROOT, "wandb.mode")]
    typed = [f"{key}={value}" for key, value in keys.items()]
    evaluate_checkpoint(path, resolve(compose("evaluate", [f"checkpoint={path}", *typed, *root])))  # type: ignore[arg-type]


def _checkpoint(preset: Preset, run: Path) -> tuple[Path, dict[str, Any]]:
    """The checkpoint that is evaluated, and the other keys of vae-evaluate."""
    keys = dict(preset.evaluate or {})
    return run / keys.pop("checkpoint", BEST), keys


def _claimed(preset: Preset, start: str) -> list[Found]:
    return [Found(claim) for claim in preset.claims if claim.what.startswith(start)]


def _measured(preset: Preset, run: Path, what: str) -> float | None:
    """What vae-evaluate wrote of a claim by the preset's protocol, of the weights that are there now."""
    path, keys = _checkpoint(preset, run)
    written = evaluated.read(recording.file_of(path, keys.get("split", "test")))
    wanted = keys.get("importance_samples")
    if what == f"{EVALUATED}nll" and written.get("importance_samples") != wanted:
        return None
    return written.get(what.removeprefix(EVALUATED))


def _found(preset: Preset, overrides: list[str]) -> list[Found]:
    """Each claim with what is there of it, of runs that are finished."""
    finished = [
        run
        for run in _runs(folder_of(preset, overrides))
        if (summary := read_summary(run)) is not None and summary.finished
    ]
    rows = []
    for claim in preset.claims:
        of_evaluation = claim.what.startswith(EVALUATED)
        values = [_measured(preset, run, claim.what) if of_evaluation else logged(run, claim) for run in finished]
        rows.append(Found(claim, [value for value in values if value is not None]))
    return rows


def _log(preset: Preset, run: Path) -> None:
    """The claims and what was found, in W&B."""
    from vae_exp import trained

    path, _ = _checkpoint(preset, run)
    model = trained.load(path, "cpu", trust=True)
    recording.in_wandb(path, model.weights, model.config["wandb"]["mode"], model.config)


def machine() -> str:
    """The processor, as the system names it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _list(found: list[tuple[Preset, list[Found]]]) -> list[str]:
    """Name, what it claims, source, how long, and what was found so far."""
    lines = []
    for preset, rows in found:
        claims = "; ".join(f"{each.claim.name} {each.claim.text(each.claim.value)}" for each in rows)
        lines += [f"{preset.name}  (about {preset.minutes:g} minutes on one core)", f"    {preset.about}"]
        lines += [f"    claims   {claims}", f"    source   {preset.source}", f"    differs  {preset.differs}"]
        lines += [f"    here     {'; '.join(each.verdict(_shortened(preset, [])) for each in rows)}", ""]
    return [*lines, "vae-reproduce NAME ... trains, evaluates and compares; all is every one that needs no days."]


def _table(found: list[tuple[Preset, list[Found]]], overrides: list[str]) -> list[str]:
    lines = [f"{'':24}{'':24}{'claim':>10}{'within':>9}{'here':>18}   verdict"]
    for preset, rows in found:
        for each in rows:
            claim, here = each.claim, _here(each)
            cells = f"{claim.text(claim.value):>10}{claim.within:>9g}{here:>18}"
            lines.append(f"{preset.name:24}{claim.name:24}{cells}   {each.verdict(_shortened(preset, overrides))}")
    return lines


def _here(each: Found) -> str:
    if each.here is None:
        return "-"
    spread = ""
    if len(each.values) > 1:
        import statistics

        spread = f" ± {each.claim.text(statistics.stdev(each.values))}"
    return each.claim.text(each.here) + spread


def markdown(found: list[tuple[Preset, list[Found]]], overrides: list[str]) -> list[str]:
    """The table of the README."""
    lines = ["| preset | number | claim | here | verdict |", "|---|---|---|---|---|"]
    for preset, rows in found:
        for each in rows:
            claim, verdict = each.claim, each.verdict(_shortened(preset, overrides))
            if verdict == NOT_RUN:
                verdict += f" (needs {preset.needs or f'{preset.minutes:g} minutes'})"
            claimed = f"{claim.text(claim.value)} ± {claim.within:g}"
            lines.append(f"| `{preset.name}` | {claim.name} | {claimed} | {_here(each)} | {printable(verdict)} |")
    return lines
