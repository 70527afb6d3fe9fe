"""Draw grids of images, with text beside them, and scatter plots."""

import contextlib
import functools
import itertools
import logging
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

log = logging.getLogger(__name__)

SELECTORS = {chr(code) for code in range(0xFE00, 0xFE10)}  # they choose between forms of a letter and have none
STAND_INS = ("Last Resort", ".LastResort", "Adobe Blank")  # fonts that have a box for every letter
# How many images a picture shows (of classes: of each), or rows of a walk, or steps a side of the manifold.
SIZES = {"samples": 64, "classes": 8, "reconstructions": 32, "latents": 5000}
SIZES |= {"interpolations": 8, "traversals": 20, "manifold": 20}
STEPS = 11  # of interpolations and traversals
RANGE = 3.0  # of traversals: standard deviations of the prior either way
COLUMNS = 8
GREY = 128  # around and between images
READABLE = 28  # pixels; smaller images are enlarged to about this, for people to see
ENOUGH = 0.9  # of the classes that there is room for: in a random order chance may leave out one of ten digits
MAX_CLASSES = 64  # a row each in a picture; the 62 of EMNIST's largest split fit

_reported: set[str] = set()


def drawable(names: Sequence[str]) -> list[str]:
    """Return class names, or the number of a class if no installed font has its letters; warn once per class."""
    without = [name for name in names if any(not group.isascii() and font is None for group, font in _groups(name))]
    if new := [name for name in without if name not in _reported]:
        _reported.update(new)
        log.warning(f"no font installed here has the letters of {', '.join(new)}: pictures show the class's number")
    return [str(number) if name in without else name for number, name in enumerate(names)]


def drawable_name(names: Sequence[str], number: int) -> str:
    """Return the name of one class as `drawable` gives it; a model may have room for classes without a name."""
    return drawable(names)[number] if number < len(names) else str(number)


def families(names: Iterable[str]) -> list[str]:
    """Return the font families that matplotlib needs for all the letters, its own first."""
    fonts = {font.name for name in names for _, font in _groups(name) if font}
    return ["DejaVu Sans", *sorted(fonts - {"DejaVu Sans"})]


def text_width(text: str, size: int) -> float:
    """Return the width of a text as `write` draws it, in pixels."""
    return sum(_sized(font, size).getlength(group) for group, font in _groups(text))


def write(ink: ImageDraw.ImageDraw, at: tuple[float, float], text: str, size: int, anchor: str) -> None:
    """Draw a text in black, each of its groups of words with a font that has its letters; anchor is lm, mm or rm."""
    groups, (x, y) = _groups(text), at
    if len(groups) > 1:
        x -= text_width(text, size) * {"l": 0, "m": 0.5, "r": 1}[anchor[0]]
        anchor = f"l{anchor[1]}"
    for group, entry in groups:
        font = _sized(entry, size)
        ink.text((x, y), group, "black", font, anchor=anchor)
        x += font.getlength(group)


@functools.lru_cache(maxsize=256)
def _groups(text: str) -> list[tuple[str, Any]]:
    """Split a text into groups of whole words, ASCII (for Pillow's own font) and other, each with its `_font_for`.

    Separate accents, as macOS writes them, are joined.
    """
    words = re.findall(r"[^ ]+ *|^ +", unicodedata.normalize("NFC", text))
    groups = ["".join(group) for _, group in itertools.groupby(words, str.isascii)]
    return [(group, None if group.isascii() else _font_for(group)) for group in groups]


@functools.lru_cache(maxsize=256)
def _sized(font: Any, size: int) -> Any:
    return ImageFont.truetype(font.fname, size) if font else ImageFont.load_default(size)


def _font_for(text: str) -> Any:
    """Return matplotlib's entry of an installed font that has all letters of a text, or None."""
    from matplotlib import font_manager

    def search() -> Any:
        fonts = [font for font in manager.ttflist if font.style == "normal" and not font.name.startswith(STAND_INS)]
        weights = {font: abs((font.weight if isinstance(font.weight, int) else 400) - 400) for font in fonts}
        fonts.sort(key=lambda font: (font.name != "DejaVu Sans", weights[font], font.name))
        return next((font for font in fonts if letters <= _letters_of(font.fname)), None)

    letters, manager = frozenset(text) - SELECTORS - {" "}, font_manager.fontManager
    font = search()
    if font is None:  # matplotlib knows the fonts of when it first looked
        for path in set(font_manager.findSystemFonts()) - {font.fname for font in manager.ttflist}:
            with contextlib.suppress(OSError, RuntimeError, NotImplementedError, TypeError, ValueError):  # unusable
                manager.addfont(path)
        font = search()
    return font


