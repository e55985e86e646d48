"""Batches that the stream leaves out, such as those in which a training diverged: what comes after moves up."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


def read_ranges(texts: Iterable[str]) -> list[range]:
    """Ranges of batches, counted from 0, as `first-last` (both left out) or one number; in order, joined where they
    meet.

    Raises:
        ValueError: with the text that is not a range.
    """
    given: list[range] = []
    for text in texts:
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first:
            raise ValueError(text)
        given.append(range(first, last + 1))
    joined: list[range] = []
    for each in sorted(given, key=lambda each: each.start):
        if joined and each.start <= joined[-1].stop:
            joined[-1] = range(joined[-1].start, max(joined[-1].stop, each.stop))
        else:
            joined.append(each)
    return joined


def batch_of(step: int, skipped: Sequence[range]) -> int:
    """The batch that is read after `step` updates: the ranges, in order, are passed over."""
    batch = step
    for each in skipped:
        if batch >= each.start:
            batch += len(each)
    return batch


def up_to(batch: int, skipped: Sequence[range]) -> list[range]:
    """What of the ranges lies before a batch."""
    return [range(each.start, min(each.stop, batch)) for each in skipped if each.start < batch]
