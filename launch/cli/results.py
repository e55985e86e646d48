"""Results in an object store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headwater.launch.cli.front import load

Address = Annotated[str, typer.Argument(help="s3://BUCKET/PREFIX")]


def send(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A run, a study or a sweep.")], address: Address
) -> None:
    """Put results (report, tables, traces, metrics; no checkpoints or rows) into an object store."""
    count = load("headwater.launch.results:send_results")(directory, address)
    typer.echo(f"{address}: {count} files")


def fetch(address: Address, directory: Annotated[Path, typer.Argument(metavar="DIR", help="A new directory.")]) -> None:
    """Bring results that were sent, each file compared with its hash."""
    count = load("headwater.launch.results:fetch_results")(address, directory)
    typer.echo(f"{directory}: {count} files")