@functools.cache
def _letters_of(path: str) -> frozenset[str]:
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(map(chr, FT2Font(path).get_charmap()))
    except (OSError, RuntimeError):  # gone since, or damaged
        return frozenset()


def in_turn(y: Tensor) -> Tensor:
    """Return the rows of labels y [N] with their classes in turn, [N]: [5, 5, 3, 5, 3] gives [0, 2, 1, 4, 3]."""
    y = y.cpu()
    _, number = y.unique(return_inverse=True)
    order = number.argsort(stable=True)
    counts = number.bincount()
    starts = counts.cumsum(0) - counts
    turn = torch.empty_like(number)
    turn[order] = torch.arange(len(y)) - starts[number[order]]
    first_row = order[starts]  # of each class
    return (turn * len(y) + first_row[number]).argsort()


def rows(y: Tensor, n: int) -> Tensor:
    """Return the first n rows of labels y [N], or n rows with classes in turn if the first, sorted, show too few."""
    enough = len(y[:n].unique()) >= ENOUGH * min(n, len(y.unique()))
    return torch.arange(min(n, len(y))) if enough else in_turn(y)[:n]


def n_class_rows(n_classes: int, class_names: Sequence[str]) -> int:
    """Return how many classes get a row each: those in the data, and no more than a picture has room for."""
    return min(n_classes, len(class_names) or n_classes, MAX_CLASSES)


