"""The page of the storage study: claims, accuracy by variant, probe heat maps, and where the answers come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from headwater.launch.studies.drawing import as_png, figure
from headwater.launch.studies.page import write_page
from headwater.launch.studies.storage.settings import StorageSettings
from headwater.launch.studies.storage.shares import KINDS

METHODS = {"mixed": "questions from the start", "full": "fine-tuned, all weights", "lora": "LoRA"}
COLOURS = {"mixed": "#1f4e79", "full": "#c55a11", "lora": "#4f8a3c"}
KIND_COLOURS = ("#1f4e79", "#c55a11", "#f0a36b", "#f5d7bf", "#7fa7d0", "#d9d9d9")
BODY = """<h1>What is stored, and what can be extracted</h1>
<p>After Allen-Zhu and Li 2023 (arXiv 2309.14316). {{ s.people.all }} people; questions about half of them are trained
on, and the model is asked about the other {{ s.people.asked }}. Seeds {{ s.settings.seeds | join(", ") }}
(of {{ s.settings.repeated | join(", ") }}; the others the first alone). Always giving the commonest value would be
right in {{ s.majority.mean | p }} of all answers. Intervals are 95%, over people drawn with replacement.
{{ "%.0f" | format(s.seconds.all / 60) }} minutes of work in all parts together.</p>
<h2>The paper's claims</h2>
{% include "claims" %}<h2>Exact answers about people whose questions were never seen</h2>
<img alt="Accuracy by variant and way of training" src="data:image/png;base64,{{ images.accuracy }}">
<div class="scroll"><table><tr><th>biographies<th>trained<th class="n">asked people<th class="n">taught people
{% for name in s.attributes %}<th class="n">{{ name | replace("_", " ") }}{% endfor %}
<th class="n">next tokens of biographies</tr>
{% for name, rows in s.accuracy.items() %}{% for method, row in rows.items() %}
<tr><td>{{ name }}<td>{{ methods[method] }}<td class="n">{{ row.asked | i }}<td class="n">{{ row.taught | p }}
{% for a in s.attributes %}<td class="n">{{ row.by_attribute[a] | p }}{% endfor %}
<td class="n">{{ known(name, method) | p }}</tr>
{% endfor %}{% endfor %}
<tr><td colspan="2">commonest value<td class="n">{{ s.majority.mean | p }}<td>
{% for a in s.attributes %}<td class="n">{{ s.majority.by_attribute[a] | p }}{% endfor %}<td></tr></table></div>
{% if images.curves %}
<h2>Over mixed training</h2>
<img alt="Exact answers over steps" src="data:image/png;base64,{{ images.curves }}">
{% endif %}{% if images.q_probes %}
<h2>Q-probes: attributes from the name alone</h2>
<img alt="Accuracy of linear probes of a name" src="data:image/png;base64,{{ images.q_probes }}">
{% endif %}{% if images.p_probes %}
<h2>P-probes: attributes from places in the biography</h2>
<p>A row is the place just before the first, second, ... attribute that a biography states; a column what is asked for.
Where order is fixed, the diagonal is the attribute that comes next.</p>
<img alt="Accuracy of linear probes at six places" src="data:image/png;base64,{{ images.p_probes }}">
{% endif %}{% if images.provenance %}
<h2>Where the answers come from</h2>
<p>Answers of the mixed runs about asked people, traced over every passage. Shares of the positive scores, of the
{{ s.settings.provenance.top }} best passages and of the whole; beside them the share of the passages.</p>
<img alt="Shares of attribution by kind of passage" src="data:image/png;base64,{{ images.provenance }}">
<div class="scroll"><table><tr><th>biographies<th>answers<th class="n">number<th>of
{% for kind in kinds %}<th class="n">{{ kind }}{% endfor %}</tr>
{% for name, sides in s.provenance.items() %}{% for side, row in sides.items() if row.questions %}
{% for scope, label in (("top", "best passages"), ("all", "whole"), ("expected", "share of passages")) %}
<tr><td>{{ name }}<td>{{ side }}<td class="n">{{ row.questions }}<td>{{ label }}
{% for kind in kinds %}<td class="n">{{ row[scope].kinds[kind] | p }}{% endfor %}</tr>
{% endfor %}{% endfor %}{% endfor %}</table></div>
{% endif %}
<p><small>Exact: greedy decoding gives the whole value. Next tokens: share of the tokens of the biographies, all of
which were trained on, that are foreseen. The figures are in summary.json.</small></p>
"""


def write_report(settings: StorageSettings, summary: dict[str, Any]) -> Path:
    """Writes summary.json, and the page and its images under report/; returns the page."""
    drawn = {"accuracy": draw_accuracy(summary)}
    for name, draw in (
        *(("curves", draw_curves), ("q_probes", draw_q_probes)),
        *(("p_probes", draw_p_probes), ("provenance", draw_provenance)),
    ):
        if any(summary[name].values()):
            drawn[name] = draw(summary)

    def known(name: str, method: str) -> Any:
        protocol = "mixed" if method == "mixed" else "pretrain"
        return summary["recall"].get(protocol, {}).get(name, {}).get("next_token")

    return write_page(
        Path(settings.out),
        summary,
        BODY,
        drawn,
        title="Storage and extraction of facts",
        filters={"p": percent, "i": interval},
        methods=METHODS,
        kinds=KINDS,
        known=known,
    )


def percent(value: Any) -> str:
    return f"{100 * value:.1f}%" if isinstance(value, int | float) else "–"


def interval(value: list[float]) -> str:
    return f"{percent(value[0])} [{percent(value[1])}, {percent(value[2])}]"


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
        axis.bar(x, value, width, color=COLOURS[method], label=METHODS[method])
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
        colour = "white" if value > 0.6 else "#222"
        axis.text(column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=8, color=colour)


def draw_q_probes(summary: dict[str, Any]) -> bytes:
    names = list(summary["q_probes"])
    drawn, (axis,) = figure(1, 6.5, 0.32 * len(names) + 1.8)
    values = [summary["q_probes"][name]["accuracy"] for name in names] + [summary["q_probes"][names[0]]["majority"]]
    heat(axis, np.array(values), [*names, "commonest value"], summary["attributes"])
    return as_png(drawn)


def draw_p_probes(summary: dict[str, Any]) -> bytes:
    names = list(summary["p_probes"])
    drawn, axes = figure(len(names), 4.4 * len(names), 4.0)
    for axis, name in zip(axes, names, strict=True):
        values = np.array(summary["p_probes"][name]["accuracy"])
        heat(axis, values, [f"before attribute {place + 1}" for place in range(len(values))], summary["attributes"])
        axis.set_title(name, fontsize=10)
    return as_png(drawn)


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
