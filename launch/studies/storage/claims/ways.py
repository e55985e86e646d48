"""How biographies are written decides whether what is stored can be extracted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from headwater.launch.studies.claim import Claim, Found, above_zero, as_text, is_above
from headwater.launch.studies.storage.data import CELEBRITY, MAIN, ONCE, PLAIN
from headwater.launch.studies.storage.measured import METHODS, RIGHT, SHUFFLED, Interval, Measured
from headwater.launch.studies.verdict import NOT_REPRODUCED, NOT_TESTABLE, REPRODUCED, Verdict, shown
from headwater.train.facts.biographies import VARIANTS

KNOWN = 0.95
"""Share of the biographies' values that must be foreseen before extraction says anything. Not of all their tokens:
short biographies are to a good part names, and no model can foresee whom a text is about."""
OTHERS = "what is found for other people's values"
POINTS = 0.4
"""By how much the paper's richest biographies are better than its plainest, with room to spare."""
LABELS = {"mixed": "questions from the start", "full": "fine-tuned, all weights", "lora": "LoRA"}
PAIRS = (
    *((MAIN, PLAIN), ("multi2", PLAIN), ("multi5", "multi2"), (MAIN, "multi5"), ("single+permute5", ONCE)),
    *(("single+fullname", PLAIN), (CELEBRITY, ONCE)),
)
NAMED = tuple((f"{name}+fullname", name) for name in VARIANTS if not name.endswith("+fullname"))
"""Every variant with the name in each sentence, and the same without."""


def measure(measured: Measured) -> Found:
    """Differences about the same people, and the same where the answers are held against other people's: [value, low,
    high] by `ONE - OTHER, METHOD`."""
    found: dict[str, dict[str, Interval]] = {RIGHT: {}, SHUFFLED: {}}
    for what, kept in found.items():
        for one, other in PAIRS:
            for method in METHODS:
                kept[f"{one} - {other}, {method}"] = measured.difference((one, method), (other, method), what)
        for variant in (PLAIN, MAIN):
            kept[f"{variant}, mixed - full"] = measured.difference((variant, "mixed"), (variant, "full"), what)
        for method in METHODS:
            kept[f"fullname in every variant, {method}"] = named(measured, method, what)
    share = celebrity_share(measured)
    known = {what: {name: value for name, value in kept.items() if value} for what, kept in found.items()}
    return {**known, "celebrity_share": share}


def named(measured: Measured, method: str, what: str) -> Interval:
    """The name in every sentence less the name once, meaned over the eight pairs of variants."""
    found = measured.stacked([(name, method) for pair in NAMED for name in pair], what)
    if found is None:
        return None
    values, people = found
    return measured.interval([(each[:, ::2] - each[:, 1::2]).mean(axis=1) for each in values], people)


def celebrity_share(measured: Measured) -> Interval:
    """How much of the way from `ONCE` to the richest biographies celebrities go: the gain of those asked, who have
    `ONCE` in both, over what rich biographies of their own give (fine-tuned)."""
    found = measured.stacked([(CELEBRITY, "full"), (ONCE, "full"), (MAIN, "full")])
    if found is None:
        return None
    values, people = found

    def of(mean_K: np.ndarray) -> np.ndarray:
        share: np.ndarray = (mean_K[..., 0] - mean_K[..., 1]) / (mean_K[..., 2] - mean_K[..., 1])
        return share

    return measured.interval(values, people, of)


def unknown(summary: dict[str, Any], variants: Sequence[str]) -> str:
    """Why nothing can be said of what pretraining on these variants has stored: not enough is; empty where it is."""
    kept = summary["recall"].get("pretrain", {})
    least = min((kept[name]["values"] for name in variants if name in kept), default=1.0)
    return f"values foreseen {least:.1%}: not stored well enough to say" if least < KNOWN else ""


def judge(summary: dict[str, Any]) -> list[Claim]:
    found = summary["measures"]["ways"]
    claims = [beats(summary, method) for method in ("mixed", "full", "lora")]
    claims += [stored(summary, PLAIN, 0.2, upper=True), stored(summary, MAIN, 0.6, upper=False)]
    for text, pairs in (
        ("More wordings: multi5 above multi2 above single", (f"multi2 - {PLAIN}", "multi5 - multi2")),
        ("More orders: single+permute5 above single+permute1", (f"single+permute5 - {ONCE}",)),
        ("Permuted on top of multi5: multi5+permute above multi5", (f"{MAIN} - multi5",)),
    ):
        claims.append(Claim(text, ordered(found, pairs), control(found, pairs)))
    return [*claims, fullname(found), *celebrities(found), mixed_or_after(summary)]


def beats(summary: dict[str, Any], method: str) -> Claim:
    found = summary["measures"]["ways"]
    name = f"{MAIN} - {PLAIN}, {method}"
    value = found[RIGHT].get(name)
    claim = f"multi5+permute beats single by 40 points or more ({LABELS[method]})"
    if value is None:
        return Claim(claim, (NOT_TESTABLE, "not run"))
    rows = [f"{each} {as_percents(summary['accuracy'][each][method]['asked'])}" for each in (MAIN, PLAIN)]
    text = f"{shown(value)}: {' against '.join(rows)}; majority {summary['majority']['mean']:.1%}"
    differs = "the paper's mixed training reaches 86.6% with single biographies" if method == "mixed" else ""
    fine = is_above(value, [found[SHUFFLED].get(name)])
    text += "" if fine else f", but not above {OTHERS}"
    status = REPRODUCED if fine and value[1] >= POINTS else NOT_REPRODUCED
    return Claim(claim, (status, text), shuffled(found, [name]), differs)


