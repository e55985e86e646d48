"""From the probes of a study's runs to its summary: acquisition by injection, retention by scenario and depth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from headwater.attribution.evaluation.bootstrap import cluster_bootstrap
from headwater.launch.studies.acquisition.claims import judge
from headwater.launch.studies.acquisition.metrics import effectivity, fit_exponential, fit_power, retainability
from headwater.launch.studies.acquisition.parts import ContinuedPart
from headwater.launch.studies.acquisition.settings import AcquisitionSettings
from headwater.train.artifacts import RunDir, read_json
from headwater.train.facts.fictional import DEPTHS, SCENARIOS, injection_steps

GRID_POINTS = 40
"""Values of t, evenly spread over their logarithm, at which the retained share is averaged over probes."""


@dataclass(frozen=True, slots=True)
class Measured:
    """The probes of comparable runs (one stage and batch, all seeds) together.

    Attributes:
        steps: int [S], after the stage.
        logprob_PS: mean log-probability of each probe's target, float64.
        owner_P: the record of each probe, numbered over all seeds.
        depth_P, scenario_P: names.
        injections: steps, after the stage, at which a record that is shown again and again is shown.
    """

    steps: np.ndarray
    logprob_PS: np.ndarray
    owner_P: np.ndarray
    depth_P: np.ndarray
    scenario_P: np.ndarray
    injections: list[int]

    def of(self, scenario: str | None, depth: str) -> np.ndarray:
        """Numbers of the probes of a scenario (None: all that are shown) and depth."""
        fits = self.scenario_P == scenario if scenario else self.scenario_P != "control"
        return np.flatnonzero(fits & (self.depth_P == depth))

    def shown_at(self, probe: int) -> list[int]:
        """The injections of a probe's record; those of a control are the ones it would have had."""
        return self.injections[:1] if self.scenario_P[probe] == "once" else self.injections


def read_part(part: ContinuedPart) -> Measured:
    import json

    import pyarrow.parquet as pq

    run, note = RunDir(part.path), read_json(part.path / "part.json")
    probes = [json.loads(line) for line in (run.facts / "probes.jsonl").read_text(encoding="utf-8").splitlines()]
    table = pq.read_table(run.probes)
    steps, place = np.unique(table["step"].to_numpy(), return_inverse=True)
    logprob_PS = np.full((len(probes), len(steps)), np.nan)
    logprob_PS[table["probe"].to_numpy(), place] = table["logprob"].to_numpy()
    assert np.isfinite(logprob_PS).all(), "every probe is measured at every probed step"
    records = np.array([int(probe["subject"].rpartition("/")[2]) for probe in probes])
    scenarios = np.array(note["scenarios"])
    injections = injection_steps("duplicate", 0, note["interval"], note["count"])
    depths = np.array([probe["relation"] for probe in probes])
    return Measured(steps - part.stage, logprob_PS, records, depths, scenarios[records], injections)


def pool(parts: Sequence[Measured]) -> Measured:
    """Runs of the same schedule, one after the other; their records are different ones."""
    first = parts[0]
    assert all(np.array_equal(each.steps, first.steps) for each in parts)
    shift = np.cumsum([0, *(int(each.owner_P.max()) + 1 for each in parts)])
    return Measured(
        first.steps,
        np.concatenate([each.logprob_PS for each in parts]),
        np.concatenate([each.owner_P + more for each, more in zip(parts, shift, strict=False)]),
        np.concatenate([each.depth_P for each in parts]),
        np.concatenate([each.scenario_P for each in parts]),
        first.injections,
    )


def effects(measured: Measured, window: int) -> np.ndarray:
    """E of every probe at every injection, float64 [P, I]; NaN where its record is not shown."""
    made = np.full((len(measured.logprob_PS), len(measured.injections)), np.nan)
    for probe, curve in enumerate(measured.logprob_PS):
        for turn, step in enumerate(measured.shown_at(probe)):
            made[probe, turn] = effectivity(measured.steps, curve, step, window)
    return made


