"""How far a piece of work is: counted by hand, with a clock that is set."""

from __future__ import annotations

import pytest

from headwater.train import progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_the_rest_takes_as_long_as_what_was_done_here(clock: list[float]):
    pace = progress.Pace(50, first=10)
    assert pace.left(10) is None
    clock[0] += 30
    assert pace.left(20) == 90, "ten took 30 seconds, thirty are left; the first ten were not done here"
    assert pace.at(20) == "20 of 50 (40%), 0:30 gone, about 1:30 left"
    assert pace.at(50) == "50 of 50 (100%), 0:30 gone"


def test_a_log_gets_a_line_now_and_then(clock: list[float], capsys: pytest.CaptureFixture[str]):
    for _ in progress.track(range(7), "index"):
        clock[0] += 20
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" of ")[0] for line in lines] == ["index: 2", "index: 4", "index: 6"]
    assert progress.clock(3725) == "1:02:05"
    assert list(progress.track([], "nothing")) == []
