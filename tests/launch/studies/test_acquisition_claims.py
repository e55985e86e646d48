"""Measures of acquisition against hand values and planted laws, and the study's claims against planted studies."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from headwater.launch.studies.acquisition.claims import (
    batches,
    deduplication,
    depths,
    duplicates,
    exposure,
    forgetting,
    popularity,
    sizes,
    stages,
    threshold,
)
from headwater.launch.studies.acquisition.conditions import Condition, Conditions
from headwater.launch.studies.acquisition.intervals import interval
from headwater.launch.studies.acquisition.judging import judge, measure_claims
from headwater.launch.studies.acquisition.measured import Measured, effects, pool
from headwater.launch.studies.acquisition.metrics import (
    effectivity,
    fit_exponential,
    fit_power,
    local_maximum,
    r_squared,
    retainability,
)
from headwater.launch.studies.verdict import NOT_REPRODUCED, NOT_TESTABLE, REPRODUCED

STEPS = np.array([0, 1, 2, 4, 6, 8, 10, 12])
CURVE = np.array([-5.0, -4.0, -3.0, -3.5, -4.5, -2.0, -3.0, -4.0])


def test_local_maximum_effectivity_and_retention_by_hand():
    assert local_maximum(STEPS, CURVE, 0, 4) == 2
    assert local_maximum(STEPS, CURVE, 0, 8) == 8, "the window's last step counts"
    assert local_maximum(STEPS, CURVE, 2, 4) == 4, "the step of the injection itself does not"
    assert effectivity(STEPS, CURVE, 0, 4) == 2.0
    assert effectivity(STEPS, CURVE, 6, 4) == 2.5
    t, kept = retainability(STEPS, CURVE, [0, 6], 4, 0.1)
    assert t.tolist() == [2, 4]
    assert kept.tolist() == pytest.approx([2 / 3, 1 / 3])
    assert retainability(STEPS, CURVE, [0, 6], 4, 3.5) is None
    with pytest.raises(ValueError, match="step 3 was not measured"):
        effectivity(STEPS, CURVE, 3, 4)
    with pytest.raises(ValueError, match="no step was measured"):
        local_maximum(STEPS, CURVE, 12, 4)


def test_a_planted_maximum_is_found_in_noise():
    rng = np.random.default_rng(3)
    curve = rng.normal(size=300) * 0.1
    curve[137] += 2
    assert local_maximum(np.arange(300), curve, 100, 50) == 137


def test_planted_laws_give_back_their_constants():
    t = np.unique(np.geomspace(1, 1000, 40).astype(int))
    power = fit_power(t, 0.9 - 0.25 * np.log10(t))
    assert (power.level, power.decay, power.r2) == pytest.approx((0.9, 0.25, 1.0))
    assert power.x_intercept == pytest.approx(10**3.6)
    decaying = fit_exponential(t, 0.8 * np.exp(-t / 130))
    assert (decaying.level, 1 / decaying.decay) == pytest.approx((0.8, 130), rel=1e-3)
    # Each law explains its own data better than the other's.
    assert fit_exponential(t, power.at(t)).r2 < 0.95
    assert fit_power(t, decaying.at(t)).r2 < 0.95 < decaying.r2
    assert fit_power(t, np.full(len(t), 0.5)).x_intercept == float("inf")
    with pytest.raises(ValueError, match="three finite points"):
        fit_power(np.array([0, 1, 2]), np.array([1.0, 0.5, 0.2]))


def test_the_exponential_fit_agrees_with_scipy():
    from scipy.optimize import curve_fit

    rng = np.random.default_rng(0)
    t = np.unique(np.geomspace(1, 400, 30).astype(int))
    noisy = 0.7 * np.exp(-t / 60) + rng.normal(size=len(t)) * 0.03
    (level, decay), _ = curve_fit(lambda x, a, b: a * np.exp(-b * x), t, noisy, p0=(0.5, 0.01))
    fit = fit_exponential(t, noisy)
    assert (fit.level, fit.decay) == pytest.approx((level, decay), rel=1e-3)
    assert r_squared(np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 4.0])) == 0.5


def laid_out(owner: np.ndarray, seed: np.ndarray, values: np.ndarray) -> Measured:
    """Probes of one group that have one value each."""
    names = np.full(len(owner), "duplicate")
    return Measured(np.array([0]), values[:, None], seed, owner, names, names, ((0,),) * len(owner))


def mean_interval(measured: Measured, **further: bool) -> list[float]:
    chosen = np.arange(len(measured.owner_P))
    found = interval([(measured, chosen)], lambda n: float(measured.logprob_PS[n, 0].mean()), resamples=1000, **further)
    assert found is not None
    return found


def test_intervals_draw_records_not_probes_and_seeds_before_records():
    owner, values = np.repeat(np.arange(8), 20), np.repeat(np.arange(8.0), 20)
    mean, low, high = mean_interval(laid_out(owner, np.zeros(160, dtype=int), values))
    # The standard error of a mean of eight records, whatever the number of their probes.
    assert mean == 3.5
    assert high - low == pytest.approx(2 * 1.96 * np.arange(8.0).std() / np.sqrt(8), rel=0.15)
    # Four seeds that differ, each of records that do not: all of the error is that of a mean of four seeds.
    seed = np.repeat(np.arange(4), 40)
    mean, low, high = mean_interval(laid_out(np.tile(np.arange(8), 20), seed, seed.astype(float)))
    assert high - low == pytest.approx(2 * 1.96 * np.arange(4.0).std() / 2, rel=0.2)
    # The same records for every seed are drawn once for all: seeds that agree make them no more than they are.
    owner, seed = np.tile(np.arange(8), 4), np.repeat(np.arange(4), 8)
    same = laid_out(owner, seed, owner.astype(float))
    crossed, nested = mean_interval(same, crossed=True), mean_interval(same)
    assert crossed[2] - crossed[1] > 1.6 * (nested[2] - nested[1])


def test_runs_of_the_same_records_are_compared_record_by_record():
    rng = np.random.default_rng(0)
    owner, seed, values = np.arange(40), np.zeros(40, dtype=int), rng.normal(size=40)
    one, two = laid_out(owner, seed, values), laid_out(owner, seed, values + 0.1)
    all_of = np.arange(40)
    gap = interval(
        [(one, all_of), (two, all_of)],
        lambda a, b: float(two.logprob_PS[b].mean() - one.logprob_PS[a].mean()),
        resamples=200,
    )
    assert gap == pytest.approx([0.1] * 3), "what the records have in common is gone"
    assert interval([(one, all_of[:0])], lambda n: 0.0, resamples=10) is None


def test_a_statistic_that_many_draws_do_not_have_has_no_interval():
    owner = np.arange(12)
    measured = laid_out(owner, np.zeros(12, dtype=int), owner.astype(float))
    every = measured.logprob_PS[:, 0]

    def when_drawn(least: int):
        chosen = np.arange(12)
        return interval(
            [(measured, chosen)],
            lambda n: float(every[n].mean()) if (every[n] >= least).any() else float("nan"),
            resamples=1000,
        )

    # One record of twelve is in 65% of the draws, one of six in all but 1 of 4,000.
    assert when_drawn(11) is None
    assert when_drawn(6) is not None


def planted(
    jumps: dict[str, float],
    *,
    seed: int = 0,
    groups: dict[str, tuple[int, ...]] | None = None,
    decay: dict[str, float] | None = None,
    drift: float = 0.0,
    records: int = 24,
    noise: float = 0.02,
) -> Measured:
    """Probes that rise by `jumps` (by depth) at each injection of their group, and fall by a law in log10 of the steps
    since; all probes, the controls' too, drift by so much in all."""
    groups = groups or {"duplicate": (0, 50), "once": (0,), "paraphrase": (0, 50), "control": ()}
    rng, steps = np.random.default_rng(seed), np.arange(0, 301)
    rows, owner, depth, group = [], [], [], []
    for record in range(records):
        name = list(groups)[record % len(groups)]
        for probe_depth, size in jumps.items():
            for _ in range(3):
                curve = rng.normal(size=len(steps)) * noise - 6 + drift * steps / 300
                for step in groups[name]:
                    fall = (decay or {}).get(name, 0.3) * np.log10(np.maximum(steps - step, 1))
                    curve += np.where(steps > step, size * (1 - fall), 0)
                rows.append(curve)
                owner.append(record)
                depth.append(probe_depth)
                group.append(name)
    most = max(groups.values(), key=len)
    shown = tuple(groups[name] or most for name in group)
    return Measured(
        steps, np.array(rows), np.full(len(rows), seed), np.array(owner), np.array(depth), np.array(group), shown
    )


