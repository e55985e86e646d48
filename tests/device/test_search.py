"""The scan on a device: what it finds is what the CPU finds, and nothing of the CPU is mixed in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from headwater.attribution.index.reader import Index
from headwater.attribution.search.full_ranking import ranked, score_all
from headwater.attribution.search.options import GPU_QUERIES, Exclusion, ScanOptions, Source
from headwater.attribution.search.scan import scan
from headwater.attribution.search.scorer import BlockScorer, Scoring
from headwater.attribution.search.topk import TopK
from headwater.configs.errors import UserError

from ..attribution.dense_formula import LAYOUT, N, build, queries_of
from ..attribution.synthetic_rows import make_rows
from .pretended import Mixed, pretended

CODECS = ["fp32", "bf16", "int8", "int4", "sign", "factors8"]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    folder = tmp_path_factory.mktemp("index")
    return build(folder, make_rows(LAYOUT, N), kind="kronecker", codecs=CODECS, shard_rows=47)


def both(work: Callable[[str], Any]) -> tuple[Any, Any]:
    """What the CPU makes, and what the device makes."""
    expected = work("cpu")
    with pretended():
        return expected, work("cuda")


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("curvature", ["task", "none"])
def test_scores_are_the_cpus(index: Index, codec: str, curvature: str):
    source = Source(index, queries_of(7))

    def scores(device: str) -> np.ndarray:
        return score_all([source], ScanOptions(scoring=Scoring(curvature=curvature), codec=codec, device=device))

    expected, got = both(scores)
    # The CPU multiplies integers with queries in one or two bytes.
    assert np.abs(got - expected).max() < (0.01 if index.codec(codec).planes else 1e-5)
    assert np.abs(got - expected[:, ::-1]).max() > 0.1


def test_a_search_in_two_stages_with_two_sources_exclusions_and_a_filter(index: Index):
    sources = [Source(index, queries_of(5)), Source(index, -queries_of(5), weight=0.25)]
    hidden = Exclusion(np.array([3, 50]), np.array([[0, 7], [4, 100]]))

    class Odd:
        """Passages of odd numbers."""

        def passing(self, start: int, stop: int) -> np.ndarray:
            return np.arange(start, stop) % 2 == 1

        def apply(self, scores_NQ: torch.Tensor, start: int, stop: int) -> None:
            hidden_N = torch.from_numpy(~self.passing(start, stop)).to(scores_NQ.device)
            scores_NQ.masked_fill_(hidden_N[:, None], -torch.inf)

    def found(device: str) -> Any:
        options = ScanOptions(
            codec="bf16",
            rescore="fp32",
            candidates=20,
            top_k=6,
            bottom_k=3,
            where=Odd(),
            device=device,  # type: ignore[arg-type]
        )
        return scan(sources, options, exclude=hidden)

    expected, got = both(found)
    np.testing.assert_array_equal(got.passages, expected.passages)
    np.testing.assert_array_equal(got.bottom_passages, expected.bottom_passages)
    np.testing.assert_allclose(got.scores, expected.scores, atol=1e-6)
    assert (got.passages % 2 == 1).all()
    assert got.scanned == expected.scanned == N // 2


def test_places_of_golds_and_few_things_that_the_host_waits_for(index: Index):
    sources, golds = [Source(index, queries_of(GPU_QUERIES))], [[number, N - 1] for number in range(GPU_QUERIES)]
    (_, expected), (_, got) = both(lambda device: ranked(sources, golds, ScanOptions(codec="fp32", device=device)))
    assert [each.tolist() for each in got] == [each.tolist() for each in expected]
    with pretended() as device:
        scan(sources, ScanOptions(top_k=5))  # many are asked: `auto` is the device
        sent = [pinned for shape, pinned in device.to_device if len(shape) and shape[0] in (47, N % 47)]
        assert sent
        assert all(sent)
        device.forget()
        scan([Source(index, queries_of(GPU_QUERIES - 1))], ScanOptions(top_k=5))
        assert not device.to_device


def test_a_scorer_of_the_cpu_is_refused_rows_of_the_device(index: Index, monkeypatch: pytest.MonkeyPatch):
    """What these tests are worth: each of the two, left on the CPU, is seen."""
    options, sources = ScanOptions(codec="fp32", device="cuda"), [Source(index, queries_of(5))]
    made = BlockScorer.__init__

    def forgetful(self: BlockScorer, *given: Any, device: torch.device, **options: Any) -> None:
        made(self, *given, **options)

    with monkeypatch.context() as patch, pretended():
        patch.setattr(BlockScorer, "__init__", forgetful)
        with pytest.raises(Mixed):
            scan(sources, options)
    kept = TopK.__init__
    with monkeypatch.context() as patch, pretended():
        patch.setattr(TopK, "__init__", lambda self, queries, k, device=None: kept(self, queries, k))
        with pytest.raises(Mixed):
            scan(sources, options)


def test_a_gpu_that_is_not_there_is_refused(index: Index):
    with pytest.raises(UserError, match="no GPU"):
        scan([Source(index, queries_of(3))], ScanOptions(device="cuda"))
    with pytest.raises(UserError, match="no such device"):
        scan([Source(index, queries_of(3))], ScanOptions(device="tpu"))
