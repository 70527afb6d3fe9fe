"""The training terms between two readings, kept on the device."""

from typing import Any

import torch
from torch import Tensor


class RunningMeans:
    """Means of the training terms over images. A step's stay on the device: only reading them waits for it."""

    def __init__(self) -> None:
        self.images_seen = self.steps = self.first_step = 0
        self._unread: list[tuple[int, dict[str, float | Tensor]]] = []
        self._sums: dict[str, float] = {}
        self._epoch: dict[str, float] = {}

    def add(self, images: int, **means: float | Tensor) -> None:
        """One step of training on so many images, with its means over them: numbers, or scalars on the device."""
        if not self._unread and not self._sums:
            self.first_step = self.steps + 1
        self._unread.append((images, means))
        self.steps += 1
        self.images_seen += images

    def peek(self, prefix: str) -> dict[str, float]:
        """What read would return, with nothing taken away; empty where no image has been seen since the last read."""
        sums = self._summed()
        return _means(sums, prefix) if sums else {}

    def read(self, prefix: str) -> dict[str, float]:
        """The means since the last read, and the steps they span: first_step to steps."""
        sums, self._sums = self._summed(), {}
        self._epoch = {name: self._epoch.get(name, 0.0) + value for name, value in sums.items()}
        return _means(sums, prefix)

    def read_epoch(self, prefix: str) -> dict[str, float]:
        """The means since the last read_epoch, from the sums that were read since."""
        sums, self._epoch = self._epoch, {}
        return _means(sums, prefix)

    def _summed(self) -> dict[str, float]:
        """The sums since the last read. Step by step, so that a reading in between changes no digit."""
        scalars = [mean for _, means in self._unread for mean in means.values() if isinstance(mean, Tensor)]
        numbers = iter(torch.stack(scalars).tolist() if scalars else [])
        for images, means in self._unread:
            for name, mean in {"images": 1, **means}.items():
                number = next(numbers) if isinstance(mean, Tensor) else mean
                self._sums[name] = self._sums.get(name, 0.0) + images * number
        self._unread = []
        return self._sums

    def state(self) -> dict[str, Any]:
        """All of it, for a checkpoint; restore() takes it back."""
        self._summed()
        return dict(vars(self))

    def restore(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


def _means(sums: dict[str, float], prefix: str) -> dict[str, float]:
    means = {f"{prefix}/{name}": value / sums["images"] for name, value in sums.items() if name != "images"}
    return means | {f"{prefix}/neg_elbo": means[f"{prefix}/reconstruction"] + means[f"{prefix}/kl"]}
