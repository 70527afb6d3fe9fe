"""The output of `vae-reproduce`: the list of presets, the table of claims, and the same in Markdown."""

from collections.abc import Iterable, Sequence

from vae_exp.compare.published import Preset, Result
from vae_exp.errors import printable

Rows = Sequence[tuple[Preset, list[Result]]]


def listed(found: Rows, changes: Sequence[str]) -> list[str]:
    """Return lines that list each preset: name, claims, source, duration, and what was found so far."""
    lines = []
    for preset, rows in found:
        claims = "; ".join(f"{each.claim.name} {each.claim.text(each.claim.value)}" for each in rows)
        lines += [f"{preset.name}  (about {preset.minutes:g} minutes on one core)", f"    {preset.about}"]
        lines += [f"    claims   {claims}", f"    source   {preset.source}", f"    differs  {preset.differs}"]
        lines += [f"    here     {'; '.join(dict.fromkeys(each.verdict(preset, changes) for each in rows))}", ""]
    return [*lines, "vae-reproduce NAME ... trains, evaluates and compares; all is every one that needs no days."]


def table(found: Rows, changes: Sequence[str]) -> list[str]:
    lines = ["", f"{'':22}{'':31}{'claim':>9}{'within':>8}{'here':>18}   verdict"]
    for preset, claim, here, verdict in _cells(found, changes):
        cells = f"{claim.text(claim.value):>9}{claim.within:>8g}{here:>18}"
        lines.append(f"{preset.name:22}{claim.name:31}{cells}   {verdict}")
    return lines


def markdown(found: Rows, changes: Sequence[str]) -> list[str]:
    """Return the lines of the table in the README."""
    lines = ["| preset | number | claim | here | verdict |", "|---|---|---|---|---|"]
    for preset, claim, here, verdict in _cells(found, changes):
        claimed = f"{claim.text(claim.value)} ± {claim.within:g}"
        lines.append(f"| `{preset.name}` | {claim.name} | {claimed} | {here} | {verdict} |")
    return lines


def _cells(found: Rows, changes: Sequence[str]) -> Iterable[tuple]:
    for preset, rows in found:
        for each in rows:
            yield preset, each.claim, each.text(), printable(each.verdict(preset, changes))
