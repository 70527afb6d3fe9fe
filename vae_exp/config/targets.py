"""Find what `_target_` names, and decide what a stored configuration may name."""

import importlib.util
import logging
import os
import re
import sys
from collections.abc import Collection, Iterable, Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from vae_exp.config.checks import CALLS, groups
from vae_exp.config.schema import RULES
from vae_exp.errors import UserError

# True: whatever is named may run. A configuration: what it names, which was typed.
Trust = bool | Mapping[str, Any]


def _named(module: str, *names: str) -> set[str]:
    return {f"vae_exp.{module}.{name}" for name in names}


# These names stay when files move: see config/moved.py.
PUBLIC = {
    "network": _named("networks", "mlp", "conv", "resnet", "burgess", "locatello"),
    "likelihood": _named(
        "likelihoods", "bernoulli", "continuous_bernoulli", "gaussian", "laplace", "discretized_logistic"
    ),
    "objective": _named("objectives", "elbo", "beta_tc", "capacity", "dip_vae", "free_bits", "iwae"),
    "dataset": _named(
        "datasets",
        *("torchvision_images", "digits", "image_folder", "arrays", "celeba"),
        *("sprites", "dsprites", "shapes3d", "mpi3d"),
    ),
    "scheduler": _named("schedules", "constant", "cosine", "milestones", "step"),
}
OPTIMIZER = re.compile(r"torch\.optim\.[A-Z]\w*")  # all that torch.optim has under such a name are its classes

OWN = {key.split(".")[0] for key in RULES} | {*CALLS, "experiment"}
NEVER = ("trust",)  # of ours, which only counts where it is typed
LAUNCHERS = ("basic", "joblib", "ray", "submitit_local", "submitit_slurm")
SWEEPERS = ("basic", "optuna")
OF_SWEEPER = ("n_trials", "n_jobs", "sampler", "seed")
OF_LAUNCHER = (
    *("n_jobs", "partition", "account", "qos", "nodes", "gpus_per_node", "tasks_per_node", "cpus_per_task"),
    *("mem_gb", "timeout_min", "array_parallelism"),
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

    Every _target_ that was not typed, but read from a run folder, a checkpoint, an export or an artifact, is checked
    here. Deeper down, and beside plain values, no _target_ is allowed without trust: a user's own code may call it.
    """
    for group in names:
        settings, typed = config.get(group), trust.get(group, {}) if isinstance(trust, Mapping) else {}
        if not isinstance(settings, dict):
            raise UserError(f"checkpoint: its {group} is not a _target_ with plain values.")
        if trust is True:
            continue
        stored = {key: value for key, value in settings.items() if key != "_target_" and typed.get(key) != value}
        if any(str(key).startswith("_") or not _is_plain(value) for key, value in stored.items()):
            raise UserError(f"checkpoint: its {group} is not a _target_ with plain values.")
        target = settings.get("_target_")
        if not is_published(group, target) and target != typed.get("_target_", object()):
            raise UserError(
                f"{group}._target_={target}: {where} names code that is not vae_exp's, and using it would run that "
                "code. Where you know both, say trust=true, or vae_exp.load(..., trust=True)."
            )


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


def own_words(stored: Iterable[str], typed: Collection[str] = ()) -> tuple[list[str], list[str]]:
    """Divide overrides that were read from disk into those that are accepted, and those that are not.

    Accepted are vae_exp's own keys, and of Hydra's a launcher and a sweeper with their numbers; nothing that reads the
    environment, calls a resolver or names a file outside the folders of options. Those in `typed` pass.
    """
    kept: list[str] = []
    dropped: list[str] = []
    for word in stored:
        if word.startswith(PLANNED) and word not in typed:
            continue
        (kept if word in typed or _is_own(word) else dropped).append(word)
    return kept, dropped


def _is_own(line: str) -> bool:
    from hydra.errors import HydraException  # here: vae-compare does without Hydra

    from vae_exp.config.compose import parse

    try:
        (word,) = parse([line])
    except HydraException:
        return False
    key, value = word.key_or_group, str(word.input_line).partition("=")[2]
    if key.startswith(PARAMS) and value:
        return word.package is None and _is_own(f"{key.removeprefix(PARAMS)}={value}")
    if word.is_hydra_override():
        return not line.startswith("~") and _is_of_launcher_or_sweeper(key, value)
    references = re.findall(r"\$\{(\w+)[\w.]*\}", line)
    if len(references) != line.count("${") or not OWN.issuperset(references):
        return False
    if word.package is not None or re.split("[./]", key)[0] not in OWN - {*NEVER}:
        return False
    return not (is_group(key) and _leads_out(value))


def is_group(key: str) -> bool:
    """Return whether a key of an override chooses an option of a group, which is a file, and sets no value."""
    return "/" in key or key in groups()


def _leads_out(value: str) -> bool:
    """Return whether a group is given a path to some other file, or values, instead of the name of an option."""
    names = re.split(r"[^\w./\\{-]+", value)
    return any(".." in name or "\\" in name or "{" in name or name.startswith("/") for name in names)


def _is_of_launcher_or_sweeper(key: str, value: str) -> bool:
    if key in ("hydra/launcher", "hydra/sweeper"):
        return value in (LAUNCHERS if key == "hydra/launcher" else SWEEPERS)
    known = {f"hydra.sweeper.{name}" for name in OF_SWEEPER} | {f"hydra.launcher.{name}" for name in OF_LAUNCHER}
    return key in known and re.fullmatch(r"[\w.+-]+", value) is not None


log = logging.getLogger(__name__)


def look_here_too(module: str) -> None:
    """Let a module that is not installed be found in the current folder."""
    here = os.getcwd()  # noqa: PTH109
    if module not in sys.modules and here not in sys.path and importlib.util.find_spec(module) is None:
        sys.path.append(here)


def files_of(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the files of the user's own modules that a configuration names, by module; installed ones are left out."""
    found = {}
    for group in CALLS:
        target = str(config[group]["_target_"])
        name = target.partition(".")[0]
        place = None if is_published(group, target) else _place(sys.modules.get(name))
        of_python = name in sys.stdlib_module_names or name in ("vae_exp", "torch", "__main__")
        if place and not of_python and not {"site-packages", "dist-packages"} & set(place.parts):
            found[name] = str(place)
    return found


def _place(module: ModuleType | None) -> Path | None:
    """Return the file of a module, or the folder of a package without __init__.py."""
    file = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ())), None)
    return Path(file).absolute() if file else None


