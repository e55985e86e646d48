"""Results in the published format, of what a filter leaves: what `headwater trace` writes, and PAIR's viewer draws."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np

from headwater.attribution.explorer.grammar import mask_of
from headwater.attribution.explorer.holdings import OpenedSet
from headwater.attribution.explorer.limits import DOWNLOAD_ROWS, FILTER_CHARACTERS
from headwater.attribution.explorer.pages.answers import pair_record
from headwater.attribution.explorer.pages.base import Params, Site, opened_set, text
from headwater.attribution.explorer.pages.cards import Cards


def pair_lines(site: Site, params: Params) -> Iterator[str]:
    """One line a question, of the set `set`: all that `where` leaves, or `q` alone. A ranking's texts are looked up."""
    _, opened = opened_set(site, params)
    query = text(params, "q", 4000)
    if query:
        rows = np.array([opened.answers.row(query)])
    else:
        rows = np.flatnonzero(mask_of(text(params, "where", FILTER_CHARACTERS), opened.columns))[:DOWNLOAD_ROWS]
    return (line_of(site, opened, row) for row in rows.tolist())


def line_of(site: Site, opened: OpenedSet, row: int) -> str:
    answer, gold = opened.answers.answer(row), opened.gold(row)
    if any(each.text is None for each in answer.proponents):
        Cards(opened.home, site.links).look_up([*answer.proponents, *answer.opponents])
    for each in answer.proponents:
        if each.gold is None and gold:
            each.gold = each.id in gold
    return json.dumps(pair_record(answer), ensure_ascii=False) + "\n"
