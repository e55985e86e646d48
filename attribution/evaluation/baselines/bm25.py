"""BM25 over all passages: what plain word matching finds. Query = prompt + target."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from headwater.attribution.evaluation.ranking import DEPTH, Passages, Ranking, rank_by_scores
from headwater.attribution.tracing.queries import Query


class BM25:
    """Okapi BM25 (Lucene's variant, k1 = 1.5, b = .75) through `bm25s`, English stop words, Snowball stems."""

    name = "bm25"

    def __init__(self, depth: int = DEPTH) -> None:
        self.depth = depth

    def rank(self, queries: Sequence[Query], passages: Passages) -> list[Ranking]:
        """One ranking per query; a query that shares no word with the corpus leaves the passages in their own order."""
        # Both are imported here because the command line imports this module at start.
        import bm25s
        import Stemmer

        logging.getLogger("bm25s").setLevel(logging.WARNING)  # it sets itself to DEBUG

        stemmer = Stemmer.Stemmer("english")
        corpus = [passages.text(number) for number in range(len(passages))]
        retriever = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
        tokens = bm25s.tokenize(corpus, stopwords="en", stemmer=stemmer, show_progress=False)
        retriever.index(tokens, show_progress=False)
        texts = [f"{query.prompt} {query.target}" for query in queries]
        words = bm25s.tokenize(texts, stopwords="en", stemmer=stemmer, return_ids=False, show_progress=False)
        rankings = []
        for query, query_words in zip(queries, words, strict=True):
            known = [word for word in query_words if word in retriever.vocab_dict]
            scores_N = retriever.get_scores(known) if known else np.zeros(len(passages), dtype=np.float32)
            rankings.append(rank_by_scores(query, scores_N, passages, self.depth))
        return rankings
