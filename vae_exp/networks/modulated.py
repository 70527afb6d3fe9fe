"""One network for many settings: what each of its layers answers is scaled and shifted by a function of the setting.

A setting is a beta and a z_dim, [B, 2], one for each image. Bae et al. 2023, https://arxiv.org/abs/2212.03905, let one
network learn every beta; the scales and shifts are those of FiLM (Perez et al. 2018, https://arxiv.org/abs/1709.07871).
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vae_exp.errors import UserError

HIDDEN = 32  # units between a setting and the scales and shifts of a layer
WITH_CHANNELS = {nn.Linear: "out_features", nn.Conv2d: "out_channels", nn.ConvTranspose2d: "out_channels"}
WITH_CHANNELS |= {nn.GroupNorm: "num_channels"}


class Modulated(nn.Module):
    """A network whose layers' outputs h become h * (1 + a) + b, with a and b functions of each image's setting.

    They begin at 0, so that the network begins as the plain one. betas is the range (low, high) that beta comes from,
    z_dims the values of z_dim; what is None is no part of the function. A layer without a bias is not shifted.
    A decoder of one layer has its latents scaled too: only so does it learn how its optimum depends on beta. Deeper
    ones learn that without, and keep more latents active (MNIST, z_dim 20: 20 where 10 were left).
    """

    def __init__(
        self, network: nn.Module, betas: Sequence[float] | None, z_dims: Sequence[int] | None, latents: int = 0
    ) -> None:
        super().__init__()
        self.network, self.betas, self.z_dims, self.latents = network, betas, z_dims, latents
        known = (betas is not None) + len(z_dims or ())
        names: dict[nn.Module, list[str]] = {}  # several of a layer that the network has in several places
        for name, part in network.named_modules(remove_duplicate=False):
            if _has_channels(part):
                names.setdefault(part, []).append(name)
        self.scaled = [Scaled(part, places) for part, places in names.items()]
        self.functions = nn.ModuleList(_function(known, layer.numbers) for layer in self.scaled)
        self.of_latents = _function(known, latents) if latents and len(self.scaled) == 1 else None

    def forward(self, x: Tensor, context: Tensor, setting: Tensor) -> Tensor:
        """What the network makes of x and its context, each image at its setting, [B, 2]."""
        features = self._features(setting)
        for layer, function in zip(self.scaled, self.functions, strict=True):
            layer.now = function(features)
        outputs = self.network(x if self.of_latents is None else x * (1 + self.of_latents(features)), context)
        for layer in self.scaled:  # it is of this pass: left there, it would keep its graph
            layer.now = None
        return outputs

    @torch.no_grad()
    def weights_at(self, setting: Tensor) -> dict[str, Tensor]:
        """The plain network's weights, by their names, that make it this one at one setting, [1, 2]."""
        weights, features = dict(self.network.state_dict()), self._features(setting)
        for layer, function in zip(self.scaled, self.functions, strict=True):
            scale, shift = layer.parts(function(features)[0])
            for weight, bias in layer.names:
                weights[weight] = weights[weight] * (1 + scale).view(layer.of_weight)
                if shift is not None:
                    weights[bias] = weights[bias] * (1 + scale) + shift
        if self.of_latents is not None:
            of_inputs = torch.ones_like(weights[weight][0])
            of_inputs[: self.latents] += self.of_latents(features)[0]
            weights[weight] = weights[weight] * of_inputs
        return weights

    def _features(self, setting: Tensor) -> Tensor:
        """log beta, from -1 to 1 over its range, and which of the z_dims it is, [B, K]."""
        features = []
        if self.betas is not None:
            low, high = map(math.log, self.betas)
            features.append((2 * setting[:, :1].log() - low - high) / (high - low))
        if self.z_dims is not None:
            features += [(setting[:, 1:] == z_dim).to(setting.dtype) for z_dim in self.z_dims]
        return torch.cat(features, dim=1)


class Scaled:
    """Scales and shifts the output channels of a layer, by numbers of each image's own, wherever it is called.

    Raises UserError where it is called with another number of rows than there are images.
    """

    def __init__(self, layer: Any, places: Sequence[str]) -> None:
        self.names = [tuple(f"{place}.{key}".lstrip(".") for key in ("weight", "bias")) for place in places]
        self.width = getattr(layer, WITH_CHANNELS[type(layer)])
        self.has_bias = layer.bias is not None
        self.numbers = self.width * (1 + self.has_bias)  # for each image: its scales, and its shifts behind them
        first = isinstance(layer, nn.ConvTranspose2d)  # where the output channels are in its weight
        self.of_weight = [1] * first + [-1] + [1] * (layer.weight.dim() - 1 - first)
        self.channels_last = isinstance(layer, nn.Linear)
        self.now: Tensor | None = None  # [B, numbers] in each pass; None leaves the layer as it is
        layer.register_forward_hook(self.after)  # a method: a copy of the network gets a copy of this with it

    def after(self, layer: nn.Module, inputs: Any, h: Tensor) -> Tensor | None:
        if self.now is None:
            return None
        if len(h) != len(self.now):
            place = self.names[0][0].rpartition(".")[0]
            raise UserError(
                f"amortize: the network's layer {place} is called with {len(h)} rows for {len(self.now)} images. Each "
                "image has a setting of its own: call it with [B, ...], such as [B, T, width] for sequences."
            )
        scale, shift = self.parts(self.now)
        between = [1] * (h.dim() - 2)
        shape = [len(h), *between, self.width] if self.channels_last else [len(h), self.width, *between]
        shifted = h if shift is None else h + shift.view(shape)
        return torch.addcmul(shifted, h, scale.view(shape))

    def parts(self, numbers: Tensor) -> tuple[Tensor, Tensor | None]:
        """The scales and the shifts."""
        return numbers[..., : self.width], numbers[..., self.width :] if self.has_bias else None


def _function(known: int, numbers: int) -> nn.Module:
    last = nn.Linear(HIDDEN, numbers)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(known, HIDDEN), nn.ReLU(), last)


def _has_channels(part: nn.Module) -> bool:
    """Whether it has a weight of its own, which a scale of its output channels can become part of."""
    has_own = type(part) in WITH_CHANNELS and part._parameters.get("weight") is not None
    return has_own and not (isinstance(part, nn.ConvTranspose2d) and part.groups > 1)  # whose weight is by groups
