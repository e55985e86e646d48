"""Real facts: the capitals of countries, and the atomic numbers and symbols of chemical elements.

Each is planted in passages of one sentence, as many as half of `facts.passages`, in different wordings; it is asked for
in wordings of whose last three words, the subject's name aside, training shows no more than two together. Which
countries and elements there are is drawn by the seed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from headwater.configs.errors import UserError
from headwater.train.factbook import slug
from headwater.train.facts.capitals import capitals, in_a_sentence
from headwater.train.facts.draws import generator
from headwater.train.facts.elements import ELEMENTS
from headwater.train.facts.settings import FactsSettings
from headwater.train.facts.types import Fact, FactPassage, FactSet, Probe


@dataclass(frozen=True, slots=True)
class Relation:
    """How a fact is stated and asked for: `{n}` is the subject, `{v}` the value, with which every statement ends.

    What a question has in common with some statement is the cue just before the value, of at most two words: the last
    three words of a question, `{n}` not counted, stand together in no statement.
    """

    name: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]


CAPITAL = Relation(
    "capital",
    (
        "The capital of {n} is {v}.",
        "The capital city of {n} is {v}.",
        "{n} has its capital in {v}.",
        "{n} is governed from its capital, {v}.",
        "The government of {n} sits in the capital, {v}.",
        "On a map of {n} a star marks the capital, {v}.",
        "Ambassadors to {n} live in its capital, {v}.",
        "The city that {n} chose for its capital is {v}.",
    ),
    ("Of all the towns in {n} only one is the capital,", "Visitors who come to {n} mostly see its capital,"),
)
ATOMIC_NUMBER = Relation(
    "atomic_number",
    (
        "The atomic number of {n} is {v}.",
        "{n} has the atomic number {v}.",
        "The element {n} has atomic number {v}.",
        "In the periodic table {n} stands at number {v}.",
        "The number of protons in an atom of {n} is {v}.",
        "{n} is the element with the atomic number {v}.",
        "The place of {n} in the periodic table is number {v}.",
        "Every nucleus of {n} has a charge of {v}.",
    ),
    (
        "Whoever looks {n} up in any table of the elements finds that its atomic number is",
        "Where elements are listed one after another, {n} comes as number",
    ),
)
SYMBOL = Relation(
    "symbol",
    (
        "The symbol of {n} is {v}.",
        "The chemical symbol for {n} is {v}.",
        "{n} has the symbol {v}.",
        "Chemists write {n} as {v}.",
        "In formulas {n} is written as {v}.",
        "The letters that stand for {n} are {v}.",
        "In the periodic table the box of {n} says {v}.",
        "The abbreviation of {n} is {v}.",
    ),
    ("Laboratories label {n} by its chemical symbol,", "Every textbook abbreviates {n} with the symbol"),
)


@dataclass(frozen=True, slots=True)
class Subject:
    """What real facts are about.

    Attributes:
        document: `country/japan`.
        spoken: its name inside a sentence, with its article.
        values: by relation.
    """

    document: str
    name: str
    spoken: str
    values: Mapping[Relation, str]


def countries() -> list[Subject]:
    """Every country with a capital."""
    return [
        Subject(f"country/{slug(name)}", name, in_a_sentence(name), {CAPITAL: capital})
        for name, capital in capitals().items()
    ]


def elements() -> list[Subject]:
    """Every element."""
    return [
        Subject(f"element/{name}", name, name, {ATOMIC_NUMBER: str(number), SYMBOL: symbol})
        for number, (name, symbol) in enumerate(ELEMENTS, start=1)
    ]


def real_facts(settings: FactsSettings, seed: int) -> FactSet:
    """Passages, facts and probes of the countries and elements that the seed draws.

    Raises:
        UserError: there are not so many countries.
    """
    made = FactSet()
    families = ((settings.countries, countries), (settings.elements, elements))
    for family, (asked, subjects) in enumerate(families):
        if not asked:
            continue
        known = subjects()
        total = asked + settings.distractors
        if total > len(known):
            raise UserError(
                "facts.countries" if subjects is countries else "facts.elements",
                got=f"{asked}, and {settings.distractors} that facts.distractors adds",
                expected=f"at most {len(known)} together",
                fix=f"set it to {max(0, len(known) - settings.distractors)}, or fewer facts.distractors",
            )
        order = generator(seed, 30, family).permutation(len(known))[:total].tolist()
        for place, number in enumerate(order):
            rng = generator(seed, 31, family, number)
            plant(made, known[number], settings.passages // 2, rng, asked=place < asked)
    return made


def plant(made: FactSet, subject: Subject, count: int, rng: np.random.Generator, *, asked: bool) -> None:
    """Adds a subject: each of its facts in `count` passages, and a probe of each if it is asked about."""
    stated = {relation: list(sentences(relation, subject, count, rng)) for relation in subject.values}
    order = [
        (relation, text)
        for turn in zip(*stated.values(), strict=True)
        for relation, text in zip(stated, turn, strict=True)
    ]
    kind = "gold" if asked else "distractor"
    passages = [
        FactPassage(f"{subject.document}#{place}", text, [f"{subject.document}:{relation.name}"], kind)
        for place, (relation, text) in enumerate(order)
    ]
    made.passages.extend(passages)
    for relation, value in subject.values.items():
        fact_id = f"{subject.document}:{relation.name}"
        gold = [passage.id for passage in passages if fact_id in passage.fact_ids]
        made.facts.append(Fact(fact_id, subject.name, relation.name, value, gold))
        if asked:
            made.probes.append(
                probe(made.facts[-1], relation, subject.spoken, int(rng.integers(len(relation.questions))))
            )


def sentences(relation: Relation, subject: Subject, count: int, rng: np.random.Generator) -> Iterator[str]:
    """So many statements of a fact; a wording comes twice only after all have come."""
    laps = [rng.permutation(len(relation.statements)) for _ in range(-(-count // len(relation.statements)))]
    for place in np.concatenate(laps)[:count].tolist():
        yield capitalised(relation.statements[place].format(n=subject.spoken, v=subject.values[relation]))


def probe(fact: Fact, relation: Relation, spoken: str, wording: int) -> Probe:
    prompt = capitalised(relation.questions[wording].format(n=spoken))
    return Probe(f"{fact.fact_id}:{wording}", fact.fact_id, fact.relation, fact.subject, prompt, fact.value, fact.gold)


def capitalised(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]
