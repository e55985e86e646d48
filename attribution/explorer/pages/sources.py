"""Sources: the influence that a question, or a set of questions, sums up to by source, document, and planted or not."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from headwater.attribution.drawing.words import clean
from headwater.attribution.explorer.grammar import mask_of
from headwater.attribution.explorer.holdings import OpenedSet
from headwater.attribution.explorer.limits import FILTER_CHARACTERS, LABEL_CHARACTERS
from headwater.attribution.explorer.pages.base import Params, Site, View, opened_set, set_choices, text
from headwater.attribution.explorer.pages.cards import score_words

DOCUMENTS = 40
"""Shown at most; the downloads have all."""


def sources(site: Site, params: Params) -> View:
    """The page, of the question `q` or of all that `where` leaves."""
    name, opened = opened_set(site, params)
    where, query = text(params, "where", FILTER_CHARACTERS), text(params, "q", 4000)
    if query:
        rows = np.array([opened.answers.row(query)])
    else:
        rows = np.flatnonzero(mask_of(where, opened.columns))
    share = Influence(opened, rows)
    documents = share.by_document(DOCUMENTS)
    address: dict[str, Any] = {"set": name, "where": where, "q": query}
    asked = None
    if query:
        row = int(rows[0])
        asked = {
            "prompt": clean(opened.answers.prompts[row].as_py()),
            "target": clean(opened.answers.targets[row].as_py()),
            "link": site.links("question", set=name, q=query),
        }
    context = {
        "set": name,
        "label": opened.answers.label,
        "sets": set_choices(site),
        "where": where,
        "query": query,
        "asked": asked,
        "questions": len(rows),
        "scored": share.scored,
        "groups": [group for group in (share.by_source(), share.by_gold()) if group],
        "documents": {"title": "By document", "bars": bars(documents, share.whole)},
        "left": share.documents - len(documents),
        "all": site.links("sources", set=name) if query or where else "",
    }
    title = f"Sources of {opened.answers.label}" if not query else "Sources of one answer"
    return View("sources", title, "sources", context, partial(flat_rows, share), address)


class Influence:
    """Proponents of some questions, and what each weighs: its score, or 1 in a ranking without scores."""

    def __init__(self, opened: OpenedSet, rows: np.ndarray) -> None:
        self.opened = opened
        postings = opened.answers.postings
        chosen = np.zeros(len(opened.answers), bool)
        chosen[rows] = True
        # Of a ranking the first places alone: it names a hundred whatever they are worth.
        entries = np.flatnonzero(chosen[postings.query] & ~postings.opponent & (postings.place < 20))
        self.passage, self.query = postings.passage[entries], postings.query[entries]
        score = postings.score[entries]
        self.scored = bool(np.isfinite(score).any())
        self.weight = np.where(np.isfinite(score), score, 0.0 if self.scored else 1.0).astype(np.float64)
        self.names = postings.names
        self.documents, self.whole = 0, 0.0

    def summed(self, code: np.ndarray, names: list[str]) -> list[tuple[str, float, int]]:
        """(name, weight, passages named) of each name that is named; `code` is of each entry."""
        weight = np.bincount(code, self.weight, len(names))
        count = np.bincount(code, minlength=len(names))
        return [(names[n], float(weight[n]), int(count[n])) for n in np.flatnonzero(count).tolist()]

    def by_document(self, most: int | None = None) -> list[tuple[str, float, int]]:
        """The documents with the largest sums first; equal ones by their names."""
        names, code = self.opened.documents
        mine = code[self.passage]
        weight = np.bincount(mine, self.weight, len(names))
        count = np.bincount(mine, minlength=len(names))
        named = np.flatnonzero(count)
        self.documents, self.whole = len(named), float(weight.sum())
        if most is not None and most < len(named):
            least = np.partition(weight[named], -most)[-most]
            named = named[weight[named] >= least]
        found = [(names[n], float(weight[n]), int(count[n])) for n in named.tolist()]
        return sorted(found, key=lambda each: (-each[1], each[0]))[:most]

    def by_source(self) -> dict[str, Any] | None:
        if self.opened.sources is None or not len(self.passage):
            return None
        names, code = self.opened.sources
        return {"title": "By source", "bars": bars(self.summed(code[self.passage], names))}

    def by_gold(self) -> dict[str, Any] | None:
        """Passages known to state the answer against all others."""
        golds = {row: self.opened.gold(row) for row in np.unique(self.query).tolist()}
        if not any(golds.values()):
            return None
        is_gold = [
            self.names[n] in golds[row] for n, row in zip(self.passage.tolist(), self.query.tolist(), strict=True)
        ]
        found = self.summed(np.array(is_gold, np.int64), ["does not", "states the answer"])
        return {"title": "Gold or not", "bars": bars(found[::-1])}


def bars(found: list[tuple[str, float, int]], whole: float | None = None) -> list[dict[str, Any]]:
    """Bars of (name, weight, passages named); shares are of `whole`, or of all that are given."""
    top = max((abs(weight) for _, weight, _ in found), default=1.0) or 1.0
    whole = (whole if whole is not None else sum(weight for _, weight, _ in found)) or 1.0
    return [
        {
            "name": clean(name)[:LABEL_CHARACTERS],
            "weight": score_words(weight).lstrip("+"),
            "share": share_words(weight / whole),
            "length": round(100 * abs(weight) / top, 1),
            "count": f"{count:,}",
        }
        for name, weight, count in found
    ]


def share_words(share: float) -> str:
    return "–" if share < 0 else f"{100 * share:.0f}%" if share >= 0.0995 else f"{100 * share:.1f}%"


def flat_rows(share: Influence) -> Iterator[dict[str, Any]]:
    for document, weight, count in share.by_document():
        yield {"document": document, "influence": weight, "passages": count}
