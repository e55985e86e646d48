"""The table and the plots of a sweep: what is finished is in them, and what failed or is missing is named."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from headwater.launch.ablate.cells import Cell, expand
from headwater.launch.ablate.settings import AblateSettings
from headwater.launch.studies.drawing import figure, save
from headwater.train.artifacts import RunDir, read_json, write_bytes, write_json

METRICS = {
    "pretrain": ("loss", "probe_logprob", "probe_peak", "probe_drop", "probe_exact"),
    "demo": ("headwater mrr", "trackstar mrr", "bm25 mrr", "headwater tail_patch", "trackstar tail_patch", "loss"),
    "trace": ("mrr", "recall@10", "precision@10", "tail_patch", "bm25 mrr", "random mrr"),
    "storage": ("mixed exact", "full exact", "lora exact", "q_probe", "majority", "next_token"),
}
"""The columns of the table, in order; those that no cell has are left out."""


def write_report(settings: AblateSettings, cells: list[Cell] | None = None) -> dict[str, Any]:
    """Writes table.json, cells.csv and plots under `out`, prints the table, and returns it."""
    cells = expand(settings) if cells is None else cells
    rows = [describe(settings.kind, cell) for cell in cells]
    factors = [name for name in (rows[0]["factors"] if rows else {}) if name != "seed"]
    metrics = [name for name in METRICS[settings.kind] if any(name in row["metrics"] for row in rows)]
    table = {
        "kind": settings.kind,
        "preset": settings.preset,
        "factors": factors,
        "metrics": metrics,
        "conditions": conditions(rows, factors, metrics),
        "cells": rows,
        "failed": {row["name"]: row["error"] for row in rows if row["state"] == "failed"},
    }
    out = Path(settings.out)
    write_json(out / "table.json", table)
    write_bytes(out / "cells.csv", as_csv(rows, factors, metrics).encode())
    if any(row["metrics"] for row in rows):
        plot(table, out)
    show(table, out)
    return table


def describe(kind: str, cell: Cell) -> dict[str, Any]:
    """A cell's factors, state (finished, failed, unfinished) and metrics."""
    row: dict[str, Any] = {"name": cell.name, "factors": cell.factors, "state": "unfinished", "metrics": {}}
    if cell.is_done():
        row["state"], row["metrics"] = "finished", read_metrics(kind, cell)
    elif (cell.path / "failed.json").exists():
        row["state"], row["error"] = "failed", read_json(cell.path / "failed.json")["error"]
    return row


def read_metrics(kind: str, cell: Cell) -> dict[str, float]:
    run = RunDir(cell.path)
    if kind == "storage":
        return storage_metrics(read_json(cell.path / "summary.json"))
    found = {} if kind == "trace" else training_metrics(run)
    if kind == "pretrain":
        return found
    methods = read_json(run.evaluation / "table.json")["methods"]
    for name, row in methods.items():
        for metric, value in row.items():
            if isinstance(value, list):
                found[metric if name == "trace" else f"{name} {metric}"] = value[0]
    return found


def storage_metrics(summary: dict[str, Any]) -> dict[str, float]:
    """Exact answers about asked people by way of training, and what stands beside them; means over variants."""
    rows = list(summary["accuracy"].values())
    wanted = {
        f"{method} exact": [row[method]["asked"][0] for row in rows if method in row]
        for method in ("mixed", "full", "lora")
    }
    wanted["q_probe"] = [row["mean"] for row in summary["q_probes"].values()]
    wanted["next_token"] = [row["next_token"] for each in summary["recall"].values() for row in each.values()]
    found = {name: sum(values) / len(values) for name, values in wanted.items() if values}
    return {**found, "majority": summary["majority"]["mean"]}


def training_metrics(run: RunDir) -> dict[str, float]:
    """Loss (mean of the last ten lines), and the probes' mean log-probability: last, highest, and the fall between."""
    import numpy as np
    import pyarrow.parquet as pq

    from headwater.train.callbacks import metrics

    lines = metrics.read_metrics(run.metrics)
    found = {"loss": float(np.mean([line["loss"] for line in lines[-10:]]))} if lines else {}
    if run.probes.exists():
        probes = pq.read_table(run.probes)
        steps, logprob = probes["step"].to_numpy(), probes["logprob"].to_numpy().astype(np.float64)
        means = [float(logprob[steps == step].mean()) for step in np.unique(steps)]
        exact = probes["exact"].to_numpy(zero_copy_only=False)[steps == steps.max()]
        found |= {"probe_logprob": means[-1], "probe_peak": max(means), "probe_drop": max(means) - means[-1]}
        found["probe_exact"] = float(exact.mean())
    return found


