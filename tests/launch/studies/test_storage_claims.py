"""The claims of the study of storage on made-up answers: each verdict comes out where it should, and nowhere else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from headwater.launch.studies.claim import Claim
from headwater.launch.studies.storage.claims import lora, mixing, origin, probes, rewriting, size, ways
from headwater.launch.studies.storage.data import CELEBRITY, MAIN, ONCE, PLAIN, Population, rewritten_name
from headwater.launch.studies.storage.figures import draw_mixing, draw_places, draw_rewriting, draw_table
from headwater.launch.studies.storage.measured import Asked, Measured, Probed
from headwater.launch.studies.storage.page import lora_lines, size_lines
from headwater.launch.studies.storage.probes import AT_NAME, PLACES
from headwater.launch.studies.storage.settings import GridSettings, LoraSettings, StorageSettings, WindowSettings
from headwater.launch.studies.storage.summary import accuracies, judge
from headwater.launch.studies.verdict import NOT_REPRODUCED, NOT_TESTABLE, REPRODUCED
from headwater.train.facts.biographies import ATTRIBUTES, VARIANTS
from headwater.train.facts.settings import PopulationSettings

PEOPLE = PopulationSettings(people=120, first_names=20, middle_names=10, last_names=10)
CHANCE = 0.1


def made_study(**settings: Any) -> Measured:
    chosen = StorageSettings(population=PEOPLE, seeds=[0, 1], resamples=300, **settings)
    return Measured(chosen, {seed: Population(PEOPLE, seed) for seed in chosen.seeds})


def put_answers(
    study: Measured,
    variant: str,
    way: str,
    right: float,
    shuffled: float = CHANCE,
    *,
    favoured: dict[int, set[int]] | None = None,
    lift: float = 0.0,
    seeds: tuple[int, ...] = (0, 1),
) -> None:
    """Answers of which a share is right, and a share another person's; of the favoured people `lift` more is right."""
    for seed in seeds:
        rng = np.random.default_rng([seed, *variant.encode(), *way.encode()])
        person = np.repeat(study.populations[seed].asked, len(ATTRIBUTES))
        chance = right + lift * np.isin(person, sorted((favoured or {}).get(seed, ())))
        found = study.answers.setdefault((variant, way), {})
        found[seed] = Asked(
            person,
            np.array(list(ATTRIBUTES) * (len(person) // len(ATTRIBUTES))),
            (rng.uniform(size=len(person)) < chance).astype(float),
            (rng.uniform(size=len(person)) < shuffled).astype(float),
            1.0,
        )


def probed(study: Measured, seed: int, name: float, *, before: float = CHANCE, due: float = 0.9) -> Probed:
    """P-probes right at the name and after it with a chance `name`, before it with `before`, where due with `due`."""
    rng = np.random.default_rng([seed, int(1000 * name), int(1000 * before)])
    people = np.array(study.populations[seed].asked)
    chances = np.full((len(people), len(PLACES), len(ATTRIBUTES)), name)
    chances[:, 0] = before
    right = rng.binomial(5, chances) / 5
    at_own = rng.binomial(5, due, (len(people), len(ATTRIBUTES))) / 5
    return Probed(people, right, at_own, right[:, 2].mean(axis=1), np.full(len(ATTRIBUTES), CHANCE))


def summary_of(study: Measured, known: float = 0.99) -> dict[str, Any]:
    accuracy = accuracies(study)
    rooms = {"ways": ways, "lora": lora, "probes": probes, "size": size, "mixing": mixing, "rewriting": rewriting}
    return {
        "model": {"layers": 2, "hidden": 128, "tokens": 1e6},
        "settings": {"population": {**dict.fromkeys(("cities", "universities", "majors", "employers", "years"), 9)}}
        | {"seeds": study.settings.seeds},
        "attributes": list(ATTRIBUTES),
        "majority": {"mean": CHANCE},
        "accuracy": accuracy,
        "recall": {"pretrain": {name: {"next_token": 0.9, "values": known} for name in accuracy}},
        "provenance": {},
        "measures": {name: room.measure(study) for name, room in rooms.items()},
    }


def statuses(claims: list[Claim]) -> list[str]:
    assert len({claim.claim for claim in claims}) == len(claims), "every claim has its own words"
    for claim in claims:
        assert claim.control or claim.verdict[0] == NOT_TESTABLE, f"{claim.claim}: its negative control"
    return [claim.verdict[0] for claim in claims]


def by_words(claims: list[Claim], words: str) -> Claim:
    found = [claim for claim in claims if words in claim.claim]
    assert len(found) == 1, words
    return found[0]


def test_a_study_of_nothing_tests_nothing():
    summary = summary_of(made_study())
    summary["settings"]["population"]["people"] = 120
    found = judge(summary)
    assert {claim["status"] for claim in found} == {NOT_TESTABLE}
    assert len(found) == len({claim["claim"] for claim in found})
    assert all("120 people instead of 100,000" in claim["differs"] for claim in found)


def test_ways_of_writing_follow_the_intervals():
    study = made_study()
    share = {PLAIN: 0.1, MAIN: 0.9, "multi2": 0.3, "multi5": 0.5, "single+permute5": 0.7, ONCE: 0.05, CELEBRITY: 0.8}
    for variant, right in {**dict.fromkeys(VARIANTS, 0.1), **share}.items():
        put_answers(study, variant, "full", right)
    put_answers(study, PLAIN, "mixed", 0.8)
    claims = ways.judge(summary_of(study))
    assert statuses(claims) == [
        *(NOT_TESTABLE, REPRODUCED, NOT_TESTABLE),  # by 40 points: mixed, fine-tuned, LoRA
        *(REPRODUCED, REPRODUCED),  # stored
        *(REPRODUCED, REPRODUCED, REPRODUCED),  # wordings, orders, permuted on top
        NOT_REPRODUCED,  # fullname
        *(REPRODUCED, REPRODUCED, REPRODUCED),  # celebrities, their size, mixed in from the start
    ]
    assert "all eight pairs" in by_words(claims, "The name in every sentence").verdict[1]
    assert summary_of(study)["measures"]["ways"]["celebrity_share"][0] == pytest.approx(0.75 / 0.85, abs=0.05)
    assert "another person's" in claims[1].control
    assert draw_table(summary_of(study))[:4] == b"\x89PNG"


def test_fullname_helps_where_it_does():
    study = made_study()
    put_answers(study, PLAIN, "full", 0.1)
    put_answers(study, "single+fullname", "full", 0.4)
    claim = by_words(ways.judge(summary_of(study)), "The name in every sentence")
    assert claim.verdict[0] == REPRODUCED
    assert "all eight pairs" not in claim.verdict[1], "the others were not run"


def test_what_other_peoples_values_gain_as_well_is_not_reproduced():
    study = made_study()
    put_answers(study, PLAIN, "full", 0.1, shuffled=0.1)
    put_answers(study, "single+fullname", "full", 0.3, shuffled=0.3)
    put_answers(study, PLAIN, "mixed", 0.3, shuffled=0.3)
    claims = ways.judge(summary_of(study))
    for words in ("The name in every sentence", "from the start give more"):
        claim = by_words(claims, words)
        assert claim.verdict[0] == NOT_REPRODUCED
        assert "other people's values" in claim.verdict[1]


def test_a_gap_of_less_than_forty_points_or_unknown_biographies_are_not_the_papers():
    study = made_study()
    put_answers(study, MAIN, "full", 0.62)
    put_answers(study, PLAIN, "full", 0.3)
    claims = ways.judge(summary_of(study))
    assert claims[1].verdict[0] == NOT_REPRODUCED
    assert [claim.verdict[0] for claim in ways.judge(summary_of(study, known=0.7))[3:5]] == [NOT_TESTABLE] * 2


def test_lora_is_held_to_sixty_per_cent_and_shows_its_other_ranks():
    study = made_study(lora_sizes=[LoraSettings(name="ratio", embedding_rank=21, rank=1, steps=100)])
    put_answers(study, MAIN, "lora", 0.7)
    put_answers(study, PLAIN, "lora", 0.1)
    put_answers(study, MAIN, "lora-ratio", 0.3)
    summary = summary_of(study)
    (claim,) = lora.judge(summary)
    assert claim.verdict[0] == REPRODUCED
    assert "ratio (21 and 1, 9 laps) .3" in claim.verdict[1].replace("+0.3", ".3")
    assert claim.control.startswith("single: +0.0")
    assert "1.00 and 0.062 of the width instead of 0.17 and 0.010 to 0.021" in claim.differs
    assert [line[0] for line in lora_lines(summary["measures"]["lora"])] == ["lora", "lora-ratio"]
    put_answers(study, MAIN, "lora", 0.6)
    assert lora.judge(summary_of(study))[0].verdict[0] == NOT_REPRODUCED, "its interval holds the bound"


def put_places(study: Measured, rich: float, plain: float, raw: float = 0.12, due: float = 0.9) -> None:
    for seed in study.settings.seeds:
        for variant, name in ((MAIN, rich), (PLAIN, plain)):
            study.places.setdefault(variant, {})[seed] = probed(study, seed, name, due=due)
            study.untrained_places.setdefault(variant, {})[seed] = probed(study, seed, raw, due=raw)


def test_probes_show_where_attributes_stand():
    study = made_study()
    put_places(study, 0.9, 0.15)
    found = summary_of(study)["measures"]["probes"]
    row = found["places"][MAIN]
    assert row["by_place"]["before the name"][0] == pytest.approx(CHANCE, abs=0.03)
    assert row["by_place"][AT_NAME][0] == pytest.approx(0.9, abs=0.02)
    assert np.array(row["accuracy"]).shape == (8, 6)
    claims = probes.judge(summary_of(study))
    assert [claim.verdict[0] for claim in claims[:7]] == [REPRODUCED] * 7
    assert all(claim.control for claim in claims[:7])
    assert "untrained, before the first value: +0.1" in claims[0].control
    assert "untrained, at the name: +0.1" in claims[2].control
    assert draw_places(found, ATTRIBUTES)[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("rich", "plain", "raw", "expected"),
    [
        # Nothing stands on the name.
        (0.15, 0.15, 0.12, [NOT_REPRODUCED, REPRODUCED, NOT_REPRODUCED, REPRODUCED]),
        # Both do.
        (0.9, 0.9, 0.12, [REPRODUCED, NOT_REPRODUCED, NOT_REPRODUCED, NOT_REPRODUCED]),
        # The direction alone.
        (0.4, 0.2, 0.12, [NOT_REPRODUCED, REPRODUCED, REPRODUCED, REPRODUCED]),
        # What weights before any step give as well is no knowledge.
        (0.9, 0.15, 0.9, [NOT_REPRODUCED, REPRODUCED, REPRODUCED, REPRODUCED]),
    ],
)
def test_probes_say_no_where_there_is_nothing(rich: float, plain: float, raw: float, expected: list[str]):
    study = made_study()
    put_places(study, rich, plain, raw)
    found = [claim.verdict[0] for claim in probes.judge(summary_of(study))[:7]]
    assert [*found[:2], found[4], found[6]] == expected
    assert [*found[2:4], found[5]] == expected[:3], "at the name as before the first value"


def test_a_probe_that_cannot_read_what_is_due_proves_no_absence():
    study = made_study()
    put_places(study, 0.3, 0.15, due=0.6)
    rich, plain = probes.judge(summary_of(study))[:2]
    assert rich.verdict[0] == plain.verdict[0] == NOT_TESTABLE
    assert "too weak" in rich.verdict[1]
    study.places[PLAIN] = {seed: probed(study, seed, 0.15, due=0.9) for seed in (0, 1)}
    status = probes.judge(summary_of(study))[0].verdict[0]
    assert status == NOT_REPRODUCED, "where the order is one, a probe of these people reads what is due"
    put_places(study, 0.9, 0.15, due=0.6)
    assert probes.judge(summary_of(study))[0].verdict[0] == REPRODUCED, "what it finds is there"


def test_probes_of_what_is_not_stored_say_nothing():
    study = made_study()
    put_answers(study, MAIN, "full", 0.1)
    put_answers(study, PLAIN, "full", 0.1)
    put_places(study, 0.9, 0.15)
    claims = probes.judge(summary_of(study, known=0.5))
    assert {claim.verdict[0] for claim in claims} == {NOT_TESTABLE}
    assert "not stored well enough" in claims[6].verdict[1]
    assert probes.judge(summary_of(study))[6].verdict[0] == REPRODUCED


def test_what_differs_before_the_name_too_is_the_probes():
    study = made_study()
    for variant, level in ((MAIN, 0.7), (PLAIN, 0.2)):
        study.places[variant] = {seed: probed(study, seed, level, before=level) for seed in (0, 1)}
    claim = by_words(probes.judge(summary_of(study)), "at the name multi5+permute gives more")
    assert claim.verdict[0] == NOT_REPRODUCED
    assert "not above a control" in claim.verdict[1]


def ranked(order: list[int]) -> list[Claim]:
    """Claims of a study whose variants answer the better the later they stand, and are probed in an order."""
    study = made_study()
    for place, variant in enumerate(VARIANTS[:8]):
        put_answers(study, variant, "full", 0.1 + 0.1 * place, seeds=(0,))
        each = probed(study, 0, 0.1 + 0.1 * order[place])
        study.names[variant] = {0: Probed(each.person_P, each.right_PSA[:, 1:2], None, None, each.majority_A)}
    return probes.judge(summary_of(study))


def test_probes_and_answers_rank_alike_where_they_do():
    claim = by_words(ranked(list(range(8))), "Q-probes and questions")
    assert claim.verdict[0] == REPRODUCED
    assert "variants shuffled" in claim.control
    assert "over 8 variants" in claim.verdict[1]
    assert by_words(ranked([3, 6, 0, 5, 2, 7, 1, 4]), "Q-probes and questions").verdict[0] == NOT_REPRODUCED
    assert by_words(ranked(list(range(8))[::-1]), "Q-probes and questions").verdict[0] == NOT_REPRODUCED
    assert by_words(ranked(list(range(8))), "P-probes at the name and").verdict[0] == NOT_TESTABLE


def test_spearman_is_scipys_and_chance_is_around_zero():
    from scipy.stats import spearmanr

    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 5, (2, 3, 9)).astype(float)
    expected = [spearmanr(a, b).statistic for a, b in zip(one, other, strict=True)]
    assert probes.spearman(one, other) == pytest.approx(expected)
    mean, low, high = probes.by_chance(np.arange(16.0), np.arange(16.0))
    assert abs(mean) < 0.03
    # 95% of rank correlations of 16 by chance lie within .497 (tables of Spearman's test).
    assert (low, high) == (pytest.approx(-0.497, abs=0.05), pytest.approx(0.497, abs=0.05))


def test_the_smallest_size_is_the_first_that_shows_both():
    grid = [GridSettings(name="small"), GridSettings(name="deep"), GridSettings(name="many", people=400)]
    study = made_study(grid=grid, grid_seeds=[100])
    study.populations[100] = Population(PEOPLE, 100)
    for name, rich, known in (("small", 0.3, 0.99), ("deep", 0.9, 0.5), ("many", 0.9, 0.99)):
        for rank in (2, 16):
            level = rich if rank == 16 else 0.2
            study.grid[name, rank, MAIN] = {100: probed(study, 100, level)}
            study.grid[name, rank, PLAIN] = {100: probed(study, 100, 0.15)}
        study.told |= {(name, MAIN): [known], (name, PLAIN): [known]}
    summary = summary_of(study)
    (claim,) = size.judge(summary)
    assert claim.verdict[0] == REPRODUCED
    assert "many (probe of rank 16)" in claim.verdict[1], "deep has not learnt its biographies"
    assert "before the name" in claim.control
    lines = size_lines(summary["measures"]["size"])
    assert [line[:3] for line in lines[::2]] == [["small", "2", "120"], ["deep", "2", "120"], ["many", "2", "400"]]
    study.grid["many", 16, MAIN] = {100: probed(study, 100, 0.3)}
    (none,) = size.judge(summary_of(study))
    assert none.verdict[0] == NOT_REPRODUCED
    assert "at none of 6" in none.verdict[1]
    study.told = {key: [0.5] for key in study.told}
    (unfair,) = size.judge(summary_of(study))
    assert unfair.verdict[0] == NOT_TESTABLE
    assert "nowhere are the biographies known" in unfair.verdict[1]


def mixed_study(early: float, late: float, chance: float = CHANCE) -> Measured:
    windows = [WindowSettings(first=a, last=a + 0.5) for a in (0.5, 0.25, 0)] + [WindowSettings(first=0.25, last=1)]
    study = made_study(windows=windows, windowed=[PLAIN])
    for label, right in (("0-50", early), ("25-75", 0.4), ("50-100", late), ("25-100", 0.5)):
        put_answers(study, PLAIN, label, right, chance if label == "0-50" else CHANCE, seeds=(0,))
    put_answers(study, PLAIN, "full", 0.1, seeds=(0,))
    return study


def test_early_is_held_against_as_many_late():
    (claim,) = mixing.judge(summary_of(mixed_study(0.7, 0.3)))
    assert claim.verdict[0] == REPRODUCED
    assert claim.verdict[1].startswith("0-50% of the steps less 50-100%: +0.3")
    assert "full +0.1" in claim.verdict[1]
    assert [each.verdict[0] for each in mixing.judge(summary_of(mixed_study(0.3, 0.7)))] == [NOT_REPRODUCED]
    (by_chance,) = mixing.judge(summary_of(mixed_study(0.7, 0.3, chance=0.5)))
    assert by_chance.verdict[0] == NOT_REPRODUCED
    assert "other people's values" in by_chance.verdict[1]
    assert draw_mixing(summary_of(mixed_study(0.7, 0.3))["measures"]["mixing"])[:4] == b"\x89PNG"


def rewritten_study(own: float, gain: float, chance: float = CHANCE) -> Measured:
    """Those rewritten have `own` more than the plain ones, all others `gain` more for the half that is."""
    study = made_study(rewritten=[0.25, 0.5])
    put_answers(study, PLAIN, "full", 0.1)
    for share in (0.25, 0.5):
        chosen = {seed: each.rewritten(share) for seed, each in study.populations.items()}
        others = 0.1 + 2 * share * gain
        shuffled = chance if share == 0.5 else CHANCE
        put_answers(
            study, rewritten_name(share), "full", others, shuffled, favoured=chosen, lift=own - 2 * share * gain
        )
    put_answers(study, MAIN, "full", 0.1 + own)
    return study


def test_rewriting_a_part_helps_the_rest_where_it_does():
    summary = summary_of(rewritten_study(0.7, 0.4))
    claims = rewriting.judge(summary)
    assert statuses(claims) == [REPRODUCED, REPRODUCED]
    rows = summary["measures"]["rewriting"]["rows"]
    assert rows["rewritten-50"]["gain"]["right"][0] == pytest.approx(0.4, abs=0.07)
    assert rows["rewritten-25"]["rewritten"][0] == pytest.approx(0.8, abs=0.07)
    assert rows["rewritten-50"]["others"][0] == pytest.approx(0.5, abs=0.07)
    assert draw_rewriting(summary["measures"]["rewriting"])[:4] == b"\x89PNG"
    assert statuses(rewriting.judge(summary_of(rewritten_study(0.7, 0.0)))) == [REPRODUCED, NOT_REPRODUCED]
    guessed = rewriting.judge(summary_of(rewritten_study(0.7, 0.3, chance=0.45)))
    assert statuses(guessed) == [REPRODUCED, NOT_REPRODUCED]
    assert "other people's values" in guessed[1].verdict[1]
    unknown = rewriting.judge(summary_of(rewritten_study(0.7, 0.3), known=0.5))
    assert statuses(unknown) == [NOT_TESTABLE, NOT_TESTABLE]


def test_rewriting_is_held_against_other_peoples_values_and_against_the_plain_ones():
    study = rewritten_study(0.3, 0.0)
    put_answers(study, MAIN, "full", 0.4, shuffled=0.6)
    (more, _) = rewriting.judge(summary_of(study))
    assert more.verdict[0] == NOT_REPRODUCED
    assert "other people's values" in more.verdict[1]
    del study.answers[PLAIN, "full"]
    (_, others) = rewriting.judge(summary_of(study))
    assert others.verdict[0] == NOT_TESTABLE


def test_what_is_below_zero_by_one_method_is_not_undecided():
    found = {"right": {"a - b, full": [0.0, -0.1, 0.1], "a - b, mixed": [-0.3, -0.4, -0.2]}, "shuffled": {}}
    assert "undecided" not in ways.ordered(found, ("a - b",))[1]
    found["right"]["a - b, mixed"] = [0.3, 0.2, 0.4]
    status, text = ways.ordered(found, ("a - b",))
    assert (status, "undecided" in text) == (NOT_REPRODUCED, True)


def test_origin_is_held_against_wrong_answers():
    groups = {"own biographies": 0.3, "others' questions of the relation": 0.5, "the rest": 0.2}
    side = {
        "questions": 9,
        "own_lead": [0.2, 0.1, 0.3],
        **{scope: {"groups": groups} for scope in ("top", "all", "expected")},
    }
    wrong = {**side, "own_lead": [0.01, -0.1, 0.1]}
    (claim,) = origin.judge({"provenance": {MAIN: {"right": side, "wrong": wrong}}})
    assert claim.verdict[0] == REPRODUCED
    assert "wrong answers: lead +0.010" in claim.control
    (other,) = origin.judge({"provenance": {MAIN: {"right": wrong, "wrong": side}}})
    assert other.verdict[0] == NOT_REPRODUCED
