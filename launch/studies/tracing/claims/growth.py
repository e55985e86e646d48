"""Influence comes closer to attribution with model size and with training tokens."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from headwater.launch.studies.claim import Claim, Found, as_text
from headwater.launch.studies.resampling import slope_weights
from headwater.launch.studies.tracing.measured import Seed, interval_of
from headwater.launch.studies.tracing.settings import LABELS, METHODS, TRACED
from headwater.launch.studies.verdict import NOT_REPRODUCED, NOT_TESTABLE, REPRODUCED, shown

METRICS = ("mrr", "recall@10", "tail_patch")
AXES = {"size": "weights", "tokens": "training tokens"}
"""What grows, a doubling at a time."""


def measure(seeds: Sequence[Seed], parameters: Mapping[str, int], amounts: Sequence[int]) -> Found:
    """Every metric at every point, and its slope a doubling of weights (over all amounts of tokens) and of tokens
    (over all sizes), of facts that were shown and of those that were not.

    Args:
        parameters: weights of each size, from small to large.
        amounts: steps.
    """
    sizes = list(parameters)
    untrained = (sizes[0], 0) in seeds[0].points
    rows = {size: {str(step): point(seeds, (size, step)) for step in [0] * untrained + list(amounts)} for size in sizes}
    grid = list(itertools.product(sizes, amounts))
    slopes: dict[str, dict[str, dict[str, list[float] | None]]] = {}
    for axis, weights in axis_weights(list(parameters.values()), amounts).items():
        slopes[axis] = {}
        for method, metric in itertools.product(METHODS, METRICS):
            slopes[axis].setdefault(method, {})[metric] = slope(seeds, grid, method, metric, weights)
            if metric != "tail_patch":
                told = slope(seeds, grid, method, metric, weights, seen=False)
                slopes[axis][method][f"{metric}, unseen"] = told
        slopes[axis] |= left_out_slopes(seeds, grid, weights)
    return {"rows": rows, "slopes": slopes, "parameters": dict(parameters), "amounts": list(amounts)}


def axis_weights(parameters: Sequence[int], amounts: Sequence[int]) -> dict[str, np.ndarray]:
    """Of each axis that has two places or more: weights of the points [sizes * amounts] whose sum is the mean slope."""
    found = {}
    if len(set(parameters)) > 1:
        found["size"] = np.repeat(slope_weights(np.log2(parameters)), len(amounts)) / len(amounts)
    if len(amounts) > 1:
        found["tokens"] = np.tile(slope_weights(np.log2(amounts)), len(parameters)) / len(parameters)
    return found


def slope(
    seeds: Sequence[Seed],
    grid: list[tuple[str, int]],
    method: str,
    metric: str,
    weights: np.ndarray,
    *,
    seen: bool = True,
) -> list[float] | None:
    return interval_of(seeds, [each.stack(grid, method, metric, seen=seen) @ weights for each in seeds])


def share_of_gold(means: np.ndarray) -> np.ndarray:
    """Of means [..., 2]: a drop as a share of gold's."""
    return means[..., 0] / means[..., 1]


def left_out_slopes(
    seeds: Sequence[Seed], grid: list[tuple[str, int]], weights: np.ndarray
) -> dict[str, dict[str, list[float] | None]]:
    """Of each arm of leaving out: the slope of its drop as a share of gold's, which is 1 everywhere."""
    arms = [arm for arm in seeds[0].points[grid[0]].drops if arm != "gold"]

    def of(mean_K: np.ndarray) -> np.ndarray:
        shares = mean_K[..., : len(grid)] / mean_K[..., len(grid) :]
        return (shares * weights).sum(axis=-1)

    def columns(seed: Seed, arm: str) -> np.ndarray:
        drops = [[seed.points[place].drops[name] for place in grid] for name in (arm, "gold")]
        return np.stack([*drops[0], *drops[1]], axis=1)

    return {f"without {arm}": {"share": interval_of(seeds, [columns(seed, arm) for seed in seeds], of)} for arm in arms}


