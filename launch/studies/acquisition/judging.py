"""Every claim of the paper (Chang et al. 2024), each in a file of `claims/`, held against a study's conditions.

A claim is `reproduced` if the whole interval is on its side, `not reproduced` if not, and `not testable at this scale`
if the study did not run what the claim is about, or too little of it.
"""

from __future__ import annotations

from typing import Any

from headwater.launch.studies.acquisition.claims import (
    batches,
    deduplication,
    depths,
    duplicates,
    exposure,
    forgetting,
    popularity,
    sizes,
    stages,
    threshold,
)
from headwater.launch.studies.acquisition.conditions import Conditions
from headwater.launch.studies.claim import Claim, as_kept
from headwater.launch.studies.verdict import NOT_TESTABLE

REAL = "the real model's moments begin at zero, and its own pretraining stream is not ours"
UNASKED = (NOT_TESTABLE, "no model was given (model=DIR)")


def measure_claims(conditions: Conditions) -> dict[str, Any]:
    """What each claim's statistic gave, by its file."""
    plain, real = conditions.plain, conditions.real
    found: dict[str, Any] = {
        "exposure": exposure.measure(conditions),
        "depths": depths.measure(conditions, plain),
        "duplicates": duplicates.measure(conditions, plain),
        "forgetting": forgetting.measure(conditions),
    }
    for each in (stages, batches, sizes, threshold, popularity, deduplication):
        found[each.__name__.rpartition(".")[2]] = each.measure(conditions)
    if real is not None:
        found["real"] = {
            "depths": depths.measure(conditions, real),
            "duplicates": duplicates.measure(conditions, real),
        }
    return found


def judge(summary: dict[str, Any]) -> list[dict[str, str]]:
    """Each claim with its status, what was measured, its negative control, and how the study differs from the paper
    where it matters."""
    found = summary["measures"]
    made: list[Claim] = [
        *exposure.judge(found["exposure"]),
        *depths.judge(found["depths"]),
        *duplicates.judge(found["duplicates"], equal=not summary["settings"]["facts"]),
        *forgetting.judge(found["forgetting"]),
    ]
    for each in (stages, batches, sizes, threshold, popularity, deduplication):
        made += each.judge(found[each.__name__.rpartition(".")[2]])
    general = differences(summary)
    claims = [as_kept(claim, general) for claim in made]
    if "real" in found:
        of_real = [
            *depths.judge(found["real"]["depths"], "real"),
            *duplicates.judge(found["real"]["duplicates"], "real"),
        ]
        claims += [as_kept(claim, REAL) for claim in of_real]
    else:
        claims.append(as_kept(Claim("Depths and duplicates on a real pretrained model", UNASKED), ""))
    return claims


def differences(summary: dict[str, Any]) -> str:
    """How every claim's setting differs from the paper's."""
    model, settings = summary["model"], summary["settings"]
    parts = [f"{model['layers']} layers x {model['hidden']} instead of OLMo 1B and 7B"]
    if not settings["facts"]:
        known = f", whose form the base model knows from {summary['familiar']} others" if summary["familiar"] else ""
        parts.append(f"records of our own, with paraphrases of equal length{known}")
    elif summary.get("invented_controls"):
        parts.append(f"{summary['invented_controls']} invented records as control, whose drift is not theirs")
    if (settings["count"], settings["interval"]) != (10, 100):
        parts.append(f"{settings['count']} injections {settings['interval']} steps apart instead of 10, 100 apart")
    if summary.get("spread", 1) > 1:
        parts.append(f"records are dealt out over {summary['spread']} steps instead of one")
    if settings["window"] != 50:
        parts.append(f"window of {settings['window']} steps instead of 50")
    if settings["probe_every"] != 1:
        parts.append(f"probes every {settings['probe_every']} steps")
    if model["batch"] != 2048:
        parts.append(f"batch of {model['batch']} x {model['seq_len']} tokens instead of 2,048 x 2,048")
    shown_once = sum(n for name, n in summary.get("scenarios", {}).items() if name != "control")
    if shown_once and (shown_once, model["batch"]) != (120, 2048):
        parts.append(f"{shown_once} records injected into {model['batch']} sequences instead of 120 into 2,048")
    if summary["leaking_probes"]:
        parts.append(f"{len(summary['leaking_probes'])} probes that hold their target are counted apart")
    return "; ".join(parts)
