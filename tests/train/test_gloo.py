"""A process has one socket loop, whatever the number of its groups; and one group that knows no timeout."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from ..jobs import call
from .gloo_threads import threads_of_a_job
from .patience import work_alone


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_groups_share_one_loop(tmp_path: Path) -> None:
    """A group has two threads for its work; one more each would be a loop of its own."""
    assert call(threads_of_a_job, tmp_path / "counts.json", ranks=2, log=tmp_path / "log") == 0
    groups, threads, total = json.loads((tmp_path / "counts.json").read_text())
    assert groups > 20
    assert threads <= 2 * groups + 8
    assert total == 2


def test_the_others_wait_for_rank_0_as_long_as_it_takes(tmp_path: Path) -> None:
    """A collective that takes as long fails."""
    assert call(work_alone, tmp_path / "note.json", ranks=2, log=tmp_path / "log") == 0
    assert json.loads((tmp_path / "note.json").read_text()) == [7, True]
