"""The second stage: each query's own candidates, scored again in a finer form.

Legend: Q queries, C candidates of a query, P pairs of a candidate and a query.
"""

from __future__ import annotations

import numpy as np
import torch

from headwater.attribution.search.blocks import BLOCK_BYTES, Scan
from headwater.attribution.search.distributed import distributed, rank_and_world
from headwater.attribution.search.topk import NOBODY, TopK


def rescore(work: Scan, candidates: TopK, k: int, sign: int) -> TopK:
    """Scores each query's own candidates again, against that query alone, and keeps the best `k`."""
    final = TopK(work.queries, k)
    _, passages_QC = candidates.result()
    if not k:
        return final
    flat = passages_QC.numpy().ravel()
    order_P = np.argsort(flat, kind="stable")
    order_P = order_P[np.searchsorted(flat[order_P], 0) :]  # what nobody fills comes first
    union, first_P = np.unique(flat[order_P], return_index=True)
    first_P = np.append(first_P, len(order_P))
    dims = max(source.index.layout.dims for source in work.sources)
    rows = max(BLOCK_BYTES // (4 * dims), 16)
    scores_QC = torch.zeros(passages_QC.numel())
    # Blocks are cut before they are dealt out, so that their products have the same shape on any number of ranks.
    rank, world = rank_and_world()
    blocks = -(-len(union) // rows)
    for block in range(blocks * rank // world, blocks * (rank + 1) // world):
        low, high = block * rows, min((block + 1) * rows, len(union))
        pairs_P = order_P[first_P[low] : first_P[high]]
        place_P = torch.from_numpy(np.searchsorted(union[low:high], flat[pairs_P]))
        query_P = torch.from_numpy(pairs_P // passages_QC.shape[1])
        scores_QC[torch.from_numpy(pairs_P)] = work.rescored(union[low:high], place_P, query_P)
    if distributed():
        torch.distributed.all_reduce(scores_QC)  # every pair is one rank's
    scores_QC = torch.where(passages_QC == NOBODY, -torch.inf, scores_QC.view_as(passages_QC) * sign)
    final.add_lists(scores_QC, passages_QC)
    return final
