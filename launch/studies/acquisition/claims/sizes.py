"""Larger models acquire more."""

from __future__ import annotations

import itertools

from headwater.launch.studies.acquisition.claims.stages import compare
from headwater.launch.studies.acquisition.conditions import Conditions
from headwater.launch.studies.claim import Claim, Found, as_text
from headwater.launch.studies.verdict import NOT_REPRODUCED, NOT_TESTABLE, REPRODUCED
from headwater.train.facts.fictional import DEPTHS


def measure(conditions: Conditions) -> Found | None:
    """By size and depth: mean E less the controls', and how much it is above the smallest model's, record by record."""
    further = conditions.alike(size=...)
    if not further:
        return None
    sizes = sorted([conditions.plain, *further], key=lambda each: each.parameters)
    found = compare(conditions, sizes, [each.size for each in sizes])
    return {**found, "parameters": {each.size: each.parameters for each in sizes}}


def judge(found: Found | None) -> list[Claim]:
    claim = "Larger models acquire more"
    if found is None:
        return [Claim(claim, (NOT_TESTABLE, "one model size"))]
    rows, largest = found["rows"], list(found["rows"])[-1]
    gains = [rows[largest][f"{depth}, gain"] for depth in DEPTHS]
    means = [row["memorization"][0] for row in rows.values() if row["memorization"]]
    rises = gains[0] is not None and gains[0][1] > 0 and all(a < b for a, b in itertools.pairwise(means))
    by_size = ", ".join(
        f"{name} ({found['parameters'][name] / 1e6:.1f}M) {as_text(row['memorization'])}" for name, row in rows.items()
    )
    measured = f"E, memorization: {by_size}; largest - smallest: " + ", ".join(
        f"{depth} {as_text(gain)}" for depth, gain in zip(DEPTHS, gains, strict=True)
    )
    control = "; ".join(f"controls, {name}: {as_text(row['memorization, control'])}" for name, row in rows.items())
    return [Claim(claim, (REPRODUCED if rises else NOT_REPRODUCED, measured), control, "one learning rate for all")]
