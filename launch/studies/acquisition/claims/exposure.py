"""What the first exposure gives: probes rise, those of facts never shown do not, and later exposures give less."""

from __future__ import annotations

import numpy as np

from headwater.launch.studies.acquisition.conditions import Condition, Conditions, among
from headwater.launch.studies.acquisition.measured import CONTROL
from headwater.launch.studies.claim import Claim, Found, above_zero, as_text
from headwater.launch.studies.verdict import NOT_REPRODUCED, REPRODUCED


def measure(conditions: Conditions) -> Found:
    """`rises`: share of memorization probes that are higher at some step of the window after the first injection;
    `above`: first E of shown facts less the controls'; `first_later`: first E less the mean of the later ones, of
    duplicates less the same of the controls."""
    plain = conditions.plain
    first_P = plain.effect_PI[:, 0]
    everything = (plain.measured, np.arange(len(first_P)))
    shown, control = among(everything, None, "memorization"), among(everything, CONTROL, "memorization")
    both = among(everything, None, "memorization", control=True)
    return {
        "probes": len(shown[1]),
        "rises": float((first_P[shown[1]] > 0).mean()),
        "control_rises": float((first_P[control[1]] > 0).mean()) if len(control[1]) else None,
        "above": conditions.interval([both], lambda n: plain.above_control(n, first_P, any_kind=True))
        if len(control[1])
        else None,
        "first_later": first_later(conditions, plain),
        "control_first_later": first_later(conditions, plain, CONTROL),
    }


def first_later(conditions: Conditions, plain: Condition, group: str | None = None) -> list[float] | None:
    """Of duplicates less the controls', or of a group alone; of memorization probes."""
    if plain.effect_PI.shape[1] < 2:
        return None
    drop_P = plain.effect_PI[:, 0] - plain.effect_PI[:, 1:].mean(axis=1)
    everything = plain.measured, np.arange(len(drop_P))
    if group is not None:
        return conditions.interval([among(everything, group, "memorization")], lambda n: float(drop_P[n].mean()))
    both = among(everything, "duplicate", "memorization", control=True)
    return conditions.interval([both], lambda n: plain.above_control(n, drop_P))


def judge(found: Found) -> list[Claim]:
    beside = f"{found['control_rises']:.0%} of the controls" if found["control_rises"] is not None else "no controls"
    status = REPRODUCED if found["rises"] >= 0.9 else NOT_REPRODUCED
    return [
        Claim(
            "Memorization probes rise within the window after the first injection, 90% of them",
            (status, f"{found['rises']:.0%} of {found['probes']} probes"),
            beside,
        ),
        Claim(
            "Shown facts rise, facts never shown do not (negative control)",
            above_zero(found["above"], "first E, shown - control: "),
            "is the comparison",
            "our control",
        ),
        Claim(
            "Effectivity is highest on the first exposure",
            above_zero(found["first_later"], "E first - later, less the controls': "),
            f"controls, not subtracted: {as_text(found['control_first_later'])}",
        ),
    ]
