"""BM25 finds what states a fact, TrackStar what moves the model: both on the same questions, and where they part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from headwater.launch.studies.claim import Claim, Found, above_zero, as_text
from headwater.launch.studies.tracing.classes import CLASSES
from headwater.launch.studies.tracing.measured import Seed, interval_of
from headwater.launch.studies.tracing.settings import ASKED_ANOTHER, LABELS, TRACED
from headwater.launch.studies.verdict import NOT_REPRODUCED, REPRODUCED, Verdict

METRICS = ("mrr", "recall@10", "tail_patch")
EXAMPLES = 4
"""On each side: where the method's passages move the model more, and where BM25's do."""


def measure(seeds: Sequence[Seed], place: tuple[str, int]) -> Found:
    """Each method less BM25, question by question, of facts that were shown; and examples.

    Args:
        place: size and step of the model that is looked at.
    """

    def means(method: str, metric: str) -> list[float] | None:
        return interval_of(seeds, [each.stack([place], method, metric)[:, 0] for each in seeds])

    less = {
        method: {
            metric: interval_of(seeds, [difference(each, place, method, "bm25", metric) for each in seeds])
            for metric in METRICS
        }
        for method in (*TRACED, "random")
    }
    another = interval_of(seeds, [difference(each, place, ASKED_ANOTHER, "random", "mrr") for each in seeds])
    tails = {method: means(method, "tail_patch") for method in (*TRACED, "bm25", "random", "gold")}
    first = {method: share_of_agreeing(seeds, place, method) for method in TRACED}
    return {
        "less_bm25": less,
        "asked_another": another,
        "tail_patch": tails,
        "same_first": first,
        "examples": examples(seeds, place, TRACED[0]),
    }


def difference(seed: Seed, place: tuple[str, int], a: str, b: str, metric: str) -> np.ndarray:
    """Of the questions about what was shown: float64 [Q]; NaN of the others."""
    return seed.stack([place], a, metric)[:, 0] - seed.stack([place], b, metric)[:, 0]


def share_of_agreeing(seeds: Sequence[Seed], place: tuple[str, int], method: str) -> list[float] | None:
    """How often a method's first passage is BM25's."""
    same = []
    for seed in seeds:
        first = seed.points[place].first
        alike = [a == b for a, b in zip(first[method], first["bm25"], strict=True)]
        same.append(seed.among(np.array(alike, dtype=np.float64), seed.seen_Q))
    return interval_of(seeds, same)


def examples(seeds: Sequence[Seed], place: tuple[str, int], method: str) -> list[dict[str, Any]]:
    """The questions whose first passages differ and whose tail-patches differ most, on either side; the kinds of the
    first passages beside their texts."""
    found: list[dict[str, Any]] = []
    for seed in seeds:
        point = seed.points[place]
        gap = point.values[method]["tail_patch"] - point.values["bm25"]["tail_patch"]
        for number in np.flatnonzero(np.isfinite(gap) & seed.seen_Q).tolist():
            if point.first[method][number] == point.first["bm25"][number]:
                continue
            record = seed.questions[number]
            tops = {
                name: {
                    "passage": point.first[name][number],
                    "text": point.texts[point.first[name][number]],
                    "class": CLASSES[int(point.classes[name][number, 0])],
                    "tail_patch": float(point.values[name]["tail_patch"][number]),
                    "mrr": float(point.values[name]["mrr"][number]),
                }
                for name in (method, "bm25")
            }
            asked = {"prompt": record["prompt"], "target": record["target"], "gap": float(gap[number])}
            found.append({**asked, "tops": tops})
    found.sort(key=lambda each: -each["gap"])
    more = [each for each in found if each["gap"] > 0][:EXAMPLES]
    less = [each for each in found if each["gap"] < 0][-EXAMPLES:]
    return more + less


def judge(found: Found) -> list[Claim]:
    claims = []
    tails = found["tail_patch"]
    for method in TRACED:
        less = found["less_bm25"][method]
        label = LABELS[method] + ("" if method == "trackstar" else " (ours)")
        ahead = [-less["mrr"][0], -less["mrr"][2], -less["mrr"][1]] if less["mrr"] else None
        chance = found["less_bm25"]["random"]
        behind = chance["mrr"] and [-chance["mrr"][0], -chance["mrr"][2], -chance["mrr"][1]]
        claims.append(
            Claim(
                f"BM25 finds what states the fact: its MRR is above that of {label}",
                above_zero(ahead),
                f"BM25 asked another question, less a random ranking: {as_text(found['asked_another'])}; "
                f"scale, BM25 less a random ranking: {as_text(behind)}",
            )
        )
        text = f"{as_text(tails[method])} against {as_text(tails['bm25'])}, difference "
        claims.append(
            Claim(
                f"{label} finds what moves the model: its tail-patch is above BM25's",
                moves(above_zero(less["tail_patch"], text if less["tail_patch"] else ""), chance["tail_patch"]),
                f"random passages: {as_text(tails['random'])}, less BM25: {as_text(chance['tail_patch'])}; "
                f"scale, gold passages: {as_text(tails['gold'])}",
            )
        )
    return claims


def moves(verdict: Verdict, chance: Sequence[float] | None) -> Verdict:
    """A verdict on tail-patches: nothing is reproduced where a step on random passages is above one on BM25's as well,
    as it is where a step of the run's length does harm."""
    status, measured = verdict
    if status == REPRODUCED and chance is not None and chance[1] > 0:
        return NOT_REPRODUCED, f"{measured}, but random passages are above BM25's as well"
    return verdict
