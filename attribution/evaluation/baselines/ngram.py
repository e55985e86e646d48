"""Exact n-gram match over all passages: what copying would find. Query = prompt + target.

A *run* is a stretch of the query's words, of any length, that some passage holds word for word. A passage's score is

    sum over the words w of the query of max { ln((1 + N) / holders(r)) : r is a run around w that the passage holds },

with N passages, of which holders(r) hold r: each word counts as much as the rarest run that it has in common with the
passage, and that is always a run that cannot be made longer there. These are the maximal matching spans of OLMoTrace
(Liu et al. 2025, arXiv 2504.07096), which prefers those whose words are rare; here the run itself is counted, however
long, as infini-gram counts n-grams (Liu et al. 2024, arXiv 2401.17377). Of single words alone this is the sum of their
inverse document frequencies. Nothing depends on an order, so that there are no ties to break but between passages.

The package `infini-gram` is not asked: the places of every run are a few lines over words that are held anyway, while
it works through files, changes the working directory, and has no wheel for ARM processors. A test finds its counts
ours.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np

from headwater.attribution.evaluation.ranking import Passages, ScoringMethod
from headwater.attribution.tracing.queries import Query

WORD = re.compile(r"\w+|[^\w\s]")
"""A word, or a mark."""
END, UNHEARD = -1, -2
"""What stands behind a passage's words, and for a query's word that is in no passage, or for none."""
NOWHERE = np.zeros(0, dtype=np.int64)


class NGram(ScoringMethod):
    """Rarity of the longest runs of words in common, case aside; it reads no tokenizer."""

    name = "ngram"

    def scores(self, queries: Sequence[Query], passages: Passages) -> np.ndarray:
        """Every passage's score, float32 [queries, passages]; 0 where a query shares no word with it."""
        words = CorpusWords(passages)
        scores_QN = np.zeros((len(queries), len(passages)), dtype=np.float32)
        for scores_N, query in zip(scores_QN, queries, strict=True):
            scores_N[:] = words.scores(f"{query.prompt} {query.target}")
        return scores_QN


class CorpusWords:
    """The words of all passages in a row, and where each of them stands: 12 bytes a word.

    Shapes: N passages, T words with one END behind each passage, V different words, M words of a query.
    """

    def __init__(self, passages: Passages) -> None:
        self.numbers: dict[str, int] = {}
        texts = []
        for passage in range(len(passages)):
            words = words_of(passages.text(passage))
            numbers = [self.numbers.setdefault(word, len(self.numbers)) for word in words]
            texts.append(np.array([*numbers, END], dtype=np.int32))
        lengths_N = np.array([len(text) for text in texts], dtype=np.int64)
        self.starts_N = np.cumsum(lengths_N) - lengths_N
        self.words_T = np.concatenate(texts)
        self.places_T = np.argsort(self.words_T, kind="stable")
        self.first_V = np.searchsorted(self.words_T, np.arange(len(self.numbers) + 1), sorter=self.places_T)

    def numbered(self, text: str) -> np.ndarray:
        """The numbers of a query's words, int32 [M]; UNHEARD where a word is in no passage."""
        return np.array([self.numbers.get(word, UNHEARD) for word in words_of(text)], dtype=np.int32)

    def runs(self, asked_M: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
        """The runs of a query that some place does not make longer, to either side: which words each has, and all
        places where it begins, ascending, int64."""
        ended = [*asked_M.tolist(), UNHEARD]  # so that UNHEARD stands before the first word, too
        for first, word in enumerate(asked_M):
            places = self.places_T[self.first_V[word] : self.first_V[word + 1]] if word != UNHEARD else NOWHERE
            stop = first
            # Where every place has the query's word before it, too, the run that began with that word has it all.
            while len(places) and (self.words_T[places - 1] != ended[first - 1]).any():
                stop += 1
                further = places[self.words_T[places + stop - first] == ended[stop]]
                if len(further) < len(places):
                    yield slice(first, stop), places
                places = further

    def scores(self, text: str) -> np.ndarray:
        """Every passage's score for a query, float32 [N]."""
        asked_M, count = self.numbered(text), len(self.starts_N)
        held = []
        for run, places in self.runs(asked_M):
            holders = np.unique(np.searchsorted(self.starts_N, places, side="right") - 1)
            held.append((np.log((1 + count) / len(holders)), run, holders))
        held.sort(key=lambda each: each[0])  # rarer ones over what is more common
        scores_N = np.zeros(count, dtype=np.float32)
        for word in range(len(asked_M)):
            rarest_N = np.zeros(count, dtype=np.float32)
            for rarity, run, holders in held:
                if run.start <= word < run.stop:
                    rarest_N[holders] = rarity
            scores_N += rarest_N
        return scores_N


def words_of(text: str) -> list[str]:
    """Words and marks of a text, in order; case and ways to write the same letter aside."""
    return WORD.findall(unicodedata.normalize("NFKC", text).casefold())
