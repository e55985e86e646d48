"""What need not wait: reading what comes next, and writing what came before, each in a thread of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar

Item = TypeVar("Item")
Read = TypeVar("Read")


def ahead(items: Iterable[Item], read: Callable[[Item], Read]) -> Iterator[tuple[Item, Read]]:
    """Each item with what `read` makes of it; that of the next is made meanwhile. What `read` raises is raised when its
    item's turn comes."""
    with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as reader:
        before: tuple[Item, Future[Read]] | None = None
        for item in items:
            following = item, reader.submit(read, item)
            if before is not None:
                yield before[0], before[1].result()
            before = following
        if before is not None:
            yield before[0], before[1].result()


class Behind:
    """Runs one thing after the other in the background; at most one waits, so that memory is bounded.

    What one of them raises is raised by the next call, or at the end.
    """

    def __init__(self) -> None:
        self._runner = ThreadPoolExecutor(1, thread_name_prefix="write-behind")
        self._running: Future[Any] | None = None

    def run(self, action: Callable[..., Any], *arguments: Any) -> None:
        """Starts something as soon as what was started before is done."""
        self._wait()
        self._running = self._runner.submit(action, *arguments)

    def _wait(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            running.result()

    def __enter__(self) -> Behind:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            if kind is None:
                self._wait()
        finally:
            self._runner.shutdown()
