"""The long tail: rare facts are not learnt, popular ones are."""

from __future__ import annotations

import numpy as np

from headwater.launch.studies.acquisition.conditions import Condition, Conditions
from headwater.launch.studies.acquisition.measured import CONTROL
from headwater.launch.studies.acquisition.parts import REWORDED
from headwater.launch.studies.claim import Claim, Found, as_text
from headwater.launch.studies.verdict import NOT_REPRODUCED, NOT_TESTABLE, REPRODUCED
from headwater.train.facts.fictional import DEPTHS

LASTING = 0.1
"""A rare fact is not learnt if less than this share of what the most popular ones gain is left of it."""


def measure(conditions: Conditions) -> Found | None:
    """By how often facts are met and depth: what is left at the end, less the controls' drift; and how the rarest's
    stands to a tenth of the most popular's."""
    corpus = next(iter(conditions.alike(plan=REWORDED)), None)
    if corpus is None:
        return None
    left_P = left_at_end(corpus)
    groups = [name for name in dict.fromkeys(corpus.measured.group_P.tolist()) if name != CONTROL]
    rows = {}
    for group in groups:
        row: dict[str, object] = {"meetings": int(group.split()[1])}
        for depth in DEPTHS:
            row[depth] = conditions.interval([corpus.sample(group, depth)], lambda n: float(left_P[n].mean()))
        rows[group] = row
    ends = [corpus.sample(groups[0], "semantic"), corpus.sample(groups[-1], "semantic")]
    drift_P = corpus.measured.logprob_PS[:, -1] - corpus.measured.logprob_PS[:, 0]
    control = corpus.sample(CONTROL, "semantic")
    return {
        "rows": rows,
        "rarest": conditions.interval(ends, lambda a, b: float(left_P[a].mean() - LASTING * left_P[b].mean())),
        "gap": conditions.interval(ends, lambda a, b: float(left_P[b].mean() - left_P[a].mean())),
        "control": conditions.interval([control], lambda n: float(drift_P[n].mean())),
    }


def left_at_end(corpus: Condition) -> np.ndarray:
    """Of each probe how far it stands at the last step above the first, less the controls' drift: float64 [P]."""
    return corpus.plain_PS[:, -1] - corpus.plain_PS[:, 0]


def judge(found: Found | None) -> list[Claim]:
    popular, tail = (
        "Popularity: facts that are met more often are known better",
        "The long tail: the rarest facts are not learnt",
    )
    if found is None:
        return [Claim(each, (NOT_TESTABLE, "facts of one popularity")) for each in (popular, tail)]
    curve = ", ".join(f"{row['meetings']}x {as_text(row['semantic'])}" for row in found["rows"].values())
    control = f"controls' own drift: {as_text(found['control'])}"
    differs = "the paper explains others' curves by it, and plants none"
    gap, rarest = found["gap"], found["rarest"]
    if gap is None or rarest is None or gap[1] <= 0:
        lost = NOT_TESTABLE
    else:
        lost = REPRODUCED if rarest[2] < 0 else NOT_REPRODUCED
    known = NOT_TESTABLE if gap is None else REPRODUCED if gap[1] > 0 else NOT_REPRODUCED
    return [
        Claim(popular, (known, f"semantic, left at the end: {curve}; most - fewest {as_text(gap)}"), control, differs),
        Claim(tail, (lost, f"rarest, less a tenth of the most popular's: {as_text(rarest)}"), control, differs),
    ]
