"""Every score, and the exact place of given passages in the ranking of a whole index (scan.py finds the best)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from headwater.attribution.search.blocks import Scan
from headwater.attribution.search.distributed import distributed
from headwater.attribution.search.options import ScanOptions, Source
from headwater.attribution.search.topk import NOBODY
from headwater.configs.errors import UserError


def score_all(sources: Sequence[Source], options: ScanOptions | None = None) -> np.ndarray:
    """Every score, float32 [Q, N]; NaN where an unfinished index has no row. For small corpora."""
    work = Scan(sources, options or ScanOptions())
    scores_QN = torch.zeros(work.queries, work.passages)
    seen_N = torch.zeros(work.passages)
    for start, stop, scores_NQ in work.blocks():
        scores_QN[:, start:stop] = scores_NQ.T
        seen_N[start:stop] = 1
    if distributed():
        torch.distributed.all_reduce(scores_QN)
        torch.distributed.all_reduce(seen_N)
    scores_QN[:, seen_N == 0] = torch.nan
    return scores_QN.numpy()


def gold_ranks(
    sources: Sequence[Source], golds: Sequence[Sequence[int]], options: ScanOptions | None = None
) -> list[np.ndarray]:
    """The exact place, from 0, of given passages in each query's full ranking.

    Two passes: the golds' own scores, then how many passages stand above each. Of equal scores the lower passage
    number stands first, as in `scan`.

    Args:
        sources, options: as for `scan`, one stage.
        golds: per query the passage numbers.

    Returns:
        Per query int64, in the order of its golds.
    """
    work = Scan(sources, options or ScanOptions())
    if len(golds) != work.queries:
        raise UserError("golds are not given for every query", got=len(golds), expected=work.queries)
    wide = max((len(each) for each in golds), default=0)
    gold_QG = torch.full((work.queries, wide), NOBODY, dtype=torch.int64)
    for q, each in enumerate(golds):
        gold_QG[q, : len(each)] = torch.as_tensor(list(each), dtype=torch.int64)
    if wide and int(gold_QG.max()) >= work.passages:
        raise UserError("a gold passage is beyond the index", got=int(gold_QG.max()), expected=f"below {work.passages}")
    score_QG = torch.zeros(work.queries, wide)
    for start, stop, scores_NQ in work.blocks():
        here_QG = (gold_QG >= start) & (gold_QG < stop)
        values_QG = scores_NQ.T.gather(1, (gold_QG - start).clamp(0, stop - start - 1))
        score_QG = torch.where(here_QG, values_QG, score_QG)
    if distributed():
        torch.distributed.all_reduce(score_QG)
    above_QG = torch.zeros(work.queries, wide, dtype=torch.int64)
    for start, stop, scores_NQ in work.blocks():
        passages_N1 = torch.arange(start, stop)[:, None]
        for g in range(wide):
            level_Q = score_QG[:, g]
            before_NQ = (scores_NQ > level_Q) | ((scores_NQ == level_Q) & (passages_N1 < gold_QG[:, g]))
            above_QG[:, g] += before_NQ.sum(dim=0)
    if distributed():
        torch.distributed.all_reduce(above_QG)
    return [above_QG[q, : len(each)].numpy() for q, each in enumerate(golds)]
