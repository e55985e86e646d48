"""What is read of runs and files, against the files read plainly."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from headwater.attribution.evaluation import bootstrap
from headwater.attribution.evaluation.ranking import read_rankings
from headwater.attribution.explorer.holdings import Holdings, find
from headwater.attribution.explorer.library import document_of
from headwater.attribution.explorer.links import ServerLinks
from headwater.attribution.explorer.loading import read_results
from headwater.attribution.explorer.measures import interval
from headwater.attribution.explorer.pages.base import Site
from headwater.attribution.explorer.saving import pair_lines
from headwater.configs.errors import CorruptError, MismatchError, MissingError
from headwater.train.artifacts import RunDir
from headwater.train.stream.passages import open_passages


def jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_shows_what_it_has(holdings: Holdings) -> None:
    assert list(holdings.sets) == ["headwater", "gradient_cosine", "bm25", "random"]
    assert [entry.kind for entry in holdings.sets.values()] == ["results", "ranking", "ranking", "ranking"]
    assert set(holdings.indexes) == {"headwater", "gradient"}
    assert not any(entry.trouble for entry in holdings.indexes.values())


def test_columns_say_what_the_file_says(explored: Path, holdings: Holdings) -> None:
    records = jsonl(explored / "traces/headwater.jsonl")
    opened = holdings.sets["headwater"].open()
    answers = opened.answers
    assert answers.ids == [record["example_id"] for record in records]
    assert answers.prompts.to_pylist() == [record["inputs_plaintext"] for record in records]
    ranks = {each.example_id: each.gold_ranks for each in read_rankings(explored / "evaluation/headwater.jsonl")}
    assert opened.rank.tolist() == [1 + min(ranks[name]) for name in answers.ids]
    for row in (0, len(records) - 1):
        answer = answers.answer(row)
        for found, end in ((answer.proponents, "proponent"), (answer.opponents, "opponent")):
            assert [each.id for each in found] == records[row][f"{end}_ids"]
            assert [each.text for each in found] == records[row][f"{end}s"]
            assert [each.score for each in found] == records[row][f"{end}_scores"]
            assert [each.seen for each in found] == records[row][f"{end}_seen_steps"]
    name = records[0]["proponent_ids"][0]
    entries = answers.postings.of_passage(name)
    found = {(answers.ids[answers.postings.query[n]], bool(answers.postings.opponent[n])) for n in entries}
    assert found == {
        (record["example_id"], end == "opponent")
        for record in records
        for end in ("proponent", "opponent")
        if name in record[f"{end}_ids"]
    }


def test_probes_are_read_one_by_one(explored: Path, holdings: Holdings) -> None:
    facts = holdings.homes[0].facts
    lines = pq.read_table(explored / "probes.parquet").to_pylist()
    for probe in (0, 3):
        mine = sorted((line["step"], line["prob"]) for line in lines if line["probe"] == probe)
        steps, prob, _ = facts.curve(probe)
        assert list(zip(steps.tolist(), prob.tolist(), strict=True)) == mine
    last = {line["probe"]: line for line in lines if line["step"] == 12}
    assert facts.ends["after"].tolist() == [last[n]["prob"] for n in range(len(facts.probes))]
    assert facts.ends["exact"].tolist() == [float(last[n]["exact"]) for n in range(len(facts.probes))]
    relations = [probe["relation"] for probe in facts.probes]
    name = relations[0]
    mean = np.mean([last[n]["prob"] for n, each in enumerate(relations) if each == name])
    assert facts.means[name][-1] == pytest.approx(mean)


def test_passages_are_found_with_their_steps(explored: Path, holdings: Holdings) -> None:
    library, passages = holdings.homes[0].library, open_passages(RunDir.at(explored))
    assert library is not None
    ids = [passages.id_of(n) for n in (0, 17, len(passages) - 1)]
    assert library.numbers([*ids, "nobody#0"]) == {name: passages.find(name) for name in ids}
    assert library.texts(ids) == {name: passages.text(passages.number_of(name)) for name in ids}
    ledger = pq.read_table(explored / "ledger").to_pylist()
    wanted = [0, 17, len(passages) - 1]
    assert library.seen(wanted) == {
        n: sorted({line["step"] for line in ledger if line["passage"] == n}) for n in wanted
    }
    planted = passages.id_of(len(passages) - 1)
    document, place = document_of(planted)
    around = library.around(planted)
    assert planted in around
    assert all(document_of(name)[0] == document and abs(document_of(name)[1] - place) <= 2 for name in around)
    codes = library.source_codes(np.array(wanted))
    assert library.sources[codes[-1]] == "planted"
    assert library.sources[codes[0]] == "factbook"


@pytest.mark.parametrize("kind", ["few values", "many values"])
def test_intervals_are_the_bootstraps(kind: str) -> None:
    """Against the plain resampling of evaluation/bootstrap.py: the same up to the noise of either."""
    draw = np.random.default_rng(3)
    values = 1 / draw.integers(1, 9, 400) if kind == "few values" else draw.random(400) ** 3
    mine, plain = interval(np.append(values, np.nan)), bootstrap.interval(values)
    assert mine is not None
    width = plain[2] - plain[1]
    assert mine[0] == pytest.approx(plain[0])
    assert abs(mine[1] - plain[1]) < 0.08 * width
    assert abs(mine[2] - plain[2]) < 0.08 * width
    assert interval(np.array([np.nan])) is None
    assert interval(np.array([0.5])) == (0.5, 0.5, 0.5)


def test_the_least_line_that_pairs_viewer_draws_opens(tmp_path: Path) -> None:
    line = {
        "example_id": "trex-0",
        "inputs_plaintext": "a b",
        "targets_plaintext": "c",
        "proponents": ["one", "two", "one"],
        "proponent_scores": [0.91, 0.5, 0.2],
    }
    path = tmp_path / "pair.jsonl"
    path.write_text(json.dumps(line) + "\n\n" + json.dumps({**line, "proponents": ["two"]}) + "\n")
    holdings = find([path])
    opened = holdings.set_of("").open()
    assert opened.answers.ids == ["trex-0", "trex-0~2"]
    assert opened.measures == [], "nothing is known to be right"
    answer = opened.answers.answer(0)
    assert [each.text for each in answer.proponents] == ["one", "two", "one"]
    assert answer.proponents[0].id == answer.proponents[2].id != answer.proponents[1].id
    assert len(opened.answers.postings.of_passage(answer.proponents[1].id)) == 2
    written = [json.loads(each) for each in pair_lines(Site(holdings, ServerLinks()), {})]
    for name in ("inputs_plaintext", "targets_plaintext", "proponents", "proponent_scores"):
        assert written[0][name] == line[name]


def test_what_is_saved_is_what_was_traced(explored: Path, holdings: Holdings) -> None:
    site, records = Site(holdings, ServerLinks()), jsonl(explored / "traces/headwater.jsonl")
    written = [json.loads(line) for line in pair_lines(site, {"set": "headwater"})]
    for mine, record in zip(written, records, strict=True):
        assert mine.items() <= record.items()
    relation = records[0]["relation"]
    some = list(pair_lines(site, {"set": "headwater", "where": f'relation="{relation}"'}))
    assert len(some) == sum(record["relation"] == relation for record in records)
    ranked = json.loads(next(iter(pair_lines(site, {"set": "bm25"}))))
    passages = open_passages(RunDir.at(explored))
    assert ranked["proponents"][0] == passages.text(passages.number_of(ranked["proponent_ids"][0]))
    assert len(ranked["proponents"]) == len(ranked["proponent_scores"]) == 100


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "line 2 is not a result"),
        ('{"a": 1}', "line 2 is not a result"),
        ("[1]", "line 2 is not a result"),
        ("\udc80", "line 2 is not a result"),
        ('{"inputs_plaintext": "x", "proponents": [' + "[" * 100_000, "line 2 is not a result"),
        ('{"inputs_plaintext": "x", "proponents": ["a"], "proponent_seen_steps": [["x"]]}', "line 2 is not a result"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, told: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b'{"inputs_plaintext": "x", "proponents": []}\n' + line.encode("utf-8", "surrogateescape"))
    with pytest.raises(CorruptError, match=told):
        read_results(path, "x", "x")


def test_a_file_that_changes_or_goes_is_said(explored: Path, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    shutil.copy(explored / "traces/headwater.jsonl", path)
    opened = find([path]).set_of("").open()
    with open(path, "a") as file:
        file.write("\n")
    with pytest.raises(MismatchError, match="has changed"):
        opened.answers.answer(0)
    path.unlink()
    with pytest.raises(MissingError, match="is gone"):
        opened.answers.answer(0)


def test_what_cannot_be_explored_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="is not there"):
        find([tmp_path / "nothing"])
    with pytest.raises(MissingError, match="nothing to explore"):
        find([tmp_path])


def test_a_half_written_index_is_named_and_not_asked(explored: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(explored, run)
    path = run / "index/gradient/index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"complete": False}))
    (run / "index/headwater/index.json").write_text("{")
    indexes = find([run]).indexes
    assert "half written" in indexes["gradient"].trouble
    assert "index.json" in indexes["headwater"].trouble
