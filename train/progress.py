"""One steady progress for everything that takes long: a bar for whoever watches, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")

EVERY = 30.0
"""Seconds between two lines in a log."""


def track(items: Sequence[T] | Iterable[T], what: str) -> Iterator[T]:
    """Yields the items, and says how far it is and when it will end: as a bar, or in a log every `EVERY` seconds."""
    items = list(items)
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as bar:
            yield from bar.track(items, description=what)
        return
    pace = Pace(len(items))
    said = pace.began
    for number, item in enumerate(items):
        yield item
        now = time.monotonic()
        if now - said >= EVERY and number + 1 < len(items):
            said = now
            print(f"{what}: {pace.at(number + 1)}", file=sys.stderr, flush=True)


class Pace:
    """How far a piece of work is, and how long the rest will take at the pace so far.

    Attributes:
        total: how much there is to do.
        first: how much of it was done before it began here.
    """

    def __init__(self, total: int, first: int = 0) -> None:
        self.total, self.first, self.began = total, first, time.monotonic()

    def left(self, done: int) -> float | None:
        """Seconds that the rest will take; None while nothing is done."""
        if done <= self.first:
            return None
        return (time.monotonic() - self.began) / (done - self.first) * (self.total - done)

    def at(self, done: int) -> str:
        """`120 of 480 (25%), 1:30 gone, about 4:30 left`."""
        left = self.left(done)
        share = f" ({done / self.total:.0%})" if self.total else ""
        text = f"{done:,} of {self.total:,}{share}, {clock(time.monotonic() - self.began)} gone"
        return text + (f", about {clock(left)} left" if left else "")


def clock(seconds: float) -> str:
    """`4:05` minutes, or `2:03:00` hours."""
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
