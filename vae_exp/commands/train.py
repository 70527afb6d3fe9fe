"""`vae-train`: one run or a sweep. Nothing here imports torch until a run starts: help and errors are instant."""

import logging
import os
import re
import shutil
import sys
import traceback
from pathlib import Path
from string import Template
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from vae_exp.commands import shared
from vae_exp.config import check
from vae_exp.config.check import CONF_DIR
from vae_exp.config.keys import Config
from vae_exp.config.messages import HYDRA_VERSION, compose, without_hydra
from vae_exp.errors import UserError
from vae_exp.run import earlier, resume
from vae_exp.run.folder import BEST, IMAGES, LAST, METRICS, SUMMARY, read_overrides, require_no_owner, require_writable
from vae_exp.sweep import jobs, plan

log = logging.getLogger(__name__)
ON_THIS_MACHINE = ("basic", "joblib", "submitit_local")  # launchers


def main() -> None:
    """`vae-train`: exit code 0; 1 with one message for what the user can mend; a traceback for our own bugs."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra then raises its errors instead of printing them
    os.environ.setdefault("OTEL_SDK_DISABLED", "true")  # W&B's own telemetry waits 10 s more for a server that hangs
    with shared.exits("vae-train", "config"):
        sys.argv[1:] = _with_own_options(sys.argv[1:])
        sys.exit(_main(sys.argv[1:]))


def _with_own_options(arguments: list[str]) -> list[str]:
    """--config-dir FOLDER, with options of one's own, as a setting, which the jobs of a sweep keep and flags do not."""
    found = [i for i, argument in enumerate(arguments) if argument.partition("=")[0] in ("--config-dir", "-cd")]
    if not found:
        return arguments
    flag, _, folder = arguments[found[0]].partition("=")
    after = found[0] + (1 if folder else 2)
    folder = folder or "".join(arguments[after - 1 : after])
    if not folder or not Path(folder).is_dir():
        raise UserError(f"{flag} {folder}: there is no such folder. It holds options of your own: objective/NAME.yaml")
    path = f"file://{Path(folder).resolve()}"
    path = path if re.fullmatch(r"[\w:/.-]+", path) else plan.quoted(path)
    return [*arguments[: found[0]], *arguments[after:], f"hydra.searchpath=[{path}]"]


def _main(arguments: list[str]) -> int:
    if arguments in (["--help"], ["-h"]):
        _print_help()
        return 0
    if any(a.startswith("-") and a not in ("-m", "--multirun") for a in arguments):
        _job()  # --help, --cfg and the like start nothing; with other flags the run itself does the checks
        return 0
    typed = [a for a in arguments if not a.startswith("-")]
    first = plan.first_job(typed)
    cfg = compose("config", first)
    if len(typed) < len(arguments) or cfg.hydra.mode == RunMode.MULTIRUN:
        return _sweep(typed, cfg)
    if first != typed:
        compose("config", typed)  # which is refused: a sweep without -m
    if cfg.resume is not None:
        sys.argv[1:], run_dir = _to_resume(typed, cfg)
    else:
        _check(cfg)
        run_dir = Path(cfg.hydra.run.dir)
        require_no_owner(run_dir)
        earlier.require_unused(run_dir, cfg.replace)
        sys.argv[1:] = typed
    require_writable(run_dir)
    _job()
    return 0


def _print_help() -> None:
    """Hydra would fill in the same text, but asks every plugin's groups, for seconds."""
    listed = "".join(f"{group}: {', '.join(check.options(group))}\n" for group in check.groups())
    template = OmegaConf.load(CONF_DIR / "hydra" / "help" / "vae_exp.yaml").template
    print(Template(template).substitute(APP_CONFIG_GROUPS=listed))


def _sweep(typed: list[str], cfg: DictConfig) -> int:
    """Run the jobs of a sweep, then its table; the exit code. cfg is the configuration of its first job."""
    if cfg.resume is not None:
        raise UserError(f"resume={cfg.resume}: is of one run. A sweep goes on with sweep.resume={cfg.resume}.")
    config = _check(cfg, combinations=False)
    planned = plan.plan(typed, cfg)
    if cfg.hydra.runtime.choices["hydra/launcher"] in ON_THIS_MACHINE:
        from vae_exp.config import build

        build.dataset(config)  # so that jobs side by side do not all download it; kept for those of this process
    jobs.start(planned)
    sys.argv[1:] = ["--multirun", *planned.overrides]
    stopped, error = 0, None
    try:
        _job()
    except KeyboardInterrupt:
        stopped = 130
    except SystemExit as stop:
        stopped = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except Exception as raised:  # a launcher's or a sweeper's: what was done until then is still told
        error = raised
    code = jobs.finish(planned, config["wandb"], stopped=bool(stopped))
    if error is not None and code:
        (planned.folder / "error.log").write_text("".join(traceback.format_exception(error)))
        raise UserError(f"the sweep ended early: {error}\nThe traceback is in {planned.folder}/error.log") from error
    return stopped or code


