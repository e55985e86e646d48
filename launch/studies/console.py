"""A study on the console: what it does, and at its end what became of the paper's claims."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.table import Table
from rich.text import Text


class Study(Protocol):
    """A study with `say` as the one way to say what it is doing."""

    say: Any

    def run(self) -> dict[str, Any]: ...


def run_and_show(study: Study, out: str) -> dict[str, Any]:
    """Runs a study and prints its claims; returns the summary."""
    console = Console(highlight=False)
    study.say = lambda text: console.print(text, style="dim")
    summary = study.run()
    table = Table("claim", "status", "measured", box=None, header_style="bold")
    for claim in summary["claims"]:
        table.add_row(Text(claim["claim"]), Text(claim["status"]), Text(claim["measured"]))
    console.print(table)
    console.print(Text(f"report: {Path(out) / 'report' / 'index.html'}"))
    return summary
