"""The pool of parts: order, failures, what was done before, locks, and settings compared key by key."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from headwater.configs.errors import MismatchError, UserError
from headwater.launch.parts import pool
from headwater.launch.parts.part import Part
from headwater.launch.parts.pool import finish_parts, run_parts
from headwater.launch.parts.settings import keep_settings
from headwater.train.artifacts import read_json, write_json
from headwater.train.locks import file_lock

WORK = """
import os, sys, time
from headwater.configs.errors import UserError
from headwater.launch.parts.process import run_part

def work(path, note):
    with open(path.parent / "order.txt", "a") as file:
        file.write(f"{path.name} begins\\n")
    if note["does"] == "fails":
        raise UserError("the work cannot be done", got="nothing")
    if note["does"] == "waits":
        (path / "waiting").touch()
        time.sleep(120)
    if note["does"] != "stops":
        (path / "done").touch()
    with open(path.parent / "order.txt", "a") as file:
        file.write(f"{path.name} ends\\n")
    return 0

sys.exit(run_part(sys.argv[1:], work))
"""


@dataclass(frozen=True, kw_only=True)
class Task(Part):
    module = "task_of_a_test"

    def is_done(self) -> bool:
        return (self.path / "done").exists()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "task_of_a_test.py").write_text(WORK)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    (tmp_path / "parts").mkdir()
    return tmp_path / "parts"


def task(home: Path, name: str, does: str = "ends", after: tuple[str, ...] = ()) -> Task:
    write_json(home / name / "part.json", {"does": does})
    return Task(name=name, path=home / name, after=after)


def order(home: Path) -> list[str]:
    path = home / "order.txt"
    return path.read_text().splitlines() if path.exists() else []


def test_parts_run_after_those_they_need_and_once(home: Path) -> None:
    said: list[str] = []
    parts = [task(home, "late", after=("base",)), task(home, "base"), task(home, "other")]
    assert run_parts(parts, 2, said.append) == []
    assert order(home).index("base ends") < order(home).index("late begins")
    assert sorted(order(home)) == sorted(
        f"{name} {what}" for name in ("base", "late", "other") for what in ("begins", "ends")
    )
    assert said[0] == "3 parts, 0 finished before"
    assert said[-1].endswith("finished (3 of 3)")
    before = order(home)
    again: list[str] = []
    assert run_parts(parts, 1, again.append, "cells") == []
    assert order(home) == before
    assert again == ["late: done before", "base: done before", "other: done before", "3 cells, 3 finished before"]


def test_a_part_that_fails_is_named_with_its_log_and_the_others_end(home: Path) -> None:
    said: list[str] = []
    parts = [task(home, "bad", "fails"), task(home, "needs", after=("bad",)), task(home, "good")]
    with pytest.raises(UserError, match="bad failed") as caught:
        finish_parts(parts, 1, said.append)
    assert "the work cannot be done" in str(caught.value)
    assert str(home / "bad" / "log.txt") in str(caught.value)
    assert (home / "good" / "done").exists()
    assert not (home / "needs" / "log.txt").exists()
    assert "needs: not begun, since what it needs is not there" in said
    assert read_json(home / "bad" / "failed.json")["status"] == 2
    write_json(home / "bad" / "part.json", {"does": "ends"})
    finish_parts(parts, 1, said.append)
    assert not (home / "bad" / "failed.json").exists()
    assert all(part.is_done() for part in parts)


def test_a_part_that_was_asked_to_stop_stops_the_pool(home: Path) -> None:
    parts = [task(home, "first", "stops"), task(home, "second")]
    with pytest.raises(KeyboardInterrupt):
        run_parts(parts, 1, lambda text: None)
    assert order(home) == ["first begins", "first ends"]


def test_a_part_waits_for_the_process_that_was_left_over(home: Path) -> None:
    part = task(home, "only")
    ended: list[list[Task]] = []
    with file_lock(part.path / "running"):
        pool = threading.Thread(target=lambda: ended.append(run_parts([part], 1, lambda text: None)))
        pool.start()
        while not part.log.exists():
            time.sleep(0.01)
        pool.join(1.0)
        assert pool.is_alive()
        assert order(home) == []
    pool.join(60)
    assert ended == [[]]
    assert order(home) == ["only begins", "only ends"]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_pool_that_is_killed_takes_its_parts_along(home: Path, how: signal.Signals) -> None:
    task(home, "long", "waits")
    script = f"""
from pathlib import Path
import test_pool
test_pool.run_parts([test_pool.Task(name="long", path=Path({str(home / "long")!r}))], 1, print)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ["PYTHONPATH"]])}
    pool = subprocess.Popen([sys.executable, "-c", script], env=environment, stderr=subprocess.DEVNULL)
    while not (home / "long" / "waiting").exists():
        assert pool.poll() is None
        time.sleep(0.01)
    pool.send_signal(how)
    assert pool.wait(30) != 0
    with file_lock(home / "long" / "running"):  # free: the part's process is gone
        assert order(home) == ["long begins"]


def about_a_study(home: Path) -> dict[str, Any]:
    return {"home": home, "what": "it holds a study of other settings", "fix": "choose another out="}


