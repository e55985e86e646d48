"""Which rank collects which part of a corpus: the same number of tokens each, about."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np

from headwater.train.stream.passages import PassageSet

READ_AT_ONCE = 1 << 20
"""Passages whose lengths are in memory at a time."""


def tokens_of(passages: PassageSet, bounds: np.ndarray) -> np.ndarray:
    """Tokens of parts that follow one another.

    Args:
        bounds: int64 [n + 1], the passages at which parts begin, rising, then where the last ends.

    Returns:
        int64 [n].
    """
    sums = np.zeros(len(bounds) - 1, dtype=np.int64)
    for start in range(int(bounds[0]), int(bounds[-1]), READ_AT_ONCE):
        numbers = np.arange(start, min(start + READ_AT_ONCE, int(bounds[-1])))
        owners = np.searchsorted(bounds, numbers, side="right") - 1
        np.add.at(sums, owners, passages.lengths_of(numbers))
    return sums


def dealt(tokens: Sequence[int], ranks: int) -> list[list[int]]:
    """The parts of each rank, rising: the largest first, each to the rank that has least so far (Graham 1969)."""
    shares: list[list[int]] = [[] for _ in range(ranks)]
    least = [(0, 0, rank) for rank in range(ranks)]
    for part in sorted(range(len(tokens)), key=lambda part: (-tokens[part], part)):
        held, count, rank = heapq.heappop(least)
        shares[rank].append(part)
        heapq.heappush(least, (held + tokens[part], count + 1, rank))
    return [sorted(share) for share in shares]
