"""Passages and curves as the pages draw them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from headwater.attribution.drawing.chart import Axis, format_tick, printed
from headwater.attribution.drawing.curves import curve_view
from headwater.attribution.drawing.words import clean, excerpt, highlight, seen_view
from headwater.attribution.explorer.holdings import Home
from headwater.attribution.explorer.library import document_of
from headwater.attribution.explorer.limits import EXCERPT, LABEL_CHARACTERS
from headwater.attribution.explorer.pages.base import Links, axis_of, ordinal
from headwater.attribution.explorer.sets import Answer, Found
from headwater.configs.errors import UserError

_WORD = re.compile(r"\w+")
_COMMON = (
    "a an and are as at be been but by for from had has have he her his in into is it its of on or she that the "
    "their them they this to was were which who will with"
)
COMMON = frozenset(_COMMON.split())
"""Words that say nothing about a passage when it shares them."""
SHARED_RUNS = 12
TOPS = (0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
"""Where the axis of a probability may end."""


def score_words(score: float | None) -> str:
    """`+.139`; small scores with two figures that count."""
    if score is None or not np.isfinite(score):
        return "–"
    digits = 3 if abs(score) >= 0.01 or score == 0 else 4
    return printed(f"{score:+.{digits}f}")


def shared_runs(passage: str, query: str) -> list[str]:
    """The runs of words that a passage has in common with a query, the longest first; common words alone are none."""
    words = [found.group() for found in _WORD.finditer(query.casefold())]
    there = [found.group() for found in _WORD.finditer(passage.casefold())][:5_000]
    starts: dict[str, list[int]] = {}
    for place, word in enumerate(there):
        starts.setdefault(word, []).append(place)
    runs, place = [], 0
    while place < len(words):
        longest = max((run_length(words, place, there, at) for at in starts.get(words[place], ())), default=0)
        run = words[place : place + longest]
        if any(word not in COMMON for word in run):
            runs.append(" ".join(run))
        place += max(1, longest)
    return sorted(set(runs), key=lambda run: (-len(run.split()), run))[:SHARED_RUNS]


def run_length(words: Sequence[str], place: int, there: Sequence[str], at: int) -> int:
    length = 0
    while place + length < len(words) and at + length < len(there) and words[place + length] == there[at + length]:
        length += 1
    return length


class Cards:
    """Passages of one home, looked up together: one pass over the ids, one over the ledger.

    Args:
        home: where texts, numbers and steps come from; None for a file of results that lies alone.
        links: addresses.
    """

    def __init__(self, home: Home | None, links: Links) -> None:
        self.home, self.links = home, links
        self.axis: Axis = axis_of(home)

    def look_up(self, found: Iterable[Found]) -> dict[str, Found]:
        """Adds texts and steps to what a file said of its passages, where the run has them; gives them by id."""
        by_id = {each.id: each for each in found}
        library = self.home.library if self.home is not None else None
        if library is None:
            return by_id
        try:
            numbers = library.numbers(by_id)
            without = [name for name, each in by_id.items() if each.text is None and name in numbers]
            for name, read in library.texts(without).items():
                by_id[name].text = read
            if library.has_ledger:
                unseen = [numbers[name] for name, each in by_id.items() if each.seen is None and name in numbers]
                steps = library.seen(unseen)
                for name, each in by_id.items():
                    if each.seen is None and name in numbers:
                        each.seen = steps[numbers[name]]
        except UserError:
            if all(each.text is None for each in by_id.values()):
                raise  # the file alone shows nothing
        return by_id

    def cards(self, answer: Answer, gold: set[str], *, subject: str, address: dict[str, str]) -> dict[str, list[dict]]:
        """The proponents and opponents of an answer.

        Args:
            gold: ids known to state the answer, where the file does not say.
            subject: what the question is about, underlined in texts.
            address: parameters of the links to a passage's own page.
        """
        scores = [each.score for each in (*answer.proponents, *answer.opponents) if each.score is not None]
        top = max((abs(score) for score in scores if np.isfinite(score)), default=1.0) or 1.0
        self.look_up([*answer.proponents, *answer.opponents])
        return {
            "proponents": [self.card(each, answer, gold, subject, top, address) for each in answer.proponents],
            "opponents": [self.card(each, answer, gold, subject, top, address) for each in answer.opponents],
        }

    def card(
        self, found: Found, answer: Answer, gold: set[str], subject: str, top: float, address: dict[str, str]
    ) -> dict[str, Any]:
        shown = excerpt(found.text or "", answer.target, EXCERPT)
        shared = [] if subject else shared_runs(shown, answer.prompt)
        score = found.score if found.score is not None and np.isfinite(found.score) else None
        return {
            "place": found.place + 1,
            "ordinal": ordinal(found.place + 1),
            "id": clean(found.id)[:LABEL_CHARACTERS],
            "document": clean(document_of(found.id)[0])[:LABEL_CHARACTERS],
            "score": score_words(score),
            "length": round(100 * abs(score) / top, 1) if score is not None else 0,
            "gold": found.gold if found.gold is not None else found.id in gold,
            "pieces": highlight(shown, clean(answer.target), subject, shared),
            "absent": found.text is None,
            "seen": None if found.seen is None else seen_view(found.seen, self.axis),
            "duplicates": [clean(name)[:LABEL_CHARACTERS] for name in found.duplicates],
            "link": self.links("read", p=found.id, **address),
        }


def fact_chart(
    home: Home, probe: int, lanes: Sequence[tuple[str, Sequence[int], bool]], axis: Axis | None = None
) -> dict[str, Any]:
    """A fact's probability over training, with a mark on the curve for every time that one of some passages was seen.

    Args:
        lanes: (name, steps, gold) of each passage.
    """
    axis = axis or axis_of(home)
    steps, prob, _ = home.facts.curve(probe)
    scale = Axis(0, next(top for top in TOPS if top >= min(1.0, 1.06 * float(np.nan_to_num(prob).max(initial=0)))))
    view = curve_view(steps.tolist(), prob, axis, scale)
    marks = []
    for name, seen, gold in lanes:
        for step in seen:
            high = float(np.interp(step, steps, np.nan_to_num(prob))) if len(steps) else 0.0
            marks.append(
                {
                    "x": axis.place(step),
                    "y": round(100 - scale.place(high), 2),
                    "gold": gold,
                    "step": step,
                    "name": name,
                }
            )
    return {
        **view,
        "marks": sorted(marks, key=lambda mark: mark["gold"]),
        "xticks": [(axis.place(tick), f"{tick:,.0f}") for tick in axis.ticks(6)],
        "yticks": [(round(100 - scale.place(tick), 2), format_tick(tick)) for tick in scale.ticks(4)],
        "points": [(int(step), round(float(value), 4)) for step, value in zip(steps, prob, strict=True)],
        "last": int(axis.high),
    }
