"""The table of codecs: what it says of a run's index, and of a known ranking."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from headwater.attribution.index.build import build_index
from headwater.attribution.index.manifest import made_from
from headwater.attribution.settings import IndexSettings, ProjectionSettings, TracedModelSettings
from headwater.configs.errors import MissingError, UserError
from headwater.launch.bench.codecs import main, overlap, reciprocal_rank_found
from headwater.launch.bench.parser import run_benchmark
from headwater.train.artifacts import fingerprint, read_json, write_json


def test_places_beyond_what_was_found_count_for_nothing():
    found = np.array([[5, 3, 9], [1, 2, 4], [7, 8, 6]])
    assert reciprocal_rank_found(found, [[9, 3], [0], [6]]) == pytest.approx((1 / 2 + 0 + 1 / 3) / 3)
    assert overlap(found, np.array([[3, 5, 0], [1, 2, 4], [0, 1, 2]])) == pytest.approx((2 / 3 + 1 + 0) / 3)


def test_what_has_no_index_is_refused(tmp_path: Path):
    with pytest.raises(MissingError, match="neither an index nor a run"):
        run_benchmark("codecs", main, [str(tmp_path)])
    with pytest.raises(UserError, match="path"):
        run_benchmark("codecs", main, [])


@pytest.mark.slow
def test_the_table_of_a_run(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    model = TracedModelSettings(run=str(run))
    build_index(IndexSettings(model=model, projection=ProjectionSettings(dims=6)))
    before = {path.name: path.read_bytes() for path in (run / "index/headwater").iterdir()}
    table = run_benchmark("codecs", main, [str(run), "--json", str(tmp_path / "table.json")])
    assert json.loads((tmp_path / "table.json").read_text()) == table
    rows = {row["codec"]: row for row in table}
    assert list(rows) == ["fp32", "bf16", "int8", "int4", "sign"]
    assert rows["fp32"]["overlap"] == 1
    assert rows["sign"]["overlap"] < rows["int4"]["overlap"] < rows["int8"]["overlap"] <= 1
    assert rows["int8"]["overlap"] > 0.8
    assert all(0 < row["mrr"] <= 1 for row in table)
    for name in ("int4", "sign"):
        stages = rows[name]["two_stage"]
        assert [each["candidates"] for each in stages] == [0.01, 0.02, 0.05, 0.1]
        assert stages[-1]["overlap"] >= rows[name]["overlap"]
        assert stages[-1]["mrr"] <= 1
    assert "again in int8" in capsys.readouterr().out
    # The float32 rows are kept beside the index, which is as it was; an index that has them is taken as it is.
    assert {path.name: path.read_bytes() for path in (run / "index/headwater").iterdir()} == before
    assert read_json(run / "index/headwater-fp32/index.json")["complete"]
    shutil.rmtree(run / "index/headwater")
    again = run_benchmark("codecs", main, [str(run / "index/headwater-fp32"), "--codecs", "int8"])
    assert again == [*table[:1], rows["int8"]]
    manifest = read_json(run / "index/headwater-fp32/index.json")
    changed = {**manifest, "captured": {}, "codecs": {"int8": {"files": 1, "bytes": 1}}}
    changed["fingerprint"] = fingerprint(made_from(changed))
    write_json(run / "index/headwater-fp32/index.json", changed)
    with pytest.raises(UserError, match="captured"):
        run_benchmark("codecs", main, [str(run / "index/headwater-fp32")])
