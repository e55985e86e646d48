"""The explorer as files: the same pages, written once, for any web host; without questions to the model."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path

from headwater.attribution.explorer.drawn import ASSETS, VIEWS, csv_lines, html, json_lines
from headwater.attribution.explorer.holdings import Holdings, find
from headwater.attribution.explorer.links import FileLinks
from headwater.attribution.explorer.pages.base import Site, View
from headwater.attribution.explorer.saving import pair_lines
from headwater.configs.errors import UserError
from headwater.train.artifacts import atomic_path, require_empty

PAGES = 30_000
"""Written at most."""
SAVED = ("browse", "compare", "sources", "watch")
"""Pages whose figures are written as JSON and CSV beside them."""


def export(paths: Sequence[str | Path], out: Path, *, say: Callable[[str], None] = print, most: int = PAGES) -> int:
    """Writes the pages of what lies at some paths into a new directory; gives their number.

    Raises:
        UserError: the directory is there and not empty, or there is nothing to show.
    """
    require_empty(out)
    holdings = find(paths)
    for entry in holdings.sets.values():
        entry.open()  # a file that cannot be read is said now, not on some page
    with atomic_path(out) as part:
        part.mkdir(parents=True)
        site = file_site(holdings, most)
        written = write_pages(site, site.links, part)  # type: ignore[arg-type]
        for name, (path, _) in ASSETS.items():
            shutil.copyfile(path, part / name)
        for number, (name, entry) in enumerate(holdings.sets.items()):
            with open(part / f"results-{number}.jsonl", "w", encoding="utf-8") as file:
                file.writelines(pair_lines(site, {"set": name}))
            say(f"results-{number}.jsonl: {entry.label}")
    say(f"{out}: {written:,} pages; open {out / 'index.html'}")
    return written


def file_site(holdings: Holdings, most: int) -> Site:
    home = "browse" if holdings.sets else "watch"
    if not holdings.sets and not holdings.probed:
        raise UserError("there is nothing to write: an index alone can only be asked", fix="serve it, without --export")
    results = frozenset(name for name, entry in holdings.sets.items() if entry.kind == "results")
    return Site(holdings, FileLinks(home, results, next(iter(holdings.sets), ""), most))


def write_pages(site: Site, links: FileLinks, folder: Path) -> int:
    """Writes every page that can be reached from the first one."""
    links("")
    written = 0
    while written < len(links.wanted):
        for file, (page, params) in list(links.wanted.items())[written:]:
            view = VIEWS[page](site, params)
            (folder / file).write_text(html(site, view, saved(view, file, folder)), encoding="utf-8")
            written += 1
    if links.left_out:
        message = f"{len(links.wanted):,} pages were written, and no more."
        view = View(
            "trouble", "Left out", "trouble", {"heading": "This page was left out", "message": message, "again": {}}
        )
        (folder / "left-out.html").write_text(html(site, view), encoding="utf-8")
    return written


def saved(view: View, file: str, folder: Path) -> list[tuple[str, str]]:
    """Writes what a page shows as JSON and CSV; gives the links."""
    if view.page not in SAVED or view.rows is list:
        return []
    stem = file.removesuffix(".html")
    for ending, lines in (("json", json_lines(view)), ("csv", csv_lines(view))):
        with open(folder / f"{stem}.{ending}", "w", encoding="utf-8", newline="") as out:
            out.writelines(chain(lines))
    return [(f"{stem}.json", "JSON"), (f"{stem}.csv", "CSV")]
