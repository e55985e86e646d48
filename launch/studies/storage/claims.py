"""The paper's claims about storage and extraction (Allen-Zhu and Li 2023), held against a study's summary.

A claim about a difference is `reproduced` if its whole interval is on the claim's side; one that the study did not run
is `not testable at this scale`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from headwater.launch.studies.storage.shares import GROUPS
from headwater.launch.studies.verdict import NOT_REPRODUCED, NOT_TESTABLE, REPRODUCED, Verdict, as_claims, shown

MAIN, POOR = "multi5+permute", "single"
KNOWN = 0.95
"""Share of the biographies' values that must be foreseen before extraction says anything. Not of all their tokens:
short biographies are to a good part names, and no model can foresee whom a text is about."""


def judge(summary: dict[str, Any]) -> list[dict[str, str]]:
    """Each claim with its status, what was measured, and how the study differs from the paper."""
    general = differences(summary)
    claims: list[tuple[str, Verdict, str]] = [
        (
            "multi5+permute beats single by 40 points or more (questions from the start)",
            beats(summary, f"{MAIN} - {POOR}, mixed", 0.4),
            "the paper's mixed training reaches 86.6% with single biographies",
        ),
        (
            "multi5+permute beats single by 40 points or more (fine-tuned, all weights)",
            beats(summary, f"{MAIN} - {POOR}, full", 0.4),
            "",
        ),
        (
            "multi5+permute beats single by 40 points or more (LoRA)",
            beats(summary, f"{MAIN} - {POOR}, lora", 0.4),
            "",
        ),
        (
            "Biographies are stored (95% of their values foreseen), yet with single at most 20% of answers are right",
            stored(summary, POOR, 0.2, upper=True),
            "",
        ),
        (
            "With multi5+permute, as well stored, at least 60% of answers are right",
            stored(summary, MAIN, 0.6, upper=False),
            "",
        ),
        (
            "More wordings: multi5 above multi2 above single",
            ordered(summary, ("multi2 - single", "multi5 - multi2")),
            "",
        ),
        (
            "More orders: single+permute5 above single+permute1",
            best(summary, "single+permute5 - single+permute1", 0),
            "",
        ),
        ("Permuted on top of multi5: multi5+permute above multi5", best(summary, f"{MAIN} - multi5", 0), ""),
        ("The name in every sentence: single+fullname above single", best(summary, "single+fullname - single", 0), ""),
        ("Q-probes and questions rank the variants alike", ranks(summary), "full fine-tuning for LoRA"),
        ("P-probes: with multi5+permute the name alone gives attributes, with single it does not", early(summary), ""),
        (
            "Rich biographies of some people lift the answers about others (celebrities)",
            best(summary, "celebrity - single+permute1", 0),
            "the taught half are the celebrities",
        ),
        (
            "Answers of multi5+permute come from the person's own biographies more than by chance",
            from_own(summary),
            "our own question",
        ),
    ]
    return as_claims(claims, general)


def differences(summary: dict[str, Any]) -> str:
    """How every claim's setting differs from the paper's."""
    model, population = summary["model"], summary["settings"]["population"]
    parts = [
        f"{population['people']:,} people instead of 100,000",
        f"Llama shape of {model['layers']} layers x {model['hidden']} instead of GPT-2",
        f"{model['tokens'] / 1e6:.3g}M tokens of pretraining instead of {80_000 * 96 * 512 / 1e9:.2g}B",
        "passages in a window do not see each other",
    ]
    published = {"cities": 200, "universities": 300, "majors": 100, "employers": 263, "years": 200}
    smaller = [f"{population[name]} {name}" for name, size in published.items() if population[name] != size]
    if smaller:
        parts.append("values: " + ", ".join(smaller))
    return "; ".join(parts)


def beats(summary: dict[str, Any], name: str, points: float) -> Verdict:
    value = summary["comparisons"].get(name)
    if value is None:
        return NOT_TESTABLE, "not run"
    one, method = name.rpartition(", ")[0].split(" - "), name.rpartition(", ")[2]
    rows = [f"{each} {percent(summary['accuracy'][each][method]['asked'])}" for each in one]
    text = f"{shown(value)}: {' against '.join(rows)}; majority {summary['majority']['mean']:.1%}"
    return (REPRODUCED if value[1] >= points else NOT_REPRODUCED), text


def percent(value: list[float]) -> str:
    return f"{value[0]:.1%} [{value[1]:.1%}, {value[2]:.1%}]"


def best(summary: dict[str, Any], pair: str, above: float) -> Verdict:
    """The comparison by each method that was run; reproduced if it holds for all."""
    found = {name: value for name, value in summary["comparisons"].items() if name.rpartition(", ")[0] == pair}
    if not found:
        return NOT_TESTABLE, "not run"
    text = "; ".join(f"{name.rpartition(', ')[2]} {shown(value)}" for name, value in found.items())
    return (REPRODUCED if all(value[1] > above for value in found.values()) else NOT_REPRODUCED), text


def ordered(summary: dict[str, Any], pairs: tuple[str, ...]) -> Verdict:
    verdicts = [best(summary, pair, 0) for pair in pairs]
    statuses = {status for status, _ in verdicts}
    text = "; ".join(f"{pair}: {measured}" for pair, (_, measured) in zip(pairs, verdicts, strict=True))
    if NOT_TESTABLE in statuses:
        return NOT_TESTABLE, text
    return (REPRODUCED if statuses == {REPRODUCED} else NOT_REPRODUCED), text


def stored(summary: dict[str, Any], variant: str, bound: float, *, upper: bool) -> Verdict:
    recall = summary["recall"].get("pretrain", {}).get(variant)
    rows = {m: row["asked"] for m, row in summary["accuracy"].get(variant, {}).items() if m != "mixed"}
    if recall is None or not rows:
        return NOT_TESTABLE, "not run"
    text = ", ".join(f"{method} {percent(value)}" for method, value in rows.items())
    text += f"; next tokens {recall['next_token']:.1%}, values {recall['values']:.1%}"
    if recall["values"] < KNOWN:
        return NOT_TESTABLE, text + ": not stored well enough to say"
    fine = all(value[2] <= bound if upper else value[1] >= bound for value in rows.values())
    return (REPRODUCED if fine else NOT_REPRODUCED), text


def ranks(summary: dict[str, Any]) -> Verdict:
    from scipy.stats import spearmanr

    names = [n for n in summary["q_probes"] if "full" in summary["accuracy"].get(n, {})]
    if len(names) < 4:
        return NOT_TESTABLE, "fewer than four variants"
    probed = np.array([summary["q_probes"][name]["mean"] for name in names])
    answered = np.array([summary["accuracy"][name]["full"]["asked"][0] for name in names])
    found = spearmanr(probed, answered)
    status = REPRODUCED if found.statistic > 0 and found.pvalue < 0.05 else NOT_REPRODUCED
    return status, f"Spearman {found.statistic:+.2f} over {len(names)} variants, p = {found.pvalue:.2g}"


def early(summary: dict[str, Any]) -> Verdict:
    """At the place before the first attribute, over the five attributes that do not stand there."""
    found = {}
    for name in (MAIN, POOR):
        if name not in summary["p_probes"]:
            return NOT_TESTABLE, "not run"
        row = summary["p_probes"][name]
        found[name] = (float(np.mean(row["accuracy"][0][1:])), float(np.mean(row["majority"][1:])))
    text = "; ".join(f"{name} {value:.1%} (majority {base:.1%})" for name, (value, base) in found.items())
    rich, poor = found[MAIN], found[POOR]
    return (REPRODUCED if rich[0] >= 0.6 and poor[0] <= 0.3 else NOT_REPRODUCED), text + "; asked: 60% and 30%"


def from_own(summary: dict[str, Any]) -> Verdict:
    found = summary["provenance"].get(MAIN, {}).get("right", {"questions": 0})
    if not found["questions"]:
        return NOT_TESTABLE, "no traced answer is right"
    own, others, _ = GROUPS
    top, every, chance = (found[scope]["groups"] for scope in ("top", "all", "expected"))
    text = (
        f"{top[own]:.1%} of the top proponents' scores and {every[own]:.1%} of all, though {chance[own]:.1%} of the "
        f"passages are theirs (lead {shown(found['own_lead'])}); {others}: {top[others]:.1%} and {every[others]:.1%}, "
        f"{chance[others]:.1%} of the passages; {found['questions']} right answers"
    )
    return (REPRODUCED if found["own_lead"][1] > 0 else NOT_REPRODUCED), text
