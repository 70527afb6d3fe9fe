"""Write the explorer: a page with the decoder inside, which draws images as sliders move the code.

The script in static/decoder.js knows a few operations, to which `Layers` reduces a decoder. Before a page is written
these, one after another, are held against the decoder itself.
"""

import base64
import copy
import dataclasses
import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from vae_exp import webpage
from vae_exp.datasets import Split
from vae_exp.datasets.conditions import Conditions
from vae_exp.errors import UserError
from vae_exp.evaluation import metrics
from vae_exp.figures import grids
from vae_exp.likelihoods import continuous_bernoulli
from vae_exp.networks.convolutional import Residual
from vae_exp.priors import ByLabel, Standard
from vae_exp.vae import VAE

N_IMAGES = 24  # to start from
N_CODES = 1000  # of held-out images, whose spread is measured
N_DRAWS = 256  # of a prior that the page cannot draw from itself
RANGE = 3.0  # standard deviations of a latent, either way
MAX_ERROR = 0.5 / 255  # of a pixel by rounding weights to 16 bits: at codes that are not tried it may be more
Operation = dict[str, Any]
Size = Sequence[int]
STATIC = Path(__file__).with_name("static")
MEANS: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda outputs: outputs,
    "sigmoid": torch.sigmoid,
    "continuous_bernoulli": lambda outputs: continuous_bernoulli()(outputs).mean,
}
FUNCTIONS: dict[type[nn.Module], Callable[[Any], Operation | None]] = {
    nn.ReLU: lambda layer: {"name": "relu"},
    nn.LeakyReLU: lambda layer: {"name": "leaky_relu", "slope": layer.negative_slope},
    nn.ELU: lambda layer: {"name": "elu", "alpha": layer.alpha},
    nn.GELU: lambda layer: {"name": "gelu"} if layer.approximate == "none" else None,
    nn.SiLU: lambda layer: {"name": "silu"},
    nn.Tanh: lambda layer: {"name": "tanh"},
    nn.Sigmoid: lambda layer: {"name": "sigmoid"},
    nn.Identity: lambda layer: {"name": "linear"},
    nn.Dropout: lambda layer: {"name": "linear"},
}
KNOWN = (
    "Linear, Conv2d and ConvTranspose2d without groups or dilation (and Conv2d of stride 1), Upsample (nearest), "
    "GroupNorm, BatchNorm1d, BatchNorm2d, Flatten, Unflatten, GLU, Dropout, Identity, ReLU, LeakyReLU, ELU, GELU, "
    "SiLU, Tanh and Sigmoid, one after another, and vae_exp.networks.convolutional.Residual"
)


