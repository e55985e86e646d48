"""The best and the worst of a stream of scores, the same however the stream is cut. Q queries, K kept."""

from __future__ import annotations

import torch
from torch import Tensor

from headwater.attribution.search.distributed import distributed

NOBODY = -1
"""Passage number of an empty place; its score is -inf (+inf among the lowest)."""

_SLACK = 512
"""Candidates that wait to be sorted in, at least."""


class TopK:
    """Keeps, for each query, the `k` passages with the highest scores; ties go to the lower passage number.

    Args:
        queries: Q.
        k: how many to keep.
        device: where the scores come from; results go to the CPU.
    """

    def __init__(self, queries: int, k: int, device: torch.device | None = None) -> None:
        self.k = k
        # Room for what waits to be sorted in. A list of the blocks' own small tensors would lie scattered between the
        # blocks' large ones and keep the allocator from using their memory again.
        room = 2 * k + _SLACK
        self._scores_QR = torch.full((queries, room), -torch.inf, device=device)
        self._passages_QR = torch.full((queries, room), NOBODY, dtype=torch.int64, device=device)
        self._used = k
        self._floor_Q1: Tensor | None = None

    def add(self, scores_NQ: Tensor, passages_N: Tensor) -> None:
        """Takes scores float32 [n, Q] of these passages, int64 [n]. -inf stands for an excluded pair."""
        if not self.k or not len(passages_N):
            return
        scores_QN, keep = scores_NQ.T, self.k
        if self._floor_Q1 is not None:  # most blocks of a long scan hold little that is good enough
            keep = min(keep, int((scores_NQ >= self._floor_Q1.T).sum(dim=0).max()))
        if not keep:
            return
        if len(passages_N) > keep:
            best_Qk, places_Qk = scores_QN.topk(keep, dim=1, sorted=False)
            self._settle_ties(scores_QN, passages_N, best_Qk, places_Qk)
            self.add_lists(best_Qk, passages_N[places_Qk])
        else:
            self.add_lists(scores_QN.contiguous(), passages_N.expand(len(scores_QN), -1))

    def _settle_ties(self, scores_QN: Tensor, passages_N: Tensor, best_Qk: Tensor, places_Qk: Tensor) -> None:
        """Where more have the k-th score than there is room for, those with the lowest numbers take it: torch's `topk`
        takes any of them."""
        keep = best_Qk.shape[1]
        least_Q1 = best_Qk.amin(dim=1, keepdim=True)
        tied_Q = ((scores_QN >= least_Q1).sum(dim=1) > keep) & (least_Q1[:, 0] > -torch.inf)
        if not bool(tied_Q.any()):
            return
        order_N = passages_N.argsort(stable=True)
        ordered_qN = scores_QN[tied_Q][:, order_N]
        chosen_qk = ordered_qN.argsort(dim=1, descending=True, stable=True)[:, :keep]
        best_Qk[tied_Q], places_Qk[tied_Q] = ordered_qN.gather(1, chosen_qk), order_N[chosen_qk]

    def add_lists(self, scores_Qk: Tensor, passages_Qk: Tensor) -> None:
        """Takes scores float32 [Q, n] of each query's own passages, int64 [Q, n]."""
        for start in range(0, scores_Qk.shape[1], self.k + _SLACK):
            part = slice(start, start + self.k + _SLACK)
            self._take(scores_Qk[:, part], passages_Qk[:, part])

    def _take(self, scores_Qk: Tensor, passages_Qk: Tensor) -> None:
        if self._used + scores_Qk.shape[1] > self._scores_QR.shape[1]:
            self._compact()
        place = slice(self._used, self._used + scores_Qk.shape[1])
        self._scores_QR[:, place] = scores_Qk
        self._passages_QR[:, place] = passages_Qk.masked_fill(scores_Qk == -torch.inf, NOBODY)
        self._used = place.stop
        if self._floor_Q1 is None and self._used >= 2 * self.k:
            self._compact()

    def _compact(self) -> None:
        scores, passages = self._scores_QR[:, : self._used], self._passages_QR[:, : self._used]
        by_passage = passages.argsort(dim=1, stable=True)
        scores, passages = scores.gather(1, by_passage), passages.gather(1, by_passage)
        by_score = scores.argsort(dim=1, descending=True, stable=True)[:, : self.k]
        self._scores_QR[:, : self.k], self._passages_QR[:, : self.k] = (
            scores.gather(1, by_score),
            passages.gather(1, by_score),
        )
        self._used, self._floor_Q1 = self.k, self._scores_QR[:, self.k - 1 : self.k].clone()

    def result(self) -> tuple[Tensor, Tensor]:
        """Scores float32 [Q, k] descending, and passages int64 [Q, k]; empty places last."""
        self._compact()
        return self._scores_QR[:, : self.k].to("cpu", copy=True), self._passages_QR[:, : self.k].to("cpu", copy=True)

    def merge_ranks(self) -> None:
        """Merges the lists of all ranks of torch.distributed, on every rank; does nothing without it."""
        if not distributed() or not self.k:
            return
        scores, passages = self.result()
        lists: list[tuple[Tensor, Tensor]] = [(scores, passages)] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(lists, (scores, passages))
        self._used = 0
        for each in lists:
            self.add_lists(*each)
