"""Find what `_target_` names, and decide what a stored configuration may name."""

import importlib.util
import logging
import os
import re
import sys
from collections.abc import Collection, Iterable, Mapping
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from vae_exp.config.checks import CALLS, groups
from vae_exp.config.schema import RULES
from vae_exp.errors import UserError

log = logging.getLogger(__name__)
# True: whatever is named may run. A configuration: what it names, which was typed.
Trust = bool | Mapping[str, Any]


PUBLIC = {  # these names stay when files move: see config/migrations.py
    group: {f"vae_exp.{group.replace('scheduler', 'schedule')}s.{name}" for name in names.split()}
    for group, names in {
        "network": "mlp gated_mlp conv resnet burgess locatello",
        "posterior": "diagonal full iaf",
        "prior": "standard by_label mixture vamp flow",
        "likelihood": "bernoulli continuous_bernoulli gaussian laplace discretized_logistic",
        "objective": "elbo beta_tc capacity dip_vae free_bits iwae",
        "dataset": "torchvision_images digits image_folder arrays celeba sprites dsprites shapes3d mpi3d",
        "scheduler": "constant cosine milestones step",
    }.items()
}
OPTIMIZER = re.compile(r"torch\.optim\.[A-Z]\w*")  # all that torch.optim has under such a name are its classes

# Keys that may stand in a file read from disk; `trust` only counts where it is typed.
OWN = {key.split(".")[0] for key in RULES} | {*CALLS, "experiment"}
OWN_OF_HYDRA = re.compile(
    r"hydra/launcher=(basic|joblib|ray|submitit_local|submitit_slurm)"
    r"|hydra/sweeper=(basic|optuna)"
    r"|hydra\.sweeper\.(n_trials|n_jobs|sampler|seed)=[\w.+-]+"
    r"|hydra\.launcher\.(n_jobs|partition|account|qos|nodes|gpus_per_node|tasks_per_node|cpus_per_task"
    r"|mem_gb|timeout_min|array_parallelism)=[\w.+-]+"
)
PARAMS = "hydra.sweeper.params."
# A sweep adds these itself, each time anew.
PLANNED = ("hydra.mode=", "hydra.sweep.dir=", "hydra.sweep.subdir=", "hydra.sweeper._target_=", "hydra.sweeper.params=")


def is_published(group: str, target: Any) -> bool:
    """Return whether a _target_ of a group is one of vae_exp's public functions, or an optimizer of torch's."""
    if group == "optimizer":
        return OPTIMIZER.fullmatch(str(target)) is not None
    return target in PUBLIC[group] if isinstance(target, str) else False


def check_foreign(config: Mapping[str, Any], *names: str, trust: Trust = False, where: str = "the checkpoint") -> None:
    """Raise UserError if a group's _target_ is neither published nor trusted, before anything of it is imported.

    Every _target_ read from a file is checked here. Deeper down none is allowed: a user's own code may call it.
    """
    trusted = config if trust is True else trust or {}
    for group in names:
        settings, known = config.get(group), trusted.get(group) or {}
        if not isinstance(settings, dict) or not _is_plain(
            {key: value for key, value in settings.items() if key != "_target_" and known.get(key) != value}
        ):
            raise UserError(f"checkpoint: its {group} is not a _target_ with plain values.")
        target = settings.get("_target_")
        if not is_published(group, target) and target != known.get("_target_", object()):
            why = f"{where} names code that is not vae_exp's, and using it would run that code"
            how = "Where you know both, say trust=true, or vae_exp.load(..., trust=True)."
            raise UserError(f"{group}._target_={target}: {why}. {how}")


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and not key.startswith("_") and _is_plain(item) for key, item in value.items())
    return value is None or isinstance(value, bool | int | float | str)


def trusting(config: Mapping[str, Any], names: Iterable[str] = CALLS) -> list[str]:
    """Return what to add to a command to use these groups of a run: trust=true, or nothing."""
    targets = {group: config[group].get("_target_") for group in names if isinstance(config.get(group), Mapping)}
    return [] if all(is_published(group, target) for group, target in targets.items()) else ["trust=true"]


def own_words(stored: Iterable[str], overrides: Collection[str] = ()) -> tuple[list[str], list[str]]:
    """Divide overrides that were read from disk into those that are accepted, and those that are not.

    Accepted are vae_exp's own keys, and of Hydra's a launcher and a sweeper with their numbers; nothing that reads the
    environment, calls a resolver or names a file outside the folders of options. Those that were typed as well pass.
    """
    words = [word for word in stored if word in overrides or not word.startswith(PLANNED)]
    accepted = [word for word in words if word in overrides or _is_own(word)]
    return accepted, [word for word in words if word not in accepted]


