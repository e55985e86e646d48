"""Table and page of the study of half-corpora."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headwater.launch.parts.training import spent_minutes
from headwater.launch.studies.drawing import as_png, figure
from headwater.launch.studies.lds.settings import BASELINES, LdsSettings
from headwater.launch.studies.lds.summary import SHOWN, as_interval, format_nats
from headwater.launch.studies.page import write_page
from headwater.train.artifacts import write_bytes

if TYPE_CHECKING:
    from rich.table import Table

KINDS = {"facts": "Planted facts", "cloze": "Values of the Factbook", "held_out": "Held-out passages"}
LABELS = {
    "bm25": "BM25",
    "ngram": "N-gram match",
    "random": "Random",
    "gold": "Gold passages",
    "best": "The single best",
}
TRAININGS = ("halves/*", "again/*", "left/*/*")
METRICS = {"lds": "LDS", "share_of_ceiling": "Share of the ceiling", "mrr": "MRR", "recall@10": "Recall@10"}


def write_report(out: Path, settings: LdsSettings, summary: dict[str, Any]) -> Path:
    """Writes summary.json, table.md, and the page under report/; returns the page."""
    write_bytes(out / "table.md", as_markdown(summary).encode())
    return write_page(
        out,
        summary,
        BODY,
        {"methods": draw(summary)},
        title="What leaving passages out does",
        filters={"i": as_interval, "nats": format_nats, "label": lambda name: LABELS.get(name, name)},
        groups={"All queries": summary, **{KINDS[kind]: row for kind, row in summary["kinds"].items()}},
        metrics=METRICS,
        kinds=KINDS,
        minutes=spent_minutes([out / "model", *(each for many in TRAININGS for each in out.glob(many))]),
        first=settings.methods[0].name if settings.methods else None,
    )


def as_markdown(summary: Mapping[str, Any]) -> str:
    """A line for each method: its score over all queries and by kind, its share of the ceiling, retrieval."""
    heads = ["LDS", *(f"LDS, {KINDS[kind].lower()}" for kind in summary["kinds"]), *list(METRICS.values())[1:]]
    lines = ["| method | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for name, row in summary["methods"].items():
        cells = [as_interval(row["lds"])]
        cells += [as_interval(kind["methods"][name]["lds"]) for kind in summary["kinds"].values()]
        cells += [as_interval(row.get(metric)) for metric in list(METRICS)[1:]]
        lines.append(f"| {LABELS.get(name, name)} | " + " | ".join(cells) + " |")
    if "ceiling" in summary:
        cells = [as_interval(each["ceiling"]) for each in (summary, *summary["kinds"].values())]
        lines.append("| the ceiling | " + " | ".join([*cells, *["–"] * (1 + len(SHOWN))]) + " |")
    if summary["left_out"]:
        lines += ["", "| left out | passages | nats | QLD |", "|---|---|---|---|"]
        lines += [
            f"| {LABELS.get(name, name)} | {row['passages']:.1f} | {nats_and_qld(row)} |"
            for name, row in summary["left_out"].items()
        ]
    lines += ["", "| held to | status | measured |", "|---|---|---|"]
    lines += [f"| {claim['claim']} | {claim['status']} | {claim['measured']} |" for claim in summary["claims"]]
    return "\n".join(lines) + "\n"


def nats_and_qld(row: Mapping[str, Any]) -> str:
    return f"{format_nats(row['nats'])} | {format_nats(row['qld'])}"


def tables(summary: dict[str, Any], width: int) -> list[Table]:
    """The methods on the console: linear datamodeling scores by kind."""
    from rich.table import Table

    groups = {"all": summary, **summary["kinds"]}
    title = f"LDS over {summary['models']} halves"
    table = Table("method", *groups, "MRR", "recall@10", box=None, header_style="bold", title=title)
    for name in summary["methods"]:
        cells = [as_interval(each["methods"][name]["lds"]) for each in groups.values()]
        retrieval = [as_interval(summary["methods"][name].get(metric)) for metric in SHOWN]
        table.add_row(LABELS.get(name, name), *cells, *retrieval)
    if "ceiling" in summary:
        table.add_row("the ceiling", *(as_interval(each["ceiling"]) for each in groups.values()), "–", "–")
    return [table]


def draw(summary: Mapping[str, Any]) -> bytes:
    """A panel for each kind: the methods' scores with intervals, and the ceiling as a line. PNG bytes."""
    kinds, names = summary["kinds"], list(summary["methods"])
    drawn, axes = figure(len(kinds), 3.4 * len(kinds) + 2, 0.3 * len(names) + 1.4, sharey=True)
    for axis, (kind, row) in zip(axes, kinds.items(), strict=True):
        for place, name in enumerate(reversed(names)):
            mean, low, high = row["methods"][name]["lds"]
            colour = "#999999" if name in BASELINES else "#1f4e79"
            axis.barh(place, mean, color=colour, xerr=[[mean - low], [high - mean]], ecolor="#222222", capsize=3)
        if "ceiling" in row:
            axis.axvline(row["ceiling"][0], color="#c55a11", linestyle="--")
        axis.set_yticks(range(len(names)), [LABELS.get(name, name) for name in reversed(names)], fontsize=9)
        axis.set_title(KINDS[kind], fontsize=10)
        axis.grid(axis="x", alpha=0.25)
    return as_png(drawn)


