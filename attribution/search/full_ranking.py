"""Every score, and the exact place of given passages in the ranking of a whole index, in one pass over it.

Legend: N passages of a block, Q queries, G gold passages of a query at most.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from headwater.attribution.search.blocks import BLOCK_BYTES, Scan
from headwater.attribution.search.distributed import distributed
from headwater.attribution.search.options import ScanOptions, ScanResult, Source
from headwater.attribution.search.scan import search
from headwater.attribution.search.topk import NOBODY
from headwater.configs.errors import UserError

ROUNDING = 2e-6
"""How far a passage's score may lie from that which it has among others, as a share of the product of the norms: sums
of float32 that are added up in another order."""
HELD = 1 << 20
"""Scores that lie near gold ones, held before they are counted by value."""


def score_all(sources: Sequence[Source], options: ScanOptions | None = None) -> np.ndarray:
    """Every score, float32 [Q, N]; NaN where an unfinished index has no row. For small corpora."""
    work = Scan(sources, options or ScanOptions())
    scores_QN = torch.zeros(work.queries, work.passages)
    seen_N = torch.zeros(work.passages)
    for start, stop, scores_NQ in work.blocks():
        scores_QN[:, start:stop] = scores_NQ.T.cpu()
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

    Of equal scores the lower passage number stands first, as in `scan`.

    Args:
        sources, options: as for `scan`, one stage.
        golds: per query the passage numbers.

    Returns:
        Per query int64, in the order of its golds.
    """
    return ranked(sources, golds, options, lists=False)[1]


def ranked(
    sources: Sequence[Source],
    golds: Sequence[Sequence[int]],
    options: ScanOptions | None = None,
    *,
    lists: bool = True,
) -> tuple[ScanResult | None, list[np.ndarray]]:
    """`scan` (or, without `lists`, nothing) and `gold_ranks`, in one pass."""
    work, rounding, found = Scan(sources, options or ScanOptions()), ROUNDING, None
    while True:
        places = GoldPlaces(work, golds, rounding)
        if lists and found is None:
            found = search(work, sinks=[places])
        else:
            for start, stop, scores_NQ in work.blocks():
                places(start, stop, scores_NQ.cpu())
        if (result := places.result()) is not None:
            return found, result
        rounding *= 32


