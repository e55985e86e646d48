"""The figures of the acquisition study, most of them the paper's with our curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from headwater.launch.studies.acquisition.metrics import Fit
from headwater.launch.studies.drawing import as_png, figure
from headwater.train.facts.fictional import DEPTHS

COLOURS = {"memorization": "#1f4e79", "semantic": "#c55a11", "composition": "#4f8a3c"}
Figure = tuple[str, bytes]
"""What it shows, and its PNG."""


def groups(condition: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(name.split("/")[0] for name in condition["groups"]))


def draw_curves(condition: dict[str, Any]) -> bytes:
    """Mean log-probability over steps, a panel for each group; injections are marked."""
    present = groups(condition)
    drawn, axes = figure(len(present), 4.2 * len(present), 3.4, sharey=True)
    for axis, group in zip(axes, present, strict=True):
        for depth in DEPTHS:
            if f"{group}/{depth}" in condition["curves"]:
                curve = condition["curves"][f"{group}/{depth}"]
                axis.plot(condition["steps"], curve, color=COLOURS[depth], label=depth)
        if group in ("paraphrase", "duplicate", "once"):
            for step in condition["injections"][: 1 if group == "once" else None]:
                axis.axvline(step, color="#999", linewidth=0.7, linestyle=":")
        axis.set_title(group)
        axis.set_xlabel("steps after the stage (dotted: the first record's injections)")
        axis.grid(alpha=0.25)
    axes[0].set_ylabel("mean log-probability of the target")
    explain(axes[0])
    return as_png(drawn)


def draw_retention(condition: dict[str, Any]) -> bytes:
    """Retained share over log steps, a panel for each group; dots and solid: mean gains less drift, and their power
    law; dashed: the mean of single probes' shares, as the paper averages."""
    present = [name for name in groups(condition) if name != "control"]
    drawn, axes = figure(len(present), 4.2 * len(present), 3.4, sharey=True)
    for axis, group in zip(axes, present, strict=True):
        for depth in DEPTHS:
            row = condition["groups"].get(f"{group}/{depth}", {})
            if "pooled" in row and row["pooled"]["decay"]:
                t, fit = np.array(row["pooled"]["t"]), row["pooled"]
                axis.semilogx(t, fit["mean"], ".", color=COLOURS[depth], label=depth)
                law = Fit("power", fit["level"], fit["decay"][0], fit["r2"])
                axis.semilogx(t, law.at(t), "-", color=COLOURS[depth], linewidth=1)
            if "retained" in row:
                axis.semilogx(row["retained"]["t"], row["retained"]["mean"], "--", color=COLOURS[depth], linewidth=1)
        axis.set_title(group)
        axis.set_ylim(-0.5, 1.5)
        axis.set_xlabel("steps after the last maximum")
        axis.grid(alpha=0.25)
    axes[0].set_ylabel("retained share (solid: power law)")
    explain(axes[0])
    return as_png(drawn)


def compared_figures(summary: dict[str, Any]) -> dict[str, Figure]:
    """One figure for each comparison that was run, by name."""
    found, made = summary["measures"], {}
    if found["stages"]:
        image = draw_by_depth(found["stages"]["rows"], "updates of the base model")
        made["by-stage"] = ("Effectivity by depth of probe and stage of pretraining, less the controls'", image)
    if found["sizes"]:
        rows = {f"{found['sizes']['parameters'][name] / 1e6:.1f}M": row for name, row in found["sizes"]["rows"].items()}
        made["by-size"] = ("Effectivity by depth of probe and size of the model", draw_by_depth(rows, "weights"))
    if found["batches"]:
        made["by-batch"] = ("Decay of memorization a decade of steps, by batch size", draw_batches(found["batches"]))
    if found["threshold"]:
        alt = "What is left of a fact before it would be met again, by the interval of its meetings"
        image = draw_left(found["threshold"], "interval", "steps between meetings", "before the next one", 10)
        made["by-interval"] = (alt, image)
    if found["popularity"]:
        alt = "What is left of a fact at the end, by how often it was met"
        made["by-popularity"] = (alt, draw_left(found["popularity"], "meetings", "times met", "at the end", 2))
    return made


def explain(axis: Any) -> None:
    """A legend, if anything was drawn."""
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=8)


def with_errors(axis: Any, x: Sequence[float], values: Sequence[list[float] | None], **style: Any) -> None:
    """Points with their intervals, joined; points that could not be measured are left out."""
    known = [(place, value) for place, value in zip(x, values, strict=True) if value]
    if not known:
        return
    middle = [value[0] for _, value in known]
    errors = np.abs([[v[0] - v[1] for _, v in known], [v[2] - v[0] for _, v in known]])
    axis.errorbar([place for place, _ in known], middle, yerr=errors, marker="o", capsize=3, **style)
    axis.grid(alpha=0.25)


def draw_by_depth(rows: dict[str, Any], label: str) -> bytes:
    drawn, axes = figure(1, 5.4, 3.6)
    places = list(range(len(rows)))
    for shift, depth in enumerate(DEPTHS):
        x = [place + 0.06 * (shift - 1) for place in places]
        with_errors(axes[0], x, [row[depth] for row in rows.values()], color=COLOURS[depth], label=depth)
    axes[0].set_xticks(places, list(rows))
    axes[0].set_xlabel(label)
    axes[0].set_ylabel("effectivity, nats")
    explain(axes[0])
    return as_png(drawn)


def draw_batches(found: dict[str, Any]) -> bytes:
    drawn, axes = figure(1, 5.4, 3.6)
    for kind, colour in (("number", "#1f4e79"), ("share", "#c55a11")):
        rows = [row for row in found["rows"].values() if row["kind"] == kind]
        x = [found["batch"], *(row["batch"] for row in rows)]
        values = [found["decay"], *(row["decay"] for row in rows)]
        with_errors(axes[0], x, values, color=colour, label=f"same {kind} injected")
    axes[0].set_xscale("log", base=2)
    axes[0].set_xlabel("sequences a batch")
    axes[0].set_ylabel("decay of the retained share a decade")
    explain(axes[0])
    return as_png(drawn)


def draw_left(found: dict[str, Any], key: str, label: str, when: str, base: float) -> bytes:
    """What is left by depth, over a number of each row on a log axis of this base; the x-intercept, if one is found."""
    drawn, axes = figure(1, 5.4, 3.6)
    rows = list(found["rows"].values())
    for depth in DEPTHS:
        x = [row[key] for row in rows]
        with_errors(axes[0], x, [row[depth] for row in rows], color=COLOURS[depth], label=depth)
    axes[0].axhline(0, color="#555", linewidth=0.8)
    intercept = found.get("x_intercept")
    if intercept and intercept[0] < 6:
        axes[0].axvline(10 ** intercept[0], color="#999", linestyle=":", label="x-intercept")
    axes[0].set_xscale("log", base=base)
    axes[0].set_xlabel(label)
    axes[0].set_ylabel(f"left {when}, nats")
    explain(axes[0])
    return as_png(drawn)
