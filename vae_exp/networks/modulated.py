"""One network for many settings: what each of its layers answers is scaled and shifted by a function of the setting.

A setting is a beta and a z_dim, [B, 2], one for each image. Bae et al. 2023, https://arxiv.org/abs/2212.03905, let one
network learn every beta; the scales and shifts are those of FiLM (Perez et al. 2018, https://arxiv.org/abs/1709.07871).
"""

import copy
import math
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

HIDDEN = 32  # units between a setting and the scales and shifts of a layer
WITH_CHANNELS = {nn.Linear: "out_features", nn.Conv2d: "out_channels", nn.ConvTranspose2d: "out_channels"}
WITH_CHANNELS |= {nn.GroupNorm: "num_channels"}


class Modulated(nn.Module):
    """A network whose layers' outputs h become h * (1 + a) + b, with a and b functions of each image's setting.

    They begin at 0, so that the network begins as the plain one. betas is the range (low, high) that beta comes from,
    z_dims the values of z_dim; what is None is no part of the function. A decoder of one layer has its latents scaled
    too: only so does it learn how its optimum depends on beta. Deeper ones learn that without, and keep more latents
    active (MNIST, z_dim 20: 20 where 10 were left).
    """

    def __init__(
        self, network: nn.Module, betas: Sequence[float] | None, z_dims: Sequence[int] | None, latents: int = 0
    ) -> None:
        super().__init__()
        self.network, self.betas, self.z_dims = _with_scaled_layers(network), betas, z_dims
        known = (betas is not None) + len(z_dims or ())
        self.layers = [layer for layer in self.network.modules() if isinstance(layer, Scaled)]
        self.functions = nn.ModuleList(_function(known, 2 * layer.width) for layer in self.layers)
        self.of_latents = _function(known, latents) if latents and len(self.layers) == 1 else None

    def forward(self, x: Tensor, context: Tensor, setting: Tensor) -> Tensor:
        """What the network makes of x and its context, each image at its setting, [B, 2]."""
        features = self._features(setting)
        for layer, function in zip(self.layers, self.functions, strict=True):
            layer.scale, layer.shift = function(features).chunk(2, dim=1)
        outputs = self.network(x if self.of_latents is None else x * (1 + self.of_latents(features)), context)
        for layer in self.layers:  # they are of this pass: left there, they would keep its graph
            layer.scale = layer.shift = None
        return outputs

    @torch.no_grad()
    def at(self, setting: Tensor) -> nn.Module:
        """The plain network of one setting, [1, 2]: its layers' weights and biases are scaled and shifted."""
        whole, features = copy.deepcopy(self), self._features(setting)
        for layer, function in zip(whole.layers, whole.functions, strict=True):
            layer.fold(*function(features)[0].chunk(2))
        if self.of_latents is not None:
            scale = self.of_latents(features)[0]
            cast("Tensor", whole.layers[0].layer.weight)[:, : len(scale)] *= 1 + scale
        return _replaced(whole.network, lambda layer: layer.layer if isinstance(layer, Scaled) else layer)

    def _features(self, setting: Tensor) -> Tensor:
        """log beta, from -1 to 1 over its range, and which of the z_dims it is, [B, K]."""
        features = []
        if self.betas is not None:
            low, high = map(math.log, self.betas)
            features.append((2 * setting[:, :1].log() - low - high) / (high - low))
        if self.z_dims is not None:
            features.append((setting[:, 1:] == setting.new_tensor(self.z_dims)).to(setting.dtype))
        return torch.cat(features, dim=1)


class Scaled(nn.Module):
    """A layer whose output channels are scaled and shifted, by numbers of each image's own."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.width = layer, getattr(layer, WITH_CHANNELS[type(layer)])
        self.scale: Tensor | None = None  # [B, width] in each pass
        self.shift: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x)
        assert self.scale is not None and self.shift is not None, "Modulated sets them"
        of_pixels = (..., *[None] * (h.dim() - 2))
        return torch.addcmul(h + self.shift[of_pixels], h, self.scale[of_pixels])

    def fold(self, scale: Tensor, shift: Tensor) -> None:
        """The layer alone gives, from now on, what it gives with this scale and shift, [width] each."""
        weight, bias = cast("Tensor", self.layer.weight), cast("Tensor | None", self.layer.bias)
        first = 1 if isinstance(self.layer, nn.ConvTranspose2d) else 0  # where the output channels are in its weight
        weight *= (1 + scale).view(*[1] * first, -1, *[1] * (weight.dim() - 1 - first))
        self.layer.bias = nn.Parameter(shift if bias is None else bias * (1 + scale) + shift)


def _function(known: int, numbers: int) -> nn.Module:
    last = nn.Linear(HIDDEN, numbers)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(known, HIDDEN), nn.ReLU(), last)


def _with_scaled_layers(network: nn.Module) -> nn.Module:
    """The network with each layer in a Scaled one; a network that is a layer itself too."""
    return _replaced(network, lambda layer: Scaled(layer) if _has_channels(layer) else layer)


def _has_channels(layer: nn.Module) -> bool:
    """Whether it has a weight and a bias for each channel that it gives, which a scale and a shift can join."""
    return type(layer) in WITH_CHANNELS and layer.weight is not None and getattr(layer, "groups", 1) == 1


def _replaced(part: nn.Module, change: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """A module whose parts, and then itself, are changed."""
    for name, child in part.named_children():
        setattr(part, name, _replaced(child, change))
    return change(part)
