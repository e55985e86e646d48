"""Near-duplicates in what a scan finds: of passages that are alike only the best stays.

Two passages are alike if their words are the same (in lower case; what is no letter, digit or underscore separates
words), or if the sets of their runs of five words have at least a given share in common (Jaccard similarity). A list is
gone through from the best down, and a passage is dropped if it is like one that was kept: so the result is that of
collapsing the whole ranking, and its cost does not depend on the size of the corpus.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from headwater.attribution.search.blocks import Scan
from headwater.attribution.search.options import ScanOptions, ScanResult, Source
from headwater.attribution.search.scan import Sink, search
from headwater.attribution.search.topk import NOBODY

SHINGLE = 5
"""Words of a run."""

DEEPER = 4
"""How many times as many passages are looked at, each time that too few are left."""

_WORD = re.compile(r"\w+")


def shingles(text: str) -> frozenset[tuple[str, ...]]:
    """The runs of `SHINGLE` words of a text; of a shorter one the run of all its words."""
    words = _WORD.findall(text.casefold())
    return frozenset(tuple(words[i : i + SHINGLE]) for i in range(max(1, len(words) - SHINGLE + 1)))


def alike(a: frozenset[tuple[str, ...]], b: frozenset[tuple[str, ...]], similar: float) -> bool:
    """Whether the shingles of two texts have a Jaccard similarity of at least `similar`."""
    common = len(a & b)
    return common >= similar * (len(a) + len(b) - common)


class Collapse:
    """The rule, over the texts of one corpus.

    Args:
        text_of: the text of a passage.
        similar: least Jaccard similarity of two texts that are alike, above 0.
    """

    def __init__(self, text_of: Callable[[int], str], similar: float) -> None:
        self.text_of, self.similar = text_of, similar
        self._shingles: dict[int, frozenset[tuple[str, ...]]] = {}

    def _of(self, passage: int) -> frozenset[tuple[str, ...]]:
        if passage not in self._shingles:
            self._shingles[passage] = shingles(self.text_of(passage))
        return self._shingles[passage]

    def keep(self, passages: Sequence[int], count: int) -> dict[int, list[int]]:
        """The first `count` passages of a list that are not like an earlier one, each with those dropped for it."""
        kept: dict[int, list[int]] = {}
        for passage in passages:
            like = next((one for one in kept if alike(self._of(one), self._of(passage), self.similar)), None)
            if like is not None:
                kept[like].append(passage)
            elif len(kept) < count:
                kept[passage] = []
            else:
                break
        return kept


Dropped = list[dict[int, list[int]]]
"""Per query: passage that stays -> those that were dropped for it."""


def scan_collapsed(
    sources: Sequence[Source], options: ScanOptions, collapse: Collapse, sinks: Sequence[Sink] = ()
) -> tuple[ScanResult, Dropped, Dropped]:
    """`scan`, with near-duplicates collapsed at both ends.

    Looks deeper until every list is full or the corpus is exhausted; `sinks` are told the scores once.

    Returns:
        What was found, and what was dropped at the top and at the bottom.
    """
    passages, depth = sources[0].index.passages, DEEPER
    while True:
        deeper = replace(
            options,
            top_k=min(options.top_k * depth, passages),
            bottom_k=min(options.bottom_k * depth, passages),
        )
        found = search(Scan(sources, deeper), sinks=sinks)
        sinks = ()
        top = [collapse.keep(listed(row), options.top_k) for row in found.passages]
        bottom = [collapse.keep(listed(row), options.bottom_k) for row in found.bottom_passages]
        enough = all(len(kept) >= options.top_k for kept in top) and all(len(k) >= options.bottom_k for k in bottom)
        if enough or max(options.top_k, options.bottom_k) * depth >= passages:
            break
        depth *= DEEPER
    found.passages, found.scores = picked(found.passages, found.scores, top, options.top_k)
    found.bottom_passages, found.bottom_scores = picked(
        found.bottom_passages, found.bottom_scores, bottom, options.bottom_k
    )
    return found, top, bottom


def listed(passages_K: np.ndarray) -> list[int]:
    return [int(passage) for passage in passages_K if passage != NOBODY]


def picked(passages_QK: np.ndarray, scores_QK: np.ndarray, kept: Dropped, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The kept passages and their scores, [Q, count]; empty places hold -1 and NaN."""
    passages_Qk = np.full((len(kept), count), NOBODY, dtype=np.int64)
    scores_Qk = np.full((len(kept), count), np.nan, dtype=np.float32)
    for q, each in enumerate(kept):
        stays = np.isin(passages_QK[q], list(each))
        passages_Qk[q, : stays.sum()] = passages_QK[q][stays]
        scores_Qk[q, : stays.sum()] = scores_QK[q][stays]
    return passages_Qk, scores_Qk
