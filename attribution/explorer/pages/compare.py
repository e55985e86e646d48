"""Compare: two sets of answers to the same questions, joined by the questions' ids."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from headwater.attribution.drawing.words import clean
from headwater.attribution.evaluation.table import format_value
from headwater.attribution.explorer.grammar import mask_of
from headwater.attribution.explorer.holdings import OpenedSet
from headwater.attribution.explorer.limits import FILTER_CHARACTERS, PAGE_ROWS
from headwater.attribution.explorer.measures import interval
from headwater.attribution.explorer.pages.answers import answer_context
from headwater.attribution.explorer.pages.base import Params, Site, View, number, set_choices, text
from headwater.attribution.explorer.pages.browse import finite
from headwater.attribution.explorer.sets import Answer
from headwater.configs.errors import MismatchError, UserError

DEPTH = 10
POINTS = 3_000
"""Drawn in the chart at most."""
SORTS = {"": "largest gain first", "reverse": "largest loss first", "apart": "least in common"}


class Joined:
    """Two sets, and the questions that both have.

    Attributes:
        rows: their rows in a and b, int64 [n, 2].
        overlap: passages among the first 10 of both, int64 [n].
    """

    def __init__(self, a: OpenedSet, b: OpenedSet) -> None:
        self.a, self.b = a, b
        other = b.answers.row_of
        pairs = [(row, other[name]) for name, row in a.answers.row_of.items() if name in other]
        if not pairs:
            raise MismatchError(
                f"{a.answers.label} and {b.answers.label} have no question in common",
                expected="sets whose example_id are the same",
            )
        self.rows = np.array(pairs, np.int64)
        self.overlap = self._overlap()
        self.rank_a, self.rank_b = a.rank[self.rows[:, 0]], b.rank[self.rows[:, 1]]

    def _overlap(self) -> np.ndarray:
        mine, theirs = self.a.answers.postings, self.b.answers.postings
        code_of = mine.number_of
        codes = np.array([code_of.get(name, -1) for name in theirs.names], np.int64)
        place = np.full(len(self.a.answers), -1, np.int64)
        place[self.rows[:, 0]] = np.arange(len(self.rows))
        there = np.full(len(self.b.answers), -1, np.int64)
        there[self.rows[:, 1]] = np.arange(len(self.rows))
        first = (mine.place < DEPTH) & ~mine.opponent & (place[mine.query] >= 0)
        second = (theirs.place < DEPTH) & ~theirs.opponent & (there[theirs.query] >= 0)
        width = len(mine.names) + 1
        keys_a = place[mine.query[first]] * width + mine.passage[first]
        found = codes[theirs.passage[second]]
        keys_b = (there[theirs.query[second]] * width + found)[found >= 0]
        common = np.intersect1d(keys_a, keys_b) // width
        return np.bincount(common, minlength=len(self.rows))


_joined: dict[tuple[int, int], Joined] = {}


def joined(a: OpenedSet, b: OpenedSet) -> Joined:
    """Two sets joined; the last few joins are kept."""
    key = (id(a), id(b))
    if key not in _joined:
        while len(_joined) > 8:
            _joined.pop(next(iter(_joined)))
        _joined[key] = Joined(a, b)
    return _joined[key]


def compare(site: Site, params: Params) -> View:
    """The page of two sets `a` and `b`, or of one question `q` in both."""
    names = list(site.holdings.sets)
    if len(names) < 2:
        raise UserError(
            "there is nothing to compare with",
            got=", ".join(names),
            expected="two sets of answers",
            fix="`headwater explore RUN RUN`, or `headwater evaluate`, makes more",
        )
    a = text(params, "a") or names[0]
    b = text(params, "b") or next(name for name in names if name != a)
    first, second = site.holdings.set_of(a).open(), site.holdings.set_of(b).open()
    both = joined(first, second)
    query = text(params, "q", 4000)
    return one(site, both, a, b, query) if query else overview(site, both, a, b, params)


def overview(site: Site, both: Joined, a: str, b: str, params: Params) -> View:
    where, sort = text(params, "where", FILTER_CHARACTERS), text(params, "sort", 10)
    sort = sort if sort in SORTS else ""
    mask = mask_of(where, both.a.columns)[both.rows[:, 0]]
    kept = np.flatnonzero(mask)
    order = kept[np.argsort(sort_keys(both, sort)[kept], kind="stable")]
    pages = max(1, -(-len(order) // PAGE_ROWS))
    page = number(params, "page", 1, 1, pages)
    address = {"a": a, "b": b, "where": where, "sort": sort}
    context = {
        "a": a,
        "b": b,
        "label_a": both.a.answers.label,
        "label_b": both.b.answers.label,
        "sets": set_choices(site),
        "pairs": pair_links(site, a, b),
        "swap": site.links("compare", a=b, b=a, where=where),
        "where": where,
        "sort": sort,
        "sorts": SORTS,
        "common": len(both.rows),
        "shown": len(order),
        "measures": paired_measures(both, mask),
        "overlap": overlap_bars(both.overlap[kept]),
        "chart": rank_chart(both, kept),
        "lines": [line(site, both, pair, a, b) for pair in order[(page - 1) * PAGE_ROWS : page * PAGE_ROWS].tolist()],
        "page": page,
        "pages": pages,
        "back": site.links("compare", **address, page=page - 1) if page > 1 else "",
        "on": site.links("compare", **address, page=page + 1) if page < pages else "",
    }
    title = f"{both.a.answers.label} against {both.b.answers.label}"
    full = {**address, "page": page if page > 1 else ""}
    return View("compare", title, "compare", context, partial(flat_rows, both, order), full)


def pair_links(site: Site, a: str, b: str) -> list[dict[str, Any]]:
    """Every other set beside `a`: for a page of files, where nothing can be chosen otherwise."""
    return [
        {"label": entry.label, "link": site.links("compare", a=a, b=name), "on": name == b}
        for name, entry in site.holdings.sets.items()
        if name != a
    ]


def sort_keys(both: Joined, sort: str) -> np.ndarray:
    if sort == "apart":
        return both.overlap.astype(np.float64)
    gap = np.log(np.nan_to_num(both.rank_a, nan=1.0)) - np.log(np.nan_to_num(both.rank_b, nan=1.0))
    if not gap.any():
        return both.overlap.astype(np.float64)
    return gap if sort == "" else -gap


def paired_measures(both: Joined, mask: np.ndarray) -> list[dict[str, Any]]:
    """Each metric that both have: of a, of b, and of the difference question by question."""
    theirs = {measure.name: measure for measure in both.b.measures}
    rows = []
    for measure in both.a.measures:
        other = theirs.get(measure.name)
        if other is None or measure.name in ("known", "prob"):
            continue
        values_a = measure.values_Q[both.rows[:, 0]][mask]
        values_b = other.values_Q[both.rows[:, 1]][mask]
        gap = interval(values_a - values_b)
        of_a, of_b = interval(values_a), interval(values_b)
        if gap is None or of_a is None or of_b is None:
            continue
        verdict = "a" if gap[1] > 0 else "b" if gap[2] < 0 else ""
        rows.append(
            {
                "label": measure.label,
                "about": measure.about,
                "a": [format_value(measure.name, value) for value in of_a],
                "b": [format_value(measure.name, value) for value in of_b],
                "gap": [format_value("tail_patch", value) for value in gap],
                "verdict": verdict,
            }
        )
    return rows


def overlap_bars(overlap: np.ndarray) -> list[dict[str, Any]]:
    counts = np.bincount(overlap, minlength=DEPTH + 1)[: DEPTH + 1]
    top = max(1, int(counts.max()))
    return [{"of": n, "count": int(count), "height": round(92 * count / top, 1)} for n, count in enumerate(counts)]


def rank_chart(both: Joined, kept: np.ndarray) -> dict[str, Any] | None:
    """Rank of the first gold passage in a against that in b, on logarithmic axes; equal pairs are one larger dot."""
    a, b = both.rank_a[kept], both.rank_b[kept]
    having = np.isfinite(a) & np.isfinite(b)
    if not having.any():
        return None
    points, counts = np.unique(np.stack([a[having], b[having]], axis=1), axis=0, return_counts=True)
    top = max(10.0, float(points.max()))
    decades = int(np.ceil(np.log10(top)))

    def place(rank: float) -> float:
        return round(5 + 95 * float(np.log10(rank)) / decades, 2)

    dots = [
        {
            "x": place(x),
            "y": round(100 - place(y), 2),
            "r": round(float(min(13.0, 3.2 + 1.1 * np.sqrt(count - 1))), 2),
            "words": f"rank {int(x):,} in {both.a.answers.label}, {int(y):,} in {both.b.answers.label}: {count:,}",
            "side": "a" if x < y else "b" if y < x else "even",
        }
        for (x, y), count in list(zip(points.tolist(), counts.tolist(), strict=True))[:POINTS]
    ]
    return {
        "dots": sorted(dots, key=lambda dot: -dot["r"]),
        "ticks": [(place(10.0**n), f"{10**n:,}") for n in range(decades + 1)],
        "wins": int((a[having] < b[having]).sum()),
        "losses": int((a[having] > b[having]).sum()),
        "even": int((a[having] == b[having]).sum()),
    }


def line(site: Site, both: Joined, pair: int, a: str, b: str) -> dict[str, Any]:
    row = int(both.rows[pair, 0])
    answers = both.a.answers
    rank_a, rank_b = both.rank_a[pair], both.rank_b[pair]
    return {
        "prompt": clean(answers.prompts[row].as_py()),
        "target": clean(answers.targets[row].as_py()),
        "rank_a": f"{int(rank_a):,}" if np.isfinite(rank_a) else "–",
        "rank_b": f"{int(rank_b):,}" if np.isfinite(rank_b) else "–",
        "better": "a" if rank_a < rank_b else "b" if rank_b < rank_a else "",
        "overlap": int(both.overlap[pair]),
        "link": site.links("compare", a=a, b=b, q=answers.ids[row]),
    }


def one(site: Site, both: Joined, a: str, b: str, query: str) -> View:
    """One question: what both found, what only one of them found."""
    row_a, row_b = both.a.answers.row(query), both.b.answers.row(query)
    found = [both.a.answers.answer(row_a), both.b.answers.answer(row_b)]
    gold = both.a.gold(row_a) | both.b.gold(row_b)
    home = both.a.home or both.b.home
    place_a, place_b = ({each.id: each.place for each in answer.proponents} for answer in found)
    merged: dict[str, Any] = {each.id: each for answer in reversed(found) for each in answer.proponents[:DEPTH]}
    listed = Answer(query, found[0].prompt, found[0].target, proponents=[])
    order = sorted(merged, key=lambda name: (min(place_a.get(name, 1 << 30), place_b.get(name, 1 << 30)), name))
    listed.proponents = [merged[name] for name in order]
    context = answer_context(listed, home, site.links, gold, {})
    groups: dict[str, list[dict[str, Any]]] = {"both": [], "a": [], "b": []}
    for name, card in zip(order, context["proponents"], strict=False):
        card["place_a"], card["place_b"] = place_a.get(name), place_b.get(name)
        card["link"] = site.links("read", p=name, set=a if name in place_a else b, q=query)
        in_a, in_b = place_a.get(name, DEPTH) < DEPTH, place_b.get(name, DEPTH) < DEPTH
        groups["both" if in_a and in_b else "a" if in_a else "b"].append(card)
    context |= {
        "a": a,
        "b": b,
        "label_a": both.a.answers.label,
        "label_b": both.b.answers.label,
        "groups": groups,
        "depth": DEPTH,
        "all": site.links("compare", a=a, b=b),
        "link_a": site.links("question", set=a, q=query),
        "link_b": site.links("question", set=b, q=query),
    }
    title = clean(f"{found[0].prompt} {found[0].target}")[:120]
    rows = partial(one_rows, order, place_a, place_b)
    return View("compare", title, "compare_one", context, rows, {"a": a, "b": b, "q": query})


def one_rows(order: list[str], place_a: dict[str, int], place_b: dict[str, int]) -> Iterator[dict[str, Any]]:
    for name in order:
        ranks = (places.get(name) for places in (place_a, place_b))
        rank_a, rank_b = (None if rank is None else rank + 1 for rank in ranks)
        yield {"passage": name, "rank_a": rank_a, "rank_b": rank_b}


def flat_rows(both: Joined, order: np.ndarray) -> Iterator[dict[str, Any]]:
    for pair in order.tolist():
        row = int(both.rows[pair, 0])
        yield {
            "example_id": both.a.answers.ids[row],
            "rank_a": finite(both.rank_a[pair]),
            "rank_b": finite(both.rank_b[pair]),
            "overlap_at_10": int(both.overlap[pair]),
        }
