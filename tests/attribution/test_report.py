"""The report: its figures against independent ones, what it says when something is missing, a browser."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest

from headwater.attribution.report import figures
from headwater.attribution.report.build import build_report, ledger_note
from headwater.attribution.report.inputs import read_run
from headwater.attribution.report.settings import ReportSettings
from headwater.attribution.report.summary import summarise
from headwater.attribution.report.traced import choose, traced_facts
from headwater.configs.errors import CorruptError, MissingError

from .report_run import lines, make_run, parquet

HOSTILE = (
    " <script>alert('x')</script><!-- \"&amp; </script> \u2028 \x07 <img src=http://example.org/x onerror=alert(1)>"
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "demo"
    make_run(path, people=14, base=600)
    build_report(SimpleNamespace(run=str(path)))
    return path


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "copy"))


def jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_summary_holds_the_figures_of_the_run(built: Path) -> None:
    summary = json.loads((built / "report" / "summary.json").read_text())
    assert list(summary) == ["corpus", "train", "facts", "index", "methods", "wall_s"]
    injected = len(jsonl(built / "facts" / "passages.jsonl"))
    assert summary["corpus"] == {"passages": 600 + injected, "injected": injected, "tokens": 58 * (600 + injected)}

    metrics = jsonl(built / "metrics.jsonl")
    train = summary["train"]
    assert (train["steps"], train["tokens"], train["wall_s"]) == (1200, 1200 * 960, 148.9)
    assert train["loss"] == pytest.approx(sum(line["loss"] for line in metrics[-20:]) / 20)
    assert train["tokens_per_s"] == pytest.approx(9800 + 600.5)

    probes = pq.read_table(built / "probes.parquet").to_pylist()
    last = [row for row in probes if row["step"] == 1200]
    first = [row for row in probes if row["step"] == 0]
    facts = summary["facts"]
    assert (facts["people"], facts["queries"]) == (14, 84)
    assert facts["target_prob_before"] == pytest.approx(sum(row["prob"] for row in first) / 84)
    assert facts["target_prob_after"] == pytest.approx(sum(row["prob"] for row in last) / 84)
    assert facts["exact_match"] == pytest.approx(sum(row["exact"] for row in last) / 84)

    assert summary["index"] == {"passages": 600 + injected, "dims": 7168, "bytes_per_passage": 7200, "wall_s": 61.4}
    assert list(summary["methods"]) == [
        *("headwater", "trackstar", "gradient_cosine", "gradient_dot", "bm25", "random", "gold")
    ]
    metrics_of_a_method = {"mrr", "recall@10", "hit@10", "precision@10", "tail_patch", "queries"}
    assert set(summary["methods"]["headwater"]) == metrics_of_a_method
    assert set(summary["methods"]["gold"]) == {"tail_patch", "queries"}
    assert summary["wall_s"] == pytest.approx(14.2 + 148.9 + 61.4 + 9.8 + 71.0)


def test_the_page_is_the_same_again_but_for_when_it_was_made(copy: Path) -> None:
    def page() -> str:
        text = (copy / "report" / "index.html").read_text()
        return re.sub(r"Report made</dt><dd>[^<]*", "", text)

    before = page(), (copy / "report" / "summary.json").read_bytes()
    build_report(ReportSettings(run=str(copy)))
    assert (page().replace("copy", "demo"), (copy / "report" / "summary.json").read_bytes()) == (
        before[0].replace("copy", "demo"),
        before[1],
    )


@pytest.mark.parametrize(
    ("gone", "command"),
    [
        ("evaluation/table.json", "headwater evaluate"),
        ("traces/headwater.jsonl", "headwater trace"),
        ("index/headwater/index.json", "headwater index"),
        ("probes.parquet", "headwater pretrain"),
        ("metrics.jsonl", "headwater pretrain"),
        ("facts/probes.jsonl", "headwater corpus"),
        ("corpus", "headwater corpus"),
    ],
)
def test_a_missing_stage_is_named_with_its_command_and_nothing_is_harmed(copy: Path, gone: str, command: str) -> None:
    page = copy / "report" / "index.html"
    before = page.read_bytes()
    target = copy / gone
    if target.is_dir():
        shutil.rmtree(target)
    else:
        target.unlink()
    with pytest.raises(MissingError, match=f"run `{command}` first") as caught:
        build_report(ReportSettings(run=str(copy)))
    assert Path(gone).name in str(caught.value)
    assert page.read_bytes() == before


def test_an_unfinished_index_and_a_broken_line_are_refused(copy: Path) -> None:
    index = copy / "index" / "headwater" / "index.json"
    index.write_text(index.read_text().replace('"complete": true', '"complete": false'))
    with pytest.raises(MissingError, match="not complete"):
        build_report(ReportSettings(run=str(copy)))
    trace = copy / "traces" / "headwater.jsonl"
    index.write_text(index.read_text().replace('"complete": false', '"complete": true'))
    trace.write_text(trace.read_text()[:-40])
    with pytest.raises(CorruptError, match=r"line 84 of .*headwater\.jsonl"):
        build_report(ReportSettings(run=str(copy)))
    with pytest.raises(MissingError, match="not a run directory"):
        build_report(ReportSettings(run=str(copy / "nowhere")))


def test_absent_optional_parts_are_said_on_the_page(copy: Path) -> None:
    for name in (
        "facts/schedule.parquet",
        "timings.json",
        "provenance.json",
        "config.yaml",
        "evaluation/headwater.jsonl",
    ):
        (copy / name).unlink()
    shutil.rmtree(copy / "ledger")
    page = build_report(ReportSettings(run=str(copy))).read_text()
    for words in ("injection schedule", "timings.json", "provenance.json", "config.yaml", "headwater.jsonl", "ledger"):
        assert words in page[page.index('class="absent"') :][:600]
    summary = json.loads((copy / "report" / "summary.json").read_text())
    assert summary["wall_s"] is None
    assert summary["index"]["wall_s"] is None


def test_losses_on_held_out_documents_are_drawn_by_source(copy: Path) -> None:
    assert "never read</h2>" not in build_report(ReportSettings(run=str(copy))).read_text()
    lines = [
        {"step": step, "source": source, "loss": loss, "perplexity": math.exp(loss) if loss else None, "tokens": 10}
        for step, losses in ((0, (7.5, 7.0)), (600, (4.0, None)), (1200, (2.0, 3.0)))
        for source, loss in zip(("<web>", "books"), losses, strict=True)
    ]
    (copy / "validation.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    page = build_report(ReportSettings(run=str(copy))).read_text()
    section = page[page.index('id="h-unseen"') : page.index('id="h-methods"')]
    assert f"&lt;web&gt; <b>{math.exp(2):.1f}</b>, books <b>{math.exp(3):.1f}</b>." in section
    # From 2 to 8 nats; the step at which books were not finite is a gap.
    assert 'd="M0 8.333L50 66.667L100 100"' in section
    assert 'd="M0 16.667M100 83.333"' in section


def test_passages_cannot_break_out_of_the_page(tmp_path: Path) -> None:
    make_run(tmp_path / "run", people=4, base=150, extra_text=HOSTILE)
    probes = jsonl(tmp_path / "run" / "facts" / "probes.jsonl")
    for probe in probes:
        probe["subject"] += HOSTILE
        probe["prompt"] += HOSTILE
    lines(tmp_path / "run" / "facts" / "probes.jsonl", probes)
    page = build_report(ReportSettings(run=str(tmp_path / "run"))).read_text()
    assert "alert(&#39;x&#39;)" in page, "the hostile text is on the page, or this shows nothing"
    assert page.count("<script") == 2
    assert page.count("</script>") == 2
    assert "<img" not in page
    assert "\x07" not in page
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    assert data["facts"][0]["prompt"] == probes[0]["prompt"]


def test_the_page_needs_nothing_but_itself(built: Path) -> None:
    page = (built / "report" / "index.html").read_text()
    assert not re.search(r"(?:src|href)=[\"'](?!data:|#)", page)
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org)", page)
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page
    assert len(page) < 2_000_000


def test_facts_are_drawn_evenly_and_the_worst_comes_last(built: Path) -> None:
    data = read_run(built, index="headwater", trace="headwater")
    rows, worst = choose(data, 12, seed=0)
    ranks = {name: min(ranking.gold_ranks) for name, ranking in data.rankings.items()}
    assert worst == rows[-1]["example_id"]
    assert ranks[worst] == max(ranks.values()) > 0
    counts = [sum(row["relation"] == relation for row in rows[:-1]) for relation in figures.relations(data)]
    assert sum(counts) == 11
    assert max(counts) - min(counts) <= 1
    assert len({row["example_id"] for row in rows}) == 12
    assert [row["example_id"] for row in choose(data, 12, seed=1)[0]] != [row["example_id"] for row in rows]
    assert len(choose(data, 10_000, seed=0)[0]) == len(data.trace)
    # Dealing does not depend on the order of the trace file.
    data.trace.reverse()
    assert [row["example_id"] for row in choose(data, 12, seed=0)[0]] == [row["example_id"] for row in rows]


def test_injections_are_marked_at_the_steps_at_which_they_were_seen(built: Path) -> None:
    data = read_run(built, index="headwater", trace="headwater")
    assert data.schedule is not None
    for row in data.trace:
        for name, steps in zip(row["proponent_ids"], row["proponent_seen_steps"], strict=True):
            assert data.schedule[name] == steps
    chart = figures.chart_facts(data)[0]
    gold = jsonl(built / "facts" / "probes.jsonl")[0]["gold"]
    planned = pq.read_table(built / "facts" / "schedule.parquet").to_pylist()
    assert chart["seen"] == sorted(row["step"] + 1 for row in planned if row["passage_id"] in gold)


def test_the_histogram_of_a_level_schedule_is_level(copy: Path) -> None:
    steps = np.repeat(np.arange(1200), 3)
    parquet(copy / "facts" / "schedule.parquet", step=steps, passage_id=[f"p#{step}" for step in steps])
    data = read_run(copy, index="headwater", trace="headwater")
    histogram = figures.injection_histogram(data, figures.step_axis(data))
    assert histogram is not None
    assert len(histogram["bars"]) == figures.BINS
    assert {bar["h"] for bar in histogram["bars"]} == {100.0}
    assert (histogram["peak"], histogram["total"]) == (3, 3600)


def test_a_traced_fact_says_what_the_trace_says(built: Path) -> None:
    data = read_run(built, index="headwater", trace="headwater")
    rows = {row["example_id"]: row for row in data.trace}
    for fact in traced_facts(data, ReportSettings(run=str(built), proponents=4, opponents=2)):
        row = rows[fact["id"]]
        assert [item["id"] for item in fact["proponents"]] == row["proponent_ids"][:4]
        assert [item["gold"] for item in fact["proponents"]] == row["proponent_correct"][:4]
        assert [item["id"] for item in fact["opponents"]] == row["opponent_ids"][:2]
        assert all(item["score"].startswith("−") for item in fact["opponents"])
        for item, text, steps in zip(fact["proponents"], row["proponents"], row["proponent_seen_steps"], strict=False):
            assert "".join(piece for _, piece in item["pieces"]) == text
            assert item["seen"]["marks"] == pytest.approx([round(step / 12, 3) for step in steps])
            stated = any(kind == "target" for kind, _ in item["pieces"])
            assert stated == bool(re.search(rf"\b{re.escape(row['targets_plaintext'])}\b", text, re.IGNORECASE))


def test_the_forest_draws_what_the_table_holds(built: Path) -> None:
    table = json.loads((built / "evaluation" / "table.json").read_text())
    panels = {panel["metric"]: panel for panel in figures.forest(table)}
    mrr = {row["method"]: row for row in panels["mrr"]["rows"]}
    mean, low, high = table["methods"]["gradient_dot"]["mrr"]
    assert (mrr["gradient_dot"]["at"], mrr["gradient_dot"]["from"]) == pytest.approx((100 * mean, 100 * low), abs=1e-3)
    assert mrr["gradient_dot"]["width"] == pytest.approx(100 * (high - low), abs=2e-3)
    assert [name for name, row in mrr.items() if row["best"]] == ["bm25"]
    assert panels["mrr"]["zero"] is None
    tail = {row["method"]: row for row in panels["tail_patch"]["rows"]}
    assert not tail["gold"]["best"], "gold is the yardstick"
    assert 0 < panels["tail_patch"]["zero"] < tail["gold"]["at"] < 100


def test_the_ledger_is_held_against_the_schedule(copy: Path) -> None:
    note = ledger_note(read_run(copy, index="headwater", trace="headwater"))
    assert note is not None
    assert note.endswith("at the steps planned.")
    ledger = pq.read_table(copy / "ledger" / "steps-00000001.parquet")
    late = {"step": ledger["step"].to_numpy() + 1, "injected": ledger["injected"].to_numpy()}
    parquet(copy / "ledger" / "steps-00000001.parquet", **late)
    note = ledger_note(read_run(copy, index="headwater", trace="headwater"))
    assert note is not None
    assert note.endswith("which differs from the plan."), "the same number, a step late"
    parquet(copy / "ledger" / "steps-00000001.parquet", step=np.arange(1, 1201), injected=np.zeros(1200, bool))
    note = ledger_note(read_run(copy, index="headwater", trace="headwater"))
    assert note is not None
    assert "records 0, which differs" in note


def test_a_step_probed_twice_counts_once_and_strange_probes_are_refused(copy: Path) -> None:
    table = pq.read_table(copy / "probes.parquet")
    columns = {name: table.column(name).to_numpy() for name in table.column_names}
    again = {name: np.concatenate([values, values[-1:]]) for name, values in columns.items()}
    again["prob"][-1] = 0.125
    parquet(copy / "probes.parquet", **again)
    data = read_run(copy, index="headwater", trace="headwater")
    assert data.curves.prob_SP[-1, -1] == 0.125
    assert summarise(data)["facts"]["queries"] == 84
    columns["probe"] = np.where(np.arange(len(columns["probe"])) == 3, 84, columns["probe"])
    parquet(copy / "probes.parquet", **columns)
    with pytest.raises(CorruptError, match=r"probes\.jsonl does not have"):
        read_run(copy, index="headwater", trace="headwater")


def test_steps_at_which_a_relation_was_not_probed_leave_a_gap(copy: Path) -> None:
    relations = [probe["relation"] for probe in jsonl(copy / "facts" / "probes.jsonl")]
    table = pq.read_table(copy / "probes.parquet").to_pylist()
    kept = [row for row in table if not (row["step"] in (300, 1200) and relations[row["probe"]] == "employer")]
    parquet(copy / "probes.parquet", **{name: [row[name] for row in kept] for name in kept[0]})
    page = build_report(ReportSettings(run=str(copy))).read_text()
    text = page.split('id="data">')[1].split("</script>")[0]
    assert "NaN" not in text
    lines_drawn = json.loads(text)["chart"]["panels"]["prob"]["lines"]
    gaps = {
        line["name"]: [number for number, value in enumerate(line["values"]) if value is None] for line in lines_drawn
    }
    assert gaps["employer"] == [6, 24]
    assert gaps["birth city"] == []
    assert "employer <b>–</b>" in page


def test_a_long_run_is_thinned_for_the_chart_alone(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "CHART_STEPS", 7)
    monkeypatch.setattr(figures, "CHART_FACTS", 10)
    page = build_report(ReportSettings(run=str(copy))).read_text()
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    assert data["steps"] == [0, 200, 400, 600, 800, 1000, 1200]
    assert len(data["facts"]) == 10
    assert len(data["facts"][0]["prob"]) == 7
    assert "Drawn: 7 of 25 probed steps and the first 10 of 84 facts" in page
    assert json.loads((copy / "report" / "summary.json").read_text())["facts"]["queries"] == 84


def chromium() -> str | None:
    return next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )


@pytest.mark.slow
def test_the_page_in_a_browser(built: Path) -> None:
    if chromium() is None:
        pytest.skip("no chromium is installed")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as api:
        browser = api.chromium.launch(executable_path=chromium(), args=["--no-sandbox", "--disable-gpu"])
        try:
            for width in (500, 1400):
                check_page(browser.new_page(viewport={"width": width, "height": 900}), built, width)
        finally:
            browser.close()


def check_page(page, built: Path, width: int) -> None:
    complaints: list[str] = []
    page.on(
        "console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None
    )
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "request",
        lambda request: complaints.append(request.url) if not request.url.startswith(("file:", "data:")) else None,
    )
    page.goto((built / "report" / "index.html").as_uri())
    page.eval_on_selector_all("details", "all => all.forEach((each) => { each.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    wide = """all => all.filter((each) => each.getBoundingClientRect().right > innerWidth + 1 &&
        !each.closest('svg') && getComputedStyle(each).display !== 'none').map((each) => each.outerHTML.slice(0, 80))"""
    assert page.eval_on_selector_all("main *", wide) == []

    line = "document.querySelector('.picked path').getAttribute('d')"
    first = page.evaluate(line)
    assert first.startswith("M")
    page.click("#pick-next")
    assert page.evaluate(line) != first
    page.select_option("#pick-relation", label="employer")
    assert page.inner_text("#readout").startswith("The company that")
    page.click("label[for=scale-logprob]")
    assert page.is_visible(".panel-logprob")
    assert not page.is_visible(".panel-prob")
    page.hover(".area")
    assert "this fact" in page.inner_text(".tip")
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.click("#theme")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before
    assert complaints == []
    page.close()
