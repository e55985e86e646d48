"""What every page is made of: its parameters, its links, and what it gives to the template, to JSON and to CSV."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from headwater.attribution.drawing.chart import Axis
from headwater.attribution.explorer.holdings import Holdings, Home, OpenedSet
from headwater.configs.errors import UserError

PAGES = {
    "ask": "Ask",
    "browse": "Browse",
    "compare": "Compare",
    "watch": "Watch",
    "sources": "Sources",
}
"""Pages of the navigation, with their names; `question` and `read` are reached from them."""

Params = Mapping[str, str]


class Links(Protocol):
    """Addresses of pages: of a server, or of files. `post` is where questions go."""

    live: bool
    post: str

    def asset(self, name: str) -> str:
        """The address of a style sheet, the script, the icon."""
        ...

    def __call__(self, page: str, /, **params: Any) -> str:
        """The address of a page; parameters that are empty are left out."""
        ...


@dataclass(frozen=True)
class Site:
    """What pages are made from.

    Attributes:
        desk: takes questions; None where none can be asked.
    """

    holdings: Holdings
    links: Links
    desk: Any = None


@dataclass(frozen=True, slots=True)
class View:
    """A page before it is drawn.

    Attributes:
        page: its name in addresses.
        template: without its ending.
        context: for the template.
        rows: makes what is shown, flat, for JSON and CSV.
        params: its address, in full.
    """

    page: str
    title: str
    template: str
    context: dict[str, Any]
    rows: Callable[[], Iterable[dict[str, Any]]] = list
    params: dict[str, Any] = field(default_factory=dict)


def text(params: Params, name: str, limit: int = 400) -> str:
    """A parameter as text.

    Raises:
        UserError: it is longer than the limit.
    """
    value = params.get(name, "")
    if len(value) > limit:
        raise UserError(f"{name} is too long", got=f"{len(value):,} characters", expected=f"at most {limit:,}")
    return value


def number(params: Params, name: str, default: int, low: int = 0, high: int = 1 << 40) -> int:
    """A parameter as a whole number, held inside its range; what is no number is the default."""
    value = params.get(name, "")
    return min(high, max(low, int(value))) if value.isascii() and value.isdigit() and len(value) < 13 else default


def axis_of(home: Home | None) -> Axis:
    """The axis of training's steps."""
    return Axis(0, home.last_step if home is not None else 1)


def opened_set(site: Site, params: Params, name: str = "set") -> tuple[str, OpenedSet]:
    entry = site.holdings.set_of(text(params, name))
    return entry.name, entry.open()


def set_choices(site: Site) -> list[tuple[str, str]]:
    return [(name, entry.label) for name, entry in site.holdings.sets.items()]


def ordinal(place: int) -> str:
    """1 -> 1st."""
    ending = "th" if 10 <= place % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(place % 10, "th")
    return f"{place:,}{ending}"