@dataclasses.dataclass
class Layers:
    """The operations of a network for the page, and their weights one after another."""

    operations: list[Operation] = dataclasses.field(default_factory=list)
    weights: list[Tensor] = dataclasses.field(default_factory=list)

    def follow(self, module: nn.Module, x: Tensor) -> Tensor:
        """Add what a module does to x [B, ...] and return its output. Raises UserError for a layer that is not known.

        The layers of an unknown module are taken one after another: whether that is what it does, its output tells.
        """
        if type(module) is Residual:
            inner = Layers(weights=self.weights)
            y = x + inner.follow(module.layers, x)
            self.operations.append({"name": "residual", "operations": inner.operations})
            return y
        if (operation := self._operation(module, x)) is not None:
            self.operations.append(operation)
            return module(x)
        if next(module.children(), None) is None:
            raise UserError(f"what=explorer: the page has no {module} of {list(x.shape[1:])}; it has {KNOWN}.")
        for child in module if isinstance(module, nn.Sequential) else module.children():  # in which none is twice
            x = self.follow(child, x)
        return x

    def _operation(self, layer: Any, x: Tensor) -> Operation | None:
        """Return a layer as an operation on x, or None for a module that is none, or does more than the page's."""
        kind, is_image = type(layer), x.ndim == 4
        if kind in FUNCTIONS:
            return FUNCTIONS[kind](layer)
        if kind is nn.Linear and not is_image:
            return self._spread(layer.weight.T[..., None, None], layer.bias)
        if kind in (nn.Conv2d, nn.ConvTranspose2d) and is_image:
            return self._convolution(layer)
        if kind is nn.GroupNorm:
            ones = torch.ones(layer.num_channels)
            weight, bias = (ones, 0 * ones) if layer.weight is None else (layer.weight, layer.bias)
            affine = {"weight": self._keep(weight), "bias": self._keep(bias)}
            return {"name": "group_norm", "groups": layer.num_groups, "eps": layer.eps} | affine
        if kind in (nn.BatchNorm1d, nn.BatchNorm2d) and layer.running_var is not None:
            scale = (layer.running_var + layer.eps).rsqrt() * (1 if layer.weight is None else layer.weight)
            shift = (0 if layer.bias is None else layer.bias) - layer.running_mean * scale
            return {"name": "scale", "weight": self._keep(scale), "bias": self._keep(shift)}
        if kind is nn.Upsample and is_image and layer.mode == "nearest":
            (height, width), out = x.shape[2:], layer(x).shape[2:]
            is_whole = out[0] % height == out[1] % width == 0
            return {"name": "upsample", "factor": [out[0] // height, out[1] // width]} if is_whole else None
        if kind is nn.GLU and layer.dim in (1, 1 - x.ndim, -1 if not is_image else 1):
            return {"name": "glu"}
        if kind is nn.Flatten and layer(x).shape == x.flatten(1).shape:
            return {"name": "flatten"}
        if kind is nn.Unflatten and not is_image and len(shape := layer(x).shape[1:]) == 3:
            return {"name": "reshape", "shape": list(shape)}
        return None

    def _convolution(self, layer: Any) -> Operation | None:
        usual = layer.groups == 1 and layer.dilation == (1, 1) and layer.padding_mode == "zeros"
        if not usual or isinstance(layer.padding, str):
            return None
        if isinstance(layer, nn.ConvTranspose2d):
            return self._spread(layer.weight, layer.bias, layer.stride, layer.padding, layer.output_padding)
        if layer.stride != (1, 1):
            return None
        padding = [size - 1 - each for size, each in zip(layer.kernel_size, layer.padding, strict=True)]
        return self._spread(layer.weight.flip(2, 3).transpose(0, 1), layer.bias, padding=padding)

    def _spread(
        self, weight: Tensor, bias: Tensor | None, stride: Size = (1, 1), padding: Size = (0, 0), extra: Size = (0, 0)
    ) -> Operation:
        """Add a transposed convolution of weight [inputs, outputs, H, W]."""
        bias = torch.zeros_like(weight[0, :, 0, 0]) if bias is None else bias
        sizes = {"kernel": list(weight.shape[2:]), "stride": list(stride), "padding": list(padding)}
        kept = {"weight": self._keep(weight.permute(2, 3, 0, 1)), "bias": self._keep(bias)}
        return {"name": "spread", "extra": list(extra)} | sizes | kept

    def _keep(self, tensor: Tensor) -> list[int]:
        """Put a tensor behind the other weights; return where it begins and ends."""
        start = sum(len(kept) for kept in self.weights)
        self.weights.append(tensor.detach().flatten().float().cpu())
        return [start, start + tensor.numel()]


@torch.no_grad()
def page(
    model: VAE, split: Split, class_names: Sequence[str], conditions: Conditions | None, kl: list[float], title: str
) -> str:
    """Return the page of a model in evaluation mode, with images of a held-out split to start from.

    kl is that of each latent [Z], or empty. Raises UserError for a decoder or likelihood beyond the page's operations.
    """
    some = split[torch.arange(min(N_CODES, len(split))) * len(split) // min(N_CODES, len(split))]
    codes, has_classes = metrics.posterior(model, some.to(model.device)).mean, len(some.y.unique()) > 1
    rows = grids.in_turn(some.y)[:N_IMAGES] if has_classes else grids.rows(some.y, N_IMAGES)
    shown, starts, noise = some[rows], codes[rows.to(codes.device)], torch.Generator().manual_seed(0)
    means, stds, draws = _moments(model, codes, noise)
    low, high = (means - RANGE * stds).amin(0), (means + RANGE * stds).amax(0)
    if not torch.cat([codes, low[None], high[None]]).isfinite().all():
        raise UserError("what=explorer: codes of images or of the prior are not finite: there is nothing to show.")
    anywhere = low + (high - low) * torch.rand(starts.shape, generator=noise).to(low)
    layers, is_half = _layers(model, torch.cat([starts, anywhere]), shown.y.to(model.device).repeat(2))
    data = {
        "title": title,
        "shape": list(split.x_shape),
        "operations": [*layers.operations, *_means(model, split.x_shape)],
        "weights": _base64(torch.cat(layers.weights).numpy().astype("<f2" if is_half else "<f4")),
        "is_half": is_half,
        "latents": _latents(kl, codes),
        "low": _rounded(low),
        "high": _rounded(high),
        "means": [*map(_rounded, means)],
        "stds": [*map(_rounded, stds)],
        "codes": _base64(torch.cat([starts, draws]).cpu().numpy().astype("<f4")),
        "is_stochastic": model.stochastic,
        "controls": _controls(model, class_names, conditions),
        "labels": [_choices(conditions, y) for y in range(len(means))] if len(means) > 1 else [],
        "images": [
            {"png": _png(x), "name": _name(class_names, y) if has_classes else ""}
            | {"choices": _choices(conditions, y) if model.n_classes else []}
            for x, y in zip(shown.x, shown.y.tolist(), strict=True)
        ],
    }
    scripts = [STATIC / f"{name}.js" for name in ("decoder", "explorer")]
    body = (STATIC / "explorer.html").read_text(encoding="utf-8")
    return webpage.compose(title, [STATIC / "explorer.css"], scripts, {"explorer": data}, {}, body)


def _moments(model: VAE, codes: Tensor, noise: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Return means and standard deviations of the prior, [L, Z] for L labels or one, and draws [N, Z] if it needs them.

    An autoencoder has no prior: they are of codes [N, Z] of images.
    """
    if not model.stochastic:
        draws = codes[torch.randperm(len(codes), generator=noise)[:N_DRAWS].to(codes.device)]
        return codes.mean(0)[None], codes.std(0, correction=0)[None], draws
    labels = torch.arange(model.n_classes if isinstance(model.prior, ByLabel) else 1, device=model.device)
    means, stds = map(torch.stack, zip(*map(model.prior_moments, labels), strict=True))
    is_known = isinstance(model.prior, Standard | ByLabel)  # the page draws from it
    return means, stds, codes[:0] if is_known else model.prior_sample(N_DRAWS, noise)


def _layers(model: VAE, z: Tensor, y: Tensor) -> tuple[Layers, bool]:
    """Return the decoder's operations, and whether weights of 16 bits are enough at codes z [N, Z] with labels y [N].

    Raises UserError if the operations give something else than the decoder.
    """
    decoder, context, layers = model.decoder, model.context(y), Layers()
    exact = decoder(z, context)
    try:
        outputs = layers.follow(decoder, torch.cat([z, context], 1))
        if outputs.ndim == 2:
            layers.operations.append({"name": "reshape", "shape": list(exact.shape[1:])})
            outputs = outputs.view_as(exact)
        is_same = outputs.shape == exact.shape and torch.allclose(outputs, exact, rtol=1e-3, atol=1e-4)
    except RuntimeError:  # shapes that do not fit
        is_same = False
    if not is_same:
        own = f"{type(decoder).__name__} does more than its layers one after another"
        raise UserError(f"what=explorer: {own}, which is all that the page has; it has {KNOWN}.")
    rounded = copy.deepcopy(decoder)
    for weight in (*rounded.parameters(), *rounded.buffers()):
        if weight.is_floating_point():
            weight.copy_(weight.half())
    error = (model.likelihood(rounded(z, context)).mean - model.likelihood(exact).mean).abs().max()
    return layers, bool(error <= MAX_ERROR)


def _means(model: VAE, shape: tuple[int, ...]) -> list[Operation]:
    """Return what gives the mean of p(x|z) from the decoder's outputs, its function by its name. Raises UserError."""
    outputs = torch.linspace(-30, 30, 10 * math.prod(shape), device=model.device).view(10, *shape)
    per_pixel = getattr(model.likelihood, "outputs_per_pixel", 1)
    mean = model.likelihood(torch.cat([outputs, *[outputs.flip(0)] * (per_pixel - 1)], 1)).mean
    for name, function in MEANS.items():
        if torch.allclose(mean, function(outputs), atol=1e-5):
            return [{"name": "first", "channels": shape[0]}] * (per_pixel > 1) + [{"name": name}]
    raise UserError(f"what=explorer: the page knows the means {', '.join(MEANS)}, and this likelihood has another.")


def _latents(kl: list[float], codes: Tensor) -> list[dict[str, Any]]:
    """Return the latents and what each tells, most first: its KL, or else the spread of its mean over images."""
    has_kl = any(kl)
    told = kl if has_kl else codes.std(0, correction=0).tolist()
    order = sorted(range(len(told)), key=lambda dim: -told[dim])
    return [{"dim": dim, "about": f"{told[dim]:.2f} nats" if has_kl else f"spread {told[dim]:.2f}"} for dim in order]


def _controls(model: VAE, class_names: Sequence[str], conditions: Conditions | None) -> list[dict[str, Any]]:
    """Return what the model is given beside the code, in the order of its context: one-hot blocks, then numbers."""
    if not model.n_classes:
        return []
    if conditions is not None:
        labels = zip(conditions.names, conditions.values[: conditions.n_labels], strict=False)
        numbers = zip(conditions.numbers, conditions.ranges, strict=True)
        controls = [{"name": name, "values": values, "width": len(values)} for name, values in labels]
        return controls + [{"name": name, "low": low, "high": high} for name, (low, high) in numbers]
    names = [_name(class_names, number) for number in range(min(model.n_classes, len(class_names) or model.n_classes))]
    return [{"name": "label", "values": names, "width": model.n_classes}]


def _choices(conditions: Conditions | None, y: int) -> list[float]:
    """Return the place of each control for images of label y: the number of a choice, or a number itself."""
    if conditions is None:
        return [y]
    return [value.item() for value in conditions.given(torch.tensor([y])).values()]


def _name(class_names: Sequence[str], number: int) -> str:
    return class_names[number] if number < len(class_names) else str(number)


def _png(x: Tensor) -> str:
    """Return the bytes [C, H, W] of an image as a PNG in base64."""
    pixels, file = x.permute(1, 2, 0).cpu().numpy(), io.BytesIO()
    Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(file, "PNG", optimize=True)
    return _base64(file.getvalue())


def _base64(content: bytes | np.ndarray) -> str:
    return base64.b64encode(content if isinstance(content, bytes) else content.tobytes()).decode()


def _rounded(values: Tensor) -> list[float]:
    return [float(f"{value:.6g}") for value in values.tolist()]
