"""Intervals of what is measured of probes, when seeds and whole records are drawn with replacement."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from headwater.launch.studies.acquisition.measured import Measured
from headwater.launch.studies.resampling import percentiles

Sample = tuple[Measured, np.ndarray]
"""Some probes of comparable runs: their numbers, int [n]."""
Statistic = Callable[..., float]
"""Of the numbers of drawn probes, int [n] for each sample, with repeats."""


def interval(
    samples: Sequence[Sample], statistic: Statistic, *, resamples: int, crossed: bool = False, level: float = 0.95
) -> list[float] | None:
    """[value, low, high] of a statistic: percentiles over draws of seeds, and of records within a group of each.

    The same seed and record is drawn for all samples, so that runs that show the same records are compared record by
    record.

    Args:
        crossed: the records are the same ones for every seed, and are drawn once for all of them.

    Returns:
        None where a sample is empty, or the statistic is not finite, or is not in more than a few of the resamples:
        a fit that most draws allow is not one of all.
    """
    if not all(len(chosen) for _, chosen in samples):
        return None
    value = float(statistic(*(chosen for _, chosen in samples)))
    found = np.array([statistic(*drawn) for drawn in draws(samples, resamples, crossed)], dtype=np.float64)
    return percentiles(value, found, level)


def draws(
    samples: Sequence[Sample], resamples: int, crossed: bool = False, seed: int = 0
) -> Iterator[list[np.ndarray]]:
    """The probes of each draw, for each of the samples."""
    members: list[dict[tuple[int, int], np.ndarray]] = []
    strata: dict[int, dict[str, dict[int, None]]] = {}
    for measured, chosen in samples:
        own: dict[tuple[int, int], list[int]] = {}
        for probe in chosen.tolist():
            place, record = int(measured.seed_P[probe]), int(measured.owner_P[probe])
            own.setdefault((place, record), []).append(probe)
            strata.setdefault(place, {}).setdefault(str(measured.group_P[probe]), {})[record] = None
        members.append({key: np.array(probes) for key, probes in own.items()})
    seeds = sorted(strata)
    listed = {place: [np.array(list(records)) for records in strata[place].values()] for place in seeds}
    nothing = np.zeros(0, dtype=np.int64)
    generator = np.random.default_rng(seed)
    for _ in range(resamples):
        common = [each[generator.integers(len(each), size=len(each))] for each in listed[seeds[0]]] if crossed else None
        units: list[tuple[int, int]] = []
        for turn in generator.integers(len(seeds), size=len(seeds)).tolist():
            place = seeds[turn]
            for each in common or [each[generator.integers(len(each), size=len(each))] for each in listed[place]]:
                units += [(place, record) for record in each.tolist()]
        yield [np.concatenate([nothing, *(own[unit] for unit in units if unit in own)]) for own in members]
