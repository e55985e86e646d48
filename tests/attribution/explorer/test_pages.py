"""What the pages say, against sums and sets made from the files by hand."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from headwater.attribution.evaluation.metrics import retrieval
from headwater.attribution.evaluation.ranking import read_rankings
from headwater.attribution.explorer.drawn import csv_lines, html, json_lines
from headwater.attribution.explorer.holdings import Holdings
from headwater.attribution.explorer.links import ServerLinks
from headwater.attribution.explorer.pages.base import Site, ordinal
from headwater.attribution.explorer.pages.browse import browse
from headwater.attribution.explorer.pages.cards import score_words, shared_runs
from headwater.attribution.explorer.pages.compare import compare
from headwater.attribution.explorer.pages.question import question
from headwater.attribution.explorer.pages.read import heat, lane, read
from headwater.attribution.explorer.pages.sources import sources
from headwater.attribution.explorer.pages.watch import jumps, watch
from headwater.attribution.explorer.sets import Found
from headwater.configs.errors import MissingError, UserError


@pytest.fixture(scope="module")
def site(holdings: Holdings) -> Site:
    return Site(holdings, ServerLinks())


@pytest.fixture(scope="module")
def records(explored: Path) -> list[dict]:
    return [json.loads(line) for line in (explored / "traces/headwater.jsonl").read_text().splitlines()]


def test_browse_filters_sorts_and_measures(site: Site, explored: Path, records: list[dict]) -> None:
    relation = records[0]["relation"]
    view = browse(site, {"where": f'relation="{relation}"', "sort": "worst"})
    ranks = {each.example_id: each for each in read_rankings(explored / "evaluation/headwater.jsonl")}
    mine = [ranks[record["example_id"]] for record in records if record["relation"] == relation]
    rows = list(view.rows())
    assert {row["example_id"] for row in rows} == {each.example_id for each in mine}
    deep = [row["rank_of_first_gold"] for row in rows]
    assert deep == sorted((1.0 + min(each.gold_ranks) for each in mine), reverse=True)
    shown = {figure["label"]: figure["mean"] for figure in view.context["figures"]}
    expected = retrieval(mine)
    for label, name in (("MRR", "mrr"), ("Recall@10", "recall@10")):
        assert float(shown[label]) == pytest.approx(expected[name].mean(), abs=6e-4)
    once, again = (list(browse(site, {"sort": "random", "seed": "7"}).rows()) for _ in range(2))
    assert once == again != list(browse(site, {"sort": "random", "seed": "8"}).rows())


def test_compare_joins_by_id(site: Site, explored: Path) -> None:
    a, b = (read_rankings(explored / f"evaluation/{name}.jsonl") for name in ("bm25", "random"))
    theirs = {each.example_id: each for each in b}
    rows = list(compare(site, {"a": "bm25", "b": "random"}).rows())
    assert len(rows) == len(a)
    for row in rows:
        mine = next(each for each in a if each.example_id == row["example_id"])
        other = theirs[row["example_id"]]
        assert row["overlap_at_10"] == len(set(mine.ranking[:10]) & set(other.ranking[:10]))
        assert (row["rank_a"], row["rank_b"]) == (1 + min(mine.gold_ranks), 1 + min(other.gold_ranks))
    one = compare(site, {"a": "headwater", "b": "bm25", "q": rows[0]["example_id"]})
    groups = one.context["groups"]
    first = site.holdings.sets["headwater"].open().answers
    second = site.holdings.sets["bm25"].open().answers
    top_a, top_b = (
        {each.id for each in answers.answer(answers.row(rows[0]["example_id"])).proponents[:10]}
        for answers in (first, second)
    )
    assert {card["id"] for card in groups["both"]} == top_a & top_b
    assert {card["id"] for card in groups["a"]} == top_a - top_b
    assert {card["id"] for card in groups["b"]} == top_b - top_a
    gap = next(
        each for each in compare(site, {"a": "bm25", "b": "random"}).context["measures"] if each["label"] == "MRR"
    )
    difference = retrieval(a)["mrr"] - retrieval(b)["mrr"]
    assert float(gap["gap"][0].replace("−", "-")) == pytest.approx(difference.mean(), abs=6e-4)


def test_sources_add_up(site: Site, records: list[dict]) -> None:
    expected: defaultdict[str, float] = defaultdict(float)
    for record in records:
        for name, score in zip(record["proponent_ids"], record["proponent_scores"], strict=True):
            expected[name.rpartition("#")[0]] += float(np.float32(score))
    rows = list(sources(site, {}).rows())
    assert {row["document"]: pytest.approx(row["influence"], abs=1e-6) for row in rows} == dict(expected)
    assert [row["influence"] for row in rows] == sorted((row["influence"] for row in rows), reverse=True)
    alone = sources(site, {"q": records[2]["example_id"]})
    assert sum(row["passages"] for row in alone.rows()) == len(records[2]["proponent_ids"])
    gold = next(group for group in alone.context["groups"] if group["title"] == "Gold or not")
    count = {bar["name"]: int(bar["count"]) for bar in gold["bars"]}
    assert count.get("states the answer", 0) == sum(records[2]["proponent_correct"])


def test_a_passage_knows_its_questions_and_its_place(site: Site, records: list[dict]) -> None:
    record = records[0]
    name = record["proponent_ids"][0]
    context = read(site, {"p": name, "set": "headwater", "q": record["example_id"]}).context
    assert dict(context["facts"])["for this question"].startswith("1st proponent")
    assert "".join(piece for _, piece in context["pieces"]) == record["proponents"][0]
    assert context["seen"]["marks"] or context["seen"]["words"] == "never seen in training"
    others = [each for each in records[1:] if name in each["proponent_ids"] or name in each["opponent_ids"]]
    assert len(context["uses"]) + context["uses_left"] == len(others)
    assert record["proponents"][0][:60] in context["citation"]
    with pytest.raises(MissingError, match="no passage"):
        read(site, {"p": "nobody#1"})


def test_watching_counts_exposures(site: Site, explored: Path) -> None:
    home = site.holdings.homes[0]
    view = watch(site, {"fact": home.facts.probes[0]["example_id"]})
    gold = home.facts.probes[0]["gold"]
    assert home.library is not None
    seen = home.library.seen(home.library.numbers(gold).values())
    assert view.context["exposures"] == sum(map(len, seen.values()))
    assert view.context["taught_by"] == len(gold)
    steps, prob, _ = home.facts.curve(0)
    lanes = [("x", [int(steps[-1])], True)]
    for jump in jumps(home, 0, lanes):
        place = [f"{step:,}" for step in steps].index(jump["to"])
        assert float(jump["rise"].replace("+.", "0.")) == pytest.approx(prob[place] - prob[place - 1], abs=6e-3)
        assert jump["seen"] == ("1" if place == len(steps) - 1 else "0")


def test_json_and_csv_hold_the_same(site: Site) -> None:
    view = browse(site, {"set": "bm25"})
    rows = json.loads("".join(json_lines(view)))["rows"]
    table = "".join(csv_lines(view)).splitlines()
    assert table[0] == ",".join(rows[0])
    assert len(table) == len(rows) + 1


def test_every_page_can_be_drawn(site: Site, records: list[dict]) -> None:
    query = records[0]["example_id"]
    views = [
        browse(site, {"page": "999999999"}),
        question(site, {"q": query, "where": "rank<100000"}),
        question(site, {"set": "random", "q": query}),
        compare(site, {}),
        compare(site, {"a": "headwater", "b": "random", "q": query}),
        watch(site, {"sort": "rise", "where": "after>0"}),
        sources(site, {"set": "bm25", "where": "rank=1"}),
    ]
    for view in views:
        page = html(site, view)
        assert "style=" not in page, "the policy of the server forbids inline styles"
        assert "<script>" not in page
    with pytest.raises(UserError, match="too long"):
        question(site, {"q": "x" * 5000})


def test_words_in_common_are_runs() -> None:
    text = "The family of Mara Quill had a child, born in Port Selwyn."
    assert shared_runs(text, "Long ago Mara Quill was born in Port Selwyn") == ["born in port selwyn", "mara quill"]
    assert shared_runs(text, "The of a in had") == [], "common words alone say nothing"
    assert shared_runs("", "x") == []
    assert lane("ab cd", ["cd"]) == "M60.00 5H100.00"


def test_heat_has_a_step_for_each_token() -> None:
    pieces = heat(Found(0, "x", tokens=["a", "b", "c", "d"], token_scores=[1.0, -0.5, 0.0, 0.01]))
    assert pieces is not None
    assert [piece["kind"] for piece in pieces] == ["p5", "n3", "z", "z"]
    assert heat(Found(0, "x", tokens=["a"], token_scores=[])) is None


def test_numbers_are_printed_as_the_field_does() -> None:
    assert [score_words(value) for value in (0.139, -0.5, 30.584, 0.0012, 0.0, None, float("nan"))] == [
        *("+.139", "−.500", "+30.584", "+.0012", "+.000", "–", "–")
    ]
    assert [ordinal(n) for n in (1, 2, 3, 4, 11, 12, 21, 102)] == [
        "1st",
        "2nd",
        "3rd",
        "4th",
        "11th",
        "12th",
        "21st",
        "102nd",
    ]
