"""mosaicml-streaming's modules, whichever of them a process needs first."""

from __future__ import annotations

import sys

import pytest

from headwater.train.mosaic import part_of


@pytest.mark.parametrize("first", ["util", "storage.download", "storage.upload", "format.mds.writer"])
def test_any_part_may_come_first(first: str, monkeypatch: pytest.MonkeyPatch):
    """Who joins shards that other processes have written, or fetches before reading, has imported no other part."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "streaming"]:
        monkeypatch.delitem(sys.modules, name)
    assert part_of.__wrapped__(first).__name__ == f"streaming.base.{first}"
    for name in [name for name in sys.modules if name.partition(".")[0] == "streaming"]:
        del sys.modules[name]  # those from before come back
