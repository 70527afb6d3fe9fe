"""What turns images into the features [N, D] that scores compare."""

import contextlib
import io
from typing import Any

import torch
from torch import Tensor

from vae_exp.errors import UserError

AT_ONCE = 50  # images of 299x299 in Inception's memory
PACKAGE = "features=inception: the network is torch-fidelity's; pip install 'vae_exp[fidelity]'."


def pixels(x: Tensor) -> Tensor:
    """Images [N, C, H, W] in [0, 1] as they are, [N, C * H * W]."""
    return x.flatten(1)


class Inception:
    """The last pooled features of the Inception network that the FID is defined by (Heusel et al. 2017), [N, 2048].

    Its weights and its resizing are torch-fidelity's, https://github.com/toshas/torch-fidelity: TensorFlow's own. They
    are downloaded when first used. Raises UserError where the package is not installed, or the weights are not there.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        try:
            from torch_fidelity import feature_extractor_inceptionv3 as fidelity
        except ImportError as error:
            raise UserError(PACKAGE) from error
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # a progress bar of another style
                network = fidelity.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
        except (OSError, RuntimeError, ValueError) as error:
            name = fidelity.URL_INCEPTION_V3.rsplit("/", 1)[-1]
            raise UserError(
                f"features=inception: its weights cannot be had ({str(error).splitlines()[0]}). Without a network, put "
                f"{name} of {fidelity.URL_INCEPTION_V3} into {torch.hub.get_dir()}/checkpoints."
            ) from error
        self._network: Any = network.to(device)
        self._device = device

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """Of images [N, C, H, W] in [0, 1], rounded to bytes as image files are; grey ones get three equal channels."""
        parts = []
        for part in x.split(AT_ONCE):
            image = part.to(self._device).clamp(0, 1).mul(255).round().to(torch.uint8)
            parts.append(self._network(image.expand(-1, 3, -1, -1) if image.shape[1] == 1 else image)[0])
        return torch.cat(parts)