def test_other_settings_are_refused_key_by_key(tmp_path: Path) -> None:
    path, about = (
        tmp_path / "study.json",
        {"home": tmp_path, "what": "it holds a study of other settings", "fix": "choose another out="},
    )
    keep_settings(path, {"seeds": [0], "model": {"layers": 2, "hidden": 8}}, mark="a", note={"kind": "x"}, **about)
    kept = path.read_text()
    assert json.loads(kept)["kind"] == "x"
    keep_settings(path, {"seeds": [0], "model": {"layers": 2, "hidden": 8}}, mark="a", note={"kind": "x"}, **about)
    assert path.read_text() == kept
    with pytest.raises(MismatchError, match="other settings") as caught:
        keep_settings(path, {"seeds": [0, 1], "model": {"layers": 3, "hidden": 8}}, mark="b", **about)
    assert (caught.value.got, caught.value.expected) == (
        "seeds = [0], model.layers = 2",
        "seeds = [0, 1], model.layers = 3",
    )
    assert path.read_text() == kept


def test_a_study_that_was_moved_is_the_same(tmp_path: Path) -> None:
    """Paths in it are compared as seen from it; others as they are."""
    first, second = tmp_path / "first", tmp_path / "else" / "second"

    def settings(out: Path, **more: str) -> dict[str, Any]:
        return {"out": str(out), "train": {"exclude": f"{out}/leave/a.txt"}, "also": [str(out)], **more}

    keep_settings(first / "part.json", settings(first, base="b"), mark="a", **about_a_study(first))
    second.parent.mkdir()
    first.rename(second)
    keep_settings(second / "part.json", settings(second, base="b"), mark="a", **about_a_study(second))
    with pytest.raises(MismatchError, match="other settings"):
        keep_settings(second / "part.json", settings(second, base="c"), mark="a", **about_a_study(second))
    with pytest.raises(MismatchError, match="other settings"):
        keep_settings(second / "part.json", settings(tmp_path / "seconds", base="b"), mark="a", **about_a_study(second))


def test_what_an_earlier_version_did_not_know_was_off(tmp_path: Path) -> None:
    path, about = tmp_path / "study.json", about_a_study(tmp_path)
    before = {"facts": {"people": 3}, "sources": [{"kind": "text", "share": 1.0}]}
    after = {"facts": {"people": 3, "countries": 0}, "sources": [{"kind": "text", "share": 1.0, "files": []}]}
    keep_settings(path, before, mark="a", **about)
    keep_settings(path, after, mark="b", **about)
    for settings, named in (
        ({**after, "facts": {"people": 3, "countries": 1}}, "facts.countries = 0"),
        ({**after, "sources": [{"kind": "text", "share": 0.5, "files": []}]}, "sources.0.share = 1.0"),
        ({**after, "facts": {"people": 0, "countries": 0}}, "facts.people = 3"),
        ({**after, "sources": [*after["sources"], {"kind": "text"}]}, "sources.1.kind = not set"),
    ):
        with pytest.raises(MismatchError) as caught:
            keep_settings(path, settings, mark="c", **about)
        assert caught.value.got == named


def test_a_study_of_an_earlier_version_is_compared_by_its_fingerprint(tmp_path: Path) -> None:
    path, about = (
        tmp_path / "study.json",
        {"home": tmp_path, "what": "it holds a study of other settings", "fix": "choose another out="},
    )
    write_json(path, {"fingerprint": "a"})
    with pytest.raises(MismatchError, match="other settings"):
        keep_settings(path, {"seeds": [0]}, mark="b", **about)
    keep_settings(path, {"seeds": [0]}, mark="a", **about)
    with pytest.raises(MismatchError) as caught:
        keep_settings(path, {"seeds": [1]}, mark="b", **about)
    assert caught.value.expected == "seeds = [1]"


def test_what_is_running_is_told_while_nothing_ends(home: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pool, "HEARTBEAT", 0.2)

    def begin(part: Task, cores: str, ended: SimpleQueue) -> None:
        threading.Timer(0.5, ended.put, [(part, cores, 0)]).start()

    monkeypatch.setattr(pool, "begin", begin)
    part = Task(name="a/b", path=home / "b")
    part.path.mkdir()
    (part.path / "log.txt").write_text("step 1/9  loss 3.0\nstep 2/9  loss 2.0\n\n")
    said: list[str] = []
    monkeypatch.setattr(Task, "is_done", lambda self: len(said) > 1)
    run_parts([part], 1, said.append)
    assert any(line.endswith("running a/b: step 2/9  loss 2.0") for line in said), said
    assert pool.last_line(home / "none.txt") == "begins"


def test_a_preset_that_was_written_as_a_path_is_the_same(tmp_path: Path) -> None:
    path, about = tmp_path / "study.json", about_a_study(tmp_path)
    keep_settings(path, {"preset": "configs/pretrain/tiny.yaml"}, mark="a", **about)
    keep_settings(path, {"preset": "pretrain/tiny"}, mark="b", **about)
    with pytest.raises(MismatchError, match="preset"):
        keep_settings(path, {"preset": "configs/pretrain/tiny.yaml"}, mark="a", **about)


def test_more_seeds_may_be_added_and_the_first_stay(tmp_path: Path) -> None:
    path, about = (
        tmp_path / "study.json",
        {"home": tmp_path, "what": "other settings", "fix": "choose another out=", "growing": ["seeds"]},
    )
    keep_settings(path, {"seeds": [3], "k": 1}, mark="a", **about)
    keep_settings(path, {"seeds": [3, 4, 5], "k": 1}, mark="b", **about)
    assert read_json(path)["made_with"]["seeds"] == [3, 4, 5]
    keep_settings(path, {"seeds": [3, 4], "k": 1}, mark="c", **about)
    for other, named in (({"seeds": [4, 3], "k": 1}, "seeds = "), ({"seeds": [3, 4, 5], "k": 2}, "k = 2")):
        with pytest.raises(MismatchError, match="other settings") as caught:
            keep_settings(path, other, mark="d", **about)
        assert named in caught.value.expected
