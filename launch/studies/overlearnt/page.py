"""Summary, table and page of the study of overlearnt facts, from what its parts have left."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headwater.attribution.evaluation.table import format_interval
from headwater.launch.parts.training import spent_minutes
from headwater.launch.studies.drawing import as_png, figure
from headwater.launch.studies.overlearnt.settings import LABELS, METHODS, OverlearntSettings
from headwater.launch.studies.page import as_interval, write_page
from headwater.train.artifacts import write_bytes

METRICS = {"mrr": "MRR", "hit@10": "Hit@10", "recall@10": "Recall@10", "tail_patch": "Tail-patch"}
SHOWN = (*METHODS, "bm25", "random", "gold")


def write_report(settings: OverlearntSettings, summary: dict[str, Any]) -> Path:
    """Writes summary.json, table.md, and the page under report/; returns the page."""
    out = Path(settings.out)
    write_bytes(out / "table.md", as_markdown(summary).encode())
    return write_page(
        out,
        summary,
        BODY,
        {"methods": draw(summary)},
        title="Overlearnt facts",
        filters={"cell": format_interval},
        labels=LABELS,
        metrics=METRICS,
        shown=SHOWN,
        groups={"All seeds": summary["pooled"], **{f"Seed {seed}": row for seed, row in summary["seeds"].items()}},
        minutes=spent_minutes(Path(settings.out).glob("seed-*/*")),
    )


def as_markdown(summary: Mapping[str, Any]) -> str:
    """Both tables, all seeds pooled, then each seed's means, and the claims."""
    seeds = list(summary["seeds"])
    heads = [*METRICS.values(), *(f"MRR, seed {seed}" for seed in seeds)]
    lines = ["| method | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for name in SHOWN:
        row = summary["pooled"]["methods"].get(name)
        if row is None:
            continue
        cells = [format_interval(metric, row.get(metric)) for metric in METRICS]
        cells += [as_interval(summary["seeds"][seed]["methods"][name].get("mrr")) for seed in seeds]
        lines.append(f"| {LABELS[name]} | " + " | ".join(cells) + " |")
    heads = ["passages", "drop", "share of gold's", "above random", *(f"drop, seed {seed}" for seed in seeds)]
    lines += ["", "| left out | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for arm, row in summary["pooled"]["leave_out"].items():
        cells = [f"{row['passages']:,}", *(as_interval(row.get(k)) for k in ("drop", "share_of_gold", "above_random"))]
        cells += [as_interval(summary["seeds"][seed]["leave_out"][arm]["drop"]) for seed in seeds]
        lines.append(f"| {LABELS[arm]} | " + " | ".join(cells) + " |")
    lines += ["", "| held to | status | measured |", "|---|---|---|"]
    lines += [f"| {claim['claim']} | {claim['status']} | {claim['measured']} |" for claim in summary["claims"]]
    return "\n".join(lines) + "\n"


def draw(summary: Mapping[str, Any]) -> bytes:
    """Retrieval and leave-out side by side: bars with intervals over all seeds, a dot for each seed. PNG bytes."""
    methods = [name for name in SHOWN if "mrr" in summary["pooled"]["methods"].get(name, {})]
    arms = list(summary["pooled"]["leave_out"])
    panels = [
        ("MRR", methods, lambda part, name: part["methods"][name]["mrr"]),
        ("drop of the target's probability", arms, lambda part, name: part["leave_out"][name]["drop"]),
    ]
    drawn, axes = figure(2, 11, 3.6)
    for axis, (title, names, value) in zip(axes, panels, strict=True):
        for place, name in enumerate(reversed(names)):
            mean, low, high = value(summary["pooled"], name)
            colour = "#1f4e79" if name in METHODS else "#999999"
            axis.barh(place, mean, color=colour, xerr=[[mean - low], [high - mean]], ecolor="#222222", capsize=3)
            points = [value(part, name)[0] for part in summary["seeds"].values()]
            axis.plot(points, [place] * len(points), "o", color="#c55a11", markersize=4)
        axis.set_yticks(range(len(names)), [LABELS[name] for name in reversed(names)], fontsize=9)
        axis.set_title(title, fontsize=10)
        axis.grid(axis="x", alpha=0.25)
    return as_png(drawn)


BODY = """<h1>Facts learnt too well, and what still finds their sources</h1>
<p>{{ s.setting.preset }} with {{ s.setting.pretrain | join(", ") }}; {{ s.setting.precision }};
{{ s.setting.checkpoints }} saved checkpoints. {% for seed, row in s.seeds.items() %}Seed {{ seed }}: the
{{ row.model.probes }} targets have a mean probability of {{ "%.2f" | format(row.model.target_prob) }} at the end.
{% endfor %}All parts took {{ "%.0f" | format(minutes) }} minutes, counted one after the other.</p>
<h2>Held to</h2>
{% include "claims" %}<img alt="MRR of each method, and drop of the probability of each list left out"
src="data:image/png;base64,{{ images.methods }}">
{% for title, part in groups.items() %}
<h2>{{ title }}</h2>
<div class="scroll"><table><tr><th>method{% for name in metrics.values() %}<th class="n">{{ name }}{% endfor %}</tr>
{% for name in shown if name in part.methods %}<tr><td>{{ labels[name] }}
{% for metric in metrics %}<td class="n">{{ metric | cell(part.methods[name].get(metric)) }}{% endfor %}</tr>
{% endfor %}</table></div>
<div class="scroll"><table><tr><th>left out<th class="n">passages<th class="n">facts<th class="n">probability before
<th class="n">drop<th class="n">share of gold's<th class="n">above random</tr>
{% for arm, row in part.leave_out.items() %}<tr><td>{{ labels[arm] }}<td class="n">{{ row.passages }}
<td class="n">{{ row.facts }}<td class="n">{{ "%.3f" | format(row.before) }}<td class="n">{{ "mrr" | cell(row.drop) }}
<td class="n">{{ "mrr" | cell(row.get("share_of_gold")) }}<td class="n">{{ "mrr" | cell(row.get("above_random")) }}</tr>
{% endfor %}</table></div>
{% endfor %}
<p><small>Means with 95% bootstrap intervals, over queries or facts drawn with replacement. Tail-patch: mean rise of the
target's probability after one training step on a passage; on an overlearnt model it rewards the local step, and ranks
the methods otherwise than leaving out does. Leaving out: the facts are drawn among those that the model knows; the
union of the best passages of all of them is taken out of the stream and the model trained again from the same weights
in the same order. Random: as many planted passages that state none of the facts. Status: "holds" where the whole
interval is on the claim's side, "holds on average" where only the mean is.</small></p>
"""
