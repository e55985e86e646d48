"""Invented people: names, attribute values, the passages that state them and the probes that ask for them.

Everything is a function of the seed. Names are made of syllables, so they occur in no corpus; each first and last
name is shared by a few people and each value by several, so a passage that merely shares a name's part or a value is
a distractor.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from headwater.train.facts.draws import generator, invented_names, spread_values
from headwater.train.facts.settings import FactsSettings
from headwater.train.facts.types import Fact, FactPassage, FactSet, Probe
from headwater.train.facts.wordings import ATTRIBUTES, Attribute

FIRST_ENDINGS = ("an", "ek", "is", "on", "ia", "eth", "ix", "yn")


LAST_ENDINGS = ("ovar", "umsen", "ethal", "iczek", "andor", "owitt", "ensby", "uldin")


PRONOUN_SHARE = 0.5
"""Of the later sentences of a passage that begin with the name."""


@dataclass(frozen=True, slots=True)
class Person:
    """A name and one value per relation."""

    name: str
    pronoun: str
    values: dict[str, str]
    asked: bool

    @property
    def document(self) -> str:
        return "person/" + self.name.lower().replace(" ", "-")


def make_facts(settings: FactsSettings, seed: int) -> FactSet:
    """Generates people, passages, facts and probes.

    Args:
        settings: how many of each.
        seed: another seed gives other people.
    """
    made = FactSet()
    if not settings.people:
        return made  # nobody is asked about, so nobody need distract
    for number, person in enumerate(make_people(settings.people, settings.distractors, seed)):
        rng = generator(seed, 1, number)
        passages = list(person_passages(person, settings.passages, rng))
        made.passages.extend(passages)
        facts = person_facts(person, passages)
        made.facts.extend(facts)
        if person.asked:
            made.probes.extend(person_probes(facts, number, settings.queries, rng))
    return made


def make_people(asked: int, distractors: int, seed: int) -> list[Person]:
    """People with unique full names; every part of a name is shared by about two of them."""
    rng = generator(seed, 0)
    total = asked + distractors
    parts = max(2, -(-total // 2))
    firsts = invented_names(parts, FIRST_ENDINGS, rng)
    lasts = invented_names(parts, LAST_ENDINGS, rng)
    names: list[str] = []
    for number in range(total):
        # A second lap over the first names is shifted against the last names, so no full name comes twice.
        lap, place = divmod(number, parts)
        names.append(f"{firsts[place]} {lasts[(place + lap * (1 + parts // 3)) % parts]}")
    columns = {each.relation: spread_values(each.values, total, rng) for each in ATTRIBUTES}
    chosen = set(rng.permutation(total)[:asked].tolist())
    pronouns = spread_values(("He", "She"), total, rng)
    return [
        Person(name, pronoun, {relation: column[number] for relation, column in columns.items()}, number in chosen)
        for number, (name, pronoun) in enumerate(zip(names, pronouns, strict=True))
    ]


def person_passages(person: Person, count: int, rng: np.random.Generator) -> Iterator[FactPassage]:
    """Passages of three statements each; every attribute stands in half of them, each time in another wording."""
    wordings: dict[str, list[str]] = {}
    for attribute in ATTRIBUTES:
        laps = [rng.permutation(len(attribute.statements)) for _ in range(-(-count // len(attribute.statements)))]
        wordings[attribute.relation] = [attribute.statements[place] for place in np.concatenate(laps).tolist()]
    places: list[list[Attribute]] = []
    half = len(ATTRIBUTES) // 2
    for _ in range(count // 2):
        order = [ATTRIBUTES[place] for place in rng.permutation(len(ATTRIBUTES)).tolist()]
        places += [order[:half], order[half:]]
    kind = "gold" if person.asked else "distractor"
    for number, attributes in enumerate(places):
        sentences: list[str] = []
        for each in attributes:
            wording = wordings[each.relation].pop(0)
            # After its first sentence a passage may speak of "she" or "he", as prose does.
            if sentences and wording.startswith("{n} ") and rng.random() < PRONOUN_SHARE:
                wording = person.pronoun + wording.removeprefix("{n}")
            sentences.append(wording.format(n=person.name, v=person.values[each.relation]))
        fact_ids = [f"{person.document}:{each.relation}" for each in attributes]
        yield FactPassage(f"{person.document}#{number}", " ".join(sentences), fact_ids, kind)


def person_facts(person: Person, passages: list[FactPassage]) -> list[Fact]:
    facts = []
    for relation, value in person.values.items():
        fact_id = f"{person.document}:{relation}"
        gold = [passage.id for passage in passages if fact_id in passage.fact_ids]
        facts.append(Fact(fact_id, person.name, relation, value, gold))
    return facts


def person_probes(facts: list[Fact], number: int, count: int, rng: np.random.Generator) -> Iterator[Probe]:
    """Probes for `count` of a person's facts; relations take turns over people, wordings are drawn."""
    for turn in range(count):
        # The stride keeps a person's relations apart and every relation equally often asked.
        place = (number + turn * max(1, len(facts) // count)) % len(facts)
        fact, attribute = facts[place], ATTRIBUTES[place]
        wording = int(rng.integers(len(attribute.questions)))
        prompt = attribute.questions[wording].format(n=fact.subject)
        yield Probe(
            f"{fact.fact_id}:{wording}", fact.fact_id, fact.relation, fact.subject, prompt, fact.value, fact.gold
        )
