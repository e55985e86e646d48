"""Intervals over seeds and subjects: seeds are drawn with replacement, and subjects within each seed that is drawn.

Facts of one subject stand in the same passages, and are no independent measurements: all of them are drawn together.
With one seed it is the bootstrap over its subjects. With few seeds an interval says little about others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

RESAMPLES = 2_000
FEW = 0.05
"""The share of resamples that may have no finite statistic: an interval of the others is not one of all."""


def over_seeds(
    values: Sequence[np.ndarray],
    subjects: Sequence[np.ndarray],
    statistic: Callable[[np.ndarray], np.ndarray] | None = None,
    *,
    crossed: bool = False,
    resamples: int = RESAMPLES,
    level: float = 0.95,
) -> list[float] | None:
    """[value, low, high] of a statistic of means over facts.

    Args:
        values: of each seed, float64 [facts] or [facts, K]; facts whose values are not all finite do not count. The
            same subjects are drawn for all K.
        subjects: of each seed, whom each fact is about: [facts].
        statistic: of means [..., K], gives [...]; the mean itself if not given, with one column.
        crossed: a subject is the same one in every seed, and is drawn once for all of them.

    Returns:
        None where no fact counts, the statistic is not finite, or is not in more than a few of the resamples.
    """
    columns = [np.asarray(each, dtype=np.float64) for each in values]
    columns = [each[:, None] if each.ndim == 1 else each for each in columns]
    sums, counts = sums_of_subjects(columns, subjects, crossed)
    if not sums:
        return None
    of = statistic or (lambda mean_K: mean_K[..., 0])
    with np.errstate(divide="ignore", invalid="ignore"):
        whole_K = np.sum([each.sum(axis=0) for each in sums], axis=0) / np.sum([each.sum() for each in counts])
        return percentiles(float(of(whole_K)), of(drawn_means(sums, counts, resamples, crossed)), level)


def percentiles(value: float, found_R: np.ndarray, level: float) -> list[float] | None:
    """[value, low, high] of what the resamples gave: float64 [resamples].

    Returns:
        None where more than a few of them are not finite, or the value is not.
    """
    finite_R = found_R[np.isfinite(found_R)]
    if not np.isfinite(value) or len(found_R) - len(finite_R) > FEW * len(found_R):
        return None
    low, high = np.quantile(finite_R, [(1 - level) / 2, (1 + level) / 2])
    return [value, float(low), float(high)]


def sums_of_subjects(
    columns: Sequence[np.ndarray], subjects: Sequence[np.ndarray], crossed: bool
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Of each seed, its subjects' sums of the facts that count, float64 [subjects, K], and how many these are, float64
    [subjects]; seeds in which nothing counts are left out.

    Args:
        crossed: a subject has the same place in every seed, with zero facts where none of its own counts.
    """
    kept = [np.isfinite(each).all(axis=1) for each in columns]
    own = [np.asarray(names)[mask] for names, mask in zip(subjects, kept, strict=True)]
    listed = [np.unique(np.concatenate(own))] * len(own) if crossed else [np.unique(names) for names in own]
    sums, counts = [], []
    for values_FK, mask, names, places in zip(columns, kept, own, listed, strict=True):
        if not mask.any():
            continue
        place_F = np.searchsorted(places, names)
        sums.append(np.zeros((len(places), values_FK.shape[1])))
        np.add.at(sums[-1], place_F, values_FK[mask])
        counts.append(np.bincount(place_F, minlength=len(places)).astype(np.float64))
    return sums, counts


def drawn_means(
    sums: Sequence[np.ndarray], counts: Sequence[np.ndarray], resamples: int, crossed: bool, seed: int = 0
) -> np.ndarray:
    """Means over the facts of drawn subjects of drawn seeds: float64 [resamples, K]."""
    generator = np.random.default_rng(seed)

    def times_drawn(subjects: int, draws: int) -> np.ndarray:
        return generator.multinomial(subjects, np.full(subjects, 1 / subjects), size=draws).astype(np.float64)

    common_RS = times_drawn(len(counts[0]), resamples) if crossed else None
    sums_RK = np.zeros((resamples, sums[0].shape[1]))
    counts_R = np.zeros(resamples)
    for drawn_R in generator.integers(len(sums), size=(len(sums), resamples)):
        for place, (sums_SK, counts_S) in enumerate(zip(sums, counts, strict=True)):
            mine = np.flatnonzero(drawn_R == place)
            times_rS = common_RS[mine] if common_RS is not None else times_drawn(len(counts_S), len(mine))
            sums_RK[mine] += times_rS @ sums_SK
            counts_R[mine] += times_rS @ counts_S
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
