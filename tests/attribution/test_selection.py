"""Selection: scores against each query's own, what is taken against a plain sort, and the files that are written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from headwater.attribution import Attributor
from headwater.attribution.index.build import build_index
from headwater.attribution.search.options import ScanOptions
from headwater.attribution.selection.run import run_select
from headwater.attribution.selection.scores import chosen, documents_of, sources_of, task_scores
from headwater.attribution.selection.settings import SelectSettings
from headwater.attribution.settings import IndexSettings, ProjectionSettings, TracedModelSettings
from headwater.configs.errors import UserError

TASK = [("The capital of Peru is", "Lima"), ("The people of the island speak", "French"), ("Exports are", "fish")]


@pytest.fixture(scope="module")
def index(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("selection") / "index"
    model = TracedModelSettings(run=str(tiny_run))
    build_index(IndexSettings(out=str(out), model=model, projection=ProjectionSettings(dims=5), codecs=["fp32"]))
    return out


@pytest.fixture(scope="module")
def truth(index: Path) -> tuple[np.ndarray, list[str], list[str], list[str]]:
    """Of every passage: the scores of each query [Q, N], id, text, and the corpus that holds it."""
    with Attributor.open(index) as attributor:
        passages = attributor.passages
        names, of = sources_of(passages)
        held = [names[n] for n in of]
        assert [passages.locate(n)[0] is passages.corpora[-1] for n in range(len(passages))] == [
            name == names[-1] for name in held
        ]
        texts = [passages.text(n) for n in range(len(passages))]
        for how in ("mean", "max"):
            together = task_scores(attributor.sources(TASK), ScanOptions(), how)
            np.testing.assert_allclose(together, getattr(attributor.scores(TASK), how)(axis=0), rtol=1e-5, atol=1e-7)
        return attributor.scores(TASK), passages.ids(0, len(passages)), texts, held


@pytest.fixture
def task(tmp_path: Path) -> Path:
    path = tmp_path / "task.jsonl"
    path.write_text("".join(json.dumps({"prompt": prompt, "target": target}) + "\n" for prompt, target in TASK))
    return path


@pytest.mark.parametrize("score", ["mean", "max"])
@pytest.mark.parametrize(("top", "share"), [(7, 0.0), (0, 0.1)])
def test_what_serves_the_task_best_is_written_best_first(truth, index, task, tmp_path, score, top, share):
    scores_QN, ids, texts, held = truth
    out = tmp_path / "chosen.jsonl"
    settings = SelectSettings(index=str(index), queries=str(task), out=str(out), score=score, top=top, share=share)
    made = run_select(settings)
    scores_N = getattr(scores_QN, score)(axis=0)
    expected = np.argsort(-scores_N, kind="stable")[: top or round(share * len(ids))]
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert [record["id"] for record in records] == [ids[n] for n in expected]
    assert [record["text"] for record in records] == [texts[n] for n in expected]
    assert [record["source"] for record in records] == [held[n] for n in expected]
    np.testing.assert_allclose([record["score"] for record in records], scores_N[expected], rtol=1e-5, atol=1e-7)
    assert sum(made.taken.values()) == len(expected)
    assert sum(made.of.values()) == len(ids)


@pytest.mark.parametrize("how", ["max", "mean"])
def test_documents_are_whole_and_have_their_passages_scores(truth, index, task, tmp_path, how):
    scores_QN, ids, texts, _ = truth
    out = tmp_path / "chosen.parquet"
    asked = {"index": str(index), "queries": str(task), "out": str(out), "unit": "document", "document_score": how}
    run_select(SelectSettings(**asked, share=0.2))
    by_document: dict[str, list[int]] = {}
    for number, name in enumerate(ids):
        by_document.setdefault(name.rpartition("#")[0], []).append(number)
    scores_N = scores_QN.mean(axis=0)
    expected = {name: getattr(scores_N[numbers], how)() for name, numbers in by_document.items()}
    best = sorted(expected, key=lambda name: -expected[name])[: round(0.2 * len(expected))]
    rows = pq.read_table(out).to_pylist()
    assert [row["id"] for row in rows] == best
    for row in rows:
        numbers = sorted(by_document[row["id"]], key=lambda number: int(ids[number].rpartition("#")[2]))
        assert row["passages"] == len(numbers)
        assert row["score"] == pytest.approx(expected[row["id"]], rel=1e-4, abs=1e-6)
        joined = "".join(texts[number] for number in numbers)
        assert "".join(row["text"].split()) == "".join(joined.split())
    assert any(row["passages"] > 1 for row in rows)


def test_a_share_of_each_source_is_taken_and_ties_go_to_the_first():
    scores_U = np.array([3, 9, 9, 1, 5, 2, 7], dtype=np.float32)
    groups_U = np.array([0, 0, 0, 1, 1, 1, 2], dtype=np.int32)
    assert chosen(scores_U, top=3).tolist() == [1, 2, 6]
    assert chosen(scores_U, groups_U, top=1).tolist() == [1, 6, 4]
    assert chosen(scores_U, groups_U, share=2 / 3).tolist() == [1, 2, 6, 4, 5]
    assert chosen(scores_U, groups_U, share=0.01).tolist() == [1, 6, 4], "at least one of each"


def test_each_source_gives_its_share(truth, index, task, tmp_path):
    _, _, _, held = truth
    asked = {"index": str(index), "queries": str(task), "share": 0.05}
    apart = run_select(SelectSettings(**asked, out=str(tmp_path / "apart.jsonl"), per_source=True))
    assert len(set(held)) == 2, "what is injected is a source"
    assert apart.taken == {name: max(1, round(0.05 * held.count(name))) for name in apart.of}


def test_documents_are_those_whose_ids_differ_in_the_number_alone(index, truth):
    with Attributor.open(index) as attributor:
        found = documents_of(attributor.passages)
    names = [name.rpartition("#")[0] for name in truth[1]]
    assert len(found.first_U) == len(set(names))
    assert all(names[found.first_U[document]] == name for document, name in zip(found.of_N, names, strict=True))


def test_what_is_there_is_left_alone_and_mistakes_come_together(index, task, tmp_path):
    out = tmp_path / "mine.jsonl"
    out.write_text("mine")
    with pytest.raises(UserError, match="is there already"):
        run_select(SelectSettings(index=str(index), queries=str(task), out=str(out), top=3))
    assert out.read_text() == "mine"
    wrong = {problem.key for problem in SelectSettings(out="a.csv", top=3, share=0.5, weights=[1, 2]).problems()}
    assert wrong == {"index", "queries", "out", "top", "weights"}
