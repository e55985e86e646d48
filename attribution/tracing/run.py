"""From queries to passages: query rows at each index's own checkpoint, a scan of every row, and the published results.

headwater trace configs/trace/default.yaml index=runs/demo/index/headwater queries=q.jsonl out=t.jsonl
headwater trace configs/trace/default.yaml index=runs/demo/index/headwater --prompt "..." --target "..." tokens=true
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from headwater.attribution.search.duplicates import Collapse, scan_collapsed
from headwater.attribution.search.options import ScanOptions, ScanResult, Source
from headwater.attribution.search.scan import scan
from headwater.attribution.search.scorer import Scoring
from headwater.attribution.settings import TraceSettings
from headwater.attribution.tracing.opened import Opened, open_for_queries
from headwater.attribution.tracing.queries import TraceQuery, read_queries
from headwater.attribution.tracing.results import Extras, as_results, write_results
from headwater.attribution.tracing.token_scores import TokenScorer, score_tokens
from headwater.configs.errors import MissingError
from headwater.train import parallel
from headwater.train.numerics import keep_freed_memory, use_onednn


def scan_options(settings: TraceSettings) -> ScanOptions:
    return ScanOptions(
        scoring=Scoring(
            curvature=settings.curvature,
            task_weight=settings.task_weight,
            rank=settings.rank,
            normalize=settings.normalize,
        ),
        top_k=settings.top_k,
        bottom_k=settings.bottom_k,
        codec=settings.codec,
        rescore=settings.rescore,
        candidates=settings.candidates,
        allow_incomplete=settings.allow_incomplete,
    )


def run_trace(
    settings: TraceSettings, prompt: str | None = None, target: str | None = None, against: str | None = None
) -> list[dict[str, Any]]:
    """Traces queries; writes the results where the settings say, and returns them.

    Args:
        prompt, target: one question, instead of the file of queries.
        against: another target that it is held against.
    """
    if prompt is not None and target is not None:
        queries = [TraceQuery("query", prompt, target, against or "")]
    elif settings.queries:
        queries = read_queries(settings.queries)
    else:
        raise MissingError("there are no queries", fix="set queries=FILE.jsonl, or give --prompt and --target")
    return traced(settings, queries)


def trace(index: str | Path, queries: Sequence[tuple[str, str] | TraceQuery], **options: Any) -> list[dict[str, Any]]:
    """Traces (prompt, target) pairs against one index; `options` are those of `TraceSettings`."""
    asked = [q if isinstance(q, TraceQuery) else TraceQuery(str(n), *q) for n, q in enumerate(queries)]
    return traced(TraceSettings(index=str(index), **options), asked)


def traced(settings: TraceSettings, queries: Sequence[TraceQuery]) -> list[dict[str, Any]]:
    """Query rows at each index's own checkpoint, a scan of every row, and the results."""
    world = parallel.start()
    try:
        keep_freed_memory()
        use_onednn()
        opened = [open_for_queries(path, world) for path in (settings.index, *settings.also)]
        weights = settings.weights or [1.0] * len(opened)
        sources = [Source(each.index, each.rows(queries), weight) for each, weight in zip(opened, weights, strict=True)]
        found, extras = search(settings, sources, opened)
        results = as_results(queries, found, opened[0], settings.query_set, extras)
        if settings.out and world.is_main:
            write_results(settings.out, results)
    finally:
        parallel.stop()
    return results


def search(settings: TraceSettings, sources: list[Source], opened: list[Opened]) -> tuple[ScanResult, Extras]:
    """The scan, with near-duplicates collapsed and tokens scored if that is asked."""
    options, extras, first = scan_options(settings), Extras(), opened[0]
    scorer = None
    if settings.tokens:  # before the scan, so that what has no token scores is refused at once
        scorer = TokenScorer(sources, [each.collector for each in opened], options.scoring)
    if settings.duplicates == "collapse":
        collapse = Collapse(lambda passage: first.passages.text(passage, first.tokenizer), settings.similar)
        found, *dropped = scan_collapsed(sources, options, collapse)
        extras.dropped = (dropped[0], dropped[1])
    else:
        found = scan(sources, options)
    if scorer is not None:
        shown = {n for part in (found.passages, found.bottom_passages) for n in part.ravel().tolist() if n >= 0}
        tokens_of = {n: first.passages.tokens(n).astype(np.int64) for n in shown}
        extras.token_scores = score_tokens(found, scorer, tokens_of)
    return found, extras
