"""BM25 over all passages: what plain word matching finds. Query = prompt + target."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from headwater.attribution.evaluation.ranking import Passages, ScoringMethod
from headwater.attribution.tracing.queries import Query


class BM25(ScoringMethod):
    """Okapi BM25 (Lucene's variant, k1 = 1.5, b = .75) through `bm25s`, English stop words, Snowball stems."""

    name = "bm25"

    def scores(self, queries: Sequence[Query], passages: Passages) -> np.ndarray:
        """Every passage's score, float32 [queries, passages]; 0 where a query shares no word with it."""
        import bm25s

        retriever = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
        retriever.index(tokenized([passages.text(number) for number in range(len(passages))]), show_progress=False)
        words = words_of([f"{query.prompt} {query.target}" for query in queries])
        scores_QN = np.zeros((len(queries), len(passages)), dtype=np.float32)
        for number, query_words in enumerate(words):
            known = [word for word in query_words if word in retriever.vocab_dict]
            if known:
                scores_QN[number] = retriever.get_scores(known)
        return scores_QN


def tokenized(texts: list[str], return_ids: bool = True) -> Any:
    """The stemmed words of texts without stop words, as bm25s numbers them."""
    # Both are imported here because the command line imports this module at start.
    import bm25s
    import Stemmer

    logging.getLogger("bm25s").setLevel(logging.WARNING)  # it sets itself to DEBUG
    stemmer = Stemmer.Stemmer("english")
    return bm25s.tokenize(texts, stopwords="en", stemmer=stemmer, return_ids=return_ids, show_progress=False)


def words_of(texts: list[str]) -> list[list[str]]:
    """The stemmed words of texts, without stop words."""
    return tokenized(texts, return_ids=False)
