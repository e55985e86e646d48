"""The explorer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headwater.configs.errors import UserError
from headwater.launch.cli.front import load


def explore(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Runs, indexes, or JSONL files of results.")],
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port; a free one if not given.")] = None,
    host: Annotated[
        str, typer.Option(help="Listen on this address instead of 127.0.0.1 alone; a token is then asked for.")
    ] = "",
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open a browser, if there is one.")] = True,
    export: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the pages into a new directory instead, for any web host.")
    ] = None,
) -> None:
    """Look at what a run holds, and ask its model where it has an answer from, in a browser."""
    if export is not None:
        if port is not None or host:
            raise UserError("--export writes files: it has no --port and no --host", fix="leave them out")
        load("headwater.attribution.explorer.export:export")(paths, export, say=typer.echo)
        return
    load("headwater.attribution.explorer.explore:serve")(paths, host=host, port=port, browser=browser, say=typer.echo)
