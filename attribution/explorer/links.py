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
    """Addresses of files beside each other. Every page that is linked to is noted, to be written in its turn.

    Args:
        home: the page that is index.html.
        results: names of the sets that have texts and scores; of their answers each passage gets a page of its own,
            while what is only ranked shares one for all questions.
        first: the set that single questions are compared with.
        most: pages written; a link to a further one leads to `left-out.html`.
    """

    live = False
    post = ""

    def __init__(self, home: str, results: frozenset[str], first: str, most: int) -> None:
        self.home, self.results, self.first, self.most = home, results, first, most
        self.wanted: dict[str, tuple[str, dict[str, str]]] = {}
        self.left_out = 0

    def __call__(self, page: str, /, **params: Any) -> str:
        page = page or self.home
        given = {name: str(value) for name, value in params.items() if value not in ("", None)}
        given = self._kept(page, given)
        query = urlencode(sorted(given.items()))
        name = f"{page}-{xxhash.xxh3_64_hexdigest(query.encode('utf-8', 'replace'))}" if query else page
        file = "index.html" if page == self.home and not query else f"{name}.html"
        if file not in self.wanted:
            if len(self.wanted) >= self.most:
                self.left_out += 1
                return "left-out.html"
            self.wanted[file] = (page, given)
        return file

    def _kept(self, page: str, given: dict[str, str]) -> dict[str, str]:
        """What of an address is a page of its own among files."""
        if page == "question":
            return {name: given[name] for name in ("set", "q") if name in given}
        if page == "read" and given.get("set") not in self.results:
            return {"p": given.get("p", "")}
        if page == "sources" and given.get("set") not in self.results:
            return {name: given[name] for name in ("set",) if name in given}
        if page == "compare" and "q" in given and given.get("a") != self.first:
            if given.get("b") != self.first:
                return {name: given[name] for name in ("a", "b")}
            return {**given, "a": given["b"], "b": given["a"]}
        return given

    def asset(self, name: str) -> str:
        return name
