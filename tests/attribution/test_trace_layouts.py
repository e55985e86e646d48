"""A trace with its model shared out over processes finds what one process finds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from headwater.attribution.index.build import build_index
from headwater.attribution.settings import IndexSettings, ProjectionSettings, TracedModelSettings
from headwater.attribution.tracing import asking
from headwater.attribution.tracing.__main__ import main

from ..jobs import REFUSED, call

ROOT = Path(__file__).resolve().parents[2]
QUERIES = [("a", "The capital of Peru is", "Lima"), ("b", "The river", "is long")]


@pytest.fixture(scope="module")
def asked(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The arguments of a trace of an index of the tiny run."""
    run = tmp_path_factory.mktemp("layouts") / "run"
    shutil.copytree(tiny_run, run)
    index = build_index(
        IndexSettings(
            model=TracedModelSettings(run=str(run)),
            correction="adafactor",
            projection=ProjectionSettings(dims=6),
            codecs=["fp32"],
            shard_rows=128,
        )
    )
    lines = [json.dumps({"example_id": name, "prompt": p, "target": t}) + "\n" for name, p, t in QUERIES]
    (run / "queries.jsonl").write_text("".join(lines))
    return [str(ROOT / "configs/presets/trace/default.yaml"), f"index={index}", f"queries={run / 'queries.jsonl'}"]


def traced(asked: list[str], out: Path, *overrides: str, ranks: int) -> list[dict[str, object]]:
    assert call(main, [*asked, f"out={out}", *overrides], ranks=ranks, log=out.with_suffix(".log")) == 0
    return [json.loads(line) for line in out.read_text().splitlines()]


@pytest.mark.parametrize("layout", ["parallel.tensor=2", ""])
def test_query_rows_that_two_processes_make(asked: list[str], tmp_path: Path, layout: str) -> None:
    """Each has a part of the model, or of the queries; one process traces with their file what it finds by itself."""
    _, index, queries = asked
    assert main([*asked, f"out={tmp_path / 'one'}"]) == 0
    made = [str(ROOT / "configs/presets/queries/default.yaml"), index, queries, f"out={tmp_path / 'q.safetensors'}"]
    log = tmp_path / "log"
    assert call(asking.main, [*made, *filter(None, [layout])], ranks=2, log=log) == 0, log.read_text()
    assert main([asked[0], index, f"rows={tmp_path / 'q.safetensors'}", f"out={tmp_path / 'two'}"]) == 0
    one, two = (list(map(json.loads, (tmp_path / name).read_text().splitlines())) for name in ("one", "two"))
    for got, expected in zip(two, one, strict=True):
        assert got["inputs_plaintext"] == expected["inputs_plaintext"]
        assert got["proponent_ids"] == expected["proponent_ids"]
        assert got["proponent_scores"] == pytest.approx(expected["proponent_scores"], rel=1e-3)


@pytest.mark.parametrize("layout", ["parallel.pipeline=2"])
def test_a_model_that_is_shared_out(asked: list[str], tmp_path: Path, layout: str) -> None:
    assert main([*asked, f"out={tmp_path / 'one'}"]) == 0
    expected = [json.loads(line) for line in (tmp_path / "one").read_text().splitlines()]
    for got, one in zip(traced(asked, tmp_path / "two", layout, ranks=2), expected, strict=True):
        assert got["proponent_ids"] == one["proponent_ids"]
        assert got["proponent_scores"] == pytest.approx(one["proponent_scores"], rel=1e-3)


def test_what_single_processes_would_do_is_refused(asked: list[str], tmp_path: Path) -> None:
    """Not waited for, for ever."""
    overrides = ["parallel.tensor=2", "tokens=true", "rescore=recompute"]
    assert call(main, [*asked, *overrides], ranks=2, log=tmp_path / "log") == REFUSED
    said = (tmp_path / "log").read_text()
    assert "tokens" in said
    assert "rescore" in said