def find(config: Mapping[str, Any], groups: Iterable[str], code: Mapping[str, str]) -> None:
    """Import the user's own modules that a trusted run names, from the files they had when it was trained.

    A missing file is looked for as at the start of a run, with a note. Raises UserError if it cannot be found, and
    for a module that was imported from another file.
    """
    targets = [(group, str(config[group].get("_target_"))) for group in groups]
    for name in dict.fromkeys(t.partition(".")[0] for group, t in targets if not is_published(group, t)):
        place, loaded = Path(code.get(name, "")), _place(sys.modules.get(name))
        if name not in code or (loaded and (not place.exists() or _is_same(loaded, place))):
            continue
        if loaded:
            raise UserError(
                f"{name}: the run's is {place}, and {loaded} is imported already. Each needs a process of its own."
            )
        if place.exists():
            _import(name, place)
            continue
        look_here_too(name)
        spec = importlib.util.find_spec(name)
        if spec is None:
            here = Path.cwd()
            raise UserError(f"{name}: the run's code was {place}, which is gone, and in {here} there is none either.")
        log.warning(f"{name}: the run's code was {place}, which is gone; {spec.origin or name} is taken.")


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


def _import(name: str, place: Path) -> None:
    """Import a module from this very file. Raises UserError if it is not a module."""
    spec: ModuleSpec | None = ModuleSpec(name, None, is_package=True)
    inside = [str(place.parent)] if place.name == "__init__.py" else None
    if place.is_dir() and spec:
        spec.submodule_search_locations = [str(place)]
    else:
        spec = importlib.util.spec_from_file_location(name, place, submodule_search_locations=inside)
    folder = str(place.parent.parent if inside else place.parent)
    if folder not in sys.path:  # last, for what it imports itself: no file there hides what is installed
        sys.path.append(folder)
    try:
        if spec is None:
            raise ImportError("no module of Python's")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        if spec.loader:
            spec.loader.exec_module(sys.modules[name])
    except Exception as error:
        sys.modules.pop(name, None)
        if isinstance(error, ImportError | SyntaxError | OSError):
            raise UserError(f"{name}: the run's code {place} cannot be imported ({error}).") from error
        raise
