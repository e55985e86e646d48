"""The whole index, searched: top and bottom passages of every query.

    result = scan([Source(open_index("runs/demo/index/final"), query_rows)], ScanOptions(top_k=10, bottom_k=3))
    result.passages[0], result.scores[0]

Every row of every shard is read, block by block; memory is bounded by the block. Under torch.distributed the blocks
are dealt out over the ranks and each rank returns the merged result. Several sources (checkpoints, a captured index)
are read side by side and their scores are added.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from headwater.attribution.search.blocks import Scan
from headwater.attribution.search.distributed import sum_over_ranks
from headwater.attribution.search.options import Exclusion, ScanOptions, ScanResult, Source
from headwater.attribution.search.rescore import rescore
from headwater.attribution.search.topk import NOBODY, TopK
from headwater.configs.errors import UserError

Sink = Callable[[int, int, Tensor], None]
"""Told every block of a first stage on the rank that scores it: start, stop, scores float32 [stop - start, Q], -inf
for what must not be found, on the CPU. It keeps no reference."""


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
    return search(Scan(sources, options or ScanOptions()), exclude)


def search(work: Scan, exclude: Exclusion | None = None, sinks: Sequence[Sink] = ()) -> ScanResult:
    """`scan`, of a scan that is prepared; `sinks` are told its scores as they go by."""
    began, options = time.perf_counter(), work.options
    keep_top, keep_bottom = options.top_k, options.bottom_k
    if options.rescore is not None:
        keep_top, keep_bottom = (max(options.candidates, k) if k else 0 for k in (keep_top, keep_bottom))
    top = TopK(work.queries, min(keep_top, work.passages), work.device)
    bottom = TopK(work.queries, min(keep_bottom, work.passages), work.device)
    hidden = [each for each in (exclude, options.where) if each is not None]
    for start, stop, scores_NQ in work.blocks():
        passages_N = torch.arange(start, stop, device=work.device)
        for each in hidden:
            each.apply(scores_NQ, start, stop)
        for sink in sinks:
            sink(start, stop, scores_NQ.cpu())
        top.add(scores_NQ, passages_N)
        if bottom.k:
            scores_NQ.neg_()
            for each in hidden:
                each.apply(scores_NQ, start, stop)
            bottom.add(scores_NQ, passages_N)
    scanned = sum_over_ranks(work.scanned)
    if options.where is not None and not scanned:
        what = f"there is no passage where {options.where.condition.text}"
        raise UserError(what, fix="look at what the columns hold, or widen it")
    top.merge_ranks()
    bottom.merge_ranks()
    if options.rescore is not None:
        top = rescore(work, top, min(options.top_k, work.passages), 1)
        bottom = rescore(work, bottom, min(options.bottom_k, work.passages), -1)
    for source in work.sources:
        source.index.close()
    passages, scores = as_arrays(top, 1)
    bottom_passages, bottom_scores = as_arrays(bottom, -1)
    return ScanResult(
        passages,
        scores,
        bottom_passages,
        bottom_scores,
        work.complete,
        scanned,
        work.bytes_read,
        [each.lambda_ for each in work.prepared],
        work.prepare_seconds + time.perf_counter() - began,
        work.prepare_seconds,
    )


def as_arrays(heap: TopK, sign: int) -> tuple[np.ndarray, np.ndarray]:
    """(passages, scores) with NaN in empty places."""
    scores_Qk, passages_Qk = heap.result()
    scores_Qk = torch.where(passages_Qk == NOBODY, torch.nan, scores_Qk * sign)
    return passages_Qk.numpy(), scores_Qk.numpy()
