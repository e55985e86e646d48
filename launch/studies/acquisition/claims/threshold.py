"""The learnability threshold: a fact that is met more rarely than the x-intercept of forgetting is not learnt."""

from __future__ import annotations

import numpy as np

from headwater.launch.studies.acquisition.conditions import Condition, Conditions
from headwater.launch.studies.acquisition.measured import CONTROL
from headwater.launch.studies.acquisition.parts import SPACING
from headwater.launch.studies.claim import Claim, Found, as_text
from headwater.launch.studies.verdict import NOT_REPRODUCED, NOT_TESTABLE, REPRODUCED, Verdict
from headwater.train.facts.fictional import DEPTHS

CEILING = 9.0
"""log10 of the x-intercept that stands for one that the law never reaches."""
LEARNT = 0.1
"""A fact is learnt at an interval if, before the next meeting, more than this share of the first jump is left."""


def measure(conditions: Conditions) -> Found | None:
    """`x_intercept`: log10 of the steps after which the power law of facts shown once, memorization, reaches zero. By
    interval and depth: `left`, what a probe stands above its first value when the record would be met once more, less
    the controls' drift; `jump`, its first E; `more`, what is left beyond a tenth of the jump."""
    spaced = next(iter(conditions.alike(plan=SPACING)), None)
    if spaced is None:
        return None
    once = conditions.plain.sample("once", "memorization")
    found: dict[str, object] = {
        "x_intercept": conditions.interval([once], lambda n: intercept(conditions.plain, n)),
        "rows": {},
    }
    left_P, turns = left_before_next(spaced), spaced.effect_PI.shape[1]
    rows = {}
    for group in dict.fromkeys(spaced.measured.group_P.tolist()):
        if group == CONTROL:
            continue
        row: dict[str, object] = {"interval": int(group.split()[1]), "meetings": turns}
        for depth in DEPTHS:
            sample = spaced.sample(group, depth)
            row[depth] = conditions.interval([sample], lambda n: float(left_P[n].mean()))
            row[f"{depth}, jump"] = conditions.interval([sample], lambda n: float(np.nanmean(spaced.effect_PI[n, 0])))
            row[f"{depth}, more"] = conditions.interval(
                [sample], lambda n: float(left_P[n].mean() - LEARNT * np.nanmean(spaced.effect_PI[n, 0]))
            )
        rows[group] = row
    control = spaced.sample(CONTROL, "memorization")
    drift_P = spaced.measured.logprob_PS[:, -1] - spaced.measured.logprob_PS[:, 0]
    return {**found, "rows": rows, "control": conditions.interval([control], lambda n: float(drift_P[n].mean()))}


def intercept(condition: Condition, n: np.ndarray) -> float:
    """log10 of the x-intercept; NaN where nothing was gained, of which there is nothing to forget."""
    fit = condition.pooled_fit(n)
    if fit is None:
        return float("nan")
    return min(fit.level / fit.decay, CEILING) if fit.decay > 0 else CEILING


def left_before_next(condition: Condition) -> np.ndarray:
    """Of each probe what is left of it one interval after its last meeting: float64 [P], NaN of controls."""
    measured = condition.measured
    made = np.full(len(measured.logprob_PS), np.nan)
    for probe in measured.of().tolist():
        shown = measured.shown_P[probe]
        then = min(2 * shown[-1] - shown[-2], int(measured.steps[-1]))
        before, after = np.interp([shown[0], then], measured.steps, condition.plain_PS[probe])
        made[probe] = after - before
    return made


def judge(found: Found | None) -> list[Claim]:
    claim = "The learnability threshold: facts met more rarely than the x-intercept are not learnt, others are"
    if found is None:
        return [Claim(claim, (NOT_TESTABLE, "facts were not planted at several intervals"))]
    rows = list(found["rows"].values())
    measured = "; ".join(
        f"every {row['interval']} steps: {as_text(row['memorization'])} left of a first jump of "
        f"{as_text(row['memorization, jump'])}"
        for row in rows
    )
    status, why = verdict_of(found["x_intercept"], rows)
    control = f"controls' own drift: {as_text(found['control'])}"
    differs = "tested by planting; the paper reads it off the fits"
    return [Claim(claim, (status, f"{why}; {measured}"), control, differs)]


def verdict_of(log_x: list[float] | None, rows: list[Found]) -> Verdict:
    """An interval between the ends of the x-intercept's own interval is on neither side."""
    if log_x is None:
        return NOT_TESTABLE, "facts shown once gained too little for their forgetting to be fitted in 95% of the draws"
    text = f"x-intercept {in_steps(log_x[0])} steps [{in_steps(log_x[1])}, {in_steps(log_x[2])}]"
    below = [row for row in rows if np.log10(row["interval"]) < log_x[1] and row["memorization, more"]]
    above = [row for row in rows if np.log10(row["interval"]) > log_x[2] and row["memorization, more"]]
    if not below or not above:
        side = "below" if not below else "above"
        return NOT_TESTABLE, f"{text}: no interval surely {side} it"
    learnt = all(row["memorization, more"][1] > 0 for row in below)
    lost = all(row["memorization, more"][2] < 0 for row in above)
    return (REPRODUCED if learnt and lost else NOT_REPRODUCED), text


def in_steps(log_x: float) -> str:
    return f"{10**log_x:,.0f}" if log_x < CEILING else "never"
