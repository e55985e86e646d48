"""The processes that stand by: what a job leaves in them or does to them, no other job sees."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from . import jobs


def _note_process(directory: str) -> None:
    rank = os.environ["RANK"]
    (Path(directory) / rank).write_text(str(os.getpid()))
    print("rank", rank)


def _leave_one_waiting(how: str) -> None:
    """Rank 1 goes while rank 0 waits for it."""
    from headwater.train import parallel

    world = parallel.start()
    if not world.is_main and how == "raises":
        raise RuntimeError("gone")
    if not world.is_main:
        os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()


def _processes(directory: Path) -> list[str]:
    directory.mkdir()
    log = directory / "log"
    assert jobs.call(_note_process, str(directory), ranks=2, log=log) == 0
    assert sorted(log.read_text().splitlines()) == ["rank 0", "rank 1"]
    return [(directory / rank).read_text() for rank in ("0", "1")]


@pytest.mark.slow
def test_jobs_share_processes_until_one_fails(tmp_path: Path):
    for group in list(jobs._GROUPS.values()):  # whatever ran before: a group is renewed after some jobs
        group.end()
    first = _processes(tmp_path / "first")
    assert _processes(tmp_path / "second") == first
    for how, status in (("raises", 1), ("dies", -signal.SIGKILL)):
        before = _processes(tmp_path / f"before it {how}")
        log = tmp_path / how
        assert jobs.call(_leave_one_waiting, how, ranks=2, log=log) == status
        assert ("RuntimeError: gone" in log.read_text()) is (how == "raises")
        assert not set(_processes(tmp_path / f"after it {how}")) & set(before)


@pytest.mark.slow
def test_a_job_that_takes_too_long_is_ended(tmp_path: Path):
    before = _processes(tmp_path / "before")
    with pytest.raises(AssertionError, match=r"not done after 0\.2 s"):
        jobs.call(signal.pause, ranks=2, log=tmp_path / "log", seconds=0.2)
    assert not any(Path("/proc", process).exists() for process in before)
