"""One pass over the stored rows, as blocks of scores; memory is bounded by the block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from headwater.attribution.index.codecs.plain import Float32Codec
from headwater.attribution.index.encoding import directions_and_norms
from headwater.attribution.index.reader import Index
from headwater.attribution.rows.checks import require_finite
from headwater.attribution.search.distributed import rank_and_world
from headwater.attribution.search.options import ScanOptions, Source, check_sources
from headwater.attribution.search.scorer import BlockScorer, PreparedQueries, prepare_queries

BLOCK_BYTES = 32 << 20
"""Bytes of one decoded block of rows and its scores: a usual last-level cache; half of it takes a tenth longer."""


class Scan:
    """One pass over the sources' rows, as blocks of scores."""

    def __init__(self, sources: Sequence[Source], options: ScanOptions) -> None:
        self.sources, self.options = list(sources), options
        check_sources(self.sources, options)
        self.queries = len(sources[0].queries)
        self.passages = sources[0].index.passages
        self.complete = all(source.index.complete for source in sources)
        self.prepared: list[PreparedQueries] = [
            prepare_queries(source.index, source.queries, options.scoring, source.task_queries) for source in sources
        ]
        self.codecs = [options.codec or source.index.codecs[0] for source in sources]
        self.scorers = [
            BlockScorer(prepared, source.index.codec(codec))
            for prepared, source, codec in zip(self.prepared, self.sources, self.codecs, strict=True)
        ]
        self.bytes_read = 0

    def block_rows(self, codecs: Sequence[str]) -> int:
        """Rows of a block, so that it and its scores stay in the processor's cache."""
        working = max(
            source.index.codec(codec).working_bytes for source, codec in zip(self.sources, codecs, strict=True)
        )
        return max(BLOCK_BYTES // (working + 8 * self.queries), 16)

    def chunks(self) -> list[tuple[int, int]]:
        """This rank's passages: the shards of the first source, dealt out."""
        rank, world = rank_and_world()
        return self._covered(self.sources[0].index.shards(self.codecs[0]))[rank::world]

    def _covered(self, shards: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """The parts of the first source's shards that every other source holds as well."""
        for source, codec in zip(self.sources[1:], self.codecs[1:], strict=True):
            if not source.index.complete:
                others = source.index.shards(codec)
                cut = [(max(a, c), min(b, d)) for a, b in shards for c, d in others]
                shards = [(a, b) for a, b in cut if a < b]
        return shards

    def blocks(self) -> Iterator[tuple[int, int, Tensor]]:
        """(start, stop, scores float32 [stop - start, Q]) of every block of this rank's passages."""
        rows = self.block_rows(self.codecs)
        for first, last in self.chunks():
            for start in range(first, last, rows):
                stop = min(start + rows, last)
                yield start, stop, self._block(start, stop)

    def _block(self, start: int, stop: int) -> Tensor:
        total_NQ: Tensor | None = None
        for source, scorer, codec in zip(self.sources, self.scorers, self.codecs, strict=True):
            fields = source.index.fields(codec, start, stop)
            self.bytes_read += sum(value.nbytes for value in fields.values())
            scores_NQ = scorer.scores(fields)
            if source.weight != 1:
                scores_NQ *= source.weight
            total_NQ = scores_NQ if total_NQ is None else total_NQ.add_(scores_NQ)
        assert total_NQ is not None
        if not bool(torch.isfinite(total_NQ).all()):
            require_finite(total_NQ, start, "passages' scores")
        return total_NQ

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
            total_P += source.weight * scorer.pair_scores(fields, place_P, query_P)
        return total_P

    @cached_property
    def _second_stage(self) -> list[BlockScorer]:
        name = self.options.rescore
        assert name is not None
        return [
            BlockScorer(
                prepared,
                Float32Codec(source.index.layout) if name == "recompute" else source.index.codec(name),
                integer=False,
            )
            for source, prepared in zip(self.sources, self.prepared, strict=True)
        ]


def fields_of_rows(index: Index, raw_ND: Tensor) -> dict[str, Tensor]:
    """What an index stores of raw rows, float [n, D], with the codec fp32."""
    unit_ND, norms = directions_and_norms(index.whitening, raw_ND)
    return {"row": unit_ND, **norms}
