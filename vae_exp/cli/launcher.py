"""One run in several processes: `vae-train devices=2` starts them as torchrun does, and the further ones follow."""

import logging
import os
import signal
import sys
import time
import warnings
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from vae_exp.cli.final_message import resume_hint
from vae_exp.config.check import literal
from vae_exp.errors import PeerLost, UserError
from vae_exp.sweeps.processes import LAUNCHED_BY
from vae_exp.torchrun_env import safe_path, started
from vae_exp.training import cores
from vae_exp.training.folder import SUMMARY, read_summary

START_NOTHING = (
    "-h", "--help", "--version", "-c", "--cfg", "-i", "--info", "--hydra-help", "-sc", "--shell-completion", "-m",
    "--multirun",
)  # fmt: skip


def require_one_process(cfg: DictConfig, typed: list[str]) -> None:
    """Raise UserError for a sweep that was started in several processes, or whose jobs would be."""
    swept = [word for word in typed if word.startswith("devices=") and word != "devices=1"]
    if started() > 1 or cfg.devices != 1 or swept:
        asked = swept[0] if swept else f"devices={max(started(), cfg.devices)}"
        raise UserError(
            f"{asked}: is of one run. In a sweep each job is one process on one device; jobs side by side are spread "
            "over the GPUs (hydra/launcher=joblib)."
        )


def launch(devices: int, words: list[str], run_dir: Path) -> None:
    """Start the processes of a run with this command line, and end as they end.

    The first of them prints a run's messages. This process prints only what none of them could.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.disable(logging.CRITICAL)  # of torch's: this process says nothing else
    config = LaunchConfig(
        1,
        1,
        devices,
        run_id="vae_exp",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",  # by its name a machine may not find itself
        max_restarts=0,
    )
    named = any(word.startswith("hydra.run.dir=") for word in words)
    in_folder = [] if named else [f"hydra.run.dir={literal(run_dir)}"]
    os.environ.update({LAUNCHED_BY: str(os.getpid())} | safe_path())
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # its warnings of a connection that is gone say no more
    cores.withdraw()  # this process computes nothing
    began = time.time()
    sys.stdout.flush()
    try:
        elastic_launch(config, sys.executable)("-m", "vae_exp", *words, *in_folder)
    except SignalException as stop:
        sys.exit(128 + stop.sigval)
    except ChildFailedError as error:
        codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
        killed = {rank: signal.Signals(-code).name for rank, code in codes.items() if code < 0}
        by_others = {rank: name for rank, name in killed.items() if name != "SIGTERM"}  # which torch sends to the rest
        by_first = codes.get(0, 0) > 0 or (0 not in by_others and _is_told(run_dir, began))
        if by_others and not by_first:
            rank, name = next(iter(by_others.items()))
            said = f"process {rank} of {devices} was killed ({name}), and the run ends. What was saved is whole."
            print(f"vae-train: {said}{resume_hint(run_dir)}", file=sys.stderr)
        told = [code for _, code in sorted(codes.items()) if code > 0]
        sys.exit(told[0] if told else 1)


def _is_told(run_dir: Path, began: float) -> bool:
    """Return whether the first process has recorded, and printed, how the run that started at `began` ended."""
    summary, path = read_summary(run_dir), run_dir / SUMMARY
    return summary is not None and summary.state != "running" and path.stat().st_mtime >= began


def follow(arguments: list[str]) -> int:
    """Run a further process of a run, and return its exit code; the first process alone decides and prints."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # until the run begins there is nothing to save
    if any(word.partition("=")[0] in START_NOTHING for word in arguments):
        return 0  # the first does it alone
    warnings.simplefilter("ignore")
    from vae_exp import distributed
    from vae_exp.train import train

    try:
        train(OmegaConf.create({}), "")
    except BaseException as error:
        agreed = {KeyboardInterrupt: 130, SystemExit: getattr(error, "code", 1)}.get(type(error))
        if isinstance(error, PeerLost) or distributed.fail_with_rank0(surely=agreed is not None):
            sys.stderr.flush()
            os._exit(agreed or 1)  # at once: what is left of the connections is in nobody's hands
        if isinstance(error, UserError):
            raise UserError(f"process {os.environ['RANK']}: {error}") from error
        raise
    return 0
