"""Sprites of known shape, scale, orientation and place, drawn when they are needed: nothing is downloaded or stored.

Nearly to the pixel those of dSprites (Matthey et al. 2017, https://github.com/google-deepmind/dsprites-dataset).
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from vae_exp.datasets.conditions import Labels, choose_labels
from vae_exp.datasets.factors import chosen_values, grid
from vae_exp.datasets.prepare import with_test
from vae_exp.datasets.splits import Source, Split, Streamed

SIZES = {"shape": 3, "scale": 6, "orientation": 40, "x": 32, "y": 32}
SHAPES = ("square", "ellipse", "heart")
SIDE = 64  # pixels of an image
BOX = 28  # pixels that a sprite may touch in each direction
REACH = 9.6 * math.sqrt(2)  # of the corner of a square from its centre, the farthest of all
CHUNK = 128  # images drawn together: what is computed on the way stays in the processor's cache

Array = np.ndarray


def sprites(
    name: str,
    factors: dict[str, int | list[int]] | None = None,
    label: str | list[str] | None = "shape",
    test_size: int | float = 0.02,
    condition: list[str] | None = None,
) -> Source:
    """Return black-and-white images [1, 64, 64] of every combination of the five factors: 737,280 in the whole grid.

    factors says how many values of each, or which, numbered from 0; label is the factor that y holds, if any, or
    several, and condition names those that are numbers. Raises UserError for factors, values and labels that do not
    exist, and if the part of the grid is too small to be split.
    """
    values = chosen_values(SIZES, factors, periodic=["orientation"])
    n = math.prod(SIZES.values())
    images = Streamed(draw, (n, 1, SIDE, SIDE), torch.arange(n), is_binary=True)
    return grid_source(name, images, SIZES, values, (label, condition), test_size, {"shape": SHAPES})


def grid_source(
    name: str,
    images: Streamed,
    sizes: Mapping[str, int],
    values: Mapping[str, Sequence[int]],
    labels: tuple[str | list[str] | None, list[str] | None],
    test_size: int | float,
    names: Mapping[str, Sequence[str]],
    files: dict[str, str] | None = None,
) -> Source:
    """Return a Source of some values of each factor; a fixed random part is the test split.

    images holds every combination of `sizes` values of each factor, the last factor fastest; labels are dataset.label
    and dataset.condition, and names those of the values of some factors. Raises UserError for labels that are no
    factors, and if nothing is left to train on.
    """
    factors = grid(list(sizes), list(map(len, values.values())))
    rows = torch.zeros(len(factors), dtype=torch.long)
    for column, (factor, size) in zip(factors.table.T, sizes.items(), strict=True):
        rows = rows * size + torch.tensor(values[factor])[column]
    texts = [[names[of][i] if of in names else str(i) for i in numbers] for of, numbers in values.items()]
    none = Labels(torch.zeros(len(factors), dtype=torch.long), [])
    y, class_names, conditions = choose_labels(factors, texts, *labels, none)
    train, test = with_test(Split(images[rows], y, factors=factors), test_size, name)
    return Source(name, train, lambda: test, class_names, test_is_at_hand=True, files=files, conditions=conditions)


def draw(rows: Tensor) -> Tensor:
    """Draw rows [N] of the grid of all values as images [N, 1, 64, 64], by NumPy: PyTorch's threads are the model's."""
    images = np.zeros((len(rows), SIDE * SIDE), np.uint8)
    values = np.unravel_index(rows.cpu().numpy(), list(SIZES.values()))
    for at in range(0, len(rows), CHUNK):
        part = slice(at, at + CHUNK)
        _draw(images[part], *[value[part] for value in values])
    return torch.from_numpy(images).view(-1, 1, SIDE, SIDE)


def _draw(canvas: np.ndarray, shape: Array, scale: Array, orientation: Array, x: Array, y: Array) -> None:
    """Draw sprites of these value numbers [B] on black images [B, 64 * 64]: white where a pixel's centre is inside."""
    turns = SIZES["orientation"] - 1  # the last orientation is the first once more
    angle = (orientation % turns * (2 * np.pi / turns))[:, None]
    size = (0.5 + scale / 10)[:, None]
    columns, dx = _across(x)
    rows, dy = _across(y)
    cos, sin = np.cos(angle) / size, np.sin(angle) / size
    u = (cos * dx).astype(np.float32)[:, None, :] - (sin * dy).astype(np.float32)[:, :, None]  # [B, rows, columns]
    v = (sin * dx).astype(np.float32)[:, None, :] + (cos * dy).astype(np.float32)[:, :, None]
    inside = np.empty(u.shape, bool)
    for number, is_inside in enumerate(INSIDE):
        rows_of_shape = np.flatnonzero(shape == number)
        inside[rows_of_shape] = is_inside(u[rows_of_shape], v[rows_of_shape])
    pixel = rows[:, :, None] * SIDE + columns[:, None, :]
    np.put_along_axis(canvas, pixel.reshape(len(pixel), -1), inside.reshape(len(inside), -1) * np.uint8(255), axis=1)


def _across(position: Array) -> tuple[Array, Array]:
    """Return the pixels [B, BOX] where a sprite may lie, and their centres' distances from its own."""
    centre = (16 + position * (32 / 31))[:, None]
    pixels = np.ceil(centre - REACH - 0.5).astype(np.int64) + np.arange(BOX)
    return pixels, pixels + 0.5 - centre


def _in_heart(u: Array, v: Array) -> Array:
    """Return whether points are in the heart: between the two heights that its outline has at their u."""
    # The outline is x = 9.6 sin^3 a, y = -0.662 (13 cos a - 5 cos 2a - 2 cos 3a - cos 4a) - 1.44.
    sin2 = np.cbrt(np.square(u / 9.6))
    cos2 = np.maximum(1 - sin2, 0)
    # In powers of c = cos a: 13 c - 5 (2 c^2 - 1) - 2 (4 c^3 - 3 c) - (8 c^4 - 8 c^2 + 1), of a and of pi - a.
    even = 4 - cos2 * (2 + 8 * cos2)
    odd = np.sqrt(cos2) * (19 - 8 * cos2)
    middle, half = -0.662 * even - 1.44, 0.662 * odd
    return (sin2 <= 1) & (np.abs(v - middle) <= half)


INSIDE: tuple[Callable[[Array, Array], Array], ...] = (
    lambda u, v: np.maximum(np.abs(u), np.abs(v)) <= 9.6,  # a square
    lambda u, v: np.square(u / 12.8) + np.square(v / 7.2) <= 1,  # an ellipse
    _in_heart,
)
