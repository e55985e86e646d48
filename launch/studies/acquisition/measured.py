"""The probes of a study's runs, and what each of them gained and kept."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from headwater.launch.studies.acquisition.metrics import effectivity, retainability
from headwater.train.artifacts import RunDir, read_json

GRID_POINTS = 40
"""Values of t, evenly spread over their logarithm, at which the retained share is averaged over probes."""
CONTROL = "control"


@dataclass(frozen=True, slots=True)
class Measured:
    """The probes of comparable runs (one stage, batch, size and plan, all seeds) together.

    Attributes:
        steps: int [S], after the stage.
        logprob_PS: mean log-probability of each probe's target, float64.
        seed_P: the seed of each probe.
        owner_P: the record of each probe, by its number in its seed.
        depth_P, group_P: names; a group is a scenario, or how often records are met.
        shown_P: steps, after the stage, at which each probe's record is shown; those of a control it would have had.
    """

    steps: np.ndarray
    logprob_PS: np.ndarray
    seed_P: np.ndarray
    owner_P: np.ndarray
    depth_P: np.ndarray
    group_P: np.ndarray
    shown_P: tuple[tuple[int, ...], ...]

    def of(self, group: str | None = None, depth: str | None = None) -> np.ndarray:
        """Numbers of the probes of a group (None: all that are shown) and depth (None: all)."""
        fits = self.group_P == group if group else self.group_P != CONTROL
        return np.flatnonzero(fits & (self.depth_P == depth) if depth else fits)

    @property
    def last_shown(self) -> int:
        """The step at which something is shown for the last time."""
        return max((steps[-1] for steps in self.shown_P), default=0)


def read_run(path: Path) -> Measured:
    """The probes of a finished run."""
    import pyarrow.parquet as pq

    run, note = RunDir(path), read_json(path / "part.json")
    probes = [json.loads(line) for line in (run.facts / "probes.jsonl").read_text(encoding="utf-8").splitlines()]
    table = pq.read_table(run.probes)
    steps, place = np.unique(table["step"].to_numpy(), return_inverse=True)
    logprob_PS = np.full((len(probes), len(steps)), np.nan)
    logprob_PS[table["probe"].to_numpy(), place] = table["logprob"].to_numpy()
    assert np.isfinite(logprob_PS).all(), "every probe is measured at every probed step"
    records = np.array([int(probe["subject"].rpartition("/")[2]) for probe in probes])
    shown = [tuple(steps) for steps in note["shown"]]
    most = max(shown, key=len)
    return Measured(
        steps - note["stage"],
        logprob_PS,
        np.full(len(probes), note["seed"]),
        records,
        np.array([probe["relation"] for probe in probes]),
        np.array(note["groups"])[records],
        tuple(shown[record] or most for record in records.tolist()),
    )


def pool(parts: Sequence[Measured]) -> Measured:
    """Runs of the same schedule, one after the other."""
    first = parts[0]
    assert all(np.array_equal(each.steps, first.steps) for each in parts)
    return Measured(
        first.steps,
        np.concatenate([each.logprob_PS for each in parts]),
        np.concatenate([each.seed_P for each in parts]),
        np.concatenate([each.owner_P for each in parts]),
        np.concatenate([each.depth_P for each in parts]),
        np.concatenate([each.group_P for each in parts]),
        tuple(steps for each in parts for steps in each.shown_P),
    )


def effects(measured: Measured, window: int) -> np.ndarray:
    """E of every probe at every injection, float64 [P, I]; NaN where its record is not shown so often."""
    turns = max((len(steps) for steps in measured.shown_P), default=0)
    made = np.full((len(measured.logprob_PS), turns), np.nan)
    for probe, curve in enumerate(measured.logprob_PS):
        for turn, step in enumerate(measured.shown_P[probe]):
            if step + window <= measured.steps[-1]:
                made[probe, turn] = effectivity(measured.steps, curve, step, window)
    return made


def grid_after(measured: Measured, window: int) -> np.ndarray:
    """Steps after a probe's last maximum, evenly spread over their logarithm, that every probe reaches: int [T]."""
    last = int(measured.steps[-1]) - (measured.last_shown + window)
    return np.unique(np.round(np.geomspace(1, max(last, 3), GRID_POINTS)).astype(int))


def retained(measured: Measured, window: int, minimum_gain: float) -> np.ndarray:
    """R of every probe, as the paper has it, on the grid: float64 [P, T], NaN where it says nothing."""
    t_T = grid_after(measured, window)
    made = np.full((len(measured.logprob_PS), len(t_T)), np.nan)
    for probe in measured.of().tolist():
        curve, shown = measured.logprob_PS[probe], measured.shown_P[probe]
        found = retainability(measured.steps, curve, shown, window, minimum_gain)
        if found is not None:
            t, ratio = found
            made[probe] = np.interp(t_T, np.concatenate([[0], t]), np.concatenate([[1.0], ratio]))
    return made


def drifts(measured: Measured) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """By seed and depth: the probes, and the mean curve of its controls, float64 [S]; zeros where there are none."""
    for seed in np.unique(measured.seed_P):
        for depth in np.unique(measured.depth_P):
            mine = (measured.seed_P == seed) & (measured.depth_P == depth)
            control = mine & (measured.group_P == CONTROL)
            drift_S = np.zeros(len(measured.steps))
            if control.any():
                drift_S = measured.logprob_PS[control].mean(axis=0)
            yield np.flatnonzero(mine), drift_S


def without_drift(measured: Measured) -> np.ndarray:
    """Curves less the mean curve of the controls of the same seed and depth: what knowing the words, and not the fact,
    does to a probe is gone. The controls' mean is taken as given. float64 [P, S]."""
    made = measured.logprob_PS.copy()
    for probes, drift in drifts(measured):
        made[probes] -= drift
    return made


def raised(measured: Measured, plain_PS: np.ndarray) -> np.ndarray:
    """How far every probe stands above where it was before its first injection, 0, 1, 2, ... steps after its last, of
    curves `without_drift`: float64 [P, 1 + steps], NaN of controls."""
    since = np.arange(int(measured.steps[-1]) - measured.last_shown + 1)
    made = np.full((len(plain_PS), len(since)), np.nan)
    for probe in measured.of().tolist():
        shown = measured.shown_P[probe]
        at = np.interp([shown[0], *(shown[-1] + since)], measured.steps, plain_PS[probe])
        made[probe] = at[1:] - at[0]
    return made
