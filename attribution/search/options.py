"""What a scan is asked and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from headwater.attribution.index.reader import Index, require_same_passages
from headwater.attribution.search.scorer import Scoring
from headwater.attribution.search.where import Where
from headwater.attribution.settings import DEVICES
from headwater.configs.errors import UserError

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
        candidates: how many per query and end; all where there are fewer.
        where: looks at passages before they are compared: those for which it does not hold are not found.
        allow_incomplete: search what there is of an unfinished index; the result says so.
        device: what multiplies: `cpu`, `cuda`, or `auto`: the GPU if there is one and many queries are asked.
        watch: told after each block how many passages this rank has compared, and how many there are; what it raises
            ends the scan.
    """

    scoring: Scoring = field(default_factory=Scoring)
    top_k: int = 100
    bottom_k: int = 0
    codec: str | None = None
    rescore: str | None = None
    candidates: int = 10_000
    where: Where | None = field(default=None, compare=False)
    allow_incomplete: bool = False
    device: str = "auto"
    watch: Callable[[int, int], None] | None = field(default=None, compare=False)


@dataclass(slots=True)
class ScanResult:
    """What a scan found. Empty places hold passage -1 and score NaN.

    Attributes:
        passages, scores: int64 and float32 [Q, top_k], best first.
        bottom_passages, bottom_scores: int64 and float32 [Q, bottom_k], most negative first.
        complete: whether every passage of the corpus was compared.
        scanned: passages compared in the first stage: with `where` those for which it holds.
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
        if len(inside):
            scores_NQ[torch.from_numpy(inside - start).to(scores_NQ.device)] = -torch.inf
        pairs = self.pairs[(self.pairs[:, 1] >= start) & (self.pairs[:, 1] < stop)]
        if len(pairs):
            place_P, query_P = pairs[:, 1] - start, pairs[:, 0]
            there = (torch.from_numpy(each).to(scores_NQ.device) for each in (place_P, query_P))
            scores_NQ[tuple(there)] = -torch.inf


GPU_QUERIES = 16
"""Of fewer, a processor has scored a block before it is copied to a GPU. Computed, not measured."""


def device_of(options: ScanOptions, queries: int) -> torch.device:
    """Where a scan multiplies.

    Raises:
        UserError: a GPU is asked for and there is none.
    """
    there = torch.cuda.is_available()
    if options.device not in DEVICES:
        raise UserError("no such device", got=options.device, expected=", ".join(DEVICES))
    if options.device == "cuda" and not there:
        raise UserError("there is no GPU to scan with", got="device=cuda", fix="device=cpu, or auto")
    gpu = options.device == "cuda" or (options.device == "auto" and there and queries >= GPU_QUERIES)
    return torch.device("cuda", torch.cuda.current_device()) if gpu else torch.device("cpu")


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
    if options.rescore is not None and (options.candidates < 1 or options.candidates != int(options.candidates)):
        raise UserError("two stages need candidates", got=options.candidates, expected="a whole number, 1 or more")
