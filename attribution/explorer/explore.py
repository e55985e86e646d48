"""`headwater explore`: opens what it is given, serves it on this machine, and shows it; or writes it as files.

headwater explore runs/demo
headwater explore --export site runs/demo
"""

from __future__ import annotations

import secrets
import socket
import threading
import webbrowser
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from headwater.attribution.explorer.guard import LOOPBACK, Guard
from headwater.attribution.explorer.holdings import Holdings, find
from headwater.attribution.explorer.links import ServerLinks
from headwater.attribution.explorer.live import Desk
from headwater.attribution.explorer.pages.base import Site
from headwater.configs.errors import UserError

PORT = 8420


def site_of(holdings: Holdings) -> Site:
    """A site that takes questions, where there is an index to ask."""
    askable = any(not entry.trouble for entry in holdings.indexes.values())
    return Site(holdings, ServerLinks(), Desk(holdings) if askable else None)


def bound(host: str, port: int | None) -> socket.socket:
    """A listening socket: at the port asked for, or at the first free one from `PORT` on.

    Raises:
        UserError: the port is taken, or the host is not this machine.
    """
    for tried in [port] if port is not None else [*range(PORT, PORT + 20), 0]:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.socket(family)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind((host, tried))
            return listening
        except OSError as error:
            listening.close()
            if port is not None or tried == 0:
                raise UserError(
                    f"the explorer cannot listen on {host}:{tried}",
                    got=error,
                    fix="choose another --port, or leave it out",
                ) from None
    raise AssertionError


def serve(
    paths: Sequence[str | Path],
    *,
    host: str = "",
    port: int | None = None,
    browser: bool = True,
    say: Callable[[str], None] = print,
) -> None:
    """Serves until it is interrupted.

    Args:
        paths: runs, indexes, files of results.
        host: an address to listen on instead of 127.0.0.1; a token is then asked for.
        port: the first free one from 8420 on if not given.
        browser: open one.
    """
    import uvicorn

    from headwater.attribution.explorer.server import make_app

    holdings = find(paths)
    guard = Guard(secrets.token_urlsafe(24) if host else "")
    listening = bound(host or LOOPBACK[0], port)
    name = host if host not in ("", "0.0.0.0", "::") else LOOPBACK[0] if not host else socket.gethostname()
    name = f"[{name}]" if ":" in name else name
    address = f"http://{name}:{listening.getsockname()[1]}/" + (f"?token={guard.token}" if guard.token else "")
    site = site_of(holdings)
    threading.Thread(target=holdings.warm, name="explorer files", daemon=True).start()
    say(f"{holdings.title}: {address}   (Ctrl-C ends it)")
    if browser:
        threading.Timer(0.3, open_browser, [address]).start()
    config = uvicorn.Config(
        make_app(site, guard),
        log_level="warning",
        access_log=False,
        server_header=False,
        h11_max_incomplete_event_size=256_000,
        timeout_graceful_shutdown=2,
        limit_concurrency=200,
    )
    with suppress(KeyboardInterrupt):  # Ctrl-C is how it ends
        uvicorn.Server(config).run(sockets=[listening])


def open_browser(address: str) -> None:
    """Opens a browser if there is one to see it in; without one nothing is said."""
    try:
        webbrowser.get()
    except webbrowser.Error:
        return
    webbrowser.open(address)
