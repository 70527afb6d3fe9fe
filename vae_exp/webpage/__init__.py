"""Compose web pages that are one file: script, style and data inside, nothing fetched, no markup from strangers."""

import html
import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
# Whatever a name or a configuration says, the browser fetches nothing and sends nothing.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'"


def compose(
    title: str, styles: list[Path], scripts: list[Path], data: dict[str, Any], later: dict[str, Any], body: str = ""
) -> str:
    """Return a page whose scripts find each part of the data as JSON in the element of its name.

    The scripts run before what comes `later` has been read. The body is markup of ours.
    """
    style, script = _read([HERE / "base.css", *styles]), _read([HERE / "base.js", *scripts])
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{html.escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        "<noscript>This page draws itself with JavaScript, which is switched off here.</noscript>\n"
        f"{body}{_elements(data)}"
        f'<script>\n"use strict";\n(() => {{\n{script}}})();\n</script>\n'
        f"{_elements(later)}</body>\n</html>\n"
    )


def _read(paths: list[Path]) -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in paths)


def _elements(data: dict[str, Any]) -> str:
    """Return JSON in elements: without < nothing in it can end one, and ASCII can write any name."""
    texts = {}
    for name, value in data.items():
        texts[name] = json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return "".join(f'<script type="application/json" id="{name}">{text}</script>\n' for name, text in texts.items())
