"""Learning-rate schedules: pure functions that give the factor on optimizer.lr at a fractional epoch.

They hold no state, so a resumed run needs nothing but its step number to continue them.
"""

import math


def constant(epoch: float, epochs: int) -> float:
    """Return 1, always."""
    return 1.0


def cosine(epoch: float, epochs: int, *, warmup_epochs: float, final_factor: float) -> float:
    """Return a linear rise over warmup_epochs, then half a cosine down to final_factor (Loshchilov & Hutter 2017)."""
    if epoch < warmup_epochs:
        return epoch / warmup_epochs
    progress = (epoch - warmup_epochs) / max(epochs - warmup_epochs, 1e-9)
    return final_factor + (1 - final_factor) * 0.5 * (1 + math.cos(math.pi * progress))


def step(epoch: float, epochs: int, *, every_epochs: float, gamma: float) -> float:
    """Return gamma to the power of the number of completed spans of every_epochs."""
    return gamma ** (epoch // every_epochs)


def milestones(epoch: float, epochs: int, *, at_epochs: list[float], gamma: float) -> float:
    """Return gamma to the power of the number of listed epochs that have been reached."""
    return gamma ** sum(epoch >= milestone for milestone in at_epochs)
