"""Warnings of a training that goes wrong without stopping, from its epochs, and which keys to try."""

import math
from collections.abc import Mapping
from typing import Any

from vae_exp.config.keys import Config

# A posterior that finds its use late has been seen with 0.03 nats for ten epochs; one that has collapsed falls below.
COLLAPSED_NATS = 0.02
COLLAPSED_EPOCHS = 5  # in a row
# Telling an image from N others takes log N nats, and a latent that holds 4 nats more is placed to one part in fifty.
# Healthy models have been seen with half of both together.
LARGE_NATS_PER_LATENT = 4
RISING_EPOCHS = 3  # in a row,
RISING_FACTOR = 1.02  # by so much over all of them
SCHEDULED = ("train_epoch/kl_weight", "train_epoch/capacity")


class Health:
    """A check of each epoch as it ends, which warns of a collapsed posterior and of a KL without bound, once each."""

    def __init__(self, config: Config, train_size: int) -> None:
        self.config = config
        self.large_nats = math.log(train_size) + LARGE_NATS_PER_LATENT * config["model"]["z_dim"]
        self._warned: set[str] = set()
        self._scheduled: list[float | None] = []
        self._collapsed_epochs = 0
        self._kls: list[float] = []

    def warnings(self, epoch: int, row: Mapping[str, Any], held_out: str) -> list[str]:
        """Return the new warnings from the epoch's numbers.

        While a schedule of the objective moves, the KL follows it.
        """
        kl, active = row[f"{held_out}/kl"], row[f"{held_out}/active_units"]
        scheduled, before = [row.get(name) for name in SCHEDULED], self._scheduled
        self._scheduled = scheduled
        if scheduled != before or not self.config["model"]["stochastic"]:
            self._collapsed_epochs, self._kls = 0, [kl]
            return []
        self._collapsed_epochs = self._collapsed_epochs + 1 if active == 0 and kl < COLLAPSED_NATS else 0
        self._kls = [*self._kls, kl][-RISING_EPOCHS - 1 :]
        found = {}
        if self._collapsed_epochs >= COLLAPSED_EPOCHS:
            found["collapse"] = (
                f"the posterior has collapsed: no latent unit is active after epoch {epoch} (KL {kl:.3f} nats), and z "
                f"says nothing of an image. {self._advice(weaker=True)}"
            )
        rises = len(self._kls) > RISING_EPOCHS and self._kls == sorted(self._kls) and kl > RISING_FACTOR * self._kls[0]
        if rises and kl > self.large_nats:
            found["growth"] = (
                f"the KL grows without bound: {kl:.1f} nats after epoch {epoch}, and higher after each of the last "
                f"{RISING_EPOCHS} epochs. {self._advice(weaker=False)}"
            )
        new = [warning for name, warning in found.items() if name not in self._warned]
        self._warned |= found.keys()
        return new

    def _advice(self, weaker: bool) -> str:
        """Return advice on the keys that this configuration has.

        It says which way to turn them for a weaker or a stronger KL.
        """
        beta, likelihood = self.config["model"]["beta"], self.config["likelihood"]
        tries = ["objective=free_bits"] if weaker else []
        if weaker and "warmup_epochs" in self.config["objective"]:
            tries.insert(0, "objective.warmup_epochs=5")
        tries += [f"a model.beta {'below' if weaker else 'above'} {beta:g}"]
        for key in ("sigma", "scale"):
            if key in likelihood:
                tries.append(f"a {'smaller' if weaker else 'larger'} likelihood.{key} (it is {likelihood[key]})")
        if not weaker:
            tries.append(f"an optimizer.lr below {self.config['optimizer']['lr']:g}")
        return f"Try {', '.join(tries[:-1])} or {tries[-1]}."
