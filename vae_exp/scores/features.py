"""Extract features of images: pixels, or those of the Inception network."""

import hashlib
import io
from pathlib import Path

import torch
from torch import Tensor

from vae_exp.errors import UserError, first_line

CHUNK = 50  # images of 299x299 in Inception's memory
# Of the weights that torch-fidelity publishes; their name has its first digits.
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
PACKAGE = "features=inception: the network is torch-fidelity's; pip install 'vae_exp[fidelity]'."


def pixels(x: Tensor) -> Tensor:
    """Return images [N, C, H, W] in [0, 1] as they are, [N, C * H * W]."""
    return x.flatten(1)


def _published_weights(url: str) -> io.BytesIO:
    """Return a file of Inception's weights, in memory: torch-fidelity unpickles what it is given, so it is checked."""
    path = Path(torch.hub.get_dir(), "checkpoints", url.rsplit("/", 1)[-1])
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), INCEPTION_SHA256, progress=False)
        content = path.read_bytes()
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"features=inception: its weights cannot be had ({first_line(error)}). Without a network, put "
            f"{path.name} of {url} into {path.parent}."
        ) from error
    if (digest := hashlib.sha256(content).hexdigest()) != INCEPTION_SHA256:
        raise UserError(
            f"features=inception: {path} is not the published file (its sha256 is {digest}, and {INCEPTION_SHA256} was "
            "published). Take it away, and the published one is downloaded."
        )
    return io.BytesIO(content)


class Inception:
    """Extract the last pooled features of the Inception network that the FID is defined by (Heusel et al. 2017).

    Its weights and its resizing are torch-fidelity's, https://github.com/toshas/torch-fidelity: TensorFlow's own.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        try:
            from torch_fidelity import feature_extractor_inceptionv3 as fidelity
        except ImportError as error:
            raise UserError(PACKAGE) from error
        weights = {"feature_extractor_weights_path": _published_weights(fidelity.URL_INCEPTION_V3)}
        network = fidelity.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], **weights)
        self._network, self._device = network.to(device), device

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """Return the features [N, 2048] of images [N, C, H, W] in [0, 1], rounded to bytes; grey ones as colour."""
        parts = []
        for part in x.split(CHUNK):
            image = part.to(self._device).clamp(0, 1).mul(255).round().to(torch.uint8)
            parts.append(self._network(image.expand(-1, 3, -1, -1) if image.shape[1] == 1 else image)[0])
        return torch.cat(parts)