@hydra.main(version_base=HYDRA_VERSION, config_path=str(CONF_DIR), config_name="config")
def _job(cfg: DictConfig) -> float | None:
    """One job of Hydra's: one run. Returns what a search minimises."""
    job = HydraConfig.get()
    run_dir = Path(os.path.relpath(job.runtime.output_dir))
    if job.mode == RunMode.MULTIRUN:
        return jobs.run_job(cfg, run_dir, job)

    from vae_exp.tracking.tracker import record_failure
    from vae_exp.train import train

    try:
        summary = train(cfg, run_dir)
    except KeyboardInterrupt:
        log.info(f"Stopped by Ctrl-C. What was finished until then is in {run_dir}{_how_to_go_on(run_dir)}")
        raise
    except SystemExit:
        log.info(f"Stopped by SIGTERM. What was finished until then is in {run_dir}{_how_to_go_on(run_dir)}")
        raise
    except UserError as error:
        record_failure(cfg, run_dir, str(error))
        log.error(f"vae-train: {error}")
        sys.exit(1)
    log.info(_closing(summary, run_dir, cfg.dataset["_target_"]))
    return None


def _to_resume(typed: list[str], cfg: DictConfig) -> tuple[list[str], Path]:
    """The command line that goes on with the run that cfg.resume means, as it was started, and its folder.

    Raises UserError where there is none, where it is finished or at work, or where the configuration contradicts it.
    """
    run_dir = Path(cfg.hydra.run.dir)
    if cfg.resume == "auto":
        folder = resume.find_unfinished(_check(cfg), run_dir)
        if folder is None:
            anew = [*_without(typed, {"resume"}), "resume=null"]
            # What a run left that was stopped before its first checkpoint is no loss.
            return [*anew, "replace=true"] if earlier.holds_run(run_dir) else anew, run_dir
    else:
        folder = resume.find(str(cfg.resume))
        words = plan.parse(typed)
        before = _without(read_overrides(folder), {"replace", *(word.key_or_group for word in words)})
        typed = [*before, *typed]
    typed = [*_without(typed, {"resume", "hydra.run.dir"}), f"resume={plan.quoted(folder)}"]
    config = _check(compose("config", typed))
    require_no_owner(folder)
    resume.require_unfinished(folder, config)
    resume.load(folder, config, quiet=True)
    # One run, also where it was a job of a preset that is a sweep.
    return [*typed, f"hydra.run.dir={plan.quoted(folder)}", "hydra.mode=RUN"], folder


def _without(overrides: list[str], keys: set[str]) -> list[str]:
    return [plan.line(word) for word in plan.parse(overrides) if word.key_or_group not in keys]


def _check(cfg: DictConfig, combinations: bool = True) -> Config:
    """Refuse a bad configuration before Hydra makes a folder for the run."""
    cfg = without_hydra(cfg)
    check.check(cfg, combinations)  # at once, before torch is imported for what only torch can tell
    from vae_exp.config import build
    from vae_exp.run import speed
    from vae_exp.tracking import wandb_server

    wandb_server.check_environment(cfg.wandb.mode)
    if cfg.wandb.mode == "online":
        wandb_server.api_key(cfg.wandb.mode)
    config = build.check(cfg, combinations)
    speed.check(config["precision"], config["compile"], build.device(config["device"]))
    return config


def _how_to_go_on(run_dir: Path) -> str:
    return f"\ngo on     vae-train resume={run_dir}" if (run_dir / LAST).exists() else ""


def _closing(summary: dict[str, Any], run_dir: Path, dataset: str) -> str:
    """Where everything is, and what to type next."""

    def program(name: str) -> str:
        return name if shutil.which(name) else os.path.relpath(Path(sys.executable).with_name(name))

    test = "   ".join(f"{name} {summary[f'test/{name}']:.3f}" for name in ("neg_elbo", "reconstruction", "kl"))
    run = summary["wandb"]
    lines = {
        "test": f"{test}   ({summary['test/active_units']} active units)",
        "pictures": f"{run_dir}/{IMAGES}",
        "numbers": f"{run_dir}/{METRICS}, {SUMMARY}",
        "weights": f"{run_dir}/{BEST}",
        "W&B": run["url"],
        "look": run["dir"]
        and f"{program('wandb')} leet {Path(run['dir']).parent}    (all runs, here, without an account)",
        "upload": run["mode"] == "offline" and f"{program('wandb')} sync {_parts(Path(run['dir']), run['id'])}",
        "evaluate": f"{program('vae-evaluate')} checkpoint={run_dir}",
        "generate": f"{program('vae-generate')} checkpoint={run_dir}",
        "compare": f"{program('vae-compare')} {run_dir.parent}",
        "MNIST": dataset == "vae_exp.datasets.digits"
        and f"{program('vae-train')} experiment=tutorial    (downloads it once)",
    }
    return "\n".join(f"{name:<9} {text}" for name, text in lines.items() if text)


def _parts(folder: Path, run_id: str) -> str:
    """The folder of an offline run, or a pattern for the folders of its parts: each resume leaves one."""
    parts = f"offline-run-*-{run_id}"
    return str(folder.with_name(parts) if len(list(folder.parent.glob(parts))) > 1 else folder)
