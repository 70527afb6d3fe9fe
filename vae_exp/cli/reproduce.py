"""`vae-reproduce`: re-run the figures that presets in conf/experiment/published claim."""

import argparse
import contextlib
import functools
import math
import os
import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from vae_exp.cli import common, evaluate
from vae_exp.compare.runs import BOOKKEEPING, SEEDS
from vae_exp.config.checks import CONF_DIR, check, closest, flatten, literal, path_of, resolve
from vae_exp.config.compose import compose, readable, without_hydra
from vae_exp.config.schema import EvaluateOptions, is_number
from vae_exp.errors import UserError
from vae_exp.evaluation import results
from vae_exp.files import read_json, read_json_lines, read_yaml, write_json
from vae_exp.torchrun_env import safe_path
from vae_exp.training import run_dir
from vae_exp.training.console import echo
from vae_exp.training.run_dir import BEST, LAST, LENGTH, METRICS, OUTPUTS, PREVIOUS, RESULT, read_summary

PUBLISHED = "published"
EVALUATED = "evaluate/"  # a claim of what vae-evaluate measures; others are of what a run logs
NOT_RUN = "not run here"
ABOUT = """Published figures: train, or resume, the presets that claim them, evaluate them by their protocol, and
print claim, here and verdict. Without a name: the list. Exit code 1 where a figure is missed or could not be had."""
RULE = f"""The rule of the verdict:
  reproduced    our mean lies within two standard errors over our seeds plus the claim's own spread (±): what its source
                gives; else the rounding of its last digit, and the standard deviation of the claim and its published
                replications; of a closed form 0.05, for what a finite training leaves. The preset says which
                (spread_of). That its images were another draw counts for nothing. One seed has no standard error,
                unless the preset knows how far seeds scatter (seed_std).
  missed by     the difference, otherwise
  shortened     not the whole protocol, which the preset says: never reproduced, whatever its figure
  {NOT_RUN}  not run to its end"""
EXAMPLE = "example: vae-reproduce tutorial dataset.root=PATH compile=true"
ROOT = "dataset.root"
HANDED_ON = (f"{ROOT}=", "device=", "trust=")  # to vae-evaluate
RESERVED = ("resume", "replace", "sweep.", "hydra.")  # what this command says itself


@dataclass(frozen=True)
class Claim:
    """A number that somebody published."""

    what: str  # test/neg_elbo, or evaluate/nll
    value: float | None = None  # None: nobody's was at hand
    spread: float = 0.0  # of the claim itself, see RULE
    spread_of: str = ""  # what it consists of
    seed_std: float | None = None  # of our seeds, as other runs have it; counts where one seed was run
    after_epoch: int | None = None  # as logged after this epoch; None is the end
    at: dict[str, Any] = field(default_factory=dict)  # of a sweep only the jobs with these settings

    @property
    def name(self) -> str:
        epoch = {"epoch": self.after_epoch} if self.after_epoch else {}
        settings = {key.rpartition(".")[2]: value for key, value in self.at.items()} | epoch
        return ", ".join([self.what.removeprefix(EVALUATED), *(f"{key} {value}" for key, value in settings.items())])

    def text(self, value: float | None) -> str:
        """Return the value with as many digits as the claim has, and two or more."""
        digits = len(str(self.value).partition(".")[2]) if self.value is not None else 3
        return "-" if value is None else f"{value:.{max(2, digits)}f}"

    def is_of(self, settings: Mapping[str, Any]) -> bool:
        """Return whether it is a claim of runs with these settings."""
        return all(settings.get(key) == value for key, value in self.at.items())


@dataclass(frozen=True)
class Preset:
    """Hold the part of a file in conf/experiment/published that is not settings."""

    name: str
    about: str
    source: str
    minutes: float
    differs: str
    claims: list[Claim]
    swept: dict[str, list[str]]  # the keys of a sweep with their values; empty: one run
    root: str | None  # where its data lie, dataset.root
    link: str | None = None  # to the source
    data: str | None = None  # what file it reads, if nobody downloads it, and how to get that
    evaluate: dict[str, Any] | None = None  # keys of vae-evaluate; None where nothing but the run is claimed
    shortened: str | None = None  # it is not the whole protocol
    needs: str | None = None  # so long that `all` leaves it out

    @property
    def config(self) -> str:
        return f"experiment={PUBLISHED}/{self.name}"

    @property
    def runs(self) -> int:
        return math.prod(map(len, self.swept.values()))


