"""TF-IDF over all passages: cosine of word weights. Query = prompt + target."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from headwater.attribution.evaluation.ranking import DEPTH, Passages, Ranking, rank_by_scores
from headwater.attribution.tracing.queries import Query


class TfIdf:
    """scikit-learn's TF-IDF: words and pairs of words, logarithmic counts, English stop words, cosine."""

    name = "tfidf"

    def __init__(self, depth: int = DEPTH) -> None:
        self.depth = depth

    def rank(self, queries: Sequence[Query], passages: Passages) -> list[Ranking]:
        """One ranking per query; a query that shares no word with the corpus leaves the passages in their own order."""
        scores_QN = self.scores(queries, passages)
        return [
            rank_by_scores(query, scores_N, passages, self.depth)
            for query, scores_N in zip(queries, scores_QN, strict=True)
        ]

    def scores(self, queries: Sequence[Query], passages: Passages) -> np.ndarray:
        """Every passage's cosine, float32 [queries, passages]."""
        from sklearn.feature_extraction.text import TfidfVectorizer

        weigher = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), stop_words="english", dtype=np.float32)
        passages_NV = weigher.fit_transform(passages.text(number) for number in range(len(passages)))
        queries_QV = weigher.transform(f"{query.prompt} {query.target}" for query in queries)
        return np.asarray((queries_QV @ passages_NV.T).todense(), dtype=np.float32)
