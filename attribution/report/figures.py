"""Geometry of the page's drawings, in per cent of each drawing: the page scales them without scaling type."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from headwater.attribution.drawing.chart import Axis, format_tick, numbers, path, plain, spoken, spread
from headwater.attribution.evaluation.table import COLUMNS, LABELS, format_value, ordered
from headwater.attribution.report.inputs import ProbeCurves, RunData

BINS = 120
"""Bars of the injection histogram at most."""

CHART_FACTS = 600
"""Facts that can be picked in the chart at most; more would only make the page heavy."""

CHART_STEPS = 240
"""Probed steps drawn at most, for the same reason."""


def relations(data: RunData) -> list[str]:
    """Relations in the order in which the probes name them."""
    return list(dict.fromkeys(str(probe.get("relation", "fact")) for probe in data.probes))


def thinned(data: RunData) -> RunData:
    """The run with at most `CHART_STEPS` probed steps, evenly taken, the first and the last among them."""
    curves = data.curves
    steps = len(curves.steps_S)
    if steps <= CHART_STEPS:
        return data
    kept = np.unique(np.linspace(0, steps - 1, CHART_STEPS).round().astype(int))
    parts = (curves.steps_S, curves.prob_SP, curves.logprob_SP, curves.exact_SP)
    return replace(data, curves=ProbeCurves(*(part[kept] for part in parts)))


def left_out(data: RunData) -> str | None:
    """What the chart does not draw of the run, in words."""
    steps, facts = len(data.curves.steps_S), len(data.probes)
    parts = [
        f"{CHART_STEPS:,} of {steps:,} probed steps" if steps > CHART_STEPS else "",
        f"the first {CHART_FACTS:,} of {facts:,} facts" if facts > CHART_FACTS else "",
    ]
    return " and ".join(part for part in parts if part) or None


def step_axis(data: RunData) -> Axis:
    last = max(data.steps, int(data.curves.steps_S[-1]), 1)
    return Axis(min(0, int(data.curves.steps_S[0])), last)


def curve_chart(data: RunData) -> dict[str, Any]:
    """The probe curves: means per relation in both scales, their labels, and the injection histogram."""
    curves, axis = data.curves, step_axis(data)
    names = relations(data)
    members = {
        name: [number for number, probe in enumerate(data.probes) if str(probe.get("relation", "fact")) == name]
        for name in names
    }
    scales = {
        "prob": (curves.prob_SP, Axis(0, 1)),
        "logprob": (curves.logprob_SP, Axis(floor_of(curves.logprob_SP), 0)),
    }
    xs = [axis.place(step) for step in curves.steps_S.tolist()]
    panels = {}
    for key, (values_SP, scale) in scales.items():
        lines: list[dict[str, Any]] = []
        for number, name in enumerate(names):
            mean_S = mean_known(values_SP[:, members[name]])
            ys = [scale.place(value) if np.isfinite(value) else math.nan for value in mean_S]
            last = next((y for y in reversed(ys) if not math.isnan(y)), 0.0)
            lines.append(
                {
                    "name": spoken(name),
                    "colour": number % 8,
                    "path": path(xs, ys),
                    "end": last,
                    "last": plain(float(mean_S[-1])) if np.isfinite(mean_S[-1]) else "–",
                    "values": numbers(mean_S, 4),
                }
            )
        for line, place in zip(lines, spread([line["end"] for line in lines], 6.2), strict=True):
            line["label"] = place
        ticks = [(scale.place(tick), format_tick(tick)) for tick in scale.ticks()]
        panels[key] = {"lines": lines, "ticks": ticks, "low": scale.low, "high": scale.high}
    return {
        "panels": panels,
        "xticks": [(axis.place(tick), f"{tick:,.0f}") for tick in axis.ticks(6)],
        "low": axis.low,
        "high": axis.high,
        "histogram": injection_histogram(data, axis),
    }


def mean_known(values_SP: np.ndarray) -> np.ndarray:
    """The mean of each step's measured probes, [S]; NaN where none was measured."""
    known_S = np.isfinite(values_SP).sum(axis=1)
    return np.where(known_S > 0, np.nansum(values_SP, axis=1) / np.maximum(known_S, 1), np.nan)


