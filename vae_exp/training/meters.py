"""The training terms between two readings, kept on the device."""

import logging
from typing import TypedDict

import torch
from torch import Tensor

log = logging.getLogger(__name__)
Means = dict[str, float | Tensor]


class Sums(TypedDict):
    """The state of running means, in a checkpoint."""

    images_seen: int  # since the start
    steps: int  # since the start
    first_step: int  # of those that the sums hold
    sums: dict[str, float]  # since the last read, but for those that are unread
    epoch_sums: dict[str, float]  # of what was read since the last read_epoch


class Meters:
    """Means of the training terms over images. Each step's are left on the device: only reading them waits for it."""

    def __init__(self) -> None:
        self.images_seen = self.steps = self.first_step = 0
        self.sums: dict[str, float] = {}
        self.epoch_sums: dict[str, float] = {}
        self._unread: list[tuple[int, Means]] = []

    def add(self, batches: list[tuple[int, Means]], **of_step: float | Tensor) -> None:
        """Add one step of training on batches of so many images.

        It takes the means over each batch, and the step's own values. All are numbers, or scalars on the device.
        """
        if not self._unread and not self.sums:
            self.first_step = self.steps + 1
        self._unread += [(images, of_step | means) for images, means in batches]
        self.steps += 1
        self.images_seen += sum(images for images, _ in batches)

    @property
    def span(self) -> str:
        """Return the steps that the sums hold, in words."""
        return f"between steps {self.first_step} and {self.steps}"

    def peek(self, prefix: str) -> dict[str, float]:
        """Return what `read` would, removing nothing; empty if no image has been added since the last read."""
        self._read_the_unread()
        return _means(self.sums, prefix) if self.sums else {}

    def read(self, prefix: str, **of_now: Tensor) -> dict[str, float]:
        """Return the means since the last read, over the steps of `span`, and scalars of this moment, in one look."""
        now = self._read_the_unread(*of_now.values())
        sums, self.sums = self.sums, {}
        self.epoch_sums = {name: self.epoch_sums.get(name, 0.0) + value for name, value in sums.items()}
        return _means(sums, prefix) | {f"{prefix}/{name}": value for name, value in zip(of_now, now, strict=True)}

    def read_epoch(self, prefix: str) -> dict[str, float]:
        """Return the means since the last read_epoch, from the sums that were read since."""
        sums, self.epoch_sums = self.epoch_sums, {}
        return _means(sums, prefix)

    def _read_the_unread(self, *others: Tensor) -> list[float]:
        """Add the unread steps up one by one, so that a reading in between changes no digit.

        Returns the values of `others`.
        """
        scalars = [mean for _, means in self._unread for mean in means.values() if isinstance(mean, Tensor)]
        scalars += others
        read = torch.stack([mean.to(scalars[0]) for mean in scalars]).tolist() if scalars else []
        numbers = iter(read)
        for images, means in self._unread:
            for name, mean in {"images": 1, **means}.items():
                number = next(numbers) if isinstance(mean, Tensor) else mean
                self.sums[name] = self.sums.get(name, 0.0) + images * number
        self._unread = []
        return read[len(read) - len(others) :]

    def state(self) -> Sums:
        """Return all of it, for a checkpoint; restore() takes it back."""
        self._read_the_unread()
        return Sums(
            images_seen=self.images_seen,
            steps=self.steps,
            first_step=self.first_step,
            sums=self.sums,
            epoch_sums=self.epoch_sums,
        )

    def restore(self, state: Sums) -> None:
        """Go on from a state.

        Of an older version's state only the counts are taken, with a warning.
        """
        self.images_seen, self.steps, self.first_step = state["images_seen"], state["steps"], state["first_step"]
        if set(state) == set(Sums.__annotations__):
            self.sums, self.epoch_sums = state["sums"], state["epoch_sums"]
        else:
            log.warning("resumed from an older version's checkpoint: the means logged next leave out what came before")


def _means(sums: dict[str, float], prefix: str) -> dict[str, float]:
    means = {f"{prefix}/{name}": value / sums["images"] for name, value in sums.items() if name != "images"}
    return means | {f"{prefix}/neg_elbo": means[f"{prefix}/reconstruction"] + means[f"{prefix}/kl"]}
