"""A run's own files while it trains, with W&B beside them."""

import contextlib
import functools
import json
import logging
import os
import platform
import subprocess
import threading
import time
from collections.abc import Callable
from datetime import datetime
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from vae_exp.config.checks import from_anywhere, resolve
from vae_exp.config.schema import Config
from vae_exp.errors import UserError, first_line, stopped_by
from vae_exp.files import atomic_write, no_links, write, writing
from vae_exp.tracking import wandb_run
from vae_exp.tracking.wandb_run import FINISH_SECONDS, Mode, as_id
from vae_exp.training import run_dir as folder
from vae_exp.training.checkpoints import Checkpoint
from vae_exp.training.run_dir import BEST, CONFIG, IMAGES, LAST, METRICS, SUMMARY, Summary, WandbRun
from vae_exp.training.state import RunInfo

log = logging.getLogger(__name__)
GIT_SECONDS = 2  # a huge repository may take longer: then the run does not know its commit


class Tracker:
    """One run: opened once, closed once with its state, whatever happens in between.

    The run folder has everything even if W&B is disabled, unreachable or killed. The only clock is the optimizer step.
    `before` is the checkpoint that a run resumes from: what was written after it is cut off, and W&B's run has the same
    id. A run that starts anew removes what is in its folder, and the first `old_log_bytes` bytes of train.log.
    """

    def __init__(
        self, config: Config, run_dir: Path, mode: Mode, info: RunInfo, before: Checkpoint | None, old_log_bytes: int
    ) -> None:
        self.run_dir = run_dir
        self.started, self.wandb_id = time.monotonic(), None
        self._row, self._row_step = dict[str, Any](), 0  # of W&B, and what its summary has not got yet
        self._unsent: dict[str, Any] = {}
        self.ends_as = "finished"  # the state of a run that ends without an error
        summary = folder.read_summary(run_dir) if before is not None else None
        known = summary.wandb if summary is not None else WandbRun()
        if before is not None and before.resume is not None:
            written = before.resume
            self.started, self.wandb_id = self.started - written.seconds, written.wandb_id
            folder.truncate_metrics(run_dir, before.step, written.metrics_bytes)
        else:
            folder.require_unused(run_dir, config["replace"])  # again: another process may have been quicker
            folder.clear(run_dir, old_log_bytes)
        write(run_dir / CONFIG, OmegaConf.to_yaml(OmegaConf.create(dict(config))))
        with writing(run_dir / METRICS):
            self.metrics = open(run_dir / METRICS, "a", opener=no_links)  # noqa: SIM115
        best = before.best.summary() if before is not None and before.best is not None else {}
        self.name = wandb_run.run_name(config)
        self.alerts, facts = config["wandb"]["alert"], info.as_dict() | {"environment": environment()}
        self.summary = Summary("running", name=self.name, results=facts | best)
        self.wandb = None if mode == "disabled" else self._open_wandb(config, mode, facts, known)
        if self.wandb is not None:
            self.wandb_id, self.summary.wandb = self.wandb.id, _describe(self.wandb, mode)
        self._write_summary()
        if before is None and (artifact := wandb_run.artifact_of(config["init_from"])):
            # W&B draws where the run came from; offline it takes none.
            self._in_wandb(lambda run: run.offline or run.use_artifact(artifact))
        if best:
            self._in_wandb(lambda run: run.summary.update(best))

    def _open_wandb(self, config: Config, mode: Mode, info: dict[str, Any], known: WandbRun) -> Any:
        import wandb

        for attempt in dict.fromkeys((mode, "offline")):
            try:
                options = wandb_run.training_options(config, info, self.name, self.wandb_id, known)
                run = wandb.init(mode=attempt, **options)
                wandb_run.packages_are_listed = True
                return run
            except Exception as error:  # whatever is wrong with W&B, it must not cost the run
                is_last = attempt == "offline" or isinstance(error, UserError)  # of its folder
                rest = "the run folder has everything" if is_last else "the run goes on offline"
                log.warning("W&B: %s; %s.", first_line(error).rstrip("."), rest)
                if is_last:
                    break
        return None

    def log(self, values: dict[str, Any], step: int) -> None:
        """Log scalars, and lists that W&B shows as histograms."""
        with writing(self.run_dir / METRICS):
            self.metrics.write(json.dumps({"step": step} | values) + "\n")
            self.metrics.flush()

        def as_histograms(wandb: Any) -> dict[str, Any]:
            return {
                name: wandb.Histogram(value) if isinstance(value, list) else value for name, value in values.items()
            }

        self._add_to_row(as_histograms, step)

    def image(self, name: str, pixels: np.ndarray, caption: str, step: int) -> None:
        """Write a picture, as images/NAME_STEP.png and in W&B as images/NAME; it is encoded once."""
        path = self.image_path(name, step)
        with atomic_write(path, sync=False) as file:
            Image.fromarray(pixels).save(file, "PNG")

        self._add_to_row(lambda wandb: {f"images/{name}": wandb.Image(str(path), caption=caption)}, step)

    def _add_to_row(self, values: Callable[[Any], dict[str, Any]], step: int) -> None:
        """Add values, made by a function of the module wandb, to the step's row in W&B; a call for each is slow."""

        def add(run: Any) -> None:
            import wandb

            if step != self._row_step:
                self._send_row(run)
            self._row |= values(wandb)
            self._row_step = step

        self._in_wandb(add)

    def _send_row(self, run: Any) -> None:
        """Log all that there is of the last step, now that the next one comes or the run ends, as W&B itself does."""
        row, self._row = self._row, {}
        if row:
            run.log(row, step=self._row_step, commit=True)

    def image_path(self, name: str, step: int) -> Path:
        return self.run_dir / IMAGES / f"{name}_{step:07d}.png"

    def position(self) -> tuple[int, str | None]:
        """Return the size of metrics.jsonl, to which a resumed run cuts it back, and the W&B run's id."""
        return os.fstat(self.metrics.fileno()).st_size, self.wandb_id

    def to_disk(self) -> None:
        """Flush metrics.jsonl to the disk, and bring summary.json up to date."""
        with writing(self.run_dir / METRICS):
            os.fsync(self.metrics.fileno())
        self._write_summary()
        if self._unsent:
            self._in_wandb(lambda run: run.summary.update(self._unsent))
            self._unsent = {}

    def summarise(self, results: dict[str, Any]) -> None:
        """Record results of the whole run, such as best/val_neg_elbo, for summary.json and W&B at their next write."""
        self.summary.results.update(results)
        self._unsent |= results

    def upload_checkpoints(self, best_is_last: bool) -> None:
        """Upload best.pt and last.pt as versions of the run's W&B artifact; if they are the same model, as one file."""
        files = {LAST: ["best", "last"]} if best_is_last else {BEST: ["best"], LAST: ["last"]}
        for name, aliases in files.items():
            self._in_wandb(partial(self._upload, name, aliases))

    def _upload(self, name: str, aliases: list[str], run: Any) -> None:
        import wandb
        from wandb.sdk.artifacts.exceptions import WaitTimeoutError

        artifact = wandb.Artifact(f"model-{as_id(self.name)}", type="model", metadata={"run": self.run_dir.name})
        artifact.add_file(str(self.run_dir / name), policy="immutable")  # no second copy in W&B's cache at home
        logged = run.log_artifact(artifact, aliases=aliases)
        while not run.offline:  # here and not in finish, which does not wait for large files
            try:
                logged.wait(timeout=FINISH_SECONDS)
                return
            except WaitTimeoutError:
                if problem := wandb_run.server_problem():
                    raise RuntimeError(problem) from None

    def _in_wandb(self, call: Callable[[Any], Any]) -> None:
        """Call with the W&B run, if there is one; if that fails, go on without."""
        if self.wandb is None:
            return
        try:
            call(self.wandb)
        except Exception as error:  # see _open_wandb
            later = f"To upload later: wandb sync {self.summary.wandb.dir}"
            log.warning("W&B stopped working (%s); the run folder has everything. %s", first_line(error), later)
            self.wandb = None
            # Else it fails once more, with a traceback, when Python ends; beside, because it waits for the server.
            teardown = threading.Thread(target=_teardown, daemon=True)
            teardown.start()
            teardown.join(timeout=1)

    def _write_summary(self) -> None:
        self.summary.seconds = round(time.monotonic() - self.started, 3)
        self.summary.write(self.run_dir)

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is not None:  # written first: whoever stops a run may not wait for W&B
            with contextlib.suppress(OSError, UserError):  # what the error says is what matters
                self._write_end(error)
        try:  # else the run is finished only when its W&B run is
            self._close_wandb(error)
            self.metrics.close()
        except (KeyboardInterrupt, SystemExit) as stop:
            self._write_end(stop)
            raise
        if error is None:
            self._write_end(None)

    def _write_end(self, error: BaseException | None) -> None:
        self.summary.state, self.summary.reason, _ = self._end(error)
        self._write_summary()

    def _close_wandb(self, error: BaseException | None) -> None:
        state, reason, exit_code = self._end(error)

        def close(run: Any) -> None:
            self._send_row(run)
            if isinstance(error, SystemExit):
                run.mark_preempting()
            run.summary.update(self._unsent | {"state": state, "reason": reason})
            if self.alerts and (state == "failed" or (state == "finished" and reason)):
                run.alert(f"{self.name}: {state}", reason or state)
            run.finish(exit_code=exit_code)

        self._in_wandb(close)

    def _end(self, error: BaseException | None) -> tuple[str, str | None, int]:
        if error is None:
            return self.ends_as, self.summary.reason, 0
        if isinstance(error, KeyboardInterrupt | SystemExit):
            code = getattr(error, "code", 130)
            return "interrupted", stopped_by(error), code if isinstance(code, int) else 1
        return "failed", str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}", 1


