"""The page as one file: its style, its script and the records of the runs, with nothing to fetch."""

import json
from pathlib import Path
from typing import Any

from vae_exp.compare import comparable
from vae_exp.compare.report.records import records
from vae_exp.compare.runs import SCORES, Run

HERE = Path(__file__).parent
# In the order in which they are read: each stands on those before it.
SCRIPTS = (
    "elements",
    "scales",
    "marking",
    "filter",
    "table",
    "curves",
    "parallel",
    "heat_map",
    "over_key",
    "trade_off",
    "pictures",
    "run_page",
    "page",
)
# Whatever a name or a configuration says, the browser fetches nothing and sends nothing.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'"


def page(views: list[list[Run]], count: int, columns: list[str] | None = None) -> str:
    """Return the page of `count` runs. Views are the same runs one by one and folded over seeds: the first is shown.

    Runs that do not compare, of other data or under another likelihood, are in sections of their own. Columns that
    the user did not choose are those that say something about a section, in the order in which people look for them.
    """
    drawn, pictures = records(views, columns)
    held = {
        "count": count,
        "whySeveral": comparable.describe_groups(views[0]),
        "views": drawn,
        "scores": SCORES,
        "sizes": [(picture.width, picture.height) for picture in pictures],
    }
    script = "\n".join((HERE / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{count} VAE run{'s' if count != 1 else ''}</title>\n"
        f"<style>\n{(HERE / 'page.css').read_text(encoding='utf-8')}</style>\n</head>\n<body>\n"
        "<noscript>This page draws itself with JavaScript, which is switched off here.</noscript>\n"
        f'<script type="application/json" id="runs">{_json(held)}</script>\n'
        f'<script>\n"use strict";\n(() => {{\n{script}}})();\n</script>\n'
        # Last, because they are nearly all of the file: tables and curves are there before they are read.
        f'<script type="application/json" id="pictures">{_json([picture.data for picture in pictures])}</script>\n'
        "</body>\n</html>\n"
    )


def _json(value: Any) -> str:
    """Return JSON to put inside a page: without < nothing in it can end the element, and ASCII can write any name."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
