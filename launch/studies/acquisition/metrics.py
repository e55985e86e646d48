"""Measures of how a fact is acquired and forgotten (Chang et al. 2024, arXiv 2406.11813), as pure functions.

A curve is l, the mean log-probability of a probe's target, at the steps where it was measured: step n is after n
updates. An injection at step t is seen by the model with t updates, so l(t) is the value just before it, and the first
value that it can have changed is l(t + 1). Steps are int [S], rising; curves are float [S] of one probe.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


def at_step(steps: np.ndarray, values: np.ndarray, step: int) -> np.ndarray:
    """Values [..., S] at one measured step: [...].

    Raises:
        ValueError: it was not measured.
    """
    place = int(np.searchsorted(steps, step))
    if place == len(steps) or steps[place] != step:
        raise ValueError(f"step {step} was not measured")
    return np.asarray(values)[..., place]


def local_maximum(steps: np.ndarray, curve: np.ndarray, injection: int, window: int) -> int:
    """t_LAM: the step of the highest value in (injection, injection + window]; the first of several.

    Raises:
        ValueError: no step was measured there.
    """
    places = np.flatnonzero((steps > injection) & (steps <= injection + window))
    if not len(places):
        raise ValueError(f"no step was measured in ({injection}, {injection + window}]")
    return int(steps[places[int(np.argmax(curve[places]))]])


def effectivity(steps: np.ndarray, curve: np.ndarray, injection: int, window: int) -> float:
    """E = l(t_LAM) - l(injection), in nats: what one injection gave at its best."""
    best = at_step(steps, curve, local_maximum(steps, curve, injection, window))
    return float(best - at_step(steps, curve, injection))


def retainability(
    steps: np.ndarray, curve: np.ndarray, injections: Sequence[int], window: int, minimum_gain: float
) -> tuple[np.ndarray, np.ndarray] | None:
    """R(t) = (l(t_LAM + t) - l(pre)) / (l(t_LAM) - l(pre)) at every measured step after the last injection's maximum.

    Args:
        injections: steps of the probe's injections; l(pre) is the value at the first, t_LAM belongs to the last.
        minimum_gain: smallest l(t_LAM) - l(pre), in nats, for which the ratio says something.

    Returns:
        t, int [n], at least 1, and R(t), float [n]; None where the gain is too small.
    """
    peak = local_maximum(steps, curve, max(injections), window)
    before, best = at_step(steps, curve, min(injections)), at_step(steps, curve, peak)
    if not best - before >= minimum_gain:
        return None
    after = steps > peak
    return (steps[after] - peak).astype(np.int64), (curve[after] - before) / (best - before)


@dataclass(frozen=True, slots=True)
class Fit:
    """A curve of two parameters fitted by least squares.

    Attributes:
        kind: `power`, R = level - decay log10 t; or `exponential`, R = level exp(-t / scale).
        level: R at t = 1 (power), or at t = 0 (exponential).
        decay: fall of R per decade of t (power), or 1 / scale (exponential).
        r2: share of the variance that the fit explains.
    """

    kind: str
    level: float
    decay: float
    r2: float

    @property
    def x_intercept(self) -> float:
        """The t at which a power law has R = 0, the learnability threshold; infinite if R does not fall."""
        if self.kind != "power" or self.decay <= 0:
            return float("inf")
        exponent = self.level / self.decay
        return float(10.0**exponent) if exponent < 300 else float("inf")

    def at(self, t: np.ndarray) -> np.ndarray:
        t = np.asarray(t, dtype=np.float64)
        if self.kind == "power":
            return self.level - self.decay * np.log10(t)
        return self.level * np.exp(-self.decay * t)


def fit_power(t: np.ndarray, retained: np.ndarray) -> Fit:
    """R = level - decay log10 t, by linear least squares.

    Raises:
        ValueError: fewer than three points, or t below 1.
    """
    t, retained = _points(t, retained)
    design = np.stack([np.ones_like(t), -np.log10(t)], axis=1)
    (level, decay), *_ = np.linalg.lstsq(design, retained, rcond=None)
    return Fit("power", float(level), float(decay), r_squared(retained, design @ np.array([level, decay])))


def fit_exponential(t: np.ndarray, retained: np.ndarray) -> Fit:
    """R = level exp(-decay t), decay >= 0, by least squares: the level in closed form, the decay by a search.

    Raises:
        ValueError: fewer than three points, or t below 1.
    """
    t, retained = _points(t, retained)
    decays = np.concatenate([[0.0], np.geomspace(1e-3 / t.max(), 20.0 / t.min(), 400)])
    for _ in range(4):
        basis = np.exp(-np.outer(decays, t))
        norms = np.maximum((basis * basis).sum(axis=1), 1e-300)
        levels = basis @ retained / norms
        errors = ((retained - levels[:, None] * basis) ** 2).sum(axis=1)
        best = int(np.argmin(errors))
        level, decay = float(levels[best]), float(decays[best])
        decays = np.linspace(decays[max(best - 1, 0)], decays[min(best + 1, len(decays) - 1)], 400)
    return Fit("exponential", level, decay, r_squared(retained, level * np.exp(-decay * t)))


def _points(t: np.ndarray, retained: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    t, retained = np.asarray(t, dtype=np.float64), np.asarray(retained, dtype=np.float64)
    if len(t) != len(retained) or len(t) < 3 or t.min() < 1 or not np.isfinite(retained).all():
        raise ValueError("a fit needs at least three finite points with t >= 1")
    return t, retained


def r_squared(values: np.ndarray, fitted: np.ndarray) -> float:
    """1 - residual / total sum of squares; 0 for values that do not vary."""
    total = float(((values - values.mean()) ** 2).sum())
    return 1 - float(((values - fitted) ** 2).sum()) / total if total > 0 else 0.0
