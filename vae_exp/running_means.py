"""The training terms between two readings, kept on the device."""

from typing import Any

import torch
from torch import Tensor


class RunningMeans:
    """Means of the training terms over images. The sums stay on the device: only read() waits for it."""

    def __init__(self) -> None:
        self.images_seen = self.steps = self.first_step = 0
        self._epoch: dict[str, float] = {}
        self._start()

    def _start(self) -> None:
        self._images, self._on_device, self._numbers = 0, torch.zeros(()), {}

    def add(self, images: int, **means: float | Tensor) -> None:
        """One step of training on so many images, with its means over them: numbers, or scalars on the device."""
        scalars = {name: mean for name, mean in means.items() if isinstance(mean, Tensor)}
        self._names = tuple(scalars)
        on_device = torch.stack(tuple(scalars.values())).detach()
        self._on_device = torch.add(self._on_device.to(on_device.device), on_device, alpha=images)
        for name, mean in means.items():
            if name not in scalars:
                self._numbers[name] = self._numbers.get(name, 0.0) + mean * images
        self.first_step = self.steps + 1 if self._images == 0 else self.first_step
        self.steps += 1
        self._images += images
        self.images_seen += images

    def peek(self, prefix: str) -> dict[str, float]:
        """What read would return, with nothing taken away; empty where no image has been seen since the last read."""
        return _means(self._sums(), prefix) if self._images else {}

    def read(self, prefix: str) -> dict[str, float]:
        """The means since the last read, and the steps they span: first_step to steps."""
        sums = self._sums()
        self._epoch = {name: self._epoch.get(name, 0.0) + value for name, value in sums.items()}
        self._start()
        return _means(sums, prefix)

    def read_epoch(self, prefix: str) -> dict[str, float]:
        """The means since the last read_epoch, from the sums that were read since."""
        sums, self._epoch = self._epoch, {}
        return _means(sums, prefix)

    def _sums(self) -> dict[str, float]:
        return {"images": self._images} | dict(zip(self._names, self._on_device.tolist(), strict=True)) | self._numbers

    def state(self) -> dict[str, Any]:
        """All of it, for a checkpoint; restore() takes it back."""
        return dict(vars(self))

    def restore(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


def _means(sums: dict[str, float], prefix: str) -> dict[str, float]:
    means = {f"{prefix}/{name}": value / sums["images"] for name, value in sums.items() if name != "images"}
    return means | {f"{prefix}/neg_elbo": means[f"{prefix}/reconstruction"] + means[f"{prefix}/kl"]}