BODY = """<h1>What leaving passages out does, and which scores foretell it</h1>
<p>{{ s.setting.preset }}{% if s.setting.pretrain %} with {{ s.setting.pretrain | join(", ") }}{% endif %}, seed
{{ s.seed }}: {{ s.passages }} passages, {{ s.models }} models, each trained from scratch on a random half of them in
the same order and from the same weights, {{ s.again }} of them again from other weights; {{ s.queries }} queries. The
trainings took {{ "%.0f" | format(minutes) }} minutes, counted one after the other.</p>
{% if s.claims %}<h2>Held to</h2>
{% include "claims" %}{% endif %}<img alt="Linear datamodeling score of each method by kind of query"
src="data:image/png;base64,{{ images.methods }}">
{% for title, part in groups.items() %}
<h2>{{ title }}</h2>
<p>{{ part.queries }} queries{% if part.log_probability %}; mean log-probability of the target
{{ "%.2f" | format(part.log_probability.whole) }} with the whole corpus,
{{ "%.2f" | format(part.log_probability.halves) }} with a half{% endif %}.{% if part.ceiling %} The ceiling
is {{ part.ceiling | i }}, ± {{ "%.3f" | format(part.ceiling_error) }} over halves; scores without any noise could reach
{{ part.attainable | i }}.{% endif %}</p>
<div class="scroll"><table><tr><th>method{% for name in metrics.values() %}<th class="n">{{ name }}{% endfor %}
<th class="n">± halves<th class="n">above BM25<th class="n">± halves
{% if first %}<th class="n">above {{ first }}{% endif %}</tr>
{% for name, row in part.methods.items() %}<tr><td>{{ name | label }}
{% for metric in metrics %}<td class="n">{{ row.get(metric) | i }}{% endfor %}
<td class="n">{{ "%.3f" | format(row.error) }}<td class="n">{{ part.differences[name].get("bm25") | i }}
<td class="n">{% if name != "bm25" %}{{ "%.3f" | format(part.difference_errors[name].bm25) }}{% else %}–{% endif %}
{% if first %}<td class="n">{{ part.differences[name].get(first) | i }}{% endif %}</tr>
{% endfor %}</table></div>
{% endfor %}
{% if s.left_out %}<h2>Small sets left out</h2>
<div class="scroll"><table><tr><th>set<th class="n">passages<th class="n">nats<th class="n">QLD
{% for kind in kinds %}<th class="n">{{ kinds[kind] }}{% endfor %}</tr>
{% for name, row in s.left_out.items() %}<tr><td>{{ name | label }}<td class="n">{{ "%.1f" | format(row.passages) }}
<td class="n">{{ row.nats | nats }}<td class="n">{{ row.qld | nats }}
{% for kind in kinds %}<td class="n">{{ row.kinds[kind] | nats if kind in row.kinds else "–" }}{% endfor %}</tr>
{% endfor %}</table></div>
<p>Nats that the answer of a question loses when a training lacks the set, against trainings that lack random
passages. QLD: less what the question's own random set takes.</p>{% endif %}
<h2>What a score is worth</h2>
<div class="scroll"><table><tr><th>method<th>queries<th class="n">nats a unit<th class="n">noise
<th class="n">foretold of other halves<th class="n">inside 90%{% if s.left_out %}<th>set<th class="n">foretold
<th class="n">measured<th class="n">a foretold nat<th class="n">inside 90%{% endif %}</tr>
{% for name, row in s.units.items() %}{% for kind, each in row.items() %}
{% for set, of in (each.sets or {"": none}).items() %}<tr>
<td>{{ name | label if loop.first }}<td>{{ kinds[kind] if loop.first }}
<td class="n">{{ each.slope | nats if loop.first }}<td class="n">{{ "%.2f" | format(each.noise) if loop.first }}
<td class="n">{{ "%.0f%%" | format(100 * each.halves.explained) if loop.first }}
<td class="n">{{ "%.0f%%" | format(100 * each.halves.coverage) if loop.first }}
{% if s.left_out %}{% if of %}<td>{{ set | label }}<td class="n">{{ of.foretold | nats }}
<td class="n">{{ of.measured | nats }}<td class="n">{{ of.nat | nats }}
<td class="n">{{ "%.0f%%" | format(100 * of.coverage) }}{% else %}<td><td><td><td><td>{% endif %}{% endif %}</tr>
{% endfor %}{% endfor %}{% endfor %}</table></div>
<p>Fitted on every other half: by how many nats the answer moves with a unit of summed score. Foretold: the share of
the other halves' variance, within a query, that this explains; inside 90%: their share within its interval.{% if
s.left_out %} A foretold nat: what leaving a small set out takes for each nat that was foretold; 1 where scores of a set
add up as those of a half do.{% endif %}</p>
<p><small>LDS: the linear datamodeling score (Park et al. 2023, arXiv 2303.14186). For each query Spearman's
correlation, over the halves, of the log-probability that a half's model gives the target with the sum of the scores of
the passages that are in the half; then the mean over queries, with 95% bootstrap intervals over queries; ± halves: the
standard error that other halves would bring (jackknife). Trained from scratch: figures of fine-tuning are higher and
not comparable. The ceiling: the same correlation of two trainings on the same halves from other weights. Planted facts
are asked by prompts that training never shows; values of the Factbook with the words before them, where the passage
itself decides most; a held-out passage is of a document whose other passages were trained on, and its target is the
whole passage. Gold passages: 1 for those that state the answer, 0 for all others; a held-out passage has none. Above
BM25: the mean difference on the same queries. Status: "holds" where the whole interval is on the claim's side, "holds
on average" where only the mean is.</small></p>
"""
