"""Tables and page of the study of exposures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headwater.launch.parts.training import spent_minutes
from headwater.launch.studies.drawing import as_png, figure
from headwater.launch.studies.exposures.settings import OURS, PREDICTORS, TRIVIAL, ExposuresSettings
from headwater.launch.studies.page import as_interval, markdown_table, write_page
from headwater.train.artifacts import write_bytes

if TYPE_CHECKING:
    from rich.table import Table

HEADS = ("predictor", "correlation", "within windows", *(f"above: {PREDICTORS[name].lower()}" for name in TRIVIAL))
WINDOWS = ("window", "exposures dropped", "nats lost", "spread of others'", *(PREDICTORS[name] for name in OURS))


def write_report(settings: ExposuresSettings, summary: dict[str, Any]) -> Path:
    """Writes summary.json, table.md, and the page under report/; returns the page."""
    out = Path(settings.out)
    tables = ((HEADS, lines(summary)), (WINDOWS, window_lines(summary)))
    claims = [[claim["claim"], claim["status"], claim["measured"]] for claim in summary["claims"]]
    text = [markdown_table(heads, each) for heads, each in (*tables, (("held to", "status", "measured"), claims))]
    write_bytes(out / "table.md", "\n".join(text).encode())
    return write_page(
        out,
        summary,
        BODY,
        {"predictors": draw(summary)},
        title="When it mattered",
        filters={"i": as_interval},
        tables=tables,
        minutes=spent_minutes(out.glob("seed-*/*")),
    )


def lines(summary: Mapping[str, Any]) -> list[list[str]]:
    """A line for each predictor."""
    found = []
    for name, row in summary["predictors"].items():
        lead = [as_interval(row["above"][other]["overall"]) if "above" in row else "–" for other in TRIVIAL]
        found.append([PREDICTORS[name], as_interval(row["overall"]), as_interval(row["within"]), *lead])
    return found


def window_lines(summary: Mapping[str, Any]) -> list[list[str]]:
    """A line for each window."""
    found = []
    for number, row in enumerate(summary["by_window"]):
        spread = "–" if row["bystanders"] is None else f"{row['bystanders']:.3f}"
        cells = [str(number + 1), f"{row['exposures']:.1f}", as_interval(row["lost"]), spread]
        found.append([*cells, *(as_interval(row["correlation"][name]) for name in OURS)])
    return found


def tables(summary: dict[str, Any], width: int) -> list[Table]:
    """The predictors and the windows on the console."""
    from rich.table import Table

    shown = []
    for heads, rows in ((HEADS[:3], [each[:3] for each in lines(summary)]), (WINDOWS, window_lines(summary))):
        table = Table(*heads, box=None, header_style="bold")
        for cells in rows:
            table.add_row(*cells)
        shown.append(table)
    return shown


def draw(summary: Mapping[str, Any]) -> bytes:
    """Each predictor's correlation, and what a window's exposures are worth. PNG bytes."""
    drawn, (left, right) = figure(2, 11, 3.6)
    names = list(summary["predictors"])
    for place, name in enumerate(reversed(names)):
        value, low, high = summary["predictors"][name]["overall"]
        colour = "#1f4e79" if name in OURS else "#999999"
        left.barh(place, value, color=colour, xerr=[[value - low], [high - value]], ecolor="#222222", capsize=3)
    left.set_yticks(range(len(names)), [PREDICTORS[name] for name in reversed(names)], fontsize=8)
    left.set_title("rank correlation with what is lost", fontsize=10)
    for number, row in enumerate(summary["by_window"]):
        value, low, high = row["lost"]
        right.errorbar(number + 1, value, yerr=[[value - low], [high - value]], fmt="o", color="#1f4e79", capsize=4)
    right.axhline(0, color="#c55a11", linestyle="--")
    right.set_xticks(range(1, len(summary["by_window"]) + 1))
    right.set_xlabel("window of steps")
    right.set_title("nats lost without its exposures", fontsize=10)
    for axis in (left, right):
        axis.grid(alpha=0.25)
    return as_png(drawn)


BODY = """<h1>When it mattered: what single exposures are worth</h1>
<p>{{ s.setting.preset }}{% if s.setting.pretrain %} with {{ s.setting.pretrain | join(", ") }}{% endif %}, seeds
{{ s.seeds | join(", ") }}: {{ s.cells }} facts and windows ({{ s.people }} people, {{ s.setting.windows }} windows),
dropped {{ s.setting.together }} at a time in {{ s.trainings }} trainings,
{{ "%.0f" | format(s.dropped[0]) }} visits a training. They took {{ "%.0f" | format(minutes) }} minutes, counted one
after the other.</p>
<h2>Held to</h2>
{% include "claims" %}<img alt="Rank correlation of each predictor, and nats lost by window"
src="data:image/png;base64,{{ images.predictors }}">
{% for heads, rows in tables %}<div class="scroll"><table><tr>{% for head in heads %}<th>{{ head }}{% endfor %}</tr>
{% for cells in rows %}<tr>{% for cell in cells %}<td>{{ cell }}{% endfor %}</tr>
{% endfor %}</table></div>
{% endfor %}
<p>{% if s.bystanders %}Questions about people whose exposures a training keeps lose
{{ "%.3f" | format(s.bystanders.mean) }} nats on average, with a spread of {{ "%.3f" | format(s.bystanders.spread) }};
that of those whose exposures are dropped is {{ "%.3f" | format(s.lost_spread) }}. If the former is noise, no predictor
can be expected above {{ "%.2f" | format(s.attainable) }}.{% endif %}
{% if s.alone.correlation %}{{ s.alone.cells }} facts were dropped again alone: what they lose then differs by
{{ "%.3f" | format(s.alone.difference) }} nats from what they lose beside others.{% endif %}</p>
<p><small>Lost: the target's log-probability at the end of the training that saw everything, less that of the training
without the exposures, in nats. Every other visit is made at the same step in the same sequence, as the ledgers show; a
step's loss is a mean over its tokens, so that these weigh a little more. Correlations: Spearman's, with 95% intervals
over people drawn with replacement; within windows: a mean over windows, each by itself. Status: "holds" where the whole
interval is on the claim's side.</small></p>
"""
