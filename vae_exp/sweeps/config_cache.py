"""The configurations of a sweep's jobs: Hydra composes the first, and those that differ from it in values alone are it.

Hydra reads and joins its fifteen files for every job: a tenth of the time of a small one.
"""

import contextlib
import copy
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from vae_exp.config.messages import parse

MOST = 20  # that are kept: in a sweep over many options of groups, looking for one would take as long as composing


@dataclass
class Composed:
    """A job's configuration as Hydra composed it, and the overrides that made it."""

    words: list[Override]
    groups: set[str]  # whose options are chosen, not set
    cfg: DictConfig

    def with_values(self, words: list[Override]) -> DictConfig | None:
        """Return the configuration Hydra would make of other overrides, or None if more than values differ."""
        if [word.get_key_element() for word in words] != [word.get_key_element() for word in self.words]:
            return None
        changed = [new for new, old in zip(words, self.words, strict=True) if new.input_line != old.input_line]
        if not all(self._is_value(word) for word in changed):
            return None
        cfg = copy.deepcopy(self.cfg)
        ConfigLoaderImpl._apply_overrides_to_config(changed, cfg)
        with read_write(cfg.hydra), open_dict(cfg.hydra):
            ours = [word for word in words if not word.is_hydra_override()]
            cfg.hydra.overrides.task = [word.input_line for word in ours]
            cfg.hydra.job.override_dirname = get_overrides_dirname(ours, **cfg.hydra.job.config.override_dirname)
        return cfg

    def _is_value(self, word: Override) -> bool:
        """Return whether a word sets one existing value: a group chooses files, and a dictionary is merged."""
        key = word.key_or_group
        if word.type != OverrideType.CHANGE or word.package or word.is_hydra_override() or key in self.groups:
            return False
        before = OmegaConf.select(self.cfg, key, default=None, throw_on_resolution_failure=False)
        return not isinstance(before, DictConfig) and not isinstance(word.value(), dict)


@contextlib.contextmanager
def cache_configs() -> Iterator[None]:
    """Let Hydra compose jobs that differ only in values once, for a sweep in this process, inside the block."""
    composed: list[Composed] = []
    of_hydra = ConfigLoaderImpl.load_sweep_config

    def load(self: ConfigLoaderImpl, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        words = parse(sweep_overrides)
        for kept in composed:
            if (cfg := kept.with_values(words)) is not None:
                return cfg
        cfg = of_hydra(self, master_config, sweep_overrides)
        if len(composed) < MOST:
            composed.append(Composed(words, set(map(str, cfg.hydra.runtime.choices)), copy.deepcopy(cfg)))
        return cfg

    patched: Any = ConfigLoaderImpl
    patched.load_sweep_config = load
    try:
        yield
    finally:
        patched.load_sweep_config = of_hydra


@functools.cache  # once in a process, and the stack is kept
def cache_configs_here() -> contextlib.ExitStack:
    """Do as cache_configs until this process ends: one of joblib's workers, which has the jobs of one sweep."""
    stack = contextlib.ExitStack()
    stack.enter_context(cache_configs())
    return stack