def point(seeds: Sequence[Seed], place: tuple[str, int]) -> Found:
    """Every metric of every method at one point, of shown and of unseen facts, with what leaving out does."""
    methods: dict[str, dict[str, list[float] | None]] = {}
    for method in METHODS:
        row = {}
        for metric in METRICS:
            row[metric] = interval_of(seeds, [each.stack([place], method, metric)[:, 0] for each in seeds])
        row["mrr, unseen"] = interval_of(
            seeds, [each.stack([place], method, "mrr", seen=False)[:, 0] for each in seeds]
        )
        methods[method] = row
    methods["gold"] = {
        "tail_patch": interval_of(seeds, [each.stack([place], "gold", "tail_patch")[:, 0] for each in seeds])
    }
    drops = [each.points[place].drops for each in seeds]
    left: dict[str, dict[str, Any]] = {}
    for arm in drops[0]:
        pairs = [np.stack([each[arm], each["gold"]], axis=1) for each in drops]
        left[arm] = {
            "passages": float(np.mean([each.points[place].left_out[arm] for each in seeds])),
            "drop": interval_of(seeds, [each[arm] for each in drops]),
            "share": interval_of(seeds, pairs, share_of_gold),
        }
    known = [each.among(each.points[place].probability_Q, each.seen_Q) for each in seeds]
    unknown = [each.among(each.points[place].probability_Q, ~each.seen_Q) for each in seeds]
    return {
        "methods": methods,
        "left_out": left,
        "probability": interval_of(seeds, known),
        "probability, unseen": interval_of(seeds, unknown),
    }


def judge(found: Found) -> list[Claim]:
    return [judged(found, axis, method) for axis in AXES for method in TRACED]


def judged(found: Found, axis: str, method: str) -> Claim:
    """Reproduced if the slopes of MRR and recall@10 both lie above zero, and a random ranking's do not."""
    whose = LABELS[method] + ("'s recipe" if method == "trackstar" else ", ours")
    claim = f"Influence comes closer to attribution with {AXES[axis]} ({whose})"
    if axis not in found["slopes"]:
        return Claim(claim, (NOT_TESTABLE, f"one amount of {AXES[axis]}"))
    slopes = found["slopes"][axis]
    own = slopes[method]
    pair = own["mrr"], own["recall@10"]
    if any(each is None for each in pair):
        return Claim(claim, (NOT_TESTABLE, "no question about what was shown"))
    rises = all(each[1] > 0 for each in pair)
    chance = [slopes["random"][metric] for metric in ("mrr", "recall@10")]
    rises_by_chance = all(each is not None and each[1] > 0 for each in chance)
    held = [name for name, each in zip(("MRR", "recall@10"), pair, strict=True) if each[1] <= 0 <= each[2]]
    measured = f"a doubling: MRR {shown(pair[0])}, recall@10 {shown(pair[1])}"
    if rises_by_chance:
        measured += ", but a random ranking rises too"
    if held:
        measured += f", undecided: the interval of {' and '.join(held)} holds zero"
    measured += f"; tail-patch {as_text(own['tail_patch'])}"
    if f"without {method}" in slopes:
        measured += f"; share of gold's drop {as_text(slopes[f'without {method}']['share'])}"
    return Claim(
        claim, (REPRODUCED if rises and not rises_by_chance else NOT_REPRODUCED, measured), control(found, axis, method)
    )


def control(found: Found, axis: str, method: str) -> str:
    """What the same slopes are of a random ranking and of facts never shown, and MRR before training."""
    slopes = found["slopes"][axis]
    parts = [
        f"random ranking: MRR {as_text(slopes['random']['mrr'])}",
        f"facts never shown: MRR {as_text(slopes[method]['mrr, unseen'])}",
    ]
    before = {size: row["0"] for size, row in found["rows"].items() if "0" in row}
    parts += [f"before training, {size}: MRR {as_text(row['methods'][method]['mrr'])}" for size, row in before.items()]
    return "; ".join(parts)