def retained(measured: Measured, window: int, minimum_gain: float) -> tuple[np.ndarray, np.ndarray]:
    """R of every probe on a common logarithmic grid: t, int [T], and R, float64 [P, T], NaN where it says nothing."""
    # A grid that every probe reaches: the scenario that is shown longest ends first.
    last = int(measured.steps[-1]) - (measured.injections[-1] + window)
    t_T = np.unique(np.round(np.geomspace(1, max(last, 3), GRID_POINTS)).astype(int))
    made = np.full((len(measured.logprob_PS), len(t_T)), np.nan)
    for probe in np.flatnonzero(measured.scenario_P != "control").tolist():
        curve, shown = measured.logprob_PS[probe], measured.shown_at(probe)
        found = retainability(measured.steps, curve, shown, window, minimum_gain)
        if found is not None:
            t, ratio = found
            made[probe] = np.interp(t_T, np.concatenate([[0], t]), np.concatenate([[1.0], ratio]))
    return t_T, made


def summarise_group(
    measured: Measured, chosen: np.ndarray, effect_PI: np.ndarray, t_T: np.ndarray, kept_PT: np.ndarray, resamples: int
) -> dict[str, Any]:
    """What one scenario and depth shows: effectivity, decay, both fits, with intervals over records."""
    owner = measured.owner_P[chosen]

    def interval(statistic: Callable[[np.ndarray], float], among: np.ndarray) -> list[float]:
        return cluster_bootstrap(measured.owner_P[among], lambda n: statistic(among[n]), resamples=resamples)

    first = interval(lambda n: float(effect_PI[n, 0].mean()), chosen)
    row: dict[str, Any] = {"probes": len(chosen), "records": len(np.unique(owner)), "first_effectivity": first}
    row["effectivity"] = interval(lambda n: float(np.nanmean(effect_PI[n])), chosen)
    row["rises"] = float((effect_PI[chosen, 0] > 0).mean())
    usable = chosen[np.isfinite(kept_PT[chosen, 0])]
    row["retained_probes"] = len(usable)
    if len(usable) < 2 or measured.scenario_P[chosen[0]] == "control":
        return row
    mean_T = kept_PT[usable].mean(axis=0)
    power, exponential = fit_power(t_T, mean_T), fit_exponential(t_T, mean_T)
    row["decay"] = interval(lambda n: fit_power(t_T, kept_PT[n].mean(axis=0)).decay, usable)
    row["power"] = {**asdict(power), "x_intercept": finite(power.x_intercept)}
    row["exponential"] = asdict(exponential)
    few = max(10, resamples // 5)  # the exponential fit is the dear one

    def lead(n: np.ndarray) -> float:
        mean = kept_PT[usable[n]].mean(axis=0)
        return fit_power(t_T, mean).r2 - fit_exponential(t_T, mean).r2

    row["power_r2_lead"] = cluster_bootstrap(measured.owner_P[usable], lead, resamples=few)
    row["retained"] = {"t": t_T.tolist(), "mean": mean_T.tolist()}
    return row


def finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def summarise(measured: Measured, settings: AcquisitionSettings) -> dict[str, Any]:
    """One condition: a row for each scenario and depth, and the comparisons that the claims rest on."""
    effect_PI = effects(measured, settings.window)
    t_T, kept_PT = retained(measured, settings.window, settings.minimum_gain)
    groups: dict[str, Any] = {}
    for scenario in SCENARIOS:
        for depth in DEPTHS:
            chosen = measured.of(scenario, depth)
            if len(chosen):
                row = summarise_group(measured, chosen, effect_PI, t_T, kept_PT, settings.resamples)
                groups[f"{scenario}/{depth}"] = row
    return {"groups": groups, "comparisons": comparisons(measured, effect_PI, t_T, kept_PT, settings.resamples)}


def comparisons(
    measured: Measured, effect_PI: np.ndarray, t_T: np.ndarray, kept_PT: np.ndarray, resamples: int
) -> dict[str, list[float]]:
    """Differences with intervals over records, each [value, low, high]; left out where there is nothing to compare."""
    first_P, mean_P = effect_PI[:, 0], np.nanmean(effect_PI, axis=1)
    shown_P = measured.scenario_P != "control"
    depth = {name: shown_P & (measured.depth_P == name) for name in DEPTHS}
    memory = {name: (measured.depth_P == "memorization") & (measured.scenario_P == name) for name in SCENARIOS}

    def mean_of(values_P: np.ndarray) -> Callable[[np.ndarray], float]:
        return lambda n: float(values_P[n].mean())

    def decay(n: np.ndarray) -> float:
        rows = n[np.isfinite(kept_PT[n, 0])]
        return fit_power(t_T, kept_PT[rows].mean(axis=0)).decay if len(rows) else float("nan")

    def later(n: np.ndarray) -> float:
        return float(first_P[n].mean() - effect_PI[n, 1:].mean())

    wanted: dict[str, tuple[np.ndarray, np.ndarray, Callable[[np.ndarray], float]]] = {
        "E memorization - semantic": (depth["memorization"], depth["semantic"], mean_of(mean_P)),
        "E semantic - composition": (depth["semantic"], depth["composition"], mean_of(mean_P)),
        "E duplicate - control": (memory["duplicate"], memory["control"], mean_of(first_P)),
        "E duplicate - paraphrase": (memory["duplicate"], memory["paraphrase"], mean_of(mean_P)),
        "decay duplicate - paraphrase": (memory["duplicate"], memory["paraphrase"], decay),
    }
    made = {name: difference(measured, *each, resamples) for name, each in wanted.items()}
    again = np.flatnonzero(memory["duplicate"])
    if effect_PI.shape[1] > 1 and len(again):
        owners = measured.owner_P[again]
        made["E first - later"] = cluster_bootstrap(owners, lambda n: later(again[n]), resamples=resamples)
    return {name: value for name, value in made.items() if value is not None and all(np.isfinite(value))}


def difference(
    measured: Measured, a_P: np.ndarray, b_P: np.ndarray, statistic: Callable[[np.ndarray], float], resamples: int
) -> list[float] | None:
    """A statistic of the probes in mask `a_P` less that of those in `b_P`, with its interval; None if one is empty."""
    if not a_P.any() or not b_P.any():
        return None
    both = np.flatnonzero(a_P | b_P)

    def value(drawn: np.ndarray) -> float:
        n = both[drawn]
        a, b = n[a_P[n]], n[b_P[n]]
        # A draw may miss one side altogether; it then says nothing.
        return statistic(a) - statistic(b) if len(a) and len(b) else float("nan")

    return cluster_bootstrap(measured.owner_P[both], value, resamples=resamples)


def curves(measured: Measured) -> dict[str, list[float]]:
    """Mean log-probability over steps, for every scenario and depth."""
    made = {}
    for scenario in SCENARIOS:
        for depth in DEPTHS:
            chosen = measured.of(scenario, depth)
            if len(chosen):
                made[f"{scenario}/{depth}"] = measured.logprob_PS[chosen].mean(axis=0).tolist()
    return made


def analyse(settings: AcquisitionSettings, parts: Sequence[ContinuedPart]) -> dict[str, Any]:
    """The summary of a study whose runs are finished: per condition, then the claims. A function of the runs alone."""
    conditions: dict[str, list[ContinuedPart]] = {}
    for part in parts:
        conditions.setdefault(part.label, []).append(part)
    made = []
    for label, members in conditions.items():
        measured = pool([read_part(part) for part in members])
        first = members[0]
        entry: dict[str, Any] = {"label": label, "stage": first.stage, "batch": first.batch, "copies": first.copies}
        entry |= {"seeds": [part.seed for part in members], "injections": measured.injections}
        entry |= {"steps": measured.steps.tolist(), "curves": curves(measured), **summarise(measured, settings)}
        made.append(entry)
    notes = [read_json(part.path / "part.json") for part in parts]
    ends = [read_json(part.path / "done.json") for part in parts]
    summary: dict[str, Any] = {
        "study": "acquisition",
        "settings": asdict(settings),
        "scenarios": {name: notes[0]["scenarios"].count(name) for name in SCENARIOS},
        "leaking_probes_left_out": notes[0]["leaking_probes"],
        "probes": ends[0]["probes"],
        "probing_share": sum(end["seconds"]["probing"] for end in ends)
        / max(sum(e["seconds"]["all"] for e in ends), 1e-9),
        "seconds": sum(end["seconds"]["all"] for end in ends),
        "model": describe_model(parts[0].path),
        "conditions": made,
    }
    summary["claims"] = judge(summary)
    return summary


def describe_model(path: Path) -> dict[str, Any]:
    from headwater.configs import load_config
    from headwater.train.settings import PretrainSettings

    settings = load_config(PretrainSettings, path / "config.yaml")
    kept = ("layers", "hidden", "heads", "ffn_hidden")
    shape = {name: getattr(settings.model, name) for name in kept}
    return {**shape, "batch": settings.train.global_batch, "seq_len": settings.corpus.seq_len}
