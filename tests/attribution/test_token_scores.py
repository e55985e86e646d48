"""Scores of single tokens: they add up to the passage's score, and stand where the gradient comes from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from headwater.attribution.index.build import build_index
from headwater.attribution.index.manifest import made_from
from headwater.attribution.models.base import Example
from headwater.attribution.models.opening import open_model
from headwater.attribution.rows.collector import GradientCollector
from headwater.attribution.settings import IndexSettings, ProjectionSettings, TracedModelSettings, TraceSettings
from headwater.attribution.tracing.queries import Query, read_queries
from headwater.attribution.tracing.query_rows import examples_of
from headwater.attribution.tracing.run import run_trace, trace
from headwater.configs.errors import UserError
from headwater.train import parallel
from headwater.train.artifacts import RunDir, fingerprint, read_json, write_json
from headwater.train.stream.passages import open_passages


@pytest.fixture(scope="module")
def run(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tiny run with indexes of both checkpoints, in float32 and in int8."""
    copy = tmp_path_factory.mktemp("tokens") / "run"
    shutil.copytree(tiny_run, copy)
    for step in (6, 12):
        build_index(
            IndexSettings(
                name=f"step-{step}",
                model=TracedModelSettings(run=str(copy), step=step),
                projection=ProjectionSettings(dims=6),
                codecs=["fp32", "int8"],
            )
        )
    return copy


@pytest.fixture(scope="module")
def collector(run: Path) -> Iterator[GradientCollector]:
    world = parallel.start(threads=1)
    model = open_model(TracedModelSettings(run=str(run)), world)
    yield GradientCollector(model, ProjectionSettings(dims=6), "adam", "log_odds")
    parallel.stop()


def test_places_make_up_the_row(run: Path, collector: GradientCollector) -> None:
    tokens = open_passages(RunDir.at(run)).tokens(3).astype(np.int64)
    whole, places = collector.rows([Example(tokens)])[0], collector.token_rows(Example(tokens))
    assert places.shape == (len(tokens), len(whole))
    assert float((places.sum(dim=0) - whole).norm() / whole.norm()) < 1e-5
    assert not places[-1].any(), "nothing is predicted from the last token"
    assert float(places[:-1].norm(dim=1).min()) > 0


def test_a_place_has_what_comes_back_from_later_predictions(run: Path, collector: GradientCollector) -> None:
    """Without the losses before a place nothing changes there; without those after it, something does."""
    tokens = open_passages(RunDir.at(run)).tokens(3).astype(np.int64)
    middle = len(tokens) // 2
    whole = collector.token_rows(Example(tokens))
    later = collector.token_rows(Example(tokens, target_start=middle + 1))
    torch.testing.assert_close(later[middle:], whole[middle:], rtol=1e-4, atol=1e-5 * float(whole.abs().max()))
    assert not torch.allclose(later[:middle], whole[:middle], rtol=0.1)
    shorter = collector.token_rows(Example(tokens[: middle + 1]))
    assert not torch.allclose(shorter[1:middle], whole[1:middle], rtol=0.1)


