"""Retrieval metrics per query, from the ranks of the gold passages over the whole corpus.

All functions take `ranks`: one sequence of 0-based gold ranks per query, and give float64 [Q]. A query without gold
passages has no value: leave it out first (`with_gold`). Definitions follow TrackStar (arXiv 2410.17413): the reciprocal
rank is 1 / (1 + rank of the first gold passage), recall@k the share of a query's gold passages among its first k,
precision@k the share of gold among the first k; hit@k is 1 where any gold passage is among the first k, strict@k, the
strict recall, where all are. DATE-LM (arXiv 2507.09424) gives the mean reciprocal rank and recall@50.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from headwater.attribution.evaluation.ranking import Ranking
from headwater.configs.errors import UserError

Ranks = Sequence[Sequence[int]]
METRICS = ("mrr", "recall@10", "hit@10", "precision@10")
"""What is always measured."""


def reciprocal_rank(ranks: Ranks) -> np.ndarray:
    """1 / (1 + rank of the first gold passage), float64 [Q]."""
    return np.array([1.0 / (1 + min(each)) for each in checked(ranks)], dtype=np.float64)


def recall(ranks: Ranks, k: int = 10) -> np.ndarray:
    """Share of each query's gold passages among its first k, float64 [Q]."""
    return np.array([sum(rank < k for rank in each) / len(each) for each in checked(ranks)], dtype=np.float64)


def hit(ranks: Ranks, k: int = 10) -> np.ndarray:
    """1 where a gold passage is among the first k, else 0; float64 [Q]."""
    return np.array([float(min(each) < k) for each in checked(ranks)], dtype=np.float64)


def strict(ranks: Ranks, k: int = 10) -> np.ndarray:
    """1 where all gold passages are among the first k, else 0; float64 [Q]."""
    return np.array([float(max(each) < k) for each in checked(ranks)], dtype=np.float64)


def precision(ranks: Ranks, k: int = 10) -> np.ndarray:
    """Share of gold among the first k, float64 [Q]; at most (number of gold passages) / k."""
    return np.array([sum(rank < k for rank in each) / k for each in checked(ranks)], dtype=np.float64)


def checked(ranks: Ranks) -> Ranks:
    for number, each in enumerate(ranks):
        if len(each) == 0:
            raise ValueError(f"query {number} has no gold passage: leave it out first")
        if min(each) < 0 or len(set(each)) != len(each):
            raise ValueError(f"query {number}: gold ranks must be distinct and not negative, got {list(each)}")
    return ranks


def with_gold(rankings: Sequence[Ranking]) -> list[Ranking]:
    """The rankings of the queries that have gold passages.

    Raises:
        UserError: if there is none, so that nothing can be measured.
    """
    kept = [each for each in rankings if each.gold_ranks]
    if not kept:
        raise UserError(
            "no query has gold passages", got=f"{len(rankings)} queries", fix="give each probe its `gold` passage ids"
        )
    return kept


def retrieval(rankings: Sequence[Ranking], metrics: Sequence[str] = METRICS) -> dict[str, np.ndarray]:
    """Retrieval metrics of one method, each float64 [Q].

    Q counts the queries with gold passages, in the order of `rankings`. Where the corpus's own text states some facts
    there are "own_mrr" and "own_hit@10" too, over the queries whose facts it states; each of the two kinds of passages
    is then ranked as if the other, which is not wrong, were not in the corpus.

    Args:
        metrics: `mrr`, and `recall`, `strict`, `hit` or `precision` at any place, as `recall@50`.

    Raises:
        UserError: if no query has gold passages.
    """
    ranks = [without(each.gold_ranks, each.own_ranks) for each in with_gold(rankings)]
    at_place = {"recall": recall, "strict": strict, "hit": hit, "precision": precision}
    values = {}
    for metric in metrics:
        name, _, place = metric.partition("@")
        values[metric] = at_place[name](ranks, int(place)) if place else reciprocal_rank(ranks)
    own = [without(each.own_ranks, each.gold_ranks) for each in rankings if each.own_ranks]
    return values | ({"own_mrr": reciprocal_rank(own), "own_hit@10": hit(own)} if own else {})


def without(ranks: Sequence[int], others: Sequence[int]) -> list[int]:
    """Ranks as if those others were not in the corpus."""
    return [rank - sum(other < rank for other in others) for rank in ranks]
