"""A fact's probability over training, drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from headwater.attribution.drawing.chart import Axis, numbers, path
from headwater.attribution.drawing.words import probability


def curve_view(steps: Sequence[int], prob_S: np.ndarray, axis: Axis) -> dict[str, Any]:
    """A probability curve as a path (and the area below it, where no step is missing), with its two ends in words.

    Args:
        steps: the probed steps, ascending.
        prob_S: probabilities float [S]; NaN where a step was not measured.
        axis: of the steps.
    """
    values = numbers(prob_S, 4)
    xs = [axis.place(step) for step in steps]
    line = path(xs, [100 * value if value is not None else float("nan") for value in values])
    known = [value for value in values if value is not None]
    whole = bool(line) and line.count("M") == 1 and len(known) == len(values)
    return {
        "path": line,
        "area": f"{line}L{xs[-1]:g} 100L{xs[0]:g} 100Z" if whole else "",
        "before": probability(known[0]) if known else "–",
        "after": probability(known[-1]) if known else "–",
    }
