"""The whole index, searched: top and bottom passages of every query.

    result = scan([Source(open_index("runs/demo/index/final"), query_rows)], ScanOptions(top_k=10, bottom_k=3))
    result.passages[0], result.scores[0]

Every row of every shard is read, block by block; memory is bounded by the block. Under torch.distributed the shards
are dealt out over the ranks and each rank returns the merged result. Several sources (checkpoints, a captured index)
are read side by side and their scores are added.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from headwater.attribution.curvature.whitening import require_finite
from headwater.attribution.index.codecs.registry import Float32Codec
from headwater.attribution.index.reader import Index, require_same_passages
from headwater.attribution.search.scorer import BlockScorer, PreparedQueries, Scoring, prepare_queries
from headwater.attribution.search.topk import NOBODY, TopK, distributed, rank_and_world
from headwater.configs.errors import UserError

BLOCK_BYTES = 32 << 20
"""Bytes of one decoded block of rows and its scores: a usual last-level cache; half of it takes a tenth longer."""

RecomputeRows = Callable[[np.ndarray], Tensor]
"""Passage numbers -> raw rows float32 [n, D]: exact rows for the second stage."""


@dataclass(slots=True)
class Source:
    """An index and the queries' rows for it.

    Attributes:
        index: what to search.
        queries: raw (unwhitened) rows made like the index's, float [Q, D].
        weight: factor of its scores where several sources are added.
        task_queries: raw rows that stand for the task, if not the queries themselves.
        recompute: gives exact raw rows for the second stage instead of a finer codec.
    """

    index: Index
    queries: Tensor
    weight: float = 1.0
    task_queries: Tensor | None = None
    recompute: RecomputeRows | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanOptions:
    """What to look for, and in which stored form.

    Attributes:
        scoring: how a score is made.
        top_k, bottom_k: passages kept per query at each end.
        codec: the form that is scanned; the finest stored by default.
        rescore: the form (or `recompute`) in which the best candidates are scored again; None for one stage.
        candidates: how many per query and end; below 1 a fraction of the passages.
        allow_incomplete: search what there is of an unfinished index; the result says so.
    """

    scoring: Scoring = field(default_factory=Scoring)
    top_k: int = 100
    bottom_k: int = 0
    codec: str | None = None
    rescore: str | None = None
    candidates: float = 0.05
    allow_incomplete: bool = False


@dataclass(slots=True)
class ScanResult:
    """What a scan found. Empty places hold passage -1 and score NaN.

    Attributes:
        passages, scores: int64 and float32 [Q, top_k], best first.
        bottom_passages, bottom_scores: int64 and float32 [Q, bottom_k], most negative first.
        complete: whether every passage of the corpus was compared.
        scanned: passages compared in the first stage.
        bytes_read: bytes of the stored rows read, by this rank.
        lambdas: lambda of each source.
        seconds: wall time.
        prepare_seconds: of it, what the queries took before the first block.
    """

    passages: np.ndarray
    scores: np.ndarray
    bottom_passages: np.ndarray
    bottom_scores: np.ndarray
    complete: bool
    scanned: int
    bytes_read: int
    lambdas: list[float]
    seconds: float
    prepare_seconds: float


@dataclass(slots=True)
class Exclusion:
    """Pairs that must not be found. Passages for every query, and (query, passage) pairs.

    Attributes:
        passages: int64, excluded for all queries.
        pairs: int64 [n, 2], query and passage.
    """

    passages: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    pairs: np.ndarray = field(default_factory=lambda: np.empty((0, 2), np.int64))

    def apply(self, scores_NQ: Tensor, start: int, stop: int) -> None:
        inside = self.passages[(self.passages >= start) & (self.passages < stop)]
        scores_NQ[torch.from_numpy(inside - start)] = -torch.inf
        pairs = self.pairs[(self.pairs[:, 1] >= start) & (self.pairs[:, 1] < stop)]
        scores_NQ[torch.from_numpy(pairs[:, 1] - start), torch.from_numpy(pairs[:, 0])] = -torch.inf


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
        self.scorers = [self.scorer(s, codec) for s, codec in enumerate(self.codecs)]
        self.bytes_read = 0

    def scorer(self, source: int, codec: str) -> BlockScorer:
        return BlockScorer(self.prepared[source], self.sources[source].index.codec(codec))

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

    def rescored(self, passages: np.ndarray) -> Tensor:
        """Scores of single passages (ascending) in the second stage's form, float32 [n, Q]."""
        assert self.options.rescore is not None
        total_NQ = torch.zeros(len(passages), self.queries)
        for s, source in enumerate(self.sources):
            if self.options.rescore == "recompute":
                assert source.recompute is not None
                raw_ND = source.recompute(passages).float()
                require_finite(raw_ND, what="recomputed rows")
                fields = fields_of_rows(source.index, raw_ND)
                scorer = BlockScorer(self.prepared[s], Float32Codec(source.index.layout))
            else:
                fields = source.index.gather(self.options.rescore, passages)
                scorer = self.scorer(s, self.options.rescore)
            self.bytes_read += sum(value.nbytes for value in fields.values())
            total_NQ += source.weight * scorer.scores(fields)
        return total_NQ


def fields_of_rows(index: Index, raw_ND: Tensor) -> dict[str, Tensor]:
    """What an index stores of raw rows, float [n, D], with the codec fp32."""
    white_ND = index.whitening.apply(raw_ND)
    norm_N, raw_N = white_ND.norm(dim=1), raw_ND.norm(dim=1)
    unit_ND = white_ND / norm_N.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
    return {"row": unit_ND, "norm": norm_N, "raw_norm": raw_N}


