"""Published figures that presets claim: conf/experiment/published/*.yaml, read without torch, and their verdicts."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from vae_exp.config.check import CONF_DIR
from vae_exp.config.messages import compose
from vae_exp.errors import UserError
from vae_exp.run.folder import METRICS, read_summary

PUBLISHED = "published"
EVALUATED = "evaluate/"  # a claim of what vae-evaluate measures; others are of what a run logs
REPRODUCED, SHORTENED, NOT_RUN = "reproduced", "shortened", "not run here"


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
        """With as many digits as the tolerance has, and one more."""
        digits = max(2, len(f"{self.within:g}".partition(".")[2]) + 1)
        return f"{value:.{digits}f}"


@dataclass(frozen=True)
class Preset:
    """What a file of conf/experiment/published says beside its settings."""

    name: str
    about: str
    source: str
    minutes: float
    differs: str
    claims: list[Claim]
    is_sweep: bool
    has_root: bool  # its data lie in a folder, dataset.root
    evaluate: dict[str, Any] | None = None  # keys of vae-evaluate; None where nothing but the run is claimed
    shortened: str | None = None  # it is not the whole protocol
    needs: str | None = None  # more than a machine of today is given for it

    @property
    def config(self) -> str:
        return f"experiment={PUBLISHED}/{self.name}"


@dataclass
class Found:
    """A claim beside what was found here."""

    claim: Claim
    values: list[float] = field(default_factory=list)  # one, or one for each seed; empty: not run

    @property
    def here(self) -> float | None:
        return statistics.mean(self.values) if self.values else None

    def verdict(self, shortened: Sequence[str]) -> str:
        """reproduced, or by how much it is missed; of a run that was not the whole protocol only how far off it is."""
        if self.here is None:
            return NOT_RUN
        off = self.here - self.claim.value
        if shortened:
            return f"{SHORTENED} ({'; '.join(shortened)}), off by {self.claim.text(off)}"
        return REPRODUCED if abs(off) <= self.claim.within else f"missed by {off:+.2f}"


def names() -> list[str]:
    return sorted(path.stem for path in (CONF_DIR / "experiment" / PUBLISHED).glob("*.yaml"))


def read(name: str) -> Preset:
    """Raises UserError for a name that there is not, and for a file whose claims are not complete."""
    if name not in names():
        raise UserError(f"{name}: no such preset. There are {', '.join(names())}, and all.")
    cfg = compose("config", [f"experiment={PUBLISHED}/{name}"])
    said: Any = OmegaConf.to_container(cfg[PUBLISHED]) if isinstance(cfg.get(PUBLISHED), DictConfig) else None
    try:
        assert isinstance(said, dict), "published: is missing"
        claims = [Claim(**claim) for claim in said.pop("claims")]
        if not claims:
            raise ValueError("no claims")
        return Preset(
            name=name, claims=claims, is_sweep=cfg.hydra.mode is not None, has_root="root" in cfg.dataset, **said
        )
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"conf/experiment/{PUBLISHED}/{name}.yaml: its claims are not complete ({error}).") from error


def logged(folder: Path, claim: Claim) -> float | None:
    """What the run in a folder logged of a claim; None where it has not."""
    if claim.after_epoch is None:
        summary = read_summary(folder)
        return summary.results.get(claim.what) if summary else None
    for line in (folder / METRICS).read_text().splitlines() if (folder / METRICS).is_file() else ():
        row = json.loads(line)
        if row.get("epoch") == claim.after_epoch and claim.what in row:
            return float(row[claim.what])
    return None
