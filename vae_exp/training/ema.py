"""The weights that a run measures, draws and saves: those of its last step, or their moving average."""

import copy

from torch.optim.swa_utils import get_ema_multi_avg_fn

from vae_exp.vae import VAE


class EMA:
    """An exponential moving average of a model's weights in `model`, a copy of it (Polyak & Juditsky 1992).

    With decay None there is none, and `model` is the model itself.
    """

    def __init__(self, trained: VAE, decay: float | None) -> None:
        self.decay = decay
        self.model = trained if decay is None else copy.deepcopy(trained).requires_grad_(False)
        self._weights = list(self.model.parameters()), list(trained.parameters())
        self._buffers = list(zip(self.model.buffers(), trained.buffers(), strict=True))

    def after_step(self, step: int) -> None:
        """Update the average after a step.

        The first steps count for more than 1 - decay, else the first random weights would be remembered for long.
        """
        if self.decay is None:
            return
        get_ema_multi_avg_fn(min(self.decay, (1 + step) / (10 + step)))(*self._weights, step)
        for kept, buffer in self._buffers:  # such as a batch norm's means, which are averages themselves
            kept.copy_(buffer)