JUMPS = {"memorization": 2.0, "semantic": 1.0, "composition": 0.5}


def condition(measured: Measured, **factors: object) -> Condition:
    return Condition(**{"label": "x", "window": 50, "stage": 100, "batch": 4, **factors}, measured=measured)


def status(claims: list) -> list[str]:
    return [claim.verdict[0] for claim in claims]


def test_a_planted_study_gives_back_its_law_and_its_claims():
    plain = condition(pool([planted(JUMPS, drift=0.5), planted(JUMPS, seed=1, drift=0.5)]))
    conditions = Conditions([plain], 60)
    assert np.isnan(effects(plain.measured, 50)[plain.measured.group_P == "once", 1]).all()
    once = plain.measured.of("once", "memorization")
    fit = plain.pooled_fit(once)
    assert fit is not None
    assert fit.decay == pytest.approx(0.3, abs=0.03), "the drift of all probes is no part of what is retained"
    assert fit.r2 > 0.98
    other = condition(plain.measured, alike_controls=False).pooled_fit(once)
    assert other is not None
    assert other.decay < 0.27, "controls of another kind say nothing of its drift"
    found = measure_claims(conditions)
    assert status(exposure.judge(found["exposure"])) == [REPRODUCED, REPRODUCED, NOT_REPRODUCED], (
        "all jumps were planted alike, the first and the later"
    )
    assert status(depths.judge(found["depths"])) == [REPRODUCED, REPRODUCED]
    assert status(forgetting.judge(found["forgetting"]))[:2] == [REPRODUCED] * 2
    # Two decades are not reached: 300 steps less the last injection and its window leave 200.
    assert found["duplicates"]["decades"] > 2
    assert status(duplicates.judge(found["duplicates"])) == [NOT_REPRODUCED] * 2, "none was planted"
    assert found["duplicates"]["decay, control"] == pytest.approx([0, 0, 0], abs=0.01)
    summary = {
        "measures": found,
        "settings": {"facts": "", "count": 2, "interval": 50, "window": 50, "probe_every": 1},
        "model": {"layers": 1, "hidden": 2, "batch": 4, "seq_len": 8},
        "leaking_probes": ["one"],
        "familiar": 9,
    }
    kept = judge(summary)
    assert all("instead of OLMo" in claim["differs"] for claim in kept[:-1])
    assert all("from 9 others" in claim["differs"] for claim in kept[:-1])
    assert not any("others" in claim["differs"] for claim in judge({**summary, "familiar": 0}))
    assert all(set(claim) == {"claim", "status", "measured", "control", "differs"} for claim in kept)
    not_run = [claim["status"] for claim in kept if "stage" in claim["claim"] or "Larger models" in claim["claim"]]
    assert not_run == [NOT_TESTABLE] * 2
    # The claim fails where the order is planted the other way round.
    turned = condition(planted({"memorization": 1.0, "semantic": 2.0, "composition": 0.5}))
    assert status(depths.judge(depths.measure(Conditions([turned], 60), turned))) == [NOT_REPRODUCED, REPRODUCED]


