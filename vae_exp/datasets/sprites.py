"""Sprites of known shape, scale, orientation and place, drawn when they are asked for: nothing is downloaded or kept.

The images of dSprites (Matthey et al. 2017, https://github.com/google-deepmind/dsprites-dataset) as its published
frames show them: nearly to the pixel, and not the published file.
"""

import functools
import math

import torch
from torch import Tensor

from vae_exp.datasets.factors import Factors, chosen_values, grid
from vae_exp.datasets.prepare import count
from vae_exp.datasets.splits import Source, Split, Streamed
from vae_exp.errors import UserError

SIZES = {"shape": 3, "scale": 6, "orientation": 40, "x": 32, "y": 32}
SHAPES = ("square", "ellipse", "heart")
SIDE = 64  # pixels of an image
BOX = 28  # pixels that a sprite may touch in each direction
REACH = 9.6 * math.sqrt(2)  # of the corner of a square from its centre, the farthest of all
AT_ONCE = 1024  # images drawn together


def sprites(
    name: str,
    factors: dict[str, int | list[int]] | None = None,
    label: str | None = "shape",
    test_size: int | float = 0.02,
) -> Source:
    """Black-and-white images [1, 64, 64] of every combination of the five factors: 737,280 of the whole grid.

    factors says how many values of each, or which, numbered from 0; label is the factor that y holds, and None is no
    label. The test split is the same for every seed. Raises UserError for factors, values and labels that there are
    not, and where the part of the grid is too small to be split.
    """
    chosen = chosen_values(SIZES, factors or {}, round_about=["orientation"])
    known = grid(list(SIZES), [len(values) for values in chosen.values()])
    source = functools.partial(_draw_rows, [torch.tensor(values) for values in chosen.values()])
    images = Streamed(source, (len(known), 1, SIDE, SIDE), torch.arange(len(known)), is_binary=True)
    return source_of(name, images, known, label, test_size, _names(label, chosen))


def source_of(
    name: str, images: Tensor | Streamed, known: Factors, label: str | None, test_size: int | float, names: list[str]
) -> Source:
    """A Source of images with known factors, whose label is one of them; a part drawn once for all is the test split.

    Raises UserError for a label that is no factor, and where nothing is left to train on.
    """
    y = torch.zeros(len(known), dtype=torch.long) if label is None else known.column(label)
    n_test = count(test_size, len(known))
    if n_test >= len(known):
        raise UserError(
            f"dataset.test_size={test_size}: there are {len(known):,} images; training and testing need some each."
        )
    rows = torch.randperm(len(known), generator=torch.Generator().manual_seed(0))
    every = Split(images, y, factors=known)
    test, train = every[rows[:n_test].sort().values], every[rows[n_test:].sort().values]
    return Source(name, train, lambda: test, names)


def _names(label: str | None, chosen: dict[str, list[int]]) -> list[str]:
    """What the values of the label are called."""
    if label is None or label not in chosen:
        return []
    return [SHAPES[value] if label == "shape" else str(value) for value in chosen[label]]


def _draw_rows(chosen: list[Tensor], rows: Tensor) -> Tensor:
    """Rows [N] of the grid of the chosen values, which are numbers of published ones, as images [N, 1, 64, 64]."""
    images = torch.zeros(len(rows), 1, SIDE, SIDE, dtype=torch.uint8)
    for at in range(0, len(rows), AT_ONCE):
        left, values = rows[at : at + AT_ONCE].cpu(), []
        for numbers in reversed(chosen):  # the last factor is the fastest
            values.append(numbers[left % len(numbers)])
            left = left // len(numbers)
        _draw(torch.stack(values[::-1], dim=1), images[at : at + AT_ONCE, 0])
    return images


def _draw(values: Tensor, canvas: Tensor) -> None:
    """Sprites of the numbers of their values [B, 5] on black images [B, 64, 64]: white where a pixel's centre is in."""
    scale = 0.5 + values[:, 1] / 10
    angle = values[:, 2] % (SIZES["orientation"] - 1) * (2 * math.pi / (SIZES["orientation"] - 1))  # both ends are one
    centre = 16 + values[:, 3:] * (32 / 31)  # [B, 2]: the column and the row
    first = (centre - REACH - 0.5).ceil().long()
    at = first[:, :, None] + torch.arange(BOX)  # [B, 2, BOX]
    from_centre = (at + 0.5 - centre[:, :, None]) / scale[:, None, None]
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    dx, dy = from_centre.unbind(1)
    u = (cos * dx)[:, None, :] - (sin * dy)[:, :, None]  # [B, rows, columns]
    v = (sin * dx)[:, None, :] + (cos * dy)[:, :, None]
    inside = torch.empty(u.shape, dtype=torch.bool)
    for number, is_inside in enumerate((_in_square, _in_ellipse, _in_heart)):
        of_it = (values[:, 0] == number).nonzero()[:, 0]
        inside[of_it] = is_inside(u[of_it], v[of_it])
    pixel = at[:, 1, :, None] * SIDE + at[:, 0, None, :]
    canvas.flatten(1).scatter_(1, pixel.flatten(1), inside.flatten(1).to(torch.uint8) * 255)


def _in_square(u: Tensor, v: Tensor) -> Tensor:
    return torch.maximum(u.abs(), v.abs()) <= 9.6


def _in_ellipse(u: Tensor, v: Tensor) -> Tensor:
    return (u / 12.8).square() + (v / 7.2).square() <= 1


def _in_heart(u: Tensor, v: Tensor) -> Tensor:
    """Between the two heights that x = 9.6 sin^3 a, y = -0.662 (13 cos a - 5 cos 2a - 2 cos 3a - cos 4a) - 1.44 has."""
    sin2 = (u.abs() / 9.6).pow(2 / 3)
    cos = (1 - sin2).clamp(min=0).sqrt()
    # In powers of c = cos a: 13 c - 5 (2 c^2 - 1) - 2 (4 c^3 - 3 c) - (8 c^4 - 8 c^2 + 1), of a and of pi - a.
    even = 4 - cos.square() * (2 + 8 * cos.square())
    odd = cos * (19 - 8 * cos.square())
    middle, half = -0.662 * even - 1.44, 0.662 * odd
    return (sin2 <= 1) & ((v - middle).abs() <= half)
