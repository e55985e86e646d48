"""Biographies and questions about them, after Allen-Zhu and Li 2023, "Physics of Language Models 3.1" (2309.14316).

A population is a function of its settings and a seed. Each person has a unique name and six attributes; the city of
work follows from the employer. A variant says in how many wordings, in which orders and with what in place of the
name a person's biography is written; all variants draw a person's wordings and orders from one list, so that what
`single` shows is a part of what `multi5` shows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from headwater.configs.errors import UserError
from headwater.train.facts.biography_wordings import (
    ATTRIBUTES,
    CITIES,
    FIRMS,
    MAJORS,
    MONTHS,
    QUESTIONS,
    SCHOOLS,
    SENTENCES,
)
from headwater.train.facts.draws import generator, invented_names
from headwater.train.facts.settings import PopulationSettings

NEW_YORK_SHARE = 0.137
"""Of the employers that sit in New York, as published."""
_PRONOUNS = {"he": ("he", "his", "him"), "she": ("she", "her", "her")}
_ENDINGS = {
    "first": ("a", "el", "in", "or", "ette", "us", "iel", "ora"),
    "middle": ("bert", "wen", "dine", "mar", "lyn", "ton", "rick", "sa"),
    "last": ("son", "berg", "field", "ley", "strom", "wick", "man", "dale"),
    "school": ("ford", "haven", "mont", "stead", "port", "ridge", "wood", "vale"),
    "firm": ("tek", "corp", "ex", "ora", "ium", "onix", "ware", "ico"),
}


@dataclass(frozen=True, slots=True)
class Variant:
    """How biographies are written.

    Attributes:
        wordings: different wordings of each person.
        orders: different orders of the sentences: 0 keeps the order of `ATTRIBUTES`.
        fullname: the name stands in every sentence, not in the first alone.
    """

    name: str
    wordings: int
    orders: int
    fullname: bool

    @property
    def passages(self) -> int:
        """Passages of a person."""
        return max(self.wordings, self.orders)

    @classmethod
    def parse(cls, name: str) -> Variant:
        """Reads a name such as `single`, `single+permute5` or `multi5+permute+fullname`.

        Raises:
            UserError: it is none.
        """
        found = re.fullmatch(
            r"(?:single(?:\+permute([1-9]))?|multi([2-9])(\+permute)?)(\+fullname)?", name.replace(" ", "")
        )
        if not found:
            expected = "single, single+permuteN or multiN, multiN+permute, each with or without +fullname"
            raise UserError("variants", got=name, expected=expected)
        repeats, wordings, permuted, fullname = found.groups()
        several = int(wordings or 1)
        return cls(name, several, several if permuted else int(repeats or 0), bool(fullname))


VARIANTS = tuple(
    base + fullname
    for fullname in ("", "+fullname")
    for base in (
        *("single", "single+permute1", "single+permute2", "single+permute5"),
        *("multi2", "multi2+permute", "multi5", "multi5+permute"),
    )
)
"""The published sixteen."""


@dataclass(frozen=True, slots=True)
class Individual:
    """One person: a full name, a pronoun, and a value of each of `ATTRIBUTES`."""

    number: int
    name: str
    pronoun: str
    values: dict[str, str]

    @property
    def document(self) -> str:
        return "person/" + self.name.lower().replace(" ", "-")


@dataclass(frozen=True, slots=True)
class Biography:
    """A passage.

    Attributes:
        places: of each attribute, in the order in which they stand: where its value begins and ends in the text.
    """

    id: str
    text: str
    places: dict[str, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class QuestionAnswer:
    """A question about a person: `prompt` ends with "Answer:", and `target` should follow."""

    id: str
    person: int
    attribute: str
    prompt: str
    target: str

    @property
    def text(self) -> str:
        return f"{self.prompt} {self.target}."


def make_population(settings: PopulationSettings, seed: int) -> list[Individual]:
    """The people of a seed."""
    rng = generator(seed, 20)
    sizes = (settings.first_names, settings.middle_names, settings.last_names)
    parts = [invented_names(n, _ENDINGS[part], rng) for n, part in zip(sizes, ("first", "middle", "last"), strict=True)]
    chosen = np.unravel_index(rng.choice(int(np.prod(sizes)), settings.people, replace=False), sizes)
    pools = make_pools(settings, seed)
    sites = employer_cities(settings, seed)
    drawn = {name: rng.integers(len(pool), size=settings.people).tolist() for name, pool in pools.items()}
    dates = [rng.integers(n, size=settings.people).tolist() for n in (len(MONTHS), settings.days, settings.years)]
    pronouns = rng.integers(2, size=settings.people).tolist()
    made = []
    for number in range(settings.people):
        month, day, year = (each[number] for each in dates)
        values = {"birth_date": f"{MONTHS[month]} {day + 1}, {1900 + year}"}
        values |= {name: pools[name][drawn[name][number]] for name in pools}
        values["work_city"] = sites[drawn["employer"][number]]
        name = " ".join(part[place[number]] for part, place in zip(parts, chosen, strict=True))
        made.append(
            Individual(number, name, ("he", "she")[pronouns[number]], {name: values[name] for name in ATTRIBUTES})
        )
    return made


def make_pools(settings: PopulationSettings, seed: int) -> dict[str, list[str]]:
    """The values that are drawn from: birth city, university, major and employer."""
    rng = generator(seed, 21)
    schools, firms = (
        invented_names(-(-most // len(forms)), _ENDINGS[kind], rng)
        for kind, most, forms in (("school", 300, SCHOOLS), ("firm", 265, FIRMS))
    )
    return {
        "birth_city": list(CITIES[: settings.cities]),
        "university": [form.format(name) for form in SCHOOLS for name in schools][: settings.universities],
        "major": list(MAJORS[: settings.majors]),
        "employer": [form.format(name) for form in FIRMS for name in firms][: settings.employers],
    }


def employer_cities(settings: PopulationSettings, seed: int) -> list[str]:
    """The city of each employer: New York for the published share, the others anywhere else."""
    rng = generator(seed, 22)
    in_new_york = round(NEW_YORK_SHARE * settings.employers)
    others = rng.integers(1, settings.cities, size=settings.employers - in_new_york).tolist()
    cities = [CITIES[0]] * in_new_york + [CITIES[place] for place in others]
    return [cities[place] for place in rng.permutation(settings.employers).tolist()]


def biographies(person: Individual, variant: Variant, wordings: int, seed: int) -> Iterator[Biography]:
    """A person's passages.

    Args:
        wordings: how many of the wordings of each attribute there are to choose from.
    """
    rng = generator(seed, 23, person.number)
    # Drawn in full for every variant, so that variants of one seed differ in nothing else.
    chosen = {name: rng.permutation(wordings).tolist() for name in ATTRIBUTES}
    orders = [rng.permutation(len(ATTRIBUTES)).tolist() for _ in range(9)]
    for turn in range(variant.passages):
        order = orders[turn] if variant.orders else range(len(ATTRIBUTES))
        text, places = "", {}
        for place in order:
            name = ATTRIBUTES[place]
            wording = SENTENCES[name][chosen[name][turn % variant.wordings]]
            sentence = spoken(wording, person, named=variant.fullname or not text)
            start, end = (len(text) + 1 if text else 0), person.values[name]
            text = f"{text} {sentence}{end}." if text else f"{sentence}{end}."
            places[name] = (start + len(sentence), start + len(sentence) + len(end))
        yield Biography(f"{person.document}#{turn}", text, places)


def spoken(wording: str, person: Individual, named: bool) -> str:
    """A wording up to its value, with the name or a pronoun."""
    sentence = wording.removesuffix("{v}.")
    if named:
        return sentence.format(n=person.name, m=person.name)
    subject, possessive, other = _PRONOUNS[person.pronoun]
    sentence = re.sub(r"^The ([\w ]+) of \{m\}", rf"{possessive} \1", sentence)
    sentence = sentence.replace("{n}'s", possessive).format(n=subject, m=other)
    return sentence[0].upper() + sentence[1:]


def questions(person: Individual) -> list[QuestionAnswer]:
    """The six questions about a person."""
    return [
        QuestionAnswer(
            f"{person.document.replace('person/', 'qa/', 1)}#{place}",
            person.number,
            name,
            f"{QUESTIONS[name].format(n=person.name)} Answer:",
            person.values[name],
        )
        for place, name in enumerate(ATTRIBUTES)
    ]


def split_people(count: int, seed: int) -> tuple[list[int], list[int]]:
    """The half of the people whose questions are trained on, and the half that is asked: numbers, rising."""
    order = generator(seed, 24).permutation(count).tolist()
    return sorted(order[: count // 2]), sorted(order[count // 2 :])
