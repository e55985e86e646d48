"""Which rank collects which part of a corpus: the same number of tokens each, about."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence

import numpy as np

from headwater.train.stream.passages import PassageSet

READ_AT_ONCE = 1 << 20
"""Passages whose lengths are in memory at a time, about."""


def tokens_of(passages: PassageSet, spans: Iterable[tuple[int, int]]) -> list[int]:
    """Tokens of parts [start, stop) of a corpus, one passage or more each."""
    sums: list[int] = []
    held: list[np.ndarray] = []

    def count() -> None:
        if held:
            lengths = passages.lengths_of(np.concatenate(held)).astype(np.int64)
            begins = np.cumsum([0, *map(len, held[:-1])])
            sums.extend(np.add.reduceat(lengths, begins).tolist())
            held.clear()

    for start, stop in spans:
        held.append(np.arange(start, stop))
        if sum(map(len, held)) >= READ_AT_ONCE:
            count()
    count()
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
