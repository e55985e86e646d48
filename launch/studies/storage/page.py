"""The page of the storage study: claims, accuracy by variant, probe heat maps, and where the answers come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from headwater.launch.studies.page import as_interval, markdown_table, write_page
from headwater.launch.studies.storage import figures
from headwater.launch.studies.storage.claims.ways import LABELS, as_percents
from headwater.launch.studies.storage.data import MAIN, PLAIN
from headwater.launch.studies.storage.settings import StorageSettings
from headwater.launch.studies.storage.shares import KINDS
from headwater.train.artifacts import write_bytes
from headwater.train.facts.biographies import VARIANTS

SIZES = (
    *("size", "rank of the probe", "people", "values foreseen, multi5+permute", "single"),
    *("before the first value, multi5+permute", "single", "at the name, multi5+permute", "single, where due"),
    "before the name",
)
LORAS = ("LoRA", "rank of the embedding", "of queries and values", "laps", "multi5+permute", "single", "taught people")
BODY = """<h1>What is stored, and what can be extracted</h1>
<p>After Allen-Zhu and Li 2023 (arXiv 2309.14316). {{ s.people.all }} people; questions about half of them are trained
on, and the model is asked about the other {{ s.people.asked }}. Seeds {{ s.settings.seeds | join(", ") }}
(of {{ s.settings.repeated | join(", ") }}; the others the first alone). Always giving the commonest value would be
right in {{ s.majority.mean | p }} of all answers. Intervals are 95%, over seeds and people drawn with replacement.
{{ "%.0f" | format(s.seconds.all / 60) }} minutes of work in all parts together.</p>
<h2>The paper's claims</h2>
{% include "claims" %}
{% macro table(name) %}<div class="scroll"><table><tr>{% for head in tables[name][0] %}<th>{{ head }}{% endfor %}</tr>
{% for cells in tables[name][1] %}<tr>{% for cell in cells %}<td>{{ cell }}{% endfor %}</tr>
{% endfor %}</table></div>{% endmacro %}
{% if images.table %}
<h2>The ways of writing</h2>
<p>Per cent of exact answers about asked people after pretraining and fine-tuning of all weights, by attribute.</p>
<img alt="Accuracy of every variant by attribute" src="data:image/png;base64,{{ images.table }}">
{% endif %}<h2>Exact answers about people whose questions were never seen</h2>
<img alt="Accuracy by variant and way of training" src="data:image/png;base64,{{ images.accuracy }}">
<div class="scroll"><table><tr><th>biographies<th>trained<th class="n">asked people<th class="n">taught people
<th class="n">another person's
{% for name in s.attributes %}<th class="n">{{ name | replace("_", " ") }}{% endfor %}
<th class="n">next tokens of biographies</tr>
{% for name, rows in s.accuracy.items() %}{% for method, row in rows.items() %}
<tr><td>{{ name }}<td>{{ methods[method] }}<td class="n">{{ row.asked | i }}<td class="n">{{ row.taught | p }}
<td class="n">{{ row.shuffled | i }}
{% for a in s.attributes %}<td class="n">{{ row.by_attribute[a] | p }}{% endfor %}
<td class="n">{{ known(name, method) | p }}</tr>
{% endfor %}{% endfor %}
<tr><td colspan="2">commonest value<td class="n">{{ s.majority.mean | p }}<td><td>
{% for a in s.attributes %}<td class="n">{{ s.majority.by_attribute[a] | p }}{% endfor %}<td></tr></table></div>
{% if images.curves %}
<h2>Over mixed training</h2>
<img alt="Exact answers over steps" src="data:image/png;base64,{{ images.curves }}">
{% endif %}{% if images.q_probes %}
<h2>Q-probes: attributes from the name alone</h2>
<img alt="Accuracy of linear probes of a name" src="data:image/png;base64,{{ images.q_probes }}">
{% endif %}{% if images.places %}
<h2>P-probes: attributes from places in the biography</h2>
<p>A row is a place: the token before the name, where nobody can know whom the text is about, the name's last token, and
the token just before the first, second, ... value that a biography states; a column what is asked for. Where order is
fixed, the diagonal is the attribute that comes next. Dashed: probes of the weights before any step.</p>
<img alt="Accuracy of linear probes by place" src="data:image/png;base64,{{ images.places }}">
{% endif %}{% if s.measures.size.rows %}
<h2>At which size</h2>
<p>Other seeds than those of the other claims.</p>{{ table("sizes") }}
{% endif %}{% if s.measures.lora.rows %}
<h2>LoRA</h2>{{ table("loras") }}
{% endif %}{% if images.rewriting %}
<h2>Rewriting a part of the biographies</h2>
<img alt="Answers over the share rewritten" src="data:image/png;base64,{{ images.rewriting }}">
{% endif %}{% if images.mixing %}
<h2>Questions early or late</h2>
<img alt="Answers over when questions are met" src="data:image/png;base64,{{ images.mixing }}">
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
<p><small>Exact: greedy decoding gives the whole value. Another person's: the same answers held against the values of
another asked person. Next tokens: share of the tokens of the biographies, all of
which were trained on, that are foreseen. The figures are in summary.json.</small></p>
"""


def write_report(settings: StorageSettings, summary: dict[str, Any]) -> Path:
    """Writes summary.json, table.md, and the page and its images under report/; returns the page."""

    def known(name: str, method: str) -> Any:
        protocol = "mixed" if method == "mixed" else "pretrain"
        return summary["recall"].get(protocol, {}).get(name, {}).get("next_token")

    measures = summary["measures"]
    tables = {"sizes": (SIZES, size_lines(measures["size"])), "loras": (LORAS, lora_lines(measures["lora"]))}
    heads = ("claim", "status", "measured", "negative control", "differs from the paper in")
    keys = ("claim", "status", "measured", "control", "differs")
    claims = markdown_table(heads, [[each[key] for key in keys] for each in summary["claims"]])
    text = "\n".join([claims, *(markdown_table(*table) for table in tables.values() if table[1])])
    write_bytes(Path(settings.out) / "table.md", text.encode())
    return write_page(
        Path(settings.out),
        summary,
        BODY,
        drawn(summary),
        title="Storage and extraction of facts",
        filters={"p": percent, "i": interval},
        methods=LABELS,
        kinds=KINDS,
        known=known,
        tables=tables,
    )


def drawn(summary: dict[str, Any]) -> dict[str, bytes]:
    """The figures of what was measured, by name."""
    measures = summary["measures"]
    found = {"accuracy": figures.draw_accuracy(summary)} if summary["accuracy"] else {}
    if any("full" in summary["accuracy"].get(name, {}) for name in VARIANTS):
        found["table"] = figures.draw_table(summary)
    for name, draw in (
        *(("curves", figures.draw_curves), ("q_probes", figures.draw_q_probes)),
        ("provenance", figures.draw_provenance),
    ):
        if any(summary[name].values()):
            found[name] = draw(summary)
    if measures["probes"]["places"]:
        found["places"] = figures.draw_places(measures["probes"], summary["attributes"])
    if measures["rewriting"]["rows"]:
        found["rewriting"] = figures.draw_rewriting(measures["rewriting"])
    if measures["mixing"]:
        found["mixing"] = figures.draw_mixing(measures["mixing"])
    return found


def size_lines(found: dict[str, Any]) -> list[list[str]]:
    return [
        [
            *(row["size"], str(row["rank"]), f"{row['people']:,}", *(percent(row["told"][v]) for v in (MAIN, PLAIN))),
            *(as_interval(row[key]) for key in (MAIN, PLAIN, "name", "due", "before")),
        ]
        for row in found["rows"]
    ]


def lora_lines(found: dict[str, Any]) -> list[list[str]]:
    return [
        [
            *(way, str(row["embedding_rank"]), str(row["rank"]), f"{row['laps']:.1f}"),
            *(as_interval(row[MAIN]), as_interval(row[PLAIN])),
            ", ".join(f"{name} {percent(value)}" for name, value in row["taught"].items()),
        ]
        for way, row in found["rows"].items()
    ]


def percent(value: Any) -> str:
    return f"{100 * value:.1f}%" if isinstance(value, int | float) else "–"


def interval(value: list[float] | None) -> str:
    return as_percents(value) if value else "–"
