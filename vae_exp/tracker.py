"""Where a run is written down: its own folder always, W&B beside it. Beside it only online and publish import wandb."""

import contextlib
import functools
import json
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from vae_exp import files, online, resume
from vae_exp.config import UserError, resolve
from vae_exp.wandb_options import FINISH_SECONDS, as_id, first_line, of_run, run_name

log = logging.getLogger(__name__)
TEARDOWN_SECONDS = 1


class Tracker:
    """One run: opened once, closed once with its state, whatever happens in between.

    The run folder gets config.yaml, metrics.jsonl, images/ and summary.json, each whole after every write,
    so that it tells everything with W&B disabled, unreachable or killed. The one clock is the optimizer step.
    `before` is the checkpoint that a run goes on from: what was written after it is cut off, and W&B's run has
    the same id.
    """

    def __init__(
        self, config: dict, run_dir: Path, mode: str, facts: dict[str, Any], before: dict[str, Any] | None = None
    ) -> None:
        self.run_dir, self.name = run_dir, run_name(config)
        resumed = before["resume"] if before else {}
        self.started, self.wandb_id = time.time() - resumed.get("seconds", 0.0), resumed.get("wandb_id")
        if before:
            resume.cut_back(run_dir, before["step"], resumed["metrics_bytes"])
        else:
            resume.clear(run_dir)
        files.write(run_dir / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)).encode())
        with files.writing(run_dir / "metrics.jsonl"):
            self.metrics = (run_dir / "metrics.jsonl").open("a")
        self.run = None if mode == "disabled" else self._open_wandb(config, mode, facts)
        self.wandb_id = self.run.id if self.run is not None else self.wandb_id
        self.summary: dict[str, Any] = {"state": "running", "reason": None, "name": self.name} | facts
        self.summary["wandb"] = self._describe_wandb(mode)
        self._write_summary()

    def _open_wandb(self, config: dict, mode: str, facts: dict[str, Any]) -> Any:
        import wandb

        try:
            return wandb.init(mode=mode, **of_run(config, facts, self.name, self.wandb_id))
        except Exception as error:  # whatever is wrong with W&B, it must not cost the run
            if mode == "offline":
                log.warning("W&B could not be started (%s); the run folder has everything.", first_line(error))
                return None
            log.warning("W&B: %s; the run goes on offline.", first_line(error))
            return self._open_wandb(config, "offline", facts)

    def _describe_wandb(self, mode: str) -> dict[str, Any]:
        if self.run is None:
            return {"mode": "disabled", "id": None, "dir": None, "url": None}
        mode = "offline" if self.run.offline else mode
        folder = os.path.relpath(Path(self.run.dir).parent)
        return {
            "mode": mode,
            "id": self.run.id,
            "dir": folder,
            "url": None if mode == "offline" else self.run.url,
        }

    def log(self, values: dict[str, Any], step: int) -> None:
        """Scalars, and lists that W&B shows as histograms."""
        with files.writing(self.run_dir / "metrics.jsonl"):
            self.metrics.write(json.dumps({"step": step} | values) + "\n")
            self.metrics.flush()
        if self.run is not None:
            import wandb

            values = {k: wandb.Histogram(v) if isinstance(v, list) else v for k, v in values.items()}
            self._wandb(lambda run: run.log(values, step=step))

    def image(self, name: str, pixels: np.ndarray, caption: str, step: int) -> None:
        """A picture, as images/NAME_STEP.png and in W&B as images/NAME; encoded once."""
        path = self.run_dir / "images" / f"{name}_{step:07d}.png"
        with files.writing(path):
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(pixels).save(path)
        if self.run is not None:
            import wandb

            picture = wandb.Image(str(path), caption=caption)
            self._wandb(lambda run: run.log({f"images/{name}": picture}, step=step))

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs to know of the files, as they are on the disk from here on."""
        with files.writing(self.run_dir / "metrics.jsonl"):
            os.fsync(self.metrics.fileno())
            return {"metrics_bytes": os.fstat(self.metrics.fileno()).st_size, "wandb_id": self.wandb_id}

    def summarise(self, values: dict[str, Any]) -> None:
        """Results of the whole run, such as best/val_neg_elbo: keys of their own in summary.json and W&B."""
        self.summary.update(values)
        self._write_summary()
        self._wandb(lambda run: run.summary.update(values))

    def _wandb(self, call: Callable[[Any], Any]) -> None:
        if self.run is None:
            return
        try:
            call(self.run)
        except Exception as error:  # see _open_wandb
            log.warning(
                "W&B stopped working (%s); the run folder has everything. To upload later: wandb sync %s",
                first_line(error),
                self.summary["wandb"]["dir"],
            )
            self.run = None
            import wandb

            # Else it fails once more, with a traceback, when Python ends; beside, because it waits for the server.
            closing = threading.Thread(target=_quietly, args=(wandb.teardown,), daemon=True)
            closing.start()
            closing.join(TEARDOWN_SECONDS)

    def _write_summary(self) -> None:
        self.summary["seconds"] = round(time.time() - self.started, 3)
        files.write_json(self.run_dir / "summary.json", self.summary)

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            state, reason, exit_code = "finished", self.summary["reason"], 0
        elif isinstance(error, KeyboardInterrupt):
            state, reason, exit_code = "interrupted", "Ctrl-C", 130
        elif isinstance(error, SystemExit):
            state, reason, exit_code = "interrupted", "SIGTERM" if error.code == 143 else f"{error.code}", error.code
            self._wandb(lambda run: run.mark_preempting())
        else:
            said = str(error) if isinstance(error, UserError) else f"{kind.__name__}: {error}"
            state, reason, exit_code = "failed", said, 1
        self.summary |= {"state": state, "reason": reason}
        try:
            self._write_summary()
            self.metrics.close()
        except (OSError, UserError):
            if error is None:  # else what it says is what matters
                raise
        finally:  # a full disk must not leave W&B's run open
            self._wandb(lambda run: run.summary.update({"state": state, "reason": reason}))
            self._wandb(lambda run: run.finish(exit_code=exit_code))

    def upload(self, checkpoint: Path, aliases: list[str]) -> None:
        """A checkpoint as a version of the run's W&B artifact, under its aliases."""
        self._wandb(functools.partial(self._log_artifact, checkpoint, aliases))

    def _log_artifact(self, path: Path, aliases: list[str], run: Any) -> None:
        import wandb
        from wandb.sdk.artifacts.exceptions import WaitTimeoutError

        artifact = wandb.Artifact(f"model-{as_id(self.name)}", type="model", metadata={"run": self.run_dir.name})
        artifact.add_file(str(path), policy="immutable")  # no second copy in W&B's cache at home
        logged = run.log_artifact(artifact, aliases=aliases)
        while not run.offline:  # here and not in finish, which does not wait for large files
            try:
                logged.wait(timeout=FINISH_SECONDS)
                return
            except WaitTimeoutError:
                if trouble := online.trouble():
                    raise RuntimeError(trouble) from None


def record_failure(cfg: DictConfig, run_dir: Path, reason: str) -> None:
    """Leave a summary.json of a run that failed before it was tracked; one that is there tells more."""
    if not (run_dir / "summary.json").exists():
        with contextlib.suppress(UserError):  # an interpolation that leads nowhere may be what failed
            cfg = OmegaConf.create(resolve(cfg))
        with contextlib.suppress(OSError, UserError):  # a full disk may be what failed
            run_dir.mkdir(parents=True, exist_ok=True)
            OmegaConf.save(cfg, run_dir / "config.yaml")
            files.write_json(run_dir / "summary.json", {"state": "failed", "reason": reason, "seconds": 0.0})


def _quietly(call: Callable[[], Any]) -> None:
    with contextlib.suppress(Exception):
        call()
