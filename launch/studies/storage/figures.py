"""The figures of the storage study, most of them the paper's with our numbers. All return PNG bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from headwater.launch.studies.drawing import as_png, figure
from headwater.launch.studies.storage.claims.ways import LABELS
from headwater.launch.studies.storage.measured import METHODS
from headwater.launch.studies.storage.probes import PLACES
from headwater.launch.studies.storage.shares import KINDS
from headwater.train.facts.biographies import VARIANTS

COLOURS = {"mixed": "#1f4e79", "full": "#c55a11", "lora": "#4f8a3c"}
KIND_COLOURS = ("#1f4e79", "#c55a11", "#f0a36b", "#f5d7bf", "#7fa7d0", "#d9d9d9")
LINES = ("#1f4e79", "#c55a11", "#4f8a3c", "#7a5195", "#999999")
PUBLISHED = {
    "single": 0.097,
    "single+permute1": 0.044,
    "single+permute5": 0.70,
    "multi5": 0.41,
    "multi5+permute": 0.966,
}
"""The paper's accuracies after pretraining and fine-tuning, of the variants that its text gives."""


def draw_accuracy(summary: dict[str, Any]) -> bytes:
    """Bars by variant and method with their intervals, and the majority baseline."""
    names = list(summary["accuracy"])
    drawn, (axis,) = figure(1, max(6.0, 0.75 * len(names) + 2), 4.2)
    present = [method for method in METHODS if any(method in summary["accuracy"][name] for name in names)]
    width = 0.8 / max(len(present), 1)
    for turn, method in enumerate(present):
        rows = [
            (k, summary["accuracy"][n][method]["asked"])
            for k, n in enumerate(names)
            if method in summary["accuracy"][n]
        ]
        x = np.array([k + (turn - (len(present) - 1) / 2) * width for k, _ in rows])
        value, low, high = (np.array([row[place] for _, row in rows]) for place in range(3))
        axis.bar(x, value, width, color=COLOURS[method], label=LABELS[method])
        axis.errorbar(x, value, [value - low, high - value], fmt="none", ecolor="#333", linewidth=1)
    axis.axhline(summary["majority"]["mean"], color="#a33", linestyle="--", linewidth=1, label="commonest value")
    axis.set_xticks(range(len(names)), names, rotation=40, ha="right", fontsize=8)
    axis.set_ylim(0, 1)
    axis.set_ylabel("exact answers, asked people")
    axis.legend(fontsize=8, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1), frameon=False)
    axis.grid(alpha=0.25, axis="y")
    return as_png(drawn)


def draw_curves(summary: dict[str, Any]) -> bytes:
    drawn, (axis,) = figure(1, 6.5, 3.6)
    for name, curve in summary["curves"].items():
        axis.plot([int(step) for step in curve], list(curve.values()), marker=".", label=name)
    axis.axhline(summary["majority"]["mean"], color="#a33", linestyle="--", linewidth=1)
    axis.set_xlabel("steps")
    axis.set_ylabel("exact answers, asked people")
    axis.set_ylim(0, 1)
    axis.legend(fontsize=8)
    axis.grid(alpha=0.25)
    return as_png(drawn)


def heat(axis: Any, values: np.ndarray, rows: list[str], columns: list[str]) -> None:
    axis.imshow(values, vmin=0, vmax=1, cmap="Blues", aspect="auto")
    axis.set_xticks(
        range(len(columns)), [name.replace("_", " ") for name in columns], rotation=40, ha="right", fontsize=8
    )
    axis.set_yticks(range(len(rows)), rows, fontsize=8)
    for (row, column), value in np.ndenumerate(values):
        if not np.isfinite(value):
            continue
        colour = "white" if value > 0.6 else "#222"
        axis.text(column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=8, color=colour)


def draw_q_probes(summary: dict[str, Any]) -> bytes:
    names = list(summary["q_probes"])
    drawn, (axis,) = figure(1, 6.5, 0.32 * len(names) + 1.8)
    values = [summary["q_probes"][name]["accuracy"] for name in names] + [summary["q_probes"][names[0]]["majority"]]
    heat(axis, np.array(values), [*names, "commonest value"], summary["attributes"])
    return as_png(drawn)


def draw_table(summary: Mapping[str, Any]) -> bytes:
    """The sixteen variants by attribute, fine-tuned (all weights), with the mean and the paper's where it is given."""
    rows = {name: summary["accuracy"][name]["full"] for name in VARIANTS if "full" in summary["accuracy"].get(name, {})}
    values = [
        [*(row["by_attribute"][a] for a in summary["attributes"]), row["asked"][0], PUBLISHED.get(name, np.nan)]
        for name, row in rows.items()
    ]
    drawn, (axis,) = figure(1, 8.5, 0.34 * len(rows) + 1.8)
    heat(axis, np.array(values), list(rows), [*summary["attributes"], "all", "the paper's"])
    return as_png(drawn)


