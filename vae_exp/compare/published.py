"""Published figures that presets claim: conf/experiment/published/*.yaml, read without torch, and their verdicts."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from vae_exp.compare.runs import SEEDS
from vae_exp.config.checks import CONF_DIR, check, flatten
from vae_exp.config.compose import compose, readable, without_hydra
from vae_exp.config.schema import is_number
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
    values: list[float] = field(default_factory=list)  # one, or one for each seed; empty: not run to the end

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
        return REPRODUCED if abs(off) <= self.claim.within else f"missed by {off:+.2f}"


def names() -> list[str]:
    return sorted(path.stem for path in (CONF_DIR / "experiment" / PUBLISHED).glob("*.yaml"))


def read(name: str) -> Preset:
    """Read a preset by its name. Raise UserError if there is no such preset."""
    if name not in names():
        raise UserError(f"{name}: no such preset. There are {', '.join(names())}, and all.")
    cfg = compose("config", [f"experiment={PUBLISHED}/{name}"])
    content: Any = OmegaConf.to_container(cfg[PUBLISHED])
    claims = [Claim(**claim) for claim in content.pop("claims")]
    swept = [str(values).split(",") for values in cfg.hydra.sweeper.params.values()] if cfg.hydra.mode else None
    runs = None if swept is None else math.prod(map(len, swept))
    return Preset(name=name, claims=claims, runs=runs, has_root="root" in cfg.dataset, **content)


def finished_runs(preset: Preset, overrides: Sequence[str], folders: Iterable[Path]) -> list[Path]:
    """Return the finished runs of a preset, none if some of its sweep lack. Raise UserError for another protocol's."""
    finished = {
        folder: _protocol(config)
        for folder in folders
        if (summary := read_summary(folder)) is not None and summary.finished and (config := read_config(folder))
    }
    if not finished:
        return []
    wanted = _protocol(check(without_hydra(compose("config", readable([preset.config, *overrides])))))
    for folder, actual in finished.items():
        wrong = contradictions(actual, wanted)
        wrong += [f"{key}={wanted[key]}: it has {actual.get(key)}" for key in LENGTH if wanted[key] != actual.get(key)]
        if wrong:
            raise UserError(f"{folder}: no run of {preset.name}; take it away, or move it.\n" + "\n".join(wrong))
    return list(finished) if len(finished) == (preset.runs or 1) else []


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