def environment() -> dict[str, Any]:
    """Return what a run was made with: date, host, versions, and the commit of the repository that one stands in."""
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    about = {"date": now, "host": platform.node(), "python": platform.python_version()}
    return about | _versions() | _commit(os.path.realpath("."))


@functools.cache
def _versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in ("vae_exp", "torch", "hydra-core", "wandb")}


@functools.cache
def _commit(cwd: str) -> dict[str, Any]:
    """Return the commit of a folder's repository, and whether its files differ from it; nothing without git."""
    try:
        commit = _git(cwd, "rev-parse", "HEAD")
        return {"commit": commit, "clean": not _git(cwd, "status", "--porcelain", "--untracked-files=no")}
    except (OSError, subprocess.SubprocessError):
        return {}


def _git(cwd: str, *words: str) -> str:
    command = ["git", "-c", "core.fsmonitor=false", *words]  # which would be a program that the repository names
    ran = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=True, timeout=GIT_SECONDS)
    return ran.stdout.strip()


def record_failure(cfg: DictConfig, run_dir: Path, reason: str) -> None:
    """Write a summary.json for a run that failed before it was tracked, unless a run's files are there and say more."""
    if not (run_dir / SUMMARY).exists() and not folder.holds_run(run_dir):
        with contextlib.suppress(UserError):  # an interpolation that leads nowhere may be what failed
            cfg = OmegaConf.create(from_anywhere(resolve(cfg)))
        with contextlib.suppress(OSError, UserError):  # a full disk may be what failed
            write(run_dir / CONFIG, OmegaConf.to_yaml(cfg))
            Summary("failed", reason).write(run_dir)


def _describe(run: Any, mode: str) -> WandbRun:
    return WandbRun(
        mode="offline" if run.offline else mode,
        id=run.id,
        dir=os.path.relpath(Path(run.dir).parent),
        url=None if run.offline else run.url,
        project=run.project or None,
        entity=run.entity or None,
        group=run.group or None,
        tags=list(run.tags or ()) or None,
    )


def _teardown() -> None:
    import wandb

    with contextlib.suppress(Exception):
        wandb.teardown()