def as_percents(value: Sequence[float]) -> str:
    return f"{value[0]:.1%} [{value[1]:.1%}, {value[2]:.1%}]"


def shuffled(found: Found, names: Sequence[str]) -> str:
    """The same differences where the answers are held against other people's."""
    told = [f"{name}: {as_text(found[SHUFFLED][name])}" for name in names if name in found[SHUFFLED]]
    return f"answers held against another person's, {'; '.join(told)}" if told else ""


def control(found: Found, pairs: Sequence[str]) -> str:
    return shuffled(found, [name for pair in pairs for name in found[RIGHT] if name.rpartition(", ")[0] == pair])


def by_method(found: Found, pair: str) -> dict[str, list[float]]:
    return {name.rpartition(", ")[2]: value for name, value in found[RIGHT].items() if name.rpartition(", ")[0] == pair}


def ordered(found: Found, pairs: Sequence[str]) -> Verdict:
    """Reproduced if every pair's difference is above zero by every method that was run, and the control's is below."""
    texts, wrong, chance, lacks = [], [], [], False
    for pair in pairs:
        rows = by_method(found, pair)
        lacks = lacks or not rows
        for method, value in rows.items():
            other = found[SHUFFLED].get(f"{pair}, {method}")
            texts.append(f"{pair}, {method} {shown(value)}" if len(pairs) > 1 else f"{method} {shown(value)}")
            wrong += [", undecided" * (value[2] >= 0)] if value[1] <= 0 else []
            chance += [method] if value[1] > 0 and not is_above(value, [other]) else []
    text = "; ".join(texts) or "not run"
    if lacks:
        return NOT_TESTABLE, text
    if chance:
        return NOT_REPRODUCED, f"{text}, but not above {OTHERS} ({', '.join(chance)})"
    # What is below zero by one method is decided.
    return (NOT_REPRODUCED, text + min(wrong)) if wrong else (REPRODUCED, text)


def stored(summary: dict[str, Any], variant: str, bound: float, *, upper: bool) -> Claim:
    claim = (
        "Biographies are stored (95% of their values foreseen), yet with single at most 20% of answers are right"
        if upper
        else "With multi5+permute, as well stored, at least 60% of answers are right"
    )
    recall = summary["recall"].get("pretrain", {}).get(variant)
    kept = summary["accuracy"].get(variant, {})
    rows = {method: kept[method] for method in ("full", "lora") if method in kept}
    if recall is None or not rows:
        return Claim(claim, (NOT_TESTABLE, "not run"))
    text = ", ".join(f"{method} {as_percents(row['asked'])}" for method, row in rows.items())
    text += f"; next tokens {recall['next_token']:.1%}, values {recall['values']:.1%} foreseen"
    others = [f"{method} {as_percents(row[SHUFFLED])}" for method, row in rows.items() if row.get(SHUFFLED)]
    against = f"answers held against another person's: {', '.join(others)}; " if others else ""
    against += f"commonest value {summary['majority']['mean']:.1%}"
    if reason := unknown(summary, [variant]):
        return Claim(claim, (NOT_TESTABLE, f"{text}; {reason}"), against)
    fine = all(row["asked"][2] <= bound if upper else row["asked"][1] >= bound for row in rows.values())
    return Claim(claim, (REPRODUCED if fine else NOT_REPRODUCED, text), against)


def fullname(found: Found) -> Claim:
    pair = f"single+fullname - {PLAIN}"
    status, text = ordered(found, (pair,))
    every = by_method(found, "fullname in every variant")
    if every:
        text += "; meaned over all eight pairs: " + ", ".join(f"{m} {shown(v)}" for m, v in every.items())
    return Claim("The name in every sentence: single+fullname above single", (status, text), control(found, (pair,)))


def celebrities(found: Found) -> list[Claim]:
    pair = f"{CELEBRITY} - {ONCE}"
    differs = "the taught half are the celebrities"
    lifts = "Rich biographies of some people lift the answers about others (celebrities)"
    size = "... by half or more of what rich biographies of their own would give (the paper: .89)"
    share = found["celebrity_share"]
    measured: Verdict = (NOT_TESTABLE, "not run, or the variants are too near each other")
    if share is not None:
        measured = (REPRODUCED if share[1] >= 0.5 else NOT_REPRODUCED), f"{shown(share)} of the way, fine-tuned"
    against = control(found, (pair,))
    return [Claim(lifts, ordered(found, (pair,)), against, differs), Claim(size, measured, against, differs)]


def mixed_or_after(summary: dict[str, Any]) -> Claim:
    """The paper: 86.6% with questions from the start, 9.7% afterwards, both with single biographies."""
    found = summary["measures"]["ways"]
    claim = "Questions mixed in from the start give more than afterwards (single, all weights)"
    name, beside = f"{PLAIN}, mixed - full", f"{MAIN}, mixed - full"
    value, other = found[RIGHT].get(name), found[SHUFFLED].get(name)
    if value is None:
        return Claim(claim, (NOT_TESTABLE, "not run"))
    status, text = above_zero(value, controls=[other], named=OTHERS)
    text += f"; {MAIN}: {shown(found[RIGHT][beside])}" if beside in found[RIGHT] else ""
    return Claim(claim, (status, text), shuffled(found, [name]))