class GoldPlaces:
    """Counts, as scores go by, the passages above each gold one.

    A gold passage's score is known about before the pass (of stored integers exactly): what lies beyond rounding is
    counted at once, the few scores within it are kept until the gold passage itself has gone by.

    Args:
        work: the scan whose blocks it will be told.
        golds: per query the passage numbers.
        rounding: see `ROUNDING`.

    Raises:
        UserError: golds are not given for every query, or one is beyond the index.
    """

    def __init__(self, work: Scan, golds: Sequence[Sequence[int]], rounding: float) -> None:
        if len(golds) != work.queries:
            raise UserError("golds are not given for every query", got=len(golds), expected=work.queries)
        self.golds = [list(each) for each in golds]
        wide = max(map(len, self.golds), default=0)
        self.gold_QG = torch.full((work.queries, wide), NOBODY, dtype=torch.int64)
        for q, each in enumerate(self.golds):
            self.gold_QG[q, : len(each)] = torch.as_tensor(each, dtype=torch.int64)
        if wide and int(self.gold_QG.max()) >= work.passages:
            got = int(self.gold_QG.max())
            raise UserError("a gold passage is beyond the index", got=got, expected=f"below {work.passages}")
        self.about_QG, self.within_QG = levels(work, self.gold_QG, rounding)
        self.score_QG = torch.zeros_like(self.about_QG)
        self.above_QG = torch.zeros_like(self.gold_QG)
        self._near: list[np.ndarray] = []
        self._waiting = 0

    def __call__(self, start: int, stop: int, scores_NQ: Tensor) -> None:
        here_QG = (self.gold_QG >= start) & (self.gold_QG < stop)
        values_QG = scores_NQ.T.gather(1, (self.gold_QG - start).clamp(0, stop - start - 1))
        self.score_QG = torch.where(here_QG, values_QG, self.score_QG)
        for g in range(self.gold_QG.shape[1]):
            beyond_NQ = scores_NQ - self.about_QG[:, g]
            above_NQ = beyond_NQ > self.within_QG[:, g]
            self.above_QG[:, g] += above_NQ.sum(dim=0)
            near_NQ = (beyond_NQ >= -self.within_QG[:, g]).logical_and_(above_NQ.logical_not_())
            if bool(near_NQ.any()):
                self._keep(g, start, near_NQ, scores_NQ)

    def _keep(self, g: int, start: int, near_NQ: Tensor, scores_NQ: Tensor) -> None:
        place_n, query_n = near_NQ.nonzero(as_tuple=True)
        near = np.zeros(len(place_n), dtype=[("gold", "i8"), ("score", "f4"), ("before", "?"), ("count", "i8")])
        near["gold"] = query_n * self.gold_QG.shape[1] + g
        near["score"] = scores_NQ[place_n, query_n]
        near["before"] = place_n + start < self.gold_QG[query_n, g]
        near["count"] = 1
        self._near.append(near)
        self._waiting += len(near)
        if self._waiting > HELD:
            self._near, self._waiting = [self._counted()], 0

    def _counted(self) -> np.ndarray:
        """What is kept, equal entries as one."""
        near = np.concatenate(self._near)
        entries, inverse = np.unique(near[["gold", "score", "before"]], return_inverse=True)
        counted = np.zeros(len(entries), dtype=near.dtype)
        for name in entries.dtype.names or ():
            counted[name] = entries[name]
        np.add.at(counted["count"], inverse, near["count"])
        return counted

    def result(self) -> list[np.ndarray] | None:
        """Per query int64, in the order of its golds; None if a score was not where it was said to be."""
        if distributed():
            torch.distributed.all_reduce(self.score_QG)  # every gold passage is one rank's
        if bool(((self.score_QG - self.about_QG).abs() > self.within_QG)[self.gold_QG != NOBODY].any()):
            return None
        if self._near:
            near, level_G = self._counted(), self.score_QG.flatten().numpy()
            level = level_G[near["gold"]]
            before = (near["score"] > level) | ((near["score"] == level) & near["before"])
            above_G = np.bincount(near["gold"], near["count"] * before, len(level_G)).astype(np.int64)
            self.above_QG += torch.from_numpy(above_G).view_as(self.above_QG)
        if distributed():
            torch.distributed.all_reduce(self.above_QG)
        return [self.above_QG[q, : len(each)].numpy() for q, each in enumerate(self.golds)]


def levels(work: Scan, gold_QG: Tensor, rounding: float) -> tuple[Tensor, Tensor]:
    """About what score each gold passage has for its query, and within what: float32 [Q, G]; +inf where none is."""
    about_QG = torch.full(gold_QG.shape, torch.inf)
    within_QG = torch.zeros(gold_QG.shape)
    numbers = np.unique(gold_QG[gold_QG != NOBODY].numpy())
    dims = max(source.index.layout.dims for source in work.sources)
    some = max(BLOCK_BYTES // (4 * dims + 8 * work.queries), 16)
    for start in range(0, len(numbers), some):
        part = numbers[start : start + some]
        place_QG = torch.from_numpy(np.searchsorted(part, gold_QG.numpy()).clip(0, len(part) - 1))
        here_QG = torch.from_numpy(part)[place_QG] == gold_QG
        scores_nQ, norms_nQ = work.single(part)
        about_QG = torch.where(here_QG, scores_nQ.T.gather(1, place_QG), about_QG)
        within_QG = torch.where(here_QG, rounding * norms_nQ.T.gather(1, place_QG), within_QG)
    return about_QG, within_QG
