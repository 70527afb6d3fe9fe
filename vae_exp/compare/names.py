"""Names of runs where there is little room: shortened in the middle, and still apart."""

from collections import Counter


def common_start(texts: list[str]) -> str:
    """Return the longest beginning that all texts share."""
    first, last = min(texts), max(texts)
    alike = next((i for i, pair in enumerate(zip(first, last, strict=False)) if len(set(pair)) > 1), len(first))
    return first[:alike]


def short(text: str, longest: int) -> str:
    """Return the text, or its beginning and its end if it is longer than `longest` characters."""
    if len(text) <= longest:
        return text
    head = (longest - 1) // 2
    return f"{text[:head]}…{text[len(text) - (longest - 1 - head) :]}"


def short_names(names: list[str], longest: int) -> list[str]:
    """Shorten names such as SWEEP/JOB to at most `longest` characters; those that become the same are numbered: …~2."""
    if max(map(len, names), default=0) <= longest:
        return names
    above, last = zip(*(name.rpartition("/")[::2] for name in names), strict=True)
    start = common_start([*set(above)])  # of several sweeps the day
    above = [f"…{folder[len(start) :]}" if len(start) > 3 and len(set(above)) > 1 else folder for folder in above]
    above = _apart(above, longest // 4, longest // 2)
    room = longest - max(len(folder) + 1 if folder else 0 for folder in above)
    last = _apart([*last], room // 2, room)
    shortened = [f"{folder}/{name}" if folder else name for folder, name in zip(above, last, strict=True)]
    count, of_name = Counter(shortened), Counter[str]()
    for i, name in enumerate(shortened):
        of_name[name] += 1
        if count[name] > 1:
            suffix = f"~{of_name[name]}"
            shortened[i] = short(name, longest - len(suffix)) + suffix
    return shortened


def _apart(names: list[str], shortest: int, longest: int) -> list[str]:
    """Shorten names to one length: as short as keeps different ones different, and at most `longest` characters."""
    for length in range(max(4, shortest), longest):
        shortened = [short(name, length) for name in names]
        if len(set(shortened)) == len(set(names)):
            return shortened
    return [short(name, longest) for name in names]
