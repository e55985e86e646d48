"""Duplicates against paraphrases: larger jumps, faster forgetting."""

from __future__ import annotations

import numpy as np

from headwater.launch.studies.acquisition.claims.depths import WHERE, gap
from headwater.launch.studies.acquisition.conditions import Condition, Conditions, halves
from headwater.launch.studies.acquisition.metrics import fit_power
from headwater.launch.studies.claim import Claim, Found, above_zero, as_text
from headwater.launch.studies.verdict import NOT_TESTABLE

DECADES = 2.0
"""Of steps after the last maximum over which decay must have been followed."""


def measure(conditions: Conditions, condition: Condition) -> Found:
    """Duplicate less paraphrase: mean E, and decay a decade, of memorization and semantic probes; `as_paper` is decay
    of the mean of single probes' ratios. The control holds duplicates against duplicates: every other record against
    the rest."""
    found: dict[str, object] = {"decades": float(np.log10(condition.t_T[-1]))}
    for depth in ("memorization", "semantic"):
        samples = [condition.sample("duplicate", depth), condition.sample("paraphrase", depth)]
        found[f"jump, {depth}"] = conditions.interval(samples, lambda a, b: gap(condition, a, b))
        found[f"decay, {depth}"] = conditions.interval(samples, lambda a, b: faster(condition, a, b))
    memory = [condition.sample("duplicate", "memorization"), condition.sample("paraphrase", "memorization")]
    found["as_paper"] = conditions.interval(memory, lambda a, b: faster_as_paper(condition, a, b))
    two = halves(memory[0])
    found["jump, control"] = conditions.interval(two, lambda a, b: gap(condition, a, b))
    found["decay, control"] = conditions.interval(two, lambda a, b: faster(condition, a, b))
    return found


def faster(condition: Condition, a: np.ndarray, b: np.ndarray) -> float:
    """How much more of what was gained the probes `a` lose a decade than those of `b`."""
    return condition.decay(a) - condition.decay(b)


def faster_as_paper(condition: Condition, a: np.ndarray, b: np.ndarray) -> float:
    return decay_as_paper(condition, a) - decay_as_paper(condition, b)


def decay_as_paper(condition: Condition, n: np.ndarray) -> float:
    rows = n[np.isfinite(condition.kept_PT[n, 0])]
    return fit_power(condition.t_T, condition.kept_PT[rows].mean(axis=0)).decay if len(rows) else float("nan")


def judge(found: Found, where: str = "", *, equal: bool = True) -> list[Claim]:
    """`equal`: paraphrases are as long as the originals."""
    semantic = f"; semantic {as_text(found['decay, semantic'])}; as the paper averages {as_text(found['as_paper'])}"
    verdict = above_zero(found["decay, memorization"], "decay a decade, memorization: ")
    if found["decades"] < DECADES:
        verdict = (NOT_TESTABLE, f"followed for {found['decades']:.1f} decades of steps; {verdict[1]}")
    length = "paraphrases of equal length" if equal else ""
    return [
        Claim(
            f"Duplicates make larger jumps than paraphrases{WHERE[where]}",
            above_zero(found["jump, memorization"], "E, memorization: "),
            f"duplicates, one half - the other: {as_text(found['jump, control'])}",
            length,
        ),
        Claim(
            f"Duplicates are forgotten faster than paraphrases{WHERE[where]}",
            (verdict[0], verdict[1] + semantic),
            f"duplicates, one half - the other: {as_text(found['decay, control'])}",
            "; ".join(filter(None, [length, "decay of mean gains, less the controls' drift, from their own maximum"])),
        ),
    ]
