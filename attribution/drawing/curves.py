"""A fact's probability over training, drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from headwater.attribution.drawing.chart import Axis, numbers, path
from headwater.attribution.drawing.words import probability

UNIT = Axis(0, 1)


def curve_view(steps: Sequence[int], prob_S: np.ndarray, axis: Axis, scale: Axis = UNIT) -> dict[str, Any]:
    """A probability curve as a path (and the area below it, where no step is missing), with its two ends in words.

    Args:
        steps: the probed steps, ascending.
        prob_S: probabilities float [S]; NaN where a step was not measured.
        axis: of the steps.
        scale: of the probability.
    """
    values = numbers(prob_S, 4)
    xs = [axis.place(step) for step in steps]
    line = path(xs, [scale.place(value) if value is not None else float("nan") for value in values])
    finite = prob_S[np.isfinite(prob_S)]
    whole = bool(line) and line.count("M") == 1 and len(finite) == len(values)
    return {
        "path": line,
        "area": f"{line}L{xs[-1]:g} 100L{xs[0]:g} 100Z" if whole else "",
        "before": probability(float(finite[0])) if len(finite) else "–",
        "after": probability(float(finite[-1])) if len(finite) else "–",
    }
