"""A process has one socket loop, whatever the number of its groups."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from ..jobs import call
from .gloo_threads import threads_of_a_job


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_groups_share_one_loop(tmp_path: Path) -> None:
    """A group has two threads for its work; one more each would be a loop of its own."""
    assert call(threads_of_a_job, tmp_path / "counts.json", ranks=2, log=tmp_path / "log") == 0
    groups, threads, total = json.loads((tmp_path / "counts.json").read_text())
    assert groups > 20
    assert threads <= 2 * groups + 8
    assert total == 2
