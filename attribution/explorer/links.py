"""Addresses: of the server's pages, which hold their whole state, and of files."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

import xxhash


def query_of(params: dict[str, Any]) -> str:
    """Parameters as a query string; what is empty is left out."""
    return urlencode([(name, str(value)) for name, value in params.items() if value not in ("", None)])


class ServerLinks:
    """Addresses of a running server."""

    live = True
    post = "/ask"

    def __call__(self, page: str, /, **params: Any) -> str:
        query = query_of(params)
        return f"/{page}?{query}" if query else f"/{page}"

    def asset(self, name: str) -> str:
        return f"/assets/{name}"


class FileLinks:
    """Addresses of files beside each other. Every page that is linked to is noted, to be written in its turn."""

    live = False
    post = ""

    def __init__(self) -> None:
        self.wanted: dict[str, tuple[str, dict[str, str]]] = {}

    def __call__(self, page: str, /, **params: Any) -> str:
        page = page or self.home
        given = {name: str(value) for name, value in params.items() if value not in ("", None)}
        query = urlencode(sorted(given.items()))
        name = f"{page}-{xxhash.xxh3_64_hexdigest(query.encode('utf-8', 'replace'))}" if query else page
        file = "index.html" if page == self.home and not query else f"{name}.html"
        self.wanted.setdefault(file, (page, given))
        return file

    home = "browse"

    def asset(self, name: str) -> str:
        return name