def test_depths_are_compared_less_the_noise_that_their_controls_show():
    measured = planted(JUMPS)
    noisy = (
        measured.logprob_PS
        + np.random.default_rng(1).normal(size=measured.logprob_PS.shape) * (measured.depth_P == "semantic")[:, None]
    )
    plain = condition(replace(measured, logprob_PS=noisy))
    memory, semantic = measured.of(None, "memorization"), measured.of(None, "semantic")
    assert depths.gap(plain, memory, semantic) < 0, "the maximum of the noisier ones is higher"
    found = depths.measure(Conditions([plain], 60), plain)
    assert status(depths.judge(found))[0] == REPRODUCED


def test_means_of_ratios_and_ratios_of_means_are_told_apart():
    """A drift that all probes share bends single ratios, and no mean gain less the controls'."""
    drifting = condition(pool([planted(JUMPS, drift=-3.0), planted(JUMPS, seed=1, drift=-3.0)]))
    found = forgetting.measure(Conditions([drifting], 60))
    row = found["once/memorization"]
    assert row["pooled"]["power_r2"] > 0.98
    assert row["pooled"]["power_r2"] > row["power_r2"] + 0.01
    assert row["pooled"]["lead"][1] > 0
    assert (
        forgetting.leads({"x": {"power_r2": 0.5, "exponential_r2": 0.6, "lead": [-0.1, -0.2, 0.1]}})[0]
        == NOT_REPRODUCED
    )


def test_faster_forgetting_of_duplicates_is_found_where_it_is_planted():
    measured = planted(JUMPS, decay={"duplicate": 0.4, "paraphrase": 0.3})
    found = duplicates.measure(Conditions([condition(measured)], 60), condition(measured))
    assert found["decay, memorization"][0] == pytest.approx(0.1, abs=0.03)
    assert status(duplicates.judge(found))[1] == REPRODUCED
    assert status(duplicates.judge({**found, "decades": 1.9}))[1] == NOT_TESTABLE


@pytest.mark.parametrize(("gain", "expected"), [(0.0, REPRODUCED), (0.5, NOT_REPRODUCED), (-0.5, REPRODUCED)])
def test_later_stages_gain_what_was_planted(gain: float, expected: str):
    early = planted(JUMPS, noise=0.002)
    late = planted({name: jump * (1 + gain) for name, jump in JUMPS.items()}, noise=0.002)
    found = stages.measure(Conditions([condition(early), condition(late, stage=200)], 60))
    assert status(stages.judge(found)) == [expected]
    assert found["rows"]["200"]["memorization, gain"][0] == pytest.approx(gain * 2 * 0.95, abs=0.15)


