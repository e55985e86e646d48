"""Deduplication: a corpus without repeated passages leaves more of what it teaches."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from headwater.launch.studies.acquisition.claims.popularity import left_at_end
from headwater.launch.studies.acquisition.conditions import Condition, Conditions, Sample, among, common_seeds
from headwater.launch.studies.acquisition.parts import COPIES, REWORDED
from headwater.launch.studies.claim import Claim, Found, above_zero, as_text
from headwater.launch.studies.verdict import NOT_TESTABLE
from headwater.train.facts.fictional import DEPTHS


def measure(conditions: Conditions) -> Found | None:
    """Of facts that are met more than once, in other words less in the same words each time, record by record and by
    depth: what is left at the end (`left`), and which share of what stood at the last meeting (`kept`). The control:
    facts that are met once, whose passages are the same in both corpora."""
    both = [next(iter(conditions.alike(plan=plan)), None) for plan in (REWORDED, COPIES)]
    if both[0] is None or both[1] is None:
        return None
    new, old = both[0], both[1]
    lefts = [left_at_end(new), left_at_end(old)]
    stood = [at_last_meeting(new), at_last_meeting(old)]
    found: dict[str, object] = {}
    for depth in DEPTHS:
        samples = [among(each, None, depth) for each in common_seeds(new, old)]
        again = [split(each, lambda times: times > 1) for each in samples]
        once = [split(each, lambda times: times == 1) for each in samples]
        found[depth] = conditions.interval(again, lambda a, b: float(lefts[0][a].mean() - lefts[1][b].mean()))
        found[f"{depth}, control"] = conditions.interval(
            once, lambda a, b: float(lefts[0][a].mean() - lefts[1][b].mean())
        )
        found[f"{depth}, kept"] = conditions.interval(
            again,
            lambda a, b: float(lefts[0][a].mean() / stood[0][a].mean() - lefts[1][b].mean() / stood[1][b].mean()),
        )
    return found


def split(sample: Sample, wanted: Callable[[int], bool]) -> Sample:
    measured, chosen = sample
    return measured, np.array([n for n in chosen.tolist() if wanted(len(measured.shown_P[n]))], dtype=np.int64)


def at_last_meeting(corpus: Condition) -> np.ndarray:
    """How far each probe stood above its first value in the window after its last meeting, less the controls' drift:
    float64 [P]."""
    return corpus.raised_PT[:, 1 : corpus.window + 1].mean(axis=1)


def judge(found: Found | None) -> list[Claim]:
    claim = "Deduplication: without repeated passages more of the facts is left"
    if found is None:
        return [Claim(claim, (NOT_TESTABLE, "no corpus without repeated passages"))]
    status, measured = above_zero(found["semantic"], "left at the end, semantic, other words - same words: ")
    measured += (
        f"; memorization {as_text(found['memorization'])}; share kept, semantic {as_text(found['semantic, kept'])}"
    )
    control = f"facts met once, the same in both: {as_text(found['semantic, control'])}"
    differs = "copies are replaced by other wordings of the same fact, not by other facts"
    return [Claim(claim, (status, measured), control, differs)]
