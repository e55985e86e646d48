"""A study on the console: what it does, and at its end what became of the paper's claims."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text


def run_and_show(
    run: Callable[[Callable[[str], None]], dict[str, Any]],
    out: str,
    tables: Callable[[dict[str, Any], int], Sequence[Table]] = lambda summary, width: (),
) -> dict[str, Any]:
    """Runs a study, which is given a way to say what it is doing, and prints its claims; returns the summary.

    Args:
        tables: of a summary, for a console of so many columns; printed before the claims.
    """
    console = Console(highlight=False)
    summary = run(lambda text: console.print(text, style="dim"))
    for each in tables(summary, console.width):
        console.print(each)
    table = Table("claim", "status", "measured", box=None, header_style="bold")
    for claim in summary["claims"]:
        table.add_row(Text(claim["claim"]), Text(claim["status"]), Text(claim["measured"]))
    console.print(table)
    console.print(Text(f"report: {Path(out) / 'report' / 'index.html'}"))
    return summary
