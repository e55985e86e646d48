"""Where the answers come from: the person's own biographies, or others' questions."""

from __future__ import annotations

from typing import Any

from headwater.launch.studies.claim import Claim
from headwater.launch.studies.storage.data import MAIN, PLAIN
from headwater.launch.studies.storage.shares import GROUPS
from headwater.launch.studies.verdict import NOT_REPRODUCED, NOT_TESTABLE, REPRODUCED, shown


def judge(summary: dict[str, Any]) -> list[Claim]:
    claim = "Answers of multi5+permute come from the person's own biographies more than by chance"
    differs = "our own question"
    found = summary["provenance"].get(MAIN, {}).get("right", {"questions": 0})
    if not found["questions"]:
        return [Claim(claim, (NOT_TESTABLE, "no traced answer is right"), differs=differs)]
    own, others, _ = GROUPS
    top, every, chance = (found[scope]["groups"] for scope in ("top", "all", "expected"))
    text = (
        f"{top[own]:.1%} of the top proponents' scores and {every[own]:.1%} of all, though {chance[own]:.1%} of the "
        f"passages are theirs (lead {shown(found['own_lead'])}); {others}: {top[others]:.1%} and {every[others]:.1%}, "
        f"{chance[others]:.1%} of the passages; {found['questions']} right answers"
    )
    leads = {
        f"{name}, {side} answers": summary["provenance"].get(name, {}).get(side, {"questions": 0})
        for name, side in ((MAIN, "wrong"), (PLAIN, "wrong"))
    }
    control = "; ".join(f"{name}: lead {shown(each['own_lead'])}" for name, each in leads.items() if each["questions"])
    return [Claim(claim, (REPRODUCED if found["own_lead"][1] > 0 else NOT_REPRODUCED, text), control, differs)]
