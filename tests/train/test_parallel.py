"""Large libraries are met in one module each."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("words", "places"),
    [
        ("parallel_state", {"train/parallel.py"}),
        ("deepspeed.initialize", {"train/engine.py"}),
        ("MDSReader", {"train/stream/shards.py"}),
        ("GPTModel", {"train/model.py"}),
    ],
)
def test_one_module_knows(words: str, places: set[str]):
    found = set()
    for package in ("train", "attribution", "launch"):
        for path in (ROOT / package).rglob("*.py"):
            if words in path.read_text():
                found.add(path.relative_to(ROOT).as_posix())
    assert found == places