@dataclass
class Result:
    """A claim beside what was found here."""

    claim: Claim
    values: list[float]  # one, or one for each seed; empty: not run to the end

    @property
    def mean(self) -> float | None:
        return statistics.mean(self.values) if self.values else None

    @property
    def standard_error(self) -> float:
        if len(self.values) > 1:
            return statistics.stdev(self.values) / math.sqrt(len(self.values))
        return self.claim.seed_std or 0.0

    def text(self) -> str:
        """Return the value found here, with its standard deviation over seeds and their number."""
        if self.mean is None:
            return "-"
        spread = f" ± {self.claim.text(statistics.stdev(self.values))}" if len(self.values) > 1 else ""
        return f"{self.claim.text(self.mean)}{spread} (n = {len(self.values)})"

    def verdict(self, preset: Preset, changes: Sequence[str] = ()) -> str:
        """Return the verdict by RULE; of another protocol only how far off it is."""
        if self.mean is None:
            return f"{NOT_RUN} (needs {preset.needs or duration(preset.minutes)})"
        off = None if self.claim.value is None else self.mean - self.claim.value
        by = "nothing to compare with" if off is None else f"off by {off:+.2f}"
        if changes:
            return f"other protocol ({' '.join(changes)}), {by}"
        if preset.shortened:
            return f"shortened ({preset.shortened}), {by}"
        if off is None:
            return by
        return "reproduced" if abs(off) <= self.claim.spread + 2 * self.standard_error else f"missed by {off:+.2f}"


def duration(minutes: float) -> str:
    """Return a time as people say it, to two digits or whole minutes and hours."""
    if minutes < 1:
        return f"{60 * minutes:.0f} s"
    number, unit = (minutes, "min") if minutes < 99.5 else (minutes / 60, "h")
    return f"{number:.0f} {unit}" if number >= 9.95 else f"{number:.2g} {unit}"


def preset_names() -> list[str]:
    return sorted(path.stem for path in (CONF_DIR / "experiment" / PUBLISHED).glob("*.yaml"))


