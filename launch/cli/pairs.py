"""Two runs that differ in one thing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headwater.launch.cli.front import load


def pair(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run directory.")],
    out: Annotated[Path, typer.Argument(metavar="OUT_DIR", help="The run directory of the second run.")],
    fact: Annotated[str, typer.Option(help="Leave out the passages that state this fact (its fact_id) alone.")] = "",
    exclude: Annotated[
        Path | None, typer.Option(help="Leave out what this file lists, as train.exclude takes it.")
    ] = None,
) -> None:
    """Train a run again without its injections, or one fact, and nothing else changed (a minimal pair)."""
    found = load("headwater.launch.pair:make_pair")(run, out, fact, exclude)
    injected = f", {found['injected']:,} of them injected" if found["injected"] else ""
    typer.echo(f"{out}: {found['dropped']:,} visits fewer than {run}{injected}; no other visit differs")
