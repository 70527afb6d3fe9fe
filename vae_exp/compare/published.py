"""Published figures that presets claim: conf/experiment/published/*.yaml, read without torch, and their verdicts."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from vae_exp.compare.runs import SEEDS
from vae_exp.config.checks import CONF_DIR, check, flatten
from vae_exp.config.compose import compose, readable, without_hydra
from vae_exp.errors import UserError
from vae_exp.files import read_json_lines
from vae_exp.training.run_dir import LENGTH, METRICS, contradictions, read_config, read_summary

PUBLISHED = "published"
EVALUATED = "evaluate/"  # a claim of what vae-evaluate measures; others are of what a run logs
REPRODUCED, NOT_RUN = "reproduced", "not run here"


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
    """The part of a file in conf/experiment/published that is not settings."""

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
    values: list[float] = field(default_factory=list)  # one, or one for each seed; empty: not run to the end

    @property
    def here(self) -> float | None:
        return statistics.mean(self.values) if self.values else None

    def text(self) -> str:
        """Return the value found here, with its standard deviation over seeds."""
        if self.here is None:
            return "-"
        spread = f" ± {self.claim.text(statistics.stdev(self.values))}" if len(self.values) > 1 else ""
        return self.claim.text(self.here) + spread

    def verdict(self, preset: Preset, changes: Sequence[str] = ()) -> str:
        """Return "reproduced", or by how much the claim is missed.

        If not the whole protocol was run, return only how far off the result is.
        """
        if self.here is None:
            return f"{NOT_RUN} (needs {preset.needs or f'{preset.minutes:g} minutes'})"
        off = self.here - self.claim.value
        if changes:
            return f"other protocol ({' '.join(changes)}), off by {off:+.2f}"
        if preset.shortened:
            return f"shortened ({preset.shortened}), off by {off:+.2f}"
        return REPRODUCED if abs(off) <= self.claim.within else f"missed by {off:+.2f}"


def names() -> list[str]:
    return sorted(path.stem for path in (CONF_DIR / "experiment" / PUBLISHED).glob("*.yaml"))


def read(name: str) -> Preset:
    """Read a preset by its name. Raise UserError if there is no such preset, or if its claims are not complete."""
    if name not in names():
        raise UserError(f"{name}: no such preset. There are {', '.join(names())}, and all.")
    cfg = compose("config", [f"experiment={PUBLISHED}/{name}"])
    said: Any = OmegaConf.to_container(cfg[PUBLISHED]) if isinstance(cfg.get(PUBLISHED), DictConfig) else None
    try:
        assert isinstance(said, dict), "published: is missing"
        claims = [Claim(**claim) for claim in said.pop("claims")]
        if not claims:
            raise ValueError("no claims")
        return Preset(name=name, claims=claims, runs=_runs(cfg), has_root="root" in cfg.dataset, **said)
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"conf/experiment/{PUBLISHED}/{name}.yaml: its claims are not complete ({error}).") from error


def _runs(cfg: DictConfig) -> int | None:
    """Return the number of runs of a preset that is a sweep, or None if it is a single run."""
    if cfg.hydra.mode is None:
        return None
    return math.prod(len(str(values).split(",")) for values in cfg.hydra.sweeper.params.values())


def finished_runs(preset: Preset, overrides: Sequence[str], folders: Iterable[Path]) -> list[Path]:
    """Return the finished runs of a preset; none if some runs of a sweep are not finished.

    Raise UserError if a run in its place was trained by another protocol.
    """
    ended = [folder for folder in folders if (summary := read_summary(folder)) is not None and summary.finished]
    if not ended:
        return []
    now = check(without_hydra(compose("config", readable([preset.config, *overrides]))))
    done = []
    for folder in ended:
        before = read_config(folder)
        if before is None:
            continue
        mine, theirs = ({k: v for k, v in flatten(config).items() if k not in SEEDS} for config in (now, before))
        wrong = contradictions(theirs, mine)
        wrong += [f"{key}={mine[key]}: it has {theirs.get(key)}" for key in LENGTH if mine[key] != theirs.get(key)]
        if wrong:
            raise UserError(f"{folder}: no run of {preset.name}; take it away, or move it.\n" + "\n".join(wrong))
        done.append(folder)
    return done if len(done) == (preset.runs or 1) else []


def logged_value(folder: Path, claim: Claim) -> float | None:
    """Return the value that the run in a folder logged for a claim, or None if it logged none, or no number."""
    if claim.after_epoch is None:
        summary = read_summary(folder)
        return number(summary.results.get(claim.what)) if summary else None
    for row in read_json_lines(folder / METRICS):
        if row.get("epoch") == claim.after_epoch and claim.what in row:
            return number(row[claim.what])
    return None


def number(value: Any) -> float | None:
    """Return the value if it is a finite number, else None."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else None
