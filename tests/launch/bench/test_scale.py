"""`headwater bench scale`, of a few passages: every step, and what the table has of it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from headwater.launch.bench import scale
from headwater.launch.bench.parser import run_benchmark


def test_each_step_of_each_size_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps' processes are played by this one."""

    def run(command: list[str], **_: Any) -> Any:
        _, _, module, step, folder, passages = command
        assert module == scale.__name__
        line = scale.run_step(step, Path(folder), int(passages))
        return subprocess.CompletedProcess(command, 0, stdout=f"noise\n{json.dumps(line)}\n")

    monkeypatch.setattr(scale.subprocess, "run", run)
    arguments = ["--passages", "1500", "101", "--folder", str(tmp_path), "--json", str(tmp_path / "table.json")]
    table = run_benchmark("scale", scale.main, arguments)
    assert json.loads((tmp_path / "table.json").read_text()) == table
    assert [(line["passages"], line["step"]) for line in table] == [(n, s) for n in (1500, 101) for s in scale.STEPS]
    assert all(line.keys() == {"passages", "step", "seconds", "peak_rss_bytes"} for line in table)
    assert all(line["seconds"] > 0 and line["peak_rss_bytes"] > 1 << 20 for line in table)
    assert [path.name for path in tmp_path.iterdir()] == ["table.json"], "what was made is removed"


def test_ids_are_all_different() -> None:
    for count in (1, 2, 3, 100, 70_001):
        ids = [name for group in scale.id_groups(count) for name in group.to_pylist()]
        assert len(set(ids)) == len(ids) == count
        assert all(name.startswith("web/") and name.rpartition("#")[2] in "012" for name in ids)