def draw_places(found: Mapping[str, Any], attributes: Sequence[str]) -> bytes:
    """P-probes: a heat map of places and attributes for each variant, and their means over places with intervals."""
    names = list(found["places"])
    drawn, axes = figure(len(names) + 1, 4.6 * (len(names) + 1), 4.4)
    for axis, name in zip(axes, names, strict=False):
        heat(axis, np.array(found["places"][name]["accuracy"]), list(PLACES), list(attributes))
        axis.set_title(name, fontsize=10)
    last = axes[-1]
    lines = {name: (each, "-") for name, each in found["places"].items()}
    lines |= {f"{name}, untrained": (each, "--") for name, each in found["untrained"].items()}
    for colour, (name, (each, style)) in zip(LINES * len(lines), lines.items(), strict=False):
        spread(last, range(len(PLACES)), list(each["by_place"].values()), name, colour, style)
    if names:
        last.axhline(np.mean(found["places"][names[0]]["majority"]), color="#a33", linestyle=":", linewidth=1)
    last.set_xticks(range(len(PLACES)), PLACES, rotation=40, ha="right", fontsize=8)
    finish(last, "accuracy over all attributes", "")
    return as_png(drawn)


def draw_rewriting(found: Mapping[str, Any]) -> bytes:
    """Answers over the share of the people whose biographies are rewritten."""
    drawn, (axis,) = figure(1, 6.5, 3.8)
    for colour, (key, label) in zip(
        LINES, (("all", "all"), ("rewritten", "rewritten"), ("others", "not rewritten")), strict=False
    ):
        rows = [(100 * row["share"], row[key]) for row in found["rows"].values() if row[key]]
        spread(axis, [x for x, _ in rows], [value for _, value in rows], label, colour)
    finish(axis, "exact answers, asked people", "per cent of the people rewritten")
    return as_png(drawn)


def draw_mixing(found: Mapping[str, Any]) -> bytes:
    """Answers over when questions are met: the middle of the stretch; afterwards is fine-tuning."""
    drawn, axes = figure(len(found), 5.5 * len(found), 3.8, sharey=True)
    for axis, (variant, row) in zip(axes, found.items(), strict=True):
        for way, each in row["rows"].items():
            middle, half = 50 * (each["first"] + each["last"]), 50 * (each["last"] - each["first"])
            value, low, high = each["right"]
            error = [[value - low], [high - value]]
            label = {"mixed": "all the way", "full": "fine-tuned afterwards"}.get(way, f"steps {way}%")
            axis.errorbar([middle], [value], yerr=error, xerr=[half], marker="o", capsize=3, label=label)
        axis.set_title(variant, fontsize=10)
        axis.set_xlim(-3, 103)
        finish(axis, "exact answers, asked people", "per cent of the steps at which questions are met")
    return as_png(drawn)


def spread(
    axis: Any, x: Sequence[float], values: Sequence[Sequence[float] | None], label: str, colour: str, style: str = "-"
) -> None:
    """A line with its intervals, of what was measured."""
    known = [(at, value) for at, value in zip(x, values, strict=True) if value]
    middle = [value[0] for _, value in known]
    error = [[v[0] - v[1] for _, v in known], [v[2] - v[0] for _, v in known]]
    places = [at for at, _ in known]
    axis.errorbar(places, middle, yerr=error, color=colour, linestyle=style, marker=".", capsize=2, label=label)


def finish(axis: Any, y: str, x: str) -> None:
    axis.set_ylim(-0.03, 1.03)
    axis.set_ylabel(y)
    axis.set_xlabel(x)
    axis.legend(fontsize=7)
    axis.grid(alpha=0.25)


def draw_provenance(summary: dict[str, Any]) -> bytes:
    """Stacked shares for each variant, right and wrong answers apart."""
    bars = []
    for name, sides in summary["provenance"].items():
        for side in ("right", "wrong"):
            if sides[side]["questions"]:
                bars += [
                    (f"{name}, {side}: {scope}", sides[side][scope]["kinds"]) for scope in ("top", "all", "expected")
                ]
    drawn, (axis,) = figure(1, 8.5, 0.34 * len(bars) + 1.8)
    left = np.zeros(len(bars))
    for kind, colour in zip(KINDS, KIND_COLOURS, strict=True):
        values = np.array([kinds[kind] for _, kinds in bars])
        axis.barh(range(len(bars)), values, left=left, color=colour, label=kind)
        left += values
    axis.set_yticks(range(len(bars)), [label.replace("expected", "share of passages") for label, _ in bars], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlim(0, 1)
    axis.legend(fontsize=7, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1))
    return as_png(drawn)
