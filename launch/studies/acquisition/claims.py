"""The paper's claims about acquisition (Chang et al. 2024), held against a study's summary.

A claim is `reproduced` if the whole interval is on its side, `not reproduced` if not, and `not testable at this scale`
if the study did not run what the claim is about.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from headwater.launch.studies.verdict import NOT_REPRODUCED, NOT_TESTABLE, REPRODUCED, Verdict, as_claims, shown, sided


def judge(summary: dict[str, Any]) -> list[dict[str, str]]:
    """Each claim with its status, what was measured, and how the study differs from the paper where it matters."""
    plain = summary["conditions"][0]
    general = differences(summary)
    claims: list[tuple[str, Verdict, str]] = [
        ("Memorization probes rise within the window after the first injection, 90% of them", rises(plain), ""),
        (
            "Shown facts rise, facts never shown do not (negative control)",
            above(plain, "E duplicate - control"),
            "our control",
        ),
        ("Effectivity: memorization > semantic", above(plain, "E memorization - semantic"), ""),
        ("Effectivity: semantic > composition", above(plain, "E semantic - composition"), ""),
        ("Effectivity is highest on the first exposure", above(plain, "E first - later"), ""),
        (
            "Duplicates make larger jumps than paraphrases",
            above(plain, "E duplicate - paraphrase"),
            "memorization probes",
        ),
        (
            "Duplicates are forgotten faster than paraphrases",
            above(plain, "decay duplicate - paraphrase"),
            "memorization probes",
        ),
        ("Forgetting of memorization: a power law fits better than an exponential", power_law(plain), ""),
        ("R² of the power law: above .80 (memorization, semantic) and .65 (composition)", explained(plain), ""),
        ("A later stage of pretraining gains no effectivity", stages(summary), "stages are parts of one short run"),
        ("A larger batch forgets more slowly", batches(summary), "our second arm keeps the injected share"),
        ("Larger models gain more", (NOT_TESTABLE, "one model size"), ""),
    ]
    return as_claims(claims, general)


def differences(summary: dict[str, Any]) -> str:
    """How every claim's setting differs from the paper's."""
    model, settings = summary["model"], summary["settings"]
    parts = [f"{model['layers']} layers x {model['hidden']} instead of OLMo 1B and 7B"]
    if not settings["facts"]:
        parts.append("records of our own, with paraphrases of equal length")
    if (settings["count"], settings["interval"]) != (10, 100):
        parts.append(f"{settings['count']} injections {settings['interval']} steps apart instead of 10, 100 apart")
    if settings["window"] != 50:
        parts.append(f"window of {settings['window']} steps instead of 50")
    if settings["probe_every"] != 1:
        parts.append(f"probes every {settings['probe_every']} steps")
    if model["batch"] != 2048:
        parts.append(f"batch of {model['batch']} x {model['seq_len']} tokens instead of 2,048 x 2,048")
    shown_once = sum(n for name, n in summary.get("scenarios", {}).items() if name != "control")
    if shown_once and (shown_once, model["batch"]) != (120, 2048):
        parts.append(f"{shown_once} records injected into {model['batch']} sequences instead of 120 into 2,048")
    if summary["leaking_probes_left_out"]:
        parts.append(f"{summary['leaking_probes_left_out']} probes that hold their target are left out")
    return "; ".join(parts)


def above(condition: dict[str, Any], name: str) -> Verdict:
    value = condition["comparisons"].get(name)
    return (NOT_TESTABLE, "nothing to compare") if value is None else sided(value, f"{name}: ")


def rises(condition: dict[str, Any]) -> Verdict:
    rows = {name: row for name, row in condition["groups"].items() if name.endswith("/memorization")}
    of_shown = [row for name, row in rows.items() if not name.startswith("control")]
    probes = sum(row["probes"] for row in of_shown)
    share = sum(row["rises"] * row["probes"] for row in of_shown) / probes
    control = rows.get("control/memorization")
    beside = f"; control {control['rises']:.0%}" if control else ""
    return (REPRODUCED if share >= 0.9 else NOT_REPRODUCED), f"{share:.0%} of {probes} probes{beside}"


def power_law(condition: dict[str, Any]) -> Verdict:
    rows = fitted(condition, lambda depth: depth == "memorization")
    if not rows:
        return NOT_TESTABLE, "no probe gained enough"
    measured = "; ".join(
        f"{name.split('/')[0]}: R² {row['power']['r2']:.3f} against {row['exponential']['r2']:.3f}, "
        f"lead {shown(row['power_r2_lead'])}"
        for name, row in rows.items()
    )
    return (REPRODUCED if all(row["power_r2_lead"][1] > 0 for row in rows.values()) else NOT_REPRODUCED), measured


def explained(condition: dict[str, Any]) -> Verdict:
    rows = fitted(condition, lambda depth: True)
    if not rows:
        return NOT_TESTABLE, "no probe gained enough"
    bounds = {"memorization": 0.8, "semantic": 0.8, "composition": 0.65}
    fine = all(row["power"]["r2"] > bounds[name.split("/")[1]] for name, row in rows.items())
    measured = ", ".join(f"{name} {row['power']['r2']:.2f}" for name, row in rows.items())
    return (REPRODUCED if fine else NOT_REPRODUCED), measured


def fitted(condition: dict[str, Any], wanted: Callable[[str], bool]) -> dict[str, Any]:
    groups = condition["groups"].items()
    return {name: row for name, row in groups if "power" in row and wanted(name.split("/")[1])}


def stages(summary: dict[str, Any]) -> Verdict:
    plain = summary["model"]["batch"]
    rows = [each for each in summary["conditions"] if each["copies"] == 1 and each["batch"] == plain]
    if len(rows) < 2:
        return NOT_TESTABLE, "one stage"
    found = [(row["stage"], row["groups"]["duplicate/memorization"]["effectivity"]) for row in rows]
    measured = "; ".join(f"stage {stage}: {shown(value)}" for stage, value in found)
    # A gain is an interval of a later stage that lies wholly above the first one's.
    gained = any(value[1] > found[0][1][2] for _, value in found[1:])
    return (NOT_REPRODUCED if gained else REPRODUCED), measured


def batches(summary: dict[str, Any]) -> Verdict:
    plain = summary["conditions"][0]
    base = plain["groups"]["duplicate/memorization"].get("decay")
    others = [each for each in summary["conditions"] if each["batch"] != plain["batch"]]
    rows = [(each, each["groups"]["duplicate/memorization"].get("decay")) for each in others]
    if not base or not rows or any(value is None for _, value in rows):
        return NOT_TESTABLE, "one batch size" if not others else "no probe gained enough"
    measured = "; ".join(
        f"batch {each['batch']}, {'same share' if each['copies'] > 1 else 'same number'}: decay {shown(value)}"
        for each, value in rows
    )
    # Lower decay, wholly below the smaller batch's interval, with the injected number and with the share held fixed.
    slower = all(value[2] < base[1] for _, value in rows)
    return (REPRODUCED if slower else NOT_REPRODUCED), f"batch {plain['batch']}: decay {shown(base)}; {measured}"
