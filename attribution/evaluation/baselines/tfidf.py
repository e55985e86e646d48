"""TF-IDF over all passages: cosine of word weights. Query = prompt + target."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from headwater.attribution.evaluation.baselines.bm25 import words_of
from headwater.attribution.evaluation.ranking import Passages, ScoringMethod
from headwater.attribution.tracing.queries import Query


class TfIdf(ScoringMethod):
    """(1 + ln tf) (1 + ln((1 + N) / (1 + df))), rows of unit norm (Salton and Buckley 1988, smoothed as scikit-learn
    does), on the words of BM25.

    scikit-learn itself is not asked: transformers imports it wherever it is installed, a second of every start.
    """

    name = "tfidf"

    def scores(self, queries: Sequence[Query], passages: Passages) -> np.ndarray:
        """Every passage's cosine, float32 [queries, passages]."""
        from scipy.sparse import csr_array

        texts = [passages.text(number) for number in range(len(passages))]
        counted = [Counter(words) for words in words_of(texts)]
        holding = Counter(word for counts in counted for word in counts)
        places = {word: place for place, word in enumerate(holding)}
        weights_V = 1 + np.log((1 + len(texts)) / (1 + np.array(list(holding.values()))))

        def rows(counted: list[Counter[str]]) -> csr_array:
            entries = [
                (row, places[w], n) for row, counts in enumerate(counted) for w, n in counts.items() if w in places
            ]
            row, column, count = np.array(entries, dtype=np.int64).reshape(-1, 3).T
            values = (1 + np.log(count)) * weights_V[column]
            norms = np.sqrt(np.bincount(row, values**2, minlength=len(counted)))
            return csr_array((values / norms[row], (row, column)), shape=(len(counted), len(places)))

        asked = [Counter(words) for words in words_of([f"{query.prompt} {query.target}" for query in queries])]
        return np.asarray((rows(asked) @ rows(counted).T).todense(), dtype=np.float32)
