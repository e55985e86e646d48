"""What is retained falls as a power law."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from headwater.launch.studies.acquisition.conditions import Condition, Conditions
from headwater.launch.studies.acquisition.measured import CONTROL
from headwater.launch.studies.acquisition.metrics import fit_exponential, fit_power
from headwater.launch.studies.claim import Claim, Found
from headwater.launch.studies.verdict import NOT_REPRODUCED, NOT_TESTABLE, REPRODUCED, Verdict, shown
from headwater.train.facts.fictional import DEPTHS

BOUNDS = {"memorization": 0.8, "semantic": 0.8, "composition": 0.65}
"""The paper's R², by depth."""


def measure(conditions: Conditions) -> Found:
    """By scenario and depth, of the paper's R: R² of both laws, and of memorization how far the power law leads, and
    the same of its mean gain less the controls' drift (`pooled`)."""
    plain, found = conditions.plain, {}
    for group in [name for name in dict.fromkeys(plain.measured.group_P.tolist()) if name != CONTROL]:
        for depth in DEPTHS:
            row = fitted(conditions, plain, group, depth)
            if row is not None:
                found[f"{group}/{depth}"] = row
    return found


def fitted(conditions: Conditions, plain: Condition, group: str, depth: str) -> dict[str, Any] | None:
    chosen = plain.measured.of(group, depth)
    usable = chosen[np.isfinite(plain.kept_PT[chosen, 0])]
    if len(usable) < 2:
        return None
    mean_of_ratios = compared(conditions, plain, usable, lambda n: plain.kept_PT[n].mean(axis=0), depth)
    pooled = compared(conditions, plain, chosen, plain.pooled, depth) if depth == DEPTHS[0] else None
    return {**mean_of_ratios, "pooled": pooled} if mean_of_ratios else None


def compared(
    conditions: Conditions,
    plain: Condition,
    probes: np.ndarray,
    kept_of: Callable[[np.ndarray], np.ndarray | None],
    depth: str,
) -> dict[str, Any] | None:
    """Both laws fitted to what is kept of probes, float64 [T]; None where nothing is."""
    kept_T = kept_of(probes)
    if kept_T is None:
        return None

    def lead(n: np.ndarray) -> float:
        drawn_T = kept_of(n)
        if drawn_T is None:
            return float("nan")
        return fit_power(plain.t_T, drawn_T).r2 - fit_exponential(plain.t_T, drawn_T).r2

    power, exponential = fit_power(plain.t_T, kept_T), fit_exponential(plain.t_T, kept_T)
    row: dict[str, Any] = {"power_r2": power.r2, "exponential_r2": exponential.r2}
    if depth == DEPTHS[0]:  # the exponential fit is the dear one
        row["lead"] = conditions.interval([(plain.measured, probes)], lead, max(10, conditions.resamples // 5))
    return row


def judge(found: Found) -> list[Claim]:
    pooled = {name: row["pooled"] for name, row in found.items() if row.get("pooled")}
    fine = all(row["power_r2"] > BOUNDS[name.split("/")[1]] for name, row in found.items())
    listed = ", ".join(f"{name} {row['power_r2']:.2f}" for name, row in found.items())
    bound = ((REPRODUCED if fine else NOT_REPRODUCED), listed) if found else (NOT_TESTABLE, "no probe gained enough")
    control = "the other law, fitted to the same points"
    claim = "Forgetting of memorization: a power law fits better than an exponential"
    return [
        Claim(claim, leads(found), control),
        Claim(f"{claim}, of the mean gain", leads(pooled), control, "mean gains, less the controls' drift"),
        Claim("R² of the power law: above .80 (memorization, semantic) and .65 (composition)", bound),
    ]


def leads(found: Found) -> Verdict:
    """Whether the power law's R² is surely the higher one in every scenario."""
    rows = {name: row for name, row in found.items() if row.get("lead") is not None}
    if not rows:
        return NOT_TESTABLE, "no probe gained enough"
    measured = "; ".join(
        f"{name.split('/')[0]}: R² {row['power_r2']:.3f} against {row['exponential_r2']:.3f}, lead {shown(row['lead'])}"
        for name, row in rows.items()
    )
    return (REPRODUCED if all(row["lead"][1] > 0 for row in rows.values()) else NOT_REPRODUCED), measured
