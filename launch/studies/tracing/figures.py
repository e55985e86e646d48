"""The figures of the study of tracing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from headwater.launch.studies.drawing import as_png, figure
from headwater.launch.studies.tracing.classes import CLASSES
from headwater.launch.studies.tracing.settings import LABELS, METHODS

COLOURS = {"trackstar": "#1f4e79", "headwater": "#c55a11", "bm25": "#4f8a3c", "random": "#999999"}
KINDS = dict(zip(CLASSES, ("#1f4e79", "#5b8db8", "#c55a11", "#e5a36f", "#8fb08c", "#dddddd"), strict=True))
STYLES = ("-", "--", ":", "-.")


def draw_growth(found: Mapping[str, Any]) -> bytes:
    """MRR, recall@10 and tail-patch over weights, a line for each amount of tokens and method. PNG bytes."""
    weights = list(found["parameters"].values())
    panels = {"mrr": "MRR", "recall@10": "recall@10", "tail_patch": "tail-patch"}
    drawn, axes = figure(len(panels), 4.2 * len(panels) + 1.6, 3.6)
    for axis, (metric, title) in zip(axes, panels.items(), strict=True):
        for method in METHODS:
            for number, step in enumerate(found["amounts"]):
                each = [row[str(step)]["methods"][method][metric] for row in found["rows"].values()]
                known = [(x, value) for x, value in zip(weights, each, strict=True) if value]
                if not known:
                    continue
                middle = [value[0] for _, value in known]
                error = [[v[0] - v[1] for _, v in known], [v[2] - v[0] for _, v in known]]
                style = {"color": COLOURS[method], "linestyle": STYLES[number % len(STYLES)], "capsize": 2}
                label = f"{LABELS[method]}, {step} steps"
                axis.errorbar([x for x, _ in known], middle, yerr=error, label=label, linewidth=1.2, **style)
        axis.set_xscale("log")
        axis.set_xlabel("weights")
        axis.set_title(title, fontsize=10)
        axis.grid(alpha=0.25)
    axes[-1].legend(fontsize=6, loc="upper left", bbox_to_anchor=(1.02, 1))
    return as_png(drawn)


def draw_kinds(found: Mapping[str, Any]) -> bytes:
    """Shares of the kinds of passages: by method, by rank, by how well the fact is known. Stacked bars, PNG bytes."""
    by_rank = {f"{LABELS[m]}, {name}": each for m, row in found["by_rank"].items() for name, each in row.items()}
    by_known = {f"{LABELS[m]}, {name}": each for m, row in found["by_known"].items() for name, each in row.items()}
    by_method = {LABELS[method]: each for method, each in found["by_method"].items()}
    panels = [("first ten, by method", by_method), ("by rank", by_rank), ("first ten, by how well known", by_known)]
    drawn, axes = figure(3, 17, 4.4)
    for axis, (title, bars) in zip(axes, panels, strict=True):
        stack(axis, bars)
        axis.set_title(title, fontsize=10)
    handles, labels = axes[0].get_legend_handles_labels()
    axes[0].legend(handles, labels, fontsize=7, loc="lower left", bbox_to_anchor=(0, -0.42), ncol=3)
    return as_png(drawn)


def stack(axis: Any, bars: Mapping[str, Mapping[str, Sequence[float] | None]]) -> None:
    """A bar for each name, of the shares of all kinds."""
    left = [0.0] * len(bars)
    places = list(range(len(bars)))[::-1]
    for kind in CLASSES:
        widths = [share[0] if (share := each[kind]) else 0.0 for each in bars.values()]
        axis.barh(places, widths, left=left, color=KINDS[kind], label=kind)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axis.set_yticks(places, list(bars), fontsize=8)
    axis.set_xlim(0, 1)


def draw_recipe(found: Mapping[str, Any]) -> bytes:
    """MRR of every row of the recipe, with intervals over the questions' subjects. PNG bytes."""
    rows = list(found["rows"].values())
    drawn, axes = figure(1, 8, 0.35 * len(rows) + 1)
    for place, row in enumerate(reversed(rows)):
        mean, low, high = row["mrr"]
        colour = "#1f4e79" if row["claimed"] else "#999999"
        axes[0].barh(place, mean, color=colour, xerr=[[mean - low], [high - mean]], capsize=3)
    axes[0].set_yticks(range(len(rows)), [row["label"] for row in reversed(rows)], fontsize=8)
    axes[0].set_title("MRR on the real model", fontsize=10)
    axes[0].grid(axis="x", alpha=0.25)
    return as_png(drawn)
