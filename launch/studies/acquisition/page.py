"""The page of the acquisition study: the claims, the paper's figures with our curves, tables of every condition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from headwater.launch.studies.acquisition.figures import compared_figures, draw_curves, draw_retention
from headwater.launch.studies.acquisition.parts import REAL, SCENARIOS
from headwater.launch.studies.acquisition.settings import AcquisitionSettings
from headwater.launch.studies.page import write_page

DRAWN = {
    "curves": "Mean log-probability over steps, by group and depth",
    "retention": "Retained share over log steps, with fits",
}
"""What a condition's figures show."""

BODY = """<h1>How facts are acquired and forgotten</h1>
<p>After Chang et al. 2024 (arXiv 2406.11813). {{ s.probes }} probes; seeds {{ s.conditions[0].seeds | join(", ") }};
records: {% for name, n in s.scenarios.items() %}{{ n }} {{ name }}{{ ", " if not loop.last }}{% endfor %}.
Probing took {{ "%.0f" | format(100 * s.probing_share) }}% of {{ "%.0f" | format(s.seconds / 60) }} minutes of training.
Intervals are 95%, over seeds and records drawn with replacement.</p>
{% if s.leaking_probes %}<details>
<summary>{{ s.leaking_probes | length }} probes hold their target in the prompt; no figure counts them.</summary>
<ul>{% for each in s.leaking_probes %}<li>{{ each }}{% endfor %}</ul></details>{% endif %}
<h2>The paper's claims</h2>
{% include "claims" %}
{% if compared %}<h2>The paper's figures, with ours</h2>{% for name, alt in compared.items() %}
<figure><img alt="{{ alt }}" src="data:image/png;base64,{{ images[name] }}"><figcaption>{{ alt }}</figcaption></figure>
{% endfor %}{% endif %}{% for c in s.conditions %}{% set number = loop %}
<h2>{{ c.label | capitalize }}</h2>
{% for name, alt in drawn.items() %}{% if name ~ "-" ~ number.index0 in images %}
<img alt="{{ alt }}" src="data:image/png;base64,{{ images[name ~ "-" ~ number.index0] }}">
{% endif %}{% endfor %}
<div class="scroll"><table><tr><th>group<th>depth<th class="n">probes<th class="n">first E<th class="n">mean E
<th class="n">decay a decade<th class="n">as the paper averages<th class="n">R² power<th class="n">R² exponential
<th class="n">x-intercept, steps</tr>
{% for name, g in c.groups.items() %}<tr><td>{{ name.split("/")[0] }}<td>{{ name.split("/")[1] }}
<td class="n">{{ g.probes }}
<td class="n">{{ g.first_effectivity | i }}<td class="n">{{ g.effectivity | i }}
<td class="n">{{ g.get("pooled", {}).get("decay") | i }}<td class="n">{{ g.decay | i }}
<td class="n">{{ g.get("power", {}).get("r2") | f }}<td class="n">{{ g.get("exponential", {}).get("r2") | f }}
<td class="n">{{ g.get("pooled", {}).get("x_intercept") | g }}</tr>
{% endfor %}</table></div>
{% endfor %}
<p><small>E: rise of a target's mean log-probability, in nats, from just before an injection to its highest value in the
window after it. Decay: fall of the retained share for every tenfold of steps: of the mean gain less the controls'
drift, and, as the paper averages, of the mean of single probes' shares, to which the R² belong. X-intercept: where
the first of these laws reaches zero. A group whose probes gained too little has no fit. The figures are in
summary.json.</small></p>
"""


def write_report(settings: AcquisitionSettings, summary: dict[str, Any]) -> Path:
    """Writes summary.json, and the page and its images under report/; returns the page."""
    figures, compared = {}, {}
    for name, (alt, image) in compared_figures(summary).items():
        figures[name], compared[name] = image, alt
    for number, condition in enumerate(summary["conditions"]):
        figures[f"curves-{number}"] = draw_curves(condition)
        if condition["plan"] in (SCENARIOS, REAL):
            figures[f"retention-{number}"] = draw_retention(condition)
    filters = {"i": format_interval, "f": lambda x: _number(x, "{:.3f}"), "g": lambda x: _number(x, "{:.3g}")}
    title = "Acquisition of facts"
    out = Path(settings.out)
    return write_page(out, summary, BODY, figures, title=title, filters=filters, drawn=DRAWN, compared=compared)


def _number(value: Any, form: str) -> str:
    return form.format(value) if isinstance(value, int | float) else "–"


def format_interval(value: Any) -> str:
    if not isinstance(value, list) or any(each is None for each in value):
        return "–"
    return f"{value[0]:.3f} [{value[1]:.3f}, {value[2]:.3f}]"
