"""What the epochs say of a training that goes wrong without stopping, and which keys to try."""

import math
from typing import Any

# A posterior that finds its use late has been seen with 0.03 nats for ten epochs; one that has collapsed falls below.
COLLAPSED_NATS = 0.02
SILENT = 5  # epochs in a row
# Telling an image from N others takes log N nats, and a latent that holds 4 nats more is placed to one part in fifty.
# Healthy models have been seen with half of both together.
LARGE_NATS_PER_LATENT = 4
RISING = 3  # epochs in a row, and
BY = 1.02  # over these
SCHEDULED = ("train_epoch/kl_weight", "train_epoch/capacity")


class Symptoms:
    """Looks at each epoch as it ends; speaks of a collapsed posterior, and of a KL without bound, once each."""

    def __init__(self, config: dict, train_size: int) -> None:
        self.config, self.told = config, set()
        self.large = math.log(train_size) + LARGE_NATS_PER_LATENT * config["model"]["z_dim"]
        self.scheduled: list[float | None] = []
        self.silent, self.kls = 0, []

    def look(self, epoch: int, row: dict[str, Any], held_out: str) -> list[str]:
        """New warnings, from the epoch's numbers. While a schedule of the objective moves, the KL follows it."""
        kl, active = row[f"{held_out}/kl"], row[f"{held_out}/active_units"]
        scheduled, before = [row.get(name) for name in SCHEDULED], self.scheduled
        self.scheduled = scheduled
        if scheduled != before or not self.config["model"]["stochastic"]:
            self.silent, self.kls = 0, [kl]
            return []
        self.silent = self.silent + 1 if active == 0 and kl < COLLAPSED_NATS else 0
        self.kls = [*self.kls, kl][-RISING - 1 :]
        found = {}
        if self.silent >= SILENT:
            found["collapse"] = (
                f"the posterior has collapsed: no latent unit is active after epoch {epoch} (KL {kl:.3f} nats), and z "
                f"says nothing of an image. {self._advice(weaker=True)}"
            )
        rising = len(self.kls) > RISING and self.kls == sorted(self.kls) and kl > BY * self.kls[0]
        if rising and kl > self.large:
            found["growth"] = (
                f"the KL grows without bound: {kl:.1f} nats after epoch {epoch}, and higher after each of the last "
                f"{RISING} epochs. {self._advice(weaker=False)}"
            )
        new = [text for name, text in found.items() if name not in self.told]
        self.told |= found.keys()
        return new

    def _advice(self, weaker: bool) -> str:
        """The keys that this configuration has, and which way to turn them for a weaker or a stronger KL."""
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
