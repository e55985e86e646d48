"""Biographies: unique names, values as published, variants that differ in what they say they differ in."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from headwater.configs import ConfigError, UserError, load_config
from headwater.train.facts.biographies import (
    VARIANTS,
    Variant,
    biographies,
    employer_cities,
    make_pools,
    make_population,
    questions,
    split_people,
)
from headwater.train.facts.biography_wordings import ATTRIBUTES, CITIES, MAJORS, SENTENCES
from headwater.train.facts.settings import PopulationSettings

SMALL = PopulationSettings(people=60, first_names=5, middle_names=6, last_names=7, cities=9, employers=8, years=3)


def written(name: str, person: int = 3, wordings: int = 50, seed: int = 1) -> list:
    return list(biographies(make_population(SMALL, seed)[person], Variant.parse(name), wordings, seed))


def test_names_are_unique_and_a_seed_gives_the_same_people():
    people = make_population(SMALL, 0)
    assert len({each.name for each in people}) == len({each.document for each in people}) == 60
    assert all(len(each.name.split()) == 3 for each in people)
    assert [len({each.name.split()[part] for each in people}) for part in range(3)] == [5, 6, 7]
    assert people == make_population(SMALL, 0)
    assert people[0] != make_population(SMALL, 1)[0]
    with pytest.raises(ConfigError, match="as there are names, 8"):
        load_config(PopulationSettings, None, ["people=9", "first_names=2", "middle_names=2", "last_names=2"])


def test_pools_have_the_published_sizes_and_smaller_ones_are_part_of_them():
    full = make_pools(PopulationSettings(), 0)
    assert {name: len(set(pool)) for name, pool in full.items()} == {
        "birth_city": 200,
        "university": 300,
        "major": 100,
        "employer": 263,
    }
    assert all(set(pool) <= set(full[name]) for name, pool in make_pools(SMALL, 0).items())
    assert len(set(CITIES)) == len(CITIES)
    assert len(set(MAJORS)) == len(MAJORS)
    cities = employer_cities(PopulationSettings(), 0)
    assert cities.count("New York") == 36, "13.7% of 263 employers"


def test_values_are_drawn_from_the_pools_and_work_city_follows_from_the_employer():
    people = make_population(PopulationSettings(people=3000), 2)
    of_employer: dict[str, set[str]] = {}
    for each in people:
        assert tuple(each.values) == ATTRIBUTES
        of_employer.setdefault(each.values["employer"], set()).add(each.values["work_city"])
    assert {len(cities) for cities in of_employer.values()} == {1}
    in_new_york = np.mean([each.values["work_city"] == "New York" for each in people])
    assert in_new_york == pytest.approx(0.137, abs=0.02)
    months = Counter(each.values["birth_date"].split()[0] for each in people)
    assert len(months) == 12
    assert max(months.values()) < 2 * min(months.values())


def test_every_wording_is_its_own_and_ends_with_its_value():
    for name in ATTRIBUTES:
        assert len(set(SENTENCES[name])) == 50
        for each in SENTENCES[name]:
            assert each.endswith(" {v}.")
            assert each.count("{n}") + each.count("{m}") == 1
    assert len({each for wordings in SENTENCES.values() for each in wordings}) == 300


def test_the_sixteen_variants():
    assert len(set(VARIANTS)) == 16
    assert [Variant.parse(name).passages for name in VARIANTS[:8]] == [1, 1, 2, 5, 2, 2, 5, 5]
    with pytest.raises(UserError, match="variants"):
        Variant.parse("multi5+permute2")


@pytest.mark.parametrize("name", VARIANTS)
def test_a_biography_states_every_value_where_it_says(name: str):
    variant = Variant.parse(name)
    person = make_population(SMALL, 1)[3]
    made = written(name)
    assert [each.id for each in made] == [f"{person.document}#{k}" for k in range(variant.passages)]
    assert len({each.text for each in made}) == variant.passages
    for each in made:
        assert sorted(each.places) == sorted(ATTRIBUTES)
        assert {a: each.text[start:stop] for a, (start, stop) in each.places.items()} == person.values
        assert list(each.places.values()) == sorted(each.places.values())
        assert each.text.count(person.name) == (6 if variant.fullname else 1)
        assert person.name in each.text.partition(".")[0], "the first sentence names the person"
        sentences = each.text.removesuffix(".").split(". ")
        assert len(sentences) == 6
        assert all(sentence[0].isupper() for sentence in sentences)
        assert "{" not in each.text
    in_order = [list(each.places) == list(ATTRIBUTES) for each in made]
    assert all(in_order) if not variant.orders else not all(in_order)


def test_variants_differ_in_nothing_else():
    single, multi = written("single"), written("multi5")
    assert single[0] == multi[0]
    permuted = written("single+permute5")
    name = make_population(SMALL, 1)[3].name
    # The same wordings in other orders: each sentence with its subject taken out is there.
    assert len({tuple(each.places) for each in permuted}) == 5
    assert sorted(each.text.count(name) for each in permuted) == [1] * 5
    full = [set(each.text.removesuffix(".").split(". ")) for each in written("single+permute5+fullname")]
    assert all(each == full[0] for each in full)
    several = [set(each.text.removesuffix(".").split(". ")) for each in written("multi5+fullname")]
    assert not several[0] & several[1]
    assert [list(each.places) for each in written("multi5+permute")] == [list(each.places) for each in permuted]


def test_pronouns_are_grammatical():
    texts = [each.text for person in range(40) for each in written("multi5+permute", person)]
    for wrong in (" of he ", " of she ", " of him ", "{n}", "he's ", "met he ", " brings she"):
        assert not [text for text in texts if wrong in text], wrong
    assert [text for text in texts if " His " in text]
    assert [text for text in texts if " She " in text]


def test_questions_ask_for_every_attribute_in_one_wording():
    person = make_population(SMALL, 0)[7]
    asked = questions(person)
    assert [each.attribute for each in asked] == list(ATTRIBUTES)
    assert all(person.name in each.prompt and each.prompt.endswith(" Answer:") for each in asked)
    assert asked[3].text == f"{asked[3].prompt} {person.values['major']}."
    assert len({each.id for each in asked}) == 6


def test_halves_share_nobody():
    taught, asked = split_people(61, 3)
    assert sorted([*taught, *asked]) == list(range(61))
    assert len(taught) == 30
    assert split_people(61, 3) == (taught, asked) != split_people(61, 4)
