"""The claims of the study of tracing on made-up numbers: each verdict comes out where it should, and nowhere else."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from headwater.launch.studies.claim import Claim
from headwater.launch.studies.resampling import over_seeds, percentiles, slope_weights
from headwater.launch.studies.tracing.claims import growth, kinds, parting, recipe
from headwater.launch.studies.tracing.classes import CLASSES
from headwater.launch.studies.tracing.measured import Point, Seed
from headwater.launch.studies.tracing.recipe import RANDOM, Row, rows
from headwater.launch.studies.tracing.settings import ASKED_ANOTHER, METHODS, RecipeSettings
from headwater.launch.studies.verdict import NOT_REPRODUCED, NOT_TESTABLE, REPRODUCED

PARAMETERS = {"small": 1000, "middle": 2000, "large": 4000}
AMOUNTS = [100, 200, 400]
QUESTIONS, UNSEEN = 60, 12
LAST = ("large", 400)


def made_seeds(
    level: dict[str, float] | None = None,
    rise: dict[str, tuple[float, float]] | None = None,
    tail: dict[str, float] | None = None,
    kind: dict[str, list[float]] | None = None,
    count: int = 2,
) -> list[Seed]:
    """Seeds whose MRR is `level` plus `rise` a doubling of weights and of tokens, of methods by name, with noise; tail
    patches about `tail`, and kinds of passages with the probabilities `kind`. What is not named is alike for all."""
    found = []
    for number in range(count):
        rng = np.random.default_rng(number)
        seen = np.arange(QUESTIONS) >= UNSEEN
        points = {}
        for (a, size), (t, step) in itertools.product(enumerate(PARAMETERS), enumerate(AMOUNTS)):
            values, classes = {}, {}
            for method in (*METHODS, "gold"):
                by_size, by_tokens = (rise or {}).get(method, (0.0, 0.0))
                mean = (level or {}).get(method, 0.4) + (by_size * a + by_tokens * t) * seen
                patched = (tail or {}).get(method, 0.0) + rng.normal(0, 0.02, QUESTIONS)
                patched[::2] = np.nan
                values[method] = {
                    "mrr": mean + rng.normal(0, 0.1, QUESTIONS),
                    "recall@10": mean + rng.normal(0, 0.1, QUESTIONS),
                    "tail_patch": patched,
                }
                chances = (kind or {}).get(method, [1 / len(CLASSES)] * len(CLASSES))
                classes[method] = rng.choice(len(CLASSES), (QUESTIONS, 20), p=chances)
            first = {method: [f"{method}#{i}" for i in range(QUESTIONS)] for method in METHODS}
            texts = {name: f"text of {name}" for each in first.values() for name in each}
            drawn = np.where(np.arange(QUESTIONS) >= QUESTIONS - 5, 1.0, np.nan)
            drops = {"gold": 0.5 * drawn, "random": 0 * drawn, "trackstar": 0.1 * (1 + a) * drawn}
            probability = rng.uniform(size=QUESTIONS)
            ranked = (level or {}).get("random", 0.4) + rng.normal(0, 0.1, QUESTIONS)
            values[ASKED_ANOTHER] = {"mrr": ranked, "tail_patch": np.full(QUESTIONS, np.nan)}
            by_chance = {method: rng.choice(len(CLASSES), (QUESTIONS, 20)) for method in METHODS}
            left_out = {"gold": 10, "random": 10, "trackstar": 6 + number}
            points[size, step] = Point(values, probability, classes, by_chance, first, texts, drops, left_out)
        records = [
            {"prompt": f"prompt {i}", "target": f"target {i}", "subject": f"S{i // 2}"} for i in range(QUESTIONS)
        ]
        found.append(Seed(records, seen, points))
    return found


def statuses(claims: list[Claim]) -> dict[str, str]:
    told = {claim.claim: claim.verdict[0] for claim in claims}
    assert len(told) == len(claims), "every claim has its own words"
    assert all(claim.control for claim in claims), "and its negative control"
    return told


def test_slopes_are_those_that_were_put_in():
    seeds = made_seeds(rise={"trackstar": (0.10, 0.05), "headwater": (0.0, 0.08)})
    found = growth.measure(seeds, PARAMETERS, AMOUNTS)
    for axis, method, slope in (
        ("size", "trackstar", 0.10),
        ("tokens", "trackstar", 0.05),
        ("size", "headwater", 0.0),
        ("tokens", "headwater", 0.08),
        ("size", "random", 0.0),
    ):
        value, low, high = found["slopes"][axis][method]["mrr"]
        assert value == pytest.approx(slope, abs=0.02)
        assert low < value < high
    assert found["slopes"]["size"]["trackstar"]["mrr, unseen"][0] == pytest.approx(0, abs=0.03)
    # The method's drop grows by a fifth of gold's from size to size, and gold's is its own everywhere.
    assert found["slopes"]["size"]["without trackstar"]["share"] == pytest.approx([0.2] * 3)
    assert found["slopes"]["tokens"]["without trackstar"]["share"] == pytest.approx([0.0] * 3, abs=1e-9)
    assert found["rows"]["middle"]["200"]["left_out"]["trackstar"]["share"] == pytest.approx([0.4] * 3)
    assert found["rows"]["middle"]["200"]["left_out"]["trackstar"]["passages"] == 6.5, "meaned over seeds"
    # Polyfit says the same of the means.
    means = [np.mean([found["rows"][s][str(t)]["methods"]["trackstar"]["mrr"][0] for t in AMOUNTS]) for s in PARAMETERS]
    fitted = np.polyfit(np.log2(list(PARAMETERS.values())), means, 1)[0]
    assert found["slopes"]["size"]["trackstar"]["mrr"][0] == pytest.approx(fitted)


def test_growth_is_reproduced_where_it_is_and_nowhere_else():
    rise = {"trackstar": (0.10, 0.05), "headwater": (0.0, -0.08)}
    claims = growth.judge(growth.measure(made_seeds(rise=rise), PARAMETERS, AMOUNTS))
    assert list(statuses(claims).values()) == [REPRODUCED, NOT_REPRODUCED, REPRODUCED, NOT_REPRODUCED]
    assert "undecided" in claims[1].verdict[1]
    assert "undecided" not in claims[3].verdict[1], "it falls, and that is decided"
    assert all("random ranking" in claim.control and "never shown" in claim.control for claim in claims)


def test_what_a_random_ranking_does_too_is_not_reproduced():
    rise = {"trackstar": (0.10, 0.05), "headwater": (0.10, 0.05), "random": (0.10, 0.0)}
    claims = growth.judge(growth.measure(made_seeds(rise=rise), PARAMETERS, AMOUNTS))
    assert list(statuses(claims).values()) == [NOT_REPRODUCED, NOT_REPRODUCED, REPRODUCED, REPRODUCED]
    assert "a random ranking rises too" in claims[0].verdict[1]


def test_one_size_says_nothing_about_sizes():
    seeds = made_seeds(rise={"trackstar": (0.1, 0.1), "headwater": (0.1, 0.1)})
    claims = growth.judge(growth.measure(seeds, {"small": 1000}, AMOUNTS))
    told = {claim.claim: claim.verdict[0] for claim in claims}
    assert list(told.values()) == [NOT_TESTABLE, NOT_TESTABLE, REPRODUCED, REPRODUCED]


def test_parting_is_paired_and_has_a_side():
    level = {"bm25": 0.9, "trackstar": 0.5, "headwater": 0.9, "random": 0.01}
    tail = {"trackstar": 0.05, "headwater": 0.0, "bm25": 0.0, "random": -0.01}
    found = parting.measure(made_seeds(level=level, tail=tail), LAST)
    claims = parting.judge(found)
    assert list(statuses(claims).values()) == [REPRODUCED, REPRODUCED, NOT_REPRODUCED, NOT_REPRODUCED]
    assert "+0.4" in claims[0].verdict[1]
    low, high = found["asked_another"][1:]
    assert low < 0 < high, "BM25 that was asked something else finds nothing"
    assert "scale, BM25 less a random ranking: +0.9" in claims[0].control
    assert found["less_bm25"]["trackstar"]["mrr"][0] == pytest.approx(-0.4, abs=0.05)
    assert found["same_first"]["trackstar"] == [0, 0, 0]
    gaps = [each["gap"] for each in found["examples"]]
    assert gaps == sorted(gaps, reverse=True)
    assert 0 < len(gaps) <= 2 * parting.EXAMPLES
    top = found["examples"][0]["tops"]["trackstar"]
    assert top["text"] == f"text of {top['passage']}"
    assert top["class"] in CLASSES
    number = int(found["examples"][0]["prompt"].split()[-1])
    assert number >= UNSEEN, "what was never shown is no example"


def test_where_random_passages_move_the_model_more_than_bm25s_do_nothing_is_reproduced():
    level = {"bm25": 0.9, "trackstar": 0.5, "headwater": 0.9, "random": 0.01}
    tail = {"trackstar": 0.05, "headwater": 0.05, "bm25": -0.1, "random": 0.0}
    claims = parting.judge(parting.measure(made_seeds(level=level, tail=tail), LAST))
    assert list(statuses(claims).values()) == [REPRODUCED, NOT_REPRODUCED, NOT_REPRODUCED, NOT_REPRODUCED]
    assert "random passages are above BM25's as well" in claims[1].verdict[1]


def test_without_tail_patch_nothing_is_said_of_it():
    seeds = made_seeds(level={"bm25": 0.9})
    for point in seeds[0].points.values():
        for each in point.values.values():
            each["tail_patch"][:] = np.nan
    claims = parting.judge(parting.measure(seeds[:1], LAST))
    assert list(statuses(claims).values()) == [REPRODUCED, NOT_TESTABLE] * 2
    assert parting.measure(seeds[:1], LAST)["examples"] == []


def test_kinds_are_held_against_chance():
    #       entailing, same subject, same relation, same value, names, none
    kind = {
        "random": [0.02, 0.02, 0.16, 0.05, 0.05, 0.70],
        "trackstar": [0.40, 0.10, 0.40, 0.05, 0.03, 0.02],
        "headwater": [0.02, 0.02, 0.16, 0.05, 0.05, 0.70],
        "bm25": [0.60, 0.30, 0.00, 0.00, 0.10, 0.00],
    }
    found = kinds.measure(made_seeds(kind=kind), LAST)
    claims = kinds.judge(found)
    told = statuses(claims)
    assert list(told.values())[:2] == [REPRODUCED, REPRODUCED]
    assert list(told.values())[4:] == [NOT_REPRODUCED] * 4, "a method that names passages at random names no kind more"
    assert set(found["control"]) == {"trackstar", "headwater"}
    for bars in (found["by_method"], found["by_rank"]["trackstar"], found["by_known"]["trackstar"]):
        for shares in bars.values():
            assert sum(share[0] for share in shares.values()) == pytest.approx(1)
    assert found["by_method"]["trackstar"]["entailing"][0] == pytest.approx(0.4, abs=0.05)


def test_what_is_found_for_another_question_too_is_not_reproduced():
    kind = {"random": [0.02, 0.02, 0.16, 0.05, 0.05, 0.70], "trackstar": [0.40, 0.10, 0.40, 0.05, 0.03, 0.02]}
    seeds = made_seeds(kind=kind)
    for seed in seeds:
        point = seed.points[LAST]
        point.classes_of_another.update({name: each.copy() for name, each in point.classes.items()})
    found = kinds.measure(seeds, LAST)
    assert found["control"]["trackstar"] == found["above"]["trackstar"]
    claims = kinds.judge(found)[:2]
    assert list(statuses(claims).values()) == [NOT_REPRODUCED, NOT_REPRODUCED]
    assert "another question's fact" in claims[0].verdict[1]
    for seed in seeds:
        seed.points[LAST].classes_of_another["trackstar"][seed.seen_Q] = -1
    alone = kinds.measure(seeds, LAST)
    assert alone["control"]["trackstar"]["entailing"] is None, "questions without another one do not count"
    assert [claim.verdict[0] for claim in kinds.judge(alone)[:2]] == [REPRODUCED, REPRODUCED]


def test_terciles_are_of_what_was_shown():
    seed = made_seeds(count=1)[0]
    found = kinds.terciles(seed, LAST)
    assert [(found == number).sum() for number in (-1, 0, 1, 2)] == [UNSEEN, 16, 16, 16]
    probability = seed.points[LAST].probability_Q
    assert probability[found == 0].max() < probability[found == 1].min()
    assert probability[found == 1].max() < probability[found == 2].min()


def test_rows_of_the_recipe_are_paired_with_the_full_one():
    made = [*rows(RecipeSettings()), Row(RANDOM, "a random ranking", claimed=False)]
    rng = np.random.default_rng(0)
    full = rng.uniform(0.3, 1, 40)
    values = {}
    for row in made:
        worse = {"no-curvature": 0.2, "no-unit-norm": 0.1, RANDOM: 0.3, "full": 0.0}.get(row.name)
        values[row.name] = {
            name: full - worse if worse is not None else full + rng.normal(0, 0.02, 40) for name in ("mrr", "recall@10")
        }
    values["fewer-dimensions"] = dict.fromkeys(("mrr", "recall@10"), full + 0.1)
    told = statuses(recipe.judge(recipe.table(made, values, np.arange(40) // 2)))
    by_row = {claim.split(", ")[1].partition(":")[0]: status for claim, status in told.items()}
    assert by_row["no curvature"] == by_row["no unit norm"] == REPRODUCED
    assert by_row["no optimizer correction"] == by_row["the corpus's curvature alone"] == NOT_REPRODUCED
    assert by_row["16 x 16 dimensions instead of 32 x 32"] == NOT_REPRODUCED


def test_no_run_is_no_row():
    claims = recipe.judge(None)
    assert [claim.verdict[0] for claim in claims] == [NOT_TESTABLE]
    assert "recipe.run=" in claims[0].verdict[1]


def test_intervals_are_over_seeds_and_subjects():
    rng = np.random.default_rng(1)
    each_its_own = [np.arange(50)] * 4
    alike = [rng.normal(0.5, 0.1, 50) for _ in range(4)]
    apart = [rng.normal(level, 0.1, 50) for level in (0.2, 0.4, 0.6, 0.8)]
    one, other = over_seeds(alike, each_its_own), over_seeds(apart, each_its_own)
    assert other[2] - other[1] > 3 * (one[2] - one[1]), "seeds that differ make it wide"
    assert one[0] == pytest.approx(np.concatenate(alike).mean())
    assert over_seeds([np.array([np.nan, 1.0, 1.0])], [np.arange(3)]) == [1.0, 1.0, 1.0], "what lacks is left out"
    assert over_seeds([np.array([np.nan])], [np.arange(1)]) is None
    assert over_seeds([np.ones((3, 2)) * [1, 0]], [np.arange(3)], lambda mean: mean[..., 0] / mean[..., 1]) is None
    assert slope_weights([0, 1, 2]) @ np.array([1.0, 3.0, 5.0]) == pytest.approx(2.0)
    with pytest.raises(ValueError, match="two different"):
        slope_weights([3, 3])


def test_questions_about_one_subject_are_drawn_together():
    rng = np.random.default_rng(2)
    own = rng.normal(size=30)
    copies, subjects = np.repeat(own, 3), np.repeat(np.arange(30), 3)
    assert over_seeds([copies], [subjects]) == pytest.approx(over_seeds([own], [np.arange(30)]))
    # Subjects with more questions weigh more: a loop that draws them one by one says the same.
    uneven = np.concatenate([copies, own[:9] + 1])
    about = np.concatenate([subjects, np.arange(9)])
    means = []
    for _ in range(4000):
        drawn = np.concatenate([uneven[about == name] for name in rng.integers(30, size=30)])
        means.append(drawn.mean())
    assert over_seeds([uneven], [about])[1:] == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.04)


def test_questions_that_all_seeds_share_are_drawn_once_for_all():
    own, place = np.random.default_rng(3).normal(size=40), np.arange(40)
    one = over_seeds([own], [place])
    shared = over_seeds([own] * 8, [place] * 8, crossed=True)
    apart = over_seeds([own] * 8, [place] * 8)
    assert shared[2] - shared[1] == pytest.approx(one[2] - one[1], rel=0.1), "other seeds tell nothing new"
    assert apart[2] - apart[1] < 0.5 * (one[2] - one[1])
    # What is measured in some seeds alone keeps its place.
    lacking = [np.where(place % 4 == number, np.nan, own) for number in range(3)]
    known = np.concatenate([each[np.isfinite(each)] for each in lacking])
    found = over_seeds(lacking, [place] * 3, crossed=True)
    assert found[0] == pytest.approx(known.mean())
    assert found[2] - found[1] == pytest.approx(one[2] - one[1], rel=0.2)


def test_an_interval_over_what_is_left_of_the_resamples_is_none():
    found = np.arange(1000.0)
    found[:50] = np.nan
    assert percentiles(1.0, found, 0.9) == pytest.approx([1.0, *np.quantile(found[50:], [0.05, 0.95])])
    found[50] = np.inf
    assert percentiles(1.0, found, 0.9) is None
    assert percentiles(np.nan, np.ones(9), 0.9) is None
