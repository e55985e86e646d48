"""The whole index, searched: top and bottom passages of every query.

    result = scan([Source(open_index("runs/demo/index/final"), query_rows)], ScanOptions(top_k=10, bottom_k=3))
    result.passages[0], result.scores[0]

Every row of every shard is read, block by block; memory is bounded by the block. Under torch.distributed the shards
are dealt out over the ranks and each rank returns the merged result. Several sources (checkpoints, a captured index)
are read side by side and their scores are added.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch

from headwater.attribution.search.blocks import Scan
from headwater.attribution.search.distributed import sum_over_ranks
from headwater.attribution.search.options import Exclusion, ScanOptions, ScanResult, Source
from headwater.attribution.search.rescore import rescore
from headwater.attribution.search.topk import NOBODY, TopK


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
        keep_top, keep_bottom = (max(options.candidates, k) if k else 0 for k in (keep_top, keep_bottom))
    top = TopK(work.queries, min(keep_top, work.passages))
    bottom = TopK(work.queries, min(keep_bottom, work.passages))
    scanned = 0
    for start, stop, scores_NQ in work.blocks():
        scanned += stop - start
        if options.watch is not None:
            options.watch(scanned, work.passages)
        passages_N = torch.arange(start, stop)
        for heap in (top, bottom) if bottom.k else (top,):
            if exclude is not None:
                exclude.apply(scores_NQ, start, stop)
            heap.add(scores_NQ, passages_N)
            scores_NQ.neg_()
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


def as_arrays(heap: TopK, sign: int) -> tuple[np.ndarray, np.ndarray]:
    """(passages, scores) with NaN in empty places."""
    scores_Qk, passages_Qk = heap.result()
    scores_Qk = torch.where(passages_Qk == NOBODY, torch.nan, scores_Qk * sign)
    return passages_Qk.numpy(), scores_Qk.numpy()
