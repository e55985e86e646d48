"""The Python front door: opened once, asked often, and the same answers as everywhere else."""

from __future__ import annotations

import json
import re
import shutil
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from headwater.attribution import Attributor, Query, open_index, trace
from headwater.attribution.index.build import build_index
from headwater.attribution.models.base import Example
from headwater.attribution.search.options import Exclusion, ScanOptions
from headwater.attribution.search.scorer import Scoring
from headwater.attribution.settings import (
    IndexSettings,
    ProjectionSettings,
    QueriesSettings,
    TracedModelSettings,
    TraceSettings,
)
from headwater.attribution.tracing import attributor as module
from headwater.attribution.tracing import opened as opened_module
from headwater.attribution.tracing.asking import run_queries
from headwater.attribution.tracing.queries import read_queries
from headwater.attribution.tracing.run import run_trace
from headwater.configs.errors import ConfigError, MismatchError, MissingError, UserError
from headwater.train import parallel

ASKED = [("The capital of Peru is", "Lima"), ("The people of the island speak", "French")]


@pytest.fixture(scope="module")
def run(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tiny run with an index of each of its two checkpoints."""
    copy = tmp_path_factory.mktemp("attributor") / "run"
    shutil.copytree(tiny_run, copy)
    for name, step in (("last", 12), ("early", 6)):
        model = TracedModelSettings(run=str(copy), step=step)
        build_index(IndexSettings(name=name, model=model, projection=ProjectionSettings(dims=6), codecs=["fp32"]))
    return copy


@pytest.fixture(scope="module")
def attributor(run: Path) -> Iterator[Attributor]:
    with Attributor.open(run / "index/last") as opened:
        yield opened


def test_it_answers_as_trace_does_and_opens_nothing_again(
    run: Path, attributor: Attributor, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = trace(run / "index/last", ASKED, top_k=5, bottom_k=2)
    assert parallel.joined() is attributor.world, "what was opened inside leaves the groups that it found"
    monkeypatch.setattr(module, "open_for_queries", lambda *_, **__: pytest.fail("opened again"))
    assert attributor.trace(ASKED, top_k=5, bottom_k=2) == expected
    assert attributor.trace(ASKED, TraceSettings(index="-", top_k=5, bottom_k=2)) == expected
    assert attributor.trace(ASKED[:1], top_k=5, curvature="train") != expected[:1]


def test_scores_and_places_are_those_of_the_trace(attributor: Attributor) -> None:
    scores_QN = attributor.scores(ASKED, Scoring(curvature="train"))
    assert scores_QN.shape == (2, len(attributor.passages))
    records = attributor.trace(ASKED, top_k=7)
    for scores_N, record in zip(scores_QN, records, strict=True):
        best = np.argsort(-scores_N, kind="stable")
        assert record["proponent_ids"] == [attributor.passages.id_of(int(n)) for n in best[:7]]
        np.testing.assert_allclose(record["proponent_scores"], scores_N[best[:7]], rtol=1e-6)
    golds = [[int(n) for n in np.argsort(-scores_N, kind="stable")[[0, 3, 40]]] for scores_N in scores_QN]
    options = ScanOptions(top_k=2, scoring=Scoring(curvature="train"))
    found, places = attributor.ranked(ASKED, golds, options)
    assert [each.tolist() for each in places] == [[0, 3, 40]] * 2
    assert found.passages.tolist() == attributor.search(ASKED, options).passages.tolist()


def test_a_task_is_a_set_of_queries_and_never_the_one_question_asked(attributor: Attributor, tmp_path: Path) -> None:
    """A question alone is scored with the corpus's curvature; with a file of queries, with theirs."""
    (alone,) = attributor.trace(ASKED[:1], top_k=5)
    assert alone["curvature"] == {"kind": "train"}
    assert alone == attributor.trace(ASKED[:1], top_k=5, curvature="train")[0]
    path = tmp_path / "task.jsonl"
    others = [{"example_id": str(n), "prompt": f"The town of {n} is", "target": f"number {n}"} for n in range(12)]
    path.write_text("\n".join(map(json.dumps, others)))
    (asked,) = attributor.trace(ASKED[:1], top_k=5, task=str(path), task_weight=0.4)
    assert asked["curvature"] == {"kind": "task", "queries": 12, "weight": [0.4]}
    scoring = Scoring(curvature="task", task_weight=0.4)
    found = attributor.search(ASKED[:1], ScanOptions(top_k=5, scoring=scoring), task=read_queries(path))
    assert asked["proponent_scores"] == [float(score) for score in found.scores[0]]
    assert asked["proponent_scores"] != alone["proponent_scores"]
    path.write_text(json.dumps(others[0]))
    assert attributor.trace(ASKED[:1], top_k=5, task=str(path))[0] == alone
    with pytest.raises(ConfigError, match="curvature=task only"):
        attributor.trace(ASKED[:1], curvature="none", task=str(path))


def test_saved_rows_are_asked_with_and_no_model_is_opened(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One question, a mean, and a task: the same answers as from texts. A question in the file of another index, and
    whatever needs gradients, is refused."""
    texts, made = tmp_path / "q.jsonl", tmp_path / "q.safetensors"
    lines = [{"example_id": str(n), "prompt": f"The town of {n} is", "target": f"number {n}"} for n in range(12)]
    texts.write_text("\n".join(map(json.dumps, lines)))
    both: dict[str, object] = {"index": str(run / "index/last"), "also": [str(run / "index/early")]}
    run_queries(QueriesSettings(**both, queries=str(texts), out=str(made)))  # type: ignore[arg-type]

    def traced(**options: object) -> list[dict[str, object]]:
        return run_trace(TraceSettings(**both, top_k=4, **options))  # type: ignore[arg-type]

    asked: list[dict[str, object]] = [{}, {"mean": True}, {"mean": True, "normalize": False}, {"curvature": "train"}]
    expected = [traced(queries=str(texts), **options) for options in asked]
    by_task = traced(queries=str(texts), task=str(texts))
    monkeypatch.setattr(opened_module, "open_model_of", lambda *_: pytest.fail("a model was opened"))
    for options, wanted in zip(asked, expected, strict=True):
        assert traced(rows=str(made), **options) == wanted
    assert traced(rows=str(made), task=str(made)) == by_task == expected[0]
    assert len(expected[1]) == 1
    assert expected[1][0]["mean_of"] == [str(n) for n in range(12)]
    assert expected[1][0]["curvature"] == {"kind": "task", "queries": 12, "weight": [0.75, 0.75]}
    with pytest.raises(MismatchError, match="another number of indexes"):
        run_trace(TraceSettings(index=str(run / "index/last"), rows=str(made)))
    with Attributor.open(run / "index/last", also=[run / "index/early"], models=False) as alone:
        saved = alone.saved(made)
        with pytest.raises(ConfigError, match="a stored codec without a model"):
            alone.trace(saved, rescore="recompute")
        with pytest.raises(UserError, match="opened without its model"):
            alone.trace(ASKED)


def test_rows_are_those_of_the_index(run: Path, attributor: Attributor) -> None:
    numbers = [0, 17, 200]
    examples = [Example(attributor.passages.tokens(n).astype(np.int64)) for n in numbers]
    index = open_index(run / "index/last")
    stored_ND = torch.cat([index.rows(n, n + 1) for n in numbers])
    made_ND = index.whitening.apply(attributor.rows(examples))
    assert torch.linalg.vector_norm(made_ND - stored_ND) <= 1e-4 * torch.linalg.vector_norm(stored_ND)
    asked_QD = attributor.rows([Query("a", *ASKED[0]), ASKED[1]])
    contrast_QD = attributor.rows([Query("c", *ASKED[0], against="Rome")])
    other_QD = attributor.rows([(ASKED[0][0], "Rome")])
    assert torch.linalg.vector_norm(asked_QD[:1] - other_QD - contrast_QD) <= 1e-4 * torch.linalg.vector_norm(asked_QD)
    with pytest.raises(TypeError, match="asked for apart"):
        attributor.rows([examples[0], ASKED[0]])


def test_candidates_are_scored_again_from_gradients_made_again(run: Path, attributor: Attributor) -> None:
    stored = attributor.trace(ASKED, top_k=6)
    again = attributor.trace(ASKED, top_k=6, rescore="recompute", candidates=20)
    for one, other in zip(stored, again, strict=True):
        assert one["proponent_ids"] == other["proponent_ids"]
        np.testing.assert_allclose(one["proponent_scores"], other["proponent_scores"], rtol=1e-4)


def test_a_search_for_a_task_without_some_passages(attributor: Attributor) -> None:
    alone, options = attributor.search(ASKED[:1], ScanOptions(top_k=5)), ScanOptions(top_k=4)
    best = int(alone.passages[0, 0])
    rest = attributor.search(ASKED[:1], options, exclude=Exclusion(passages=np.array([best])))
    assert rest.passages[0].tolist() == alone.passages[0, 1:].tolist()
    for_task = attributor.search(ASKED[:1], options, task=ASKED)
    np.testing.assert_allclose(for_task.scores[0], attributor.search(ASKED, options).scores[0], rtol=1e-5)
    assert np.abs(for_task.scores[0] - alone.scores[0, :4]).max() > 1e-3


def test_scores_of_several_indexes_are_added_with_their_weights(run: Path, attributor: Attributor) -> None:
    plain = Scoring(curvature="train")
    with Attributor.open(run / "index/last", also=[run / "index/early"], weights=[1.0, 0.5]) as both:
        early = Attributor.open(run / "index/early")
        expected = attributor.scores(ASKED, plain) + 0.5 * early.scores(ASKED, plain)
        got = both.scores(ASKED, plain)
        early.close()
        assert parallel.joined() is both.world
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    assert np.abs(got - attributor.scores(ASKED, plain)).max() > 0.01


def test_what_is_not_allowed_is_refused_and_nothing_stays_open(run: Path, attributor: Attributor) -> None:
    with pytest.raises(ConfigError, match="task_weight"):
        attributor.trace(ASKED, task_weight="papers")
    with pytest.raises(UserError, match="unknown curvature"):
        attributor.trace(ASKED, curvature="tsk")
    with pytest.raises(MissingError, match="nowhere"):
        Attributor.open(run / "index/nowhere")
    assert parallel.joined() is attributor.world


def test_the_page_in_its_docstring_runs(run: Path, attributor: Attributor, capsys: pytest.CaptureFixture[str]) -> None:
    (page,) = re.findall(r"```python\n(.*?)```", Attributor.__doc__ or "", re.DOTALL)
    shown: dict[str, object] = {}
    exec(textwrap.dedent(page).replace("runs/demo/index/headwater", str(run / "index/last")), shown)
    assert len(capsys.readouterr().out.splitlines()) == 5
    assert np.array_equal(shown["scores_QN"], attributor.scores(ASKED[:1]))
    assert shown["rows_QD"].shape == (1, attributor.opened[0].index.layout.dims)  # type: ignore[attr-defined]


def test_alone_it_joins_a_job_and_leaves_it(run: Path) -> None:
    parallel.stop()
    try:
        with Attributor.open(run / "index/last") as opened:
            assert parallel.joined() is opened.world
        assert parallel.joined() is None
        with pytest.raises(MissingError):
            Attributor.open(run / "index/nowhere")
        assert parallel.joined() is None
    finally:
        parallel.start()  # the module's attributor goes on with groups of the same shape


def test_a_narrowed_trace_and_every_score_on_disk(run: Path, attributor: Attributor, tmp_path: Path) -> None:
    scores = attributor.scores(ASKED, Scoring(curvature="train"))
    lengths = attributor.passages.lengths
    facts = np.array(["person/" in attributor.passages.id_of(n) for n in range(len(lengths))])
    out, short = tmp_path / "scores.npy", int(np.median(lengths[facts]))
    records = attributor.trace(ASKED, top_k=4, where=f'source == "facts" and length < {short}', scores=str(out))
    passing = facts & (lengths < short)
    assert 0 < passing.sum() < facts.sum()
    for q, record in enumerate(records):
        order = np.argsort(-np.where(passing, scores[q], -np.inf), kind="stable")[:4]
        assert record["proponent_ids"] == [attributor.passages.id_of(int(n)) for n in order]
    written = np.load(out, mmap_mode="r")
    assert np.array_equal(np.isfinite(written[:, 0]), passing)
    np.testing.assert_allclose(written[passing].T, scores[:, passing], rtol=1e-6)
    kept = attributor.trace(ASKED, top_k=4, duplicates="collapse", scores=str(tmp_path / "all.parquet"))
    assert kept[0]["proponent_duplicates"]
    np.testing.assert_allclose(pq.read_table(tmp_path / "all.parquet")["1"].to_numpy(), scores[1], rtol=1e-6)
    with pytest.raises(UserError, match="did you mean length"):
        attributor.trace(ASKED, where="lenght > 3")
    with pytest.raises(ConfigError, match=r"\.npy or \.parquet"):
        attributor.trace(ASKED, scores="a.csv")
