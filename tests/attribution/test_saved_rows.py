"""Query rows on disk: read as they were written, for the indexes that they are of and no others; and their means."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from headwater.attribution.index.reader import Index
from headwater.attribution.rows.checks import NonFiniteRowsError
from headwater.attribution.search.full_ranking import score_all
from headwater.attribution.search.options import ScanOptions, Source
from headwater.attribution.search.scorer import Scoring
from headwater.attribution.tracing.queries import Query
from headwater.attribution.tracing.saved_rows import QueryRows, load_rows, save_rows
from headwater.configs.errors import CorruptError, MismatchError, MissingError, UserError

from .dense_formula import LAYOUT, build
from .synthetic_rows import make_rows

QUERIES = [
    Query("a", "The capital of Peru is", "Lima", gold=("p3#0",), record={"relation": "capital", "prompt": "another"}),
    Query("b", "Peru speaks", "Spanish", against="French", record={"relation": "language"}),
    Query("c", "And?", "Rome", messages=({"role": "user", "content": "And?"},), record={"relation": "capital"}),
]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    return build(tmp_path_factory.mktemp("index"), make_rows(LAYOUT, 61), kind="kronecker")


def rows(count: int = 3, seed: int = 99) -> torch.Tensor:
    return make_rows(LAYOUT, count, rows_seed=seed)


def test_what_is_written_is_read(index: Index, tmp_path: Path) -> None:
    path = tmp_path / "q.safetensors"
    save_rows(path, QueryRows(QUERIES, [rows(), rows(seed=5)]), [index, index])
    got = load_rows(path, [index, index])
    assert [torch.equal(*each) for each in zip(got.rows, [rows(), rows(seed=5)], strict=True)] == [True, True]
    for one, query in zip(got.queries, QUERIES, strict=True):
        assert (one.example_id, one.prompt, one.target) == (query.example_id, query.prompt, query.target)
        assert (one.against, one.gold, one.messages) == (query.against, query.gold, query.messages)
        assert one.record["relation"] == query.record["relation"]
    save_rows(path, got, [index, index])
    assert load_rows(path, [index, index]).queries == got.queries
    with pytest.raises(MismatchError, match="another number of indexes"):
        load_rows(path, [index])


@pytest.mark.parametrize(
    "changed", [{"loss": "margin"}, {"model_fingerprint": "another"}, {"captured": {}}, {"projection": {"seed": 1}}]
)
def test_rows_that_were_made_otherwise_are_refused(index: Index, tmp_path: Path, changed: dict[str, object]) -> None:
    save_rows(tmp_path / "q.safetensors", QueryRows(QUERIES, [rows()]), [index])
    other = Index(index.path)
    other.manifest |= changed
    with pytest.raises(MismatchError, match=next(iter(changed))):
        load_rows(tmp_path / "q.safetensors", [other])
    other.manifest = index.manifest | {"corpus": "another", "wanted_codecs": ["sign"]}
    assert len(load_rows(tmp_path / "q.safetensors", [other]).rows) == 1  # the same rows serve any corpus


def test_rows_that_somebody_else_made(index: Index, tmp_path: Path) -> None:
    np.save(tmp_path / "q.npy", rows().double().numpy())
    save_file({"gradients": rows()}, tmp_path / "q.safetensors")
    for name in ("q.npy", "q.safetensors"):
        got = load_rows(tmp_path / name, [index], QUERIES)
        assert torch.equal(got.rows[0], rows())
        assert [query.example_id for query in got.queries] == ["a", "b", "c"]
        assert [query.example_id for query in load_rows(tmp_path / name, [index]).queries] == ["0", "1", "2"]
        with pytest.raises(MismatchError, match="a row for each query"):
            load_rows(tmp_path / name, [index], QUERIES[:2])
        with pytest.raises(UserError, match="rows for one index"):
            load_rows(tmp_path / name, [index, index])


def test_files_that_are_none_are_refused(index: Index, tmp_path: Path) -> None:
    def refused(name: str, error: type[Exception], text: str) -> None:
        with pytest.raises(error, match=text):
            load_rows(tmp_path / name, [index])

    refused("gone.npy", MissingError, "gone.npy are missing")
    for name, tensors in (("two", {"a": rows(), "b": rows()}), ("none", {}), ("flat", {"a": rows()[0]})):
        save_file(tensors, tmp_path / f"{name}.safetensors")
        refused(f"{name}.safetensors", CorruptError, "something else than query rows")
    np.save(tmp_path / "texts.npy", np.array([["a"]]))
    refused("texts.npy", CorruptError, "something else")
    save_file({"a": rows()[:, :-1].contiguous()}, tmp_path / "narrow.safetensors")
    refused("narrow.safetensors", MismatchError, "do not fit the row layout")
    broken = rows()
    broken[1, 3] = torch.nan
    save_file({"a": broken}, tmp_path / "nan.safetensors")
    refused("nan.safetensors", NonFiniteRowsError, "nan.safetensors")
    save_rows(tmp_path / "whole.safetensors", QueryRows(QUERIES, [rows()]), [index])
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "whole.safetensors").read_bytes()[:-9])
    refused("cut.safetensors", CorruptError, "cannot be read")
    with pytest.raises(MismatchError, match="other queries"):
        load_rows(tmp_path / "whole.safetensors", [index], [*QUERIES[:2], Query("d", "x", "y")])
    for about in ({"format": "another"}, {"format": "headwater-query-rows/1", "queries": 3}, []):
        save_file({"rows": rows()}, tmp_path / "odd.safetensors", {"headwater": json.dumps(about)})
        refused("odd.safetensors", CorruptError, "odd.safetensors")


def test_the_score_of_a_mean_is_the_mean_of_the_scores(index: Index) -> None:
    """Of plain products exactly; at unit norm each question counts the same, however long its row."""
    plain = ScanOptions(scoring=Scoring(curvature="train", normalize=False))
    scores = score_all([Source(index, rows())], plain)
    asked = QueryRows(QUERIES, [rows()])
    (mean_QD,) = asked.mean(unit=False).rows
    assert np.allclose(score_all([Source(index, mean_QD)], plain)[0], scores.mean(axis=0), rtol=1e-4, atol=1e-5)
    grouped = asked.mean(unit=False, group="relation")
    assert [query.example_id for query in grouped.queries] == ["capital", "language"]
    assert grouped.queries[0].record == {"mean_of": ["a", "c"]}
    assert grouped.queries[0].gold == ("p3#0",)
    expected = np.stack([scores[[0, 2]].mean(axis=0), scores[1]])
    assert np.allclose(score_all([Source(index, grouped.rows[0])], plain), expected, rtol=1e-4, atol=1e-5)
    longer = QueryRows(QUERIES, [rows() * torch.tensor([[1.0], [50.0], [1.0]])])
    assert torch.allclose(longer.mean(unit=True).rows[0], asked.mean(unit=True).rows[0], atol=1e-6)
    assert not torch.allclose(longer.mean(unit=False).rows[0], mean_QD, rtol=0.5)
    with pytest.raises(UserError, match="query a belongs to no group"):
        asked.mean(unit=True, group="language")
