"""The options of the benchmarks: lists, the JSON file, and help that needs nothing heavy."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from headwater.configs.errors import UserError
from headwater.launch.bench import kernels, search
from headwater.launch.bench.parser import run_benchmark

NAMES = ("kernels", "train", "collect", "capture", "codecs", "search")


def measure(rows: Sequence[int] = (5,), codecs: Sequence[str] = ("int8",), rate: float = 0.5) -> dict[str, object]:
    """Measures nothing."""
    return {"rows": list(rows), "codecs": list(codecs), "rate": rate}


@pytest.mark.parametrize("given", ["--rows 20,30", "--rows 20 30", "--rows=20,30", "--rows 20, 30"])
def test_lists_are_given_with_commas_or_with_spaces(given: str):
    assert run_benchmark("x", measure, given.split())["rows"] == [20, 30]


def test_a_list_of_both_kinds_and_of_words():
    found = run_benchmark("x", measure, ["--rows", "1,2", "3", "--codecs", "int8,sign", "--rate", "2"])
    assert found == {"rows": [1, 2, 3], "codecs": ["int8", "sign"], "rate": 2.0}
    assert run_benchmark("x", measure, []) == measure()
    for wrong in ("1,x", "1,,2", ","):
        with pytest.raises(UserError, match=f"invalid int value: '{wrong}'"):
            run_benchmark("x", measure, ["--rows", wrong])


def test_every_benchmark_writes_what_it_measured(tmp_path: Path):
    path = tmp_path / "new" / "found.json"
    found = run_benchmark("x", measure, ["--rows", "7", "--json", str(path)])
    assert json.loads(path.read_text()) == found == {"rows": [7], "codecs": ["int8"], "rate": 0.5}


def test_help_of_every_benchmark_lists_json_and_needs_no_torch():
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from headwater.launch.cli.commands import app\n"
        f"for name in {NAMES}:\n"
        "    result = CliRunner().invoke(app, ['bench', name, '--help'])\n"
        "    assert result.exit_code == 0, name\n"
        "    assert '--json FILE' in result.stdout, name\n"
        "heavy = {'torch', 'numpy', 'deepspeed', 'transformers', 'pyarrow'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_kernels_are_compiled_for_the_targets_that_are_named(monkeypatch: pytest.MonkeyPatch):
    asked: list[list[str]] = []
    monkeypatch.setattr("headwater.kernels.compile_check.compile_all", lambda targets: asked.append(targets) or [])
    found = run_benchmark("kernels", kernels.main, ["--compile", "sm_80,sm_90"])
    assert asked == [["sm_80", "sm_90"]]
    assert found["compile"] == []
    with pytest.raises(UserError, match="sm_1"):
        run_benchmark("kernels", kernels.main, ["--compile", "sm_1"])


def test_memory_of_two_sizes_is_measured_in_processes_of_their_own(tmp_path: Path):
    path = tmp_path / "found.json"
    arguments = f"--rows 40,80 --dims 64 --queries 2 --codecs int8,sign --json {path}"
    found = run_benchmark("search", search.main, arguments.split())
    assert [each["rows"] for each in found["memory"]] == [40, 80]
    assert all(each["peak_bytes"] >= each["build_peak_bytes"] > 0 for each in found["memory"])
    assert json.loads(path.read_text()) == found
