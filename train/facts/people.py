"""Invented people: names, attribute values, the passages that state them and the probes that ask for them.

Everything is a function of the seed. Names are made of syllables, so they occur in no corpus; each first and last
name is shared by a few people and each value by several, so a passage that merely shares a name's part or a value is
a distractor.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from headwater.train.artifacts import write_bytes
from headwater.train.facts.settings import FactsSettings
from headwater.train.facts.wordings import ATTRIBUTES, Attribute

ONSETS = (
    "B",
    "D",
    "F",
    "G",
    "H",
    "K",
    "L",
    "M",
    "N",
    "P",
    "R",
    "S",
    "T",
    "V",
    "W",
    "Z",
    "Br",
    "Dr",
    "Gr",
    "Kl",
    "Pr",
    "St",
    "Tr",
)
VOWELS = ("a", "e", "i", "o", "u", "ae", "ei", "ou")
MIDDLES = ("l", "m", "n", "r", "v", "rd", "ld", "nt", "rv", "ss", "zz", "lb")
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


@dataclass(frozen=True, slots=True)
class FactPassage:
    """A passage that goes into the stream, and the facts that it states."""

    id: str
    text: str
    fact_ids: list[str]
    kind: str

    @property
    def document(self) -> str:
        return self.id.rpartition("#")[0]


@dataclass(frozen=True, slots=True)
class Fact:
    """One value of one person, and the passages that state it."""

    fact_id: str
    subject: str
    relation: str
    value: str
    gold: list[str]


@dataclass(frozen=True, slots=True)
class Probe:
    """A prompt in a wording that training never shows, and what should follow it."""

    example_id: str
    fact_id: str
    relation: str
    subject: str
    prompt: str
    target: str
    gold: list[str]


@dataclass(frozen=True, slots=True)
class FactSet:
    """Everything that is planted, and everything that is asked."""

    passages: list[FactPassage] = field(default_factory=list)
    facts: list[Fact] = field(default_factory=list)
    probes: list[Probe] = field(default_factory=list)


def make_facts(settings: FactsSettings, seed: int) -> FactSet:
    """Generates people, passages, facts and probes.

    Args:
        settings: how many of each.
        seed: another seed gives other people.
    """
    made = FactSet()
    for number, person in enumerate(make_people(settings.people, settings.distractors, seed)):
        rng = generator(seed, 1, number)
        passages = list(person_passages(person, settings.passages, rng))
        made.passages.extend(passages)
        facts = person_facts(person, passages)
        made.facts.extend(facts)
        if person.asked:
            made.probes.extend(person_probes(facts, number, settings.queries, rng))
    return made


def generator(seed: int, *place: int) -> np.random.Generator:
    """A random generator for one purpose, independent of all others of the same seed."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=place)))


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


def invented_names(count: int, endings: tuple[str, ...], rng: np.random.Generator) -> list[str]:
    """Distinct names of syllables."""
    names: dict[str, None] = {}
    while len(names) < count:
        onset, vowel, middle, ending = (
            each[int(rng.integers(len(each)))] for each in (ONSETS, VOWELS, MIDDLES, endings)
        )
        names[onset + vowel + middle + ending] = None
    return list(names)


def spread_values(values: tuple[str, ...], count: int, rng: np.random.Generator) -> list[str]:
    """`count` values, each value as often as any other (within one), in random order."""
    repeated = [values[place % len(values)] for place in range(count)]
    return [repeated[place] for place in rng.permutation(count).tolist()]


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


def write_facts(made: FactSet, directory: Path) -> None:
    """Writes passages.jsonl, facts.jsonl and probes.jsonl."""
    for name, records in (("passages", made.passages), ("facts", made.facts), ("probes", made.probes)):
        lines = "".join(json_line(asdict(record)) for record in records)
        write_bytes(directory / f"{name}.jsonl", lines.encode())


def json_line(record: dict[str, Any]) -> str:
    import json

    return json.dumps(record, ensure_ascii=False) + "\n"
