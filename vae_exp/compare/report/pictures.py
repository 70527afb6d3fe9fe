"""The pictures of all runs, each stored once, and no more of them than a page may weigh."""

import base64
import hashlib
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from vae_exp.files import open_regular
from vae_exp.training.run_dir import IMAGES

FIRST = ("test_reconstructions", "samples")  # what the sheet of all runs shows


@dataclass
class Picture:
    """A PNG file as base64, with its size in pixels: nothing in the page moves when it is drawn."""

    data: str
    width: int
    height: int


@dataclass
class Shown:
    """The pictures of one run: (epoch, place in the page's list) by name, and how many there was no room for."""

    by_name: dict[str, list[tuple[float, int]]] = field(default_factory=dict)
    left_out: int = 0


@dataclass
class _Candidate:
    path: Path
    name: str
    step: int


def gather(folders: list[Path], epoch_of: list[dict[int, float]], most: int) -> tuple[list[Picture], list[Shown]]:
    """Return pictures of at most `most` bytes, and which of them each run has; the folders of the best runs come first.

    If there is no room for all, every run gets its last reconstructions and samples before any gets another picture,
    then the last ones of other kinds, then the first epoch, the middle one, the quarters.
    """
    held: list[Picture] = []
    place: dict[str, int] = {}  # by content: a run that was copied, or drew the same, costs nothing
    shown = [Shown() for _ in folders]
    turns: dict[int, list[tuple[int, _Candidate]]] = {}
    for number, folder in enumerate(folders):
        for turn, candidate in _in_turn(folder):
            turns.setdefault(turn, []).append((number, candidate))
    room = most
    for turn in sorted(turns):
        for number, candidate in turns[turn]:
            if _size(candidate.path) > room:
                shown[number].left_out += 1
                continue
            content = candidate.path.read_bytes()
            digest = hashlib.sha256(content).hexdigest()
            if digest not in place:
                place[digest] = len(held)
                held.append(Picture(base64.b64encode(content).decode(), *_width_and_height(content)))
                room -= len(held[-1].data)
            epoch = epoch_of[number].get(candidate.step, candidate.step)
            shown[number].by_name.setdefault(candidate.name, []).append((epoch, place[digest]))
    for each in shown:
        each.by_name = {name: sorted(each.by_name[name]) for name in sorted(each.by_name, key=_order)}
    return held, shown


def _in_turn(folder: Path) -> Iterator[tuple[int, _Candidate]]:
    """Yield the pictures of a run, each with its turn; those with the lowest turn come first."""
    by_name: dict[str, list[_Candidate]] = {}
    for path in sorted((folder / IMAGES).glob("*.png")):
        if (found := re.fullmatch(r"(.+)_(\d+)", path.stem)) and _is_png(path):
            by_name.setdefault(found[1], []).append(_Candidate(path, found[1], int(found[2])))
    for name, candidates in by_name.items():
        candidates.sort(key=lambda candidate: candidate.step)
        for depth, place in _coarse_to_fine(len(candidates)):
            yield (0 if depth == 0 and name in FIRST else 1 + depth), candidates[place]


def _coarse_to_fine(count: int) -> Iterator[tuple[int, int]]:
    """Yield (turn, place) of the last one, the first, the middle one, the quarters, and so on until each came once."""
    told: set[int] = set()
    depth, places = 0, [count - 1]
    while len(told) < count:
        for place in places:
            if place not in told:
                told.add(place)
                yield depth, place
        depth += 1
        parts = 2 ** (depth - 2) if depth > 1 else 1
        places = [0] if depth == 1 else [round(part * (count - 1) / (2 * parts)) for part in range(1, 2 * parts, 2)]
        if parts > count:  # rounding may leave a few out
            places = [*range(count)]


def _is_png(path: Path) -> bool:
    """Return whether a browser can show the file: no folder, no broken link, no file that was cut off."""
    try:
        with open_regular(path) as file:
            return file.read(8) == b"\x89PNG\r\n\x1a\n" and file.seek(0, 2) > 24
    except OSError:
        return False


def _width_and_height(png: bytes) -> tuple[int, int]:
    """Read the width and the height in pixels from the head of a PNG file."""
    return struct.unpack(">II", png[16:24])


def _size(path: Path) -> int:
    """Return the size of a file as base64, in bytes."""
    return -(-path.stat().st_size // 3) * 4


def _order(name: str) -> tuple[int, str]:
    return (FIRST.index(name) if name in FIRST else len(FIRST), name)
