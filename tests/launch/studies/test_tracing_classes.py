"""What kind of passage it is, on passages made by hand."""

from __future__ import annotations

import pytest

from headwater.attribution.evaluation.own_text import says
from headwater.launch.studies.tracing.classes import (
    CLASSES,
    ENTAILING,
    NAMES,
    NONE,
    RELATION,
    SUBJECT,
    VALUE,
    Sorter,
    Statement,
    parts_of,
)

ASKED = Statement("Ana Brandor", "birth_city", "Lima")
STATED = {
    "ana#0": [ASKED, Statement("Ana Brandor", "language", "Hindi")],
    "ana#1": [Statement("Ana Brandor", "employer", "Vexcorp")],
    "tom#0": [Statement("Tom Brandor", "birth_city", "Oslo")],
    "tom#1": [Statement("Tom Brandor", "birth_city", "Lima")],
    "ida#0": [Statement("Ida Keel", "work_city", "Lima")],
    "ana-keel#0": [Statement("Ana Keel", "language", "Hindi")],
    "ida#1": [Statement("Ida Keel", "language", "Hindi")],
}


@pytest.mark.parametrize(
    ("passage", "text", "kind"),
    [
        ("ana#0", "Ana Brandor was born in Lima. She speaks Hindi.", ENTAILING),
        ("ana#1", "Ana Brandor works for Vexcorp.", SUBJECT),
        # The record decides, not the words: that the value stands in it states nothing about the birth.
        ("ana#1", "Ana Brandor works for Vexcorp in Lima.", SUBJECT),
        ("tom#0", "Tom Brandor was born in Oslo.", RELATION),
        # The first kind that fits: the same relation of another with the same value.
        ("tom#1", "Tom Brandor was born in Lima.", RELATION),
        ("ida#0", "Ida Keel works in Lima.", VALUE),
        ("ana-keel#0", "Ana Keel speaks Hindi.", NAMES),
        ("ida#1", "Ida Keel speaks Hindi.", NONE),
        # Without records the words decide.
        ("base#0", "In Lima, Ana Brandor first saw the sea.", ENTAILING),
        ("base#1", "Ana Brandor saw the sea.", SUBJECT),
        ("base#2", "Lima is the capital of Peru.", VALUE),
        ("base#3", "The Brandor family sold salt.", NAMES),
        ("base#4", "Limassol and Anaheim are towns; a brandor is none.", NONE),
        ("base#5", "", NONE),
    ],
)
def test_a_passage_is_of_the_first_kind_that_fits(passage: str, text: str, kind: str):
    assert Sorter(STATED).class_of(ASKED, passage, text) == kind
    assert kind in CLASSES


def test_another_question_sorts_the_same_passages_otherwise():
    asked = Statement("Ida Keel", "language", "Hindi")
    kinds = [Sorter(STATED).class_of(asked, name, "") for name in ("ida#1", "ida#0", "ana#0", "tom#0")]
    assert kinds == [ENTAILING, SUBJECT, RELATION, NONE]


def test_of_ones_own_facts_the_golds_tell_only_a_part():
    """A passage that is gold of one question states another's fact in words: entailing for both."""
    asked, also = Statement("Peru", "capital", "Lima"), Statement("Peru", "currency", "sol")
    stated, text = {"peru#0": [asked]}, "Peru, whose capital is Lima, pays in sol."
    for what in (asked, also):
        assert Sorter(stated, partial=True).class_of(what, "peru#0", text) == ENTAILING
    assert Sorter(stated).class_of(also, "peru#0", text) == SUBJECT
    assert Sorter(stated, partial=True).class_of(asked, "peru#0", "") == ENTAILING, "gold, whatever its words"
    assert Sorter(stated, partial=True).class_of(also, "peru#0", "Its capital is Lima.") == SUBJECT


def test_words_are_whole_and_may_hold_anything():
    assert says("He sailed to St. John's (1902).", "St. John's")
    assert not says("Oslofjord", "Oslo")
    assert not says("anything", "")
    assert says("C++ is older.", "C++")


def test_parts_of_a_name_are_its_capital_words_or_its_long_ones():
    assert parts_of("the Republic of Orvik") == ["Republic", "Orvik"]
    assert parts_of("noble gas") == ["noble"]
    assert parts_of("") == []
