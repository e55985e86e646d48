"""What is retained falls as a power law."""

from __future__ import annotations

from typing import Any

import numpy as np

from headwater.launch.studies.acquisition.conditions import Condition, Conditions
from headwater.launch.studies.acquisition.measured import CONTROL
from headwater.launch.studies.acquisition.metrics import fit_exponential, fit_power
from headwater.launch.studies.claim import Claim, Found
from headwater.launch.studies.verdict import NOT_REPRODUCED, NOT_TESTABLE, REPRODUCED, shown
from headwater.train.facts.fictional import DEPTHS

BOUNDS = {"memorization": 0.8, "semantic": 0.8, "composition": 0.65}
"""The paper's R², by depth."""


def measure(conditions: Conditions) -> Found:
    """By scenario and depth, of the paper's R: R² of the power law, and of memorization how far it leads that of an
    exponential."""
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
    t_T = plain.t_T

    def lead(n: np.ndarray) -> float:
        mean = plain.kept_PT[n].mean(axis=0)
        return fit_power(t_T, mean).r2 - fit_exponential(t_T, mean).r2

    mean = plain.kept_PT[usable].mean(axis=0)
    row: dict[str, Any] = {"power_r2": fit_power(t_T, mean).r2, "exponential_r2": fit_exponential(t_T, mean).r2}
    if depth == "memorization":  # the exponential fit is the dear one
        few = max(10, conditions.resamples // 5)
        row["lead"] = conditions.interval([(plain.measured, usable)], lead, few)
    return row


def judge(found: Found) -> list[Claim]:
    rows = {name: row for name, row in found.items() if row.get("lead") is not None}
    if not rows:
        verdict = (NOT_TESTABLE, "no probe gained enough")
    else:
        leads = all(row["lead"][1] > 0 for row in rows.values())
        measured = "; ".join(
            f"{name.split('/')[0]}: R² {row['power_r2']:.3f} against {row['exponential_r2']:.3f}, "
            f"lead {shown(row['lead'])}"
            for name, row in rows.items()
        )
        verdict = (REPRODUCED if leads else NOT_REPRODUCED), measured
    fine = all(row["power_r2"] > BOUNDS[name.split("/")[1]] for name, row in found.items())
    listed = ", ".join(f"{name} {row['power_r2']:.2f}" for name, row in found.items())
    bound = ((REPRODUCED if fine else NOT_REPRODUCED), listed) if found else (NOT_TESTABLE, "no probe gained enough")
    control = "the other law, fitted to the same points"
    return [
        Claim("Forgetting of memorization: a power law fits better than an exponential", verdict, control),
        Claim("R² of the power law: above .80 (memorization, semantic) and .65 (composition)", bound),
    ]
