"""Effectivity by depth of probe: memorization above semantic above composition."""

from __future__ import annotations

import itertools

import numpy as np

from headwater.launch.studies.acquisition.conditions import Condition, Conditions, among
from headwater.launch.studies.acquisition.measured import CONTROL
from headwater.launch.studies.claim import Claim, Found, above_zero, as_text
from headwater.train.facts.fictional import DEPTHS

WHERE = {"": "", "real": " (real pretrained model)"}


def measure(conditions: Conditions, condition: Condition) -> Found:
    """By pair of depths: mean E, less the controls', of the upper less that of the lower; and the controls' own."""
    found = {}
    everything = condition.measured, np.arange(len(condition.mean_effect_P))
    for upper, lower in itertools.pairwise(DEPTHS):
        both = [among(everything, None, depth, control=True) for depth in (upper, lower)]
        found[f"{upper} - {lower}, shown"] = conditions.interval(
            both, lambda a, b: condition.above_control(a) - condition.above_control(b)
        )
        alone = [condition.sample(CONTROL, upper), condition.sample(CONTROL, lower)]
        found[f"{upper} - {lower}, control"] = conditions.interval(alone, lambda a, b: gap(condition, a, b))
    return found


def gap(condition: Condition, a: np.ndarray, b: np.ndarray) -> float:
    """Mean E of probes less that of others; NaN where a draw has none of one kind."""
    if not len(a) or not len(b):
        return float("nan")
    return float(np.mean(condition.mean_effect_P[a]) - np.mean(condition.mean_effect_P[b]))


def judge(found: Found, where: str = "") -> list[Claim]:
    made = []
    for upper, lower in itertools.pairwise(DEPTHS):
        verdict = above_zero(found[f"{upper} - {lower}, shown"], f"E less the controls', {upper} - {lower}: ")
        control = f"controls, not subtracted: {as_text(found[f'{upper} - {lower}, control'])}"
        differs = "" if lower == "semantic" else "composition prompts end in words that no record has"
        made.append(Claim(f"Effectivity: {upper} > {lower}{WHERE[where]}", verdict, control, differs))
    return made
