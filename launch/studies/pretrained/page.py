"""Tables and page of the study of a real pretrained model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headwater.attribution.evaluation.table import format_interval
from headwater.launch.parts.training import spent_minutes
from headwater.launch.studies.drawing import as_png, figure
from headwater.launch.studies.page import as_interval, markdown_table, write_page
from headwater.launch.studies.pretrained.settings import LABELS, METHODS, PretrainedSettings
from headwater.train.artifacts import write_bytes

METRICS = ("mrr", "recall@10", "tail_patch")
POINTS = ("step", "probability", "exact", "method", "MRR", "recall@10", "tail-patch")
LEFT_OUT = ("left out", "passages", "facts", "probability before", "drop", "share of gold's", "above random")
KNOWN = ("what it knew", "before", "at the end", "change")


def write_report(settings: PretrainedSettings, summary: dict[str, Any]) -> Path:
    """Writes summary.json, table.md, and the page under report/; returns the page."""
    out = Path(settings.out)
    tables = {
        "traced": (POINTS, point_lines(summary)),
        "left_out": (LEFT_OUT, left_out_lines(summary)),
        "known": (KNOWN, known_lines(summary)),
        "stages": (("stage", "minutes"), stage_lines(out)),
    }
    text = "\n".join(markdown_table(heads, lines) for heads, lines in tables.values())
    claims = [[claim["claim"], claim["status"], claim["measured"]] for claim in summary["claims"]]
    write_bytes(out / "table.md", f"{text}\n{markdown_table(('held to', 'status', 'measured'), claims)}".encode())
    return write_page(
        out,
        summary,
        BODY,
        {"curve": draw(summary)},
        title="A real pretrained model",
        filters={},
        tables=tables,
        minutes=spent_minutes([out / "start", *out.glob("seed-*/*")]),
    )


def point_lines(summary: Mapping[str, Any]) -> list[list[str]]:
    """A line for each method at each traced step."""
    measured = {row["step"]: row for row in summary["curve"]}
    lines = []
    for step, row in summary["points"].items():
        at = measured[int(step)]
        heads = [step, as_interval(at["probability"]), as_interval(at["exact"])]
        for name in (*METHODS, "gold"):
            if name in row["methods"]:
                cells = [format_interval(metric, row["methods"][name].get(metric)) for metric in METRICS]
                lines.append([*heads, LABELS[name], *cells])
                heads = ["", "", ""]
    return lines


def left_out_lines(summary: Mapping[str, Any]) -> list[list[str]]:
    """A line for each list that was left out."""
    lines = []
    for arm, row in summary["leave_out"].items():
        cells = [as_interval(row.get(key)) for key in ("drop", "share_of_gold", "above_random")]
        lines.append([LABELS[arm], str(row["passages"]), str(row["facts"]), f"{row['before']:.3f}", *cells])
    return lines


def known_lines(summary: Mapping[str, Any]) -> list[list[str]]:
    """What became of common facts and of the held-out documents' perplexity."""
    drift = summary["drift"]
    common = drift["common"]
    name = f"probability of {common['facts']} common facts"
    lines = [[name, *(as_interval(common[key]) for key in ("before", "after", "change"))]]
    before, after = common["exact"]
    lines.append(["share of them answered", f"{before:.2f}", f"{after:.2f}", f"{after - before:+.2f}"])
    if "perplexity" in drift:
        before, after = drift["perplexity"]["before"], drift["perplexity"]["after"]
        lines.append(["perplexity of held-out Factbook", f"{before:.2f}", f"{after:.2f}", f"{after - before:+.2f}"])
    return lines


def stage_lines(out: Path) -> list[list[str]]:
    """The minutes of each part."""
    paths = [out / "start", *sorted(out.glob("seed-*/*"), key=lambda path: path.stat().st_ctime)]
    return [
        [f"{path.parent.name}/{path.name}" if path.name != "start" else "start", f"{spent_minutes([path]):.1f}"]
        for path in paths
        if (path / "seconds.json").exists()
    ]


def draw(summary: Mapping[str, Any]) -> bytes:
    """The questions over training, and each method's MRR at the traced steps. PNG bytes."""
    drawn, (left, right) = figure(2, 11, 3.6)
    steps = [row["step"] for row in summary["curve"]]
    for key, colour in (("exact", "#1f4e79"), ("probability", "#c55a11")):
        values = [row[key] for row in summary["curve"]]
        left.plot(steps, [each[0] for each in values], color=colour, label=key)
        left.fill_between(steps, [each[1] for each in values], [each[2] for each in values], color=colour, alpha=0.15)
    for step in summary["points"]:
        left.axvline(int(step), color="#999999", linestyle=":")
    left.set_title("questions in unseen wordings", fontsize=10)
    for name in METHODS:
        found = {
            int(step): row["methods"][name]["mrr"] for step, row in summary["points"].items() if name in row["methods"]
        }
        if found:
            right.plot(list(found), [each[0] for each in found.values()], "o-", label=LABELS[name], markersize=4)
    right.set_title("MRR", fontsize=10)
    for axis in (left, right):
        axis.set_xlabel("step")
        axis.set_ylim(-0.02, 1.02)
        axis.legend(fontsize=8)
        axis.grid(alpha=0.25)
    return as_png(drawn)


BODY = """<h1>A real pretrained model, taught and traced</h1>
<p>{{ s.model }}, trained on with {{ s.setting.preset }}{% if s.setting.pretrain %} and
{{ s.setting.pretrain | join(", ") }}{% endif %}; {{ s.passages[0].all }} passages, {{ s.passages[0].planted }} of them
about invented people; seeds {{ s.seeds | join(", ") }}. {% if s.answers_at is not none %}It answers as it should from
step {{ s.answers_at }} on.{% else %}It did not come to answer as it should.{% endif %} All parts took
{{ "%.0f" | format(minutes) }} minutes, counted one after the other.</p>
<h2>Held to</h2>
{% include "claims" %}<img alt="The questions' probability over training, and each method's MRR"
src="data:image/png;base64,{{ images.curve }}">
{% for heads, lines in tables.values() %}<div class="scroll"><table><tr>{% for head in heads %}<th>{{ head }}
{% endfor %}</tr>
{% for cells in lines %}<tr>{% for cell in cells %}<td>{{ cell }}{% endfor %}</tr>
{% endfor %}</table></div>
{% endfor %}
<p><small>Means with 95% bootstrap intervals over questions or facts. Questions are prompts that training never
shows; exact: greedy decoding gives the whole answer. Gradient cosine and dot: rows of the cross entropy without
curvature. Tail-patch: mean rise of the target's probability after one training step on a passage, at step
{{ s.left_out_step }}. Leaving out: the union of the best passages for some facts that the model knows at that step is
taken out of the stream, and the model trained again from the same weights in the same order to the same step. Random:
as many planted passages that state none of these facts. Of the common facts, {{ s.drift.common.stated }} may be stated
by passages that it is trained on.{% if s.drift.perplexity %} Held out: {{ s.drift.perplexity.tokens }} tokens of
documents that it is never trained on, of the same source, so that it should fall.{% endif %} Status: "holds" where the
whole interval is on the claim's side, "holds on average" where only the mean is.</small></p>
"""
