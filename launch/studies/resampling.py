"""Intervals over seeds and facts: seeds are drawn with replacement, and facts within each seed that is drawn.

With one seed it is the bootstrap over its facts. With few seeds an interval says little about others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

RESAMPLES = 2_000


def over_seeds(
    values: Sequence[np.ndarray],
    statistic: Callable[[np.ndarray], np.ndarray] | None = None,
    *,
    resamples: int = RESAMPLES,
    level: float = 0.95,
) -> list[float] | None:
    """[value, low, high] of a statistic of means over facts.

    Args:
        values: of each seed, float64 [facts] or [facts, K]; facts whose values are not all finite are left out. The
            same facts are drawn for all K.
        statistic: of means [..., K], gives [...]; the mean itself if not given, with one column.

    Returns:
        None where no fact is left, or the statistic is not finite.
    """
    columns = [np.asarray(each, dtype=np.float64) for each in values]
    columns = [each[:, None] if each.ndim == 1 else each for each in columns]
    columns = [each[np.isfinite(each).all(axis=1)] for each in columns]
    columns = [each for each in columns if len(each)]
    if not columns:
        return None
    of = statistic or (lambda mean_K: mean_K[..., 0])
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(of(np.concatenate(columns).mean(axis=0)))
        found_R = of(drawn_means(columns, resamples))
    found_R = found_R[np.isfinite(found_R)]
    if not np.isfinite(value) or len(found_R) < resamples / 2:
        return None
    low, high = np.quantile(found_R, [(1 - level) / 2, (1 + level) / 2])
    return [value, float(low), float(high)]


def drawn_means(columns: Sequence[np.ndarray], resamples: int, seed: int = 0) -> np.ndarray:
    """Means over the facts of drawn seeds: float64 [resamples, K]."""
    generator = np.random.default_rng(seed)
    sums_RK = np.zeros((resamples, columns[0].shape[1]))
    counts_R = np.zeros(resamples)
    for drawn_R in generator.integers(len(columns), size=(len(columns), resamples)):
        for place, values_FK in enumerate(columns):
            mine = np.flatnonzero(drawn_R == place)
            facts_rF = generator.integers(len(values_FK), size=(len(mine), len(values_FK)))
            sums_RK[mine] += values_FK[facts_rF].sum(axis=1)
            counts_R[mine] += len(values_FK)
    return sums_RK / counts_R[:, None]


def slope_weights(x: Sequence[float] | np.ndarray) -> np.ndarray:
    """Weights whose sum with values at `x` is the slope of least squares: float64 [n].

    Raises:
        ValueError: fewer than two different places.
    """
    places = np.asarray(x, dtype=np.float64)
    centred = places - places.mean()
    if not (centred**2).sum() > 0:
        raise ValueError(f"a slope needs two different places, got {list(x)}")
    return centred / (centred**2).sum()
