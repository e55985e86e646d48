"""The page of the acquisition study: curves with the injections marked, retention with its fits, tables, claims."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from headwater.launch.studies.acquisition.metrics import Fit
from headwater.launch.studies.acquisition.parts import Part
from headwater.launch.studies.acquisition.settings import AcquisitionSettings
from headwater.launch.studies.drawing import as_png, figure
from headwater.train.artifacts import write_bytes, write_json
from headwater.train.facts.fictional import DEPTHS, SCENARIOS

COLOURS = {"memorization": "#1f4e79", "semantic": "#c55a11", "composition": "#4f8a3c"}
TEMPLATE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Acquisition of facts</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0; font-size: .9rem; font-variant-numeric: tabular-nums }
td, th { padding: .3rem .7rem; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top }
td.n, th.n { text-align: right } img { max-width: 100% } .reproduced { color: #2c6e2f; font-weight: 600 }
.not-reproduced { color: #a33; font-weight: 600 } .scroll { overflow-x: auto } small { color: #555 }
</style>
<h1>How facts are acquired and forgotten</h1>
<p>After Chang et al. 2024 (arXiv 2406.11813). {{ s.probes }} probes; seeds {{ s.settings.seeds | join(", ") }};
records: {% for name, n in s.scenarios.items() %}{{ n }} {{ name }}{{ ", " if not loop.last }}{% endfor %}.
Probing took {{ "%.0f" | format(100 * s.probing_share) }}% of {{ "%.0f" | format(s.seconds / 60) }} minutes of training.
{% if s.leaking_probes_left_out %}{{ s.leaking_probes_left_out }} probes whose prompt holds the target are left out.
{% endif %}Intervals are 95%, over records drawn with replacement.</p>
<h2>The paper's claims</h2>
<div class="scroll"><table><tr><th>claim<th>status<th>measured<th>differs from the paper in</tr>
{% for c in s.claims %}<tr><td>{{ c.claim }}<td class="{{ c.status | replace(" ", "-") }}">{{ c.status }}
<td>{{ c.measured }}<td><small>{{ c.differs }}</small></tr>
{% endfor %}</table></div>
{% for c in s.conditions %}
<h2>{{ c.label | capitalize }}</h2>
{% for image in images[loop.index0] %}
<img alt="{{ image.alt }}" src="data:image/png;base64,{{ image.data }}">
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
</html>
"""


def write_report(settings: AcquisitionSettings, parts: Sequence[Part], summary: dict[str, Any]) -> Path:
    """Writes summary.json, and the page and its images under report/; returns the page."""
    import jinja2

    out = Path(settings.out)
    images = []
    for number, condition in enumerate(summary["conditions"]):
        drawn = [draw_curves(condition), draw_retention(condition)]
        for name, data in zip(("curves", "retention"), drawn, strict=True):
            write_bytes(out / "report" / f"{name}-{number}.png", data)
        alts = ("Mean log-probability over steps, by scenario and depth", "Retained share over steps, with fits")
        pairs = zip(alts, drawn, strict=True)
        images.append([{"alt": alt, "data": base64.b64encode(data).decode()} for alt, data in pairs])
    # NaN is no JSON; what could not be computed is null.
    summary = json.loads(json.dumps(summary), parse_constant=lambda name: None)
    write_json(out / "summary.json", summary)
    environment = jinja2.Environment(autoescape=True)
    environment.filters |= {
        "i": format_interval,
        "f": lambda x: _number(x, "{:.3f}"),
        "g": lambda x: _number(x, "{:.3g}"),
    }
    page = environment.from_string(TEMPLATE).render(s=summary, images=images)
    write_bytes(out / "report" / "index.html", page.encode())
    return out / "report" / "index.html"


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
