"""One question of a set: its answer, its neighbours in the list, the same question asked of other methods."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from headwater.attribution.drawing.chart import spoken
from headwater.attribution.drawing.words import clean, probability
from headwater.attribution.explorer.grammar import mask_of
from headwater.attribution.explorer.holdings import OpenedSet
from headwater.attribution.explorer.limits import FILTER_CHARACTERS
from headwater.attribution.explorer.pages.answers import answer_context, answer_rows
from headwater.attribution.explorer.pages.base import Params, Site, View, opened_set, text
from headwater.attribution.explorer.pages.browse import SORTS, ordered_rows


def question(site: Site, params: Params) -> View:
    """The page of the question `q` of a set; `where` and `sort` say which list it is one of."""
    name, opened = opened_set(site, params)
    row = opened.answers.row(text(params, "q", 4000))
    where, sort = text(params, "where", FILTER_CHARACTERS), text(params, "sort", 10)
    answer = opened.answers.answer(row)
    gold = opened.gold(row)
    address: dict[str, Any] = {"set": name, "q": answer.id}
    shown = answer_context(answer, opened.home, site.links, gold, address)
    prob, rank = float(opened.prob[row]), opened.rank[row]
    context = {
        "body": shown,
        "prompt": shown["prompt"],
        "target": shown["target"],
        "against": shown["against"],
        "set": name,
        "label": opened.answers.label,
        "relation": clean(spoken(opened.answers.relations[row].as_py())),
        "facts": [
            ("rank of the first gold passage", f"{int(rank):,}" if np.isfinite(rank) else "–"),
            ("probability of the answer", probability(prob) if np.isfinite(prob) else "–"),
            ("the model answers", said(opened, row)),
        ],
        "others": others(site, name, answer.id),
        **neighbours(site, opened, name, row, where, sort),
        "all": site.links("browse", set=name, where=where, sort=sort),
        "sources": site.links("sources", set=name, q=answer.id),
        "ask": site.links("ask", prompt=answer.prompt, target=answer.target) if askable(site, opened) else "",
    }
    title = clean(f"{answer.prompt} {answer.target}")[:120]
    full = {**address, "where": where, "sort": sort}
    return View("question", title, "question", context, partial(answer_rows, answer, gold), full)


def said(opened: OpenedSet, row: int) -> str:
    known = opened.known[row]
    return "–" if np.isnan(known) else "right" if known else "wrong"


def askable(site: Site, opened: OpenedSet) -> bool:
    return site.desk is not None and any(entry.home is opened.home for entry in site.holdings.indexes.values())


def others(site: Site, name: str, query: str) -> list[dict[str, Any]]:
    """The same question in the other sets that have been opened, and a comparison with each."""
    made = []
    for other, entry in site.holdings.sets.items():
        if other != name and entry.has(query):
            link = site.links("question", set=other, q=query)
            made.append(
                {"label": entry.label, "link": link, "compare": site.links("compare", a=name, b=other, q=query)}
            )
    return made


def neighbours(site: Site, opened: OpenedSet, name: str, row: int, where: str, sort: str) -> dict[str, str]:
    """Links to the questions before and after this one in its list."""
    if sort == "random" or sort not in SORTS:
        sort = ""
    order = ordered_rows(opened, np.flatnonzero(mask_of(where, opened.columns)), sort, 0)
    at = np.flatnonzero(order == row)
    if not len(at):
        return {"back": "", "on": "", "where_it_stands": ""}
    place, ids = int(at[0]), opened.answers.ids

    def link(to: int) -> str:
        inside = 0 <= to < len(order)
        return site.links("question", set=name, q=ids[order[to]], where=where, sort=sort) if inside else ""

    stands = f"{place + 1:,} of {len(order):,}"
    return {"back": link(place - 1), "on": link(place + 1), "where_it_stands": stands}
