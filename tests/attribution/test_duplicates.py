"""Near-duplicates: which passages are alike, and that collapsing what is found is collapsing the whole ranking."""

from __future__ import annotations

import numpy as np
import pytest

from headwater.attribution.rows.layout import RowLayout
from headwater.attribution.search.duplicates import Collapse, alike, scan_collapsed, shingles
from headwater.attribution.search.full_ranking import score_all
from headwater.attribution.search.options import ScanOptions, Source
from headwater.attribution.settings import TraceSettings
from headwater.configs import ConfigError, load_config

from .dense_formula import build
from .synthetic_rows import make_rows

LAYOUT = RowLayout([("a", 3, 5), ("b", 4, 4)])


TEXT = "The river rises in the north and flows through four valleys before it meets the sea at Lormont in a wide delta"


def test_case_space_and_punctuation_do_not_tell_texts_apart():
    a, b = shingles("The  River: rises, in the NORTH."), shingles("the river rises in the north")
    assert a == b
    assert len(a) == 2
    assert alike(a, b, 1.0)
    assert shingles("Straße") == shingles("STRASSE"), "also beyond ASCII"
    assert alike(shingles(""), shingles("..."), 1.0)
    assert not alike(shingles(""), shingles("word"), 0.1)


def test_one_changed_word_is_alike_below_its_share_of_shingles():
    changed = TEXT.replace("four", "five")
    a, b = shingles(TEXT), shingles(changed)
    words = len(TEXT.split())
    share = (words - 4 - 5) / (words - 4 + 5)  # five of the runs hold the word
    assert alike(a, b, share - 1e-9)
    assert not alike(a, b, share + 1e-9)


def test_the_order_of_words_matters():
    assert not alike(shingles("one two three four five six"), shingles("six five four three two one"), 0.1)


def test_a_list_keeps_the_best_and_names_what_it_stands_for():
    texts = {0: TEXT, 1: "something else entirely about trains", 2: TEXT + ".", 3: TEXT.upper(), 4: "a third text"}
    collapse = Collapse(texts.__getitem__, 0.8)
    assert collapse.keep([2, 1, 0, 3, 4], 3) == {2: [0, 3], 1: [], 4: []}
    assert collapse.keep([2, 1, 0, 3, 4], 2) == {2: [0, 3], 1: []}
    assert collapse.keep([], 2) == {}
    # Like a passage that was dropped, but not like the one that it was dropped for: it stays.
    chain = {0: "a b c d e f g h", 1: "b c d e f g h i", 2: "c d e f g h i j"}
    assert Collapse(chain.__getitem__, 0.6).keep([0, 1, 2], 3) == {0: [1], 2: []}


@pytest.mark.parametrize("copies", [1, 2, 7, 40])
def test_what_is_found_is_the_whole_ranking_collapsed(tmp_path, copies):
    rows_ND, queries_QD = make_rows(LAYOUT, 83), make_rows(LAYOUT, 5, rows_seed=9)
    index = build(tmp_path, rows_ND, kind="none", layout=LAYOUT, shard_rows=256)
    group = np.random.default_rng(0).permutation(83) // copies
    collapse = Collapse(lambda passage: f"passage number {group[passage]} of the test", 0.8)
    source = Source(index, queries_QD)
    found, top, bottom = scan_collapsed([source], ScanOptions(top_k=6, bottom_k=3), collapse)
    scores_QN = score_all([source])
    for q in range(5):
        for sign, passages, scores, dropped, count in (
            (1, found.passages, found.scores, top, 6),
            (-1, found.bottom_passages, found.bottom_scores, bottom, 3),
        ):
            order = np.argsort(-sign * scores_QN[q], kind="stable").tolist()
            first = {}
            for passage in order:
                first.setdefault(group[passage], passage)
            expected = list(first.values())[:count]
            full = len(expected)
            assert passages[q][:full].tolist() == expected
            assert (passages[q][full:] == -1).all()
            assert np.allclose(scores[q][:full], scores_QN[q][expected], atol=1e-6)
            assert np.isnan(scores[q][full:]).all()
            assert list(dropped[q]) == expected
            assert all(group[other] == group[kept] for kept, others in dropped[q].items() for other in others)


def test_nothing_at_one_end_is_asked(tmp_path):
    index = build(tmp_path, make_rows(LAYOUT, 20), kind="none", layout=LAYOUT, shard_rows=256)
    collapse = Collapse(str, 0.8)
    found, _, bottom = scan_collapsed([Source(index, make_rows(LAYOUT, 2))], ScanOptions(top_k=4), collapse)
    assert found.bottom_passages.shape == (2, 0)
    assert bottom == [{}, {}]


def test_the_settings_are_checked():
    with pytest.raises(ConfigError, match="duplicates"):
        load_config(TraceSettings, None, ["index=x", "duplicates=drop"])
    with pytest.raises(ConfigError, match="similar"):
        load_config(TraceSettings, None, ["index=x", "similar=0"])