def conditions(rows: list[dict[str, Any]], factors: list[str], metrics: list[str]) -> list[dict[str, Any]]:
    """Cells that differ in nothing but the seed, together: mean, lowest and highest of each metric."""
    grouped: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        grouped.setdefault(json.dumps([row["factors"].get(name) for name in factors]), []).append(row)
    made = []
    for members in grouped.values():
        entry: dict[str, Any] = {"factors": {name: members[0]["factors"].get(name) for name in factors}}
        entry["cells"] = len(members)
        entry["finished"] = sum(row["state"] == "finished" for row in members)
        entry["metrics"] = {}
        for metric in metrics:
            values = [row["metrics"][metric] for row in members if metric in row["metrics"]]
            if values:
                entry["metrics"][metric] = [sum(values) / len(values), min(values), max(values)]
        made.append(entry)
    return made


def as_csv(rows: list[dict[str, Any]], factors: list[str], metrics: list[str]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["name", *factors, "seed", "state", *metrics, "error"])
    for row in rows:
        values = [row["metrics"].get(metric, "") for metric in metrics]
        levels = [row["factors"].get(name) for name in [*factors, "seed"]]
        writer.writerow([row["name"], *levels, row["state"], *values, row.get("error", "")])
    return text.getvalue()


def show(table: dict[str, Any], out: Path) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    view = Table(*table["factors"], *table["metrics"], "seeds", box=None, header_style="bold")
    for condition in table["conditions"]:
        cells = [
            "–" if metric not in condition["metrics"] else f"{condition['metrics'][metric][0]:.4f}"
            for metric in table["metrics"]
        ]
        levels = [str(level) for level in condition["factors"].values()]
        view.add_row(*map(Text, levels), *cells, f"{condition['finished']} of {condition['cells']}")
    console = Console(highlight=False, soft_wrap=True)
    console.print(view)
    for name, error in table["failed"].items():
        console.print(Text(f"failed: {name}: {error}", style="red"))
    console.print(Text(f"table: {out / 'table.json'}, {out / 'cells.csv'}; plots: {out / 'plots'}"))


def plot(table: dict[str, Any], out: Path) -> None:
    """One figure a metric: every condition, best first, and beside it each factor's levels averaged over the others."""
    factors = table["factors"]
    for metric in table["metrics"]:
        conditions = [each for each in table["conditions"] if metric in each["metrics"]]
        conditions.sort(key=lambda each: each["metrics"][metric][0])
        height = max(2.5, 0.26 * len(conditions) + 1)
        drawn, axes = figure(1 + len(factors), 6 + 2.2 * len(factors), height)
        _draw_conditions(axes[0], conditions, metric)
        for axis, factor in zip(axes[1:], factors, strict=True):
            _draw_factor(axis, conditions, metric, factor)
        save(drawn, out / "plots" / metric.replace("@", "_at_").replace(" ", "_"))


def _draw_conditions(axis: Any, drawn: Sequence[dict[str, Any]], metric: str) -> None:
    for place, condition in enumerate(drawn):
        mean, low, high = condition["metrics"][metric]
        axis.plot([low, high], [place, place], color="#9db4c8", linewidth=3, zorder=1)
        axis.plot([mean], [place], "o", color="#1f4e79", zorder=2)
    labels = [", ".join(str(level) for level in each["factors"].values()) or "all" for each in drawn]
    axis.set_yticks(range(len(drawn)), labels, fontsize=7)
    axis.set_xlabel(f"{metric} (bar: lowest to highest seed)")
    axis.grid(axis="x", alpha=0.3)


def _draw_factor(axis: Any, drawn: Sequence[dict[str, Any]], metric: str, factor: str) -> None:
    levels = list(dict.fromkeys(str(each["factors"][factor]) for each in drawn))
    means = []
    for level in levels:
        values = [each["metrics"][metric][0] for each in drawn if str(each["factors"][factor]) == level]
        values = [value for value in values if math.isfinite(value)]
        means.append(sum(values) / len(values) if values else float("nan"))
    axis.plot(range(len(levels)), means, "o-", color="#1f4e79")
    axis.set_xticks(range(len(levels)), levels, rotation=30, fontsize=7)
    axis.set_title(f"{factor}\n(mean over the rest)", fontsize=8)
    axis.margins(x=0.2)
    axis.grid(axis="y", alpha=0.3)
