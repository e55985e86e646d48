"""The report's parts that need no run: highlighting, geometry, and the sentences written from the figures."""

from __future__ import annotations

import math

import numpy as np

from headwater.attribution.drawing.chart import Axis, path, spread
from headwater.attribution.drawing.words import excerpt, highlight, probability
from headwater.attribution.report import prose


def test_highlight_marks_whole_words_and_loses_nothing() -> None:
    text = "In 17 towns, Mara  Quill kept 7 viols. MARA quill!"
    pieces = highlight(text, "7", "Mara Quill")
    assert "".join(piece for _, piece in pieces) == text
    assert [piece for kind, piece in pieces if kind == "target"] == ["7"]
    assert [piece for kind, piece in pieces if kind == "subject"] == ["Mara  Quill", "MARA quill"]
    assert highlight(text, "a.c (d") == [("text", text)]
    assert highlight("", "x") == []


def test_excerpt_keeps_the_target_in_sight() -> None:
    text = "word " * 400 + "the Answer stands here " + "word " * 400
    cut = excerpt(text, "answer", 200)
    assert "Answer" in cut
    assert len(cut) <= 204
    assert cut.startswith("…")
    assert cut.endswith("…")
    assert excerpt("short", "x", 200) == "short"
    assert excerpt(text, "absent", 200).startswith("word")


def test_labels_move_apart_as_little_as_may_be() -> None:
    places = [50.0, 50.5, 49.0, 90.0, 2.0]
    moved = spread(places, 6)
    assert sorted(range(5), key=moved.__getitem__) == sorted(range(5), key=places.__getitem__)
    assert min(np.diff(sorted(moved))) >= 6 - 0.02
    assert moved[3:] == [90.0, 2.0], "labels with room stay where they are"
    assert spread([99.0, 99.0, 100.0], 6) == [88.0, 94.0, 100.0]
    assert spread([], 6) == []


def test_lines_break_where_nothing_was_measured() -> None:
    assert path([0, 10, 20, 30], [1, math.nan, 3, 4]) == "M0 99M20 97L30 96"
    assert Axis(0, 1200).ticks(6) == [0, 200, 400, 600, 800, 1000, 1200]
    assert Axis(0, 1).place(7) == 100


def methods(bm25: float, headwater: list[float], bm25_tail: list[float]) -> dict:
    return {
        "headwater": {"mrr": [0.9, 0.88, 0.92], "tail_patch": headwater},
        "bm25": {"mrr": [bm25, bm25, bm25], "tail_patch": bm25_tail},
    }


def test_prose_follows_the_figures() -> None:
    apart = methods(1.0, [0.05, 0.045, 0.055], [0.03, 0.025, 0.035])
    assert "at the ceiling" in prose.states_it(apart)[0]
    assert "at the ceiling" not in " ".join(prose.states_it(methods(0.6, [0.05, 0.045, 0.055], [0.03, 0.02, 0.04])))
    assert "Headwater leads" in prose.moves_it({"methods": apart})[1]
    assert "do not overlap" in prose.moves_it({"methods": apart})[1]
    close = methods(1.0, [0.03, 0.02, 0.04], [0.035, 0.025, 0.045])
    assert "BM25 leads" in prose.moves_it({"methods": close})[1]
    assert "intervals overlap" in prose.moves_it({"methods": close})[1]
    assert prose.moves_it({"methods": {"bm25": {"mrr": [1, 1, 1]}}}) == ["The tail-patch was not measured in this run."]
    rows = [
        {"metric": "mrr", "method": "headwater", "against": "bm25", "difference": [-0.1, -0.12, -0.08]},
        {"metric": "hit@10", "method": "headwater", "against": "bm25", "difference": [0, -0.01, 0.01]},
        {"metric": "tail_patch", "method": "headwater", "against": "bm25", "difference": [0.02, 0.01, 0.03]},
    ]
    sentence = prose.where_better({"comparisons": rows})
    assert sentence is not None
    assert sentence.endswith("is ahead on tail-patch; behind on MRR; not to be told apart on hit@10.")


def test_the_corpuss_own_text_is_spoken_of_where_it_states_facts() -> None:
    found = methods(1.0, [0.05, 0.045, 0.055], [0.03, 0.025, 0.035])
    assert prose.own_text(found) is None
    found["headwater"] |= {"own_mrr": [0.5, 0.4, 0.6], "own_queries": 176}
    sentence = prose.own_text(found)
    assert sentence is not None
    assert "states 176 of the facts" in sentence
    assert sentence.endswith("Headwater .500 [.400, .600].")
    rows = [{"metric": "own_mrr", "method": "headwater", "against": "bm25", "difference": [0.1, 0.05, 0.2]}]
    assert prose.where_better({"comparisons": rows}) is None


def test_the_deck_names_what_facts_are_about() -> None:
    summary = {
        "corpus": {"passages": 7624, "injected": 1380},
        "train": {"steps": 1000},
        "facts": {"people": 0, "countries": 110, "elements": 60, "queries": 200},
    }
    assert "facts about 110 countries and 60 chemical elements; then" in prose.deck(summary)
    summary["facts"] = {"people": 100, "queries": 200}
    assert "facts about 100 invented people; then" in prose.deck(summary)


def test_figures_in_words() -> None:
    assert [probability(value) for value in (0, 0.0004, 0.337, 0.999, 1)] == [".00", "<.01", ".34", ">.99", "1.00"]
    assert [prose.short(value) for value in (950, 12_340, 9_812_000)] == ["950", "12.3k", "9.81M"]
    assert [prose.seconds(value) for value in (9.84, 61.4, 7260)] == ["9.8 s", "1 min 01 s", "2 h 01 min"]
