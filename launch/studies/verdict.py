"""What became of a claim here.

A paper's: `reproduced` if the whole interval is on the claim's side, `not reproduced` if not, and `not testable at this
scale` if the study did not run what the claim is about. A bound that a study of ours is held to: `holds` if the whole
interval is above it, `holds on average` if the mean is, `does not hold` if not.
"""

from __future__ import annotations

from collections.abc import Sequence

REPRODUCED, NOT_REPRODUCED, NOT_TESTABLE = "reproduced", "not reproduced", "not testable at this scale"
HOLDS, ON_AVERAGE, FAILS = "holds", "holds on average", "does not hold"
Verdict = tuple[str, str]
"""A status, and what was measured."""


def shown(value: Sequence[float]) -> str:
    """[value, low, high] as text."""
    return f"{value[0]:+.3f} [{value[1]:+.3f}, {value[2]:+.3f}]"


def held_to(value: Sequence[float], bound: float) -> str:
    """Whether [value, low, high] reaches a bound."""
    if value[1] >= bound:
        return HOLDS
    return ON_AVERAGE if value[0] >= bound else FAILS