def read_preset(name: str) -> Preset:
    """Read a preset by its name. Raise UserError if there is no such preset."""
    if name not in preset_names():
        near, known = closest(name.rpartition("/")[2], preset_names()), ", ".join(preset_names())
        raise UserError(f"{name}: no such preset.{near or f' There are {known}, and all.'}")
    cfg = compose("config", [f"experiment={PUBLISHED}/{name}"])
    content: Any = OmegaConf.to_container(cfg[PUBLISHED])
    claims = [Claim(**claim) for claim in content.pop("claims")]
    params = cfg.hydra.sweeper.params.items() if cfg.hydra.mode else ()
    swept = {key: str(values).split(",") for key, values in params}
    return Preset(name=name, claims=claims, swept=swept, root=cfg.dataset.get("root"), **content)


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
        self.overrides = [word for word in overrides if preset.root or _key(word) != ROOT]
        if preset.root and preset.data:  # it is one file, and dataset.root=FOLDER says where
            file = Path(preset.root)
            is_folder = {word: _key(word) == ROOT and Path(word).suffix != file.suffix for word in overrides}
            self.overrides = [f"{word.rstrip('/')}/{file.name}" if is_folder[word] else word for word in overrides]
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

    def finished_runs(self) -> dict[Path, dict[str, Any]]:
        """Return its finished runs with their settings, none if some lack. Raise UserError for another protocol's."""
        finished = {}
        for folder in self.runs():
            summary, config = read_summary(folder), run_dir.read_config(folder)
            if summary is not None and summary.finished and config:
                finished[folder] = _protocol(config)
        swept = [key for key in self.preset.swept if key not in SEEDS]
        for folder, actual in finished.items():
            wanted = self._wanted(tuple(f"{key}={actual.get(key)}" for key in swept))
            wrong = run_dir.contradictions(actual, wanted)
            keys = [key for key in LENGTH if wanted[key] != actual.get(key)]
            wrong += [f"{key}={wanted[key]}: it has {actual.get(key)}" for key in keys]
            if wrong:
                message = f"{folder}: no run of {self.preset.name}; take it away, or move it."
                raise UserError("\n".join([message, *wrong]))
        return finished if len(finished) == self.preset.runs else {}

    def composed(self, *job: str) -> DictConfig:
        """Return the configuration of the preset with what was typed, or that of a job of its sweep."""
        return compose("config", readable([self.preset.config, *self.overrides, *job]))

    @functools.cache  # noqa: B019  (an attempt lives as long as the command)
    def _wanted(self, job: tuple[str, ...]) -> dict[str, Any]:
        """Return the settings that the preset gives to a job of its sweep."""
        return _protocol(check(without_hydra(self.composed(*job))))

    def results(self) -> list[Result]:
        """Return each claim with its numbers here, which are none unless the preset was run to its end."""
        try:
            runs = self.finished_runs()
        except UserError:  # of another protocol, which is said where it is asked for
            runs = {}
        found = []
        for claim in self.preset.claims:
            value = self.evaluated if claim.what.startswith(EVALUATED) else logged_value
            values = [value(run, claim) for run, settings in runs.items() if claim.is_of(settings)]
            found.append(Result(claim, [v for v in values if v is not None] if None not in values else []))
        return found

    def took(self) -> tuple[str, str]:
        """Return how long the runs took, all together, and on what machines, as far as reproduced.json says."""
        records = []
        for run in self.runs():
            with contextlib.suppress(OSError, ValueError):
                records.append(read_json(run / RESULT))
        stored = [record for record in records if isinstance(record, dict) and is_number(record.get("seconds"))]
        machines = dict.fromkeys(str(record.get("machine")) for record in stored)
        return duration(sum(record["seconds"] for record in stored) / 60) if stored else "-", ", ".join(machines) or "-"

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
        settings = [word for word in options.words if "=" in word or word.startswith("~")]
        words = [word for word in options.words if word not in settings]
        is_all, named = "all" in words, [read_preset(name) for name in dict.fromkeys(words) if name != "all"]
        presets = [read_preset(name) for name in preset_names()] if is_all or not words else named
        overrides = _overrides(settings)
        attempts = [Attempt(preset, overrides) for preset in presets]
        requested = [one for one in attempts if one.preset in named or (is_all and not one.preset.needs)]
        if overrides and not (requested or options.markdown):
            raise UserError(f"{' '.join(overrides)}: of which preset? There are {', '.join(preset_names())}, and all.")
        missed = [not _reproduce(attempt) for attempt in requested]
        rows = [(attempt, attempt.results()) for attempt in attempts]
        echo("\n".join(table(rows, options.markdown) if requested or options.markdown else _list(rows)))
        sys.exit(int(any(missed)))


def _arguments() -> argparse.ArgumentParser:
    costs = "\n".join(f"  {name:22}{cost}" for name, cost in _costs().items())
    parser = common.ArgumentParser(
        prog="vae-reproduce",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=ABOUT,
        epilog=f"{RULE}\n\nwhat each took of one core beside other work:\n{costs}\n\n{EXAMPLE}",
    )
    parser.add_argument("words", nargs="*", metavar="NAME | all | KEY=VALUE", help="presets, and keys of vae-train")
    parser.add_argument("--markdown", action="store_true", help="the table in Markdown, of all that was found so far")
    parser.add_argument("--version", action="version", version=common.versions())
    return parser


def _costs() -> dict[str, str]:
    """Return what each preset takes, read without composing it, so that help is quick."""
    costs = {}
    for name in preset_names():
        told = read_yaml(CONF_DIR / "experiment" / PUBLISHED / f"{name}.yaml").get(PUBLISHED, {})
        costs[name] = duration(told.get("minutes", math.nan))
    return costs


def _list(rows: Rows) -> list[str]:
    lines = []
    for attempt, found in rows:
        preset = attempt.preset
        claims = "; ".join(f"{result.claim.name} {result.claim.text(result.claim.value)}" for result in found)
        verdicts = "; ".join(dict.fromkeys(result.verdict(preset, attempt.changes) for result in found))
        lines += [f"{preset.name}  (about {duration(preset.minutes)} of one core)", f"    {preset.about}"]
        lines += [f"    claims   {claims}", f"    source   {preset.source}", f"    differs  {preset.differs}"]
        lines += [f"    data     {preset.data}"] if preset.data else []
        lines += [f"    here     {verdicts}", ""]
    presets = [attempt.preset for attempt, _ in rows]
    left_out = ", ".join(preset.name for preset in presets if preset.needs)
    takes = duration(sum(preset.minutes for preset in presets if not preset.needs))
    all_is = f"all is every one but {left_out}, about {takes} of one core"
    return [*lines, f"vae-reproduce NAME ... trains, evaluates and compares; {all_is}."]


