"""The page of the acquisition study: curves with the injections marked, retention with its fits, tables, claims."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from headwater.launch.studies.acquisition.metrics import Fit
from headwater.launch.studies.acquisition.parts import ContinuedPart
from headwater.launch.studies.acquisition.settings import AcquisitionSettings
from headwater.launch.studies.drawing import as_png, figure
from headwater.launch.studies.page import write_page
from headwater.train.facts.fictional import DEPTHS, SCENARIOS

DRAWN = {
    "curves": "Mean log-probability over steps, by scenario and depth",
    "retention": "Retained share over steps, with fits",
}
"""What a condition's figures show."""

COLOURS = {"memorization": "#1f4e79", "semantic": "#c55a11", "composition": "#4f8a3c"}
BODY = """<h1>How facts are acquired and forgotten</h1>
<p>After Chang et al. 2024 (arXiv 2406.11813). {{ s.probes }} probes; seeds {{ s.settings.seeds | join(", ") }};
records: {% for name, n in s.scenarios.items() %}{{ n }} {{ name }}{{ ", " if not loop.last }}{% endfor %}.
Probing took {{ "%.0f" | format(100 * s.probing_share) }}% of {{ "%.0f" | format(s.seconds / 60) }} minutes of training.
{% if s.leaking_probes_left_out %}{{ s.leaking_probes_left_out }} probes whose prompt holds the target are left out.
{% endif %}Intervals are 95%, over records drawn with replacement.</p>
<h2>The paper's claims</h2>
{% include "claims" %}{% for c in s.conditions %}{% set number = loop %}
<h2>{{ c.label | capitalize }}</h2>
{% for name, alt in drawn.items() %}
<img alt="{{ alt }}" src="data:image/png;base64,{{ images[name ~ "-" ~ number.index0] }}">
{% endfor %}
<div class="scroll"><table><tr><th>scenario<th>depth<th class="n">probes<th class="n">first E<th class="n">mean E
<th class="n">decay a decade<th class="n">R² power<th class="n">R² exponential<th class="n">x-intercept, steps</tr>
{% for name, g in c.groups.items() %}<tr><td>{{ name.split("/")[0] }}<td>{{ name.split("/")[1] }}
<td class="n">{{ g.probes }}
<td class="n">{{ g.first_effectivity | i }}<td class="n">{{ g.effectivity | i }}<td class="n">{{ g.decay | i }}
<td class="n">{{ g.get("power", {}).get("r2") | f }}<td class="n">{{ g.get("exponential", {}).get("r2") | f }}
<td class="n">{{ g.get("power", {}).get("x_intercept") | g }}</tr>
{% endfor %}</table></div>
{% endfor %}
<p><small>E: rise of a target's mean log-probability, in nats, from just before an injection to its highest value in the
window after it. Decay: fall of the retained share for every tenfold of steps. X-intercept: where the power law reaches
zero. A group whose probes gained too little has no fit. The figures are in summary.json.</small></p>
"""


def write_report(settings: AcquisitionSettings, parts: Sequence[ContinuedPart], summary: dict[str, Any]) -> Path:
    """Writes summary.json, and the page and its images under report/; returns the page."""
    figures = {}
    for number, condition in enumerate(summary["conditions"]):
        figures[f"curves-{number}"] = draw_curves(condition)
        figures[f"retention-{number}"] = draw_retention(condition)
    filters = {"i": format_interval, "f": lambda x: _number(x, "{:.3f}"), "g": lambda x: _number(x, "{:.3g}")}
    out = Path(settings.out)
    return write_page(out, summary, BODY, figures, title="Acquisition of facts", filters=filters, drawn=DRAWN)


def _number(value: Any, form: str) -> str:
    return form.format(value) if isinstance(value, int | float) else "–"


def format_interval(value: Any) -> str:
    if not isinstance(value, list) or any(each is None for each in value):
        return "–"
    return f"{value[0]:.3f} [{value[1]:.3f}, {value[2]:.3f}]"


def draw_curves(condition: dict[str, Any]) -> bytes:
    """Mean log-probability over steps, a panel for each scenario; injections are marked."""
    present = [name for name in SCENARIOS if any(key.startswith(name + "/") for key in condition["curves"])]
    drawn, axes = figure(len(present), 4.2 * len(present), 3.4, sharey=True)
    for axis, scenario in zip(axes, present, strict=True):
        for depth in DEPTHS:
            if f"{scenario}/{depth}" in condition["curves"]:
                axis.plot(
                    condition["steps"], condition["curves"][f"{scenario}/{depth}"], color=COLOURS[depth], label=depth
                )
        shown = {"control": [], "once": condition["injections"][:1]}.get(scenario, condition["injections"])
        for step in shown:
            axis.axvline(step, color="#999", linewidth=0.7, linestyle=":")
        axis.set_title(scenario)
        axis.set_xlabel("steps after the stage (dotted: injections)")
        axis.grid(alpha=0.25)
    axes[0].set_ylabel("mean log-probability of the target")
    axes[0].legend(fontsize=8)
    return as_png(drawn)


def draw_retention(condition: dict[str, Any]) -> bytes:
    """Retained share over log steps, a panel for each scenario; solid: power law, dashed: exponential."""
    present = [name for name in SCENARIOS if name != "control"]
    drawn, axes = figure(len(present), 4.2 * len(present), 3.4, sharey=True)
    for axis, scenario in zip(axes, present, strict=True):
        for depth in DEPTHS:
            row = condition["groups"].get(f"{scenario}/{depth}", {})
            if "power" not in row:
                continue
            t = np.array(row["retained"]["t"])
            axis.semilogx(t, row["retained"]["mean"], ".", color=COLOURS[depth], label=depth)
            for kind, line in (("power", "-"), ("exponential", "--")):
                fit = Fit(kind, row[kind]["level"], row[kind]["decay"], row[kind]["r2"])
                axis.semilogx(t, fit.at(t), line, color=COLOURS[depth], linewidth=1)
        axis.set_title(scenario)
        axis.set_xlabel("steps after the last maximum")
        axis.grid(alpha=0.25)
    axes[0].set_ylabel("retained share (solid: power law)")
    if axes[0].get_legend_handles_labels()[0]:
        axes[0].legend(fontsize=8)
    return as_png(drawn)
