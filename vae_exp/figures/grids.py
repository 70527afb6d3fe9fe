"""Draw sheets of images, with text beside them, and scatter plots."""

import contextlib
import functools
import itertools
import logging
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, cast

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from vae_exp.datasets.conditions import spread

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)

SELECTORS = {chr(code) for code in range(0xFE00, 0xFE10)}  # they choose between forms of a letter and have none
STAND_INS = ("Last Resort", ".LastResort", "Adobe Blank")  # fonts that have a box for every letter
# How many images a picture shows (of classes: of each), or rows of a walk, or steps a side of the manifold.
SIZES = {"samples": 64, "classes": 8, "components": 64, "reconstructions": 32, "latents": 5000, "anomalies": 20}
SIZES |= {"interpolations": 8, "traversals": 20, "manifold": 20}
STEPS = 11  # of interpolations and traversals
RANGE = 3.0  # of traversals: standard deviations of the prior either way
COLUMNS = 8
GREY = 128  # around and between images
LINE = 1.5  # the height of a line of text, times its size
READABLE = 28  # pixels; smaller images are enlarged to about this, for people to see
ENOUGH = 0.9  # of the classes that there is room for: in a random order chance may leave out one of ten digits
MAX_CLASSES = 64  # a row each in a picture; the 62 of EMNIST's largest split fit
FEW_CLASSES = 16  # that stand for more
IN_LEGEND = 20  # classes; more are told by a scale of colours

SHARES = (0.99, 0.9, 0.5, 0.1)  # of the prior, which lines of its density go around
Density = tuple[Callable[[Tensor], Tensor], Tensor]  # log p(z) of codes [N, 2], and its values at the lines

_reported: set[str] = set()


def drawable(names: Sequence[str], numbers: Iterable[int] | None = None) -> list[str]:
    """Return class names, or the number of a class if no installed font has its letters; warn once per class."""
    without = [name for name in names if not is_drawable(name)]
    if new := [name for name in without if name not in _reported]:
        _reported.update(new)
        log.warning(f"no font installed here has the letters of {', '.join(new)}: pictures show the class's number")
    numbers = range(len(names)) if numbers is None else numbers
    return [str(number) if name in without else name for number, name in zip(numbers, names, strict=True)]


def is_drawable(text: str) -> bool:
    """Return whether fonts that are installed have all letters of a text."""
    return all(group.isascii() or font is not None for group, font in _groups(text))


def class_words(names: Sequence[str], classes: Iterable[int]) -> list[str]:
    """Return the names of some classes as `drawable` gives them; a class without a name has its number."""
    numbers = list(classes)
    return drawable([names[i] if i < len(names) else str(i) for i in numbers], numbers)


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
    """Split a text into groups of whole words, ASCII and other, each with its `_font_for`.

    Separate accents, as macOS writes them, are joined.
    """
    words = re.findall(r"[^ ]+ *|^ +", unicodedata.normalize("NFC", text))
    groups = ["".join(group) for _, group in itertools.groupby(words, str.isascii)]
    return [(group, _font_for("A" if group.isascii() else group)) for group in groups]


@functools.lru_cache(maxsize=256)
def _sized(font: Any, size: int) -> Any:
    return ImageFont.truetype(font.fname, _narrow(size)) if font else ImageFont.load_default(size)


def _narrow(size: int) -> int:
    """Return the size at which matplotlib's wide fonts take as much room as others, as small as can be read."""
    return max(11, round(0.85 * size))


@functools.lru_cache(maxsize=256)
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
    """Return n rows of labels y [N] to show: the first, or classes in turn if the first, sorted, show too few.

    Rows without classes are spread evenly: images may lie in the order of their files' names.
    """
    n, n_classes = min(n, len(y)), len(y.unique())
    if n_classes < 2:
        return torch.arange(n) * len(y) // max(n, 1)
    return torch.arange(n) if len(y[:n].unique()) >= ENOUGH * min(n, n_classes) else in_turn(y)[:n]


