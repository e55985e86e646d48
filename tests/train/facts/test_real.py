"""Real facts: what is planted is true, in many wordings, and asked in others."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from headwater.configs.errors import ConfigError, UserError
from headwater.configs.loader import load_config
from headwater.train.corpus.injected import described_facts
from headwater.train.corpus.wordnet import DIRECTORY, read_synsets
from headwater.train.facts.capitals import capitals, one_capital
from headwater.train.facts.elements import ELEMENTS
from headwater.train.facts.families import planted_facts
from headwater.train.facts.people import make_facts
from headwater.train.facts.real import ATOMIC_NUMBER, CAPITAL, SYMBOL, countries, elements, real_facts
from headwater.train.facts.settings import FactsSettings

RELATIONS = (CAPITAL, ATOMIC_NUMBER, SYMBOL)
# By hand, from an atlas and a periodic table.
CAPITALS = {
    "Japan": "Tokyo", "Peru": "Lima", "Kenya": "Nairobi", "Canada": "Ottawa", "United Kingdom": "London",
    "Ukraine": "Kyiv", "Bahamas": "Nassau", "Papua New Guinea": "Port Moresby", "Trinidad and Tobago": "Port of Spain",
    "Chad": "N'Djamena", "Colombia": "Bogotá", "Haiti": "Port-au-Prince",
}  # fmt: skip
NUMBERS = {
    "hydrogen": (1, "H"), "carbon": (6, "C"), "sodium": (11, "Na"), "iron": (26, "Fe"), "silver": (47, "Ag"),
    "xenon": (54, "Xe"), "tungsten": (74, "W"), "gold": (79, "Au"), "lead": (82, "Pb"), "uranium": (92, "U"),
    "mendelevium": (101, "Md"), "oganesson": (118, "Og"),
}  # fmt: skip


def settings(**given):
    return FactsSettings(**{"people": 0, "countries": 100, "elements": 50, **given})


@pytest.fixture(scope="module")
def facts():
    return planted_facts(settings(), seed=0)


def test_they_are_true():
    known = capitals()
    assert {name: known[name] for name in CAPITALS} == CAPITALS
    assert len(known) > 150
    places = {name: (number, symbol) for number, (name, symbol) in enumerate(ELEMENTS, start=1)}
    assert {name: places[name] for name in NUMBERS} == NUMBERS
    assert len(places) == len({symbol for _, symbol in ELEMENTS}) == 118


def test_a_capital_that_is_not_one_name_is_none():
    assert one_capital("Hanoi (Ha Noi)") == "Hanoi"
    for text in (
        "Pretoria (administrative capital); Cape Town (legislative capital)",
        "Gitega (political capital), Bujumbura (commercial capital)",
        "Santiago; note - Valparaiso is the seat of the legislature",
        "no official capital; government offices in Yaren",
        "Chisinau in Romanian (Kishinev in Russian)",
        "",
    ):
        assert not one_capital(text)
    assert not {"Singapore", "Guatemala", "Tunisia", "Puerto Rico", "European Union", "Bolivia"} & capitals().keys()


@pytest.mark.skipif(not Path(DIRECTORY).is_dir(), reason="wordnet-base is not installed")
def test_wordnet_says_the_same_of_the_elements():
    """An independent source: its lemmas name element, symbol and number. It is of 2006."""
    found = {}
    for synset in read_synsets(Path(DIRECTORY) / "data.noun"):
        if number := re.search(r", atomic number (\d+)(?:,|$)", ", ".join(synset.lemmas)):
            found[int(number[1])] = synset.lemmas
    assert len(found) > 105
    agreeing = [number for number, (name, _) in enumerate(ELEMENTS, start=1) if name in found.get(number, ())]
    symbols = [number for number, (_, symbol) in enumerate(ELEMENTS, start=1) if symbol in found.get(number, ())]
    assert set(range(1, 104)) - set(agreeing) == set()
    assert len(symbols) > 95


def test_the_seed_decides(facts):
    assert planted_facts(settings(), seed=0) == facts
    subjects = [{fact.subject for fact in planted_facts(settings(), seed).facts} for seed in (0, 1)]
    assert len(subjects[0] - subjects[1]) > 20


def test_how_many_there_are(facts):
    assert Counter(probe.relation for probe in facts.probes) == {"capital": 100, "atomic_number": 50, "symbol": 50}
    assert len(facts.facts) == 110 + 2 * 60
    assert len(facts.passages) == len({passage.id for passage in facts.passages}) == 6 * len(facts.facts)
    assert Counter(passage.kind for passage in facts.passages) == {"gold": 6 * 200, "distractor": 6 * 30}
    assert not {probe.subject for probe in facts.probes} & {
        passage.document for passage in facts.passages if passage.kind == "distractor"
    }


def test_gold_is_exactly_the_passages_that_state_the_fact(facts):
    texts = {passage.id: passage.text for passage in facts.passages}
    for fact in facts.facts:
        cue = r"symbol|letters|write|written|says|abbreviation" if fact.relation == "symbol" else ""
        stating = [
            name
            for name, text in texts.items()
            if re.search(rf"(?<![\w-]){fact.subject}\b", text, re.IGNORECASE)
            and text.endswith(f" {fact.value}.")
            and re.search(cue, text)
        ]
        assert stating == fact.gold
        assert len({texts[name] for name in fact.gold}) == 6


def test_probe_wordings_never_appear_in_training(facts):
    text = "\n".join(passage.text for passage in facts.passages)
    for probe in facts.probes:
        assert probe.prompt not in text
        assert probe.subject in probe.prompt
        assert not re.search(rf"\b{re.escape(probe.target)}\b", probe.prompt)
        assert probe.target in text
        assert probe.prompt[0].isupper()
    for relation in RELATIONS:
        statements = [statement.removesuffix(" {v}.") for statement in relation.statements]
        assert len(set(statements)) == 8
        assert all(statement.endswith("{v}.") for statement in relation.statements)
        assert not {question.rstrip() for question in relation.questions} & set(statements)


def words_before_the_value(wording: str) -> list[str]:
    """In lower case, without signs and without the subject's name."""
    return re.findall(r"[a-z']+", wording.partition("{v}")[0].replace("{n}", " ").lower())


