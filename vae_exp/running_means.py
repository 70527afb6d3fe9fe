"""The training terms between two readings, kept on the device."""

import logging
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)


class RunningMeans:
    """Means of the training terms over images. Each step's are left on the device: only reading them waits for it."""

    KEPT = ("images_seen", "steps", "first_step", "sums", "epoch_sums")  # in a checkpoint

    def __init__(self) -> None:
        self.images_seen = self.steps = self.first_step = 0
        self.sums: dict[str, float] = {}  # since the last read, but for those that are unread
        self.epoch_sums: dict[str, float] = {}  # of what was read since the last read_epoch
        self._unread: list[tuple[int, dict[str, float | Tensor]]] = []

    def add(self, images: int, **means: float | Tensor) -> None:
        """One step of training on so many images, with its means over them: numbers, or scalars on the device."""
        if not self._unread and not self.sums:
            self.first_step = self.steps + 1
        self._unread.append((images, means))
        self.steps += 1
        self.images_seen += images

    def peek(self, prefix: str) -> dict[str, float]:
        """What read would return, with nothing taken away; empty where no image has been seen since the last read."""
        self._read_the_unread()
        return _means(self.sums, prefix) if self.sums else {}

    def read(self, prefix: str) -> dict[str, float]:
        """The means since the last read, and the steps they span: first_step to steps."""
        self._read_the_unread()
        sums, self.sums = self.sums, {}
        self.epoch_sums = {name: self.epoch_sums.get(name, 0.0) + value for name, value in sums.items()}
        return _means(sums, prefix)

    def read_epoch(self, prefix: str) -> dict[str, float]:
        """The means since the last read_epoch, from the sums that were read since."""
        sums, self.epoch_sums = self.epoch_sums, {}
        return _means(sums, prefix)

    def _read_the_unread(self) -> None:
        """Add them up step by step, so that a reading in between changes no digit."""
        scalars = [mean for _, means in self._unread for mean in means.values() if isinstance(mean, Tensor)]
        numbers = iter(torch.stack([mean.to(scalars[0]) for mean in scalars]).tolist() if scalars else [])
        for images, means in self._unread:
            for name, mean in {"images": 1, **means}.items():
                number = next(numbers) if isinstance(mean, Tensor) else mean
                self.sums[name] = self.sums.get(name, 0.0) + images * number
        self._unread = []

    def state(self) -> dict[str, Any]:
        """All of it, for a checkpoint; restore() takes it back."""
        self._read_the_unread()
        return {name: getattr(self, name) for name in self.KEPT}

    def restore(self, state: dict[str, Any]) -> None:
        if set(state) != set(self.KEPT):
            log.warning("resumed from an older version's checkpoint: the means logged next leave out what came before")
            state = vars(RunningMeans()) | {name: state[name] for name in ("images_seen", "steps", "first_step")}
        for name in self.KEPT:
            setattr(self, name, state[name])


def _means(sums: dict[str, float], prefix: str) -> dict[str, float]:
    means = {f"{prefix}/{name}": value / sums["images"] for name, value in sums.items() if name != "images"}
    return means | {f"{prefix}/neg_elbo": means[f"{prefix}/reconstruction"] + means[f"{prefix}/kl"]}
