"""What is planned for an index and its search, held against small ones that are made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from headwater.launch.bench.search import build_index
from headwater.launch.machines import indexing
from headwater.launch.machines.indexing import curvature_bytes, row_bytes, searching_of
from headwater.launch.machines.layouts import PlanSettings
from headwater.launch.plan.report import load_plan, make_plan, run_plan

from ...jobs import call
from .collected import measured_and_planned


@pytest.mark.parametrize(
    ("rows", "side", "codec"),
    [(200, 8, "fp32"), (2000, 8, "int8"), (2000, 8, "sign"), (2000, 16, "sign"), (5000, 16, "factors4")],
)
def test_bytes_on_disk_are_those_of_an_index(rows: int, side: int, codec: str, tmp_path: Path) -> None:
    """From 1e5 to 1e7 numbers."""
    build_index(tmp_path / "index", rows, 8 * side**2, [codec])
    there = sum(path.stat().st_size for path in (tmp_path / "index").rglob("*") if path.is_file())
    planned = rows * (row_bytes(8, side)[codec] + 8 + indexing.TABLE_BYTES) + curvature_bytes(8, side)
    assert planned == pytest.approx(there, rel=0.2)


SHAPE = ["layers=4", "hidden=256", "heads=4", "kv_heads=2", "ffn_hidden=688", "vocab_size=4096"]
COMMON = [f"model.{each}" for each in SHAPE] + ["corpus.seq_len=256", "corpus.max_tokens=64"]
MODELS = [
    (COMMON, "adam", 16, 512),
    (COMMON, "adafactor", 64, 1024),
    ([*COMMON, "train.precision=bf16", "zero.stage=1"], "none", 16, 1024),
]
SCANS = [(16, 1500), (32, 300)]


@pytest.mark.slow
def test_memory_is_that_of_rows_made_and_scanned(tmp_path: Path) -> None:
    log, out = tmp_path / "log", tmp_path / "bytes.json"
    assert call(measured_and_planned, MODELS, SCANS, out, ranks=1, log=log) == 0, log.read_text()
    models, scans = json.loads(out.read_text())
    for asked, (measured, planned) in zip([*MODELS, *SCANS], [*models, *scans], strict=True):
        assert planned == pytest.approx(measured, rel=0.2), asked


def test_constants_are_the_codes_own() -> None:
    from headwater.attribution.search.blocks import BLOCK_BYTES
    from headwater.kernels.triton_full import HALF_BYTES

    assert indexing.BLOCK_BYTES == BLOCK_BYTES
    assert indexing.HALF_BYTES == HALF_BYTES


def test_a_billion_passages_are_planned(capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["gpus=64", "parallel.tensor=2", "passages=1000000000", "queries=100"]
    run_plan("pretrain/llama-8b", overrides, as_json=True)
    many = json.loads(capsys.readouterr().out)["index"]
    run_plan("pretrain/llama-8b", [*overrides[:2], "passages=1000000", "queries=100"], as_json=True)
    few = json.loads(capsys.readouterr().out)["index"]
    # Bytes and time go with the passages, memory does not.
    assert many["bytes"]["sign"] == 1000 * few["bytes"]["sign"]
    assert many["scan"]["sign"] == pytest.approx(1000 * few["scan"]["sign"])
    assert many["searching"] == few["searching"]
    assert many["collecting"] == few["collecting"]
    # Every matrix's elementwise factors, in float32 and in bf16, are on each of the two tensor-parallel ranks.
    matrices = 32 * (4096 * 6144 + 4096**2 + 4096 * 28672 + 14336 * 4096)
    gained = many["collecting"]["adam"]["correction"] - indexing.HALF_BYTES
    assert gained == matrices // 2 * 6
    run_plan("pretrain/llama-8b", overrides)
    printed = capsys.readouterr().out
    assert "Searching it, 100 queries at once" in printed
    assert "computed, not measured" in printed


def test_memory_of_a_search_goes_with_its_queries() -> None:
    one, thousand = searching_of(128, 64, 1).total, searching_of(128, 64, 1000).total
    assert one < 2 * indexing.BLOCK_BYTES < thousand
    plan = make_plan(*load_plan(None, ["gpus=1"]))
    assert plan.index.searching == searching_of(plan.index.modules, PlanSettings().projection, PlanSettings().queries)
