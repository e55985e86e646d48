"""Scores of single tokens, which add up to their passage's score.

A passage's gradient is a sum over its places: in every linear layer, the output gradient at a place times the input
there. A score is linear in the whitened row once the row's norm is known, so each place's own row, multiplied with the
query and divided by the passage's norm, is its part of the score. A token's part holds what its place contributes to
the prediction of the next token and, through attention, to that of later ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from headwater.attribution.index.codecs.plain import Float32Codec
from headwater.attribution.models.base import Example
from headwater.attribution.rows.checks import require_finite
from headwater.attribution.rows.collector import GradientCollector
from headwater.attribution.search.blocks import fields_of_rows
from headwater.attribution.search.distributed import distributed, rank_and_world
from headwater.attribution.search.options import ScanResult, Source
from headwater.attribution.search.scorer import BlockScorer, Scoring, prepare_queries
from headwater.attribution.search.topk import NOBODY
from headwater.configs.errors import UserError
from headwater.train.stream.passages import PassageSet


class TokenScorer:
    """Scores the tokens of passages for the queries of some sources, whose scores are added.

    Args:
        sources: indexes with the queries' rows.
        collectors: what makes gradient rows at each index's checkpoint.
        scoring: how a score is made.

    Raises:
        UserError: an index holds captured rows, which are means over a training and have no gradient of their own.
    """

    def __init__(self, sources: Sequence[Source], collectors: Sequence[GradientCollector], scoring: Scoring) -> None:
        for source in sources:
            if "captured" in source.index.manifest:
                raise UserError(
                    "captured rows have no token scores",
                    got=source.index.path,
                    expected="indexes of checkpoints, whose gradients can be made again",
                    fix="set tokens=false, or trace an index of a checkpoint",
                )
        self.sources, self.collectors = list(sources), list(collectors)
        prepared = [prepare_queries(s.index, s.queries, scoring, s.task_queries) for s in sources]
        self._scorers = [
            BlockScorer(each, Float32Codec(source.index.layout)) for each, source in zip(prepared, sources, strict=True)
        ]
        # q . (W g) = (W q) . g, as the whitening W is symmetric.
        self._pulled = [
            source.index.whitening.apply(each.queries_QD) for each, source in zip(prepared, sources, strict=True)
        ]

    def scores(self, passage: Example, queries: Sequence[int] | None = None) -> Tensor:
        """Parts of a passage's scores, one for each token. Their sum over T is the exact score.

        Args:
            queries: numbers of the queries whose scores are wanted; all if not given.

        Returns:
            float32 [T, Q], Q the queries that are wanted.
        """
        wanted = list(range(len(self.sources[0].queries))) if queries is None else list(queries)
        total_TQ = torch.zeros(len(passage.tokens), len(wanted))
        for source, collector, scorer, pulled_QD in zip(
            self.sources, self.collectors, self._scorers, self._pulled, strict=True
        ):
            rows_TD = collector.token_rows(passage)
            require_finite(rows_TD, what="tokens' gradient rows")
            fields = fields_of_rows(source.index, rows_TD.sum(dim=0, keepdim=True, dtype=torch.float64).float())
            factor = scorer.factors(fields) / fields["norm"].clamp_min(torch.finfo(torch.float32).tiny)
            total_TQ += (rows_TD @ pulled_QD[wanted].T).mul_(source.weight * factor)
        return total_TQ


def score_tokens(found: ScanResult, scorer: TokenScorer, passages: PassageSet) -> dict[tuple[int, int], np.ndarray]:
    """Scores the tokens of what each query has found, and puts the sums in place of their scores, best first: the
    scan's own are as exact as the codec.

    Args:
        found: of a scan; changed in place.
        passages: that it was found in.

    Returns:
        (passage, query) -> float32 [T], of the pairs that are shown, on every rank.
    """
    shown: dict[int, list[int]] = {}
    for q, lists in enumerate(zip(found.passages, found.bottom_passages, strict=True)):
        for number in np.unique(np.concatenate(lists)).tolist():
            if number != NOBODY:
                shown.setdefault(number, []).append(q)
    rank, world = rank_and_world()
    mine: dict[tuple[int, int], np.ndarray] = {}
    for number in sorted(shown)[rank::world]:
        scores_TQ = scorer.scores(Example.of_passage(passages, number), shown[number]).numpy()
        mine |= {(number, q): scores_TQ[:, place].copy() for place, q in enumerate(shown[number])}
    parts: list[dict[tuple[int, int], np.ndarray]] = [mine] * world
    if distributed():
        torch.distributed.all_gather_object(parts, mine)
    scores = {pair: value for part in parts for pair, value in part.items()}
    for passages_Qk, scores_Qk, sign in (
        (found.passages, found.scores, -1),
        (found.bottom_passages, found.bottom_scores, 1),
    ):
        for q, row in enumerate(passages_Qk):
            exact = [scores[int(n), q].sum(dtype=np.float64) if n != NOBODY else np.nan for n in row]
            order = np.lexsort((row, sign * np.array(exact, dtype=np.float64)))  # NaN, of empty places, comes last
            passages_Qk[q], scores_Qk[q] = row[order], np.array(exact, dtype=np.float32)[order]
    return scores
