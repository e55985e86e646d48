"""The best and the worst of a stream of scores, the same however the stream is cut. Q queries, K kept."""

from __future__ import annotations

import torch
from torch import Tensor

NOBODY = -1
"""Passage number of an empty place; its score is -inf (+inf among the lowest)."""

_SLACK = 4096


class TopK:
    """Keeps, for each query, the `k` passages with the highest scores; ties go to the lower passage number.

    Args:
        queries: Q.
        k: how many to keep.
        groups_N: int64 [N], a group per passage: of each group only the best passage is kept (near-duplicates).
    """

    def __init__(self, queries: int, k: int, groups_N: Tensor | None = None) -> None:
        self.k = k
        self._groups_N = groups_N
        self._scores = [torch.full((queries, k), -torch.inf)]
        self._passages = [torch.full((queries, k), NOBODY, dtype=torch.int64)]
        self._pending = 0

    def add(self, scores_NQ: Tensor, passages_N: Tensor) -> None:
        """Takes scores float32 [n, Q] of these passages, int64 [n]. -inf stands for an excluded pair."""
        if not self.k or not len(passages_N):
            return
        scores_QN = scores_NQ.T
        if self._groups_N is not None:
            scores_QN = best_of_groups(scores_QN, self._groups_N[passages_N])
        if len(passages_N) > self.k:
            best_Qk, places_Qk = scores_QN.topk(self.k, dim=1, sorted=False)
            self._append(best_Qk, passages_N[places_Qk])
        else:
            self._append(scores_QN.contiguous(), passages_N.expand(len(scores_QN), -1))

    def add_pairs(self, scores_QC: Tensor, passages_QC: Tensor) -> None:
        """Takes each query's own passages, float32 and int64 [Q, C]."""
        self._append(scores_QC, passages_QC)

    def _append(self, scores_Qk: Tensor, passages_Qk: Tensor) -> None:
        self._scores.append(scores_Qk)
        self._passages.append(torch.where(scores_Qk == -torch.inf, NOBODY, passages_Qk))
        self._pending += scores_Qk.shape[1]
        if self._pending >= max(self.k, _SLACK):
            self._compact()

    def _compact(self) -> None:
        scores, passages = torch.cat(self._scores, dim=1), torch.cat(self._passages, dim=1)
        by_passage = passages.argsort(dim=1, stable=True)
        scores, passages = scores.gather(1, by_passage), passages.gather(1, by_passage)
        by_score = scores.argsort(dim=1, descending=True, stable=True)
        scores, passages = scores.gather(1, by_score), passages.gather(1, by_score)
        if self._groups_N is not None:
            scores, passages = first_of_groups(scores, passages, self._groups_N)
        self._scores, self._passages = [scores[:, : self.k].contiguous()], [passages[:, : self.k].contiguous()]
        self._pending = 0

    def result(self) -> tuple[Tensor, Tensor]:
        """Scores float32 [Q, k] descending, and passages int64 [Q, k]; empty places last."""
        self._compact()
        return self._scores[0], self._passages[0]

    def merge_ranks(self) -> None:
        """Merges the lists of all ranks of torch.distributed, on every rank; does nothing without it."""
        if not distributed() or not self.k:
            return
        scores, passages = self.result()
        lists: list[tuple[Tensor, Tensor]] = [(scores, passages)] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(lists, (scores, passages))
        self._scores, self._passages = [each for each, _ in lists], [each for _, each in lists]


def distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def rank_and_world() -> tuple[int, int]:
    """(rank, ranks) of torch.distributed; (0, 1) without it."""
    if not distributed():
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def best_of_groups(scores_QN: Tensor, groups_N: Tensor) -> Tensor:
    """The scores with all but the best of each group (the first, of equals) set to -inf."""
    unique, members, counts = groups_N.unique(return_inverse=True, return_counts=True)
    if len(unique) == len(groups_N):
        return scores_QN
    crowd = torch.nonzero(counts[members] > 1).flatten()
    part_QC, member_QC = scores_QN[:, crowd], members[crowd].expand(len(scores_QN), -1)
    best_QG = torch.full((len(scores_QN), len(unique)), -torch.inf).scatter_reduce(1, member_QC, part_QC, "amax")
    place_QC = torch.where(part_QC == best_QG.gather(1, member_QC), crowd, len(groups_N))
    first_QG = torch.full(best_QG.shape, len(groups_N)).scatter_reduce(1, member_QC, place_QC, "amin")
    out_QN = scores_QN.clone()
    out_QN[:, crowd] = torch.where(first_QG.gather(1, member_QC) == crowd, part_QC, -torch.inf)
    return out_QN


def first_of_groups(scores_QK: Tensor, passages_QK: Tensor, groups_N: Tensor) -> tuple[Tensor, Tensor]:
    """Of lists sorted best first, those that are the first of their group, moved to the front."""
    group_QK = torch.where(
        passages_QK == NOBODY, -1 - torch.arange(passages_QK.shape[1]), groups_N[passages_QK.clamp_min(0)]
    )
    order_QK = group_QK.argsort(dim=1, stable=True)
    sorted_QK = group_QK.gather(1, order_QK)
    repeat_QK = torch.zeros_like(sorted_QK, dtype=torch.bool)
    repeat_QK[:, 1:] = sorted_QK[:, 1:] == sorted_QK[:, :-1]
    repeat_QK = torch.empty_like(repeat_QK).scatter_(1, order_QK, repeat_QK)
    scores_QK = torch.where(repeat_QK, -torch.inf, scores_QK)
    passages_QK = torch.where(repeat_QK, NOBODY, passages_QK)
    keep_first = repeat_QK.to(torch.uint8).argsort(dim=1, stable=True)
    return scores_QK.gather(1, keep_first), passages_QK.gather(1, keep_first)