def _is_own(line: str) -> bool:
    from hydra.errors import HydraException  # here: vae-compare does without Hydra

    from vae_exp.config.compose import parse

    try:
        (word,) = parse([line])
    except HydraException:
        return False
    key, value = word.key_or_group, str(word.input_line).partition("=")[2]
    if word.package is not None:
        return False
    if key.startswith(PARAMS) and value:
        return _is_own(f"{key.removeprefix(PARAMS)}={value}")
    if word.is_hydra_override():
        return not line.startswith("~") and OWN_OF_HYDRA.fullmatch(f"{key}={value}") is not None
    references = re.findall(r"\$\{(\w+)[\w.]*\}", line)
    if len(references) != line.count("${") or not OWN.issuperset(references):
        return False
    if is_group(key):  # no path to some other file, and no values, instead of the name of an option
        names = re.split(r"[^\w./\\{-]+", value)
        if any(".." in name or "\\" in name or "{" in name or name.startswith("/") for name in names):
            return False
    return re.split("[./]", key)[0] in OWN - {"trust"}


def is_group(key: str) -> bool:
    """Return whether a key of an override chooses an option of a group, which is a file, and sets no value."""
    return "/" in key or key in groups()


def look_here_too(module: str) -> None:
    """Let a module that is not installed be found in the current folder."""
    folder = os.getcwd()  # noqa: PTH109
    if module not in sys.modules and folder not in sys.path and importlib.util.find_spec(module) is None:
        sys.path.append(folder)


def _own_modules(config: Mapping[str, Any], groups: Iterable[str]) -> list[str]:
    named = [(group, str(config[group].get("_target_"))) for group in groups]
    return list(dict.fromkeys(target.partition(".")[0] for group, target in named if not is_published(group, target)))


def files_of(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the files of the user's own modules that a configuration names, by module; installed ones are left out."""
    files = {name: _file_of(name) for name in _own_modules(config, CALLS)}
    installed = {*sys.stdlib_module_names, "vae_exp", "torch", "__main__"}
    return {
        name: str(file)
        for name, file in files.items()
        if file and name not in installed and not {"site-packages", "dist-packages"} & set(file.parts)
    }


def _file_of(name: str) -> Path | None:
    """Return the file of an imported module, or the folder of a package without __init__.py."""
    module = sys.modules.get(name)
    file = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ())), None)
    return Path(file).absolute() if file else None


def find(config: Mapping[str, Any], groups: Iterable[str], code: Mapping[str, str]) -> None:
    """Import the user's own modules that a trusted run names, from its files if they still exist. Raises UserError."""
    for name in _own_modules(config, groups):
        file, loaded = Path(code.get(name, "")), _file_of(name)
        if name in code and file.exists():
            if loaded is None:
                _import(name, file)
            elif not _is_same(loaded, file):
                why = f"the run's is {file}, and {loaded} is imported already"
                raise UserError(f"{name}: {why}. Each needs a process of its own.")
        elif name in code and loaded is None:
            look_here_too(name)
            gone, spec = f"{name}: the run's code was {file}, which is gone", importlib.util.find_spec(name)
            if spec is None:
                raise UserError(f"{gone}, and in {Path.cwd()} there is none either.")
            log.warning(f"{gone}; {spec.origin or name} is taken.")


def compare(config: Mapping[str, Any], before: Mapping[str, str]) -> None:
    """Log which of a run's own modules come from other files now than when it was trained."""
    for name, now in files_of(config).items():
        then = Path(before.get(name, now))
        if not _is_same(Path(now), then):
            log.warning(f"{name}: is {now}, and the run had {then}.")


def _is_same(one: Path, other: Path) -> bool:
    """Return whether two files are one, or have the same content; for packages, whether they are one."""
    if one == other or (one.exists() and other.exists() and one.samefile(other)):
        return True
    are_modules = one.is_file() and other.is_file() and "__init__.py" not in (one.name, other.name)
    return are_modules and one.read_bytes() == other.read_bytes()


def _import(name: str, file: Path) -> None:
    """Import a module from the folder of this file, whatever else has its name. Raises UserError if it is no module."""
    folder = str((file.parent if file.name == "__init__.py" else file).parent)
    if folder not in sys.path:  # last, for what it imports itself: no file there hides what is installed
        sys.path.append(folder)
    spec = PathFinder.find_spec(name, [folder])
    try:
        if spec is None:
            raise ImportError("no module of Python's")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        if spec.loader:
            spec.loader.exec_module(sys.modules[name])
    except Exception as error:
        sys.modules.pop(name, None)
        if isinstance(error, ImportError | SyntaxError | OSError):
            raise UserError(f"{name}: the run's code {file} cannot be imported ({error}).") from error
        raise
