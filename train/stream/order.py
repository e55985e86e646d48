"""The order of sequences: a pure function of (seed, place), for any number of sequences, with no table and no state.

Place i of the whole training (step * global batch + batch index) gets one sequence. Within a source, every epoch visits
each sequence once, in the order of a permutation computed point by point (a Feistel network over the smallest power of
four that holds the sequences, walked until it falls inside; Black and Rogaway 2002, "Ciphers with arbitrary finite
domains"). Several sources are dealt in blocks of `BLOCK` places: each gets its exact share of every block, at places
shuffled per block.
"""

from __future__ import annotations

import itertools
from functools import lru_cache

import numpy as np

from headwater.train.stream.corpus import SourceSpan

BLOCK = 4096
ROUNDS = 6
_U64 = np.uint64


def mix(value: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64 (Steele, Lea and Flood 2014): uint64 -> uint64, elementwise."""
    with np.errstate(over="ignore"):
        value = (value ^ (value >> _U64(30))) * _U64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> _U64(27))) * _U64(0x94D049BB133111EB)
        return value ^ (value >> _U64(31))


def hashed(*parts: int | np.ndarray) -> np.ndarray:
    """A 64-bit hash of integers (arrays are broadcast): uint64."""
    state = np.array(0, dtype=_U64)
    with np.errstate(over="ignore"):
        for part in parts:
            state = mix(state + np.asarray(part).astype(_U64) + _U64(0x9E3779B97F4A7C15))
    return state


def permuted(positions: np.ndarray, size: int, key: np.ndarray) -> np.ndarray:
    """The images of positions under a pseudo-random permutation of range(size).

    Args:
        positions: int64 [n], each in range(size).
        size: how many things are permuted.
        key: uint64 [n] (or one): which permutation.

    Returns:
        int64 [n].
    """
    half_bits = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    half, mask = _U64(half_bits), _U64((1 << half_bits) - 1)
    value = positions.astype(_U64)
    key = np.broadcast_to(key, value.shape).copy()
    outside = np.ones(value.shape, dtype=bool)
    while outside.any():
        left, right = value[outside] >> half, value[outside] & mask
        for turn in range(ROUNDS):
            left, right = right, left ^ (hashed(key[outside], turn, right) & mask)
        value[outside] = (left << half) | right
        outside = value >= _U64(size)
    return value.astype(np.int64)


class SequenceOrder:
    """Which sequence each place of the training reads.

    Args:
        sources: spans of sequences; a source's share of the places is proportional to weight x sequences.
        seed: the order's seed.
        shard_starts: int64 [shards + 1], the first sequence of each shard; needed with a window.
        window: visit so many shards at a time (in random order, and in random order within), so that a machine holds
            few of them at once; 0 visits all sequences in one random order.
    """

    def __init__(
        self, sources: list[SourceSpan], seed: int, shard_starts: np.ndarray | None = None, window: int = 0
    ) -> None:
        if window and shard_starts is None:
            raise ValueError("a window needs shard_starts")
        self.shard_starts, self.window = shard_starts, window
        self.sources = [source for source in sources if source.sequences and source.weight > 0]
        if not self.sources:
            raise ValueError("no source has a sequence and a weight above zero")
        if len({source.weight for source in self.sources}) == 1 and spans_touch(self.sources):
            # Equal weights are one source: its epochs then visit every sequence exactly once.
            total = sum(source.sequences for source in self.sources)
            self.sources = [SourceSpan("all", 1.0, self.sources[0].first_sequence, total)]
        self.seed = seed
        self.quotas = block_quotas([source.weight * source.sequences for source in self.sources])

    def sequences(self, places: np.ndarray) -> np.ndarray:
        """Sequence numbers of places of the training: int64 [n] -> int64 [n]."""
        blocks, within = np.divmod(np.asarray(places, dtype=np.int64), BLOCK)
        found = np.empty(len(blocks), dtype=np.int64)
        for block in np.unique(blocks).tolist():
            mine = blocks == block
            found[mine] = self._block(block)[within[mine]]
        return found

    @lru_cache(maxsize=4)  # noqa: B019 (an order lives as long as the training)
    def _block(self, block: int) -> np.ndarray:
        """Sequences of the places of one block: int64 [BLOCK]."""
        places = permuted(np.arange(BLOCK), BLOCK, hashed(self.seed, 0x5EED, block))
        owners = np.repeat(np.arange(len(self.quotas)), self.quotas)[places]
        found = np.empty(BLOCK, dtype=np.int64)
        for source, quota in enumerate(self.quotas.tolist()):
            visits = block * quota + np.arange(quota)
            found[owners == source] = self._visited(source, visits)
        return found

    def _visited(self, source: int, visits: np.ndarray) -> np.ndarray:
        """The sequences of a source's visits, counted from the start of the training."""
        span = self.sources[source]
        epochs, positions = np.divmod(visits, span.sequences)
        if not self.window:
            return span.first_sequence + permuted(positions, span.sequences, hashed(self.seed, source, epochs))
        found = np.empty_like(visits)
        for epoch in np.unique(epochs).tolist():
            mine = epochs == epoch
            found[mine] = self._windowed(span, positions[mine], hashed(self.seed, source, epoch))
        return found

    def _windowed(self, span: SourceSpan, positions: np.ndarray, key: np.ndarray) -> np.ndarray:
        """Sequences at positions of an epoch that goes through the shards window by window."""
        assert self.shard_starts is not None
        stop = span.first_sequence + span.sequences
        starts = self.shard_starts[(self.shard_starts >= span.first_sequence) & (self.shard_starts < stop)]
        shards = permuted(np.arange(len(starts)), len(starts), hashed(key, 1))
        starts, sizes = starts[shards], np.diff(starts, append=stop)[shards]
        before = np.cumsum(sizes) - sizes  # sequences of the epoch before each shard, were it read straight through
        begins = before[:: self.window]
        windows = np.searchsorted(begins, positions, side="right") - 1
        found = np.empty_like(positions)
        for number in np.unique(windows).tolist():
            mine = windows == number
            begin = int(begins[number])
            size = (int(begins[number + 1]) if number + 1 < len(begins) else span.sequences) - begin
            place = begin + permuted(positions[mine] - begin, size, hashed(key, 2, number))
            shard = np.searchsorted(before, place, side="right") - 1
            found[mine] = starts[shard] + place - before[shard]
        return found

    def epochs(self, places: int) -> float:
        """How often the average sequence is visited in so many places."""
        return places / sum(source.sequences for source in self.sources)


def spans_touch(sources: list[SourceSpan]) -> bool:
    return all(a.first_sequence + a.sequences == b.first_sequence for a, b in itertools.pairwise(sources))


def block_quotas(shares: list[float]) -> np.ndarray:
    """Places of a block that each source gets: proportional to its share, at least one, `BLOCK` in all."""
    exact = np.array(shares) / sum(shares) * BLOCK
    quotas = np.maximum(1, np.floor(exact)).astype(np.int64)
    by_remainder = np.argsort(-(exact - quotas), kind="stable")
    while quotas.sum() < BLOCK:
        for source in by_remainder[: BLOCK - int(quotas.sum())]:
            quotas[source] += 1
    while quotas.sum() > BLOCK:
        quotas[int(np.argmax(quotas))] -= 1
    return quotas
