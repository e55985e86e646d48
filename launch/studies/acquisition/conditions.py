"""The runs of a study by what they have in common, measured: what the claims are judged by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from headwater.launch.studies.acquisition.intervals import Sample, Statistic, interval
from headwater.launch.studies.acquisition.measured import (
    CONTROL,
    Measured,
    effects,
    grid_after,
    raised,
    retained,
    without_drift,
)
from headwater.launch.studies.acquisition.metrics import Fit, fit_power
from headwater.launch.studies.acquisition.parts import REAL, SCENARIOS
from headwater.launch.studies.acquisition.settings import SIZE


@dataclass
class Condition:
    """Comparable runs, one of each seed.

    Attributes:
        window: steps after an injection in which its maximum is sought.
        parameters: of the model.
        alike_controls: controls are records as the shown ones are; what others drift by is not taken off these.
    """

    label: str
    measured: Measured
    window: int
    minimum_gain: float = 0.1
    stage: int = 0
    batch: int = 0
    copies: int = 1
    plan: str = SCENARIOS
    size: str = SIZE
    parameters: int = 0
    alike_controls: bool = True

    @cached_property
    def effect_PI(self) -> np.ndarray:
        return effects(self.measured, self.window)

    @cached_property
    def mean_effect_P(self) -> np.ndarray:
        """E of each probe, over its injections; NaN where there is none whose window was measured."""
        counts = np.isfinite(self.effect_PI).sum(axis=1)
        return np.where(counts, np.nansum(self.effect_PI, axis=1), np.nan) / np.maximum(counts, 1)

    @cached_property
    def t_T(self) -> np.ndarray:
        return grid_after(self.measured, self.window)

    @cached_property
    def kept_PT(self) -> np.ndarray:
        return retained(self.measured, self.window, self.minimum_gain)

    @cached_property
    def plain_PS(self) -> np.ndarray:
        return without_drift(self.measured) if self.alike_controls else self.measured.logprob_PS

    @cached_property
    def raised_PT(self) -> np.ndarray:
        return raised(self.measured, self.plain_PS)

    def sample(self, group: str | None = None, depth: str | None = None) -> Sample:
        return self.measured, self.measured.of(group, depth)

    def above_control(self, n: np.ndarray, values_P: np.ndarray | None = None, *, any_kind: bool = False) -> float:
        """Mean E of the shown among probes less that of the controls: a maximum over a window is above zero by noise
        alone, and by more where there is more of it. Without controls, or with controls of another kind unless they
        are asked for, the mean itself."""
        values = (self.mean_effect_P if values_P is None else values_P)[n]
        control = self.measured.group_P[n] == CONTROL
        if control.all():
            return float("nan")
        counts = control.any() and (any_kind or self.alike_controls)
        return float(np.mean(values[~control]) - (np.mean(values[control]) if counts else 0.0))

    def pooled(self, n: np.ndarray) -> np.ndarray | None:
        """What is kept of probes on the grid: their mean gain, less the controls' drift, over its own maximum in the
        window, float64 [T]; None where nothing is gained.

        A single probe's maximum is mostly noise, and a mean of ratios is carried by the probes that gained least: so
        means are taken first, of probes as many steps after their last injection.
        """
        reach = min(self.window, self.raised_PT.shape[1] - 1 - int(self.t_T[-1]))
        if not len(n) or reach < 1:
            return None
        mean = self.raised_PT[n].mean(axis=0)
        peak = 1 + int(np.argmax(mean[1 : reach + 1]))
        return mean[peak + self.t_T] / mean[peak] if mean[peak] > 0 else None

    def pooled_fit(self, n: np.ndarray) -> Fit | None:
        """The power law of what is kept."""
        kept_T = self.pooled(n)
        return None if kept_T is None else fit_power(self.t_T, kept_T)

    def decay(self, n: np.ndarray) -> float:
        fit = self.pooled_fit(n)
        return fit.decay if fit else float("nan")


@dataclass
class Conditions:
    """All conditions of a study."""

    every: Sequence[Condition]
    resamples: int = 1000
    crossed: bool = False

    @property
    def plain(self) -> Condition:
        """The first stage's, at the base model's own size and batch: what the others are held against."""
        return self.every[0]

    def alike(self, **factors: object) -> list[Condition]:
        """Conditions that differ from the plain one in what is named alone; `...` stands for any value but its own."""
        names = ("stage", "batch", "copies", "plan", "size")
        wanted = {name: factors.get(name, getattr(self.plain, name)) for name in names}

        def fits(each: Condition) -> bool:
            return all(
                getattr(each, name) != getattr(self.plain, name) if value is ... else getattr(each, name) == value
                for name, value in wanted.items()
            )

        return [each for each in self.every if fits(each)]

    @property
    def real(self) -> Condition | None:
        return next((each for each in self.every if each.plan == REAL), None)

    def interval(
        self, samples: Sequence[Sample], statistic: Statistic, resamples: int | None = None
    ) -> list[float] | None:
        return interval(samples, statistic, resamples=resamples or self.resamples, crossed=self.crossed)


def common_seeds(*conditions: Condition) -> list[Sample]:
    """All probes of conditions, of the seeds that all of them have."""
    seeds = set.intersection(*(set(each.measured.seed_P.tolist()) for each in conditions))
    return [(each.measured, np.flatnonzero(np.isin(each.measured.seed_P, sorted(seeds)))) for each in conditions]


def among(sample: Sample, group: str | None = None, depth: str | None = None, *, control: bool = False) -> Sample:
    """Of a sample the probes of a group (None: all that are shown) and depth, and the controls' too if asked."""
    measured, chosen = sample
    found = measured.of(group, depth)
    if control:
        found = np.union1d(found, measured.of(CONTROL, depth))
    return measured, np.intersect1d(chosen, found)


def halves(sample: Sample) -> list[Sample]:
    """A sample in two: every other record of each group, and the rest."""
    measured, chosen = sample
    first: list[int] = []
    for group in dict.fromkeys(measured.group_P[chosen].tolist()):
        own = chosen[measured.group_P[chosen] == group]
        records = np.unique(measured.owner_P[own])[::2]
        first += own[np.isin(measured.owner_P[own], records)].tolist()
    inside = np.isin(chosen, first)
    return [(measured, chosen[inside]), (measured, chosen[~inside])]
