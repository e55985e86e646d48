"""The second stage: each query's own candidates, scored again in a finer form."""

from __future__ import annotations

import numpy as np
import torch

from headwater.attribution.search.blocks import BLOCK_BYTES, Scan
from headwater.attribution.search.distributed import rank_and_world
from headwater.attribution.search.topk import NOBODY, TopK


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
