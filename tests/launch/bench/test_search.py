"""The bench of the scan, run small: lines of every stored form, and what has no sides refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from headwater.attribution.index.codecs.registry import make_codec
from headwater.configs.errors import UserError
from headwater.launch.bench.parser import run_benchmark
from headwater.launch.bench.search import main, make_layout, require_sides


def test_rates_of_products_of_signs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Beside signs, of the same rows: one question and several, by the corpus's curvature and the task's."""
    target, codecs = tmp_path / "found.json", ("sign", "factors16", "factors8")
    arguments = f"--rows 50 --dims 200 --queries 3 --rounds 1 --folder {tmp_path} --json {target} --codecs"
    found = run_benchmark("search", main, [*arguments.split(), *codecs])
    assert json.loads(target.read_text()) == found
    lines = found["rates"]
    asked = [(line["codec"], line["queries"], line["curvature"]) for line in lines]
    assert asked == [(codec, count, how) for codec in codecs for count in (1, 3) for how in ("train", "task")]
    for line in lines:
        row = make_codec(line["codec"], make_layout(200)).bytes_per_row + 8  # and two norms; a file has a header
        assert row <= line["bytes_per_row"] < row + 20
        assert min(line["rows_per_s"], line["bytes_per_s"], line["of_plain_read"]) > 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in printed] == [[codec, str(count)] for codec, count, _ in asked]


def test_products_want_sides() -> None:
    require_sides(1024, ["sign"])
    require_sides(8 * 12**2, ["factors8"])
    with pytest.raises(UserError, match=r"(?s)factors8, factors4 no sides.*968 or 1,152"):
        main(dims=1024, codecs=("sign", "factors8", "factors4"))
