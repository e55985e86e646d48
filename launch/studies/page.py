"""The frame of a study's page: style, figures, the table of claims; one file that needs nothing but itself."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from headwater.attribution.evaluation.table import format_interval
from headwater.train.artifacts import write_bytes, write_json

FRAME = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{{ title }}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0; font-size: .9rem; font-variant-numeric: tabular-nums }
td, th { padding: .3rem .7rem; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top }
td.n, th.n { text-align: right } img { max-width: 100% } .scroll { overflow-x: auto } small { color: #555 }
.reproduced, .holds, .holds-on-average { color: #2c6e2f; font-weight: 600 }
.not-reproduced, .does-not-hold { color: #a33; font-weight: 600 }
</style>
{% block body %}{% endblock %}
</html>
"""
CLAIMS = """{% set differ = s.claims and "differs" in s.claims[0] -%}
{% set control = s.claims and "control" in s.claims[0] -%}
<div class="scroll"><table>
<tr><th>claim<th>status<th>measured{% if control %}<th>negative control{% endif -%}
{% if differ %}<th>differs from the paper in{% endif %}</tr>
{% for c in s.claims %}<tr><td>{{ c.claim }}<td class="{{ c.status | replace(" ", "-") }}">{{ c.status }}
<td>{{ c.measured }}
{% if control %}<td>{{ c.control }}{% endif %}{% if differ %}<td><small>{{ c.differs }}</small>{% endif %}</tr>
{% endfor %}</table></div>
"""


def markdown_table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    text = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    return "\n".join(text + ["| " + " | ".join(cells) + " |" for cells in lines]) + "\n"


def as_interval(value: Sequence[float] | None) -> str:
    """`.948 [.923, .972]`; a dash where there is nothing."""
    return format_interval("mrr", value)


def write_page(
    out: Path,
    summary: Mapping[str, Any],
    body: str,
    figures: Mapping[str, bytes],
    *,
    title: str,
    filters: Mapping[str, Callable[..., Any]],
    **names: Any,
) -> Path:
    """Writes summary.json, report/NAME.png of each figure and report/index.html, all under `out`; returns the page.

    Args:
        body: a Jinja template; `s` is the summary, `images.NAME` a figure as base64, and `{% include "claims" %}` the
            table of the claims.
        figures: PNG by name.
        filters, names: further ones of the template.
    """
    import jinja2

    # NaN is no JSON; what could not be computed is null.
    summary = json.loads(json.dumps(summary), parse_constant=lambda name: None)
    write_json(out / "summary.json", summary)
    for name, data in figures.items():
        write_bytes(out / "report" / f"{name}.png", data)
    whole = f'{{% extends "frame" %}}{{% block body %}}{body}{{% endblock %}}'
    loader = jinja2.DictLoader({"frame": FRAME, "claims": CLAIMS, "page": whole})
    environment = jinja2.Environment(loader=loader, autoescape=True)
    environment.filters |= filters
    images = {name: base64.b64encode(data).decode() for name, data in figures.items()}
    page = environment.get_template("page").render(s=summary, images=images, title=title, **names)
    path = out / "report" / "index.html"
    write_bytes(path, page.encode())
    return path
