"""A later stage of pretraining gains no effectivity."""

from __future__ import annotations

import numpy as np

from headwater.launch.studies.acquisition.conditions import Condition, Conditions, among, common_seeds
from headwater.launch.studies.acquisition.measured import CONTROL
from headwater.launch.studies.claim import Claim, Found, as_text
from headwater.launch.studies.verdict import NOT_REPRODUCED, NOT_TESTABLE, REPRODUCED
from headwater.train.facts.fictional import DEPTHS

MARGIN = 0.1
"""No gain is one of less than this share of the first stage's effectivity, by its whole interval: that an interval
holds zero shows only that there are few records."""


def measure(conditions: Conditions) -> Found | None:
    """By stage and depth: mean E less the controls', and how much it is above the first stage's, record by record."""
    every = conditions.alike(stage=conditions.plain.stage) + conditions.alike(stage=...)
    if len(every) < 2:
        return None
    stages = sorted(every, key=lambda each: each.stage)
    return compare(conditions, stages, [str(each.stage) for each in stages])


def compare(conditions: Conditions, compared: list[Condition], names: list[str]) -> Found:
    """Effectivity of conditions that have shown the same records, each held against the first."""
    everything = common_seeds(*compared)
    rows: dict[str, dict[str, object]] = {name: {} for name in names}
    for depth in DEPTHS:
        samples = [among(each, None, depth, control=True) for each in everything]
        for name, condition, sample in zip(names, compared, samples, strict=True):
            alone = among(sample, CONTROL, depth)
            rows[name][depth] = conditions.interval([sample], condition.above_control)
            rows[name][f"{depth}, control"] = conditions.interval(
                [alone], lambda n, condition=condition: float(np.mean(condition.mean_effect_P[n]))
            )
            rows[name][f"{depth}, gain"] = conditions.interval(
                [samples[0], sample],
                lambda a, b, condition=condition: condition.above_control(b) - compared[0].above_control(a),
            )
    return {"rows": rows}


def judge(found: Found | None) -> list[Claim]:
    claim = "More pretraining does not help acquiring: a later stage gains no effectivity"
    if found is None:
        return [Claim(claim, (NOT_TESTABLE, "one stage"))]
    rows = found["rows"]
    first, *later = rows
    control = "; ".join(f"controls at {name}: {as_text(row['memorization, control'])}" for name, row in rows.items())
    verdicts = [no_gain(rows[name][f"{depth}, gain"], rows[first][depth]) for name in later for depth in DEPTHS]
    measured = "; ".join(
        f"stage {name} - {first}, {depth}: {as_text(rows[name][f'{depth}, gain'])}"
        for name in later
        for depth in DEPTHS
    )
    return [
        Claim(claim, (worst(verdicts), measured), control, "stages are parts of one short run, at one learning rate")
    ]


def no_gain(gain: list[float] | None, first: list[float] | None) -> str:
    """Of one stage and depth: no gain, a gain, or too few records to say."""
    if gain is None or first is None or first[0] <= 0:
        return NOT_TESTABLE
    if gain[1] > 0:
        return NOT_REPRODUCED
    return REPRODUCED if gain[2] < MARGIN * first[0] else NOT_TESTABLE


def worst(statuses: list[str]) -> str:
    return next((each for each in (NOT_REPRODUCED, NOT_TESTABLE) if each in statuses), REPRODUCED)