@pytest.mark.parametrize(
    "options",
    [{}, {"curvature": "train"}, {"curvature": "none"}, {"normalize": False}, {"task_weight": "paper"}],
    ids=str,
)
def test_tokens_add_up_to_the_scans_score(run: Path, options: dict[str, object]) -> None:
    path, probes = run / "index/step-12", read_queries(run / "facts/probes.jsonl")[:3]
    asked = [*probes, Query("against", "The capital is", "Lima", against="Rome")]
    plain = trace(path, asked, codec="fp32", top_k=4, bottom_k=2, **options)
    tokens = trace(path, asked, codec="fp32", top_k=4, bottom_k=2, tokens=True, **options)
    for a, b in zip(plain, tokens, strict=True):
        for end in ("proponent", "opponent"):
            size = max(map(abs, a[f"{end}_scores"]))
            assert np.allclose(a[f"{end}_scores"], b[f"{end}_scores"], rtol=0, atol=1e-5 * max(1.0, size))
            assert sorted(a[f"{end}_ids"]) == sorted(b[f"{end}_ids"])
            sums = [sum(each) for each in b[f"{end}_token_scores"]]
            assert np.allclose(sums, b[f"{end}_scores"], rtol=0, atol=1e-5 * max(1.0, size))
            for words, each in zip(b[f"{end}_tokens"], b[f"{end}_token_scores"], strict=True):
                assert len(words) == len(each)
    # A token that is part of a character has no text of its own.
    place, text = next((n, text) for n, text in enumerate(tokens[0]["proponents"]) if text.isascii())
    words = "".join(tokens[0]["proponent_tokens"][place][1:]).removesuffix("<|endoftext|>")  # which ends its document
    assert words.strip() == text
    assert tokens[3]["against_plaintext"] == "Rome"
    # Negative control: another query's parts do not add up to this one's score.
    wrong = [sum(each) for each in tokens[1]["proponent_token_scores"]]
    assert not np.allclose(wrong, tokens[0]["proponent_scores"], rtol=0.01)


def test_a_coded_index_gives_the_exact_scores(run: Path) -> None:
    probes = read_queries(run / "facts/probes.jsonl")[:2]
    coded = trace(run / "index/step-12", probes, codec="int8", top_k=5, tokens=True)
    exact = trace(run / "index/step-12", probes, codec="fp32", top_k=40)
    for a, b in zip(coded, exact, strict=True):
        known = dict(zip(b["proponent_ids"], b["proponent_scores"], strict=True))
        assert a["proponent_scores"] == sorted(a["proponent_scores"], reverse=True)
        assert np.allclose(a["proponent_scores"], [known[name] for name in a["proponent_ids"]], atol=1e-5)


def test_several_checkpoints_and_duplicates(run: Path, tmp_path: Path) -> None:
    settings = TraceSettings(
        index=str(run / "index/step-12"),
        also=[str(run / "index/step-6")],
        weights=[1.0, 0.5],
        codec="fp32",
        top_k=3,
        out=str(tmp_path / "t.jsonl"),
    )
    plain = run_trace(settings, "The capital is", "Lima")[0]
    settings.tokens, settings.duplicates = True, "collapse"
    found = run_trace(settings, "The capital is", "Lima")[0]
    assert json.loads((tmp_path / "t.jsonl").read_text()) == found
    assert np.allclose([sum(each) for each in found["proponent_token_scores"]], found["proponent_scores"], atol=1e-5)
    assert np.allclose(plain["proponent_scores"][0], found["proponent_scores"][0], atol=1e-5)
    assert len(found["proponent_duplicates"]) == 3
    settings.similar = 1e-6  # whatever shares five words in a row is one
    assert run_trace(settings, "The capital is", "Lima")[0]["proponent_ids"][0] == found["proponent_ids"][0]


def test_captured_rows_have_no_tokens(run: Path) -> None:
    path = run / "index/step-12/index.json"
    manifest = read_json(path)
    captured = {**manifest, "captured": {"mode": "mean"}}
    write_json(path, {**captured, "fingerprint": fingerprint(made_from(captured))})
    try:
        with pytest.raises(UserError, match="captured rows have no token scores"):
            trace(run / "index/step-12", [("a", "b")], tokens=True)
    finally:
        write_json(path, manifest)


def test_a_query_beyond_the_context_is_named(run: Path) -> None:
    from headwater.train.tokenizer import TextTokenizer

    tokenizer = TextTokenizer.from_file(run / "tokenizer.json")
    with pytest.raises(UserError, match=r"query long is longer than the model's context[\s\S]*at most 16"):
        examples_of([Query("short", "a", "b"), Query("long", "word " * 30, "b")], tokenizer, 16)