def table(rows: Rows, markdown: bool) -> list[str]:
    """Return the lines of the table of claims, what was found here and verdicts."""
    lines = ["", f"{'':22}{'':31}{'claim':>9}{'±':>8}{'here':>28}   verdict"]
    if markdown:
        names = ("preset", "number", "claim", "source", "here", "time", "machine", "verdict")
        lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for attempt, result in ((attempt, result) for attempt, found in rows for result in found):
        preset, claim, measured = attempt.preset, result.claim, result.text()
        verdict, value, spread = result.verdict(preset, attempt.changes), claim.text(claim.value), f"{claim.spread:g}"
        if markdown:
            source = f"[{preset.source}]({preset.link})" if preset.link else preset.source
            value += "" if claim.value is None else f" ± {spread}"
            cells = (f"`{preset.name}`", claim.name, value, source, measured, *attempt.took(), verdict)
            lines.append(f"| {' | '.join(cells)} |")
        else:
            lines.append(f"{preset.name:22}{claim.name:31}{value:>9}{spread:>8}{measured:>28}   {verdict}")
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
    echo(f"  about {duration(preset.minutes)} of one core; folder {attempt.folder}")
    sys.stdout.flush()  # before what vae-train says
    try:
        _require_data(attempt)
        command = _training_command(attempt)
        if command and (code := _call(command)):
            raise UserError(f"vae-train ended with {code}; the reason stands above")
        evaluations = [_evaluate(attempt, run) for run in attempt.runs()]
        rows = [(result, result.verdict(preset, attempt.changes)) for result in attempt.results()]
        lines = _store(attempt, rows)
    except UserError as error:  # the other presets are tried all the same
        echo(f"{preset.name}: {NOT_RUN} ({error})")
        return False
    for show in evaluations:
        show()
    for line in lines:
        echo(line)
    return not any(verdict.startswith(("missed", NOT_RUN)) for _, verdict in rows)


def _require_data(attempt: Attempt) -> None:
    """Raise UserError, saying how to get it, if the preset reads a file that is not there."""
    if attempt.preset.data:
        root = attempt.composed().dataset.root
        if not path_of(ROOT, root).is_file():
            raise UserError(f"{ROOT}={root}: there is no such file. It takes {attempt.preset.data}")


def _training_command(attempt: Attempt) -> list[str]:
    """Return the command that trains what is missing, or nothing. Raises UserError for a run of another protocol."""
    if attempt.finished_runs():
        return []
    folder, new = attempt.folder, [attempt.preset.config, *attempt.overrides]
    vae_train = [sys.executable, "-m", "vae_exp"]
    if attempt.preset.swept:
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

    trust = attempt.composed().trust is True
    lines = []
    for run, settings in attempt.finished_runs().items():
        path = run / attempt.checkpoint
        model, summary = inference.load(path, "cpu", trust), read_summary(run)
        claims = [
            asdict(result.claim) | {"here": result.mean, "values": result.values, "verdict": verdict}
            for result, verdict in rows
            if result.claim.is_of(settings)
        ]
        record: dict[str, Any] = {"name": attempt.preset.name, "weights": model.weights, "claims": claims}
        record |= {"machine": _machine(), "seconds": summary.seconds if summary else None}
        with contextlib.suppress(OSError, ValueError, AttributeError):
            before = read_json(run / RESULT)
            if before.get("weights") == model.weights:
                record["machine"] = before["machine"]  # where it was run first
            if before == record:
                continue
        write_json(run / RESULT, record)
        lines += evaluate.log_to_wandb(path, model.weights, attempt.wandb_mode.partition("=")[2], model.config)
    return lines


def _machine() -> str:
    """Return the name of the processor and the number of its cores."""
    return f"{_processor()}, {os.cpu_count()} cores"


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
