"""Who may ask, and what a page may do: hosts, origins, the token, and the headers of every answer.

The explorer listens on this machine alone unless it is told otherwise. A page of another site cannot read from it
under a name of its own (DNS rebinding: the Host must be this machine's) nor make it work (the Origin of what changes
something must be the explorer's own). Where it is told to listen on a network, a token stands before everything.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
COOKIE = "headwater_explorer"
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    # With `no-referrer` a form's own Origin would arrive as `null`.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True, slots=True)
class Guard:
    """The rules.

    Attributes:
        token: asked for where it is not empty; then the Host may be any.
    """

    token: str = ""

    def refusal(self, method: str, headers: Mapping[str, str], cookies: Mapping[str, str]) -> tuple[int, str] | None:
        """Why a request is refused (status, words); None where it may pass."""
        host = headers.get("host", "")
        if self.token:
            if not same(cookies.get(COOKIE, ""), self.token):
                return 401, "Open the address that `headwater explore` printed: it ends in the token."
        elif hostname(host) not in LOOPBACK:
            return 421, "This explorer answers on 127.0.0.1 and localhost alone."
        if method not in ("GET", "HEAD") and not own_origin(headers, host):
            return 403, "Only the explorer's own pages may ask."
        return None


def hostname(host: str) -> str:
    """The name in a Host header, without the port."""
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0].lower()


def own_origin(headers: Mapping[str, str], host: str) -> bool:
    """Whether what changes something comes from a page of this very host."""
    origin = headers.get("origin", "")
    return bool(host) and origin in (f"http://{host}", f"https://{host}")


def same(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode(), wanted.encode())
