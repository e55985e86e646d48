"""RUN/report/index.html and summary.json: what the run did, in one page that needs nothing but itself.

headwater report report/default run=runs/demo
"""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any, Protocol

from headwater.attribution.report import prose
from headwater.attribution.report.figures import chart_facts, curve_chart, forest, left_out, thinned
from headwater.attribution.report.inputs import RunData, read_run
from headwater.attribution.report.settings import ReportSettings
from headwater.attribution.report.summary import summarise
from headwater.attribution.report.traced import traced_facts
from headwater.attribution.report.unseen import unseen_chart
from headwater.train.artifacts import write_bytes, write_json

ROOMS = Path(__file__).resolve().parent.parent
"""The report's templates and those that it shares with the explorer lie side by side."""

STYLES = ("drawing/look.css", "report/style.css")


class HasRun(Protocol):
    """All that `build_report` must be given; every other setting has a default."""

    run: str


def build_report(cfg: HasRun) -> Path:
    """Writes RUN/report/index.html and RUN/report/summary.json, both atomically.

    Args:
        cfg: `ReportSettings`, or anything with a `run`; settings that it lacks take their defaults.

    Returns:
        The path of the page.

    Raises:
        MissingError: if a stage has not been run yet; it names the command that runs it.
    """
    settings = settings_of(cfg)
    data = read_run(settings.run, index=settings.index, trace=settings.trace)
    summary = summarise(data)
    page = data.run.report / "index.html"
    write_json(data.run.report / "summary.json", summary)
    write_bytes(page, render(data, summary, settings).encode("utf-8"))
    return page


def settings_of(cfg: Any) -> ReportSettings:
    names = ReportSettings.__dataclass_fields__
    return ReportSettings(**{name: getattr(cfg, name) for name in names if hasattr(cfg, name)})


def render(data: RunData, summary: dict[str, Any], settings: ReportSettings) -> str:
    """The page. Everything that comes from the run is escaped: passages are other people's text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(ROOMS), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    drawn = thinned(data)
    chart = curve_chart(drawn)
    return environment.get_template("report/page.html").render(
        name=data.run.path.resolve().name,
        style=Markup("".join((ROOMS / each).read_text(encoding="utf-8") for each in STYLES)),
        script=Markup((ROOMS / "report" / "script.js").read_text(encoding="utf-8")),
        summary=summary,
        deck=prose.deck(summary),
        figures=prose.key_figures(summary),
        chart=chart,
        unseen=unseen_chart(data),
        chart_data={"steps": drawn.curves.steps_S.tolist(), "chart": without_paths(chart), "facts": chart_facts(drawn)},
        panels=forest(data.table),
        states=prose.states_it(data.table["methods"]),
        moves=prose.moves_it(data.table),
        better=prose.where_better(data.table),
        own=prose.own_text(data.table["methods"]),
        interval=data.table.get("interval", {}),
        queries=max((row.get("queries", 0) for row in data.table["methods"].values()), default=0),
        left_out=left_out(data),
        facts=traced_facts(drawn, settings),
        opponents=opponents_note(data),
        provenance=provenance(data),
        ledger=ledger_note(data),
        absent=data.absent,
    )


def without_paths(chart: dict[str, Any]) -> dict[str, Any]:
    """The chart's figures for the script; the drawings are in the page already."""
    panels = {
        key: {
            "low": panel["low"],
            "high": panel["high"],
            "lines": [{name: line[name] for name in ("name", "colour", "values")} for line in panel["lines"]],
        }
        for key, panel in chart["panels"].items()
    }
    return {"low": chart["low"], "high": chart["high"], "panels": panels}


def ledger_note(data: RunData) -> str | None:
    """Whether the ledger shows what the schedule asked for."""
    if data.schedule is None or data.ledger is None:
        return None
    planned = Counter(step for each in data.schedule.values() for step in each if step <= data.ledger.last_step)
    verdict = "at the steps planned" if planned == data.ledger.injected else "which differs from the plan"
    counts = f"{planned.total():,} injections; the ledger records {data.ledger.injected.total():,}"
    return f"The schedule asks for {counts}, {verdict}."


def opponents_note(data: RunData) -> str | None:
    """What the opponents of this run are: for how many questions the lowest is a planted passage of another fact."""
    if data.schedule is None:
        return None
    gold = {str(probe["example_id"]): set(probe.get("gold") or ()) for probe in data.probes}
    lowest = [(str(row["example_id"]), str(row["opponent_ids"][0])) for row in data.trace if row.get("opponent_ids")]
    if not lowest:
        return None
    planted = sum(name in data.schedule and name not in gold.get(query, ()) for query, name in lowest)
    of = f"{planted:,} of {len(lowest):,} questions"
    return f"In this run the lowest-scored passage was a planted one about another fact for {of}."


def provenance(data: RunData) -> dict[str, Any]:
    """The footer: how the run was started, on what, and what its artifacts are made from."""
    start = data.provenance[-1] if data.provenance else {}
    command = start.get("command")
    wall = [(stage, value) for stage, value in data.timings.items() if isinstance(value, (int, float))]
    total = sum(value for _, value in wall) or 1.0
    rows = [
        ("Run", data.run.path.resolve().name),
        ("Started", start.get("time")),
        ("Command", " ".join(command) if isinstance(command, list) else command),
        ("Commit", start.get("git_commit")),
        ("Python", start.get("python")),
        ("Platform", start.get("platform")),
        ("Machine", f"{start['cpus']} CPU cores" if start.get("cpus") else None),
        ("Ranks", start.get("world_size")),
        ("Corpus", ", ".join(f"{name} {short_print(each)}" for name, each in data.corpora.items())),
        (
            "Index",
            f"{short_print(data.index)} at step {data.index.get('step', '?')}, loss {data.index.get('loss', '?')}",
        ),
        ("Report made", time.strftime("%Y-%m-%d %H:%M %Z")),
    ]
    return {
        "rows": [(key, str(value)) for key, value in rows if value not in (None, "")],
        "versions": {key: value for key, value in (start.get("versions") or {}).items() if value},
        "stages": [(stage, prose.seconds(value), round(100 * value / total, 2)) for stage, value in wall],
        "total": prose.seconds(sum(value for _, value in wall)) if wall else None,
        "config": data.config,
    }


def short_print(artifact: dict[str, Any]) -> str:
    return str(artifact.get("fingerprint", "?"))[:12]
