"""Table and page of the study of data selection."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headwater.launch.parts.training import spent_minutes
from headwater.launch.studies.drawing import as_png, figure
from headwater.launch.studies.page import write_page
from headwater.launch.studies.selection.settings import ARMS, WHOLE, SelectionSettings
from headwater.launch.studies.verdict import shown
from headwater.train.artifacts import write_bytes

if TYPE_CHECKING:
    from rich.table import Table

LABELS = {**ARMS, WHOLE: "The whole corpus"}
HEADS = (
    "trained on",
    "log-probability of a word",
    "above a random half",
    "above BM25's half",
    "shuffled",
    "of the task",
)


def write_report(settings: SelectionSettings, summary: dict[str, Any]) -> Path:
    """Writes summary.json, table.md, and the page under report/; returns the page."""
    out = Path(settings.out)
    write_bytes(out / "table.md", as_markdown(summary).encode())
    return write_page(
        out,
        summary,
        BODY,
        {"seeds": draw(summary)},
        title="What a chosen half teaches",
        filters={},
        heads=HEADS,
        lines=lines(summary),
        minutes=spent_minutes(out.glob("seed-*/*")),
    )


def lines(summary: Mapping[str, Any]) -> list[list[str]]:
    """The cells of each arm's line in all tables."""
    rows = []
    for arm, row in summary["arms"].items():
        above = [shown(row["above"][other]) if other in row["above"] else "–" for other in ("random", "bm25")]
        chosen = row.get("chosen")
        shares = [f"{chosen[key]:.0%}" for key in ("shuffled", "task")] if chosen else ["–", "–"]
        rows.append([LABELS[arm], shown(row["log_probability"]), *above, *shares])
    return rows


def as_markdown(summary: Mapping[str, Any]) -> str:
    """The table of the arms and that of the claims."""
    text = ["| " + " | ".join(HEADS) + " |", "|---" * len(HEADS) + "|"]
    text += ["| " + " | ".join(cells) + " |" for cells in lines(summary)]
    text += ["", "| held to | status | measured |", "|---|---|---|"]
    text += [f"| {claim['claim']} | {claim['status']} | {claim['measured']} |" for claim in summary["claims"]]
    return "\n".join(text) + "\n"


def tables(summary: dict[str, Any], width: int) -> list[Table]:
    """The arms on the console."""
    from rich.table import Table

    title = f"{summary['questions']} questions, {len(summary['seeds'])} seeds; nats a word, shares of what was chosen"
    table = Table(*HEADS, box=None, header_style="bold", title=title)
    for cells in lines(summary):
        table.add_row(*cells)
    return [table]


def draw(summary: Mapping[str, Any]) -> bytes:
    """Each seed's log-probability above a random half's, by arm. PNG bytes."""
    arms = [arm for arm in summary["arms"] if arm != "random"]
    drawn, (axis,) = figure(1, 6.5, 0.5 * len(arms) + 1.2)
    base = summary["arms"]["random"]["by_seed"]
    for place, arm in enumerate(reversed(arms)):
        row = summary["arms"][arm]
        mean, low, high = row["above"]["random"]
        axis.errorbar(mean, place, xerr=[[mean - low], [high - mean]], fmt="o", color="#1f4e79", capsize=4)
        dots = [value - other for value, other in zip(row["by_seed"], base, strict=True)]
        axis.plot(dots, [place + 0.18] * len(dots), ".", color="#999999")
    axis.axvline(0, color="#c55a11", linestyle="--")
    axis.set_yticks(range(len(arms)), [LABELS[arm] for arm in reversed(arms)])
    axis.set_ylim(-0.5, len(arms) - 0.4)
    axis.set_xlabel("log-probability of a word above a random half's, nats")
    axis.grid(axis="x", alpha=0.25)
    return as_png(drawn)


BODY = """{% set number = ' class="n"' %}<h1>What a chosen half teaches</h1>
<p>{{ s.setting.preset }}{% if s.setting.pretrain %} with {{ s.setting.pretrain | join(", ") }}{% endif %}: a corpus of
{{ s.setting.documents }} documents, {{ "%.0f" | format(100 * s.setting.shuffled) }}% of them with their words in random
order; the task is documents that match <code>{{ s.setting.task }}</code>. {{ "%.0f" | format(100 * s.setting.share) }}%
of the passages are chosen with {{ s.questions }} questions, and new models of what was chosen are asked
{{ s.questions }} others, of other documents; {{ s.seeds | length }} seeds. The parts took
{{ "%.0f" | format(minutes) }} minutes, counted one after the other.</p>
<h2>Held to</h2>
{% include "claims" %}<img alt="Log-probability of a word above a random half's, by seed"
src="data:image/png;base64,{{ images.seeds }}">
<div class="scroll"><table><tr>{% for head in heads %}<th{{ number | safe if not loop.first }}>{{ head }}{% endfor %}
</tr>
{% for cells in lines %}<tr>{% for cell in cells %}<td{{ number | safe if not loop.first }}>{{ cell }}{% endfor %}</tr>
{% endfor %}</table></div>
<p><small>Log-probability: of the questions' targets, by word, in nats. All models of a seed start from the same
weights and are trained for the same number of steps. Intervals: 95% over seeds (Student's t); a seed draws documents,
questions, weights and order anew. Shuffled, of the task: the shares of what was chosen whose words are in random order,
and that comes from whole documents of the task's kind. Status: "holds" where the whole interval is above zero, "holds
on average" where only the mean is.</small></p>
"""
