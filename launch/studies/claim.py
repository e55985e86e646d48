"""One claim of a paper, held against what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headwater.launch.studies.verdict import NOT_REPRODUCED, NOT_TESTABLE, REPRODUCED, Verdict, shown

Found = Mapping[str, Any]
"""What a claim's statistic gave, as a summary keeps it; intervals are [value, low, high]."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim with what became of it.

    Attributes:
        verdict: status, and what was measured.
        control: what the same statistic says where there is nothing to find.
        differs: how the setting differs from the paper's for this claim.
    """

    claim: str
    verdict: Verdict
    control: str = ""
    differs: str = ""


def above_zero(
    value: Sequence[float] | None,
    text: str = "",
    controls: Sequence[Sequence[float] | None] = (),
    named: str = "a control",
) -> Verdict:
    """Reproduced if the whole interval is above zero, and above every control's; one that holds zero has decided
    nothing, and says so.

    Args:
        controls: intervals of what the same statistic says where there is nothing to find; None: not measured.
        named: what they are, in words.
    """
    if value is None:
        return NOT_TESTABLE, "nothing to compare"
    if value[1] > 0:
        if is_above(value, controls):
            return REPRODUCED, text + shown(value)
        return NOT_REPRODUCED, f"{text}{shown(value)}, but not above {named}"
    undecided = ", undecided: the interval holds zero" if value[2] >= 0 else ""
    return NOT_REPRODUCED, f"{text}{shown(value)}{undecided}"


def is_above(value: Sequence[float], controls: Sequence[Sequence[float] | None]) -> bool:
    """Whether an interval lies above every control's that lies above zero itself."""
    return not any(each and each[1] > 0 and value[1] <= each[2] for each in controls)


def as_text(value: Sequence[float] | None) -> str:
    return shown(value) if value is not None else "none"


def as_kept(claim: Claim, general: str) -> dict[str, str]:
    """A claim as a summary keeps it; `general` differs for all."""
    status, measured = claim.verdict
    differs = "; ".join(filter(None, [claim.differs, general]))
    kept = {"claim": claim.claim, "status": status, "measured": measured, "control": claim.control or "none"}
    return {**kept, "differs": differs}