def class_rows(n_classes: int, class_names: Sequence[str]) -> list[int]:
    """Return the classes that get a row each: those in the data, or some of many, spread over them."""
    n = min(n_classes, len(class_names) or n_classes)
    return list(range(n)) if n <= MAX_CLASSES else sorted(spread(FEW_CLASSES, n).tolist())


@dataclass(frozen=True)
class Sheet:
    """Images row by row, with words around them."""

    images: Tensor  # [N, C, H, W] in [0, 1]
    columns: int
    title: str = ""
    rows: Sequence[str] = ()  # words beside them
    words: Sequence[str] = ()  # below the columns
    x_label: str = ""
    gaps: tuple[Sequence[int], Sequence[int]] = ((), ())  # rows and columns before which there is a white gap

    def pixels(self, scale: int | None = None) -> np.ndarray:
        """Draw the sheet as an array [H, W] or [H, W, 3], of so many pixels a pixel."""
        sheet, centres = self._grid(scale)
        (width, height), at, words = self._layout(sheet, centres)
        if not words:
            return sheet
        page = Image.new("RGB", (width, height), "white")
        page.paste(Image.fromarray(sheet), at)
        for x, y, text, size, anchor, is_turned in words:
            if is_turned:
                mask = Image.new("L", (round(text_width(text, size)), round(size * LINE)), "white")
                write(ImageDraw.Draw(mask), (0, mask.height / 2), text, size, "lm")
                page.paste(mask.rotate(90, expand=True), (round(x - mask.height / 2), round(y - mask.width / 2)))
            else:
                write(ImageDraw.Draw(page), (x, y), text, size, anchor)
        return np.asarray(page)

    def save(self, file: IO[bytes], kind: str, scale: int | None, dpi: int) -> None:
        """Write the sheet as png, or as pdf or svg with its words as text; dpi says how large it is on paper."""
        if kind == "png":
            Image.fromarray(self.pixels(scale)).save(file, "PNG", dpi=(dpi, dpi))
            return
        sheet, centres = self._grid(scale)
        (width, height), (left, top), words = self._layout(sheet, centres)
        with new_axes((width / dpi, height / dpi), [word[2] for word in words], layout=None) as axes:
            tall, wide = sheet.shape[:2]
            axes.set_position((left / width, 1 - (top + tall) / height, wide / width, tall / height))
            axes.imshow(sheet, "gray", vmin=0, vmax=255, interpolation="none", aspect="auto")
            axes.axis("off")
            for x, y, text, size, anchor, is_turned in words:
                style: dict[str, Any] = {"fontsize": _narrow(size) * 72 / dpi, "rotation": 90 * is_turned}
                align = {"ha": {"l": "left", "m": "center", "r": "right"}[anchor[0]], "va": "center"}
                axes.figure.text(x / width, 1 - y / height, text, parse_math=False, **style, **align)
            save_figure(axes.figure, file, kind, dpi)

    def _grid(self, scale: int | None) -> tuple[np.ndarray, list[list[float]]]:
        """Return the images with a line of grey around each, and the middles of rows and columns."""
        images = self.images.detach().clamp(0, 1).mul(255).round().to(torch.uint8).cpu()  # a quarter of the memory
        scale = scale or max(1, READABLE // images.shape[-1])
        line = max(2, scale // 2)
        images = images.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
        images = torch.nn.functional.pad(images, (line,) * 4, value=GREY)
        (n, c, *size), columns = images.shape, self.columns
        rows = -(-n // columns)
        images = torch.cat([images, images.new_full((rows * columns - n, c, *size), 255)])
        sheet = images.view(rows, columns, c, *size).permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1).numpy()
        centres = []
        for axis, count in enumerate((rows, columns)):
            gaps = self.gaps[axis]
            sheet = np.insert(sheet, [size[axis] * i for i in gaps for _ in range(4 * line)], 255, axis)
            before = [sum(gap <= i for gap in gaps) for i in range(count)]
            centres.append([size[axis] * (i + 0.5) + 4 * line * before[i] for i in range(count)])
        return sheet.squeeze(2) if c == 1 else sheet, centres

    def _layout(
        self, sheet: np.ndarray, centres: list[list[float]]
    ) -> tuple[tuple[int, int], tuple[int, int], list[tuple[float, float, str, int, str, bool]]]:
        """Return the page's size, where the images begin, and words: x, y, text, size, anchor, turned by a quarter."""
        height, width = sheet.shape[:2]
        large = max(11, round(width / 36))  # to be read when the sheet is shown small
        cell = min(2 * middles[0] for middles in centres if middles)  # there may be no row
        size = max(11, min(large, round(0.6 * cell)))  # smaller than an image
        line = round(size * LINE)

        def wide(words: Sequence[str]) -> int:
            return round(max((text_width(word, size) for word in words), default=0))

        is_turned = wide(self.words) * 1.2 > 2 * centres[1][0]
        left, top = (wide(self.rows) + line // 2 if self.rows else 0), (round(large * LINE) if self.title else 0)
        below = (wide(self.words) + line // 2 if is_turned else line) if self.words else 0
        bottom = below + (line if self.x_label else 0)
        long = round(text_width(self.title, large)) + line // 2 if self.title else 0
        page = (max(left + width, long), top + height + bottom)
        words = [(line / 4, top / 2, self.title, large, "lm", False)]
        words += [
            (left - line / 4, top + y, text, size, "rm", False) for y, text in zip(centres[0], self.rows, strict=False)
        ]
        y = top + height + below / 2
        words += [(left + x, y, text, size, "mm", is_turned) for x, text in zip(centres[1], self.words, strict=False)]
        words.append((left + width / 2, page[1] - line / 2, self.x_label, size, "mm", False))
        return page, (left, top), [word for word in words if word[2]]


def reconstructions(x: Tensor, again: Tensor, title: str = "") -> Sheet:
    """Show images x [N, C, H, W], each beside its reconstruction on the right."""
    columns = min(COLUMNS, 2 * len(x))
    pairs = torch.stack([x, again.to(x)], 1).flatten(0, 1)
    return Sheet(pairs, columns, title, gaps=((), range(2, columns, 2)))


def walk_sheet(images: Tensor, *words: Any, **gaps: Any) -> Sheet:
    """Show walks, images [R, S, C, H, W], one per row, with the words of a Sheet around them."""
    return Sheet(images.flatten(0, 1), images.shape[1], *words, **gaps)


def interpolations(images: Tensor, start: Tensor, end: Tensor, path: str, rows: Sequence[str] = ()) -> Sheet:
    """Show one walk per row, images [R, S, C, H, W] of latent_walks.interpolation, between the images of its ends."""
    steps = images.shape[1]
    columns = ["x", *(f"{t:.1f}" for t in torch.linspace(0, 1, steps).tolist()), "x"]
    images = torch.cat([start[:, None].to(images), images, end[:, None].to(images)], 1)
    title = f"{path} interpolations of z between two images x"
    return walk_sheet(images, title, rows, columns, "way from left to right", gaps=((), (1, steps + 1)))


def traversals(
    images: Tensor, dims: list[int], values: Tensor, kl: list[float], around: str, labels: Sequence[str] = ()
) -> Sheet:
    """Show one latent dimension per row, for each label, from images [R, S, C, H, W] of latent_walks.traversal."""
    rows = [f"z{dim}  KL {kl[dim]:.2f}" if kl else f"z{dim}" for dim in dims]
    rows = [f"{label}   {row}" for label in labels for row in rows] or rows
    gaps = (range(len(dims), len(images), len(dims)), ())
    its_kl = " (its KL in nats)" if kl else ""
    return traversal_sheet(images, f"one latent{its_kl} at a time, around {around}", rows, values, gaps)


def traversal_sheet(images: Tensor, title: str, rows: Sequence[str], values: Tensor, gaps: Any = ((), ())) -> Sheet:
    words = list(map(tick, values.tolist()))
    return walk_sheet(images, title, rows, words, "standard deviations of the prior", gaps=gaps)


def manifold(images: Tensor, values: Tensor, dims: list[int], title: str) -> Sheet:
    """Show the plane of two latents, images [S, S, C, H, W] of latent_walks.manifold: first right, second up."""
    words, *up = [[tick(value) for value in axis] for axis in values.tolist()]
    rows = [f"z{dims[1]} {word}" if i == 0 else word for i, word in enumerate(reversed(up[0]))] if up else []
    return walk_sheet(images, title, rows, words, f"z{dims[0]}")


def latents(
    means: Tensor,
    y: Tensor,
    names: Sequence[str],
    dims: list[int] | None,
    n: int = SIZES["latents"],
    total: int = 0,
    density: Density | None = None,
) -> "Figure":
    """Plot n of the posterior means [N, Z] of `total` images, N by default, in two latents or principal components.

    Lines of the prior's density lie over those of a model of two latents.
    """
    total, chosen = total or len(means), rows(y, n)
    means, y, names = means.detach().cpu().double()[chosen], y.cpu()[chosen], drawable(names[: IN_LEGEND + 1])
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
    figure = _scatter(points, y, names, axis_names, f"posterior means of {count} images")
    if density is not None and sorted(dims or []) == [0, 1]:
        _draw_density(figure.axes[0], cast("list[int]", dims), *density)
    return figure


def _scatter(points: Tensor, y: Tensor, names: Sequence[str], axis_names: list[str], title: str) -> "Figure":
    """Plot points [N, 2] coloured by their labels [N], with a legend of the names if there are few."""
    style: dict[str, Any] = {"s": 6, "alpha": 0.7, "linewidths": 0}
    with new_axes((6.4, 5.4), names) as axes:
        if 0 < len(names) <= IN_LEGEND:
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
        return cast("Figure", axes.figure)


def _draw_density(axes: Any, dims: list[int], log_p: Callable[[Tensor], Tensor], levels: Tensor) -> None:
    """Draw lines where log p(z) has these values, in axes that show the latents of dims and stay as they are."""
    limits = axes.get_xlim(), axes.get_ylim()
    reach = 0.75 * max(high - low for low, high in limits)  # an axis grows where the other is longer
    x, y = (torch.linspace(sum(limit) / 2 - reach, sum(limit) / 2 + reach, 150) for limit in limits)
    values = log_p(torch.cartesian_prod(x, y)[:, dims]).view(len(x), len(y))  # of z in the model's order
    levels = levels[levels.isfinite()].unique()
    if len(levels):
        axes.contour(x, y, values.T, levels, colors="0.35", linewidths=0.7, linestyles="solid")
        shares = ", ".join(f"{share:.0%}" for share in reversed(SHARES))
        axes.set_title(f"{axes.get_title()}\nlines around {shares} of the prior")
        axes.set_xlim(limits[0], auto=None)
        axes.set_ylim(limits[1], auto=None)


@contextlib.contextmanager
def new_axes(size: tuple[float, float], names: Sequence[str], layout: Any = "constrained") -> Iterator[Any]:
    """Yield the axes of a new matplotlib figure of this size in inches, with fonts that have the names' letters."""
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # else its first start tells of a list of fonts
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"font.family": families(names)}):
        yield Figure(size, dpi=100, layout=layout).subplots()


def pixels(figure: "Figure") -> np.ndarray:
    """Return a matplotlib figure as an array [H, W, 3]."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def save_figure(figure: "Figure", file: IO[bytes], kind: str, dpi: int) -> None:
    """Write a matplotlib figure as png, pdf or svg, the same bytes each time, with text as text."""
    import matplotlib

    dated = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}
    with matplotlib.rc_context({"svg.fonttype": "none", "pdf.fonttype": 42, "svg.hashsalt": "vae_exp"}):
        figure.savefig(file, format=kind, dpi=dpi, metadata=dated.get(kind))


def tick(value: float) -> str:
    return f"{value:.1f}" if abs(value) >= 0.05 else "0"
