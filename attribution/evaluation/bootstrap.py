"""Bootstrap intervals over queries: how far a mean would move with other queries of the same kind.

Seeded and vectorised; percentile intervals. Two methods are compared on the same queries (paired), which is far sharper
than looking whether their intervals overlap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
CLUSTER_RESAMPLES = 2_000
"""A statistic is computed anew for each."""
BLOCK_VALUES = 4_000_000
"""Values resampled at once; bounds memory at 64 MB however many queries there are."""


@dataclass(frozen=True, slots=True)
class Paired:
    """Method a less method b on the same queries: [mean, low, high] of a - b, and on how many queries a > b, a < b."""

    difference: list[float]
    wins: int
    losses: int
    ties: int

    @property
    def apart(self) -> bool:
        """True where the interval of the difference does not hold zero."""
        _, low, high = self.difference
        return low > 0 or high < 0


def resampled_means(values_Q: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Means of `resamples` draws of Q queries with replacement, float64 [resamples]."""
    generator = np.random.default_rng(seed)
    count = len(values_Q)

    def blocks() -> Iterator[np.ndarray]:
        step = max(1, BLOCK_VALUES // count)
        for start in range(0, resamples, step):
            drawn_BQ = generator.integers(count, size=(min(step, resamples - start), count))
            yield values_Q[drawn_BQ].mean(axis=1)

    return np.concatenate(list(blocks()))


def interval(values_Q: np.ndarray, *, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0) -> list[float]:
    """[mean, low, high] of per-query values [Q]: the percentile bootstrap interval at `level`.

    Raises:
        ValueError: if there is no value, or one is not finite.
    """
    values_Q = np.asarray(values_Q, dtype=np.float64)
    if values_Q.ndim != 1 or len(values_Q) == 0:
        raise ValueError(f"expected one value per query, got shape {values_Q.shape}")
    if not np.isfinite(values_Q).all():
        raise ValueError("a per-query value is not finite")
    means = resampled_means(values_Q, resamples, seed)
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return [float(values_Q.mean()), float(low), float(high)]


def paired(
    a_Q: np.ndarray, b_Q: np.ndarray, *, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Paired:
    """Compares two methods on the same queries: the bootstrap interval of the mean of a - b, and who won where."""
    a_Q, b_Q = np.asarray(a_Q, dtype=np.float64), np.asarray(b_Q, dtype=np.float64)
    if a_Q.shape != b_Q.shape:
        raise ValueError(f"paired values must be of the same queries, got {a_Q.shape} and {b_Q.shape}")
    gap_Q = a_Q - b_Q
    difference = interval(gap_Q, level=level, resamples=resamples, seed=seed)
    return Paired(difference, int((gap_Q > 0).sum()), int((gap_Q < 0).sum()), int((gap_Q == 0).sum()))


def cluster_draws(owner_P: np.ndarray, resamples: int = CLUSTER_RESAMPLES, seed: int = 0) -> Iterator[np.ndarray]:
    """Numbers of the probes of each draw of whole records with replacement: int [n], with repeats.

    Args:
        owner_P: the record of each probe, int [P].
    """
    records = np.unique(owner_P)
    members = [np.flatnonzero(owner_P == record) for record in records]
    generator = np.random.default_rng(seed)
    for _ in range(resamples):
        drawn = generator.integers(len(records), size=len(records))
        yield np.concatenate([members[place] for place in drawn])


def cluster_bootstrap(
    owner_P: np.ndarray,
    statistic: Callable[[np.ndarray], float],
    *,
    level: float = 0.95,
    resamples: int = CLUSTER_RESAMPLES,
    seed: int = 0,
) -> list[float]:
    """[value, low, high] of a statistic of probes, when whole records are drawn with replacement.

    The probes of a record rise and fall together, so that drawing probes one by one would make intervals too narrow.

    Args:
        owner_P: the record of each probe, int [P].
        statistic: of an array of probe numbers, int [n], with repeats.
    """
    found = np.array([statistic(drawn) for drawn in cluster_draws(owner_P, resamples, seed)], dtype=np.float64)
    tail = (1 - level) / 2
    low, high = np.nanquantile(found, [tail, 1 - tail])
    return [float(statistic(np.arange(len(owner_P)))), float(low), float(high)]


def jackknife_error(left_out_M: np.ndarray) -> float:
    """The standard error of a statistic of M draws, from its M values without one of them each (Efron and Stein 1981).

    For draws that a bootstrap would repeat, as the models of a linear datamodeling score: repeats tie in rank.
    """
    count = len(left_out_M)
    return float(np.sqrt((count - 1) / count * ((left_out_M - left_out_M.mean()) ** 2).sum()))
