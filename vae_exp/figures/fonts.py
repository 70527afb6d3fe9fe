"""Letters for the names in pictures: Pillow's own font has those of ASCII, fonts installed here have others."""

import functools
import logging
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

from PIL import ImageDraw, ImageFont

log = logging.getLogger(__name__)

SELECTORS = {chr(code) for code in range(0xFE00, 0xFE10)}  # they choose between forms of a letter and have none
STAND_INS = ("Last Resort", ".LastResort", "Adobe Blank")  # fonts that have a box for every letter

_told: set[str] = set()


def drawable(names: Sequence[str]) -> list[str]:
    """Return class names, or the number of a class if no installed font has its letters; say so once per class."""
    without = [name for name in names if any(_find(group) is None for group in _groups(name) if not group.isascii())]
    if new := [name for name in without if name not in _told]:
        _told.update(new)
        log.warning(f"no font installed here has the letters of {', '.join(new)}: pictures show the class's number")
    return [str(number) if name in without else name for number, name in enumerate(names)]


def drawable_name(names: Sequence[str], number: int) -> str:
    """Return the name of one class as `drawable` gives it; a model may have room for classes without a name."""
    return drawable([*[""] * number, names[number]])[number] if number < len(names) else str(number)


def families(names: Iterable[str]) -> list[str]:
    """Return the font families that matplotlib needs for all the letters, its own first."""
    found = {_find(group) for name in names for group in _groups(name) if not group.isascii()}
    return ["DejaVu Sans", *sorted({font.name for font in found if font is not None} - {"DejaVu Sans"})]


def width(text: str, size: int) -> float:
    """Return the width of a text as `write` draws it, in pixels."""
    return sum(_font(group, size).getlength(group) for group in _groups(text))


def write(ink: ImageDraw.ImageDraw, at: tuple[float, float], text: str, size: int, anchor: str) -> None:
    """Draw a text in black, each of its groups of words with a font that has its letters; anchor is lm, mm or rm."""
    groups = _groups(text)
    if len(groups) == 1:
        ink.text(at, groups[0], "black", _font(groups[0], size), anchor=anchor)
        return
    x, y = at
    x -= width(text, size) * {"l": 0, "m": 0.5, "r": 1}[anchor[0]]
    for group in groups:
        font = _font(group, size)
        ink.text((x, y), group, "black", font, anchor=f"l{anchor[1]}")
        x += font.getlength(group)


def _groups(text: str) -> list[str]:
    """Split a text into groups of whole words, ASCII and other, and join separate accents, as macOS writes them."""
    groups: list[str] = []
    for word in re.findall(r"[^ ]+ *|^ +", unicodedata.normalize("NFC", text)):
        if groups and groups[-1].isascii() == word.isascii():
            groups[-1] += word
        else:
            groups.append(word)
    return groups


@functools.lru_cache(maxsize=256)
def _font(text: str, size: int) -> Any:
    found = None if text.isascii() else _find(text)
    return ImageFont.load_default(size) if found is None else ImageFont.truetype(found.fname, size)


def _find(text: str) -> Any:
    """Return matplotlib's entry of an installed font that has all letters of a text, or None."""
    return _with_letters(frozenset(text) - SELECTORS - {" "})


@functools.lru_cache(maxsize=1024)
def _with_letters(letters: frozenset[str]) -> Any:
    from matplotlib import font_manager

    def found() -> Any:
        fonts = [font for font in font_manager.fontManager.ttflist if font.style == "normal"]
        fonts = [font for font in fonts if not font.name.startswith(STAND_INS)]
        fonts.sort(key=lambda font: (font.name != "DejaVu Sans", abs(_weight(font) - 400), font.name))
        return next((font for font in fonts if letters <= _letters_of(font.fname)), None)

    if (font := found()) is not None:
        return font
    known = {font.fname for font in font_manager.fontManager.ttflist}  # as it was when matplotlib first looked
    for path in set(font_manager.findSystemFonts()) - known:
        try:
            font_manager.fontManager.addfont(path)
        except (OSError, RuntimeError, NotImplementedError, TypeError, ValueError):  # one that matplotlib cannot use
            continue
    return found()


def _weight(font: Any) -> int:
    return font.weight if isinstance(font.weight, int) else 400


@functools.cache
def _letters_of(path: str) -> frozenset[str]:
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(map(chr, FT2Font(path).get_charmap()))
    except (OSError, RuntimeError):  # gone since, or damaged
        return frozenset()
