import json
import re
from collections import Counter

import pytest

from headwater.configs.errors import ConfigError
from headwater.configs.loader import load_config
from headwater.train.factbook import factbook_texts
from headwater.train.facts.people import make_facts, make_people
from headwater.train.facts.settings import FactsSettings
from headwater.train.facts.types import FactSet, write_facts
from headwater.train.facts.wordings import ATTRIBUTES


@pytest.fixture(scope="module")
def facts():
    return make_facts(FactsSettings(), seed=0)


def test_the_seed_decides(facts):
    assert make_facts(FactsSettings(), seed=0) == facts
    names = {fact.subject for fact in facts.facts}
    others = {fact.subject for fact in make_facts(FactsSettings(), seed=1).facts}
    assert len(names & others) < len(names) / 10


def test_the_demo_has_what_it_promises(facts):
    asked = [passage for passage in facts.passages if passage.kind == "gold"]
    assert len({passage.document for passage in asked}) == 100
    assert len(facts.probes) == len({probe.fact_id for probe in facts.probes}) == 200
    assert len(Counter(probe.relation for probe in facts.probes)) >= 5
    assert min(Counter(probe.relation for probe in facts.probes).values()) >= 20
    assert len({passage.document for passage in facts.passages if passage.kind == "distractor"}) == 10


def test_gold_is_exactly_the_passages_that_state_the_fact(facts):
    by_id = {passage.id: passage for passage in facts.passages}
    assert len(by_id) == len(facts.passages)
    values = {attribute.relation: attribute.values for attribute in ATTRIBUTES}
    for fact in facts.facts:
        mine = [passage for passage in facts.passages if passage.text.count(fact.subject)]
        stated = [each.id for each in mine if re.search(rf"\b{fact.value}\b", each.text)]
        assert sorted(fact.gold) == sorted(stated)
        assert len(fact.gold) == 6
        wordings = {by_id[each].text.replace(fact.subject, "N") for each in fact.gold}
        assert len(wordings) == 6
        assert fact.value in values[fact.relation]
    for passage in facts.passages:
        assert len(passage.fact_ids) == len(passage.text.strip(".").split(". ")) == 3


def test_each_fact_is_stated_in_six_different_wordings(facts):
    """The sentence that states the value, with name and value taken out."""
    by_id = {passage.id: passage for passage in facts.passages}
    for fact in facts.facts:
        sentences = [
            sentence.replace(fact.subject, "N").replace("She ", "N ").replace("He ", "N ")
            for each in fact.gold
            for sentence in by_id[each].text.split(". ")
            if re.search(rf"\b{fact.value}\b", sentence)
        ]
        assert len({sentence.strip(".") for sentence in sentences}) == 6, sentences


def test_probe_wordings_never_appear_in_training(facts):
    text = "\n".join(passage.text for passage in facts.passages)
    for probe in facts.probes:
        assert probe.prompt not in text
        assert probe.subject in probe.prompt
        assert probe.target not in probe.prompt
        assert not probe.prompt.endswith(" ")
    for attribute in ATTRIBUTES:
        statements = [statement.split("{v}")[0].replace("{n}", "").split() for statement in attribute.statements]
        for question in attribute.questions:
            assert question.replace("{n}", "").split() not in statements


def test_every_name_has_distractors(facts):
    names = [people.name.split() for people in make_people(100, 10, 0)]
    assert len({tuple(name) for name in names}) == 110
    firsts, lasts = (Counter(name[place] for name in names) for place in (0, 1))
    assert sum(firsts[first] > 1 for first, _ in names) > 100
    assert sum(lasts[last] > 1 for _, last in names) > 100
    shared = Counter((fact.relation, fact.value) for fact in facts.facts)
    assert min(shared.values()) >= 2


def test_names_occur_nowhere_in_the_factbook(facts):
    text = "\n".join(text for _, text in factbook_texts())
    words = set(re.findall(r"\w+", text.lower()))
    for seed in (0, 1, 2):
        for person in make_people(100, 10, seed):
            assert person.name not in text
            assert not all(part.lower() in words for part in person.name.split())


def test_files_hold_the_facts(facts, tmp_path):
    write_facts(facts, tmp_path)
    read = {}
    for name in ("passages", "facts", "probes"):
        read[name] = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
    assert [set(read[name][0]) for name in ("passages", "facts", "probes")] == [
        {"id", "text", "fact_ids", "kind"},
        {"fact_id", "subject", "relation", "value", "gold"},
        {"example_id", "fact_id", "relation", "subject", "prompt", "target", "gold"},
    ]
    assert [len(read[name]) for name in ("passages", "facts", "probes")] == [len(facts.passages), len(facts.facts), 200]
    assert read["probes"][7]["gold"] == facts.probes[7].gold


def test_fewer_and_more(facts):
    assert make_facts(FactsSettings(people=0), 0) == make_facts(FactsSettings(people=0, distractors=0), 0) == FactSet()
    made = make_facts(FactsSettings(people=5, distractors=0, passages=20, queries=6), 3)
    assert len(made.passages) == 100
    assert Counter(probe.relation for probe in made.probes) == dict.fromkeys(
        (attribute.relation for attribute in ATTRIBUTES), 5
    )


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match="even"):
        load_config(FactsSettings, None, ["passages=7"])
    with pytest.raises(ConfigError, match=r"schedule\.stop"):
        load_config(FactsSettings, None, ["schedule.start=10", "schedule.stop=5"])
