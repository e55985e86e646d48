"""From a `View` to HTML, JSON or CSV; the same for the server and for files."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from headwater.attribution.explorer.limits import DOWNLOAD_ROWS
from headwater.attribution.explorer.pages.ask import ask
from headwater.attribution.explorer.pages.base import PAGES, Params, Site, View
from headwater.attribution.explorer.pages.browse import browse
from headwater.attribution.explorer.pages.compare import compare
from headwater.attribution.explorer.pages.question import question
from headwater.attribution.explorer.pages.read import read
from headwater.attribution.explorer.pages.sources import sources
from headwater.attribution.explorer.pages.watch import watch

ROOMS = Path(__file__).resolve().parent.parent
VIEWS: dict[str, Callable[[Site, Params], View]] = {
    "ask": ask,
    "browse": browse,
    "question": question,
    "compare": compare,
    "read": read,
    "watch": watch,
    "sources": sources,
}
ASSETS = {
    "look.css": (ROOMS / "drawing" / "look.css", "text/css; charset=utf-8"),
    "explorer.css": (ROOMS / "explorer" / "static" / "explorer.css", "text/css; charset=utf-8"),
    "explorer.js": (ROOMS / "explorer" / "static" / "explorer.js", "text/javascript; charset=utf-8"),
    "icon.svg": (ROOMS / "explorer" / "static" / "icon.svg", "image/svg+xml"),
}
CURRENT = {"question": "browse", "read": "browse"}
"""The page of the navigation that stands for one that is not in it."""


@cache
def environment() -> Any:
    """The templates; whatever comes from the data is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(ROOMS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def navigation(site: Site) -> list[tuple[str, str]]:
    """Pages that there is something for."""
    holdings = site.holdings
    there = {
        "ask": site.links.live and bool(holdings.indexes),  # also where none can be asked: the page says why
        "browse": bool(holdings.sets),
        "compare": len(holdings.sets) > 1,
        "watch": bool(holdings.probed),
        "sources": bool(holdings.sets),
    }
    return [(name, words) for name, words in PAGES.items() if there[name]]


def html(site: Site, view: View, saves: Iterable[tuple[str, str]] = (), **more: Any) -> str:
    """The page.

    Args:
        saves: (address, words) of its downloads.
    """
    context = {
        "answer": None,
        "choice": None,
        "title": view.title,
        "page": view.page,
        "current": CURRENT.get(view.page, view.page),
        "home": site.holdings.title,
        "navigation": navigation(site),
        "link": site.links,
        "asset": site.links.asset,
        "post": site.links.post,
        "live": site.links.live,
        "saves": list(saves),
    }
    return environment().get_template(f"explorer/templates/{view.template}.html").render(context | view.context | more)


def json_lines(view: View) -> Iterator[str]:
    """`{"title", "page", "parameters", "rows": [...]}`, a row a line."""
    parameters = {name: value for name, value in view.params.items() if value not in ("", None)}
    head = json.dumps({"title": view.title, "page": view.page, "parameters": parameters}, ensure_ascii=False)
    yield head[:-1] + ', "rows": ['
    for number, row in enumerate(islice(view.rows(), DOWNLOAD_ROWS)):
        yield ("," if number else "") + "\n" + json.dumps(row, ensure_ascii=False, allow_nan=False)
    yield "\n]}\n"


def csv_lines(view: View) -> Iterator[str]:
    """A table whose first line names the columns. Text that a spreadsheet would run as a formula is quoted."""
    names: list[str] = []
    for number, row in enumerate(islice(view.rows(), DOWNLOAD_ROWS)):
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\r\n")
        if not number:
            names = list(row)
            writer.writerow(names)
        writer.writerow([cell(row.get(name)) for name in names])
        yield out.getvalue()


def cell(value: Any) -> Any:
    if isinstance(value, list):
        return " ".join(map(str, value))
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return "'" + value
    return value