def check_sources(sources: Sequence[Source], options: ScanOptions) -> None:
    """Refuses sources that cannot be searched together, and unfinished ones unless that is allowed."""
    if not sources or not len(sources[0].queries):
        raise UserError("nothing to search", got=f"{len(sources)} indexes", expected="an index and at least one query")
    require_same_passages([source.index for source in sources])
    if len({len(source.queries) for source in sources}) > 1:
        raise UserError("the indexes were given different queries", got=[len(source.queries) for source in sources])
    for source in sources:
        if not source.index.complete and not options.allow_incomplete:
            raise source.index.incomplete()
        if options.rescore == "recompute" and source.recompute is None:
            raise UserError(f"nothing recomputes rows of {source.index.path}", fix="rescore from a stored codec")
    if options.rescore is not None and options.candidates <= 0:
        raise UserError(
            "two stages need candidates", got=options.candidates, expected="a number, or a fraction below 1"
        )


def scan(
    sources: Sequence[Source],
    options: ScanOptions | None = None,
    *,
    exclude: Exclusion | None = None,
) -> ScanResult:
    """Finds the passages with the highest and the lowest scores for every query.

    Args:
        sources: indexes with the queries' rows; their weighted scores are added.
        options: what to look for.
        exclude: passages or pairs to leave out.

    Returns:
        The same on every rank, and for every division into shards.

    Raises:
        IncompleteIndexError: an index is unfinished and that was not allowed.
        MismatchError, UserError: sources that do not fit together, or options that an index cannot serve.
    """
    options = options or ScanOptions()
    began = time.perf_counter()
    work = Scan(sources, options)
    prepared = time.perf_counter() - began
    keep_top, keep_bottom = options.top_k, options.bottom_k
    if options.rescore is not None:
        count = candidate_count(options.candidates, work.passages)
        keep_top, keep_bottom = (max(count, k) if k else 0 for k in (options.top_k, options.bottom_k))
    top = TopK(work.queries, min(keep_top, work.passages))
    bottom = TopK(work.queries, min(keep_bottom, work.passages))
    scanned = 0
    for start, stop, scores_NQ in work.blocks():
        scanned += stop - start
        passages_N = torch.arange(start, stop)
        for heap, sign in ((top, 1), (bottom, -1)):
            if heap.k:
                add_block(heap, scores_NQ if sign > 0 else -scores_NQ, passages_N, exclude)
    top.merge_ranks()
    bottom.merge_ranks()
    if options.rescore is not None:
        top = rescore(work, top, min(options.top_k, work.passages), 1)
        bottom = rescore(work, bottom, min(options.bottom_k, work.passages), -1)
    for source in sources:
        source.index.close()
    passages, scores = as_arrays(top, 1)
    bottom_passages, bottom_scores = as_arrays(bottom, -1)
    return ScanResult(
        passages,
        scores,
        bottom_passages,
        bottom_scores,
        work.complete,
        sum_over_ranks(scanned),
        work.bytes_read,
        [each.lambda_ for each in work.prepared],
        time.perf_counter() - began,
        prepared,
    )


def candidate_count(candidates: float, passages: int) -> int:
    """Candidates per query: a number, or below 1 a fraction of the passages."""
    return max(int(candidates * passages), 1) if candidates < 1 else int(candidates)


def add_block(heap: TopK, scores_NQ: Tensor, passages_N: Tensor, exclude: Exclusion | None) -> None:
    if exclude is not None:
        scores_NQ = scores_NQ.clone()
        exclude.apply(scores_NQ, int(passages_N[0]), int(passages_N[-1]) + 1)
    heap.add(scores_NQ, passages_N)


def rescore(work: Scan, candidates: TopK, k: int, sign: int) -> TopK:
    """Scores each query's own candidates again and keeps the best `k`."""
    final = TopK(work.queries, k)
    _, passages_QC = candidates.result()
    if not k:
        return final
    rank, world = rank_and_world()
    union = np.unique(passages_QC[passages_QC != NOBODY].numpy())
    dims = max(source.index.layout.dims for source in work.sources)
    rows = max(BLOCK_BYTES // (4 * dims + 8 * work.queries), 16)
    step = work.sources[0].index.shard_rows
    # Cut at shard boundaries, so that a block's products have the same shape on any number of ranks.
    for shard in np.unique(union // step)[rank::world].tolist():
        inside = union[union // step == shard]
        for start in range(0, len(inside), rows):
            block = inside[start : start + rows]
            scores_NQ = work.rescored(block) * sign
            wanted_QN = torch.zeros(work.queries, len(block), dtype=torch.bool)
            place_QC = torch.from_numpy(np.searchsorted(block, passages_QC.numpy()).clip(0, len(block) - 1))
            hit_QC = torch.from_numpy(block)[place_QC] == passages_QC
            queries = torch.arange(work.queries)[:, None].expand_as(place_QC)
            wanted_QN[queries[hit_QC], place_QC[hit_QC]] = True
            final.add(torch.where(wanted_QN.T, scores_NQ, -torch.inf), torch.from_numpy(block))
    final.merge_ranks()
    return final


def as_arrays(heap: TopK, sign: int) -> tuple[np.ndarray, np.ndarray]:
    """(passages, scores) with NaN in empty places."""
    scores_Qk, passages_Qk = heap.result()
    scores_Qk = torch.where(passages_Qk == NOBODY, torch.nan, scores_Qk * sign)
    return passages_Qk.numpy(), scores_Qk.numpy()


def sum_over_ranks(value: int) -> int:
    if not distributed():
        return value
    total = torch.tensor(value)
    torch.distributed.all_reduce(total)
    return int(total)
