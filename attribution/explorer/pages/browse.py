"""Browse: the questions of a set, filtered, sorted, measured, a page at a time."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from headwater.attribution.drawing.chart import spoken
from headwater.attribution.drawing.words import clean, probability
from headwater.attribution.evaluation.table import format_value
from headwater.attribution.explorer.grammar import mask_of
from headwater.attribution.explorer.holdings import OpenedSet
from headwater.attribution.explorer.limits import FILTER_CHARACTERS, PAGE_ROWS
from headwater.attribution.explorer.measures import interval
from headwater.attribution.explorer.pages.base import Params, Site, View, number, opened_set, set_choices, text
from headwater.attribution.explorer.pages.cards import score_words

SORTS = {
    "": "as in the file",
    "worst": "deepest gold first",
    "best": "highest gold first",
    "score": "highest score first",
    "prob": "best known first",
    "-prob": "least known first",
    "random": "at random",
}
FACETS = 24
"""Relations offered as a click."""


def browse(site: Site, params: Params) -> View:
    """The page; `where`, `sort`, `page` and `seed` (of the order at random) say what of it."""
    name, opened = opened_set(site, params)
    where, sort = text(params, "where", FILTER_CHARACTERS), text(params, "sort", 10)
    sort = sort if sort in SORTS else ""
    mask = mask_of(where, opened.columns)
    seed = number(params, "seed", 0)
    order = ordered_rows(opened, np.flatnonzero(mask), sort, seed)
    pages = max(1, -(-len(order) // PAGE_ROWS))
    page = number(params, "page", 1, 1, pages)
    rows = order[(page - 1) * PAGE_ROWS : page * PAGE_ROWS]
    address: dict[str, Any] = {"set": name, "where": where, "sort": sort, "seed": seed or ""}
    context = {
        "set": name,
        "label": opened.answers.label,
        "sets": set_choices(site),
        "where": where,
        "sort": sort,
        "sorts": {key: words for key, words in SORTS.items() if key not in absent_sorts(opened)},
        "shown": len(order),
        "total": len(opened.answers),
        "figures": figures(opened, mask),
        "facets": facets(site, opened, name, where, sort),
        "lines": [line(site, opened, name, row, where, sort) for row in rows.tolist()],
        "first": (page - 1) * PAGE_ROWS + 1,
        "page": page,
        "pages": pages,
        "back": site.links("browse", **address, page=page - 1) if page > 1 else "",
        "on": site.links("browse", **address, page=page + 1) if page < pages else "",
        "fields": opened.columns.names,
        "incomplete": opened.answers.incomplete,
        "has": {
            "rank": bool(np.isfinite(opened.rank).any()),
            "prob": bool(np.isfinite(opened.prob).any()),
            "score": bool(np.isfinite(opened.answers.best_score).any()),
            "relation": bool(opened.relation_names),
        },
    }
    title = f"{len(order):,} questions of {opened.answers.label}"
    address["page"] = page if page > 1 else ""
    return View("browse", title, "browse", context, partial(flat_rows, opened, order), address)


def ordered_rows(opened: OpenedSet, rows: np.ndarray, sort: str, seed: int) -> np.ndarray:
    """The rows in the order asked; what has no value comes last."""
    keys = {
        "worst": -opened.rank,
        "best": opened.rank,
        "score": -opened.answers.best_score,
        "prob": -opened.prob,
        "-prob": opened.prob,
    }
    if sort == "random":
        return np.random.default_rng(seed).permutation(rows)
    return rows[np.argsort(keys[sort][rows], kind="stable")] if sort in keys else rows


def absent_sorts(opened: OpenedSet) -> set[str]:
    """Orders that this set has no values for."""
    absent = set() if np.isfinite(opened.rank).any() else {"worst", "best"}
    absent |= set() if np.isfinite(opened.prob).any() else {"prob", "-prob"}
    return absent | (set() if np.isfinite(opened.answers.best_score).any() else {"score"})


def figures(opened: OpenedSet, mask: np.ndarray) -> list[dict[str, str]]:
    """The metrics of what a filter leaves."""
    shown = []
    for measure in opened.measures:
        found = interval(measure.values_Q[mask])
        if found is not None:
            mean, low, high = (format_value(measure.name, value) for value in found)
            shown.append({"label": measure.label, "about": measure.about, "mean": mean, "low": low, "high": high})
    return shown


def facets(site: Site, opened: OpenedSet, name: str, where: str, sort: str) -> list[dict[str, Any]]:
    """A link for each relation, and for all."""
    names = opened.relation_names
    if not 1 < len(names) <= FACETS:
        return []
    made = [{"label": "all", "link": site.links("browse", set=name, sort=sort), "on": not where}]
    for number_, relation in enumerate(names):
        wanted = f'relation="{relation}"' if '"' not in relation else ""
        link = site.links("browse", set=name, where=wanted, sort=sort)
        made.append({"label": clean(spoken(relation)), "link": link, "on": where == wanted, "colour": number_ % 8})
    return made


def line(site: Site, opened: OpenedSet, name: str, row: int, where: str, sort: str) -> dict[str, Any]:
    """One question of the list."""
    answers = opened.answers
    relation = answers.relations[row].as_py()
    names = opened.relation_names
    prob, rank = float(opened.prob[row]), opened.rank[row]
    return {
        "prompt": clean(answers.prompts[row].as_py()),
        "target": clean(answers.targets[row].as_py()),
        "relation": clean(spoken(relation)),
        "colour": names.index(relation) % 8 if relation in names else 7,
        "rank": f"{int(rank):,}" if np.isfinite(rank) else "–",
        "hit": bool(rank == 1),
        "prob": probability(prob) if np.isfinite(prob) else "–",
        "length": round(100 * prob, 1) if np.isfinite(prob) else 0,
        "known": bool(opened.known[row] == 1),
        "score": score_words(float(answers.best_score[row])),
        "link": site.links("question", set=name, q=answers.ids[row], where=where, sort=sort),
    }


def flat_rows(opened: OpenedSet, order: np.ndarray) -> Iterator[dict[str, Any]]:
    """What the list shows, for JSON and CSV."""
    answers = opened.answers
    for row in order.tolist():
        yield {
            "example_id": answers.ids[row],
            "prompt": answers.prompts[row].as_py(),
            "target": answers.targets[row].as_py(),
            "relation": answers.relations[row].as_py(),
            "rank_of_first_gold": finite(opened.rank[row]),
            "score": finite(answers.best_score[row]),
            "probability": finite(opened.prob[row]),
            "answered_right": finite(opened.known[row]),
        }


def finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
