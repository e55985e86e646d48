"""The page of the study of tracing: the claims, the figures, a table of every point, and examples."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headwater.attribution.evaluation.table import format_interval
from headwater.launch.parts.training import spent_minutes
from headwater.launch.studies.page import as_interval, markdown_table, write_page
from headwater.launch.studies.tracing.classes import CLASSES
from headwater.launch.studies.tracing.figures import draw_growth, draw_kinds, draw_recipe
from headwater.launch.studies.tracing.settings import LABELS, TracingSettings
from headwater.train.artifacts import write_bytes

POINTS = (
    *("size", "weights", "steps", "answer's probability", "method", "MRR", "MRR, never shown", "recall@10"),
    *("tail-patch", "leaving out: passages", "drop", "share of gold's"),
)
KINDS = ("passages", *CLASSES)
ROWS = ("row", "MRR", "full less it", "recall@10", "full less it")


def write_report(settings: TracingSettings, summary: dict[str, Any]) -> Path:
    """Writes summary.json, table.md, and the page under report/; returns the page."""
    out, found = Path(settings.out), summary["measures"]
    tables = {"points": (POINTS, point_lines(found["growth"])), "kinds": (KINDS, kind_lines(found["kinds"]))}
    figures = {"growth": draw_growth(found["growth"]), "kinds": draw_kinds(found["kinds"])}
    if found["recipe"]:
        tables["recipe"] = (ROWS, recipe_lines(found["recipe"]))
        figures["recipe"] = draw_recipe(found["recipe"])
    heads = ("claim", "status", "measured", "negative control", "differs from the paper in")
    keys = ("claim", "status", "measured", "control", "differs")
    claims = markdown_table(heads, [[each[key] for key in keys] for each in summary["claims"]])
    text = "\n".join([claims, *(markdown_table(*table) for table in tables.values())])
    write_bytes(out / "table.md", text.encode())
    return write_page(
        out,
        summary,
        BODY,
        figures,
        title="Influence and attribution",
        filters={},
        tables=tables,
        labels=LABELS,
        minutes=spent_minutes([out / "recipe", *out.glob("seed-*/*")]),
    )


def point_lines(found: Mapping[str, Any]) -> list[list[str]]:
    """A line for each method at each point."""
    lines = []
    for size, row in found["rows"].items():
        for step, point in row.items():
            heads = [size, f"{found['parameters'][size]:,}", step, as_interval(point["probability"])]
            for method, values in point["methods"].items():
                left = point["left_out"].get(method, {})
                cells = [as_interval(values.get(key)) for key in ("mrr", "mrr, unseen", "recall@10")]
                cells.append(format_interval("tail_patch", values.get("tail_patch")))
                cells.append(f"{left['passages']:.0f}" if left else "–")
                cells += [as_interval(left.get(key)) for key in ("drop", "share")]
                lines.append([*heads, LABELS[method], *cells])
                heads = [""] * len(heads)
    return lines


def kind_lines(found: Mapping[str, Any]) -> list[list[str]]:
    """A line of shares by method, by rank and by how well the fact is known."""
    bars = {f"{LABELS[method]}, first ten": each for method, each in found["by_method"].items()}
    for method, row in found["by_rank"].items():
        bars |= {f"{LABELS[method]}, place {name}": each for name, each in row.items()}
    for method, row in found["by_known"].items():
        bars |= {f"{LABELS[method]}, {name}": each for name, each in row.items()}
    return [[name, *(as_interval(each[kind]) for kind in CLASSES)] for name, each in bars.items()]


def recipe_lines(found: Mapping[str, Any]) -> list[list[str]]:
    return [
        [row["label"], *(as_interval(value) for m in ("mrr", "recall@10") for value in (row[m], row["full_less"][m]))]
        for row in found["rows"].values()
    ]


BODY = """<h1>Influence and attribution</h1>
<p>After TrackStar (arXiv 2410.17413). Seeds {{ s.setting.seeds | join(", ") }}; sizes
{% for name, n in s.measures.growth.parameters.items() %}{{ name }} ({{ "{:,}".format(n) }} weights){{ ", " if not
loop.last }}{% endfor %}; traced after {{ s.setting.amounts | join(", ") }} steps. {% for each in s.questions %}
{{ each.seen }} questions about what was shown, {{ each.unseen }} about what was not{{ "; " if not loop.last }}
{% endfor %}. All parts took {{ "%.0f" | format(minutes) }} minutes, counted one after the other. Intervals are 95%,
over seeds and subjects drawn with replacement.</p>
<h2>The paper's claims</h2>
{% include "claims" %}
{% macro table(name) %}<div class="scroll"><table><tr>{% for head in tables[name][0] %}<th>{{ head }}{% endfor %}</tr>
{% for cells in tables[name][1] %}<tr>{% for cell in cells %}<td>{{ cell }}{% endfor %}</tr>
{% endfor %}</table></div>{% endmacro %}
<h2>Size and tokens</h2>
<img alt="MRR, recall and tail-patch over the number of weights, a line for each amount of tokens"
src="data:image/png;base64,{{ images.growth }}">
{{ table("points") }}
<h2>What states a fact, and what moves the model</h2>
<p>{{ s.closely[0] }}, after {{ s.closely[1] }} steps. TrackStar's first passage is BM25's for
{{ (s.measures.parting.same_first.trackstar or ["?"])[0] }} of the questions. Where the first passages differ: the
questions at which the tail-patches of both methods differ most, TrackStar's the larger one first.</p>
{% for each in s.measures.parting.examples %}<h3>{{ each.prompt }} <em>{{ each.target }}</em></h3>
<div class="scroll"><table><tr><th>method<th>first passage<th>kind<th>MRR of the method<th>its tail-patch</tr>
{% for method, top in each.tops.items() %}<tr><td>{{ labels[method] }}<td>{{ top.text }}<td>{{ top.class }}
<td>{{ "%.2f" | format(top.mrr) }}<td>{{ "%+.4f" | format(top.tail_patch) }}</tr>{% endfor %}</table></div>
{% else %}<p>They differ nowhere, or tail-patch was not measured.</p>{% endfor %}
<h2>What kinds of passages</h2>
<img alt="Shares of the kinds of passages, by method, rank and how well the fact is known"
src="data:image/png;base64,{{ images.kinds }}">
{{ table("kinds") }}
<h2>The recipe on a real model</h2>
{% if s.measures.recipe %}<p>{{ s.measures.recipe.questions }} questions over {{ s.measures.recipe.passages }} passages
of {{ s.measures.recipe.run }}.</p><img alt="MRR of every row" src="data:image/png;base64,{{ images.recipe }}">
{{ table("recipe") }}{% else %}<p>Not run: no run of a real model was given (recipe.run=DIR).</p>{% endif %}
<p><small>MRR: mean of 1 / the place of the first passage that states the fact. Never shown: facts whose passages are in
the index and in no training. Tail-patch: mean rise of the answer's probability after one training step on a passage.
Leaving out: the union of the passages that a method names for some facts, but those never trained on, is taken out of
the stream and the model trained again, from the same weights in the same order; passages: how many these are, meaned
over seeds, at random as many as gold's. Kinds are by rule: states subject and value; speaks of the
subject; states the same relation of another; holds the value; holds a part of the subject's name; none: the first that
fits.</small></p>
"""