def test_too_few_records_say_nothing_of_stages():
    assert stages.no_gain([0.0, -0.5, 0.5], [1.0, 0.9, 1.1]) == NOT_TESTABLE
    assert stages.no_gain([0.0, -0.05, 0.05], [1.0, 0.9, 1.1]) == REPRODUCED


def test_sizes_and_batches_are_held_against_the_plain_run():
    plain = condition(planted(JUMPS), parameters=10)
    small = condition(planted({name: jump / 2 for name, jump in JUMPS.items()}), size="small", parameters=1)
    slow = planted(JUMPS, decay=dict.fromkeys(("duplicate", "paraphrase", "once"), 0.2))
    conditions = Conditions([plain, small, condition(slow, batch=8), condition(plain.measured, batch=8, copies=2)], 60)
    found = sizes.measure(conditions)
    assert list(found["rows"]) == ["small", "base"], "from the smallest"
    assert status(sizes.judge(found)) == [REPRODUCED]
    # With the number fixed it forgets more slowly; with the share fixed the very same was planted.
    number, share = batches.judge(batches.measure(conditions))
    assert (number.verdict[0], share.verdict[0]) == (REPRODUCED, NOT_REPRODUCED)
    swapped = Conditions([replace(small, size="base"), replace(plain, size="large", parameters=0)], 60)
    assert status(sizes.judge(sizes.measure(swapped))) == [NOT_REPRODUCED]


SPACED = {"every 4": (150, 154, 158), "every 90": (0, 90, 180), "control": ()}


@pytest.mark.parametrize(("fall", "expected"), [(0.7, REPRODUCED), (0.01, NOT_TESTABLE)])
def test_the_threshold_is_tested_on_both_sides_of_the_x_intercept(fall: float, expected: str):
    plain = condition(planted(JUMPS, decay={"once": fall, "duplicate": fall, "paraphrase": fall}))
    # R is zero after 10 ** (1 / .7) = 27 steps.
    spaced = planted(JUMPS, groups=SPACED, decay={"every 4": fall, "every 90": max(fall, 0.51)})
    spaced = replace(spaced, steps=spaced.steps)
    conditions = Conditions([plain, condition(spaced, plan="spacing", window=4)], 60)
    found = threshold.measure(conditions)
    if expected == REPRODUCED:
        assert 10 ** found["x_intercept"][0] == pytest.approx(27, rel=0.3)
        assert found["rows"]["every 90"]["memorization"][2] < 0.2
    assert status(threshold.judge(found)) == [expected]


def test_facts_that_were_never_gained_are_not_taken_for_facts_that_are_never_forgotten():
    spaced = condition(planted(JUMPS, groups=SPACED), plan="spacing", window=4)
    kept = condition(planted(JUMPS, decay=dict.fromkeys(("once", "duplicate", "paraphrase"), 0.0), noise=0))
    once = kept.measured.of("once", "memorization")
    assert threshold.intercept(kept, once) == pytest.approx(threshold.CEILING), "gained, and nothing falls"
    lost = condition(planted(dict.fromkeys(JUMPS, -1.0)))
    assert np.isnan(threshold.intercept(lost, once))
    found = threshold.measure(Conditions([lost, spaced], 20))
    assert found["x_intercept"] is None
    (claim,) = threshold.judge(found)
    assert claim.verdict[0] == NOT_TESTABLE
    assert "gained too little" in claim.verdict[1]


def test_popularity_and_deduplication_say_what_was_planted():
    groups = {"met 1": (0,), "met 3": (0, 50, 100), "control": ()}
    fades = planted(JUMPS, groups=groups, decay={"met 1": 0.40, "met 3": 0.2}, drift=1.0)
    same = planted(JUMPS, groups=groups, decay={"met 1": 0.40, "met 3": 0.3}, drift=1.0)
    conditions = Conditions(
        [condition(planted(JUMPS)), condition(fades, plan="reworded"), condition(same, plan="copies")], 60
    )
    found = popularity.measure(conditions)
    assert found["control"][0] == pytest.approx(1.0, abs=0.05)
    assert status(popularity.judge(found)) == [REPRODUCED, REPRODUCED], "the controls' drift is taken away"
    without = deduplication.measure(conditions)
    assert status(deduplication.judge(without)) == [REPRODUCED]
    assert without["semantic, control"] == pytest.approx([0, 0, 0], abs=0.03), "facts met once are the same"
    both = Conditions([conditions.every[0], condition(same, plan="reworded"), condition(same, plan="copies")], 60)
    assert status(deduplication.judge(deduplication.measure(both))) == [NOT_REPRODUCED]