def floor_of(logprob_SP: np.ndarray) -> float:
    """A whole number below all but the lowest hundredth of the log-probabilities."""
    finite = logprob_SP[np.isfinite(logprob_SP)]
    return float(min(-1, math.floor(np.quantile(finite, 0.01)))) if len(finite) else -1.0


def injection_histogram(data: RunData, axis: Axis) -> dict[str, Any] | None:
    """Passages injected per step, in at most `BINS` bins."""
    if not data.schedule:
        return None
    steps = np.array([step for each in data.schedule.values() for step in each])
    span = axis.high - axis.low
    bins = int(min(BINS, span))
    # Steps are whole numbers, the first is 1: half a step to the right, every bin holds as many of them.
    counts, edges = np.histogram(steps, bins=bins, range=(axis.low + 0.5, axis.high + 0.5))
    per_step = counts / (span / bins)
    top = float(per_step.max())
    bars = [
        {"x": axis.place(edge - 0.5), "w": round(100 / bins, 3), "h": round(100 * value / top, 2)}
        for edge, value in zip(edges[:-1], per_step, strict=True)
        if value
    ]
    return {"bars": bars, "peak": int(np.bincount(steps).max()), "total": len(steps), "passages": len(data.schedule)}


def chart_facts(data: RunData) -> list[dict[str, Any]]:
    """What it takes to draw any one fact: its two curves and the steps at which its gold passages were injected."""
    names = relations(data)
    rows = []
    for number, probe in enumerate(data.probes[:CHART_FACTS]):
        steps = sorted(step for gold in probe.get("gold") or () for step in (data.schedule or {}).get(gold, ()))
        rows.append(
            {
                "id": str(probe["example_id"]),
                "subject": str(probe.get("subject", probe["example_id"])),
                "relation": names.index(str(probe.get("relation", "fact"))),
                "prompt": probe["prompt"],
                "target": probe["target"],
                "gold": len(probe.get("gold") or ()),
                "prob": numbers(data.curves.prob_SP[:, number], 4),
                "logprob": numbers(data.curves.logprob_SP[:, number], 3),
                "seen": steps,
            }
        )
    return rows


def forest(table: dict[str, Any]) -> list[dict[str, Any]]:
    """One panel per metric: its axis, and each method's mean and interval placed on it. The best methods are marked."""
    methods = table["methods"]
    panels = []
    for metric, label in COLUMNS.items():
        holding = [name for name in ordered(list(methods)) if metric in methods[name]]
        if not holding:
            continue
        axis = metric_axis([methods[name][metric] for name in holding], signed=metric == "tail_patch")
        best = best_methods(methods, metric)
        rows = []
        for name in holding:
            mean, low, high = methods[name][metric]
            rows.append(
                {
                    "method": name,
                    "label": LABELS.get(name, name),
                    "mean": format_value(metric, mean),
                    "low": format_value(metric, low),
                    "high": format_value(metric, high),
                    "at": axis.place(mean),
                    "from": axis.place(low),
                    "width": round(axis.place(high) - axis.place(low), 3),
                    "best": name in best,
                }
            )
        ticks = [(axis.place(tick), format_tick(tick)) for tick in axis.ticks(4)]
        zero = axis.place(0) if axis.low < 0 else None
        panels.append({"metric": metric, "label": label, "rows": rows, "ticks": ticks, "zero": zero})
    return panels


def metric_axis(intervals: Sequence[Sequence[float]], *, signed: bool) -> Axis:
    """0 to 1 for shares that fill it; else from just below the lowest bound (or 0) to just above the highest."""
    if not signed and max(each[2] for each in intervals) > 0.6:
        return Axis(0.0, 1.0)
    low = min(0.0, *(each[1] for each in intervals))
    high = max(1e-3, *(each[2] for each in intervals))
    pad = 0.04 * (high - low)
    return Axis(low - pad if low < 0 else 0.0, high + pad)


def best_methods(methods: dict[str, Any], metric: str) -> list[str]:
    """The method with the highest mean, and those whose mean equals it; gold is the yardstick, not a method."""
    means = {name: row[metric][0] for name, row in methods.items() if metric in row and name != "gold"}
    top = max(means.values(), default=math.nan)
    return [name for name, mean in means.items() if math.isclose(mean, top, abs_tol=5e-4)]