def grid(images: Tensor, columns: int) -> np.ndarray:
    """Arrange images [N, C, H, W] in [0, 1] row by row, with a line of two pixels around each."""
    images = images.detach().clamp(0, 1).mul(255).round().to(torch.uint8).cpu()  # a quarter of the memory from here on
    scale = max(1, READABLE // images.shape[-1])
    images = images.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    images = torch.nn.functional.pad(images, (2, 2, 2, 2), value=GREY)
    n, c, h, w = images.shape
    rows = -(-n // columns)
    images = torch.cat([images, images.new_full((rows * columns - n, c, h, w), GREY)])
    sheet = images.view(rows, columns, c, h, w).permute(0, 3, 1, 4, 2).reshape(rows * h, columns * w, c)
    return sheet.squeeze(2).numpy()


def label_sheet(
    sheet: np.ndarray, title: str, rows: Sequence[str] = (), columns: Sequence[str] = (), x_label: str = ""
) -> np.ndarray:
    """Draw a grid on white, with a title above it and words beside its rows and below its columns."""
    height, width = sheet.shape[:2]
    size = max(11, round(width / 36))  # to be read when the sheet is shown small
    line = round(size * 1.5)

    def wide(words: Sequence[str]) -> int:
        return round(max((text_width(word, size) for word in words), default=0))

    stride = 1  # of the words below columns that are too narrow for all of them
    while columns and wide(columns) * 1.2 > stride * width / len(columns):
        stride += 1
    left, top = (wide(rows) + line // 2 if rows else 0), line
    bottom = (line if columns else 0) + (line if x_label else 0)
    right = max(0, wide([title]) + line // 2 - left - width)  # a title longer than the grid
    page = Image.new("RGB", (left + width + right, top + height + bottom), "white")
    page.paste(Image.fromarray(sheet), (left, top))
    ink = ImageDraw.Draw(page)
    write(ink, (line // 4, line // 2), title, size, "lm")
    for i, word in enumerate(rows):
        write(ink, (left - line // 4, top + height * (i + 0.5) / len(rows)), word, size, "rm")
    for i, word in list(enumerate(columns))[::stride]:
        write(ink, (left + width * (i + 0.5) / len(columns), top + height + line // 2), word, size, "mm")
    write(ink, (left + width / 2, top + height + bottom - line // 2), x_label, size, "mm")
    return np.asarray(page)


def reconstructions(x: Tensor, again: Tensor) -> np.ndarray:
    """Draw rows of images x [N, C, H, W], each above its reconstructions; a last row is filled with grey."""
    columns = min(COLUMNS, len(x))
    blank = x.new_full((-len(x) % columns, *x.shape[1:]), 0.5)
    rows = (torch.cat([images, blank]).split(columns) for images in (x, again.to(x)))
    return grid(torch.cat([row for pair in zip(*rows, strict=True) for row in pair]), columns)


def walk_sheet(images: Tensor, *words: Any) -> np.ndarray:
    """Draw walks, images [R, S, C, H, W], one per row, with the words of `label_sheet` around them."""
    return label_sheet(grid(images.flatten(0, 1), images.shape[1]), *words)


def interpolations(images: Tensor, path: str) -> np.ndarray:
    """Draw one walk per row, from images [R, S, C, H, W] of latent_walks.interpolation."""
    columns = [f"{t:.1f}" for t in torch.linspace(0, 1, images.shape[1]).tolist()]
    return walk_sheet(images, f"{path} interpolations of z", (), columns, "way from left to right")


def traversals(images: Tensor, dims: list[int], values: Tensor, kl: list[float], around: str) -> np.ndarray:
    """Draw one latent dimension per row, from images [R, S, C, H, W] of latent_walks.traversal."""
    rows = [f"z{dim}  {kl[dim]:.2f}" for dim in dims]
    return traversal_sheet(images, f"one latent (its KL in nats) at a time, around {around}", rows, values)


def traversal_sheet(images: Tensor, title: str, rows: Sequence[str], values: Tensor) -> np.ndarray:
    return walk_sheet(images, title, rows, list(map(signed, values.tolist())), "standard deviations of the prior")


def manifold(images: Tensor, values: Tensor, dims: list[int], note: str = "") -> np.ndarray:
    """Draw the plane of two latents, images [S, S, C, H, W] of latent_walks.manifold: first right, second up."""
    words = [signed(value) for value in values.tolist()]
    rows = [f"z{dims[1]} {word}" if i == 0 else word for i, word in enumerate(reversed(words))] if len(dims) > 1 else []
    return walk_sheet(images, f"p(x|z) at equally likely z{note}", rows, words, f"z{dims[0]}")


def latents(
    means: Tensor, y: Tensor, names: Sequence[str], dims: list[int] | None, n: int = SIZES["latents"], total: int = 0
) -> np.ndarray:
    """Draw n of the posterior means [N, Z] of `total` images, N by default, in two latents or principal components."""
    total, chosen = total or len(means), rows(y, n)
    means, y, names = means.detach().cpu().double()[chosen], y.cpu()[chosen], drawable(names)
    if dims is not None or means.shape[1] <= 2 or len(means) == 1:  # one image has no principal components
        dims = dims or list(range(means.shape[1]))[:2]
        points, axis_names = means[:, dims], [f"mean of q(z{dim} | x)" for dim in dims]
    else:
        centred = means - means.mean(0)
        _, strength, directions = torch.linalg.svd(centred, full_matrices=False)
        points, variance = centred @ directions[:2].T, strength.square() / strength.square().sum()
        axis_names = [f"principal component {i + 1} ({variance[i]:.0%} of the variance)" for i in range(2)]
    if points.shape[1] == 1:  # one latent: spread out by the order of the images
        points = torch.stack([points[:, 0], torch.linspace(0, 1, len(points), dtype=torch.double)], 1)
        axis_names.append("order in the split")
    count = f"{len(points):,} of the {total:,}" if len(points) < total else f"{total:,}"
    return _scatter(points, y, names, axis_names, f"posterior means of {count} images")


def _scatter(points: Tensor, y: Tensor, names: Sequence[str], axis_names: list[str], title: str) -> np.ndarray:
    """Draw points [N, 2] coloured by their labels [N], with a legend of the names if there are few."""
    style: dict[str, Any] = {"s": 6, "alpha": 0.7, "linewidths": 0}
    with new_axes((6.4, 5.4), names) as axes:
        if 0 < len(names) <= 20:
            from matplotlib import colormaps

            colors = colormaps["tab10" if len(names) <= 10 else "tab20"].resampled(len(names))
            for label in range(len(names)):
                axes.scatter(*points[y == label].T, color=colors(label), label=str(label), **style)
            where = {"loc": "center left", "bbox_to_anchor": (1, 0.5)}
            legend = axes.legend(title="label", markerscale=3, frameon=False, **where)
            for text, name in zip(legend.get_texts(), names, strict=True):  # as it is: _ hides a label, $ is a formula
                text.set_parse_math(False)
                text.set_text(name)
        elif names:
            axes.figure.colorbar(axes.scatter(*points.T, c=y, cmap="viridis", **style), label="label")
        else:
            axes.scatter(*points.T, color="tab:blue", **style)
        axes.set(xlabel=axis_names[0], ylabel=axis_names[1], title=title)
        axes.set_aspect("equal", adjustable="datalim")
        return pixels(axes.figure)


@contextlib.contextmanager
def new_axes(size: tuple[float, float], names: Sequence[str]) -> Iterator[Any]:
    """Yield the axes of a new matplotlib figure of this size in inches, with fonts that have the names' letters."""
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # else its first start tells of a list of fonts
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with plt.rc_context({"font.family": families(names)}):
        figure, axes = plt.subplots(figsize=size, dpi=100, layout="constrained")
        try:
            yield axes
        finally:
            plt.close(figure)


def pixels(figure: Any) -> np.ndarray:
    """Return a matplotlib figure as an array [H, W, 3]."""
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()


def signed(value: float) -> str:
    return f"{value:+.1f}" if abs(value) >= 0.05 else "0"
