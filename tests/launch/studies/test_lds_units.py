"""What a score is worth: the slope that made the answers is found, and what does not hold is seen."""

from __future__ import annotations

import numpy as np
import pytest

from headwater.launch.studies.lds.leaving import LeftOut, asked_of
from headwater.launch.studies.lds.units import Worth, left_out_costs, units

WORTH, NOISE = 3.0, 0.4


def trainings(models: int = 120, queries: int = 30, passages: int = 50, seed: int = 0):
    """Scores, halves and answers of models in which every unit of score is worth three nats."""
    rng = np.random.default_rng(seed)
    scores_QN = rng.normal(0, 0.1, (queries, passages))
    inside_MN = np.stack([rng.permutation(passages) < passages // 2 for _ in range(models)])
    level_Q = rng.normal(-5, 2, queries)
    sums_MQ = inside_MN @ scores_QN.T
    return scores_QN, sums_MQ, level_Q + WORTH * sums_MQ + rng.normal(0, NOISE, sums_MQ.shape)


def test_the_slope_and_the_noise_are_found_and_hold_for_other_trainings():
    scores_QN, sums_MQ, outputs_MQ = trainings()
    row = units(scores_QN, sums_MQ, outputs_MQ, np.array(["facts"] * 30), None)["facts"]
    mean, low, high = row["slope"]
    assert low < WORTH < high
    assert mean == pytest.approx(WORTH, abs=0.15)
    assert row["noise"] == pytest.approx(NOISE, rel=0.05)
    assert row["halves"]["coverage"] == pytest.approx(0.9, abs=0.02)
    expected = 1 - NOISE**2 / outputs_MQ.var(axis=0).mean()
    assert row["halves"]["explained"] == pytest.approx(expected, abs=0.05)


def test_scores_without_meaning_explain_nothing_and_equal_ones_have_no_worth():
    scores_QN, sums_MQ, outputs_MQ = trainings()
    shuffled = np.random.default_rng(1).permutation(len(sums_MQ))
    row = units(scores_QN, sums_MQ[shuffled], outputs_MQ, np.array(["facts"] * 30), None)["facts"]
    assert row["halves"]["explained"] < 0.01
    assert row["slope"][1] < 0 < row["slope"][2]
    assert units(scores_QN * 0, sums_MQ * 0, outputs_MQ, np.array(["facts"] * 30), None) == {}


def test_small_sets_are_held_against_it_and_sums_that_do_not_add_up_are_seen():
    scores_QN, sums_MQ, outputs_MQ = trainings()
    rng = np.random.default_rng(2)
    queries_S, usual_Q = np.arange(30), outputs_MQ.mean(axis=0)
    sets = [np.argsort(-scores_QN[q])[:6] for q in queries_S]
    sums_S = np.array([scores_QN[q, each].sum() for q, each in zip(queries_S, sets, strict=True)])

    def said(cost_S: np.ndarray) -> np.ndarray:
        outputs_SQ = np.tile(usual_Q, (30, 1)) + rng.normal(0, NOISE, (30, 30))
        outputs_SQ[queries_S, queries_S] -= cost_S
        return outputs_SQ

    left = LeftOut(
        queries_S,
        {"random": [np.array([0])] * 30, "added": sets, "saturated": sets},
        {"random": said(np.zeros(30)), "added": said(WORTH * sums_S), "saturated": said(0.4 * WORTH * sums_S)},
    )
    kinds_Q = np.array(["facts"] * 30)
    found = units(scores_QN, sums_MQ, outputs_MQ, kinds_Q, left)["facts"]["sets"]
    assert found["added"]["nat"][1] < 1 < found["added"]["nat"][2]
    assert found["added"]["coverage"] > 0.8
    assert found["saturated"]["nat"][2] < 0.7, "a foretold nat is less than a nat"
    assert found["saturated"]["coverage"] < 0.7
    costs = left_out_costs(left, kinds_Q)
    assert costs["added"]["passages"] == 6
    assert costs["added"]["nats"][0] == pytest.approx((WORTH * sums_S).mean(), abs=0.3)
    assert costs["random"]["nats"][0] == pytest.approx(0, abs=0.3)
    # Of each query the difference of two trainings: what is usual does not count.
    own = [left.outputs[name][np.arange(30), queries_S] for name in ("random", "added")]
    assert costs["added"]["qld"][0] == pytest.approx((own[0] - own[1]).mean())
    assert costs["random"]["qld"] == [0, 0, 0]


def test_a_fit_needs_scores_that_differ():
    assert Worth.fitted(np.ones((4, 2)), np.zeros((4, 2))) is None


def test_queries_of_planted_facts_and_of_stated_values_take_turns():
    class Asked:
        def __init__(self, kind: str, gold: bool) -> None:
            self.record, self.gold = {"kind": kind}, ("x",) if gold else ()

    queries = [Asked(kind, kind != "held_out") for kind in ["facts"] * 5 + ["cloze"] * 3 + ["held_out"] * 4]
    chosen = asked_of(queries, 20, seed=1)
    assert sorted(chosen) == list(range(8)), "all that have golds"
    assert [queries[q].record["kind"] for q in chosen[:6]] == ["facts", "cloze"] * 3
    assert asked_of(queries, 3, seed=1) == chosen[:3]
    assert asked_of(queries, 20, seed=2) != chosen
    assert asked_of(queries, 0, seed=1) == []
