"""Geometry that every drawing shares: axes, paths, labels that keep apart.

Places are in per cent of a drawing, which then scales without scaling its type.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Axis:
    """A linear axis from `low` to `high`, with round ticks."""

    low: float
    high: float

    def place(self, value: float) -> float:
        """Position of a value in per cent, held inside the axis."""
        share = (value - self.low) / (self.high - self.low)
        return round(100 * min(1.0, max(0.0, share)), 3)

    def ticks(self, about: int = 5) -> list[float]:
        step = nice_step((self.high - self.low) / about)
        first = math.ceil(self.low / step - 1e-9)
        return [number * step for number in range(first, math.floor(self.high / step + 1e-9) + 1)]


def nice_step(raw: float) -> float:
    """The next of 1, 2, 2.5, 5 times a power of ten that is not below `raw`."""
    power = 10.0 ** math.floor(math.log10(raw))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * (1 - 1e-9))


def path(xs: Sequence[float], ys: Sequence[float]) -> str:
    """An SVG path through the points, in per cent with y upwards; it breaks where a value is NaN."""
    parts, pen = [], "M"
    for x, y in zip(xs, ys, strict=True):
        if math.isnan(y):
            pen = "M"
            continue
        parts.append(f"{pen}{x:g} {100 - y:g}")
        pen = "L"
    return "".join(parts)


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Moves labels apart to at least `gap` per cent, as little as may be, inside 0 to 100; keeps their order."""
    order = np.argsort(places, kind="stable")
    wanted = np.asarray(places, dtype=float)[order]
    gap = min(gap, 100 / max(1, len(wanted) - 1)) if len(wanted) > 1 else gap
    # Least squares under y[i+1] - y[i] >= gap is isotonic regression on places less their spacing.
    offsets = gap * np.arange(len(wanted))
    blocks: list[list[float]] = []
    for value in wanted - offsets:
        blocks.append([value, 1])
        while len(blocks) > 1 and blocks[-2][0] >= blocks[-1][0]:
            value_last, count_last = blocks.pop()
            value_before, count_before = blocks.pop()
            count = count_before + count_last
            blocks.append([(value_before * count_before + value_last * count_last) / count, count])
    flat = np.concatenate([np.full(int(count), value) for value, count in blocks]) if blocks else np.array([])
    flat = np.clip(flat, 0, 100 - (offsets[-1] if len(offsets) else 0))
    result = np.empty(len(wanted))
    result[order] = flat + offsets
    return [round(float(value), 2) for value in result]


def numbers(values: np.ndarray, digits: int) -> list[float | None]:
    return [round(float(value), digits) if np.isfinite(value) else None for value in values]


def plain(value: float) -> str:
    """A number to two decimals, as a label."""
    text = f"{value:.2f}" if value % 1 else f"{value:.0f}"
    return printed("0" if text == "-0" else text)


def format_tick(value: float) -> str:
    """A number without trailing zeros, for an axis."""
    text = f"{value:.3f}".rstrip("0").rstrip(".")
    return "0" if text in ("-0", "0", "") else printed(text)


def printed(text: str) -> str:
    """A number as the field prints it: `0.5` as `.5`, `-0.5` as `−.5`, `10.5` as it is."""
    sign, digits = (text[0], text[1:]) if text[:1] in ("-", "+") else ("", text)
    return sign.replace("-", "−") + (digits[1:] if digits.startswith("0.") else digits)


def spoken(relation: str) -> str:
    """A relation as the page prints it."""
    return relation.replace("_", " ")