def trained_ends(questions: tuple[str, ...], statements: tuple[str, ...], count: int = 3) -> set[str]:
    """Questions whose last words before the value stand together before the value in some trained wording."""
    ends = {question: words_before_the_value(question)[-count:] for question in questions}
    return {
        question
        for question, end in ends.items()
        for words in map(words_before_the_value, statements)
        if end in [words[at : at + count] for at in range(len(words) - count + 1)]
    }


@pytest.mark.parametrize("relation", RELATIONS, ids=lambda relation: relation.name)
def test_no_question_ends_with_words_of_a_trained_wording(relation):
    every = tuple(statement for each in RELATIONS for statement in each.statements)
    assert len(relation.questions) == 2
    assert not trained_ends(relation.questions, every)
    assert not [each for each in relation.questions if each.endswith(tuple(s.partition(" {v}")[0] for s in every))]
    # The last word is the cue without which a small model does not answer: a statement of the relation ends with it.
    cues = {words_before_the_value(statement)[-1] for statement in relation.statements}
    assert {words_before_the_value(question)[-1] for question in relation.questions} <= cues
    told = ("As is well known, {n} has the atomic number", "On a map the capital, {n}, is")
    assert trained_ends(told, every) == {told[0]}


def test_names_have_their_articles():
    spoken = {subject.name: subject.spoken for subject in countries()}
    assert (spoken["Netherlands"], spoken["Japan"], spoken["Bahamas"]) == ("the Netherlands", "Japan", "the Bahamas")
    assert all(subject.spoken == subject.name for subject in elements())
    made = real_facts(settings(countries=len(spoken), distractors=0, elements=0), 0)
    texts = [passage.text for passage in made.passages if passage.document == "country/netherlands"]
    assert len(texts) == 6
    assert all(re.search(r"\b[tT]he Netherlands\b", text) and text[0].isupper() for text in texts)


def test_families_stand_side_by_side_and_none_plants_nothing():
    both = planted_facts(FactsSettings(people=3, countries=2, elements=1, distractors=1, passages=4), 5)
    people = make_facts(FactsSettings(people=3, distractors=1, passages=4), 5)
    assert both.passages[: len(people.passages)] == people.passages
    assert Counter(passage.document.partition("/")[0] for passage in both.passages) == {
        "person": 16, "country": 6, "element": 8,
    }  # fmt: skip
    assert len(both.probes) == 3 * 2 + 2 + 2
    assert not FactsSettings(people=0).planted
    assert all(FactsSettings(people=0, **{name: 1}).planted for name in ("countries", "elements"))
    # More passages than there are wordings: each comes again only after all have.
    many = planted_facts(settings(countries=1, elements=0, distractors=0, passages=20), 0)
    assert sorted(Counter(passage.text for passage in many.passages).values()) == [1] * 6 + [2] * 2


def test_too_many_are_refused():
    with pytest.raises(ConfigError, match=r"elements.*at most 108: there are 118"):
        load_config(FactsSettings, None, ["elements=109"])
    with pytest.raises(UserError, match=r"facts\.countries") as caught:
        planted_facts(settings(countries=500), 0)
    assert str(len(capitals()) - 10) in str(caught.value.fix)


def test_a_corpus_built_before_they_were_there_stays_the_same(facts):
    described = described_facts(FactsSettings(), facts)
    assert not {"countries", "elements", "real"} & described.keys()
    assert described_facts(settings(), facts) != described_facts(settings(), planted_facts(settings(), seed=1))
