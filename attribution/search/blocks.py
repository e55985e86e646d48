"""One pass over the stored rows, as blocks of scores; memory is bounded by the block."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from headwater.attribution.index.codecs.base import Fields
from headwater.attribution.index.codecs.plain import Float32Codec
from headwater.attribution.index.encoding import directions_and_norms
from headwater.attribution.index.reader import Index
from headwater.attribution.rows.checks import require_finite
from headwater.attribution.search.distributed import rank_and_world
from headwater.attribution.search.options import ScanOptions, Source, check_sources, device_of
from headwater.attribution.search.reading import moved_ahead, read_ahead
from headwater.attribution.search.scorer import BlockScorer, PreparedQueries, prepare_queries

BLOCK_BYTES = 32 << 20
"""Bytes of one decoded block of rows and its scores: a usual last-level cache; half of it takes a tenth longer."""


class Scan:
    """One pass over the sources' rows, as blocks of scores.

    Attributes:
        device: where the blocks are multiplied.
        scanned: passages that this rank has compared.
        bytes_read: of their stored rows.
        prepare_seconds: what the queries took before the first block.
    """

    def __init__(self, sources: Sequence[Source], options: ScanOptions) -> None:
        began = time.perf_counter()
        self.sources, self.options = list(sources), options
        check_sources(self.sources, options)
        self.queries = len(sources[0].queries)
        self.passages = sources[0].index.passages
        self.complete = all(source.index.complete for source in sources)
        self.prepared: list[PreparedQueries] = [
            prepare_queries(source.index, source.queries, options.scoring, source.task_queries) for source in sources
        ]
        self.device = device_of(options, self.queries)
        self.codecs = [options.codec or source.index.codecs[0] for source in sources]
        self.scorers = [
            BlockScorer(prepared, source.index.codec(codec), device=self.device)
            for prepared, source, codec in zip(self.prepared, self.sources, self.codecs, strict=True)
        ]
        self.scanned = self.bytes_read = 0
        self.prepare_seconds = time.perf_counter() - began

    @property
    def block_rows(self) -> int:
        """Rows of a block, so that it and its scores stay in the processor's cache."""
        working = max(
            source.index.codec(codec).working_bytes for source, codec in zip(self.sources, self.codecs, strict=True)
        )
        return max(BLOCK_BYTES // (working + 8 * self.queries), 16)

    @cached_property
    def shards(self) -> list[tuple[int, int]]:
        """The parts of the first source's shards that every other source holds as well."""
        shards = self.sources[0].index.shards(self.codecs[0])
        for source, codec in zip(self.sources[1:], self.codecs[1:], strict=True):
            if not source.index.complete:
                others = source.index.shards(codec)
                cut = [(max(a, c), min(b, d)) for a, b in shards for c, d in others]
                shards = [(a, b) for a, b in cut if a < b]
        return shards

    def pieces(self) -> Iterator[tuple[int, int]]:
        """This rank's blocks, [start, stop): they are cut before they are dealt out, so that they are the same on any
        number of ranks, and each rank has a run of them."""
        rank, world = rank_and_world()
        rows, place = self.block_rows, 0
        counts = [-(-(last - first) // rows) for first, last in self.shards]
        low, high = (sum(counts) * each // world for each in (rank, rank + 1))
        for (first, last), count in zip(self.shards, counts, strict=True):
            for block in range(max(low - place, 0), min(high - place, count)):
                yield first + block * rows, min(first + (block + 1) * rows, last)
            place += count

    def blocks(self) -> Iterator[tuple[int, int, Tensor]]:
        """(start, stop, scores float32 [stop - start, Q] on the device) of this rank's blocks, but for those that
        `where` has nothing of."""
        went_by = 0
        sources = [(source.index, codec) for source, codec in zip(self.sources, self.codecs, strict=True)]
        blocks = read_ahead(sources, self._wanted())
        if self.device.type != "cpu":
            blocks = moved_ahead(blocks, self.device)
        for start, stop, fields in blocks:
            yield start, stop, self._scores(start, fields)
            went_by += stop - start
            if self.options.watch is not None:
                self.options.watch(went_by, self.passages)

    def _wanted(self) -> Iterator[tuple[int, int]]:
        """The pieces of which something is asked."""
        for start, stop in self.pieces():
            here = stop - start
            if self.options.where is not None:
                here = int(self.options.where.passing(start, stop).sum())
            self.scanned += here
            if here:
                yield start, stop

    def _scores(self, start: int, fields: Sequence[Fields]) -> Tensor:
        total_NQ: Tensor | None = None
        for source, scorer, stored in zip(self.sources, self.scorers, fields, strict=True):
            self.bytes_read += sum(value.nbytes for value in stored.values())
            scores_NQ = scorer.scores(stored)
            if source.weight != 1:
                scores_NQ *= source.weight
            total_NQ = scores_NQ if total_NQ is None else total_NQ.add_(scores_NQ)
        assert total_NQ is not None
        if not bool(torch.isfinite(total_NQ).all()):
            require_finite(total_NQ, start, "passages' scores")
        return total_NQ

    def single(self, passages: np.ndarray) -> tuple[Tensor, Tensor]:
        """First-stage scores of single passages (int64 [n], ascending), and the products of the norms in them, which
        bound them: both float32 [n, Q]."""
        scores_NQ, bounds_NQ = (torch.zeros(len(passages), self.queries) for _ in range(2))
        for source, scorer, codec in zip(self.sources, self.scorers, self.codecs, strict=True):
            fields = self._there(source.index.gather(codec, passages))
            scores_NQ += source.weight * scorer.scores(fields).cpu()
            bounds_NQ += abs(source.weight) * scorer.bounds(fields).cpu()
        return scores_NQ, bounds_NQ

    def rescored(self, passages: np.ndarray, place_P: Tensor, query_P: Tensor) -> Tensor:
        """Scores of pairs in the second stage's form, float32 [P].

        Args:
            passages: int64 [n], ascending.
            place_P, query_P: int64 [P], the place in `passages` and the query of each pair.
        """
        total_P = torch.zeros(len(place_P))
        for source, scorer in zip(self.sources, self._second_stage, strict=True):
            if self.options.rescore == "recompute":
                assert source.recompute is not None
                raw_ND = source.recompute(passages).float()
                require_finite(raw_ND, what="recomputed rows")
                fields = fields_of_rows(source.index, raw_ND)
            else:
                fields = source.index.gather(scorer.codec.name, passages)
            self.bytes_read += sum(value.nbytes for value in fields.values())
            pairs = place_P.to(self.device), query_P.to(self.device)
            total_P += source.weight * scorer.pair_scores(self._there(fields), *pairs).cpu()
        return total_P

    def _there(self, fields: Fields) -> Fields:
        """Stored tensors on the device."""
        return {name: value.to(self.device) for name, value in fields.items()}

    @cached_property
    def _second_stage(self) -> list[BlockScorer]:
        name = self.options.rescore
        assert name is not None
        return [
            BlockScorer(
                prepared,
                Float32Codec(source.index.layout) if name == "recompute" else source.index.codec(name),
                integer=False,
                device=self.device,
            )
            for source, prepared in zip(self.sources, self.prepared, strict=True)
        ]


def fields_of_rows(index: Index, raw_ND: Tensor) -> dict[str, Tensor]:
    """What an index stores of raw rows, float [n, D], with the codec fp32."""
    unit_ND, norms = directions_and_norms(index.whitening, raw_ND)
    return {"row": unit_ND, **norms}
